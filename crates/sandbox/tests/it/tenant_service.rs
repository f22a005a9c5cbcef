//! The tenant service: what the protocol says, and its faults.

use std::time::{Duration, Instant};

use balance_sync_sandbox::{
    ServiceFault, ServiceRoute, TenantIsolation, TenantRecord, TenantService, TenantStatus,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIST: &str = "/v1/tenants/active?service=ledger";
const ACME: &str = "/v1/tenants/acme/associations/ledger/connections";

fn acme() -> TenantRecord {
    TenantRecord {
        id: "acme".into(),
        name: "Acme".into(),
        slug: "acme".into(),
        isolation: TenantIsolation::Schema,
        host: "127.0.0.1".into(),
        port: 5432,
        database: "d".into(),
        username: "u".into(),
        password: "hidden".into(),
        schema: Some("s".into()),
        status: TenantStatus::Active,
        max_open_conns: Some(7),
        statement_timeout: Some("30s".into()),
    }
}

/// Status and body of a GET, after HTTP/1.0, which has no chunks.
async fn get(service: &TenantService, path: &str, key: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", service.port())).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nX-API-Key: {key}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn get_json(service: &TenantService, path: &str) -> (u16, Value) {
    let (status, body) = get(service, path, "key").await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn answers_as_the_protocol_says() {
    let service = TenantService::start("key".into()).unwrap();
    assert!(!format!("{service:?} {:?}", acme()).contains("hidden"));
    assert_eq!(get_json(&service, LIST).await, (200, serde_json::json!([])));
    service.set_tenant(acme());
    let listed = serde_json::json!([{"id": "acme", "name": "Acme", "status": "active"}]);
    assert_eq!(get_json(&service, LIST).await, (200, listed));
    assert_eq!(get_json(&service, "/v1/tenants/active?service=other").await.1, serde_json::json!([]));

    let (status, found) = get_json(&service, ACME).await;
    assert_eq!(
        (status, &found["isolationMode"], &found["tenantSlug"]),
        (200, &"schema".into(), &"acme".into())
    );
    let module = &found["databases"]["transaction"];
    let expected = serde_json::json!({"host": "127.0.0.1", "port": 5432, "database": "d", "username": "u",
        "password": "hidden", "schema": "s", "sslmode": "disable"});
    assert_eq!(module["postgresql"], expected);
    assert_eq!(module["connectionSettings"]["maxOpenConns"], 7);
    assert_eq!(module["connectionSettings"]["statementTimeout"], "30s");

    assert_eq!(get(&service, LIST, "wrong").await.0, 401);
    assert_eq!(get(&service, ACME, "").await.0, 401);
    assert_eq!(service.refused_calls(), 2);
    assert_eq!(get(&service, "/v1/tenants/none/associations/ledger/connections", "key").await.0, 404);
    assert_eq!(get(&service, "/v1/tenants/acme/associations/other/connections", "key").await.0, 404);

    for (status, name) in [(TenantStatus::Suspended, "suspended"), (TenantStatus::Purged, "purged")] {
        assert!(service.update("acme", |tenant| tenant.status = status));
        assert_eq!(get_json(&service, LIST).await.1, serde_json::json!([]));
        let (code, body) = get_json(&service, ACME).await;
        assert_eq!((code, &body["status"]), (403, &name.into()));
    }
    assert!(service.remove_tenant("acme").is_some());
    assert_eq!(get(&service, ACME, "key").await.0, 404);
    assert!(!service.update("acme", |_| {}));
    assert_eq!((service.calls(ServiceRoute::List), service.calls(ServiceRoute::Connections)), (5, 6));
}

#[tokio::test]
async fn is_ill_on_demand() {
    let service = TenantService::start("key".into()).unwrap();
    service.set_tenant(acme());
    service.set_fault(ServiceRoute::List, ServiceFault::Status(503));
    assert_eq!(get(&service, LIST, "key").await.0, 503);
    assert_eq!(get(&service, ACME, "key").await.0, 200, "the fault of one route is on the other");

    service.set_faults(ServiceFault::Garbage);
    for path in [LIST, ACME] {
        let (status, body) = get(&service, path, "key").await;
        assert!(status == 200 && serde_json::from_str::<Value>(&body).is_err());
    }
    service.set_faults(ServiceFault::EmptyBody);
    assert_eq!(get(&service, LIST, "key").await, (200, String::new()));
    service.set_faults(ServiceFault::EmptyList);
    assert_eq!(get(&service, LIST, "key").await, (200, "[]".into()));

    let delay = Duration::from_millis(100);
    service.set_faults(ServiceFault::Slow(delay));
    let start = Instant::now();
    assert_eq!(get(&service, ACME, "key").await.0, 200);
    assert!(start.elapsed() >= delay);

    service.set_faults(ServiceFault::HugeBody(1_000_000));
    let (status, body) = get(&service, LIST, "key").await;
    // In chunks, so that no header warns of its size.
    assert!(status == 200 && body.len() > 1_000_000 && body.contains("\"id\":\"acme\""));

    service.set_faults(ServiceFault::None);
    service.set_list_raw(Some("[{\"id\": \"../x\"}]"));
    assert_eq!(get(&service, LIST, "key").await.1, "[{\"id\": \"../x\"}]");
    service.set_list_raw(None);
    service.set_connections_raw("acme", Some("{}"));
    assert_eq!(get(&service, ACME, "key").await.1, "{}");
    service.set_connections_raw("acme", None);
    assert_eq!(get_json(&service, ACME).await.1["id"], "acme");

    // Its end must not wait for a hanging call.
    service.set_faults(ServiceFault::Hang);
    let mut stream = TcpStream::connect(("127.0.0.1", service.port())).await.unwrap();
    stream.write_all(format!("GET {LIST} HTTP/1.0\r\nX-API-Key: key\r\n\r\n").as_bytes()).await.unwrap();
    assert!(timeout(Duration::from_millis(100), stream.read(&mut [0; 1])).await.is_err());
    let start = Instant::now();
    drop(service);
    assert!(start.elapsed() < Duration::from_secs(30), "the end took {:?}", start.elapsed());
}
