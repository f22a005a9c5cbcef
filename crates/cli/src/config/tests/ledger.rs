//! The variables that the ledger's operators already set.

use super::*;

#[test]
fn every_ledger_variable_sets_its_key() {
    let pem = base64::engine::general_purpose::STANDARD.encode(PEM);
    // (variable, value, what is printed for its key); together they must name every variable there is.
    let cases = [
        ("MULTI_TENANT_ENABLED", "true", "\"service\""),
        ("MULTI_TENANT_URL", "https://t.internal/base", "\"https://t.internal/base\""),
        ("MULTI_TENANT_SERVICE_API_KEY", SECRET, "\"***\""),
        ("MULTI_TENANT_CIRCUIT_BREAKER_THRESHOLD", "7", "7"),
        ("MULTI_TENANT_CIRCUIT_BREAKER_TIMEOUT_SEC", "45", "\"45s\""),
        ("MULTI_TENANT_CACHE_TTL_SEC", "90", "\"1m 30s\""),
        ("MULTI_TENANT_CONNECTIONS_CHECK_INTERVAL_SEC", "15", "\"15s\""),
        ("APPLICATION_NAME", "ledger-eu", "\"ledger-eu\""),
        ("MULTI_TENANT_REDIS_HOST", "events", "\"events\""),
        ("MULTI_TENANT_REDIS_PORT", "6380", "6380"),
        ("MULTI_TENANT_REDIS_PASSWORD", SECRET, "\"***\""),
        ("MULTI_TENANT_REDIS_TLS", "true", "true"),
        ("ENV_NAME", "staging", "\"staging\""),
        ("REDIS_HOST", "valkey:5704", "\"redis://valkey:5704\""),
        ("REDIS_PASSWORD", SECRET, "\"***\""),
        ("REDIS_DB", "3", "3"),
        ("REDIS_TLS", "true", "true"),
        ("REDIS_CA_CERT", &pem, &format!("{pem:?}")),
        ("REDIS_MASTER_NAME", "mymaster", "\"mymaster\""),
        ("DB_TRANSACTION_HOST", "pg", "\"pg\""),
        ("DB_TRANSACTION_PORT", "5701", "5701"),
        ("DB_TRANSACTION_NAME", "transaction", "\"transaction\""),
        ("DB_TRANSACTION_USER", "midaz", "\"midaz\""),
        ("DB_TRANSACTION_PASSWORD", SECRET, "\"***\""),
        ("DB_TRANSACTION_SSLMODE", "verify-full", "\"verify-full\""),
        ("BALANCE_SYNC_BATCH_SIZE", "50", "50"),
        ("BALANCE_SYNC_FLUSH_TIMEOUT_MS", "500", "\"500ms\""),
        ("BALANCE_SYNC_POLL_INTERVAL_MS", "100", "\"100ms\""),
        ("LOG_LEVEL", "WARNING", "\"warn\""),
        ("ENABLE_TELEMETRY", "true", "true"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "lgtm:4317", "\"lgtm:4317\""),
        ("OTEL_RESOURCE_SERVICE_NAME", "ledger", "\"ledger\""),
    ];
    let named: BTreeSet<_> = cases.iter().map(|(name, ..)| *name).collect();
    let known: BTreeSet<_> = VARIABLES.iter().map(|(name, ..)| *name).collect();
    assert_eq!(named, known);
    for (name, value, expected) in cases {
        // What else a variable needs to make sense.
        let beside: &[(&str, &str)] = match name {
            "REDIS_MASTER_NAME" => &[("REDIS_HOST", "s1:26379,s2")],
            _ => &[],
        };
        let needed = [("MULTI_TENANT_URL", "https://t"), ("MULTI_TENANT_SERVICE_API_KEY", SECRET)];
        let needed: Vec<_> = needed.into_iter().filter(|(other, _)| *other != name).collect();
        let config = load("", &[&needed, beside, &[(name, value)]].concat()).unwrap();
        let (_, key, _) = VARIABLES.iter().find(|(known, ..)| *known == name).unwrap();
        assert_eq!(printed(&config, key), format!("{expected}  # ledger variable {name}"));
        assert!(!print(&config).contains(SECRET), "{name}");
        assert!(!format!("{config:?}").contains(SECRET), "{name}");
    }
}

