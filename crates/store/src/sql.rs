//! The text of what is sent to Postgres: one message per operation, in the simple protocol, that needs nothing from the
//! session it arrives in (`docs/decisions/0015-no-session-state.md`).
//!
//! Behind a pooler two messages of ours may reach two different sessions, and a session may carry what another client left
//! there: prepared statements under the names we would use, settings, temporary tables. So a message holds everything. It is
//! one implicit transaction: first the settings, for this transaction only, then one statement, which checks for itself that
//! they are in force ([`Sql::guard`]) and names its tables with their schema.
//!
//! Values stand in the text. This is the only place where one is put there, and only as what can't be anything but a value
//! whatever the session is set to: digits and signs of numbers, hex digits and dashes of UUIDs, and any other text as the hex
//! digits of its bytes. No literal holds a quote or a backslash, and the whole message is ASCII, so neither
//! `standard_conforming_strings` nor `client_encoding` can change what it means.

use std::fmt::Write;
use std::time::Duration;

use uuid::Uuid;

use crate::classify::{ErrorClass, StoreError};
use crate::identifier::Table;
use crate::spec::DatabaseSpec;

/// Begins what [`Sql::guard`] makes Postgres complain about.
pub(crate) const GUARD_MARK: &str = "balance-sync guard";

/// Begins what a write complains about whose rows would not be stored as they were sent; see `update.rs`.
pub(crate) const ALTERED_MARK: &str = "balance-sync altered";

/// Begins what a message complains about that must not be committed; see [`Sql::report_and_roll_back`].
pub(crate) const PROBE_MARK: &str = "balance-sync probe";

/// Bytes of a refused amount that are repeated in the error.
const EXCERPT: usize = 60;

/// Settings by which the planner has no choice, see `update.rs`. The first group excludes other kinds of plan ...
const PLAN_SETTINGS: &[(&str, &str)] = &[
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_material", "off"),
    ("enable_nestloop", "on"),
    ("enable_indexscan", "on"),
    // ... the second makes looking at rows dear and looking them up cheap, which leaves no case for reading the whole table by
    // its index and searching the arrays for each of its rows ...
    ("cpu_tuple_cost", "1"),
    ("random_page_cost", "0"),
    // ... and disabled plans have an enormous nominal cost, which would make Postgres compile them.
    ("jit", "off"),
];

/// What each message begins with: the settings that its statement relies on, for its transaction only.
pub(crate) struct Preamble {
    text: String,
    /// Statements in it; Postgres answers each.
    statements: usize,
}

impl Preamble {
    pub(crate) fn new(spec: &DatabaseSpec) -> Preamble {
        let timeout = spec.effective_statement_timeout().as_millis().min(i32::MAX as u128).to_string();
        // The version guard relies on READ COMMITTED: a row that a concurrent writer has changed is looked at again. It must come
        // first: the isolation can't be changed once the transaction has looked at anything.
        let mut preamble =
            Preamble { text: "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;".to_owned(), statements: 1 };
        preamble.set("statement_timeout", &format!("= {timeout}"));
        // What is acknowledged here leaves the schedule, so it must outlive a crash of the server, and of its synchronous
        // standby where there is one, whatever the database or the role are set to.
        preamble.set("synchronous_commit", "= on");
        // Row security raises an error instead of hiding rows, which would look like missing ones.
        preamble.set("row_security", "= off");
        preamble.set("client_encoding", "= 'UTF8'");
        // What waits for a lock holds up the rest of its batch; see `locks.rs`.
        let lock_wait = spec.effective_lock_wait().as_millis();
        preamble.set("lock_timeout", &format!("= {lock_wait}"));
        // As database and role are set, not as the client that used this session before us. Triggers of the ledger may rely on the path.
        preamble.set("search_path", "TO DEFAULT");
        for (name, value) in PLAN_SETTINGS {
            preamble.set(name, &format!("= {value}"));
        }
        preamble
    }

