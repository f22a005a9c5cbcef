//! What the rest of the system asks about tenants: who is active, and where one's balances are written.
//!
//! The errors are the important part: [`DirectoryError::must_stop`] are facts about a tenant,
//! [`DirectoryError::is_transient`] are facts about the service, and the two never overlap.

use std::collections::BTreeSet;
use std::time::Duration;

use balance_sync_engine::failure::DirectoryClass;

use crate::database::TenantDatabase;
use crate::service::ServiceStats;
use crate::tenant::{KeyForm, Tenant};

/// The futures the trait returns: boxed, so that directories can be used as `dyn`.
pub type BoxFuture<'a, T> = futures::future::BoxFuture<'a, T>;

/// A source of tenants: the tenant service, a configuration file, or single-tenant mode.
pub trait TenantDirectory: Send + Sync + 'static {
    /// The tenants that are to be served now.
    ///
    /// An error means that nothing is known; it is never an empty list.
    fn active(&self) -> BoxFuture<'_, Result<Listing, DirectoryError>>;

    /// Where this tenant's balances are written, with credentials and limits as of now (nothing is cached).
    fn database(&self, tenant: &Tenant) -> BoxFuture<'_, Result<TenantDatabase, DirectoryError>>;

    /// What is counted of the service behind it; `None` when there is no service that could fail.
    fn service_stats(&self) -> Option<ServiceStats> {
        None
    }
}

/// The answer to "who is active".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Each tenant once, in the order of first mention.
    pub tenants: Vec<ListedTenant>,
    /// Entries that can't be served, each with its reason. They fail by themselves and never the others.
    pub refused: Vec<RefusedTenant>,
}

impl Listing {
    /// The tenants as a set, as [`crate::Membership::observe`] takes it.
    pub fn set(&self) -> BTreeSet<Tenant> {
        self.tenants.iter().map(|listed| listed.tenant.clone()).collect()
    }

    /// Moves to `refused` what would share Redis keys with another tenant of the list: one UUID listed with
    /// dashes and without has the same keys, unless [`KeyForm::AsListed`] keeps them apart, and two collectors
    /// on them might write to two databases. The first in id order stays, whatever the order of the list.
    pub fn refuse_shared_keys(&mut self, form: KeyForm) {
        let mut taken: BTreeSet<String> = BTreeSet::new();
        let mut kept = BTreeSet::new();
        for tenant in self.set() {
            let spaces = tenant.key_spaces(form);
            if spaces.iter().any(|space| taken.contains(space.prefix())) {
                continue;
            }
            taken.extend(spaces.iter().map(|space| space.prefix().to_owned()));
            kept.insert(tenant);
        }
        let (kept, shared) = std::mem::take(&mut self.tenants)
            .into_iter()
            .partition(|listed: &ListedTenant| kept.contains(&listed.tenant));
        self.tenants = kept;
        self.refused.extend(shared.into_iter().map(|listed| RefusedTenant {
            id: listed.tenant.label().to_owned(),
            reason: format!("has the same keys in Redis as another listed tenant (key form {form})"),
        }));
    }
}

/// One tenant of a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTenant {
    /// Its identity.
    pub tenant: Tenant,
    /// Its name for people; the id when it has none.
    pub name: String,
}

/// One entry of the list that can't be served.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefusedTenant {
    /// What stood where the id should be, escaped and shortened: it comes from outside and goes to logs.
    /// Empty when there was nothing.
    pub id: String,
    /// Why it was refused.
    pub reason: String,
}

