//! What workers know of the ledger's own worker, per tenant. Kept in Redis, so that all workers of the fleet agree, and the next one
//! goes on with what the one before has seen.

use redis::Value;

use crate::{error::ScheduleError, link::Link, reply::array};

/// A hash: tenant → record.
pub(crate) const KEY: &str = "{transactions}:balance-sync:neighbours";
/// Most tenants in one call.
const PAGE: usize = 500;
/// Bytes of a record that is read; what is longer is none of ours.
const LONGEST: usize = 8192;

/// The records of tenants.
#[derive(Debug, Clone)]
pub struct Neighbours {
    link: Link,
}

impl Neighbours {
    /// Those in this Redis.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    /// The records of these tenants, in order; `None` = there is none.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn get(&self, tenants: &[&str]) -> Result<Vec<Option<String>>, ScheduleError> {
        const OPERATION: &str = "read what is known of the ledger's worker";
        let mut found = Vec::with_capacity(tenants.len());
        for page in tenants.chunks(PAGE) {
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(KEY).arg(page);
            let answer = self.link.send(OPERATION, &cmd).await?;
            found.extend(array(OPERATION, &answer, page.len())?.iter().map(|record| match record {
                Value::BulkString(bytes) if bytes.len() <= LONGEST => String::from_utf8(bytes.clone()).ok(),
                _ => None,
            }));
        }
        Ok(found)
    }

    /// Stores the records of tenants.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn set(&self, records: &[(&str, String)]) -> Result<(), ScheduleError> {
        for page in records.chunks(PAGE) {
            let mut cmd = redis::cmd("HSET");
            cmd.arg(KEY);
            for (tenant, record) in page {
                cmd.arg(tenant).arg(record);
            }
            self.link.send("note what is known of the ledger's worker", &cmd).await?;
        }
        Ok(())
    }
}
