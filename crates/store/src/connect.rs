//! Opening a connection, and what it means when that fails.
//!
//! The driver reports most failures of this kind as an I/O error. The operator who has to mend it needs to know which: a name that no name
//! service knows, a port without a listener, a certificate, a limit of time.

use balance_sync_domain::link_local;
use std::time::Duration;

use sqlx::postgres::PgDatabaseError;

use crate::classify::{ErrorClass, StoreError};
use crate::database::Inner;
use crate::examine::{Examined, examine};
use crate::files::Files;
use crate::mode::Mark;
use crate::names::{Addresses, look_up};
use crate::relay::Connection;
use crate::spec::DatabaseSpec;

/// Bytes of a foreign text that are repeated in an error.
const EXCERPT: usize = 300;

/// A connection that has just been opened.
pub(crate) struct Connected {
    pub(crate) connection: Connection,
    pub(crate) examined: Examined,
    /// It has not said so itself; see `known.rs`.
    pub(crate) is_presumed: bool,
    /// Those of its server's name; none if it has none.
    pub(crate) addresses: Addresses,
}

/// Opens a connection and looks where it leads, within the connect timeout; unless `presume` and another has told lately.
///
/// # Errors
/// What keeps it from being opened, by class.
pub(crate) async fn connect(inner: &Inner, presume: bool) -> Result<Connected, StoreError> {
    let mut step = "looking up the host name";
    let connecting = async {
        let addresses = resolve(&inner.spec).await?;
        inner.server.names.note(&addresses);
        step = "connecting and logging in";
        let files = Files::read(&inner.spec).await?;
        let options = files.within(inner.options.clone());
        let server = &inner.server;
        let mark = Mark::due(inner);
        let open =
            async |options| Connection::open(&inner.spec, options, &addresses, inner.login.as_ref()).await;
        let opened = match &mark {
            None => open(options).await,
            Some(mark) => match open(mark.among(options.clone())).await {
                Err(failed) if failed.is_about_options() => {
                    server.is_direct.set(false);
                    open(options).await
                }
                opened => opened,
            },
        };
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(failed) if matches!(failed.error, sqlx::Error::Database(_)) => return Err(failed.into()),
            Err(failed) => return Err(files.fault().unwrap_or_else(|| failed.into())),
        };
        if presume
            && mark.is_none()
            && server.is_direct.fresh() == Some(true)
            && inner.eligible.is_eligible()
            && let Some(examined) = server.known.get(&inner.spec.database)
        {
            return Ok(Connected { connection, examined, is_presumed: true, addresses });
        }
        step = "asking where the connection leads";
        let examined = examine(&mut connection, &inner.preamble).await?;
        if let Some(mark) = mark {
            mark.look_for(inner, &mut connection).await?;
        }
        server.note_clock(examined.clock_ahead_ms);
        server.known.note(&inner.spec.database, &examined);
        inner.eligible.note_examined();
        Ok(Connected { connection, examined, is_presumed: false, addresses })
    };
    let timeout = inner.spec.connect_timeout;
    let within = async { tokio::time::timeout(timeout, connecting).await };
    let connected = Box::pin(inner.server.logins.among(within)).await;
    connected.unwrap_or_else(|_| Err(too_slow(timeout, step)))
}

/// The error for a connection that was not there in time.
pub(crate) fn too_slow(timeout: Duration, step: &str) -> StoreError {
    StoreError::new(
        ErrorClass::Timeout,
        format!("not connected within connect_timeout ({timeout:?}): no answer while {step}"),
    )
}

/// The addresses of the host; none for one that needs no name service.
pub(crate) async fn resolve(spec: &DatabaseSpec) -> Result<Addresses, StoreError> {
    if spec.is_local() {
        return Ok(Addresses::default());
    }
    let unknown = |why: &dyn std::fmt::Display| {
        StoreError::new(
            ErrorClass::Dns,
            format!("the host name {} can't be resolved: {why}", quoted(&spec.host)),
        )
    };
    match look_up(&spec.host, spec.port).await {
        Ok(addresses) if addresses.is_empty() => Err(unknown(&"it has no address")),
        Ok(addresses) if !spec.allow_link_local => refuse_link_local(spec, addresses),
        Ok(addresses) => Ok(addresses),
        Err(error) => Err(unknown(&error)),
    }
}

