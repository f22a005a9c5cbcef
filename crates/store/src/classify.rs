//! What went wrong, in classes that each call for one reaction.
//!
//! The one table from SQLSTATE to class is [`SQLSTATES`]; the reaction to each class is the caller's. Messages are what
//! Postgres or the system said, never a connection string, and never the detail of a Postgres error (which repeats
//! whole rows).
//!
//! Errors are logged, traced and shown to readers, who may not see amounts. What a trigger raises can hold some, and so can
//! what Postgres says of a value. So the message of such an error has no numbers; [`StoreError::in_full`] has them, and goes
//! nowhere but into quarantine.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use balance_sync_domain::{printable, without_numbers};
pub use balance_sync_engine::failure::PostgresClass as ErrorClass;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::connect::{class_of_pooler, tls_fault};
use crate::sql::{ALTERED_MARK, GUARD_MARK};

/// SQLSTATE, or its first two characters (its class in the standard's sense), to our class. A whole code goes before its
/// class. From the Postgres manual, appendix A.
const SQLSTATES: &[(&str, ErrorClass)] = &[
    ("08", ErrorClass::Connection),
    ("09", ErrorClass::Refused), // triggered action exception
    ("21", ErrorClass::Refused), // cardinality violation, from a trigger
    ("22", ErrorClass::Refused),
    ("23", ErrorClass::Refused),
    ("25006", ErrorClass::ReadOnly),
    ("25P03", ErrorClass::Timeout),   // idle in transaction
    ("25P04", ErrorClass::Timeout),   // transaction timeout
    ("26", ErrorClass::PoolerUnsafe), // a prepared statement that we don't use
    ("27", ErrorClass::Refused),      // triggered data change violation
    ("28", ErrorClass::Credentials),
    ("3D", ErrorClass::DatabaseMissing),
    ("3F", ErrorClass::NotProvisioned),
    ("40", ErrorClass::Contention),
    ("40002", ErrorClass::Refused), // an integrity constraint, checked at commit
    ("40003", ErrorClass::Connection), // whether the statement took effect is not known: write again
    ("42", ErrorClass::NotProvisioned),
    ("42501", ErrorClass::Permission),
    ("42P05", ErrorClass::PoolerUnsafe), // a prepared statement exists: we prepare none
    ("42601", ErrorClass::Internal),     // a syntax error is ours
    ("44", ErrorClass::Refused),         // a view's check option
    ("53", ErrorClass::Resources),
    ("53300", ErrorClass::TooManyConnections),
    ("54", ErrorClass::Resources),
    ("55000", ErrorClass::RefusesEveryRow), // the table is not in a state to be updated; at connect see `class_of`
    ("55006", ErrorClass::Connection),      // object in use: the database is being dropped or copied
    ("55P03", ErrorClass::Timeout), // lock timeout: the lock has been waited for, so not again at once
    ("57014", ErrorClass::Timeout), // statement timeout, or cancelled by an administrator
    ("57P01", ErrorClass::Connection),
    ("57P02", ErrorClass::Connection),
    ("57P03", ErrorClass::Connection),
    ("57P04", ErrorClass::DatabaseMissing),
    ("57P05", ErrorClass::Connection),
    ("58", ErrorClass::Resources), // the server's disk or files
    ("P0", ErrorClass::Refused),   // raised by a trigger: it judges rows
];

/// The class of a SQLSTATE; [`ErrorClass::Internal`] if it is in no row of the table.
#[must_use]
pub fn class_of_sqlstate(sqlstate: &str) -> ErrorClass {
    let of = |wanted: &str| SQLSTATES.iter().find(|(code, _)| *code == wanted).map(|(_, class)| *class);
    of(sqlstate)
        .or_else(|| sqlstate.get(..2).and_then(of))
        .or_else(|| is_users_own(sqlstate).then_some(ErrorClass::Refused))
        .unwrap_or(ErrorClass::Internal)
}

/// Whether a code is one that a trigger has chosen: its class is none of Postgres's. The standard leaves those that begin
/// with 5 to 9 or I to Z to implementations, and 45 stands for an exception of the user.
fn is_users_own(sqlstate: &str) -> bool {
    const POSTGRES: [&str; 8] = ["53", "54", "55", "57", "58", "72", "P0", "XX"];
    sqlstate.get(..2).is_some_and(|class| {
        class == "45"
            || matches!(class.as_bytes()[0], b'5'..=b'9' | b'I'..=b'Z') && !POSTGRES.contains(&class)
    })
}

