//! The tenant as the workers know it, and the form in which its id stands in Redis keys.
//!
//! The tenant service may list a UUID-shaped id with dashes while the ledger writes it without, or the
//! other way round, depending on the version of the ledger's client library; during an upgrade of the ledger
//! both kinds of keys exist at the same time. So by default a tenant has two key spaces, and both are served
//! ([`KeyForm::Auto`]). Where one form is configured, the other is known too ([`other_key_space`]), so that
//! a schedule that waits there can be noticed rather than ignored for ever.

use std::fmt;
use std::str::FromStr;

use balance_sync_domain::{KeySpace, TenantId};
use serde::{Deserialize, Serialize};

/// What a collector serves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tenant {
    /// Single-tenant mode: keys without a tenant prefix.
    Single,
    /// One of many, under the id the directory lists it by.
    Id(TenantId),
}

impl Tenant {
    /// What stands in logs, metrics and URLs: the id, or `single`. A label only, not an identity: a tenant
    /// may be called `single` too.
    pub fn label(&self) -> &str {
        match self {
            Self::Single => "single",
            Self::Id(id) => id.as_str(),
        }
    }

    /// The id, which single-tenant mode doesn't have.
    pub fn id(&self) -> Option<&TenantId> {
        match self {
            Self::Single => None,
            Self::Id(id) => Some(id),
        }
    }

    /// Whether an id names this tenant: as it is listed, or for a UUID in the other form, as it stands in keys.
    pub fn is_called(&self, id: &str) -> bool {
        let same_uuid = |own: &TenantId| {
            simple_form(own)
                .is_some_and(|own| TenantId::parse(id).is_ok_and(|id| simple_form(&id) == Some(own)))
        };
        self.label() == id || self.id().is_some_and(same_uuid)
    }

    /// The names of this tenant's keys in Redis, with its id in the given form; with [`KeyForm::Auto`] in the form in which
    /// it is listed. This key space stands for the tenant wherever it needs one name, such as in the log of actions.
    pub fn key_space(&self, form: KeyForm) -> KeySpace {
        match self {
            Self::Single => KeySpace::single(),
            Self::Id(id) => KeySpace::tenant(&id_in_keys(id, form)),
        }
    }

    /// All key spaces that are served for this tenant, the one of [`Tenant::key_space`] first: two for a UUID-shaped id with
    /// [`KeyForm::Auto`], otherwise one.
    pub fn key_spaces(&self, form: KeyForm) -> Vec<KeySpace> {
        let mut spaces = vec![self.key_space(form)];
        if form == KeyForm::Auto {
            spaces.extend(other_form(self, form));
        }
        spaces
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The label: what tenants are shared out by among workers (`balance_sync_engine::partition`).
impl AsRef<str> for Tenant {
    fn as_ref(&self) -> &str {
        self.label()
    }
}

impl From<TenantId> for Tenant {
    fn from(id: TenantId) -> Self {
        Self::Id(id)
    }
}

/// How a UUID-shaped tenant id stands in Redis keys. Other ids always stand as listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum KeyForm {
    /// In both forms: as listed and, for a UUID, in the other form too. Ledgers of two releases may write at the same time.
    #[default]
    Auto,
    /// As the tenant service lists it (ledgers up to 4.0).
    AsListed,
    /// 32 lower-case hex digits without dashes (ledgers from 4.1 on).
    SimpleUuid,
}

impl KeyForm {
    /// The name in configuration: `auto`, `as_listed` or `simple_uuid`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::AsListed => "as_listed",
            Self::SimpleUuid => "simple_uuid",
        }
    }
}

impl fmt::Display for KeyForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<KeyForm> for &'static str {
    fn from(form: KeyForm) -> Self {
        form.as_str()
    }
}

/// An unknown key form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tenant key form {0:?} is not known: allowed are `auto`, `as_listed` and `simple_uuid`")]
pub struct UnknownKeyForm(pub String);

impl FromStr for KeyForm {
    type Err = UnknownKeyForm;

    /// Reads the name; `-` and `_` are the same, case doesn't matter.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().replace('-', "_").as_str() {
            "auto" => Ok(Self::Auto),
            "as_listed" => Ok(Self::AsListed),
            "simple_uuid" => Ok(Self::SimpleUuid),
            _ => Err(UnknownKeyForm(text.to_owned())),
        }
    }
}

