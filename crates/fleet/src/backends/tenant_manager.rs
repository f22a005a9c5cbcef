//! The tenant manager: each tenant's database, opened on first use, shared where it can be, swapped when settings change.
//!
//! Collectors ask for their database at each flush, so a change takes effect with the next one. What is known is served
//! at once and looked up again in the background when it has become old; what is not known is fetched once, however
//! many ask. An ill tenant service changes nothing about what is known. What is known of a tenant is kept for as long as
//! it is served, also when it is idle: some kilobytes each, and a balance that comes while the service is ill finds its
//! way. Connections are another matter; the databases close idle ones by themselves.

mod messages;
mod options;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use balance_sync_store::{ConnectionBudget, Database, DatabaseSpec, PoolKey, Table};
use balance_sync_tenants::{DirectoryError, Tenant, TenantDatabase, TenantDirectory};
use balance_sync_trace::Span;
use tokio::{sync::oneshot, time::Instant};

use super::lookup_rate::LookupRate;
use crate::{
    pipeline::SinkError,
    tasks::{Panicked, TaskName, Tasks},
};
pub use messages::{
    CloseAll, DatabaseView, Doubt, GetDatabaseView, GetPool, GetUsage, GetUsages, Hint, Refetch, TenantGone,
    TenantPool,
};
pub use options::ManagerOptions;

/// A background look that failed is repeated after this, not only after the whole interval.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Settings that were looked up more recently are not doubted.
const DOUBTED_AFTER: Duration = Duration::from_secs(10);
/// How long a replaced database may finish what it has begun.
const CLOSE_GRACE: Duration = Duration::from_secs(10);
/// Longest time for one look-up. The tenant service's client has its own, shorter bounds; this is for a directory without.
const LOOK_UP_BOUND: Duration = Duration::from_secs(60);

struct Entry {
    settings: TenantDatabase,
    pool: TenantPool,
    key: PoolKey,
    /// When the settings were looked up last.
    fresh_at: Instant,
    /// When the settings are to be looked up again.
    stale_at: Instant,
    /// The tenant must not be served; the pool is kept for its final flush.
    refused: Option<DirectoryError>,
}

/// The actor.
pub struct TenantManager {
    directory: Arc<dyn TenantDirectory>,
    budget: ConnectionBudget,
    options: ManagerOptions,
    entries: HashMap<Tenant, Entry>,
    fetching: HashSet<Tenant>,
    /// Those among `fetching` that have gone meanwhile and haven't been asked for since: their answer is not kept.
    gone: HashSet<Tenant>,
    /// Those among `fetching` that are to be looked up once more: the answer under way may not know yet what a hint is about.
    hinted: HashSet<Tenant>,
    /// Look-ups because of what servers answer.
    rate: LookupRate,
    waiters: HashMap<Tenant, Vec<oneshot::Sender<Result<TenantPool, SinkError>>>>,
    revisions: u64,
    closed: bool,
    tasks: Tasks,
}

impl TenantManager {
    /// A manager without open databases.
    #[must_use]
    pub fn new(
        directory: Arc<dyn TenantDirectory>,
        budget: ConnectionBudget,
        options: ManagerOptions,
    ) -> Self {
        Self {
            directory,
            budget,
            options,
            entries: HashMap::new(),
            fetching: HashSet::new(),
            gone: HashSet::new(),
            hinted: HashSet::new(),
            rate: LookupRate::default(),
            waiters: HashMap::new(),
            revisions: 0,
            closed: false,
            tasks: Tasks::default(),
        }
    }

    /// Makes it run what it does beside among these tasks.
    #[must_use]
    pub fn with_tasks(mut self, tasks: Tasks) -> Self {
        self.tasks = tasks;
        self
    }