/// A failed call to Postgres. Holds no secret and no connection string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {message}{}", sqlstate.as_ref().map(|s| format!(" (SQLSTATE {s})")).unwrap_or_default())]
pub struct StoreError {
    class: ErrorClass,
    sqlstate: Option<String>,
    message: Cow<'static, str>,
    /// What was said, where `message` leaves numbers out.
    in_full: Option<Quoting>,
    /// Whether the session is still usable: Postgres answered, and only the statement failed.
    session_survives: bool,
    /// Whether a function of the database raised or met it, so that another row may not meet it.
    in_function: bool,
}

/// Most bytes of a message that are kept. Postgres, a pooler or a trigger may send megabytes, for each row anew, and what is
/// kept goes to logs, Redis and screens.
const MESSAGE_BYTES: usize = 1024;

/// A message on one line, without characters that a terminal obeys, and cut to [`MESSAGE_BYTES`].
fn bounded(message: Cow<'static, str>) -> Cow<'static, str> {
    if message.len() <= MESSAGE_BYTES && matches!(printable(&message), Cow::Borrowed(_)) {
        return message;
    }
    let cut = |text: &str| {
        (0..=MESSAGE_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
    };
    let end = cut(&message);
    let mut kept = printable(&message[..end].replace(['\n', '\t', '\r'], " ")).into_owned();
    // Escapes take more than what they stand for.
    kept.truncate(cut(&kept));
    if end < message.len() {
        // Writing into a String can't fail.
        let _ = write!(kept, "… ({} bytes in all)", message.len());
    }
    kept.into()
}

/// A SQLSTATE; none for what isn't one, as a server may send anything of any length in its place.
fn five_of(code: &str) -> Option<String> {
    (code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_alphanumeric())).then(|| code.to_owned())
}

/// Words that may quote amounts.
#[derive(Clone, PartialEq, Eq)]
struct Quoting(Box<str>);

impl fmt::Debug for Quoting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl StoreError {
    pub(crate) fn new(class: ErrorClass, message: impl Into<Cow<'static, str>>) -> StoreError {
        StoreError {
            class,
            sqlstate: None,
            message: bounded(message.into()),
            in_full: None,
            session_survives: false,
            in_function: false,
        }
    }

    /// An error whose words may quote amounts.
    pub(crate) fn quoting(class: ErrorClass, words: &str) -> StoreError {
        let words = bounded(words.to_owned().into());
        let message = without_numbers(&words);
        let in_full = (message != words).then(|| Quoting(words.into()));
        StoreError { in_full, ..StoreError::new(class, message) }
    }

    /// An error of this class, for a stand-in of a database.
    #[must_use]
    pub fn of_class(class: ErrorClass, message: &'static str) -> StoreError {
        StoreError::new(class, message)
    }

    pub(crate) fn closed() -> StoreError {
        StoreError::new(ErrorClass::Closed, "the connections of this database have been closed")
    }

    pub(crate) fn with_sqlstate(self, sqlstate: &str) -> StoreError {
        StoreError { sqlstate: five_of(sqlstate), ..self }
    }

    /// The session has not even seen it.
    pub(crate) fn keeping_session(self) -> StoreError {
        StoreError { session_survives: true, ..self }
    }

    /// The class, which decides the reaction.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// The SQLSTATE, if the error came from Postgres.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    /// Whether a statement was ended because it took too long.
    #[must_use]
    pub fn is_statement_timeout(&self) -> bool {
        self.sqlstate.as_deref() == Some("57014")
    }

    /// What Postgres or the system said, without amounts.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What Postgres or the system said. May quote amounts: neither to be logged nor to be shown to readers.
    pub(crate) fn in_full(&self) -> &str {
        self.in_full.as_ref().map_or(&self.message, |words| &words.0)
    }

    /// Whether the same write may succeed later by itself.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.class.is_transient()
    }

    /// Whether it may concern one row of a statement and not another: Postgres refuses a value, or a function of the database
    /// (a trigger) raised or met the error.
    pub(crate) fn may_concern_one_row(&self) -> bool {
        self.class == ErrorClass::Refused || self.in_function
    }

    /// Whether a function of the database raised or met it.
    pub(crate) fn in_function(&self) -> bool {
        self.in_function
    }

    /// Whether a lock was not to be had in time: of a row, of the table, or of what a trigger works on.
    pub(crate) fn is_lock_timeout(&self) -> bool {
        self.sqlstate.as_deref() == Some("55P03") && !self.in_function
    }

    /// The same with more words.
    pub(crate) fn with_words(self, more: &str) -> StoreError {
        StoreError { message: bounded(format!("{}: {more}", self.message).into()), ..self }
    }

    /// The same, found to concern every row of the table.
    pub(crate) fn of_every_row(self, message: String) -> StoreError {
        let class = if self.class == ErrorClass::Refused { ErrorClass::RefusesEveryRow } else { self.class };
        StoreError {
            class,
            sqlstate: None,
            message: bounded(message.into()),
            in_full: None,
            session_survives: true,
            in_function: false,
        }
    }

    pub(crate) fn session_survives(&self) -> bool {
        self.session_survives
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> StoreError {
        match &error {
            sqlx::Error::Database(database) => match database.try_downcast_ref::<PgDatabaseError>() {
                Some(postgres) => from_postgres(postgres),
                None => StoreError::quoting(ErrorClass::Internal, database.message()),
            },
            sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::TimedOut => {
                StoreError::new(ErrorClass::Timeout, io.to_string())
            }
            sqlx::Error::Io(io) => match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
            {
                Some(fault) => StoreError::new(ErrorClass::Tls, tls_fault(fault)),
                None => StoreError::new(ErrorClass::Connection, io.to_string()),
            },
            // What comes in is not the protocol: the stream is out of step, or another program answers on that port.
            sqlx::Error::Protocol(_) => StoreError::new(ErrorClass::Connection, error.to_string()),
            sqlx::Error::Tls(fault) => match fault.downcast_ref::<rustls::Error>() {
                Some(fault) => StoreError::new(ErrorClass::Tls, tls_fault(fault)),
                None => StoreError::new(ErrorClass::Tls, fault.to_string()),
            },
            sqlx::Error::Configuration(_) => StoreError::new(ErrorClass::Configuration, error.to_string()),
            _ => StoreError::new(ErrorClass::Internal, error.to_string()),
        }
    }
}

/// The class of an error, which may have ended the session. A fatal one is never about a row or a table, whatever its code:
/// a start-up setting the server does not know is "invalid value" (22023) or "undefined object" (42704). Taken for a
/// refused value it would send every balance of the tenant to quarantine.
fn class_of(sqlstate: &str, fatal: bool) -> ErrorClass {
    match class_of_sqlstate(sqlstate) {
        // The database admits no connections.
        _ if fatal && sqlstate == "55000" => ErrorClass::DatabaseMissing,
        // A feature that a proxy lacks; a server ends no session for that.
        _ if fatal && sqlstate == "0A000" => ErrorClass::PoolerUnsafe,
        ErrorClass::Refused | ErrorClass::NotProvisioned | ErrorClass::Contention if fatal => {
            ErrorClass::Configuration
        }
        class => class,
    }
}

fn from_postgres(error: &PgDatabaseError) -> StoreError {
    let fatal = matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
    let origin = if fatal { Origin::Server } else { Origin::of(error.routine(), error.r#where()) };
    if origin == Origin::Server
        && let Some((_, found)) = error.message().split_once(ALTERED_MARK)
    {
        let found = found.trim_matches([':', ' ', '"']);
        return StoreError::new(
            ErrorClass::Refused,
            format!(
                "the row {found} would not be stored as it was sent: a trigger or the type of a column changes it"
            ),
        )
        .keeping_session();
    }
    if origin == Origin::Server
        && let Some((_, found)) = error.message().split_once(GUARD_MARK)
    {
        let found = found.trim_matches([':', ' ', '"']);
        return StoreError::new(
            ErrorClass::PoolerUnsafe,
            format!("the session is not what the statement was sent for: {found}"),
        );
    }
    let class = match class_of(error.code(), fatal) {
        // The same code as a missing right. The words may be in any language, the name of the function is not.
        ErrorClass::Permission
            if error.routine() == Some("check_enable_rls")
                || error.message().contains("row-level security") =>
        {
            ErrorClass::RowSecurity
        }
        ErrorClass::Connection if error.code() == "08P01" => class_of_pooler(error),
        class => class,
    };
    // A session that answered "read only" belongs to a server, or to a pooler's server, that we
    // no longer want to talk to; and after what we don't understand a fresh one is the safer choice.
    let keep = !matches!(
        class,
        ErrorClass::Connection | ErrorClass::ReadOnly | ErrorClass::PoolerUnsafe | ErrorClass::Internal
    ) && error.code() != "08P01";
    // The server's own words name tables, roles and settings; those about a value repeat it, and a function may say anything.
    let is_about_values = matches!(class, ErrorClass::Refused | ErrorClass::Internal);
    let words = if !fatal && (origin != Origin::Server || is_about_values) {
        StoreError::quoting(class, error.message())
    } else {
        StoreError::new(class, error.message().to_owned())
    };
    StoreError {
        sqlstate: five_of(error.code()),
        session_survives: (keep && !fatal) || origin == Origin::Raised,
        in_function: match origin {
            Origin::Server => false,
            // A function may choose any code.
            Origin::Raised => true,
            // What befalls a statement of it may be the server's fault as well.
            Origin::Function => matches!(
                class,
                ErrorClass::Permission
                    | ErrorClass::RowSecurity
                    | ErrorClass::NotProvisioned
                    | ErrorClass::Refused
                    | ErrorClass::Internal
            ),
        },
        ..words
    }
}

/// Where an error comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The server, about the statement that was sent.
    Server,
    /// A statement inside a function of the database.
    Function,
    /// A `RAISE` in a function of the database, which chooses code and message.
    Raised,
}

impl Origin {
    /// From the routine of the server that reported it, and the context. Neither name is translated: of the context, which is,
    /// only the names of languages are read.
    fn of(routine: Option<&str>, context: Option<&str>) -> Origin {
        let context = context.unwrap_or_default();
        if routine == Some("exec_stmt_raise") {
            Origin::Raised
        } else if ["PL/", "SQL"].iter().any(|language| context.contains(language)) {
            Origin::Function
        } else {
            Origin::Server
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_words_are_cut_and_obeyed_by_no_terminal() {
        let long = StoreError::new(ErrorClass::Internal, "é".repeat(5_000_000));
        assert!(
            long.message().len() < MESSAGE_BYTES + 40 && long.message().ends_with("(10000000 bytes in all)")
        );
        let more = long.with_words(&"x".repeat(5_000));
        assert!(more.message().len() < MESSAGE_BYTES + 40, "{more}");
        let wild = StoreError::new(ErrorClass::Internal, "a\n\u{1b}[2Jb\u{202e}c\u{9b}d")
            .of_every_row("\u{7}".repeat(9));
        assert!(wild.message().starts_with(r"\u0007\u0007"), "{wild}");
        let wild = StoreError::new(ErrorClass::Internal, "a\n\u{1b}[2Jb\u{202e}c\u{9b}d é");
        assert_eq!(wild.message(), r"a \u001b[2Jb\u202ec\u009bd é");
        assert_eq!(StoreError::new(ErrorClass::Internal, "as it is").message(), "as it is");
    }

    #[test]
    fn each_row_of_the_failure_table() {
        for (sqlstate, class) in [
            ("08006", ErrorClass::Connection),
            ("57P01", ErrorClass::Connection),
            ("57P03", ErrorClass::Connection),
            ("53300", ErrorClass::TooManyConnections),
            ("57014", ErrorClass::Timeout),
            ("55P03", ErrorClass::Timeout),
            ("25006", ErrorClass::ReadOnly),
            ("40P01", ErrorClass::Contention),
            ("40001", ErrorClass::Contention),
            ("28P01", ErrorClass::Credentials),
            ("28000", ErrorClass::Credentials),
            ("3D000", ErrorClass::DatabaseMissing),
            ("42P01", ErrorClass::NotProvisioned),
            ("42703", ErrorClass::NotProvisioned),
            ("3F000", ErrorClass::NotProvisioned),
            ("42501", ErrorClass::Permission),
            ("42P05", ErrorClass::PoolerUnsafe), // a prepared statement exists: we prepare none
            ("22003", ErrorClass::Refused),
            ("22P02", ErrorClass::Refused),
            ("23514", ErrorClass::Refused),
            ("P0001", ErrorClass::Refused),
            ("45000", ErrorClass::Refused),
            ("U0001", ErrorClass::Refused),
            ("72000", ErrorClass::Internal),
            ("55P02", ErrorClass::Internal),
            ("53100", ErrorClass::Resources),
            ("53200", ErrorClass::Resources),
            ("54000", ErrorClass::Resources),
            ("58030", ErrorClass::Resources),
            ("XX000", ErrorClass::Internal),
            ("0A000", ErrorClass::Internal),
            ("", ErrorClass::Internal),
            ("é", ErrorClass::Internal),
        ] {
            assert_eq!(class_of_sqlstate(sqlstate), class, "{sqlstate}");
        }
    }

    #[test]
    fn a_fatal_error_is_not_about_rows() {
        assert_eq!(class_of("22023", true), ErrorClass::Configuration);
        assert_eq!(class_of("42704", true), ErrorClass::Configuration);
        assert_eq!(class_of("22023", false), ErrorClass::Refused);
        assert_eq!(class_of("28P01", true), ErrorClass::Credentials);
        assert_eq!(class_of("42501", true), ErrorClass::Permission);
        assert_eq!(class_of("55000", true), ErrorClass::DatabaseMissing);
        assert_eq!(class_of("55000", false), ErrorClass::RefusesEveryRow);
        assert_eq!(class_of("0A000", true), ErrorClass::PoolerUnsafe);
    }

    #[test]
    fn the_table_says_each_code_once() {
        for (i, (code, _)) in SQLSTATES.iter().enumerate() {
            assert!(code.len() == 2 || code.len() == 5, "{code}");
            assert!(SQLSTATES[i + 1..].iter().all(|(other, _)| other != code), "{code} stands twice");
        }
    }
}
