//! The tenant manager, with a scripted directory. Databases are opened but never connected, so no server is needed, and
//! time can be paused.

use balance_sync_domain::TlsMode;
use std::{sync::Arc, time::Duration};

use crate::common::{
    directory::{FakeDirectory, Reply, database, schema, until},
    secs, tenant,
};
use actix::prelude::*;
use balance_sync_engine::weights::Weights;
use balance_sync_fleet::{
    ConnectionBudget,
    backends::{
        CloseAll, Doubt, GetPool, GetUsage, ManagerOptions, Refetch, TenantGone, TenantManager, TenantPool,
    },
    pipeline::SinkError,
};
use balance_sync_store::Database;
use balance_sync_tenants::{ConnectionSettings, DirectoryError, Tenant, TenantDatabase};
use balance_sync_trace::Span;
use futures::future::join_all;
use secrecy::ExposeSecret;

struct Bench {
    directory: Arc<FakeDirectory>,
    manager: Addr<TenantManager>,
}

impl Bench {
    fn new() -> Self {
        Self::with(ManagerOptions::default())
    }

    fn with(options: ManagerOptions) -> Self {
        let directory = Arc::new(FakeDirectory::new());
        let budget = ConnectionBudget::new(10);
        let manager = TenantManager::new(directory.clone(), budget, options).start();
        Self { directory, manager }
    }

    async fn get(&self, tenant: &Tenant) -> Result<TenantPool, SinkError> {
        self.manager.send(GetPool { tenant: tenant.clone(), last: false, span: Span::NONE }).await.unwrap()
    }

    async fn get_last(&self, tenant: &Tenant) -> Result<TenantPool, SinkError> {
        self.manager.send(GetPool { tenant: tenant.clone(), last: true, span: Span::NONE }).await.unwrap()
    }

    async fn refetch(&self, tenant: &Tenant, revision: Option<u64>) -> Result<TenantPool, SinkError> {
        self.manager.send(Refetch { tenant: tenant.clone(), revision, span: Span::NONE }).await.unwrap()
    }

    async fn knows(&self, tenant: &Tenant) -> bool {
        self.manager.send(GetUsage(tenant.clone())).await.unwrap().is_some()
    }

    async fn gone(&self, tenant: &Tenant) {
        self.manager.send(TenantGone(tenant.clone())).await.unwrap();
    }
}

async fn closed(database: &Database) {
    until("it is closed", || database.is_closed()).await;
}

/// Whether two are one: closes both, so it comes last.
async fn are_one(a: &Database, b: &Database) -> bool {
    assert!(!a.is_closed() && !b.is_closed());
    a.close(Duration::ZERO).await;
    b.is_closed()
}

fn directory_error(result: Result<TenantPool, SinkError>) -> DirectoryError {
    match result {
        Err(SinkError::Directory(error)) => error,
        other => panic!("{other:?}"),
    }
}

// -- look-ups ----------------------------------------------------------------------------------------------------

#[actix::test]
async fn many_ask_and_one_look_up_answers_them_all() {
    tokio::time::pause();
    let bench = Bench::new();
    let (a, b) = (tenant("a"), tenant("b"));
    bench.directory.knows(&a, database("a", "p"));
    bench.directory.knows(&b, database("b", "p"));
    bench.directory.shut();
    let asking = join_all((0..20).map(|_| bench.get(&a)));
    let opening = async {
        until("the look-up has begun", || bench.directory.look_ups() == 1).await;
        let other = tokio::time::timeout(secs(1), bench.get(&b)).await;
        assert!(other.is_err(), "the gate is shut for all");
        assert_eq!(bench.directory.look_ups(), 2, "but no tenant waits behind another");
        bench.directory.open();
    };
    let (pools, ()) = tokio::join!(asking, opening);
    let revision = pools[0].as_ref().unwrap().revision;
    assert!(pools.iter().all(|pool| pool.as_ref().unwrap().revision == revision));
    assert_eq!(bench.directory.look_ups(), 2);
    let (one, other) = (&pools[0].as_ref().unwrap().database, &pools[19].as_ref().unwrap().database);
    assert!(are_one(one, other).await);
}

