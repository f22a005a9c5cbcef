//! Tenant events on a real Redis, and what the tenant manager makes of a hint.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::prelude::*;
use balance_sync_domain::{TenantId, TlsMode};
use balance_sync_fleet::{
    ConnectionBudget,
    backends::{GetPool, Hint, ManagerOptions, TenantManager},
    lifecycle::{
        Poll,
        events::{EventSettings, listen},
    },
    tasks::{Progress, TaskName},
};
use balance_sync_sandbox::{RedisOptions, RedisServer, eventually};
use balance_sync_schedule::{Endpoint, ErrorClass, LinkSettings, Subscription};
use balance_sync_tenants::{
    BoxFuture, ConnectionSettings, DirectoryError, Listing, Tenant, TenantDatabase, TenantDirectory,
};
use balance_sync_trace::Span;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

/// Longest wait for what takes a moment on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const CHANNEL: &str = "tenant-events:test:";

#[derive(Clone, Default)]
struct Ear {
    polls: Arc<AtomicUsize>,
    hints: Arc<Mutex<Vec<String>>>,
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<Poll> for Ear {
    type Result = ();
    fn handle(&mut self, _: Poll, _: &mut Self::Context) {
        self.polls.fetch_add(1, Relaxed);
    }
}

impl Handler<Hint> for Ear {
    type Result = ();
    fn handle(&mut self, Hint(id): Hint, _: &mut Self::Context) {
        self.hints.lock().unwrap().push(id.to_string());
    }
}

impl Ear {
    async fn polled(&self, times: usize) {
        let look = || async {
            let polls = self.polls.load(Relaxed);
            if polls >= times { Ok(()) } else { Err(format!("{polls} so far")) }
        };
        eventually(SOON, &format!("{times} polls"), look).await.unwrap();
    }
}

/// Publishes an event and gives how many subscribers received it.
async fn publish(server: &RedisServer, tenant: &str) -> usize {
    let mut connection = server.connect().await.unwrap();
    let event =
        format!(r#"{{"event_id":"1","event_type":"tenant.credentials.rotated","tenant_id":"{tenant}"}}"#);
    redis::cmd("PUBLISH").arg(CHANNEL).arg(event).query_async(&mut connection).await.unwrap()
}

#[actix_rt::test]
async fn events_are_received_also_after_an_outage_until_it_ends() {
    let server = RedisServer::start(RedisOptions {
        password: Some("p@ss".to_owned().into()),
        ..RedisOptions::default()
    })
    .await
    .unwrap();
    let ear = Ear::default();
    let address = ear.clone().start();
    let endpoint = Endpoint::new(&LinkSettings::for_url(&server.url())).unwrap();
    let stop = CancellationToken::new();
    let listening = actix_rt::spawn(listen(
        EventSettings { channel: CHANNEL.to_owned(), endpoint },
        address.clone().recipient(),
        address.recipient(),
        stop.clone(),
        Progress::unobserved(TaskName::TenantEvents),
    ));

    ear.polled(1).await;
    assert_eq!(publish(&server, "acme").await, 1);
    ear.polled(2).await;
    eventually(SOON, "a hint", || async { *ear.hints.lock().unwrap() == ["acme"] }).await.unwrap();

    // After an outage the list is polled for what was missed.
    server.kill().unwrap();
    server.start_again().await.unwrap();
    ear.polled(3).await;
    assert_eq!(publish(&server, "globex").await, 1);
    ear.polled(4).await;

    stop.cancel();
    listening.await.unwrap();
    let unheard = || async { publish(&server, "hooli").await == 0 };
    eventually(SOON, "the end of the subscription", unheard).await.unwrap();
}

#[actix_rt::test]
async fn a_subscription_notices_a_server_that_hangs() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut link = LinkSettings::for_url(&server.url());
    link.response_timeout = Duration::from_millis(300);
    let mut subscription = Subscription::open(&Endpoint::new(&link).unwrap(), CHANNEL).await.unwrap();
    // Silence by itself is no trouble: it has been asked for signs of life by now, and gave them.
    let silence = tokio::time::timeout(Duration::from_secs(2), subscription.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert_eq!(publish(&server, "acme").await, 1);
    assert!(subscription.next().await.unwrap().starts_with(b"{\"event_id\""));
    server.pause().unwrap();
    let error = tokio::time::timeout(SOON, subscription.next()).await.unwrap().unwrap_err();
    assert_eq!(error.class, ErrorClass::Unavailable, "{error}");
    server.resume().unwrap();
}

/// Counts look-ups; answers when it is let.
#[derive(Default)]
struct Directory {
    lookups: Mutex<BTreeMap<Tenant, usize>>,
    held: tokio::sync::RwLock<()>,
}

impl Directory {
    fn lookups(&self, tenant: &Tenant) -> usize {
        self.lookups.lock().unwrap().get(tenant).copied().unwrap_or_default()
    }
}

impl TenantDirectory for Directory {
    fn active(&self) -> BoxFuture<'_, Result<Listing, DirectoryError>> {
        futures::future::ready(Ok(Listing::default())).boxed()
    }

    fn database(&self, tenant: &Tenant) -> BoxFuture<'_, Result<TenantDatabase, DirectoryError>> {
        *self.lookups.lock().unwrap().entry(tenant.clone()).or_default() += 1;
        async {
            let _free = self.held.read().await;
            Ok(TenantDatabase {
                host: "127.0.0.1".to_owned(),
                port: 1,
                database: "d".to_owned(),
                username: "u".to_owned(),
                password: String::new().into(),
                schema: None,
                tls: TlsMode::Disable,
                root_cert: None,
                cert: None,
                key: None,
                settings: ConnectionSettings::default(),
            })
        }
        .boxed()
    }
}