    fn set(&mut self, name: &str, to: &str) {
        self.text += &format!("SET LOCAL {name} {to};");
        self.statements += 1;
    }
}

/// What the statements on one connection are written for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The database that the connection leads to, by its own account.
    pub(crate) database: String,
    /// The schema where the role's `search_path` finds the balance table, if it does.
    pub(crate) schema: Option<String>,
    /// When the server was started that the connection is taken to lead to, if it has not said so itself (`known.rs`).
    pub(crate) started: Option<String>,
}

/// Why a statement can't be written.
#[derive(Debug)]
pub(crate) enum Unwritable {
    /// A value that no column would take.
    Value(StoreError),
    /// The table has no schema yet: the `search_path` leads to none.
    NoSchema,
}

/// A message while it is written.
pub(crate) struct Sql<'t> {
    text: String,
    target: Option<&'t Target>,
    statements: usize,
    guarded: bool,
    /// The tables that are named, by schema, each with the tenant it belongs to, if that is given.
    tables: Vec<(String, Table)>,
}

/// A message that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) text: String,
    /// Statements in it; Postgres answers each.
    pub(crate) statements: usize,
    /// The tables it names, with their schemas.
    pub(crate) tables: Vec<(String, Table)>,
}

impl<'t> Sql<'t> {
    /// A message with its settings, for a connection that leads to `target`; `None` = that is to be found out.
    pub(crate) fn new(preamble: &Preamble, target: Option<&'t Target>) -> Sql<'t> {
        Sql {
            text: preamble.text.clone(),
            target,
            statements: preamble.statements + 1,
            guarded: false,
            tables: Vec::new(),
        }
    }

    /// The message, once its statement is complete.
    pub(crate) fn finish(self) -> Message {
        assert!(self.guarded || self.target.is_none(), "a statement must hold Sql::guard");
        Message { text: self.text, statements: self.statements, tables: self.tables }
    }

    /// Text of the program itself, of one statement.
    pub(crate) fn push(&mut self, fixed: &'static str) -> &mut Self {
        debug_assert!(fixed.is_ascii() && !fixed.contains(';'), "one statement of ASCII: {fixed}");
        self.text += fixed;
        self
    }

    /// A condition that is true, and an error if the session is not what the statement was written for: in another database,
    /// or without the settings that a write relies on. Evaluated once, before any row.
    pub(crate) fn guard(&mut self) -> &mut Self {
        self.guarded = true;
        let database = self.target.map_or("", |target| &target.database);
        // The cast fails and repeats what it can't cast, which is the only way to raise an error without a function.
        self.push("(SELECT CASE WHEN pg_catalog.current_database() = ").text(database);
        if let Some(started) = self.target.and_then(|target| target.started.as_deref()) {
            self.push(" AND pg_catalog.pg_postmaster_start_time()::pg_catalog.text = ").text(started);
        }
        self.push(
            " AND pg_catalog.current_setting('synchronous_commit') = 'on' \
              AND pg_catalog.current_setting('row_security') = 'off' \
              AND pg_catalog.current_setting('transaction_isolation') = 'read committed' THEN true \
              ELSE ('",
        );
        self.text += GUARD_MARK;
        self.push(
            ": database ' || pg_catalog.current_database() \
              || ', synchronous_commit ' || pg_catalog.current_setting('synchronous_commit') \
              || ', row_security ' || pg_catalog.current_setting('row_security') \
              || ', transaction_isolation ' || pg_catalog.current_setting('transaction_isolation'))::pg_catalog.bool END)",
        )
    }

    /// The query for the number of rows of `u`, which fails if one of them is not `same`: nothing is committed then.
    pub(crate) fn count_unless_altered(&mut self) -> &mut Self {
        self.push(
            "SELECT CASE WHEN coalesce(pg_catalog.bool_and(same), true) THEN pg_catalog.count(*) ELSE ('",
        );
        self.text += ALTERED_MARK;
        self.push(
            ": ' || pg_catalog.min(id::pg_catalog.text) FILTER (WHERE NOT same))::pg_catalog.int8 END FROM u",
        )
    }

    /// Ends the message with a query for two numbers, runs what is deferred, and fails with an error that repeats both numbers:
    /// nothing of the message is committed. The counts pass through a setting of the transaction, because they must be taken
    /// before the triggers run that come at the end of a statement.
    pub(crate) fn report_and_roll_back(&mut self, first: &'static str, second: &'static str) {
        self.push("SELECT pg_catalog.set_config('balance_sync.probe', ").push(first);
        self.push("::pg_catalog.text || ' ' || ").push(second).push("::pg_catalog.text, true)");
        self.text += ";SET CONSTRAINTS ALL IMMEDIATE;";
        self.push("SELECT ('");
        self.text += PROBE_MARK;
        self.push(" ' || pg_catalog.current_setting('balance_sync.probe'))::pg_catalog.bool");
        self.statements += 2;
    }

    /// The name of the balance table, with its schema.
    ///
    /// # Errors
    /// [`Unwritable::NoSchema`] if neither the tenant's settings nor the `search_path` name one.
    pub(crate) fn balances(&mut self, table: &Table) -> Result<&mut Self, Unwritable> {
        self.table(table, crate::identifier::BALANCE)
    }

    /// The name of another table of the ledger in the same schema.
    ///
    /// # Errors
    /// As [`Sql::balances`].
    pub(crate) fn table(&mut self, table: &Table, name: &'static str) -> Result<&mut Self, Unwritable> {
        let schema = self.schema(table)?;
        crate::identifier::quote(&schema, &mut self.text);
        self.text.push('.');
        crate::identifier::quote(name, &mut self.text);
        self.tables.push((schema, table.clone()));
        Ok(self)
    }

    /// The table of that name in the schema of the balance table, as `regclass`; `NULL` if there is none.
    ///
    /// # Errors
    /// As [`Sql::balances`].
    pub(crate) fn regclass(&mut self, table: &Table, name: &'static str) -> Result<&mut Self, Unwritable> {
        let schema = self.schema(table)?;
        self.push("pg_catalog.to_regclass(").text(&format!("\"{}\".\"{name}\"", schema.replace('"', "\"\"")));
        self.text.push(')');
        self.tables.push((schema, table.clone()));
        Ok(self)
    }

    fn schema(&self, table: &Table) -> Result<String, Unwritable> {
        let schema = table.schema().or_else(|| self.target.and_then(|target| target.schema.as_deref()));
        schema.map(str::to_owned).ok_or(Unwritable::NoSchema)
    }

    /// Limits of its own for this statement, and no sorting where an index gives the order. To be called before anything is
    /// written.
    pub(crate) fn limit(&mut self, time: Duration, lock: Duration) -> &mut Self {
        debug_assert!(self.text.ends_with(';') && !self.guarded, "settings come before the statement");
        let (time, lock) = (time.as_millis(), lock.as_millis());
        let _ = write!(
            self.text,
            "SET LOCAL statement_timeout = {time};SET LOCAL lock_timeout = {lock};SET LOCAL enable_sort = off;"
        );
        self.statements += 3;
        self
    }

    /// A text, whatever it contains.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.text += "pg_catalog.convert_from(pg_catalog.decode('";
        for byte in text.bytes() {
            let _ = write!(self.text, "{byte:02x}");
        }
        // `UTF8` is a `name`, which is collated as `C`: so would be the text, and no index over a column would serve it.
        self.text += "', 'hex'), 'UTF8') COLLATE pg_catalog.\"default\"";
        self
    }

