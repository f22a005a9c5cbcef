//! The tenant service's JSON, and how it becomes validated types.
//!
//! Read by hand rather than by derive: serde's errors quote the value they stumble over, and one of the
//! values is a password. Here every error names the field by its path and quotes only what is no secret.
//! `null` and an absent field are the same; unknown fields are ignored.

use std::collections::BTreeSet;

use balance_sync_domain::{TenantId, TlsMode};
use secrecy::SecretString;
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::database::{
    ConnectionSettings, InvalidDatabase, Isolation, TenantDatabase, excerpt, parse_statement_timeout,
};
use crate::directory::{DirectoryError, ListedTenant, Listing, RefusedTenant};
use crate::tenant::Tenant;

/// The module whose database holds the balances.
const MODULE: &str = "transaction";
/// The status of a tenant, and of an association, that is to be served.
const ACTIVE: &str = "active";

/// Why an answer couldn't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireError {
    /// Not the JSON that was asked for: the service, or something in front of it, is ill.
    Body(String),
    /// Proper JSON about this tenant, which says one of these things: a fact about the tenant or its
    /// configuration, and no sign that the service is ill.
    Content(DirectoryError),
}

impl From<WireError> for DirectoryError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Body(reason) => Self::malformed("body", reason),
            WireError::Content(error) => error,
        }
    }
}

/// The list of active tenants, and what was left out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedListing {
    /// Who is to be served, and whose entry can't be read.
    pub listing: Listing,
    /// Entries with a status other than `active`.
    pub not_active: usize,
    /// Entries with an id that already stood in the list.
    pub duplicates: usize,
}

/// Reads the answer of `/v1/tenants/active`: an array of `{"id", "name", "status"}`.
///
/// An entry that is broken in itself is refused by itself. An entry without a status is taken as active,
/// since that is what was asked for; a name that can't be read is replaced by the id.
///
/// # Errors
/// [`WireError::Body`] if it isn't a JSON array.
pub fn parse_listing(body: &[u8]) -> Result<ParsedListing, WireError> {
    let entries: Vec<&RawValue> =
        serde_json::from_slice(body).map_err(|e| broken_body(body, &e, "an array"))?;
    let mut parsed = ParsedListing::default();
    let mut seen = BTreeSet::new();
    for entry in entries {
        match parse_entry(entry) {
            Entry::Active(listed) => {
                if seen.insert(listed.tenant.clone()) {
                    parsed.listing.tenants.push(listed);
                } else {
                    parsed.duplicates += 1;
                }
            }
            Entry::NotActive => parsed.not_active += 1,
            Entry::Refused(refused) => parsed.listing.refused.push(refused),
        }
    }
    Ok(parsed)
}

enum Entry {
    Active(ListedTenant),
    NotActive,
    Refused(RefusedTenant),
}

fn parse_entry(raw: &RawValue) -> Entry {
    let refused = |id: &str, reason: String| Entry::Refused(RefusedTenant { id: printable(id), reason });
    // A raw value is well-formed, but may be nested deeper, or hold a larger number, than a value can.
    let Ok(Value::Object(entry)) = serde_json::from_str::<Value>(raw.get()) else {
        return refused("", "entry is not an object".to_owned());
    };
    let raw_id = match entry.get("id") {
        Some(Value::String(id)) => id,
        None | Some(Value::Null) => return refused("", "id is missing".to_owned()),
        Some(_) => return refused("", "id is not a text".to_owned()),
    };
    // The status first: an entry that isn't to be served needn't be valid.
    match entry.get("status") {
        None | Some(Value::Null) => {}
        Some(Value::String(status)) if status.is_empty() || status.eq_ignore_ascii_case(ACTIVE) => {}
        Some(Value::String(_)) => return Entry::NotActive,
        Some(_) => return refused(raw_id, "status is not a text".to_owned()),
    }
    let id = match TenantId::parse(raw_id) {
        Ok(id) => id,
        Err(error) => return refused(raw_id, error.to_string()),
    };
    let name = match entry.get("name") {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        _ => id.as_str().to_owned(),
    };
    Entry::Active(ListedTenant { tenant: Tenant::Id(id), name })
}