    fn fetch(&mut self, tenant: &Tenant, asked: &Span, ctx: &mut Context<Self>) {
        self.gone.remove(tenant);
        if !self.fetching.insert(tenant.clone()) {
            return;
        }
        let (directory, tenant) = (Arc::clone(&self.directory), tenant.clone());
        // A task of its own: a panic over one tenant's settings must not end the manager of all.
        let looking_up = self.tasks.once(TaskName::SettingsLookup, {
            let tenant = tenant.clone();
            let span = asked.child("settings");
            async move {
                span.set("tenant_id", tenant.label().to_owned());
                let asking = tokio::time::timeout(LOOK_UP_BOUND, directory.database(&tenant));
                span.around(asking).await
            }
        });
        let fetching = async move {
            let answer = match looking_up.await {
                Ok(Ok(Ok(answer))) => answer,
                Ok(Ok(Err(_))) => {
                    Err(DirectoryError::unavailable(format!("no answer within {LOOK_UP_BOUND:?}")))
                }
                Ok(Err(Panicked)) | Err(_) => Err(DirectoryError::unavailable("the look-up panicked")),
            };
            (tenant, answer)
        };
        ctx.spawn(fetching.into_actor(self).map(|(tenant, answer), manager, ctx| {
            manager.fetched(&tenant, answer);
            if manager.hinted.remove(&tenant) && manager.entries.contains_key(&tenant) {
                manager.fetch(&tenant, &Span::root("hint"), ctx);
            }
        }));
    }

    fn fetched(&mut self, tenant: &Tenant, answer: Result<TenantDatabase, DirectoryError>) {
        self.fetching.remove(tenant);
        if self.gone.remove(tenant) {
            return;
        }
        if self.closed {
            self.answer(tenant, &Err(SinkError::ManagerGone));
            return;
        }
        let result = match answer {
            Ok(settings) => self.take_settings(tenant, settings),
            Err(error) => self.take_error(tenant, error),
        };
        self.answer(tenant, &result);
    }

    fn take_settings(&mut self, tenant: &Tenant, settings: TenantDatabase) -> Result<TenantPool, SinkError> {
        let stale_at = Instant::now() + self.options.settings_ttl;
        if let Some(entry) = self.entries.get_mut(tenant)
            && entry.settings.same_as(&settings)
        {
            (entry.fresh_at, entry.stale_at) = (Instant::now(), stale_at);
            entry.refused = None;
            return Ok(entry.pool.clone());
        }
        let weight = self.options.weights.of(tenant.label());
        let spec = DatabaseSpec { weight, ..self.options.spec(&settings) };
        let key = spec.pool_key();
        let allowed = self.options.allows(&settings).map_err(SinkError::from);
        let (table, database) = match allowed.and_then(|()| self.open(tenant, &settings, &key, spec)) {
            Ok(opened) => opened,
            Err(error) => {
                let Some(entry) = self.entries.get_mut(tenant) else { return Err(error) };
                // As with an answer that can't be read: what is known stays in force, and the service is not asked
                // again at each flush.
                entry.stale_at = Instant::now() + RETRY_AFTER.min(self.options.settings_ttl);
                tracing::warn!(tenant_id = %tenant, %error, "new settings of the tenant's database can't be used, the known ones stay in force");
                return entry
                    .refused
                    .clone()
                    .map_or_else(|| Ok(entry.pool.clone()), |refused| Err(refused.into()));
            }
        };
        self.revisions += 1;
        let pool = TenantPool { database, table, revision: self.revisions };
        let fresh_at = Instant::now();
        let entry = Entry { settings, pool: pool.clone(), key, fresh_at, stale_at, refused: None };
        match self.entries.insert(tenant.clone(), entry) {
            Some(before) => {
                tracing::info!(tenant_id = %tenant, "settings of the tenant's database changed, connections are swapped");
                self.close_unless_shared(before);
            }
            None => tracing::debug!(tenant_id = %tenant, "database of the tenant known"),
        }
        Ok(pool)
    }

    fn take_error(&mut self, tenant: &Tenant, error: DirectoryError) -> Result<TenantPool, SinkError> {
        let Some(entry) = self.entries.get_mut(tenant) else { return Err(error.into()) };
        entry.stale_at = Instant::now() + RETRY_AFTER.min(self.options.settings_ttl);
        if error.is_transient() {
            tracing::debug!(tenant_id = %tenant, %error, "settings could not be looked up again, what is known stays in force");
            // Also that it must not be served.
            return entry
                .refused
                .clone()
                .map_or_else(|| Ok(entry.pool.clone()), |refused| Err(refused.into()));
        }
        if entry.refused.as_ref() != Some(&error) {
            tracing::warn!(tenant_id = %tenant, %error, "tenant must not be served");
        }
        entry.refused = Some(error.clone());
        Err(error.into())
    }