    /// A UUID.
    pub(crate) fn uuid(&mut self, id: Uuid) -> &mut Self {
        self.text.push('\'');
        self.push_uuid(id);
        self.text += "'::pg_catalog.uuid";
        self
    }

    /// A whole number.
    pub(crate) fn number(&mut self, number: i64) -> &mut Self {
        let _ = write!(self.text, "{number}");
        self
    }

    /// An array of UUIDs.
    pub(crate) fn uuids(&mut self, ids: impl Iterator<Item = Uuid>) -> &mut Self {
        self.array(ids, |sql, id| sql.push_uuid(id));
        self.text += "uuid[]";
        self
    }

    /// An array of texts, whatever they contain.
    pub(crate) fn texts<'a>(&mut self, texts: impl Iterator<Item = &'a str>) -> &mut Self {
        self.text += "ARRAY[";
        for (n, text) in texts.enumerate() {
            if n > 0 {
                self.text.push(',');
            }
            self.text(text);
        }
        self.text += "]::pg_catalog.text[]";
        self
    }

    /// An array of whole numbers.
    pub(crate) fn bigints(&mut self, numbers: impl Iterator<Item = i64>) -> &mut Self {
        self.array(numbers, |sql, number| {
            let _ = write!(sql.text, "{number}");
        });
        self.text += "int8[]";
        self
    }

    /// An array of decimal numbers, each as it stands.
    ///
    /// # Errors
    /// [`Unwritable::Value`] if one has another character than numbers have. Whether it is a number is for Postgres to say.
    pub(crate) fn amounts<'a>(
        &mut self,
        amounts: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<&mut Self, Unwritable> {
        if let Some(bad) = amounts.clone().find(|amount| !is_numeric(amount)) {
            return Err(Unwritable::Value(not_a_number(bad)));
        }
        self.array(amounts, |sql, amount| sql.text += amount);
        self.text += "numeric[]";
        Ok(self)
    }

    fn array<T>(&mut self, items: impl Iterator<Item = T>, mut push: impl FnMut(&mut Self, T)) {
        self.text += "'{";
        for (n, item) in items.enumerate() {
            if n > 0 {
                self.text.push(',');
            }
            push(self, item);
        }
        self.text += "}'::pg_catalog.";
    }

    fn push_uuid(&mut self, id: Uuid) {
        self.text += id.hyphenated().encode_lower(&mut Uuid::encode_buffer());
    }
}