/// Reads the answer of `…/connections`: the database of its module `transaction`. Whose it is follows from the path that
/// was asked; what the `id` in the answer names isn't agreed, so nothing hangs on it.
///
/// # Errors
/// [`WireError::Body`] if it isn't a JSON object; else [`WireError::Content`]: suspended, purged or
/// otherwise not active, or a [`DirectoryError::Malformed`] that names the field.
pub fn parse_connections(body: &[u8]) -> Result<TenantDatabase, WireError> {
    let root: Value = serde_json::from_slice(body).map_err(|e| broken_body(body, &e, "an object"))?;
    if !root.is_object() {
        return Err(WireError::Body("is not an object".to_owned()));
    }
    database_of(&root).map_err(WireError::Content)
}

fn database_of(root: &Value) -> Result<TenantDatabase, DirectoryError> {
    let root = Node { path: String::new(), value: Some(root) };
    let status = root.child("status")?.text()?.filter(|status| !status.is_empty());
    if let Some(error) = status.and_then(not_active) {
        return Err(error);
    }
    let isolation = isolation(&root)?;
    let module = root.child("databases")?.child(MODULE)?;
    let postgres = module.child("postgresql")?;
    if postgres.is_absent() {
        return Err(postgres.wrong("is missing: the balances are in this database"));
    }
    let schema = match isolation {
        Isolation::Database => None,
        Isolation::Schema => Some(postgres.child("schema")?.required_text()?.to_owned()),
    };
    let database = TenantDatabase {
        host: postgres.child("host")?.required_text()?.to_owned(),
        port: port(&postgres.child("port")?)?,
        database: postgres.child("database")?.required_text()?.to_owned(),
        username: postgres.child("username")?.required_text()?.to_owned(),
        password: SecretString::from(postgres.child("password")?.text()?.unwrap_or_default()),
        schema,
        tls: postgres
            .child("sslmode")?
            .text()?
            .unwrap_or_default()
            .parse::<TlsMode>()
            .map_err(|error| within(&postgres)(error.into()))?,
        root_cert: postgres.child("sslrootcert")?.path()?,
        cert: postgres.child("sslcert")?.path()?,
        key: postgres.child("sslkey")?.path()?,
        settings: settings(&module, &root)?,
    };
    database.validate().map_err(within(&postgres))?;
    Ok(database)
}

fn isolation(root: &Node<'_>) -> Result<Isolation, DirectoryError> {
    let mode = root.child("isolationMode")?;
    let text = mode.text()?.unwrap_or_default();
    match text.trim().to_ascii_lowercase().as_str() {
        "" | "isolated" | "database" => Ok(Isolation::Database),
        "schema" => Ok(Isolation::Schema),
        _ => {
            Err(mode.wrong(format!("{} is not known: allowed are isolated, database, schema", excerpt(text))))
        }
    }
}

fn port(node: &Node<'_>) -> Result<u16, DirectoryError> {
    let number = match node.value {
        None => return Err(node.wrong("is missing: allowed is 1 to 65535")),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.trim().to_owned(),
        Some(_) => return Err(node.wrong("is not a number: allowed is 1 to 65535")),
    };
    match number.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(node.wrong(format!("{} is not a port: allowed is 1 to 65535", excerpt(&number)))),
    }
}

/// The settings of the module, else those of the tenant, each as a whole. An empty object says nothing: the
/// service writes those for what it doesn't have.
fn settings(module: &Node<'_>, root: &Node<'_>) -> Result<ConnectionSettings, DirectoryError> {
    const NAME: &str = "connectionSettings";
    let mut node = module.child(NAME)?;
    if node.is_absent() {
        node = root.child(NAME)?;
    }
    Ok(ConnectionSettings {
        max_open_conns: count(&node.child("maxOpenConns")?)?,
        max_idle_conns: count(&node.child("maxIdleConns")?)?,
        statement_timeout: match node.child("statementTimeout")? {
            Node { value: Some(Value::Number(number)), .. } => parse_statement_timeout(&number.to_string()),
            text => parse_statement_timeout(text.text()?.filter(|text| !text.is_empty()).unwrap_or("0")),
        }
        .map_err(within(&node))?,
    })
}

