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
        ("MULTI_TENANT_SERVICE_NAME", "ledger-us", "\"ledger-us\""),
        ("APPLICATION_NAME", "ledger-eu", "\"ledger-eu\""),
        ("MULTI_TENANT_REDIS_HOST", "events", "\"events\""),
        ("MULTI_TENANT_REDIS_PORT", "6380", "6380"),
        ("MULTI_TENANT_REDIS_PASSWORD", SECRET, "\"***\""),
        ("MULTI_TENANT_REDIS_TLS", "true", "true"),
        ("MULTI_TENANT_REDIS_CA_CERT", &pem, &format!("{pem:?}")),
        ("ENV_NAME", " Staging", "\"staging\""),
        ("ENVIRONMENT_NAME", "PRODUCTION ", "\"production\""),
        ("DEPLOYMENT_MODE", "SaaS", "true"),
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
        ("BALANCE_SYNC_BATCH_SIZE", "60", "60"),
        ("BALANCE_SYNC_FLUSH_TIMEOUT_MS", "600", "\"600ms\""),
        ("BALANCE_SYNC_POLL_INTERVAL_MS", "100", "\"100ms\""),
        ("LOG_LEVEL", "WARNING", "\"warn\""),
        ("ENABLE_TELEMETRY", "true", "true"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "lgtm:4317", "\"lgtm:4317\""),
        ("OTEL_RESOURCE_SERVICE_NAME", "ledger", "\"ledger\""),
        ("OTEL_RESOURCE_DEPLOYMENT_ENVIRONMENT", "eu west", "\"deployment.environment.name=eu%20west\""),
    ];
    let named: BTreeSet<_> = cases.iter().map(|(name, ..)| *name).collect();
    let known: BTreeSet<_> = VARIABLES.iter().map(|(name, ..)| *name).collect();
    assert_eq!(named, known);
    for (name, value, expected) in cases {
        // What else a variable needs to make sense.
        let beside: &[(&str, &str)] = match name {
            "REDIS_MASTER_NAME" => &[("REDIS_HOST", "s1:26379,s2")],
            "DEPLOYMENT_MODE" => &[("REDIS_TLS", "true")],
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
    assert_eq!(password(&link), SECRET);
    assert!(link.url.expose_secret().starts_with("rediss://"));
    assert_eq!(link.db, Some(3));
    assert!(link.ca == Some(Authority::Pem(PEM.as_bytes().to_vec())));
    let sentinels = ["rediss://s1:26379".to_owned(), "rediss://s2:26379".to_owned()];
    let sentinel = link.sentinel.unwrap();
    assert_eq!((sentinel.master.as_str(), sentinel.urls), ("mymaster", sentinels.to_vec()));
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
            Kind::Text | Kind::Environment | Kind::EnvironmentAttribute | Kind::Deployment => continue,
            Kind::RedisHosts => "redis:port",
            _ => "many",
        };
        let text = problem("", &[(name, bad)]);
        assert!(text.starts_with(key) && text.contains(&format!("(ledger variable {name})")), "{text}");
        assert!(text.contains(bad) && text.contains("allowed: "), "{text}");
    }
    let error =
        refused("", &[("BALANCE_SYNC_BATCH_SIZE", "-x"), ("REDIS_DB", "70000"), ("LOG_LEVEL", "loud")]);
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

/// The text of the only note about a key.
fn note(config: &Config, key: &str) -> String {
    let found: Vec<_> = config.notes.iter().filter(|note| note.key == key).collect();
    assert_eq!(found.len(), 1, "{:?}", config.notes);
    found[0].text.clone()
}

#[test]
fn what_the_chart_always_renders_says_nothing() {
    let rendered = [
        ("BALANCE_SYNC_BATCH_SIZE", "50"),
        ("BALANCE_SYNC_FLUSH_TIMEOUT_MS", "500"),
        ("BALANCE_SYNC_POLL_INTERVAL_MS", " 50"),
    ];
    let config = complete("", &rendered).unwrap();
    let (own, collector) = (complete("", &[]).unwrap().collector, &config.collector);
    assert_eq!(collector.batch_size, own.batch_size);
    assert_eq!((collector.flush_timeout, collector.poll_interval), (own.flush_timeout, own.poll_interval));
    let text = note(&config, "collector");
    assert!(rendered.iter().all(|(name, _)| text.contains(name)), "one line for all of them: {text}");
    assert!(printed(&config, "collector.batch_size").ends_with("# default"));

    // One that was changed is wanted, and the others still say nothing.
    let config = complete("", &[("BALANCE_SYNC_BATCH_SIZE", "51"), rendered[1], rendered[2]]).unwrap();
    assert_eq!((config.collector.batch_size, config.collector.flush_timeout), (51, own.flush_timeout));
    assert!(!note(&config, "collector").contains("BATCH_SIZE"));
    let config = complete("", &[("BALANCE_SYNC_BATCH_SIZE", "-50")]).unwrap();
    assert_eq!(config.collector.batch_size, own.batch_size, "below zero is the default, as in the ledger");
}

