//! What is refused, how the error describes it, and that no secret is in the error.

use balance_sync_admin::Role;

use super::*;

#[test]
fn every_problem_is_reported_at_once() {
    let error = refused(
        "colector = 1\n[collector]\nbatch_size = \"many\"\nflush_timeout = 50\nflushtimeout = \"1s\"\nflush_deadline = \"1h\"\n\
         [log]\nformat = \"xml\"\n[claim]\nmode = 1\n[quarantine]\nmax_entries = -1\n[redis]\npassword = 12345\n[admin]\nenabled = \"yes\"",
        &[
            ("BALANCE_SYNC__COLLECTOR__PIPELINE_DEPTH", "none"),
            ("BALANCE_SYNC__WORKER__REPLICAS", "0"),
            ("BALANCE_SYNC__WORKER__REPLICA", "1"),
            ("BALANCE_SYNC__TENANTS", "x"),
            ("BALANCE_SYNC_FLUSH_TIMEOUT_MS", "fast"),
        ],
    );
    let text = error.to_string();
    let mut keys: Vec<_> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
    keys.sort_unstable();
    let expected = [
        "admin.enabled",
        "claim.mode",
        "colector",
        "collector.batch_size",
        "collector.flush_deadline",
        "collector.flush_timeout",
        "collector.flush_timeout",
        "collector.flushtimeout",
        "collector.pipeline_depth",
        "log.format",
        "quarantine.max_entries",
        "redis.password",
        "tenants",
        "worker.replica",
        "worker.replicas",
    ];
    assert_eq!(keys, expected, "{text}");
    assert!(text.starts_with("configuration refused, 15 problems:\n  - "), "{text}");
    for part in [
        "collector.batch_size = \"many\" (file ",
        "allowed: 1 to 10000",
        "collector.flush_timeout = 50 (file ",
        "collector.flush_timeout = \"fast\" (ledger variable BALANCE_SYNC_FLUSH_TIMEOUT_MS): allowed: a whole number",
        "collector.flush_deadline = 1h (file ",
        "log.format = \"xml\" (file ",
        "allowed: \"text\" or \"json\"",
        "collector.pipeline_depth = \"none\" (variable BALANCE_SYNC__COLLECTOR__PIPELINE_DEPTH): allowed: 1 to 16",
        "worker.replica (variable BALANCE_SYNC__WORKER__REPLICA): unknown key; did you mean BALANCE_SYNC__WORKER__REPLICAS?",
        "colector (file ",
        "unknown key; did you mean collector?",
        "unknown key; did you mean collector.flush_timeout?",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!text.contains("12345"), "{text}");
}

#[test]
fn unknown_keys_come_with_the_nearest_known_one() {
    for (name, meant) in [
        ("BALANCE_SYNC__COLLECTOR__BATCHSIZE", "BALANCE_SYNC__COLLECTOR__BATCH_SIZE"),
        ("BALANCE_SYNC__COLLECTOR_BATCH_SIZE", "BALANCE_SYNC__COLLECTOR__BATCH_SIZE"),
        ("BALANCE_SYNC__SERVICE__API_KEY", "BALANCE_SYNC__TENANTS__SERVICE__API_KEY"),
        ("BALANCE_SYNC__REDIS__PASWORD", "BALANCE_SYNC__REDIS__PASSWORD"),
    ] {
        let text = problem("", &[(name, SECRET)]);
        assert!(text.contains(name) && text.ends_with(&format!("did you mean {meant}?")), "{text}");
    }
    let text = problem("", &[("BALANCE_SYNC__COLLECTOR__COLOUR", "red")]);
    assert!(text.contains("unknown key; config/default.toml names all"), "{text}");
    assert!(problem("", &[("BALANCE_SYNC__TENANTS__LIST", "a,b")]).contains("only be set in a file"));
    // The ledger's are not ours, and neither is anything else.
    complete("", &[("BALANCE_SYNC_SOMETHING", "1"), ("MULTI_TENANT_OTHER", "1")]).unwrap();
}