/// A number of connections. Zero and less say nothing, as in the ledger, where they mean "no limit of its
/// own".
fn count(node: &Node<'_>) -> Result<Option<u32>, DirectoryError> {
    const ALLOWED: &str = "allowed is a whole number up to 4294967295; 0 for none";
    match node.value {
        None => Ok(None),
        Some(Value::Number(number)) => match number.as_i64().map(|count| u32::try_from(count.max(0))) {
            Some(Ok(0)) => Ok(None),
            Some(Ok(count)) => Ok(Some(count)),
            _ => Err(node.wrong(format!("{number} is not a count: {ALLOWED}"))),
        },
        Some(_) => Err(node.wrong(format!("is not a number: {ALLOWED}"))),
    }
}

/// What the body of a `403` says, if it is JSON with a status.
pub fn refusal(body: &[u8]) -> DirectoryError {
    let status = serde_json::from_slice::<Value>(body).ok().and_then(|body| {
        let status = body.get("status")?.as_str()?;
        Some(
            not_active(status)
                .unwrap_or_else(|| DirectoryError::Forbidden { status: Some(printable(status)) }),
        )
    });
    status.unwrap_or(DirectoryError::Forbidden { status: None })
}

/// Whether a body is one that the tenant service itself would send with a `404`: JSON, or nothing at all. A
/// page or a line of text comes from something in front of it that doesn't know the way there.
pub fn is_own_not_found(body: &[u8]) -> bool {
    body.trim_ascii().is_empty() || serde_json::from_slice::<Value>(body).is_ok_and(|body| body.is_object())
}

fn not_active(status: &str) -> Option<DirectoryError> {
    match status.trim().to_ascii_lowercase().as_str() {
        ACTIVE => None,
        "suspended" => Some(DirectoryError::Suspended),
        "purged" => Some(DirectoryError::Purged),
        _ => Some(DirectoryError::Forbidden { status: Some(printable(status)) }),
    }
}

/// Serde's own text isn't used: it may quote values.
fn broken_body(body: &[u8], error: &serde_json::Error, expected: &str) -> WireError {
    let what = match error.classify() {
        _ if body.trim_ascii().is_empty() => "is empty".to_owned(),
        Category::Data => format!("is not {expected}"),
        Category::Eof => format!("ends in the middle, after {} bytes", body.len()),
        Category::Syntax | Category::Io => {
            format!("is not JSON (line {}, column {})", error.line(), error.column())
        }
    };
    WireError::Body(what)
}

/// A text from outside, without quotes but escaped and shortened.
fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 64;
    text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect()
}

/// Puts an error of a field of `parent` under its path.
fn within(parent: &Node<'_>) -> impl Fn(InvalidDatabase) -> DirectoryError {
    let path = parent.path.clone();
    move |error| DirectoryError::malformed(joined(&path, error.field), error.reason)
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A value and the way to it, for errors.
struct Node<'a> {
    path: String,
    value: Option<&'a Value>,
}

impl<'a> Node<'a> {
    /// The field `name` of this object; of an absent one, an absent one.
    fn child(&self, name: &str) -> Result<Node<'a>, DirectoryError> {
        let value = match self.value {
            None => None,
            Some(Value::Object(fields)) => fields.get(name).filter(|value| !value.is_null()),
            Some(_) => return Err(self.wrong("is not an object")),
        };
        Ok(Node { path: joined(&self.path, name), value })
    }

    /// Absent, or an object without fields.
    fn is_absent(&self) -> bool {
        self.value.is_none_or(|value| value.as_object().is_some_and(serde_json::Map::is_empty))
    }

    fn text(&self) -> Result<Option<&'a str>, DirectoryError> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong("is not a text")),
        }
    }

    fn required_text(&self) -> Result<&'a str, DirectoryError> {
        self.text()?.filter(|text| !text.is_empty()).ok_or_else(|| self.wrong("is missing or empty"))
    }

    /// A file name; an empty one is as good as none.
    fn path(&self) -> Result<Option<std::path::PathBuf>, DirectoryError> {
        Ok(self.text()?.filter(|path| !path.is_empty()).map(Into::into))
    }

    fn wrong(&self, reason: impl Into<String>) -> DirectoryError {
        DirectoryError::malformed(&self.path, reason)
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
