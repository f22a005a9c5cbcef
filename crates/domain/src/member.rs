//! A member of the schedule, taken apart.
//!
//! A member is the whole Redis key of a balance:
//! `[tenant:<id>:]balance:{transactions}:<organization>:<ledger>:<alias>#<balance key>`. Two things make it
//! harder to read than it looks. Tenant ids may be UUIDs, so the tenant's own prefix has to come off before
//! anything that looks like a UUID is taken for the organization. And an alias is free text: it may hold `:`,
//! `/`, `#` and UUIDs of its own, so only what stands before it can be split at `:`.

use uuid::Uuid;

use crate::excerpt::{excerpt, excerpt_bytes};
use crate::keys::{KeySpace, TENANT_MARK};
use crate::quarantine::QuarantineReason;

/// The balance key of an account's first balance, and of members that name none.
pub const DEFAULT_KEY: &str = "default";

/// Length of a UUID with dashes, the only form the ledger writes in keys.
const UUID_LEN: usize = 36;

/// What a member of the schedule names. Borrows from the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BalanceRef<'a> {
    /// The organization, as `balance.organization_id` in Postgres.
    pub organization: Uuid,
    /// The ledger, as `balance.ledger_id` in Postgres.
    pub ledger: Uuid,
    /// The account's alias, as written.
    pub alias: &'a str,
    /// Which of the account's balances; [`DEFAULT_KEY`] when the member names none.
    pub key: &'a str,
}

/// Why a member can't be read. None of these goes away by itself: such a member is put in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Redis keys may hold any bytes, but the ledger writes UTF-8.
    #[error("member {member} is not UTF-8 from byte {valid_up_to} on")]
    NotUtf8 {
        /// The start of the member, escaped.
        member: String,
        /// How many bytes are valid.
        valid_up_to: usize,
    },
    /// It stands under a tenant's prefix, but not this schedule's: another tenant's, or this tenant's id written otherwise.
    #[error("member {member} is under another prefix than this schedule's members: allowed is {allowed}")]
    Foreign {
        /// The start of the member, escaped.
        member: String,
        /// The prefix that members of this schedule have.
        allowed: String,
    },
    /// It has no tenant prefix, in the schedule of a tenant.
    #[error("member {member} has no tenant prefix: it must start with {allowed}")]
    Unprefixed {
        /// The start of the member, escaped.
        member: String,
        /// The prefix that members of this schedule have.
        allowed: String,
    },
    /// After this tenant's prefix comes another one: no key of the ledger looks so, and whose it is is unclear.
    #[error("member {member} has more than one tenant prefix: allowed is exactly one")]
    RepeatedPrefix {
        /// The start of the member, escaped.
        member: String,
    },
    /// No segment is a UUID.
    #[error("member {member} has no organization: no ':'-separated segment is a 36-character UUID")]
    NoOrganization {
        /// The start of the member, escaped.
        member: String,
    },
    /// Only one segment is a UUID.
    #[error(
        "member {member} has no ledger: only one ':'-separated segment is a 36-character UUID, two are needed"
    )]
    NoLedger {
        /// The start of the member, escaped.
        member: String,
    },
    /// The member ends with the ledger.
    #[error("member {member} names no balance: '<alias>#<balance key>' must follow the ledger")]
    NoAlias {
        /// The start of the member, escaped.
        member: String,
    },
}

impl MemberError {
    /// The reason, for quarantine entries and metric labels.
    #[must_use]
    pub fn reason(&self) -> QuarantineReason {
        match self {
            Self::NotUtf8 { .. } => QuarantineReason::MemberNotUtf8,
            Self::Foreign { .. } => QuarantineReason::MemberForeignTenant,
            Self::Unprefixed { .. } => QuarantineReason::MemberWithoutTenantPrefix,
            Self::RepeatedPrefix { .. } => QuarantineReason::MemberRepeatedTenantPrefix,
            Self::NoOrganization { .. } => QuarantineReason::MemberWithoutOrganization,
            Self::NoLedger { .. } => QuarantineReason::MemberWithoutLedger,
            Self::NoAlias { .. } => QuarantineReason::MemberWithoutAlias,
        }
    }
}