/// Why a directory gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// There is no such tenant, or it doesn't use this service.
    #[error("tenant is not known, or not associated with this service")]
    NotFound,
    /// The tenant is suspended.
    #[error("tenant is suspended")]
    Suspended,
    /// The tenant is purged.
    #[error("tenant is purged")]
    Purged,
    /// Refused for a reason that neither says "stop" nor "try again".
    #[error("tenant service refused: status {}", .status.as_deref().unwrap_or("not given"))]
    Forbidden {
        /// The status the service gave, escaped and shortened.
        status: Option<String>,
    },
    /// The API key isn't accepted.
    #[error("tenant service does not accept the API key (HTTP 401)")]
    Unauthorized,
    /// No answer, or one that only an ill service (or something in front of it) gives.
    #[error("tenant service unavailable: {reason}")]
    Unavailable {
        /// What happened, without URLs or bodies.
        reason: String,
    },
    /// The service failed so often that it isn't asked for a while.
    #[error("tenant service not asked: circuit breaker open, next try in {} ms", .retry_in.as_millis())]
    BreakerOpen {
        /// Time until a request is let through again.
        retry_in: Duration,
    },
    /// An answer that can't be used.
    #[error("tenant service answer is malformed: {field}: {reason}")]
    Malformed {
        /// The field, as a path (`databases.transaction.postgresql.port`), or `body`.
        field: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
}

impl DirectoryError {
    /// An [`DirectoryError::Unavailable`] with this reason.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }

    /// A [`DirectoryError::Malformed`] for this field.
    pub fn malformed(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { field: field.into(), reason: reason.into() }
    }

    /// The service is ill or misconfigured: this says nothing about tenants; what was known stays in force.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::BreakerOpen { .. }
            | Self::Malformed { .. }
            | Self::Unauthorized => true,
            Self::NotFound | Self::Suspended | Self::Purged | Self::Forbidden { .. } => false,
        }
    }

    /// The tenant must not be served: stop it without waiting for the list.
    pub fn must_stop(&self) -> bool {
        matches!(self, Self::NotFound | Self::Suspended | Self::Purged)
    }

    /// Its class, for the failure table.
    pub fn class(&self) -> DirectoryClass {
        match self {
            Self::NotFound => DirectoryClass::NotFound,
            Self::Suspended => DirectoryClass::Suspended,
            Self::Purged => DirectoryClass::Purged,
            Self::Forbidden { .. } => DirectoryClass::Forbidden,
            Self::Unauthorized => DirectoryClass::Unauthorized,
            Self::Unavailable { .. } => DirectoryClass::Unavailable,
            Self::BreakerOpen { .. } => DirectoryClass::BreakerOpen,
            Self::Malformed { .. } => DirectoryClass::Malformed,
        }
    }

    /// A short fixed name, for metric labels and spans.
    pub fn kind(&self) -> &'static str {
        self.class().as_str()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balance_sync_domain::TenantId;

    use super::*;

    fn listed(id: &str) -> ListedTenant {
        ListedTenant { tenant: Tenant::Id(TenantId::parse(id).unwrap()), name: id.to_owned() }
    }

    #[test]
    fn no_error_is_both_about_the_tenant_and_about_the_service() {
        let all = [
            DirectoryError::NotFound,
            DirectoryError::Suspended,
            DirectoryError::Purged,
            DirectoryError::Forbidden { status: None },
            DirectoryError::Unauthorized,
            DirectoryError::unavailable("x"),
            DirectoryError::BreakerOpen { retry_in: Duration::from_secs(1) },
            DirectoryError::malformed("body", "x"),
        ];
        assert!(all.iter().all(|e| !(e.is_transient() && e.must_stop())));
        let classes: Vec<_> = all.iter().map(DirectoryError::class).collect();
        assert_eq!(classes, DirectoryClass::ALL);
    }

    #[test]
    fn two_forms_of_one_uuid_are_refused_only_where_they_share_keys() {
        let dashed = "0190d3a4-5b6c-7d8e-9f00-112233445566";
        let simple = "0190d3a45b6c7d8e9f00112233445566";
        for order in [[dashed, simple], [simple, dashed]] {
            let listing =
                || Listing { tenants: order.iter().map(|id| listed(id)).collect(), refused: vec![] };
            let mut as_listed = listing();
            as_listed.refuse_shared_keys(KeyForm::AsListed);
            assert_eq!(as_listed, listing());

            for form in [KeyForm::SimpleUuid, KeyForm::Auto] {
                let mut shared = listing();
                shared.refuse_shared_keys(form);
                assert_eq!(shared.tenants, vec![listed(dashed)], "the same one stays in either order");
                assert_eq!(shared.refused[0].id, simple);
            }
        }
    }
}
