#![allow(clippy::unwrap_used)]
use std::time::Duration;

use proptest::prelude::*;
use secrecy::ExposeSecret;
use serde_json::json;

use super::*;

const PASSWORD: &str = "hunter2-very-secret";

fn ids(parsed: &ParsedListing) -> Vec<&str> {
    parsed.listing.tenants.iter().map(|listed| listed.tenant.label()).collect()
}

fn answer() -> Value {
    json!({"id": "acme", "tenantSlug": "acme", "tenantName": "Acme", "service": "ledger", "status": "active",
        "isolationMode": "isolated",
        "databases": {"transaction": {
            "postgresql": {"host": "db", "port": 5432, "database": "ledger", "username": "midaz",
                "password": PASSWORD, "schema": "", "sslmode": "require", "sslrootcert": "/etc/ca.pem", "sslcert": "", "sslkey": ""},
            "postgresqlReplica": {},
            "connectionSettings": {"maxOpenConns": 25, "maxIdleConns": 5, "statementTimeout": "30s"}}},
        "connectionSettings": {"maxOpenConns": 99, "maxIdleConns": 98}})
}

fn read(answer: &Value) -> Result<TenantDatabase, DirectoryError> {
    parse_connections(answer.to_string().as_bytes()).map_err(Into::into)
}

/// The answer with the value at `pointer` (its parent must exist) replaced.
fn with(pointer: &str, value: Value) -> Value {
    let mut answer = answer();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    answer.pointer_mut(parent).unwrap()[name] = value;
    answer
}

const POSTGRES: &str = "/databases/transaction/postgresql";

#[test]
fn a_list_is_read_and_broken_entries_fail_alone() {
    let body = json!([
        {"id": "a", "name": "Acme", "status": "active"},
        {"id": "b", "status": "ACTIVE", "extra": [1]},
        {"id": "c", "name": "C", "status": "suspended"},
        {"id": "no/good", "name": "x", "status": "active"},
        {"name": "no id", "status": "active"},
        {"id": 7, "status": "active"},
        {"id": null},
        {"id": "weird", "status": 1},
        {"id": "a", "name": "again", "status": "active"},
        {"id": "d"},
        {"id": "e", "name": 5, "status": ""},
        "text", null, 3, [],
    ]);
    let parsed = parse_listing(body.to_string().as_bytes()).unwrap();
    assert_eq!(ids(&parsed), ["a", "b", "d", "e"]);
    let names: Vec<_> = parsed.listing.tenants.iter().map(|listed| listed.name.as_str()).collect();
    assert_eq!(names, ["Acme", "b", "d", "e"]);
    assert_eq!((parsed.not_active, parsed.duplicates), (1, 1));
    let refused = &parsed.listing.refused;
    assert_eq!(
        refused.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(),
        ["no/good", "", "", "", "weird", "", "", "", ""]
    );
    assert!(refused.iter().all(|r| !r.reason.is_empty()));
}

#[test]
fn a_refused_id_is_safe_to_log() {
    let nasty = format!("x\n\u{1b}[31m{}", "y".repeat(100_000));
    let parsed = parse_listing(json!([{ "id": nasty }]).to_string().as_bytes()).unwrap();
    let refused = &parsed.listing.refused[0];
    assert!(refused.id.len() < 300 && !refused.id.contains(['\n', '\u{1b}']), "{:?}", refused.id);
    assert!(refused.reason.len() < 1000 && !refused.reason.contains(['\n', '\u{1b}']));
}

#[test]
fn what_is_no_list_is_an_ill_service_and_not_an_empty_list() {
    for body in [
        "",
        "  \n",
        "{}",
        "null",
        "\"x\"",
        "<html></html>",
        "[{\"id\": \"a\"}",
        "[{\"id\": \"a\"",
        "[] x",
        "\u{0}",
    ] {
        let error = DirectoryError::from(parse_listing(body.as_bytes()).unwrap_err());
        assert!(
            matches!(&error, DirectoryError::Malformed { field, .. } if field == "body"),
            "{body:?}: {error}"
        );
        assert!(error.is_transient());
    }
    assert_eq!(parse_listing(b"[]").unwrap(), ParsedListing::default());
    let text = |body: &str| DirectoryError::from(parse_listing(body.as_bytes()).unwrap_err()).to_string();
    assert!(text("").contains("empty") && text("{}").contains("not an array") && text("[1").contains("ends"));
}

