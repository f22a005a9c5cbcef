//! The tenant service client against a real server on a real socket, well and ill.
#![allow(clippy::unwrap_used)]

mod support;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use balance_sync_domain::TenantId;
use balance_sync_tenants::{
    BreakerState, DirectoryError, Listing, ServiceDirectory, ServiceSettings, Tenant, TenantDirectory,
};
use futures::future::join_all;
use secrecy::ExposeSecret;
use support::{API_KEY, PASSWORD, Reply, Server, answer, connections, list};
use tokio::sync::Semaphore;

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

fn tenant(id: &str) -> Tenant {
    Tenant::Id(TenantId::parse(id).unwrap())
}

fn directory(settings: ServiceSettings) -> ServiceDirectory {
    ServiceDirectory::new(settings).unwrap()
}

fn labels(listing: &Listing) -> Vec<&str> {
    listing.tenants.iter().map(|listed| listed.tenant.label()).collect()
}

/// Asks a server with one reply for the list.
async fn list_error(reply: impl Fn() -> Reply + Send + Sync + 'static) -> DirectoryError {
    let server = Server::start(move |_, _| reply()).await;
    checked(directory(server.settings()).active().await.unwrap_err())
}

/// Asks a server with one reply for a database.
async fn database_error(reply: impl Fn() -> Reply + Send + Sync + 'static) -> DirectoryError {
    let server = Server::start(move |_, _| reply()).await;
    checked(directory(server.settings()).database(&tenant("acme")).await.unwrap_err())
}