    fn answer(&mut self, tenant: &Tenant, result: &Result<TenantPool, SinkError>) {
        for waiter in self.waiters.remove(tenant).unwrap_or_default() {
            // The caller may have given up.
            let _ = waiter.send(result.clone());
        }
    }

    fn open(
        &self,
        tenant: &Tenant,
        settings: &TenantDatabase,
        key: &PoolKey,
        spec: DatabaseSpec,
    ) -> Result<(Table, Database), SinkError> {
        let table = match &settings.schema {
            Some(schema) => Table::in_schema(schema)?,
            None => Table::unqualified(),
        };
        let table = table.of_tenant(tenant.label());
        let database = match self.shared(key, &spec) {
            Some(database) => database,
            None => Database::open(spec, self.budget.clone())?,
        };
        Ok((table, database))
    }

    /// A database that another tenant uses with the same settings.
    fn shared(&self, key: &PoolKey, spec: &DatabaseSpec) -> Option<Database> {
        self.entries
            .values()
            .find(|entry| {
                entry.key == *key
                    && entry.pool.database.spec().same_as(spec)
                    && !entry.pool.database.is_closed()
            })
            .map(|entry| entry.pool.database.clone())
    }

    fn close_unless_shared(&self, entry: Entry) {
        let still_used = self.entries.values().any(|other| {
            other.key == entry.key && other.pool.database.spec().same_as(entry.pool.database.spec())
        });
        if !still_used {
            let database = entry.pool.database;
            self.tasks.once(TaskName::ConnectionClose, async move {
                let broken_off = database.close(CLOSE_GRACE).await;
                if broken_off > 0 {
                    tracing::warn!(connections = broken_off, "replaced connections did not end in time");
                }
            });
        }
    }

    fn wait_for_fetch(
        &mut self,
        tenant: &Tenant,
        asked: &Span,
        ctx: &mut Context<Self>,
    ) -> ResponseFuture<Result<TenantPool, SinkError>> {
        let (sender, receiver) = oneshot::channel();
        self.waiters.entry(tenant.clone()).or_default().push(sender);
        self.fetch(tenant, asked, ctx);
        Box::pin(async move { receiver.await.unwrap_or(Err(SinkError::ManagerGone)) })
    }
}

impl Actor for TenantManager {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Each flush of each tenant sends one message: room for all of them at once.
        ctx.set_mailbox_capacity(4096);
    }
}

impl Handler<GetPool> for TenantManager {
    type Result = ResponseFuture<Result<TenantPool, SinkError>>;

    fn handle(&mut self, GetPool { tenant, last, span }: GetPool, ctx: &mut Self::Context) -> Self::Result {
        if self.closed {
            return Box::pin(std::future::ready(Err(SinkError::ManagerGone)));
        }
        match self.entries.get(&tenant) {
            Some(entry) if last => Box::pin(std::future::ready(Ok(entry.pool.clone()))),
            Some(entry) if entry.refused.is_some() => self.wait_for_fetch(&tenant, &span, ctx),
            Some(entry) => {
                let pool = entry.pool.clone();
                if entry.stale_at <= Instant::now() {
                    self.fetch(&tenant, &span, ctx);
                }
                Box::pin(std::future::ready(Ok(pool)))
            }
            None => self.wait_for_fetch(&tenant, &span, ctx),
        }
    }
}

impl Handler<Refetch> for TenantManager {
    type Result = ResponseFuture<Result<TenantPool, SinkError>>;

    fn handle(
        &mut self,
        Refetch { tenant, revision, span }: Refetch,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        if self.closed {
            return Box::pin(std::future::ready(Err(SinkError::ManagerGone)));
        }
        match self.entries.get(&tenant) {
            Some(entry) if revision.is_some_and(|revision| entry.pool.revision > revision) => {
                Box::pin(std::future::ready(Ok(entry.pool.clone())))
            }
            // What is refused stays refused until the next regular look-up.
            Some(entry)
                if revision.is_some()
                    && !self.fetching.contains(&tenant)
                    && !self.rate.refused(&entry.pool.database.spec().server_key(), Instant::now()) =>
            {
                Box::pin(std::future::ready(Ok(entry.pool.clone())))
            }
            _ => self.wait_for_fetch(&tenant, &span, ctx),
        }
    }
}