#[actix::test]
async fn what_is_known_is_served_at_once_and_looked_up_again_behind_it() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    bench.directory.knows(&a, database("a", "p"));
    let first = bench.get(&a).await.unwrap();
    tokio::time::sleep(secs(59)).await;
    for _ in 0..100 {
        bench.get(&a).await.unwrap();
    }
    assert_eq!(bench.directory.look_ups(), 1, "it is fresh");

    tokio::time::sleep(secs(2)).await;
    bench.directory.shut();
    for _ in 0..10 {
        let served = tokio::time::timeout(Duration::ZERO, bench.get(&a)).await.unwrap().unwrap();
        assert_eq!(served.revision, first.revision);
    }
    assert_eq!(bench.directory.look_ups(), 2, "one look-up behind all of them");
    bench.directory.knows(&a, database("moved", "p"));
    bench.directory.open();
    closed(&first.database).await;
    let second = bench.get(&a).await.unwrap();
    assert!(second.revision > first.revision);
    assert_eq!(second.database.spec().database, "moved");
    assert_eq!(bench.directory.look_ups(), 2);
}

#[actix::test]
async fn the_same_settings_change_nothing() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    bench.directory.knows(&a, database("a", "p"));
    let first = bench.get(&a).await.unwrap();
    let again = bench.refetch(&a, None).await.unwrap();
    assert_eq!((bench.directory.look_ups(), again.revision), (2, first.revision));
    assert!(are_one(&first.database, &again.database).await);
}

#[actix::test]
async fn a_rotated_password_makes_another_revision_and_closes_the_old_connections() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    bench.directory.knows(&a, database("a", "old"));
    let old = bench.get(&a).await.unwrap();
    bench.directory.knows(&a, database("a", "new"));
    let new = bench.refetch(&a, Some(old.revision)).await.unwrap();
    assert!(new.revision > old.revision);
    assert_eq!(new.database.spec().password.expose_secret(), "new");
    closed(&old.database).await;
    assert!(!new.database.is_closed());

    // Another flush failed with the old one, and learns of the new one without a look-up.
    let look_ups = bench.directory.look_ups();
    let late = bench.refetch(&a, Some(old.revision)).await.unwrap();
    assert_eq!((late.revision, bench.directory.look_ups()), (new.revision, look_ups));
}

#[actix::test]
async fn a_tenants_weight_reaches_its_connections() {
    let weights = Weights::parse(&["heavy=4"]).unwrap();
    let bench = Bench::with(ManagerOptions { weights, ..ManagerOptions::default() });
    let (heavy, other) = (tenant("heavy"), tenant("other"));
    bench.directory.knows(&heavy, database("one", "p"));
    bench.directory.knows(&other, database("one", "p"));
    let (first, second) = (bench.get(&heavy).await.unwrap(), bench.get(&other).await.unwrap());
    assert_eq!((first.database.spec().weight.get(), second.database.spec().weight.get()), (4, 1));
}

