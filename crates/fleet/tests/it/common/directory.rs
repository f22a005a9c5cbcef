//! A tenant directory that says what a test tells it to, counts, and waits at a gate.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use balance_sync_tenants::{
    BoxFuture, DirectoryError, ListedTenant, Listing, RefusedTenant, Tenant, TenantDatabase, TenantDirectory,
};
use tokio::sync::watch;

/// What a question meets.
#[derive(Debug, Clone)]
pub(crate) enum Reply<T> {
    Answer(Result<T, DirectoryError>),
    Panic,
}

pub(crate) struct FakeDirectory {
    list: Mutex<Reply<Listing>>,
    databases: Mutex<HashMap<Tenant, Reply<TenantDatabase>>>,
    pub polls: AtomicUsize,
    pub look_ups: AtomicUsize,
    /// Questions wait while it is shut; the answer is what is true when they are let through.
    open: watch::Sender<bool>,
}

impl FakeDirectory {
    pub(crate) fn new() -> Self {
        Self {
            list: Mutex::new(Reply::Answer(Ok(Listing::default()))),
            databases: Mutex::default(),
            polls: AtomicUsize::new(0),
            look_ups: AtomicUsize::new(0),
            open: watch::Sender::new(true),
        }
    }

    pub(crate) fn shut(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    pub(crate) fn lists(&self, tenants: &[Tenant]) {
        let tenants = tenants.iter();
        let listed = tenants.map(|tenant| ListedTenant { tenant: tenant.clone(), name: tenant.to_string() });
        let listing = Listing { tenants: listed.collect(), refused: Vec::new() };
        *self.list.lock().unwrap() = Reply::Answer(Ok(listing));
    }

    pub(crate) fn also_lists_refused(&self, ids: &[&str]) {
        if let Reply::Answer(Ok(listing)) = &mut *self.list.lock().unwrap() {
            let refused =
                ids.iter().map(|id| RefusedTenant { id: (*id).to_owned(), reason: "test".to_owned() });
            listing.refused.extend(refused);
        }
    }

    pub(crate) fn list_is(&self, reply: Reply<Listing>) {
        *self.list.lock().unwrap() = reply;
    }

    pub(crate) fn knows(&self, tenant: &Tenant, database: TenantDatabase) {
        self.says(tenant, Reply::Answer(Ok(database)));
    }

    pub(crate) fn refuses(&self, tenant: &Tenant, error: DirectoryError) {
        self.says(tenant, Reply::Answer(Err(error)));
    }

    pub(crate) fn says(&self, tenant: &Tenant, reply: Reply<TenantDatabase>) {
        self.databases.lock().unwrap().insert(tenant.clone(), reply);
    }

    pub(crate) fn look_ups(&self) -> usize {
        self.look_ups.load(SeqCst)
    }

    pub(crate) fn polls(&self) -> usize {
        self.polls.load(SeqCst)
    }

    async fn pass_gate(&self) {
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

fn give<T>(reply: Reply<T>) -> Result<T, DirectoryError> {
    match reply {
        Reply::Answer(answer) => answer,
        Reply::Panic => panic!("injected panic"),
    }
}

impl TenantDirectory for FakeDirectory {
    fn active(&self) -> BoxFuture<'_, Result<Listing, DirectoryError>> {
        Box::pin(async {
            self.polls.fetch_add(1, SeqCst);
            self.pass_gate().await;
            let reply = self.list.lock().unwrap().clone();
            give(reply)
        })
    }

    fn database(&self, tenant: &Tenant) -> BoxFuture<'_, Result<TenantDatabase, DirectoryError>> {
        let tenant = tenant.clone();
        Box::pin(async move {
            self.look_ups.fetch_add(1, SeqCst);
            self.pass_gate().await;
            let reply = self.databases.lock().unwrap().get(&tenant).cloned();
            give(reply.unwrap_or(Reply::Answer(Err(DirectoryError::NotFound))))
        })
    }
}

/// A database of its own, where no server listens.
pub(crate) fn database(name: &str, password: &str) -> TenantDatabase {
    TenantDatabase {
        host: "127.0.0.1".to_owned(),
        port: 1,
        database: name.to_owned(),
        username: "worker".to_owned(),
        password: String::from(password).into(),
        schema: None,
        tls: balance_sync_domain::TlsMode::Disable,
        root_cert: None,
        cert: None,
        key: None,
        settings: balance_sync_tenants::ConnectionSettings::default(),
    }
}

/// A schema in a shared database.
pub(crate) fn schema(name: &str, schema: &str) -> TenantDatabase {
    TenantDatabase { schema: Some(schema.to_owned()), ..database(name, "p") }
}

/// Waits until it is so, for at most ten minutes of tokio's time.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = tokio::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(600), "not within ten minutes: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