/// A name whose addresses were chosen by whoever chose the name must not lead to where machines find their credentials. An
/// address in another notation, as a single number, comes this way too.
fn refuse_link_local(spec: &DatabaseSpec, addresses: Addresses) -> Result<Addresses, StoreError> {
    match addresses.iter().find_map(|address| Some((address, link_local(*address)?))) {
        Some((address, what)) => Err(StoreError::new(
            ErrorClass::Configuration,
            format!(
                "the host {} leads to {address} ({what}), which postgres.allow_link_local does not allow",
                quoted(&spec.host)
            ),
        )),
        None => Ok(addresses),
    }
}

/// What an error of TLS means for the operator who has to mend it.
pub(crate) fn tls_fault(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error};
    let advice = match error {
        Error::InvalidCertificate(certificate) => match certificate {
            // A new authority with the name of the former one shows as a wrong signature.
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                "the server's certificate is signed by an authority that is unknown here: name the authority's certificate in \
                 sslrootcert"
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "the server's certificate has expired, or this host's clock is wrong"
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet, or this host's clock is wrong"
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                "the server's certificate is for another name: connect by a name it has, or take sslmode verify-ca"
            }
            _ => "the server's certificate is refused",
        },
        Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked,
        ) => "the server refuses our certificate: look at sslcert and sslkey",
        _ => "no TLS with the server",
    };
    format!("{advice} ({})", cut(&error.to_string()))
}

/// What the words of a pooler mean, of which many know only the code of a protocol violation.
pub(crate) fn class_of_pooler(error: &PgDatabaseError) -> ErrorClass {
    let words = error.message().to_ascii_lowercase();
    let has = |any: &[&str]| any.iter().any(|part| words.contains(part));
    if has(&["startup parameter", "startup options", "command-line options"]) {
        ErrorClass::PoolerUnsafe
    } else if has(&["authentication failed", "auth failed", "no such user", "password", "role \""]) {
        ErrorClass::Credentials
    } else if has(&[
        "no such database",
        "does not exist",
        "not currently accepting",
        "database does not allow",
    ]) {
        ErrorClass::DatabaseMissing
    } else if has(&["no more connections allowed", "query_wait_timeout", "too many", "connection slots"]) {
        ErrorClass::TooManyConnections
    } else {
        ErrorClass::Connection
    }
}

/// A foreign text in quotes, on one line, and not too long.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", cut(text))
}

fn cut(text: &str) -> String {
    let mut shown: String = text.chars().take(EXCERPT).flat_map(char::escape_debug).collect();
    if text.chars().nth(EXCERPT).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_that_leads_to_a_link_local_address_is_refused() {
        let spec = DatabaseSpec::new("db.example", 5432, "ledger", "worker", "secret".to_owned().into());
        let addresses = |all: &[&str]| all.iter().map(|address| address.parse().unwrap()).collect();
        let refused = refuse_link_local(&spec, addresses(&["192.0.2.1", "169.254.0.1"])).unwrap_err();
        assert_eq!(refused.class(), ErrorClass::Configuration);
        for part in ["\"db.example\"", "169.254.0.1", "a link-local address", "postgres.allow_link_local"] {
            assert!(refused.to_string().contains(part), "{refused}");
        }
        assert_eq!(refuse_link_local(&spec, addresses(&["192.0.2.1"])).unwrap().len(), 1);
    }

    #[test]
    fn foreign_text_is_one_short_line() {
        let shown = quoted(&"a\n\u{1b}".repeat(1000));
        assert!(shown.starts_with("\"a\\n\\u{1b}a") && shown.len() < 4 * EXCERPT, "{shown}");
        assert!(!shown.contains('\n'));
    }
}