/// Whether a text has only characters that decimal numbers are written with: it can't end a literal, or be the `NULL` of an
/// array.
fn is_numeric(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
}

fn not_a_number(text: &str) -> StoreError {
    let start: String = text.chars().take(EXCERPT).collect();
    StoreError::quoting(
        ErrorClass::Refused,
        &format!(
            "{start:?} is not a decimal number: it may have digits, a sign, a point and an exponent, and nothing else"
        ),
    )
    // As Postgres would have it.
    .with_sqlstate("22P02")
    .keeping_session()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use secrecy::SecretString;

    use super::*;

    fn sql(write: impl FnOnce(&mut Sql<'_>)) -> String {
        let empty = Preamble { text: String::new(), statements: 0 };
        let mut sql = Sql::new(&empty, None);
        write(&mut sql);
        sql.finish().text
    }

    fn preamble() -> Preamble {
        let spec = DatabaseSpec::new("h", 1, "d", "u", SecretString::from("p"));
        Preamble::new(&spec)
    }

    #[test]
    fn values_stand_in_the_text_as_nothing_but_values() {
        let id = Uuid::from_u128(0xAB);
        assert_eq!(
            sql(|sql| {
                sql.uuids([id, Uuid::nil()].into_iter());
            }),
            "'{00000000-0000-0000-0000-0000000000ab,00000000-0000-0000-0000-000000000000}'::pg_catalog.uuid[]"
        );
        assert_eq!(
            sql(|sql| {
                sql.bigints([i64::MIN, 7].into_iter());
            }),
            "'{-9223372036854775808,7}'::pg_catalog.int8[]"
        );
        assert_eq!(
            sql(|sql| {
                sql.amounts(["-1.50", "+1e-7"].into_iter()).map(drop).unwrap();
            }),
            "'{-1.50,+1e-7}'::pg_catalog.numeric[]"
        );
        assert_eq!(
            sql(|sql| {
                sql.texts(["\u{1}", "'"].into_iter());
            }),
            "ARRAY[pg_catalog.convert_from(pg_catalog.decode('01', 'hex'), 'UTF8') COLLATE pg_catalog.\"default\",\
             pg_catalog.convert_from(pg_catalog.decode('27', 'hex'), 'UTF8') COLLATE pg_catalog.\"default\"\
             ]::pg_catalog.text[]"
        );
        assert_eq!(
            sql(|sql| {
                sql.bigints(std::iter::empty());
            }),
            "'{}'::pg_catalog.int8[]"
        );
    }

    /// Whatever a text holds, only hex digits of it reach the statement.
    #[test]
    fn foreign_text_is_hex() {
        for text in ["", "plain", "it's", "\\'; DROP TABLE balance; --", "é\u{0}\u{1F600}", "$$", "E'\\x27"]
        {
            let written = sql(|sql| {
                sql.text(text);
            });
            let inside = written
                .strip_prefix("pg_catalog.convert_from(pg_catalog.decode('")
                .and_then(|rest| rest.strip_suffix("', 'hex'), 'UTF8') COLLATE pg_catalog.\"default\""))
                .unwrap();
            assert!(inside.bytes().all(|b| b.is_ascii_hexdigit()), "{written}");
            let bytes: Vec<u8> = (0..inside.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&inside[at..at + 2], 16).unwrap())
                .collect();
            assert_eq!(bytes, text.as_bytes());
        }
    }

    #[test]
    fn what_is_no_number_never_reaches_the_text() {
        for bad in [
            "", "null", "NULL", "NaN", "Infinity", "ten", "1,2", "1}", "1'", "1\\", "1\0", "1 ", "\u{661}",
            "0x1f",
        ] {
            let empty = Preamble { text: String::new(), statements: 0 };
            let mut sql = Sql::new(&empty, None);
            let Err(Unwritable::Value(error)) = sql.amounts(["1", bad].into_iter()) else {
                panic!("{bad:?} was written: {}", sql.text)
            };
            assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Refused, Some("22P02")));
        }
        // What only looks like a number is for Postgres to refuse; it can't end the literal.
        assert!(is_numeric("1e"));
    }

    #[test]
    fn a_message_is_ascii_and_names_its_tables_with_their_schema() {
        let target =
            Target { database: "bäse'".to_owned(), schema: Some("ledger".to_owned()), started: None };
        let preamble = preamble();
        for (table, name) in [
            (Table::unqualified(), r#""ledger"."balance""#),
            (Table::in_schema("Ünit\\\"").unwrap(), r#"U&"\+0000DCnit\\"""."balance""#),
        ] {
            let mut sql = Sql::new(&preamble, Some(&target));
            sql.push("SELECT 1 FROM ").balances(&table).unwrap().push(" WHERE ").guard();
            let message = sql.finish();
            assert!(message.text.is_ascii(), "{}", message.text);
            assert!(
                message.text.contains(&format!("SELECT 1 FROM {name} WHERE (SELECT CASE")),
                "{}",
                message.text
            );
            assert_eq!(message.statements, message.text.matches(';').count() + 1);
        }
        let nowhere = Target { schema: None, ..target };
        let mut sql = Sql::new(&preamble, Some(&nowhere));
        assert!(matches!(sql.balances(&Table::unqualified()), Err(Unwritable::NoSchema)));
    }

    #[test]
    #[should_panic(expected = "guard")]
    fn a_statement_without_a_guard_is_never_sent() {
        let target = Target { database: "d".to_owned(), schema: None, started: None };
        let mut sql = Sql::new(&preamble(), Some(&target));
        sql.push("SELECT 1");
        let _ = sql.finish();
    }
}