/// A server that takes no writes for an hour, with three hundred tenants that try every two seconds.
#[actix::test]
async fn a_server_that_fails_for_all_its_tenants_costs_the_tenant_service_little() {
    tokio::time::pause();
    let bench = Bench::with(ManagerOptions { settings_ttl: secs(3600), ..ManagerOptions::default() });
    let tenants: Vec<Tenant> = (0..300).map(|n| tenant(&format!("t{n}"))).collect();
    for tenant in &tenants {
        bench.directory.knows(tenant, database(tenant.label(), "p"));
        bench.get(tenant).await.unwrap();
    }
    assert_eq!(bench.directory.look_ups(), 300);
    for _ in 0..300 {
        tokio::time::sleep(secs(2)).await;
        for tenant in &tenants {
            bench.manager.send(Doubt { tenant: tenant.clone(), span: Span::NONE }).await.unwrap();
        }
    }
    // Ten minutes: two a second, and ten at once at the beginning.
    let look_ups = bench.directory.look_ups() - 300;
    assert!((1_100..=1_210).contains(&look_ups), "{look_ups}");

    // Settings that are refused are looked up at once all the same, a hundred of them.
    let refused = bench.directory.look_ups();
    for tenant in &tenants {
        bench.directory.knows(tenant, database(tenant.label(), "rotated"));
    }
    let revisions = join_all(tenants.iter().map(|tenant| bench.get(tenant))).await;
    let newer = join_all(
        tenants
            .iter()
            .zip(&revisions)
            .map(|(tenant, pool)| bench.refetch(tenant, Some(pool.as_ref().unwrap().revision))),
    )
    .await;
    let changed = newer
        .iter()
        .filter(|pool| pool.as_ref().unwrap().database.spec().password.expose_secret() == "rotated");
    assert!((100..=102).contains(&changed.count()));
    assert!(bench.directory.look_ups() - refused <= 102);
    // An operator's order is not bounded, and what was looked up just now is not doubted.
    let last = tenants.last().unwrap();
    let ordered = bench.refetch(last, None).await.unwrap();
    assert_eq!(ordered.database.spec().password.expose_secret(), "rotated");
    let look_ups = bench.directory.look_ups();
    bench.manager.send(Doubt { tenant: last.clone(), span: Span::NONE }).await.unwrap();
    assert_eq!(bench.directory.look_ups(), look_ups);
}

#[actix::test]
async fn what_a_tenant_asks_for_is_clamped() {
    tokio::time::pause();
    let bench = Bench::new();
    let limits = |conns: Option<u32>, timeout: Option<u64>| ConnectionSettings {
        max_open_conns: conns,
        max_idle_conns: None,
        statement_timeout: timeout.map(secs),
    };
    let cases =
        [(limits(None, None), 2, 10), (limits(Some(25), Some(30)), 2, 10), (limits(Some(1), Some(3)), 1, 3)];
    for (n, (settings, connections, timeout)) in cases.into_iter().enumerate() {
        let a = tenant(&format!("t{n}"));
        bench.directory.knows(&a, TenantDatabase { settings, ..database("a", "p") });
        let pool = bench.get(&a).await.unwrap();
        let spec = pool.database.spec();
        assert_eq!((spec.max_connections, spec.statement_timeout), (connections, Some(secs(timeout))));
    }
}

#[actix::test]
async fn a_database_at_a_link_local_address_is_refused_unless_allowed() {
    tokio::time::pause();
    let a = tenant("a");
    let settings = TenantDatabase { host: "169.254.0.1".to_owned(), ..database("a", "p") };
    let refusing = Bench::with(ManagerOptions::default());
    refusing.directory.knows(&a, settings.clone());
    let error = directory_error(refusing.get(&a).await);
    assert!(matches!(&error, DirectoryError::Malformed { field, .. } if field == "host"), "{error}");
    assert!(error.to_string().contains("postgres.allow_link_local"), "{error}");
    let allowing = Bench::with(ManagerOptions { allow_link_local: true, ..ManagerOptions::default() });
    allowing.directory.knows(&a, settings);
    allowing.refetch(&a, None).await.unwrap();
}

#[actix::test]
async fn where_tls_is_required_settings_without_it_are_refused() {
    tokio::time::pause();
    let bench = Bench::with(ManagerOptions { require_tls: true, ..ManagerOptions::default() });
    let a = tenant("a");
    let with = |tls| TenantDatabase { tls, ..database("a", "p") };
    for tls in [TlsMode::Disable, TlsMode::Prefer] {
        bench.directory.knows(&a, with(tls));
        let error = directory_error(bench.get(&a).await);
        assert!(matches!(&error, DirectoryError::Malformed { field, .. } if field == "sslmode"), "{error}");
    }
    for tls in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        bench.directory.knows(&a, with(tls));
        bench.refetch(&a, None).await.unwrap();
    }
    // What was known stays in force where the new answer can't be used.
    bench.directory.knows(&a, with(TlsMode::Disable));
    let pool = bench.refetch(&a, None).await.unwrap();
    assert_eq!(pool.database.spec().tls, TlsMode::VerifyFull);
}