/// No error shows a secret, whatever it is about.
fn checked(error: DirectoryError) -> DirectoryError {
    let shown = format!("{error} {error:?} {error:#?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    error
}

#[tokio::test]
async fn asks_as_the_contract_says() {
    let server = Server::start(|request, _| {
        if request.target.contains("/active") { list(&["a", "b"]) } else { connections(request) }
    })
    .await;
    let mut settings = server.settings();
    settings.base_url = format!("http://{}/base/path/", server.addr).parse().unwrap();
    settings.service = "led ger/../x".into();
    let asked = directory(settings);
    assert_eq!(labels(&asked.active().await.unwrap()), ["a", "b"]);
    let _ = asked.database(&tenant("acme")).await;

    let requests = server.requests();
    assert_eq!(requests[0].target, "/base/path/v1/tenants/active?service=led+ger%2F..%2Fx");
    let path = "/base/path/v1/tenants/acme/associations/led%20ger%2F..%2Fx/connections";
    assert_eq!(requests[1].target, path);
    for request in &requests {
        assert!(request.headers.contains(&format!("x-api-key: {API_KEY}\r\n")), "{}", request.headers);
    }
}

#[tokio::test]
async fn gives_each_tenant_its_database_and_shows_no_secret() {
    let server = Server::start(|request, _| connections(request)).await;
    let directory = directory(server.settings());
    for id in ["acme", "zeta"] {
        let database = directory.database(&tenant(id)).await.unwrap();
        assert_eq!(database.host, format!("{id}.db"));
        assert_eq!(database.password.expose_secret(), PASSWORD);
        assert!(!format!("{database:?} {directory:?} {directory:#?}").contains("hunter2"));
    }
    assert_eq!(directory.database(&Tenant::Single).await.unwrap_err(), DirectoryError::NotFound);
    assert_eq!(server.hits(), 2);
}

#[tokio::test]
async fn nothing_is_cached() {
    let server = Server::start(|request, hit| {
        let Reply::Answer { status, headers, body } = connections(request) else { unreachable!() };
        Reply::Answer { status, headers, body: body.replace(PASSWORD, &format!("rotated-{hit}")) }
    })
    .await;
    let directory = directory(server.settings());
    for hit in 0..3 {
        let database = directory.database(&tenant("acme")).await.unwrap();
        assert_eq!(database.password.expose_secret(), format!("rotated-{hit}"));
    }
}

#[tokio::test]
async fn the_key_does_not_follow_a_redirect() {
    let thief = Server::start(|_, _| list(&["stolen"])).await;
    let location: &'static str = format!("location: http://{}/v1/tenants/active\r\n", thief.addr).leak();
    for status in [301, 302, 303, 307, 308] {
        let reply = move || Reply::Answer { status, headers: location, body: String::new() };
        let error = list_error(reply).await;
        assert!(error.to_string().contains("redirect") && error.is_transient(), "{error}");
        assert!(database_error(reply).await.is_transient());
    }
    assert_eq!(thief.hits(), 0);
}

/// The environment belongs to the process, so this test runs itself in another one with a proxy set.
#[tokio::test]
async fn the_key_does_not_go_to_a_proxy_of_the_environment() {
    const MARK: &str = "BALANCE_SYNC_TEST_BEHIND_PROXY";
    if std::env::var_os(MARK).is_some() {
        let server = Server::start(|_, _| list(&["direct"])).await;
        assert_eq!(labels(&directory(server.settings()).active().await.unwrap()), ["direct"]);
        return;
    }
    let proxy = Server::start(|_, _| list(&["through-proxy"])).await;
    let url = format!("http://{}", proxy.addr);
    let output = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_key_does_not_go_to_a_proxy_of_the_environment"])
        .envs([(MARK, "1"), ("HTTP_PROXY", &url), ("http_proxy", &url), ("ALL_PROXY", &url)])
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    assert_eq!(proxy.hits(), 0);
}

#[tokio::test]
async fn no_status_of_the_list_is_news_about_tenants() {
    for status in [204, 400, 401, 403, 404, 410, 429, 500, 502, 503, 504] {
        let error = list_error(move || answer(status, r#"{"status": "suspended"}"#)).await;
        assert!(!error.must_stop(), "{status}: {error}");
        let (unauthorized, forbidden) =
            (error == DirectoryError::Unauthorized, matches!(error, DirectoryError::Forbidden { .. }));
        assert_eq!((unauthorized, forbidden), (status == 401, status == 403), "{status}: {error}");
        assert_eq!(error.is_transient(), status != 403);
    }
}

#[tokio::test]
async fn statuses_of_a_tenant() {
    let not_found = |body: &'static str| database_error(move || answer(404, body));
    assert_eq!(not_found("").await, DirectoryError::NotFound);
    assert_eq!(not_found(r#"{"code": "TNT-1"}"#).await, DirectoryError::NotFound);
    for body in ["<html>nginx</html>", "404 page not found\n"] {
        let error = not_found(body).await;
        assert!(error.is_transient() && !error.must_stop(), "{error}");
    }
    let forbidden = |body: &'static str| database_error(move || answer(403, body));
    assert_eq!(
        forbidden(r#"{"code":"x","error":"y","status":"suspended"}"#).await,
        DirectoryError::Suspended
    );
    assert_eq!(forbidden(r#"{"code":"x","error":"y","status":"purged"}"#).await, DirectoryError::Purged);
    assert_eq!(forbidden("<html>").await, DirectoryError::Forbidden { status: None });
    assert_eq!(database_error(|| answer(401, "")).await, DirectoryError::Unauthorized);
    for status in [204, 301, 400, 429, 500, 503] {
        let error = database_error(move || answer(status, r#"{"status": "suspended"}"#)).await;
        assert!(matches!(error, DirectoryError::Unavailable { .. }), "{status}: {error}");
    }
}

#[tokio::test]
async fn broken_bodies_are_an_ill_service() {
    for body in ["", "garbage", "<html>200 OK</html>", "{}", "null", r#"[{"id": "a", "status": "act"#] {
        let error = list_error(move || answer(200, body)).await;
        assert!(
            matches!(&error, DirectoryError::Malformed { field, .. } if field == "body"),
            "{body}: {error}"
        );
        let error = database_error(move || answer(200, body)).await;
        assert!(error.is_transient() && !error.must_stop(), "{body}: {error}");
    }
    let leaky =
        format!(r#"{{"id":"acme","databases":{{"transaction":{{"postgresql":{{"password":"{PASSWORD}""#);
    let error = database_error(move || answer(200, leaky.clone())).await;
    assert!(matches!(error, DirectoryError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn what_is_not_http_or_ends_too_soon() {
    let raw: [&[u8]; 5] = [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[]\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n[]\r\n0\r\n\r\n",
    ];
    for bytes in raw {
        let error = list_error(move || Reply::Raw(bytes.to_vec())).await;
        assert!(matches!(error, DirectoryError::Unavailable { .. }), "{bytes:?}: {error}");
    }
}

#[tokio::test]
async fn no_server_listens() {
    let server = Server::start(|_, _| list(&[])).await;
    let settings = server.settings();
    drop(server);
    let error = checked(directory(settings).active().await.unwrap_err());
    assert!(matches!(error, DirectoryError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_not_read() {
    const MEGABYTE: usize = 1024 * 1024;
    let announced = list_error(|| answer(200, "x".repeat(11 * MEGABYTE))).await;
    assert!(announced.to_string().contains("11534336 bytes: allowed are 10485760"), "{announced}");
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
    let endless = list_error(move || Reply::Endless { head, piece: MEGABYTE, pause: Duration::ZERO }).await;
    assert!(endless.to_string().contains("more than 10485760"), "{endless}");
}

#[tokio::test]
async fn a_body_of_just_the_limit_is_read() {
    let server = Server::start(|_, _| list(&["a"])).await;
    let Reply::Answer { body, .. } = list(&["a"]) else { unreachable!() };
    let mut settings = server.settings();
    settings.max_body_bytes = body.len();
    assert_eq!(labels(&directory(settings.clone()).active().await.unwrap()), ["a"]);
    settings.max_body_bytes -= 1;
    assert!(directory(settings).active().await.is_err());
}

#[tokio::test]
async fn a_long_list_is_read() {
    let ids: Vec<String> = (0..20_000).map(|n| format!("tenant-{n}")).collect();
    let expected = ids.clone();
    let server = Server::start(move |_, _| list(&ids.iter().map(String::as_str).collect::<Vec<_>>())).await;
    assert_eq!(labels(&directory(server.settings()).active().await.unwrap()), expected);
}

#[tokio::test]
async fn hanging_anywhere_ends_within_the_limit() {
    const LIMIT: Duration = Duration::from_millis(300);
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
    let replies: [fn() -> Reply; 4] = [
        || Reply::Hang(""),
        || Reply::Hang("HTTP/1.1 200 OK\r\n"),
        || Reply::Hang("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n[{"),
        || Reply::Endless { head: "", piece: 1, pause: Duration::from_millis(10) },
    ];
    let drip = move || Reply::Endless { head, piece: 1, pause: Duration::from_millis(10) };
    let all = replies.into_iter().map(|reply| Box::new(reply) as Box<dyn Fn() -> Reply + Send + Sync>);
    for reply in all.chain([Box::new(drip) as Box<dyn Fn() -> Reply + Send + Sync>]) {
        let server = Server::start(move |_, _| reply()).await;
        let mut settings = server.settings();
        settings.request_timeout = LIMIT;
        settings.retries = 100;
        let started = Instant::now();
        let error = tokio::time::timeout(PATIENCE, directory(settings).active()).await.unwrap().unwrap_err();
        assert!(matches!(error, DirectoryError::Unavailable { .. }), "{error}");
        // Far above the limit, for a busy machine, and far below a hundred further attempts.
        assert!(started.elapsed() < LIMIT * 50, "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn transient_failures_are_retried_and_others_not() {
    for status in [500, 502, 503, 429] {
        let server =
            Server::start(move |_, hit| if hit < 2 { answer(status, "") } else { list(&["a"]) }).await;
        let mut settings = server.settings();
        settings.retries = 2;
        let directory = directory(settings);
        assert_eq!(labels(&directory.active().await.unwrap()), ["a"], "{status}");
        assert_eq!((server.hits(), directory.stats().requests, directory.stats().failures), (3, 3, 2));
    }
    for (status, body) in [(400, ""), (401, ""), (403, ""), (404, ""), (200, "garbage")] {
        let server = Server::start(move |_, _| answer(status, body)).await;
        let mut settings = server.settings();
        settings.retries = 2;
        assert!(directory(settings).active().await.is_err());
        assert_eq!(server.hits(), 1, "{status}");
    }
    let server = Server::start(|_, _| Reply::Raw(Vec::new())).await;
    let mut settings = server.settings();
    settings.retries = 2;
    assert!(directory(settings).active().await.is_err());
    assert_eq!(server.hits(), 3, "a connection that breaks is tried again");
}

#[tokio::test]
async fn a_service_that_asks_for_more_time_than_there_is_is_left_alone() {
    let server = Server::start(|_, _| Reply::Answer {
        status: 503,
        headers: "retry-after: 3600\r\n",
        body: String::new(),
    })
    .await;
    let mut settings = server.settings();
    settings.retries = 5;
    assert!(directory(settings).active().await.is_err());
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn the_breaker_opens_and_half_opens() {
    let server = Server::start(|_, hit| if hit < 3 { answer(500, "") } else { list(&["a"]) }).await;
    let mut settings = server.settings();
    settings.breaker_threshold = 3;
    settings.breaker_timeout = Duration::from_millis(700);
    let directory = directory(settings);
    for _ in 0..3 {
        assert!(matches!(directory.active().await.unwrap_err(), DirectoryError::Unavailable { .. }));
    }
    let opened = Instant::now();
    assert_eq!(directory.stats().breaker, BreakerState::Open);
    // Both calls are held back, unless this machine is so slow that the breaker half-opened meanwhile.
    for outcome in [directory.active().await.err(), directory.database(&tenant("a")).await.err()] {
        if opened.elapsed() < Duration::from_millis(600) {
            assert!(matches!(outcome, Some(DirectoryError::BreakerOpen { .. })), "{outcome:?}");
            assert_eq!(server.hits(), 3, "the service is not asked");
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = directory.active().await {
        assert!(matches!(error, DirectoryError::BreakerOpen { .. }), "{error}");
        assert!(Instant::now() < deadline, "the breaker never half-opened");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let stats = directory.stats();
    assert_eq!(stats.breaker, BreakerState::Closed);
    assert_eq!((stats.breaker_opened, stats.failures), (1, 3));
    assert!(directory.active().await.is_ok());
}

#[tokio::test]
async fn the_breaker_ends_the_retries_of_a_call() {
    let server = Server::start(|_, _| answer(500, "")).await;
    let mut settings = server.settings();
    settings.retries = 10;
    settings.breaker_threshold = 2;
    settings.breaker_timeout = PATIENCE;
    let directory = directory(settings);
    let error = directory.active().await.unwrap_err();
    assert!(error.to_string().contains("500"), "the cause is reported: {error}");
    assert_eq!(server.hits(), 2);
}

#[tokio::test]
async fn one_tenant_that_makes_the_service_fail_does_not_cut_off_the_others() {
    let server =
        Server::start(
            |request, _| {
                if request.target.contains("poison") { answer(500, "") } else { connections(request) }
            },
        )
        .await;
    let mut settings = server.settings();
    settings.breaker_threshold = 3;
    settings.breaker_timeout = PATIENCE;
    let directory = directory(settings);
    for _ in 0..10 {
        let error = directory.database(&tenant("poison")).await.unwrap_err();
        assert!(matches!(error, DirectoryError::Unavailable { .. }), "{error}");
    }
    assert!(directory.database(&tenant("good")).await.is_ok());
}

#[tokio::test]
async fn facts_about_tenants_never_open_the_breaker() {
    let bodies = [
        (404, ""),
        (403, r#"{"status":"suspended"}"#),
        (200, r#"{"status":"active","databases":{}}"#),
        (401, ""),
    ];
    for (status, body) in bodies {
        let server = Server::start(move |_, _| answer(status, body)).await;
        let mut settings = server.settings();
        settings.breaker_threshold = 1;
        let directory = directory(settings);
        for n in 0..5 {
            assert!(directory.database(&tenant(&format!("t{n}"))).await.is_err());
        }
        assert_eq!(server.hits(), 5, "{status} {body}");
    }
}

#[tokio::test]
async fn a_probe_that_is_given_up_does_not_leave_the_breaker_stuck() {
    let server = Server::start(|_, hit| match hit {
        0 => answer(500, ""),
        1 => Reply::Hang(""),
        _ => list(&["a"]),
    })
    .await;
    let mut settings = server.settings();
    settings.breaker_threshold = 1;
    settings.breaker_timeout = Duration::from_millis(1);
    let directory = directory(settings);
    assert!(directory.active().await.is_err());
    let deadline = Instant::now() + PATIENCE;
    // The probe hangs; once it has reached the server it is dropped.
    while server.hits() < 2 {
        assert!(Instant::now() < deadline);
        let _ = tokio::time::timeout(Duration::from_millis(50), directory.active()).await;
    }
    while directory.active().await.is_err() {
        assert!(Instant::now() < deadline, "the probe's place was never given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn concurrent_calls_for_one_tenant_share_a_request() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let server = Server::start_async(move |request, _| {
        let (gate, reply) = (Arc::clone(&held), connections(request));
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            reply
        })
    })
    .await;
    let directory = directory(server.settings());
    let acme = tenant("acme");
    let mut calls: Vec<_> = (0..10).map(|_| directory.database(&acme)).collect();
    let other = directory.database(&tenant("other"));
    // Who started it may go away; the others still get their answer.
    drop(calls.remove(0));
    gate.add_permits(2);
    let (databases, other) = futures::future::join(join_all(calls), other).await;
    assert!(databases.iter().all(|database| database.as_ref().unwrap().host == "acme.db"));
    assert_eq!(other.unwrap().host, "other.db", "each tenant has its own");
    assert_eq!(server.hits(), 2);

    gate.add_permits(1);
    assert!(directory.database(&acme).await.is_ok());
    assert_eq!(server.hits(), 3, "a later call asks again");
}

#[tokio::test]
async fn a_request_that_everybody_gave_up_is_started_anew() {
    let server =
        Server::start(|request, hit| if hit == 0 { Reply::Hang("") } else { connections(request) }).await;
    let directory = directory(server.settings());
    let acme = tenant("acme");
    let mut call = directory.database(&acme);
    let deadline = Instant::now() + PATIENCE;
    while server.hits() == 0 {
        assert!(Instant::now() < deadline);
        let _ = tokio::time::timeout(Duration::from_millis(5), &mut call).await;
    }
    drop(call);
    assert_eq!(directory.database(&acme).await.unwrap().host, "acme.db");
    assert_eq!(server.hits(), 2);
}

#[tokio::test]
async fn requests_at_once_are_bounded_and_the_list_does_not_wait_behind_them() {
    let (gate, now, most) =
        (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (held, running, peak) = (Arc::clone(&gate), Arc::clone(&now), Arc::clone(&most));
    let server = Server::start_async(move |request, _| {
        let (gate, now, most, reply) =
            (Arc::clone(&held), Arc::clone(&running), Arc::clone(&peak), connections(request));
        if request.target.contains("/active") {
            return Box::pin(async { list(&["a"]) });
        }
        Box::pin(async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            now.fetch_sub(1, Ordering::SeqCst);
            reply
        })
    })
    .await;
    let directory = directory(server.settings());
    let asking = directory.clone();
    let calls = tokio::spawn(async move {
        let tenants: Vec<Tenant> = (0..50).map(|n| tenant(&format!("t{n}"))).collect();
        join_all(tenants.iter().map(|tenant| asking.database(tenant))).await
    });
    let deadline = Instant::now() + PATIENCE;
    while now.load(Ordering::SeqCst) < balance_sync_tenants::service::MAX_CONCURRENT_DATABASE_REQUESTS {
        assert!(Instant::now() < deadline, "the bound was never reached");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(labels(&directory.active().await.unwrap()), ["a"]);
    gate.add_permits(50);
    assert!(calls.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(most.load(Ordering::SeqCst), balance_sync_tenants::service::MAX_CONCURRENT_DATABASE_REQUESTS);
}
