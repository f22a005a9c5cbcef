//! How a connection to Postgres is encrypted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::excerpt::excerpt;

/// How the connection to Postgres is encrypted (`sslmode`). The names are libpq's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum TlsMode {
    /// Never.
    Disable,
    /// When the server can; the certificate isn't checked. libpq's default, and ours: it works with every server and is
    /// never weaker than what the server offers. `allow` is read as this.
    #[default]
    Prefer,
    /// Always; the certificate is checked only if an authority is named, and then as by [`TlsMode::VerifyCa`].
    Require,
    /// Always; the certificate must come from a known authority.
    VerifyCa,
    /// Always; the certificate must come from a known authority and name the host.
    VerifyFull,
}

/// An `sslmode` that is none of those in [`TlsMode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is not known: allowed are disable, prefer, require, verify-ca, verify-full", excerpt(.0))]
pub struct UnknownTlsMode(pub String);

impl TlsMode {
    /// Whether no connection is made without TLS.
    #[must_use]
    pub const fn is_always_encrypted(self) -> bool {
        matches!(self, Self::Require | Self::VerifyCa | Self::VerifyFull)
    }

    /// The name as libpq writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

impl fmt::Display for TlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<TlsMode> for &'static str {
    fn from(mode: TlsMode) -> Self {
        mode.as_str()
    }
}

impl FromStr for TlsMode {
    type Err = UnknownTlsMode;

    /// Reads libpq's names in any case; empty is the default.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().as_str() {
            "disable" => Ok(Self::Disable),
            "" | "prefer" | "allow" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(UnknownTlsMode(text.to_owned())),
        }
    }
}

impl TryFrom<String> for TlsMode {
    type Error = UnknownTlsMode;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn modes_are_read_as_libpq_spells_them() {
        for mode in
            [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull]
        {
            assert_eq!(mode.as_str().parse(), Ok(mode));
        }
        assert_eq!("".parse(), Ok(TlsMode::Prefer));
        assert_eq!("allow".parse(), Ok(TlsMode::Prefer));
        assert_eq!(" Verify-Full".parse(), Ok(TlsMode::VerifyFull));
        let error = "verify_full".parse::<TlsMode>().unwrap_err().to_string();
        assert!(error.contains("\"verify_full\"") && error.contains("verify-full"), "{error}");
        let long = "x".repeat(10_000).parse::<TlsMode>().unwrap_err().to_string();
        assert!(long.len() < 400, "{long}");
    }
}
