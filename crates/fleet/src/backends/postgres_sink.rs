//! A tenant's sink: its Postgres, by way of the tenant manager.

use std::cell::RefCell;
use std::time::Duration;

use actix::Addr;
use balance_sync_store::{ErrorClass, Fates, Named, Origin, Row, RowResult, Session, StoredRow};
use balance_sync_tenants::Tenant;
use balance_sync_trace as trace;
use futures::{FutureExt, future::LocalBoxFuture};
use tokio::time::timeout;

use super::failover::Reports;
use super::tenant_manager::{Doubt, GetPool, Refetch, TenantManager, TenantPool};
use crate::pipeline::{Sink, SinkError};

/// How long the settings for a look at rows may take. What looks has a limit of its own for the whole.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

/// The tenant's Postgres, by way of the tenant manager.
#[derive(Debug)]
pub struct PostgresSink {
    manager: Addr<TenantManager>,
    tenant: Tenant,
    failover: Reports,
    /// The server that was reported last.
    reported: RefCell<Option<Origin>>,
}

impl PostgresSink {
    /// The sink of one tenant.
    #[must_use]
    pub(crate) fn new(manager: Addr<TenantManager>, tenant: Tenant, failover: Reports) -> Self {
        Self { manager, tenant, failover, reported: RefCell::default() }
    }

    /// Reports the server that the connections lead to, if it is another one than before.
    fn note_origin(&self, pool: &TenantPool) {
        let now = pool.database.origin();
        if now.is_none() || *self.reported.borrow() == now {
            return;
        }
        if let Some(origin) = &now {
            let changed = self.reported.borrow().is_some();
            self.failover.report(&self.tenant, origin, pool.database.address(), changed);
        }
        self.reported.replace(now);
    }

    async fn pool(&self, last: bool) -> Result<TenantPool, SinkError> {
        let ask = GetPool { tenant: self.tenant.clone(), last, span: trace::current() };
        self.manager.send(ask).await.unwrap_or(Err(SinkError::ManagerGone))
    }

    /// Settings that may be out of date are fetched afresh once, so that a rotated password costs no failed flush.
    async fn newer(&self, pool: &TenantPool, error: SinkError) -> Result<TenantPool, SinkError> {
        let SinkError::Store(store) = &error else { return Err(error) };
        if !matches!(
            store.class(),
            ErrorClass::Credentials | ErrorClass::DatabaseMissing | ErrorClass::Closed
        ) {
            return Err(error);
        }
        let ask =
            Refetch { tenant: self.tenant.clone(), revision: Some(pool.revision), span: trace::current() };
        match self.manager.send(ask).await.unwrap_or(Err(SinkError::ManagerGone)) {
            Ok(newer) if newer.revision != pool.revision => Ok(newer),
            _ => Err(error),
        }
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    /// A batch stays in a queue that moves.
    Batch,
    /// A look at rows can be repeated.
    Look,
}

/// A connection of the tenant's database.
#[derive(Debug)]
pub struct PostgresPermit {
    pool: TenantPool,
    session: Session,
}

impl PostgresPermit {
    async fn of(pool: TenantPool, purpose: Purpose) -> Result<Self, (TenantPool, SinkError)> {
        let connected = match purpose {
            Purpose::Batch => pool.database.connect().await,
            Purpose::Look => pool.database.connect_for_a_look().await,
        };
        match connected {
            Ok(session) => Ok(Self { pool, session }),
            Err(error) => Err((pool, error.into())),
        }
    }
}

impl PostgresSink {
    async fn permit_for(
        &self,
        purpose: Purpose,
        last: bool,
        limit: Duration,
    ) -> Result<PostgresPermit, SinkError> {
        // Opening a connection and waiting in a queue that stands still have bounds of their own.
        let within = async |pool: LocalBoxFuture<'_, Result<TenantPool, SinkError>>| {
            timeout(limit, pool).await.unwrap_or(Err(SinkError::Deadline(limit)))
        };
        let pool = within(self.pool(last).boxed_local()).await?;
        let permit = match PostgresPermit::of(pool, purpose).await {
            Ok(permit) => permit,
            Err((pool, error)) => {
                let newer = within(self.newer(&pool, error).boxed_local()).await?;
                PostgresPermit::of(newer, purpose).await.map_err(|(_, error)| error)?
            }
        };
        self.note_origin(&permit.pool);
        Ok(permit)
    }
}

impl Sink for PostgresSink {
    type Permit = PostgresPermit;

    async fn permit(&self, last: bool, limit: Duration) -> Result<PostgresPermit, SinkError> {
        self.permit_for(Purpose::Batch, last, limit).await
    }

    async fn update(
        &self,
        mut permit: PostgresPermit,
        rows: &[Row<'_>],
    ) -> Result<Vec<RowResult>, SinkError> {
        match permit.session.update_isolating(&permit.pool.table, rows).await {
            Ok(results) => {
                // A connection from the pool may have been dead, and the one in its place leads elsewhere.
                self.note_origin(&permit.pool);
                Ok(results)
            }
            Err(error) => {
                let newer = self.newer(&permit.pool, error.into()).await?;
                // The old permit goes first: the new one may need it.
                drop(permit);
                let mut permit =
                    PostgresPermit::of(newer, Purpose::Batch).await.map_err(|(_, error)| error)?;
                Ok(permit.session.update_isolating(&permit.pool.table, rows).await?)
            }
        }
    }

    async fn rows(&self, rows: &[Row<'_>]) -> Result<Vec<Option<StoredRow>>, SinkError> {
        let mut permit = self.permit_for(Purpose::Look, false, LOOK_LIMIT).await?;
        Ok(permit.session.fetch(&permit.pool.table, rows).await?)
    }

    async fn fates(&self, gone: &[Named<'_>], last: bool) -> Result<Fates, SinkError> {
        let mut permit = self.permit_for(Purpose::Look, last, LOOK_LIMIT).await?;
        Ok(permit.session.fates_if_writable(&permit.pool.table, gone).await?)
    }

    async fn ping(&self) -> Result<(), SinkError> {
        let pool = self.pool(false).await?;
        match pool.database.ping().await {
            Ok(()) => Ok(()),
            Err(error) => {
                let newer = self.newer(&pool, error.into()).await?;
                Ok(newer.database.ping().await?)
            }
        }
    }

    fn refetch(&self) {
        // A hint: the next flush asks for the pool anyway, and a full mailbox means that many others do too.
        let _ = self.manager.try_send(Doubt { tenant: self.tenant.clone(), span: trace::current() });
    }
}