impl TryFrom<String> for KeyForm {
    type Error = UnknownKeyForm;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// The keys this tenant would have in the form that is *not* served; `None` when its id has only one form, or
/// all are served.
///
/// With [`KeyForm::SimpleUuid`] the other form is the id as listed, and for an id listed without dashes the
/// dashed one. With [`KeyForm::AsListed`] it is the id without dashes, or with them when it is listed
/// without.
pub fn other_key_space(tenant: &Tenant, form: KeyForm) -> Option<KeySpace> {
    if form == KeyForm::Auto { None } else { other_form(tenant, form) }
}

fn other_form(tenant: &Tenant, form: KeyForm) -> Option<KeySpace> {
    let id = tenant.id()?;
    let configured = id_in_keys(id, form);
    let dashed = id.to_dashed_uuid_form();
    [Some(id.clone()), simple_form(id), dashed]
        .into_iter()
        .flatten()
        .find(|other| *other != configured)
        .map(|other| KeySpace::tenant(&other))
}

fn id_in_keys(id: &TenantId, form: KeyForm) -> TenantId {
    match form {
        KeyForm::Auto | KeyForm::AsListed => id.clone(),
        KeyForm::SimpleUuid => simple_form(id).unwrap_or_else(|| id.clone()),
    }
}

/// The id as 32 lower-case hex digits, if it is UUID-shaped. By way of the dashed form too, so that 32
/// upper-case digits come out in lower case.
fn simple_form(id: &TenantId) -> Option<TenantId> {
    id.to_simple_uuid_form().or_else(|| id.to_dashed_uuid_form()?.to_simple_uuid_form())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DASHED: &str = "0190d3a4-5b6c-7d8e-9f00-112233445566";
    const SIMPLE: &str = "0190d3a45b6c7d8e9f00112233445566";

    fn tenant(id: &str) -> Tenant {
        Tenant::Id(TenantId::parse(id).unwrap())
    }

    fn prefix(space: &KeySpace) -> String {
        space.prefix().to_owned()
    }

    #[test]
    fn single_has_no_prefix_and_no_other_form() {
        for form in [KeyForm::AsListed, KeyForm::SimpleUuid] {
            assert_eq!(prefix(&Tenant::Single.key_space(form)), "");
            assert!(other_key_space(&Tenant::Single, form).is_none());
        }
        assert_eq!(Tenant::Single.to_string(), "single");
        assert_ne!(Tenant::Single, tenant("single"), "the label is no identity");
    }

    #[test]
    fn a_dashed_uuid_stands_as_configured_and_the_other_form_is_known() {
        let t = tenant(DASHED);
        assert_eq!(prefix(&t.key_space(KeyForm::AsListed)), format!("tenant:{DASHED}:"));
        assert_eq!(prefix(&t.key_space(KeyForm::SimpleUuid)), format!("tenant:{SIMPLE}:"));
        let other = |form| prefix(&other_key_space(&t, form).unwrap());
        assert_eq!(other(KeyForm::AsListed), format!("tenant:{SIMPLE}:"));
        assert_eq!(other(KeyForm::SimpleUuid), format!("tenant:{DASHED}:"));
        assert_eq!(t.label(), DASHED, "the id as listed stays the name");
    }

    #[test]
    fn an_id_listed_without_dashes_has_a_dashed_other_form() {
        let t = tenant(SIMPLE);
        for form in [KeyForm::AsListed, KeyForm::SimpleUuid] {
            assert_eq!(prefix(&t.key_space(form)), format!("tenant:{SIMPLE}:"));
            assert_eq!(prefix(&other_key_space(&t, form).unwrap()), format!("tenant:{DASHED}:"));
        }
    }

    #[test]
    fn upper_case_digits_are_lowered_in_the_simple_form() {
        for listed in [SIMPLE.to_uppercase(), DASHED.to_uppercase()] {
            let t = tenant(&listed);
            assert_eq!(prefix(&t.key_space(KeyForm::SimpleUuid)), format!("tenant:{SIMPLE}:"));
            assert_eq!(
                prefix(&other_key_space(&t, KeyForm::SimpleUuid).unwrap()),
                format!("tenant:{listed}:")
            );
        }
    }

    #[test]
    fn other_ids_stand_as_listed_in_every_form() {
        let t = tenant("acme-prod_1");
        for form in [KeyForm::AsListed, KeyForm::SimpleUuid] {
            assert_eq!(prefix(&t.key_space(form)), "tenant:acme-prod_1:");
            assert!(other_key_space(&t, form).is_none());
        }
    }

    #[test]
    fn a_uuid_is_served_in_both_forms_by_default() {
        let prefixes =
            |id: &str, form| -> Vec<String> { tenant(id).key_spaces(form).iter().map(prefix).collect() };
        let (dashed, simple) = (format!("tenant:{DASHED}:"), format!("tenant:{SIMPLE}:"));
        assert_eq!(prefixes(DASHED, KeyForm::default()), [dashed.clone(), simple.clone()]);
        assert_eq!(prefixes(SIMPLE, KeyForm::Auto), [simple.clone(), dashed.clone()]);
        for listed in [SIMPLE.to_uppercase(), DASHED.to_uppercase()] {
            assert_eq!(prefixes(&listed, KeyForm::Auto), [format!("tenant:{listed}:"), simple.clone()]);
        }
        assert_eq!(prefixes("acme", KeyForm::Auto), ["tenant:acme:"]);
        assert_eq!(Tenant::Single.key_spaces(KeyForm::Auto).len(), 1);
        assert_eq!(prefixes(DASHED, KeyForm::AsListed), [dashed]);
        assert_eq!(prefixes(DASHED, KeyForm::SimpleUuid), [simple]);
        assert!(other_key_space(&tenant(DASHED), KeyForm::Auto).is_none(), "none is left out");
    }

    #[test]
    fn a_tenant_is_called_by_either_form_of_its_id() {
        let upper = DASHED.to_uppercase();
        for listed in [DASHED, SIMPLE, &upper] {
            assert!([DASHED, SIMPLE, &upper].into_iter().all(|id| tenant(listed).is_called(id)), "{listed}");
            assert!(!tenant(listed).is_called("0190d3a45b6c7d8e9f00112233445567"));
        }
        assert!(tenant("acme").is_called("acme") && !tenant("acme").is_called("Acme"));
        assert!(Tenant::Single.is_called("single") && !Tenant::Single.is_called(SIMPLE));
    }

    #[test]
    fn key_form_names() {
        assert_eq!("auto".parse(), Ok(KeyForm::Auto));
        assert_eq!("simple-uuid".parse(), Ok(KeyForm::SimpleUuid));
        assert_eq!("AS_LISTED".parse(), Ok(KeyForm::AsListed));
        let error = "dashed".parse::<KeyForm>().unwrap_err().to_string();
        assert!(
            error.contains("dashed") && error.contains("as_listed") && error.contains("simple_uuid"),
            "{error}"
        );
        assert_eq!(serde_json::to_string(&KeyForm::SimpleUuid).unwrap(), "\"simple_uuid\"");
        assert!(serde_json::from_str::<KeyForm>("\"nope\"").is_err());
    }
}