#[test]
fn weights_name_the_entry_that_cannot_be_used() {
    for (entry, allowed) in [
        ("acme", "allowed: TENANT=WEIGHT"),
        ("acme=0", "for the weight, allowed: a whole number from 1 to 100"),
        ("acme=many", "for the weight, allowed: a whole number from 1 to 100"),
        ("a/b=2", "for the tenant, allowed: 1 to"),
    ] {
        let text = problem(&format!("[tenants]\nweights = [\"ok=2\", \"{entry}\"]"), &[]);
        assert!(
            text.contains(&format!("tenants.weights = \"{entry}\" (file ")) && text.contains(allowed),
            "{text}"
        );
    }
    let text = problem("[tenants]\nweights = { acme = 4 }", &[]);
    assert!(text.contains("tenants.weights") && text.contains("TENANT=WEIGHT"), "{text}");
    let config = complete("", &[("BALANCE_SYNC__TENANTS__WEIGHTS", "acme=4, big-*=2")]).unwrap();
    let weights = crate::wiring::manager_options(&config).weights;
    assert_eq!(["acme", "big-one", "other"].map(|tenant| weights.of(tenant).get()), [4, 2, 1]);
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    // (file, key that is named, keys it depends on, what would be allowed)
    let cases: [(&str, &str, &[&str], &str); 12] = [
        (
            "[claim]\nttl = \"20s\"",
            "claim.ttl",
            &["collector.flush_timeout = 50ms", "collector.flush_deadline = 20s"],
            "at least 25s 50ms",
        ),
        ("[claim]\nprotect_floor = \"90s\"", "claim.protect_floor", &["claim.ttl = 30s"], "more than 1m 30s"),
        (
            "[collector]\nflush_deadline = \"19s\"",
            "collector.flush_deadline",
            &["postgres.acquire_timeout = 10s", "postgres.statement_timeout = 10s"],
            "at least 20s",
        ),
        (
            "[collector]\npoll_interval = \"900ms\"\nidle_backoff_max = \"500ms\"",
            "collector.idle_backoff_max",
            &["collector.poll_interval = 900ms"],
            "at least 900ms",
        ),
        (
            "[collector]\ncrash_delay_min = \"2m\"",
            "collector.crash_delay_max",
            &["collector.crash_delay_min = 2m"],
            "at least 2m",
        ),
        (
            "[supervisor]\nstop_deadline = \"5s\"",
            "supervisor.stop_deadline",
            &["collector.drain_deadline = 8s"],
            "at least 8s",
        ),
        (
            "[postgres]\nconnections_per_tenant = 80",
            "postgres.connections_per_tenant",
            &["postgres.connections_per_server = 64"],
            "at most 64",
        ),
        (
            "[postgres]\nfleet_connections_per_server = 3\n[worker]\nexpected = 4",
            "postgres.fleet_connections_per_server",
            &["worker.expected = 4"],
            "at least 4",
        ),
        (
            "[postgres]\nconnect_timeout = \"11s\"",
            "postgres.connect_timeout",
            &["postgres.acquire_timeout = 10s"],
            "at most 10s",
        ),
        (
            "[postgres]\nbackoff_min = \"3s\"",
            "postgres.backoff_max",
            &["postgres.backoff_min = 3s"],
            "at least 3s",
        ),
        (
            "[postgres]\nbackoff_max = \"1m\"",
            "postgres.backoff_long",
            &["postgres.backoff_max = 1m"],
            "at least 1m",
        ),
        (
            "[tenants.service]\nrequest_timeout = \"1s\"",
            "tenants.service.connect_timeout",
            &["tenants.service.request_timeout = 1s"],
            "at most 1s",
        ),
    ];
    for (file, key, others, allowed) in cases {
        let text = problem(file, &[]);
        assert!(text.starts_with(key), "{text}");
        assert!(text.contains(&format!("allowed: {allowed}")), "{text}");
        for other in others {
            assert!(text.contains(other), "{text}");
        }
    }
    // A value that is refused by itself doesn't count against others.
    assert!(problem("[collector]\nflush_deadline = \"1h\"", &[]).contains("allowed: 100ms to 10m"));
}