// -- shared databases --------------------------------------------------------------------------------------------

#[actix::test]
async fn schema_tenants_of_one_database_share_it_until_the_last_has_gone() {
    tokio::time::pause();
    let bench = Bench::new();
    let (a, b) = (tenant("a"), tenant("b"));
    bench.directory.knows(&a, schema("shared", "tenant_a"));
    bench.directory.knows(&b, schema("shared", "tenant_b"));
    let pools = [bench.get(&a).await.unwrap(), bench.get(&b).await.unwrap()];
    assert_ne!(format!("{:?}", pools[0].table), format!("{:?}", pools[1].table));
    bench.gone(&a).await;
    tokio::time::sleep(secs(30)).await;
    assert!(!pools[0].database.is_closed(), "the other works with it");
    bench.gone(&b).await;
    closed(&pools[0].database).await;
    assert!(pools[1].database.is_closed(), "it was one");
}

#[actix::test]
async fn one_of_two_that_share_moves_and_the_other_stays() {
    tokio::time::pause();
    let bench = Bench::new();
    let (a, b) = (tenant("a"), tenant("b"));
    bench.directory.knows(&a, schema("shared", "tenant_a"));
    bench.directory.knows(&b, schema("shared", "tenant_b"));
    let (old, stays) = (bench.get(&a).await.unwrap(), bench.get(&b).await.unwrap());
    bench.directory.knows(&a, schema("elsewhere", "tenant_a"));
    let moved = bench.refetch(&a, None).await.unwrap();
    tokio::time::sleep(secs(30)).await;
    assert!(!stays.database.is_closed());
    assert!(!are_one(&moved.database, &stays.database).await);
    assert!(
        are_one(&stays.database, &bench.get(&b).await.unwrap().database).await || old.database.is_closed()
    );
}

#[actix::test]
async fn what_differs_in_anything_is_not_shared() {
    tokio::time::pause();
    let bench = Bench::new();
    let base = || schema("shared", "s");
    let others = [
        TenantDatabase { password: String::from("wrong").into(), ..base() },
        TenantDatabase { username: "somebody".to_owned(), ..base() },
        TenantDatabase { database: "other".to_owned(), ..base() },
        TenantDatabase { port: 2, ..base() },
        TenantDatabase { tls: TlsMode::Require, ..base() },
    ];
    for (n, other) in others.into_iter().enumerate() {
        let (a, b) = (tenant(&format!("a{n}")), tenant(&format!("b{n}")));
        bench.directory.knows(&a, base());
        bench.directory.knows(&b, other);
        let (one, other) = (bench.get(&a).await.unwrap(), bench.get(&b).await.unwrap());
        assert!(!are_one(&one.database, &other.database).await, "case {n}");
    }
}

#[actix::test]
async fn a_closed_database_is_not_given_to_another_tenant() {
    tokio::time::pause();
    let bench = Bench::new();
    let (a, b) = (tenant("a"), tenant("b"));
    bench.directory.knows(&a, schema("shared", "tenant_a"));
    bench.directory.knows(&b, schema("shared", "tenant_b"));
    bench.get(&a).await.unwrap().database.close(Duration::ZERO).await;
    assert!(!bench.get(&b).await.unwrap().database.is_closed());
}

// -- tenants that must not be served -----------------------------------------------------------------------------