#[test]
fn a_full_answer() {
    let database = read(&answer()).unwrap();
    assert_eq!((database.host.as_str(), database.port), ("db", 5432));
    assert_eq!(database.password.expose_secret(), PASSWORD);
    assert_eq!(database.schema, None);
    assert_eq!(database.tls, TlsMode::Require);
    assert_eq!(database.root_cert.as_deref(), Some(std::path::Path::new("/etc/ca.pem")));
    assert_eq!((database.cert, database.key), (None, None));
    let expected = ConnectionSettings {
        max_open_conns: Some(25),
        max_idle_conns: Some(5),
        statement_timeout: Some(Duration::from_secs(30)),
    };
    assert_eq!(database.settings, expected);
}

#[test]
fn settings_of_the_module_else_of_the_tenant_else_none() {
    const MODULE_SETTINGS: &str = "/databases/transaction/connectionSettings";
    let settings = |answer: &Value| read(answer).unwrap().settings;
    for nothing in [Value::Null, json!({})] {
        let of_tenant = settings(&with(MODULE_SETTINGS, nothing.clone()));
        assert_eq!((of_tenant.max_open_conns, of_tenant.max_idle_conns), (Some(99), Some(98)));
        let mut none = with(MODULE_SETTINGS, nothing);
        none.as_object_mut().unwrap().remove("connectionSettings");
        assert_eq!(settings(&none), ConnectionSettings::default());
    }
    let zeros = json!({"maxOpenConns": 0, "maxIdleConns": -1, "statementTimeout": ""});
    assert_eq!(settings(&with(MODULE_SETTINGS, zeros)), ConnectionSettings::default());
    let number = settings(&with(MODULE_SETTINGS, json!({"statementTimeout": 1500})));
    assert_eq!(number.statement_timeout, Some(Duration::from_millis(1500)));
}

#[test]
fn isolation_modes() {
    for mode in [json!(""), Value::Null, json!("isolated"), json!("Database"), json!("ISOLATED")] {
        let mut answer = with("/isolationMode", mode);
        answer.pointer_mut(POSTGRES).unwrap()["schema"] = json!("left_over");
        assert_eq!(read(&answer).unwrap().schema, None, "a schema counts in schema mode only");
    }
    let mut schema = with("/isolationMode", json!("Schema"));
    let error = read(&schema).unwrap_err().to_string();
    assert!(error.contains("databases.transaction.postgresql.schema"), "{error}");
    schema.pointer_mut(POSTGRES).unwrap()["schema"] = json!("tenant_acme");
    assert_eq!(read(&schema).unwrap().schema.as_deref(), Some("tenant_acme"));
    let error = read(&with("/isolationMode", json!("shared"))).unwrap_err().to_string();
    assert!(
        error.contains("isolationMode") && error.contains("shared") && error.contains("schema"),
        "{error}"
    );
}