#[test]
fn bad_urls_and_addresses_are_refused_without_their_secrets() {
    for bad in
        ["http://r", "redis://", "r:6379", "redis://r/x", "redis://r/70000", "redis://r?a=b", "redis://r#a"]
    {
        let text = problem("", &[("BALANCE_SYNC__REDIS__URL", bad)]);
        assert!(text.starts_with("redis.url = ") && text.contains("allowed: redis://"), "{text}");
    }
    for hidden in [
        "redis//:hunter2-sesame@r",
        "redis://:a/hunter2-sesame@r",
        "redis://a/hunter2-sesame@r",
        "redis://u:hunter2-sesame#a@r",
    ] {
        problem("", &[("BALANCE_SYNC__REDIS__URL", hidden)]);
    }
    let plain = problem("", &[("BALANCE_SYNC__TENANTS__SERVICE__URL", "http://t")]);
    assert!(plain.contains("allow_plain_http"), "{plain}");
    let credentials = format!("https://u:{SECRET}@t");
    problem("", &[("BALANCE_SYNC__TENANTS__SERVICE__URL", &credentials)]);
    assert!(problem("[admin]\nlisten = \"localhost\"", &[]).contains("address:port"));
    assert!(problem("[log]\nlevel = \"lowd\"", &[]).contains("module=level"));
    complete("[log]\nlevel = \"info,balance_sync_fleet=debug\"", &[]).unwrap();
    assert!(problem("[redis]\nmaster_name = \"m\"", &[]).starts_with("redis.sentinels"));
    assert!(
        problem("[redis]\nsentinels = [\"a:1\"]", &[]).contains("redis.sentinels is set (file "),
        "a list of our own needs its master"
    );
    assert!(
        problem("[redis]\nmaster_name = \"m\"\nsentinels = [\"a:1\", \"b:x\"]", &[])
            .contains("redis.sentinels[1]")
    );
    assert!(problem("", &[("REDIS_CA_CERT", "bm8gY2VydGlmaWNhdGU=")]).contains("PEM"));
    assert!(problem("[redis]\nca_cert = \"/nonexistent.pem\"", &[]).contains("can't be read"));
}

#[test]
fn a_broken_file_is_refused_without_quoting_it() {
    let text = problem(&format!("[redis]\npassword = {SECRET}\n"), &[]);
    assert!(text.contains("is not TOML: line 2, column "), "{text}");
}