impl<'a> BalanceRef<'a> {
    /// Takes a member of the schedule of `space` apart, without copying.
    ///
    /// # Errors
    /// When it isn't UTF-8, isn't under exactly this space's prefix, or lacks organization, ledger or alias.
    pub fn parse(space: &KeySpace, member: &'a [u8]) -> Result<Self, MemberError> {
        let text = std::str::from_utf8(member).map_err(|e| MemberError::NotUtf8 {
            member: excerpt_bytes(member),
            valid_up_to: e.valid_up_to(),
        })?;
        let path = without_prefix(space, text)?;

        let (organization, after) =
            next_uuid(path).ok_or_else(|| MemberError::NoOrganization { member: excerpt(text) })?;
        let (ledger, after) =
            after.and_then(next_uuid).ok_or_else(|| MemberError::NoLedger { member: excerpt(text) })?;
        let balance = after
            .filter(|balance| !balance.is_empty())
            .ok_or_else(|| MemberError::NoAlias { member: excerpt(text) })?;

        // The last '#': an alias may hold one, a balance key may not.
        let (alias, key) = balance.rsplit_once('#').unwrap_or((balance, ""));
        let key = if is_blank(key) { DEFAULT_KEY } else { key };
        Ok(Self { organization, ledger, alias, key })
    }
}

/// Whether `text` is empty or nothing but white space.
pub(crate) fn is_blank(text: &str) -> bool {
    text.trim_start().is_empty()
}

/// The member without the prefix of `space`, which has to be there exactly once.
fn without_prefix<'a>(space: &KeySpace, text: &'a str) -> Result<&'a str, MemberError> {
    let allowed = space.prefix();
    let Some(path) = text.strip_prefix(allowed) else {
        let (member, allowed) = (excerpt(text), excerpt(allowed));
        return Err(if text.starts_with(TENANT_MARK) {
            MemberError::Foreign { member, allowed }
        } else {
            MemberError::Unprefixed { member, allowed }
        });
    };
    if !path.starts_with(TENANT_MARK) {
        Ok(path)
    } else if space.tenant_id().is_some() {
        Err(MemberError::RepeatedPrefix { member: excerpt(text) })
    } else {
        Err(MemberError::Foreign { member: excerpt(text), allowed: "none".to_owned() })
    }
}

