//! Which Postgres server each tenant was written to last. Kept in Redis, so that a worker that starts after a failover notices it
//! too.

use redis::Value;

use crate::{
    error::ScheduleError,
    link::Link,
    reply::{array, bulk},
};

/// A hash: tenant → server and address, a line each.
pub(crate) const KEY: &str = "{transactions}:balance-sync:postgres-servers";
/// Most tenants in one call.
const PAGE: usize = 500;

/// The server that a tenant was written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The server, by its own account.
    pub origin: String,
    /// The address of the database, which may lead to another server now.
    pub address: String,
}

impl Written {
    fn parse(value: &Value) -> Option<Self> {
        let Value::BulkString(bytes) = value else { return None };
        let text = String::from_utf8_lossy(bytes);
        let (origin, address) = text.split_once('\n')?;
        Some(Self { origin: origin.to_owned(), address: address.to_owned() })
    }
}

/// The servers that tenants were written to last.
#[derive(Debug, Clone)]
pub struct Origins {
    link: Link,
}

impl Origins {
    /// Those in this Redis.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    /// The servers of these tenants, in order; `None` = not known yet.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn get(&self, tenants: &[&str]) -> Result<Vec<Option<Written>>, ScheduleError> {
        const OPERATION: &str = "read postgres servers";
        let mut found = Vec::with_capacity(tenants.len());
        for page in tenants.chunks(PAGE) {
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(KEY).arg(page);
            let answer = self.link.send(OPERATION, &cmd).await?;
            found.extend(array(OPERATION, &answer, page.len())?.iter().map(Written::parse));
        }
        Ok(found)
    }

    /// The servers of all tenants, by tenant.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn all(&self) -> Result<Vec<(String, Written)>, ScheduleError> {
        const OPERATION: &str = "read all postgres servers";
        let (mut found, mut cursor) = (Vec::new(), b"0".to_vec());
        loop {
            let mut cmd = redis::cmd("HSCAN");
            cmd.arg(KEY).arg(&cursor).arg("COUNT").arg(PAGE);
            let answer = self.link.send(OPERATION, &cmd).await?;
            let parts = array(OPERATION, &answer, 2)?;
            if let Value::Array(pairs) = &parts[1] {
                for pair in pairs.chunks_exact(2) {
                    let tenant = String::from_utf8_lossy(bulk(OPERATION, &pair[0])?).into_owned();
                    found.extend(Written::parse(&pair[1]).map(|written| (tenant, written)));
                }
            }
            cursor = bulk(OPERATION, &parts[0])?.to_vec();
            if cursor == b"0" {
                return Ok(found);
            }
        }
    }

    /// Stores the servers of tenants.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn set(&self, servers: &[(&str, &Written)]) -> Result<(), ScheduleError> {
        for page in servers.chunks(PAGE) {
            let mut cmd = redis::cmd("HSET");
            cmd.arg(KEY);
            for (tenant, Written { origin, address }) in page {
                cmd.arg(tenant).arg(format!("{origin}\n{address}"));
            }
            self.link.send("note postgres servers", &cmd).await?;
        }
        Ok(())
    }
}