#[test]
fn every_problem_of_listed_tenants_names_its_entry() {
    let file = "[tenants]\nsource = \"static\"\nlist = [\n\
        { id = \"a b\", host = \"pg\", database = \"d\", username = \"u\", password = 5 },\n\
        { id = \"b\", hots = \"pg\", database = \"d\", username = \"u\" },\n\
        { id = \"c\", host = \"pg\", database = \"d\", username = \"u\", port = 0, sslmode = \"on\" },\n\
        { id = \"c\", host = \"pg\", database = \"d\", username = \"u\", max_open_conns = 0, port = \"x\" },\n]";
    let error = refused(file, &[]);
    let mut keys: Vec<_> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
    keys.sort_unstable();
    let expected = [
        "tenants.list[0].id",
        "tenants.list[0].password",
        "tenants.list[1].host",
        "tenants.list[1].hots",
        "tenants.list[2].port",
        "tenants.list[2].sslmode",
        "tenants.list[3].id",
        "tenants.list[3].max_open_conns",
        "tenants.list[3].port",
    ];
    assert_eq!(keys, expected, "{error}");
    let text = error.to_string();
    for part in
        ["did you mean host?", "verify-full", "\"a b\"", "stands in tenants.list[2] too", "1 to 65535"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let empty = load("[tenants]\nsource = \"static\"", &[]).unwrap_err().to_string();
    assert!(empty.contains("tenants.list") && empty.contains("at least one"), "{empty}");
    let single = load("", &[("MULTI_TENANT_ENABLED", "false")]).unwrap_err();
    assert_eq!(single.problems.len(), 3, "{single}");
    assert!(single.to_string().contains("DB_TRANSACTION_HOST"), "{single}");
}

#[test]
fn a_secret_of_the_wrong_type_is_refused_without_showing_it() {
    for key in [
        "redis.password",
        "tenants.service.api_key",
        "tenants.events_redis.password",
        "tenants.single.password",
    ] {
        let (section, name) = key.rsplit_once('.').unwrap();
        let error = load(&format!("[{section}]\n{name} = 8675309"), &[]).unwrap_err();
        let problem = error.problems.iter().find(|problem| problem.key == key).unwrap();
        assert_eq!(problem.value, None);
        assert!(problem.reason.starts_with("allowed: "), "{problem}");
        assert!(!format!("{error}{error:?}").contains("8675309"), "{error}");
    }
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    const TOKEN: &str = "a-token-of-this-test";
    let file = "[admin]\nlisten = \"0.0.0.0:8090\"";
    let text = refused(file, &[]).to_string();
    assert!(
        text.contains("admin.listen = \"0.0.0.0:8090\"") && text.contains("admin.operator_token"),
        "{text}"
    );
    for environment in [
        ("BALANCE_SYNC__ADMIN__LISTEN", "127.0.0.1:8090"),
        ("BALANCE_SYNC__ADMIN__LISTEN", "[::1]:8090"),
        ("BALANCE_SYNC__ADMIN__ENABLED", "false"),
        ("BALANCE_SYNC__ADMIN__READ_TOKEN", TOKEN),
        ("BALANCE_SYNC__ADMIN__OPERATOR_TOKEN", TOKEN),
    ] {
        let config =
            complete(file, &[environment]).unwrap_or_else(|error| panic!("{environment:?}: {error}"));
        assert!(!print(&config).contains(TOKEN), "a token is printed");
    }
    for (key, value, words) in [
        ("OPERATOR_TOKEN", "fifteen-letters", "at least 16 visible ASCII characters"),
        ("READ_TOKEN", "with blanks in this token", "visible ASCII characters"),
        ("READ_TOKEN", "***", "stands for a secret"),
    ] {
        let text = refused("", &[(&format!("BALANCE_SYNC__ADMIN__{key}"), value)]).to_string();
        let key = format!("admin.{}", key.to_lowercase());
        assert!(text.contains(&key) && text.contains(words), "{text}");
        assert!(value == "***" || !text.contains(value), "a token is shown: {text}");
    }
    let both = [("BALANCE_SYNC__ADMIN__READ_TOKEN", TOKEN), ("BALANCE_SYNC__ADMIN__OPERATOR_TOKEN", TOKEN)];
    let text = refused("", &both).to_string();
    assert!(text.contains("admin.read_token") && !text.contains(TOKEN), "{text}");
}

#[test]
fn tokens_with_names_are_told_apart_and_a_header_is_believed_of_named_proxies_only() {
    const ANN: &str = "the-token-of-ann-1234";
    const BOB: &str = "the-token-of-bob-1234";
    let entry = |name: &str, role: &str, token: &str| {
        format!("[[admin.tokens]]\nname = \"{name}\"\nrole = \"{role}\"\ntoken = \"{token}\"\n")
    };
    let good = [entry("ann@example.org", "operator", ANN), entry("bob", "reader", BOB)].concat();
    let config = complete(&format!("[admin]\nlisten = \"0.0.0.0:8090\"\n{good}"), &[]).unwrap();
    let named: Vec<_> = config.admin.tokens.iter().map(|token| (token.name.as_str(), token.role)).collect();
    assert_eq!(named, [("ann@example.org", Role::Operator), ("bob", Role::Reader)]);
    let shown = print(&config);
    assert!(shown.contains("[[admin.tokens]]") && !shown.contains(ANN), "{shown}");

    for (text, key) in [
        (entry("an n", "operator", ANN), "admin.tokens[0].name = \"an n\""),
        (entry("ann", "boss", ANN), "admin.tokens[0].role = \"boss\""),
        (entry("ann", "operator", ""), "admin.tokens[0].token"),
        (entry("ann", "operator", "short"), "admin.tokens[0].token"),
        (
            [entry("ann", "operator", ANN), entry("ann", "reader", BOB)].concat(),
            "admin.tokens[1].name = \"ann\"",
        ),
        ([entry("ann", "operator", ANN), entry("bob", "reader", ANN)].concat(), "admin.tokens[1].token"),
        (
            format!("[admin]\nread_token = \"{ANN}\"\n{}", entry("ann", "operator", ANN)),
            "admin.tokens[0].token",
        ),
        ("[admin]\nsession_idle = \"13h\"".to_owned(), "admin.session_idle = 13h"),
        ("[admin]\nname_header = \"X-User\"".to_owned(), "admin.trusted_proxies"),
        ("[admin]\ntrusted_proxies = [\"10.0.0.7\"]".to_owned(), "admin.name_header"),
        (
            "[admin]\nname_header = \"X-User\"\ntrusted_proxies = [\"proxy\"]".to_owned(),
            "admin.trusted_proxies = \"proxy\"",
        ),
        (
            "[admin]\nname_header = \"Cookie\"\ntrusted_proxies = [\"10.0.0.7\"]".to_owned(),
            "admin.name_header = \"Cookie\"",
        ),
    ] {
        let refused = problem(&text, &[]);
        assert!(refused.contains(key) && refused.contains("allowed: "), "{key}: {refused}");
        assert!(!refused.contains(ANN) && !refused.contains(BOB), "{refused}");
    }
}