/// The first `:`-separated segment of `path` that is a UUID, and what follows its `:` (`None` at the end).
fn next_uuid(path: &str) -> Option<(Uuid, Option<&str>)> {
    let mut rest = Some(path);
    while let Some(path) = rest {
        let (segment, after) = match path.split_once(':') {
            Some((segment, after)) => (segment, Some(after)),
            None => (path, None),
        };
        // Of 36 characters the parser takes the dashed form alone.
        if segment.len() == UUID_LEN
            && let Ok(uuid) = Uuid::try_parse(segment)
        {
            return Some((uuid, after));
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tenant::TenantId;

    const ORG: &str = "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50";
    const LEDGER: &str = "0190b5f3-11aa-7c02-8f2e-5b7d9c0a4e61";

    fn tenant(id: &str) -> KeySpace {
        KeySpace::tenant(&TenantId::parse(id).unwrap())
    }

    fn parse<'a>(space: &KeySpace, member: &'a str) -> Result<BalanceRef<'a>, MemberError> {
        BalanceRef::parse(space, member.as_bytes())
    }

    /// Parses `<prefix>balance:{transactions}:<org>:<ledger>:<rest>` and gives alias and key.
    fn split(rest: &str) -> (String, String) {
        let member = format!("tenant:t:balance:{{transactions}}:{ORG}:{LEDGER}:{rest}");
        let space = tenant("t");
        let parsed = parse(&space, &member).unwrap();
        assert_eq!((parsed.organization.to_string(), parsed.ledger.to_string()), (ORG.into(), LEDGER.into()));
        (parsed.alias.to_owned(), parsed.key.to_owned())
    }

    fn reason(space: &KeySpace, member: &str) -> &'static str {
        parse(space, member).unwrap_err().reason().as_str()
    }

    #[test]
    fn alias_and_key() {
        let own = |alias: &str, key: &str| (alias.to_owned(), key.to_owned());
        assert_eq!(split("@alice#default"), own("@alice", "default"));
        assert_eq!(split("bank:br:0001#savings"), own("bank:br:0001", "savings"));
        assert_eq!(split("@external/BRL#default"), own("@external/BRL", "default"));
        assert_eq!(split("@joão-çã#poupança"), own("@joão-çã", "poupança"));
        assert_eq!(split("a#b#c"), own("a#b", "c"), "the last '#' counts");
        assert_eq!(split(&format!("{ORG}:{LEDGER}#{ORG}")), own(&format!("{ORG}:{LEDGER}"), ORG));
        assert_eq!(split("tenant:other:x#k"), own("tenant:other:x", "k"), "an alias may look like a prefix");
        assert_eq!(split("#k"), own("", "k"));
        assert_eq!(split(":#k"), own(":", "k"));
        assert_eq!(split("a# k "), own("a", " k "), "a key is not trimmed");
    }

    #[test]
    fn missing_and_blank_keys_are_the_default_one() {
        for rest in ["@a", "@a#", "@a# ", "@a#\t\n", "@a#\u{a0}\u{3000}", "@a#default"] {
            assert_eq!(split(rest), ("@a".to_owned(), DEFAULT_KEY.to_owned()), "{rest:?}");
        }
    }

    #[test]
    fn a_tenant_that_is_a_uuid_is_not_taken_for_the_organization() {
        let id = "11111111-2222-3333-4444-555555555555";
        let member = format!("tenant:{id}:balance:{{transactions}}:{ORG}:{LEDGER}:@a#k");
        let space = tenant(id);
        let parsed = parse(&space, &member).unwrap();
        assert_eq!((parsed.organization.to_string(), parsed.ledger.to_string()), (ORG.into(), LEDGER.into()));
        assert_eq!((parsed.alias, parsed.key), ("@a", "k"));
    }

    #[test]
    fn organization_and_ledger_are_found_wherever_they_stand() {
        let space = KeySpace::single();
        let upper = ORG.to_uppercase();
        for member in [
            format!("balance:{{transactions}}:{upper}:{LEDGER}:@a#k"),
            format!("{ORG}:{LEDGER}:@a#k"),
            format!("balance:{{transactions}}:v2:x::{ORG}:shard-7:{LEDGER}:@a#k"),
            // As long as a UUID, but none.
            format!("{}:{ORG}:{}:{LEDGER}:@a#k", "x".repeat(36), "0190b5f2_7c1a_7e3b_9d4f_2a6c8e1b3d50"),
            format!("{}:{ORG}:{LEDGER}:@a#k", ORG.replace('-', "")),
            format!("é{}:{ORG}:{LEDGER}:@a#k", "x".repeat(34)),
        ] {
            let parsed = parse(&space, &member).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(parsed.organization, Uuid::parse_str(ORG).unwrap(), "{member}");
            assert_eq!(parsed.ledger, Uuid::parse_str(LEDGER).unwrap(), "{member}");
            assert_eq!((parsed.alias, parsed.key), ("@a", "k"), "{member}");
        }
    }

    #[test]
    fn members_under_a_wrong_prefix_are_refused() {
        let path = format!("balance:{{transactions}}:{ORG}:{LEDGER}:@a#k");
        let space = tenant("ab");
        assert_eq!(reason(&space, &format!("tenant:abc:{path}")), "member_foreign_tenant");
        assert_eq!(reason(&space, &format!("tenant:a:{path}")), "member_foreign_tenant");
        assert_eq!(reason(&space, &format!("tenant:AB:{path}")), "member_foreign_tenant");
        assert_eq!(reason(&space, "tenant:ab"), "member_foreign_tenant");
        assert_eq!(reason(&space, &path), "member_without_tenant_prefix");
        assert_eq!(reason(&space, ""), "member_without_tenant_prefix");
        assert_eq!(reason(&space, &format!("tenant:ab:tenant:ab:{path}")), "member_repeated_tenant_prefix");
        assert_eq!(reason(&space, &format!("tenant:ab:tenant:c:{path}")), "member_repeated_tenant_prefix");
        assert_eq!(reason(&KeySpace::single(), &format!("tenant:ab:{path}")), "member_foreign_tenant");
        assert!(parse(&tenant("tenant"), &format!("tenant:tenant:{path}")).is_ok());
    }

    #[test]
    fn members_with_something_missing_are_refused() {
        let single = KeySpace::single();
        assert_eq!(reason(&single, ""), "member_without_organization");
        assert_eq!(reason(&single, "balance:{transactions}:@a#k"), "member_without_organization");
        assert_eq!(reason(&single, &format!("balance:{{transactions}}:{ORG}")), "member_without_ledger");
        assert_eq!(reason(&single, &format!("balance:{{transactions}}:{ORG}:@a#k")), "member_without_ledger");
        assert_eq!(reason(&single, &format!("balance:{ORG}:{LEDGER}")), "member_without_alias");
        assert_eq!(reason(&single, &format!("balance:{ORG}:{LEDGER}:")), "member_without_alias");
        // The key belongs to the alias: without a ':' between, this is no UUID segment.
        assert_eq!(reason(&single, &format!("balance:{ORG}:{LEDGER}#k")), "member_without_ledger");
    }

    #[test]
    fn members_that_are_not_utf8_are_refused_and_shown() {
        let error = BalanceRef::parse(&KeySpace::single(), b"balance:\xff\xfe").unwrap_err();
        assert_eq!(error.reason().as_str(), "member_not_utf8");
        assert!(error.to_string().contains("from byte 8"), "{error}");
    }

    #[test]
    fn errors_show_the_member_and_what_is_allowed() {
        let text = parse(&tenant("a"), "tenant:b:x\n").unwrap_err().to_string();
        assert!(text.contains(r#""tenant:b:x\n""#) && text.contains("\"tenant:a:\""), "{text}");
    }
}