fn id(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

#[actix_rt::test]
async fn a_hint_refetches_what_is_known_in_either_form_and_opens_nothing_else() {
    const DASHED: &str = "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50";
    const SIMPLE: &str = "0190b5f27c1a7e3b9d4f2a6c8e1b3d50";
    let directory = Arc::new(Directory::default());
    let options = ManagerOptions { settings_ttl: Duration::from_secs(600), ..ManagerOptions::default() };
    let manager = TenantManager::new(
        Arc::clone(&directory) as Arc<dyn TenantDirectory>,
        ConnectionBudget::new(4),
        options,
    )
    .start();
    let known = Tenant::Id(id(DASHED));
    manager.send(GetPool { tenant: known.clone(), last: false, span: Span::NONE }).await.unwrap().unwrap();
    assert_eq!(directory.lookups(&known), 1);

    manager.send(Hint(id("stranger"))).await.unwrap();
    manager.send(Hint(id(SIMPLE))).await.unwrap();
    eventually(SOON, "a second look", || async { directory.lookups(&known) == 2 }).await.unwrap();
    manager.send(Hint(id(DASHED))).await.unwrap();
    eventually(SOON, "a third look", || async { directory.lookups(&known) == 3 }).await.unwrap();

    // Hints that come while the answer is under way are one more look, after it.
    let held = directory.held.write().await;
    manager.send(Hint(id(DASHED))).await.unwrap();
    eventually(SOON, "a fourth look", || async { directory.lookups(&known) == 4 }).await.unwrap();
    for _ in 0..5 {
        manager.send(Hint(id(DASHED))).await.unwrap();
    }
    assert_eq!(directory.lookups(&known), 4);
    drop(held);
    eventually(SOON, "a fifth look", || async { directory.lookups(&known) == 5 }).await.unwrap();
    manager.send(GetPool { tenant: known.clone(), last: false, span: Span::NONE }).await.unwrap().unwrap();
    let looked_up: Vec<_> = directory.lookups.lock().unwrap().keys().cloned().collect();
    assert_eq!((looked_up, directory.lookups(&known)), (vec![known], 5), "no other tenant was looked up");
}