#[actix::test]
async fn a_suspended_tenant_gets_no_pool_but_for_its_last_flush_and_the_same_again_when_reactivated() {
    tokio::time::pause();
    for refusal in [DirectoryError::Suspended, DirectoryError::Purged, DirectoryError::NotFound] {
        let bench = Bench::new();
        let a = tenant("a");
        bench.directory.knows(&a, database("a", "p"));
        let first = bench.get(&a).await.unwrap();
        bench.directory.refuses(&a, refusal.clone());
        assert_eq!(directory_error(bench.refetch(&a, None).await), refusal);
        assert_eq!(directory_error(bench.get(&a).await), refusal);
        assert_eq!(bench.get_last(&a).await.unwrap().revision, first.revision);
        assert!(!first.database.is_closed());

        bench.directory.knows(&a, database("a", "p"));
        assert_eq!(bench.get(&a).await.unwrap().revision, first.revision);
        assert!(!first.database.is_closed());
        let look_ups = bench.directory.look_ups();
        for _ in 0..10 {
            bench.get(&a).await.unwrap();
        }
        assert_eq!(bench.directory.look_ups(), look_ups, "it is known again");
    }
}

#[actix::test]
async fn a_refused_tenant_stays_refused_while_the_service_is_ill() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    bench.directory.knows(&a, database("a", "p"));
    bench.get(&a).await.unwrap();
    bench.directory.refuses(&a, DirectoryError::Suspended);
    bench.refetch(&a, None).await.unwrap_err();
    bench.directory.refuses(&a, DirectoryError::unavailable("down"));
    assert_eq!(directory_error(bench.get(&a).await), DirectoryError::Suspended);
}

#[actix::test]
async fn an_unknown_tenant_has_no_pool_not_even_a_last() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    assert_eq!(directory_error(bench.get(&a).await), DirectoryError::NotFound);
    assert_eq!(directory_error(bench.get_last(&a).await), DirectoryError::NotFound);
    assert!(!bench.knows(&a).await);
}

// -- an ill service ----------------------------------------------------------------------------------------------

#[actix::test]
async fn an_ill_service_changes_nothing_about_what_is_known_and_is_not_pestered() {
    tokio::time::pause();
    let ill = [
        Reply::Answer(Err(DirectoryError::unavailable("500"))),
        Reply::Answer(Err(DirectoryError::Unauthorized)),
        Reply::Answer(Err(DirectoryError::malformed("body", "broken"))),
        Reply::Panic,
        // A schema that can't be quoted.
        Reply::Answer(Ok(schema("a", "with\0nul"))),
        // Settings that open no database.
        Reply::Answer(Ok(TenantDatabase { username: String::new(), ..database("a", "p") })),
    ];
    for (n, reply) in ill.into_iter().enumerate() {
        let bench = Bench::new();
        let a = tenant("a");
        bench.directory.knows(&a, database("a", "p"));
        let first = bench.get(&a).await.unwrap();
        bench.directory.says(&a, reply);
        assert_eq!(bench.refetch(&a, None).await.unwrap().revision, first.revision, "case {n}");
        tokio::time::sleep(secs(3600)).await;
        let look_ups = bench.directory.look_ups();
        // A hundred flushes a second, for ten seconds.
        for _ in 0..1000 {
            assert_eq!(bench.get(&a).await.unwrap().revision, first.revision, "case {n}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let asked = bench.directory.look_ups() - look_ups;
        assert!((4..=7).contains(&asked), "case {n}: asked {asked} times in ten seconds");
        assert!(!first.database.is_closed());
    }
}

#[actix::test]
async fn who_is_not_known_yet_gets_the_service_s_error_and_another_try_the_next_time() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    bench.directory.says(&a, Reply::Panic);
    assert!(directory_error(bench.get(&a).await).is_transient());
    bench.directory.knows(&a, schema("a", ""));
    assert!(matches!(bench.get(&a).await, Err(SinkError::Schema(_))));
    bench.directory.knows(&a, TenantDatabase { username: String::new(), ..database("a", "p") });
    assert!(matches!(bench.get(&a).await, Err(SinkError::Store(_))));
    bench.directory.knows(&a, database("a", "p"));
    bench.get(&a).await.unwrap();
}

#[actix::test]
async fn a_look_up_without_an_answer_ends_by_itself() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    bench.directory.shut();
    assert!(directory_error(bench.get(&a).await).is_transient());
    bench.directory.open();
    bench.directory.knows(&a, database("a", "p"));
    bench.get(&a).await.unwrap();
}

