//! What is wrong with a configuration, and what was made of it: every problem is collected, so that one run tells them
//! all, and none shows a secret.

use std::fmt;
use std::path::PathBuf;

use figment::value::Value;

use super::raw::mask_url;

/// The layer a value comes from, from the lowest to the highest precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// `config/default.toml`.
    Default,
    /// One of the ledger's own environment variables.
    Ledger(String),
    /// One of OpenTelemetry's environment variables.
    Standard(String),
    /// The configuration file.
    File(PathBuf),
    /// A variable `BALANCE_SYNC__…`.
    Variable(String),
    /// An entry of the Redis directory; without a name the file as a whole.
    Directory(PathBuf, String),
}

impl Origin {
    /// Order of precedence without the name: two values of one layer are as explicit as each other.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::Ledger(_) | Origin::Standard(_) => 1,
            Origin::File(_) => 2,
            Origin::Variable(_) => 3,
            Origin::Directory(..) => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Ledger(name) => write!(f, "ledger variable {name}"),
            Origin::Standard(name) => write!(f, "standard variable {name}"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Directory(path, name) if name.is_empty() => {
                write!(f, "Redis directory {}", path.display())
            }
            Origin::Directory(path, name) => write!(f, "entry {name} of {}", path.display()),
        }
    }
}

/// One thing that is wrong: the key, where it was set, its value unless that is a secret, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Dotted key, as `collector.batch_size`; empty when the trouble is not with one key.
    pub key: String,
    /// The value as it may be shown; `None` for secrets and for what is missing.
    pub value: Option<String>,
    /// Where the value was set.
    pub origin: Option<Origin>,
    /// What is wrong and what is allowed.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
            separator = ": ";
        }
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        if let Some(origin) = &self.origin {
            let space = if separator.is_empty() { "" } else { " " };
            write!(f, "{space}({origin})")?;
            separator = ": ";
        }
        write!(f, "{separator}{}", self.reason)
    }
}

/// A configuration that can't be used, with every reason.
#[derive(Debug, thiserror::Error)]
#[error("configuration refused, {}", list(problems))]
pub(crate) struct ConfigError {
    /// Never empty.
    pub problems: Vec<Problem>,
}

fn list(problems: &[Problem]) -> String {
    let count = problems.len();
    let mut text = format!("{count} problem{}:", if count == 1 { "" } else { "s" });
    for problem in problems {
        text.push_str("\n  - ");
        text.push_str(&problem.to_string());
    }
    text
}

/// Something about the values in force that the operator should see in the log: a clamped value, a feature that is off
/// for want of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigNote {
    /// Dotted key.
    pub key: String,
    /// What was set, what is in force and why.
    pub text: String,
}

impl fmt::Display for ConfigNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// Whether a key holds a secret. By its last part, so that a key in the wrong section is hidden as well.
pub(super) fn is_secret(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    ["password", "sentinel_password", "api_key", "token", "headers", "traces_headers", "metrics_headers"]
        .iter()
        .any(|secret| last.eq_ignore_ascii_case(secret))
}

/// A value as an error may show it: nothing of secrets, URLs without passwords, no whole sections.
pub(super) fn shown(key: &str, value: &Value) -> Option<String> {
    if is_secret(key) {
        return None;
    }
    match value {
        Value::String(_, text) => Some(quoted(text)),
        Value::Char(_, c) => Some(quoted(&c.to_string())),
        Value::Bool(_, b) => Some(b.to_string()),
        Value::Num(_, n) => n
            .to_i128()
            .map(|n| n.to_string())
            .or_else(|| n.to_u128().map(|n| n.to_string()))
            .or_else(|| n.to_f64().map(|n| n.to_string())),
        Value::Empty(..) | Value::Dict(..) | Value::Array(..) => None,
    }
}

/// Text in quotes, without the password of a URL, and not endlessly long.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 200;
    let text = mask_url(text);
    if text.chars().count() <= SHOWN {
        return format!("{text:?}");
    }
    format!("{:?}…", text.chars().take(SHOWN).collect::<String>())
}