#[test]
fn parking_the_ledgers_own_worker_does_not_park_this_one() {
    let parked = ("BALANCE_SYNC_FLUSH_TIMEOUT_MS", "2147483647");
    let own = complete("", &[]).unwrap().collector;
    for batch in ["1", "50", "200"] {
        let config = complete("", &[("BALANCE_SYNC_BATCH_SIZE", batch), parked]).unwrap();
        assert_eq!(config.collector.flush_timeout, own.flush_timeout, "{batch}");
        let expected = if batch == "200" { 200 } else { own.batch_size };
        assert_eq!(config.collector.batch_size, expected, "{batch}");
        let notes: Vec<_> = config.notes.iter().filter(|note| note.text.contains("park")).collect();
        assert_eq!(notes.len(), 1, "{notes:?}");
    }
    // A batch of one alone is a choice.
    assert_eq!(complete("", &[("BALANCE_SYNC_BATCH_SIZE", "1")]).unwrap().collector.batch_size, 1);
}

#[test]
fn names_that_the_ledger_reads_in_turn() {
    let environment =
        |variables: &[(&str, &str)]| complete("", variables).unwrap().tenants.events.unwrap().channel;
    assert_eq!(environment(&[("ENV_NAME", "Staging")]), "tenant-events:staging:");
    let both = [("ENV_NAME", "staging"), ("ENVIRONMENT_NAME", " Production ")];
    assert_eq!(environment(&both), "tenant-events:production:");
    assert_eq!(environment(&[("ENV_NAME", "staging"), ("ENVIRONMENT_NAME", " ")]), "tenant-events:staging:");

    let service = |variables: &[(&str, &str)]| match complete("", variables).unwrap().tenants.source {
        TenantSource::Service(service) => service.service,
        _ => panic!("not the service"),
    };
    let (application, multi) = (("APPLICATION_NAME", "app"), ("MULTI_TENANT_SERVICE_NAME", "multi"));
    assert_eq!(service(&[application, multi]), "app");
    assert_eq!(service(&[multi]), "multi");
    assert_eq!(service(&[("APPLICATION_NAME", ""), multi]), "multi");
    assert_eq!(service(&[]), "ledger");
}

#[test]
fn a_list_of_hosts_without_a_master_is_a_cluster() {
    let hosts = ("REDIS_HOST", "r1:6379,r2:6379");
    let config = complete("", &[hosts]).unwrap();
    assert_eq!(config.redis.link.cluster_nodes, ["r1:6379", "r2:6379"]);
    assert!(config.redis.link.sentinel.is_none());
    assert!(printed(&config, "redis.cluster_nodes").contains("REDIS_HOST"));
    let text = problem("", &[hosts, ("REDIS_DB", "3")]);
    assert!(
        text.starts_with("redis.db = 3 (ledger variable REDIS_DB)") && text.contains("Cluster"),
        "{text}"
    );
    // What is written for this worker goes before it.
    let config = complete("[redis]\nurl = \"redis://r9:6379\"", &[hosts]).unwrap();
    assert!(
        config.redis.link.cluster_nodes.is_empty() && config.redis.link.url.expose_secret().contains("r9")
    );
    let config = complete("[redis]\nmaster_name = \"m\"", &[hosts]).unwrap();
    assert_eq!(config.redis.link.sentinel.unwrap().master, "m");
}

#[test]
fn google_cloud_iam_is_refused_by_name() {
    let iam = ("REDIS_USE_GCP_IAM", "true");
    let text = problem("", &[iam]);
    assert!(text.contains("REDIS_USE_GCP_IAM") && text.contains("not support"), "{text}");
    complete("", &[("REDIS_USE_GCP_IAM", "false")]).unwrap();
    complete("", &[iam, ("BALANCE_SYNC__REDIS__PASSWORD", SECRET)]).unwrap();
}