#[actix::test]
async fn an_idle_tenant_is_still_known_when_the_service_is_ill() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    bench.directory.knows(&a, database("a", "p"));
    let first = bench.get(&a).await.unwrap().revision;
    bench.directory.refuses(&a, DirectoryError::unavailable("down"));
    tokio::time::sleep(secs(24 * 3600)).await;
    assert_eq!(bench.get(&a).await.unwrap().revision, first);
}

// -- the end -----------------------------------------------------------------------------------------------------

#[actix::test]
async fn a_tenant_that_has_gone_is_forgotten_and_its_database_closed() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    bench.directory.knows(&a, database("a", "p"));
    let first = bench.get(&a).await.unwrap();
    bench.gone(&a).await;
    closed(&first.database).await;
    assert!(!bench.knows(&a).await);
    let again = bench.get(&a).await.unwrap();
    assert!(again.revision > first.revision && !again.database.is_closed(), "it came back");
}

#[actix::test]
async fn a_look_up_for_a_tenant_that_went_meanwhile_leaves_nothing() {
    tokio::time::pause();
    let bench = Bench::new();
    let a = tenant("a");
    bench.directory.knows(&a, database("a", "p"));
    bench.directory.shut();
    let asking = bench.get(&a);
    let going = async {
        until("the look-up has begun", || bench.directory.look_ups() == 1).await;
        bench.gone(&a).await;
    };
    let (answer, ()) = tokio::join!(asking, going);
    assert!(matches!(answer, Err(SinkError::ManagerGone)), "a caller that waits gets the error at once");
    bench.directory.open();
    tokio::time::sleep(secs(1)).await;
    assert!(!bench.knows(&a).await, "a database that would never be closed");

    // It goes and comes back while a look-up is under way: that answer is wanted again.
    bench.directory.shut();
    let asking = bench.get(&a);
    let going = async {
        until("the look-up has begun", || bench.directory.look_ups() == 2).await;
        bench.gone(&a).await;
        let (pool, ()) = tokio::join!(bench.get(&a), async { bench.directory.open() });
        pool.unwrap();
    };
    let (answer, ()) = tokio::join!(asking, going);
    assert!(answer.is_err());
    assert!(bench.knows(&a).await);
}

#[actix::test]
async fn closing_all_closes_each_answers_who_waits_and_gives_nothing_out_afterwards() {
    tokio::time::pause();
    let bench = Bench::new();
    let (a, b) = (tenant("a"), tenant("b"));
    bench.directory.knows(&a, database("a", "p"));
    bench.directory.knows(&b, database("b", "p"));
    let pool = bench.get(&a).await.unwrap();
    bench.directory.shut();
    let asking = bench.get(&b);
    let closing = async {
        until("the look-up has begun", || bench.directory.look_ups() == 2).await;
        bench.manager.send(CloseAll { grace: secs(1) }).await.unwrap();
        assert!(pool.database.is_closed());
    };
    let (answer, ()) = tokio::join!(asking, closing);
    assert!(matches!(answer, Err(SinkError::ManagerGone)));
    bench.directory.open();
    tokio::time::sleep(secs(1)).await;
    assert!(!bench.knows(&b).await, "a look-up that ends later opens nothing");
    for answer in [bench.get(&a).await, bench.get_last(&a).await, bench.refetch(&a, None).await] {
        assert!(matches!(answer, Err(SinkError::ManagerGone)));
    }
}