#[test]
fn ledger_variables_reach_the_typed_configuration() {
    let pem = base64::engine::general_purpose::STANDARD.encode(PEM);
    let config = load(
        "",
        &[
            ("MULTI_TENANT_ENABLED", "false"),
            ("DB_TRANSACTION_HOST", "pg"),
            ("DB_TRANSACTION_USER", "midaz"),
            ("DB_TRANSACTION_NAME", "transaction"),
            ("DB_TRANSACTION_PASSWORD", SECRET),
            ("DB_TRANSACTION_PORT", "5701"),
            ("DB_TRANSACTION_SSLMODE", "require"),
            ("REDIS_HOST", "s1:26379,s2"),
            ("REDIS_MASTER_NAME", "mymaster"),
            ("REDIS_PASSWORD", SECRET),
            ("REDIS_DB", "3"),
            ("REDIS_TLS", "true"),
            ("REDIS_CA_CERT", &pem),
        ],
    )
    .unwrap();
    let TenantSource::Single(database) = config.tenants.source else { panic!("not single") };
    assert_eq!((database.host.as_str(), database.port, database.tls), ("pg", 5701, TlsMode::Require));
    assert_eq!(database.password.expose_secret(), SECRET);
    let link = config.redis.link;
    assert_eq!(link.password.unwrap().expose_secret(), SECRET);
    assert!(link.url.expose_secret().starts_with("rediss://"));
    assert_eq!(link.db, Some(3));
    assert_eq!(link.ca_pem.unwrap(), PEM.as_bytes());
    let sentinels = ["rediss://s1:26379".to_owned(), "rediss://s2:26379".to_owned()];
    assert_eq!(link.sentinel.unwrap(), ("mymaster".to_owned(), sentinels.to_vec()));
}

#[test]
fn log_levels_are_taken_as_the_ledger_names_them() {
    for (theirs, ours) in
        [("debug", "debug"), ("INFO", "info"), ("fatal", "error"), ("panic", "error"), ("warn", "warn")]
    {
        assert_eq!(complete("", &[("LOG_LEVEL", theirs)]).unwrap().log.level, ours);
    }
}

#[test]
fn bad_ledger_variables_are_refused_by_name_all_at_once() {
    for (name, key, kind) in VARIABLES {
        let bad = match kind {
            Kind::Text => continue,
            Kind::RedisHosts => "redis:port",
            _ => "many",
        };
        let text = problem("", &[(name, bad)]);
        assert!(text.starts_with(key) && text.contains(&format!("(ledger variable {name})")), "{text}");
        assert!(text.contains(bad) && text.contains("allowed: "), "{text}");
    }
    let error =
        refused("", &[("BALANCE_SYNC_BATCH_SIZE", "-1"), ("REDIS_DB", "70000"), ("LOG_LEVEL", "loud")]);
    assert_eq!(error.problems.len(), 3, "{error}");
    let text = problem("", &[("DB_TRANSACTION_SSLMODE", "always")]);
    assert!(text.contains("DB_TRANSACTION_SSLMODE") && text.contains("verify-full"), "{text}");
}

#[test]
fn ledger_numbers_out_of_range_are_clamped_with_a_note() {
    let config = complete("", &[("BALANCE_SYNC_BATCH_SIZE", "50000")]).unwrap();
    assert_eq!(config.collector.batch_size, 10_000);
    let note = config.notes.iter().find(|note| note.key == "collector.batch_size").unwrap();
    assert_eq!(note.text, "50000 (ledger variable BALANCE_SYNC_BATCH_SIZE) is clamped to 10000");
    assert!(
        printed(&config, "collector.batch_size")
            .starts_with("10000  # ledger variable BALANCE_SYNC_BATCH_SIZE, see")
    );

    // The same number of ours is refused.
    let text = problem("", &[("BALANCE_SYNC__COLLECTOR__BATCH_SIZE", "50000")]);
    let expected =
        "collector.batch_size = 50000 (variable BALANCE_SYNC__COLLECTOR__BATCH_SIZE): allowed: 1 to 10000";
    assert_eq!(text, expected);
    assert!(
        problem("", &[("BALANCE_SYNC_CONFIG", "ignored, as a file is given"), ("REDIS_DB", "70000")])
            .contains("65535")
    );
}

#[test]
fn no_clamped_ledger_number_breaks_a_relation() {
    for (name, key, kind) in VARIABLES {
        if !matches!(kind, Kind::Count | Kind::Seconds | Kind::Millis) {
            continue;
        }
        for extreme in ["1", "99999999999999999"] {
            complete("", &[(name, extreme)]).unwrap();
        }
        let config = complete("", &[(name, "0")]).unwrap();
        let note = config.notes.iter().find(|note| note.key == key).unwrap();
        assert!(note.text.contains(name) && note.text.contains("default"), "{note}");
        assert!(printed(&config, key).contains("# default"));
    }
}