#[test]
fn errors_name_the_field_and_hide_the_password() {
    let pg = |name: &str, value: Value| {
        (format!("databases.transaction.postgresql.{name}"), with(&format!("{POSTGRES}/{name}"), value))
    };
    let module = |name: &str, value: Value| {
        let path = format!("/databases/transaction/connectionSettings/{name}");
        (format!("databases.transaction.connectionSettings.{name}"), with(&path, value))
    };
    let cases = [
        pg("host", json!("")),
        pg("host", Value::Null),
        pg("host", json!(5)),
        pg("port", json!(0)),
        pg("port", json!(65536)),
        pg("port", json!(54.32)),
        pg("port", json!(-1)),
        pg("port", json!("x")),
        pg("port", Value::Null),
        pg("database", json!("a\u{0}b")),
        pg("username", json!([])),
        pg("password", json!(123456789)),
        pg("password", json!({"value": PASSWORD})),
        pg("sslmode", json!("on")),
        pg("sslkey", json!("/key.pem")).with_field("databases.transaction.postgresql.sslcert"),
        module("maxOpenConns", json!(4294967296_u64)),
        module("maxIdleConns", json!("5")),
        module("statementTimeout", json!("soon")),
        module("statementTimeout", json!(-5)),
        ("databases.transaction.postgresql".into(), with(POSTGRES, json!({}))),
        ("databases.transaction.postgresql".into(), with("/databases/transaction", Value::Null)),
        ("databases.transaction.postgresql".into(), with("/databases", json!({"onboarding": {}}))),
        ("databases".into(), with("/databases", json!([]))),
        ("status".into(), with("/status", json!(1))),
    ];
    for (field, answer) in cases {
        let error = read(&answer).unwrap_err();
        let DirectoryError::Malformed { field: named, .. } = &error else { panic!("{field}: {error}") };
        assert_eq!(named, &field, "{error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("123456789"), "{shown}");
        assert!(error.is_transient() && !error.must_stop());
    }
    assert_eq!(read(&with(&format!("{POSTGRES}/port"), json!("6432"))).unwrap().port, 6432);
}

trait WithField {
    fn with_field(self, field: &str) -> Self;
}

impl WithField for (String, Value) {
    fn with_field(self, field: &str) -> Self {
        (field.to_owned(), self.1)
    }
}

#[test]
fn an_association_that_is_not_active_is_not_served() {
    let status = |status: &str| read(&with("/status", json!(status)));
    assert_eq!(status("suspended").unwrap_err(), DirectoryError::Suspended);
    assert_eq!(status("Purged").unwrap_err(), DirectoryError::Purged);
    assert_eq!(status("pending").unwrap_err(), DirectoryError::Forbidden { status: Some("pending".into()) });
    assert!(status("").is_ok() && status("Active").is_ok());
}

#[test]
fn broken_bodies_about_connections() {
    for body in ["", "null", "[]", "<html>", "{\"id\": \"acme\"", "7"] {
        let error = parse_connections(body.as_bytes()).unwrap_err();
        assert!(matches!(error, WireError::Body(_)), "{body:?}: {error:?}");
    }
}

#[test]
fn refusals() {
    assert_eq!(
        refusal(br#"{"code": "TS-1", "error": "x", "status": "suspended"}"#),
        DirectoryError::Suspended
    );
    assert_eq!(refusal(br#"{"status": "PURGED"}"#), DirectoryError::Purged);
    assert_eq!(
        refusal(br#"{"status": "frozen"}"#),
        DirectoryError::Forbidden { status: Some("frozen".into()) }
    );
    for body in ["", "<html>suspended</html>", "{}", "[]", r#"{"status": 5}"#, r#"{"status": "#] {
        assert_eq!(refusal(body.as_bytes()), DirectoryError::Forbidden { status: None }, "{body:?}");
    }
    assert_eq!(
        refusal(br#"{"status": "active"}"#),
        DirectoryError::Forbidden { status: Some("active".into()) }
    );
}

#[test]
fn a_not_found_of_something_in_between_is_distinguished() {
    assert!(is_own_not_found(b"") && is_own_not_found(br#"{"error": "not found"}"#));
    for body in ["404 page not found\n", "<html>404</html>", "default backend - 404", "null"] {
        assert!(!is_own_not_found(body.as_bytes()), "{body:?}");
    }
}

proptest! {
    #[test]
    fn no_body_makes_the_parsers_panic_or_leak(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_listing(&body);
        let _ = parse_connections(&body);
        let _ = (refusal(&body), is_own_not_found(&body));
    }

    /// Whatever stands in one field, the password never shows.
    #[test]
    fn no_field_makes_an_error_show_the_password(
        field in proptest::sample::select(vec![
            "host", "port", "database", "username", "schema", "sslmode", "sslcert", "sslkey",
        ]),
        value in prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(Value::Null),
            Just(json!([])),
        ],
    ) {
        let shown = format!("{:?}", read(&with(&format!("{POSTGRES}/{field}"), value)));
        prop_assert!(!shown.contains("hunter2"), "{}", shown);
    }
}
