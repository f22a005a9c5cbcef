//! The id of a tenant.
//!
//! It becomes part of every Redis key of the tenant, so an id that could hold a `:`, a `{` or a glob character
//! could reach into another tenant's keys. Hence it is checked once, here, and cannot be built unchecked.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::excerpt::excerpt;

/// Most bytes (all ASCII, so characters too) of a tenant id. Source: the ledger's tenant service.
pub const MAX_TENANT_ID_LEN: usize = 256;

/// Length of a UUID without dashes.
const SIMPLE_UUID_LEN: usize = 32;
/// Length of a UUID with dashes.
const DASHED_UUID_LEN: usize = 36;

/// A valid tenant id: 1–256 of `[A-Za-z0-9_-]`, the first a letter or a digit. Cheap to clone.
///
/// Ids are compared as text: the dashed and the undashed form of a UUID are different ids, because they are
/// different keys in Redis. Which of them is meant is the operator's to say; see
/// [`TenantId::to_simple_uuid_form`] and [`TenantId::to_dashed_uuid_form`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// Text that is not a tenant id, and which rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tenant id {shown} {problem}: allowed are 1 to {MAX_TENANT_ID_LEN} of A-Z, a-z, 0-9, '_' and '-', \
     the first of them a letter or a digit"
)]
pub struct InvalidTenantId {
    shown: String,
    problem: &'static str,
}

impl TenantId {
    /// Checks `id` and keeps it as it is, without trimming or changing case.
    ///
    /// # Errors
    /// When it is empty, too long, has a character that is not allowed, or starts with `_` or `-`.
    pub fn parse(id: &str) -> Result<Self, InvalidTenantId> {
        match problem_with(id.as_bytes()) {
            None => Ok(Self(Arc::from(id))),
            Some(problem) => Err(InvalidTenantId { shown: excerpt(id), problem }),
        }
    }

    /// The id as text, as it stands in keys.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For an id that is a UUID with dashes, the same UUID as 32 lower-case hex digits, as newer ledgers write
    /// it in keys and events; otherwise `None`.
    #[must_use]
    pub fn to_simple_uuid_form(&self) -> Option<Self> {
        self.uuid_of_len(DASHED_UUID_LEN).map(|uuid| Self(uuid.simple().to_string().into()))
    }

    /// For an id of 32 hex digits, the same UUID in lower case with dashes; otherwise `None`.
    #[must_use]
    pub fn to_dashed_uuid_form(&self) -> Option<Self> {
        self.uuid_of_len(SIMPLE_UUID_LEN).map(|uuid| Self(uuid.hyphenated().to_string().into()))
    }

    /// The length tells the form: the parser takes 32 characters only without, 36 only with dashes.
    fn uuid_of_len(&self, len: usize) -> Option<Uuid> {
        if self.0.len() == len { Uuid::try_parse(&self.0).ok() } else { None }
    }
}

/// The rule that `id` breaks, if it breaks one.
fn problem_with(id: &[u8]) -> Option<&'static str> {
    let Some(first) = id.first() else {
        return Some("is empty");
    };
    if id.len() > MAX_TENANT_ID_LEN {
        return Some("is too long");
    }
    if !id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
        return Some("has a character that is not allowed");
    }
    if first.is_ascii_alphanumeric() {
        None
    } else {
        Some("starts with a character that is not allowed there")
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({})", &self.0)
    }
}

impl AsRef<str> for TenantId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for TenantId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantId {
    type Err = InvalidTenantId;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        Self::parse(id)
    }
}

impl TryFrom<String> for TenantId {
    type Error = InvalidTenantId;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        Self::parse(&id)
    }
}

impl Serialize for TenantId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TenantId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = String::deserialize(deserializer)?;
        Self::parse(&id).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_within_the_rules_are_kept_as_they_are() {
        let longest = "a".repeat(MAX_TENANT_ID_LEN);
        for id in ["a", "Z", "0", "acme-prod_01", "A_-", &longest, "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50"] {
            assert_eq!(TenantId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn ids_outside_the_rules_are_refused() {
        let too_long = "a".repeat(MAX_TENANT_ID_LEN + 1);
        let wrong = [
            "", "_a", "-a", "a:b", "a b", " a", "a\n", "a.b", "a/b", "a*", "{a}", "ação", "a\0", "a#b", "１",
            &too_long,
        ];
        for id in wrong {
            assert!(TenantId::parse(id).is_err(), "{id:?} was taken");
        }
    }

    #[test]
    fn the_error_shows_the_value_and_what_is_allowed() {
        let text = TenantId::parse("a:b\n").unwrap_err().to_string();
        assert!(text.contains(r#""a:b\n""#), "{text}");
        assert!(text.contains("1 to 256 of A-Z"), "{text}");
        let text = TenantId::parse(&"x".repeat(100_000)).unwrap_err().to_string();
        assert!(text.len() < 500 && text.contains("too long") && text.contains("100000 bytes"), "{text}");
        assert!(TenantId::parse("").unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn uuid_forms_are_turned_into_each_other() {
        let dashed = TenantId::parse("0190B5F2-7c1a-7e3b-9d4f-2a6c8e1b3d50").unwrap();
        let simple = TenantId::parse("0190b5f27c1a7e3b9d4f2a6c8e1b3d50").unwrap();
        assert_eq!(dashed.to_simple_uuid_form().unwrap(), simple);
        assert_eq!(simple.to_dashed_uuid_form().unwrap().as_str(), "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50");
        assert_eq!(simple.to_simple_uuid_form(), None);
        assert_eq!(dashed.to_dashed_uuid_form(), None);
        for other in ["acme", "0190b5f27c1a7e3b9d4f2a6c8e1b3d5g", "0190b5f27c1a7e3b9d4f2a6c8e1b3d50a"] {
            let id = TenantId::parse(other).unwrap();
            assert_eq!((id.to_simple_uuid_form(), id.to_dashed_uuid_form()), (None, None), "{other}");
        }
    }

    #[test]
    fn serde_checks_too() {
        let id: TenantId = serde_json::from_str(r#""acme""#).unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), r#""acme""#);
        assert!(serde_json::from_str::<TenantId>(r#""a:b""#).is_err());
        assert!(serde_json::from_str::<TenantId>("7").is_err());
    }
}
