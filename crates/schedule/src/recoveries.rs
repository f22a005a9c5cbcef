//! Recoveries that were started through the API, one per tenant for the whole fleet: the record of its progress and result, which any
//! worker can show, the lease that keeps a second one of the same tenant away, and the request to stop it.

use std::time::Duration;

use redis::Value;

use crate::{error::ScheduleError, link::Link, names::Names, reply::bulk};

/// Prefix of the keys of records, with the hash tag of all other keys; the tenant's id follows.
pub(crate) const KEY_PREFIX: &str = "{transactions}:balance-sync:recovery-1:";
/// Behind the key of a record: which recovery is to stop. No tenant's id has a colon.
const STOP: &str = ":stop";
/// What the names of leases on tenants are under.
pub(crate) const LEASES: &str = "recovery";
/// How long a record can be read after it was written last.
const KEPT: Duration = Duration::from_hours(24);

/// Whether this key is one of a recovery of any tenant.
pub(crate) fn is_key(key: &str) -> bool {
    let lease = || key.strip_prefix(crate::names::KEY_PREFIX)?.strip_prefix(LEASES)?.strip_prefix(':');
    key.starts_with(KEY_PREFIX) || lease().is_some()
}

/// The recoveries in this Redis.
#[derive(Debug, Clone)]
pub struct Recoveries {
    link: Link,
    leases: Names,
}

impl Recoveries {
    /// Those stored in this Redis.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { leases: Names::new(link.clone(), LEASES), link }
    }

    /// Takes or renews the lease on a tenant; false if another recovery holds it.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn lease(&self, tenant: &str, id: &str, lease: Duration) -> Result<bool, ScheduleError> {
        let claim = self.leases.claim(&[tenant.to_owned()], id, lease).await?;
        Ok(claim.held.is_some())
    }

    /// Gives the lease up.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn release(&self, tenant: &str, id: &str) -> Result<(), ScheduleError> {
        self.leases.release(tenant, id).await
    }

    /// The keys about a tenant: the record, the request to stop, and the lease.
    #[must_use]
    pub fn keys(tenant: &str) -> [String; 3] {
        [
            format!("{KEY_PREFIX}{tenant}"),
            format!("{KEY_PREFIX}{tenant}{STOP}"),
            format!("{}{LEASES}:{tenant}", crate::names::KEY_PREFIX),
        ]
    }

    /// Whether a recovery of this tenant is under way.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn is_leased(&self, tenant: &str) -> Result<bool, ScheduleError> {
        let [_, _, lease] = Self::keys(tenant);
        Ok(self.get(&lease).await?.is_some())
    }

    /// The record of a tenant's last recovery, as it was written.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn read(&self, tenant: &str) -> Result<Option<String>, ScheduleError> {
        self.get(&format!("{KEY_PREFIX}{tenant}")).await
    }

    /// Writes the record of a tenant's recovery.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn write(&self, tenant: &str, record: &str) -> Result<(), ScheduleError> {
        self.set(&format!("{KEY_PREFIX}{tenant}"), record).await
    }

    /// Requests that this recovery stop.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn stop(&self, tenant: &str, id: &str) -> Result<(), ScheduleError> {
        self.set(&format!("{KEY_PREFIX}{tenant}{STOP}"), id).await
    }

    /// Whether it was requested that this recovery stop.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn is_to_stop(&self, tenant: &str, id: &str) -> Result<bool, ScheduleError> {
        Ok(self.get(&format!("{KEY_PREFIX}{tenant}{STOP}")).await?.is_some_and(|wanted| wanted == id))
    }

    async fn get(&self, key: &str) -> Result<Option<String>, ScheduleError> {
        const OPERATION: &str = "read a recovery";
        let mut cmd = redis::cmd("GET");
        cmd.arg(key);
        match self.link.send(OPERATION, &cmd).await? {
            Value::Nil => Ok(None),
            value => Ok(Some(String::from_utf8_lossy(bulk(OPERATION, &value)?).into_owned())),
        }
    }

    async fn set(&self, key: &str, value: &str) -> Result<(), ScheduleError> {
        let mut cmd = redis::cmd("SET");
        cmd.arg(key).arg(value).arg("EX").arg(KEPT.as_secs());
        self.link.send("write a recovery", &cmd).await.map(drop)
    }
}