#[test]
fn bare_ipv6_addresses_are_read() {
    let url =
        |host: &str| complete("", &[("REDIS_HOST", host)]).unwrap().redis.link.url.expose_secret().to_owned();
    assert_eq!(url("::1:6379"), "redis://[::1]:6379");
    assert_eq!(url("[::1]:6379"), "redis://[::1]:6379");
    assert_eq!(url("fd00::5:26379"), "redis://[fd00::5]:26379");
    assert_eq!(url("fd00:1:2:3:4:5:6:7:6379"), "redis://[fd00:1:2:3:4:5:6:7]:6379");
    assert_eq!(url("fd00::5"), "redis://[fd00::5]");
    for host in ["fd00::5:1234", "[fd00::5:1234]"] {
        let variables =
            [("ENV_NAME", "x"), ("MULTI_TENANT_REDIS_HOST", host), ("MULTI_TENANT_REDIS_PORT", "6380")];
        let events = complete("", &variables).unwrap().tenants.events.unwrap();
        assert_eq!(events.link.url.expose_secret(), "redis://[fd00::5:1234]:6380");
    }
    let traces = |endpoint: &str| {
        let variables = [("ENABLE_TELEMETRY", "true"), ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
        complete("", &variables).unwrap().traces.unwrap().otlp.endpoint.to_string()
    };
    assert_eq!(traces("fd00::5:4317"), "http://[fd00::5]:4317/");
    assert_eq!(traces("http://fd00::5:4317"), "http://[fd00::5]:4317/");
    assert_eq!(traces("https://[fd00::5]:4318/x"), "https://[fd00::5]:4318/x/v1/traces");
}

#[test]
fn a_tenant_service_without_tls_is_taken_where_the_ledger_takes_it() {
    let service = [("MULTI_TENANT_URL", "http://t"), ("MULTI_TENANT_SERVICE_API_KEY", SECRET)];
    for environment in ["local", "Development", "dev", "test", "testing", "STAGING"] {
        let config = load("", &[&service[..], &[("ENVIRONMENT_NAME", environment)]].concat()).unwrap();
        assert!(note(&config, "tenants.service.url").contains("http://"), "{environment}");
        let TenantSource::Service(service) = config.tenants.source else { panic!("not the service") };
        assert!(service.allow_plain_http, "{environment}");
    }
    for environment in ["production", "stage", ""] {
        let error = load("", &[&service[..], &[("ENVIRONMENT_NAME", environment)]].concat()).unwrap_err();
        assert_eq!(error.problems[0].key, "tenants.service.url", "{environment}");
    }
}

#[test]
fn secrets_that_look_like_an_accident_are_noted_and_not_shown() {
    for (password, oddity) in [
        ("hunter2-sesame\n", "ends in a line break"),
        ("hunter2-sesame ", "ends in white space"),
        (" hunter2-sesame", "begins with white space"),
        ("\"hunter2-sesame\"", "stands in quotes"),
        ("'hunter2-sesame'", "stands in quotes"),
    ] {
        let config = complete("", &[("REDIS_PASSWORD", password)]).unwrap();
        let text = note(&config, "redis.password");
        assert!(text.contains(oddity) && !text.contains(SECRET), "{text}");
        assert_eq!(super::password(&config.redis.link), password, "as it stands");
    }
    let text = problem("", &[("BALANCE_SYNC__TENANTS__SERVICE__API_KEY", "hunter2-sesame\n")]);
    assert!(text.contains("ends in a line break"), "{text}");
    assert!(
        !complete("", &[("REDIS_PASSWORD", SECRET)])
            .unwrap()
            .notes
            .iter()
            .any(|note| note.key == "redis.password")
    );
}

#[test]
fn an_endpoint_that_cannot_be_used_stops_no_worker() {
    for endpoint in ["$(HOST_IP):4317", "lgtm", "http://", "http://user:pw@h:4317", "tcp://h:1", "::1"] {
        let variables = [("ENABLE_TELEMETRY", "true"), ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
        let config = complete("", &variables).unwrap_or_else(|error| panic!("{endpoint}: {error}"));
        assert!(config.traces.is_none() && config.metrics.is_none(), "{endpoint}");
        assert!(note(&config, "telemetry.endpoint").contains("nothing is sent there"), "{endpoint}");
    }
    // One that was written for this worker is refused, as every wrong value is.
    problem("[telemetry]\nenabled = true\nendpoint = \"lgtm\"", &[]);
}

#[test]
fn saas_demands_tls_everywhere() {
    let saas = ("DEPLOYMENT_MODE", "saas");
    let events = [("ENV_NAME", "x"), ("MULTI_TENANT_REDIS_HOST", "events")];
    let error = load(
        "",
        &[&[saas, ("MULTI_TENANT_URL", "http://t"), ("MULTI_TENANT_SERVICE_API_KEY", SECRET)], &events[..]]
            .concat(),
    )
    .unwrap_err();
    let keys: Vec<_> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["tenants.service.url", "redis.tls", "tenants.events_redis.tls"], "{error}");
    assert!(error.to_string().contains("DEPLOYMENT_MODE"), "{error}");
    let tls = [saas, ("REDIS_TLS", "true"), ("MULTI_TENANT_REDIS_TLS", "true")];
    let config = complete("", &[&tls[..], &events[..]].concat()).unwrap();
    assert!(config.worker.require_tls);
    let single = [
        saas,
        ("REDIS_TLS", "true"),
        ("MULTI_TENANT_ENABLED", "false"),
        ("DB_TRANSACTION_HOST", "pg"),
        ("DB_TRANSACTION_USER", "u"),
        ("DB_TRANSACTION_NAME", "d"),
    ];
    let sslmode = |mode| load("", &[&single[..], &[("DB_TRANSACTION_SSLMODE", mode)]].concat());
    for mode in ["disable", "prefer", ""] {
        assert_eq!(sslmode(mode).unwrap_err().problems[0].key, "tenants.single.sslmode", "{mode:?}");
    }
    sslmode("verify-full").unwrap();
    for mode in ["local", "byoc", "", "saas-eu"] {
        assert!(!complete("", &[("DEPLOYMENT_MODE", mode)]).unwrap().worker.require_tls, "{mode:?}");
    }
}

#[test]
fn variables_that_kubernetes_adds_are_left_out() {
    let variables = [
        ("BALANCE_SYNC_PORT", "tcp://127.0.0.1:9090"),
        ("BALANCE_SYNC_SERVICE_HOST", "127.0.0.1"),
        ("BALANCE_SYNC_PORT_9090_TCP_PORT", "9090"),
        ("REDIS_PORT", "tcp://127.0.0.1:6379"),
        ("MULTI_TENANT_REDIS_PORT", "tcp://127.0.0.1:6379"),
        ("DB_TRANSACTION_PORT", "tcp://127.0.0.1:5432"),
    ];
    let config = complete("", &variables).unwrap();
    assert!(printed(&config, "tenants.events_redis.port").contains("# default"));
    assert!(printed(&config, "tenants.single.port").contains("# default"));
}

#[test]
fn no_clamped_ledger_number_breaks_a_relation() {
    for (name, key, kind) in VARIABLES {
        if !matches!(kind, Kind::Count | Kind::Seconds | Kind::SecondsOr(_) | Kind::Millis) {
            continue;
        }
        for extreme in ["1", "99999999999999999"] {
            complete("", &[(name, extreme)]).unwrap();
        }
        if let Kind::SecondsOr(default) = kind {
            for nothing in ["0", "-3"] {
                let config = complete("", &[(name, nothing)]).unwrap();
                assert!(printed(&config, key).starts_with(&format!("\"{default}s\"")));
            }
            continue;
        }
        let config = complete("", &[(name, "0")]).unwrap();
        let note = config.notes.iter().find(|note| note.key == key).unwrap();
        assert!(note.text.contains(name) && note.text.contains("default"), "{note}");
        assert!(printed(&config, key).contains("# default"));
    }
}

/// As any empty variable. An empty mode of the tenant service means `disable`; of this variable the ledger's contract says
/// nothing, and `prefer` works with each server that the ledger could mean.
#[test]
fn an_empty_ssl_mode_is_as_good_as_none() {
    for empty in ["", " "] {
        let config = complete("", &[("DB_TRANSACTION_SSLMODE", empty)]).unwrap();
        assert_eq!(printed(&config, "tenants.single.sslmode"), "\"prefer\"  # default");
        // Nor does it take the place of what was configured for this worker.
        let file = "[tenants.single]\nsslmode = \"verify-full\"";
        let config = complete(file, &[("DB_TRANSACTION_SSLMODE", empty)]).unwrap();
        assert!(printed(&config, "tenants.single.sslmode").starts_with("\"verify-full\""));
    }
}