impl Handler<Doubt> for TenantManager {
    type Result = ();

    fn handle(&mut self, Doubt { tenant, span }: Doubt, ctx: &mut Self::Context) {
        let now = Instant::now();
        let Some(entry) = self.entries.get(&tenant) else { return };
        let is_new = now < entry.fresh_at + DOUBTED_AFTER.min(self.options.settings_ttl);
        if self.closed || is_new || self.fetching.contains(&tenant) {
            return;
        }
        if self.rate.doubted(&entry.pool.database.spec().server_key(), now) {
            self.fetch(&tenant, &span, ctx);
        }
    }
}

impl Handler<Hint> for TenantManager {
    type Result = ();

    fn handle(&mut self, Hint(id): Hint, ctx: &mut Self::Context) {
        // The event may name a UUID in another form than the list (protocol §1).
        let forms = [id.to_simple_uuid_form(), id.to_dashed_uuid_form(), Some(id)];
        for tenant in forms.into_iter().flatten().map(Tenant::Id) {
            if self.fetching.contains(&tenant) {
                self.hinted.insert(tenant);
            } else if self.entries.contains_key(&tenant) && !self.closed {
                self.fetch(&tenant, &Span::root("hint"), ctx);
            }
        }
    }
}

impl Handler<TenantGone> for TenantManager {
    type Result = ();

    fn handle(&mut self, TenantGone(tenant): TenantGone, _: &mut Self::Context) {
        if self.fetching.contains(&tenant) {
            self.gone.insert(tenant.clone());
        }
        // No caller is left for the answer.
        self.waiters.remove(&tenant);
        self.hinted.remove(&tenant);
        self.budget.forget_tenant(tenant.label());
        if let Some(entry) = self.entries.remove(&tenant) {
            self.close_unless_shared(entry);
        }
    }
}

impl Handler<CloseAll> for TenantManager {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, CloseAll { grace }: CloseAll, _: &mut Self::Context) -> Self::Result {
        self.closed = true;
        for waiter in self.waiters.drain().flat_map(|(_, waiters)| waiters) {
            let _ = waiter.send(Err(SinkError::ManagerGone));
        }
        let databases: Vec<Database> = self.entries.drain().map(|(_, entry)| entry.pool.database).collect();
        Box::pin(async move {
            futures::future::join_all(databases.iter().map(|database| database.close(grace))).await;
        })
    }
}

impl Handler<GetUsage> for TenantManager {
    type Result = MessageResult<GetUsage>;

    fn handle(&mut self, GetUsage(tenant): GetUsage, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.entries.get(&tenant).map(|entry| entry.pool.database.usage()))
    }
}

impl Handler<GetUsages> for TenantManager {
    type Result = MessageResult<GetUsages>;

    fn handle(&mut self, _: GetUsages, _: &mut Self::Context) -> Self::Result {
        let usages = self.entries.iter().map(|(tenant, entry)| (tenant, entry.pool.database.usage()));
        MessageResult(
            usages
                .filter(|(_, usage)| usage.open > 0)
                .map(|(tenant, usage)| (tenant.clone(), usage))
                .collect(),
        )
    }
}

impl Handler<GetDatabaseView> for TenantManager {
    type Result = MessageResult<GetDatabaseView>;

    fn handle(&mut self, GetDatabaseView(tenant): GetDatabaseView, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.entries.get(&tenant).map(|Entry { settings, pool, .. }| DatabaseView {
            host: settings.host.clone(),
            port: settings.port,
            database: settings.database.clone(),
            username: settings.username.clone(),
            schema: settings.schema.clone(),
            sslmode: settings.tls.as_str().to_owned(),
            max_connections: pool.database.spec().max_connections,
            connection: pool.database.mode().map(Into::into),
        }))
    }
}
