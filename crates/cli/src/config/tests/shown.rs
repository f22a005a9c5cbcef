//! Listed tenants, notes, what is printed, and that the manual tells the truth.

use super::*;

#[test]
fn listed_tenants_are_read_and_their_limits_clamped() {
    let config = load(TENANTS, &[]).unwrap();
    let TenantSource::Static(tenants) = &config.tenants.source else { panic!("not static") };
    let [acme, globex] = tenants.as_slice() else { panic!("not two") };
    assert_eq!(acme.id.as_str(), "acme");
    assert_eq!(acme.database.password.expose_secret(), SECRET);
    assert_eq!(acme.database.settings.max_open_conns, Some(2));
    assert_eq!(acme.database.settings.statement_timeout, Some(Duration::from_secs(10)));
    assert_eq!((acme.database.port, acme.database.schema.as_deref()), (5432, None));
    assert_eq!((globex.database.port, globex.database.schema.as_deref()), (5433, Some("globex")));
    assert_eq!(globex.database.tls, TlsMode::VerifyFull);
    let noted: Vec<_> = config.notes.iter().map(|note| note.key.as_str()).collect();
    assert_eq!(noted, ["tenants.list[0].max_open_conns", "tenants.list[0].statement_timeout"]);
    let text = print(&config);
    assert!(text.contains("[[tenants.list]]  # file ") && text.contains("max_open_conns = 2\n"), "{text}");
    assert!(!text.contains(SECRET) && !format!("{config:?}").contains(SECRET));

    let crowded = load(TENANTS, &[("BALANCE_SYNC__POSTGRES__CONNECTIONS_PER_SERVER", "2")]).unwrap();
    assert!(!crowded.notes.iter().any(|note| note.key == "postgres.connections_per_server"));
    let same_server = TENANTS.replace("port = 5433", "");
    let crowded = load(&same_server, &[("BALANCE_SYNC__POSTGRES__CONNECTIONS_PER_SERVER", "2")]).unwrap();
    assert!(
        crowded.notes.iter().any(|note| note.to_string().contains("pg:5432 may want 4")),
        "{:?}",
        crowded.notes
    );
}

#[test]
fn what_is_printed_can_be_loaded_again_with_the_same_result() {
    let file = TENANTS.replace(&format!("password = \"{SECRET}\"\n"), "\n");
    let environment = [("REDIS_HOST", "valkey:5704"), ("BALANCE_SYNC__CLAIM__TTL", "40s")];
    let first = print(&load(&file, &environment).unwrap());
    let again = load(&first, &[]).unwrap();
    let values = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
    assert_eq!(values(&first), values(&print(&again)));
    assert_eq!(values(&first)["claim"]["ttl"].as_str(), Some("40s"));
    assert!(again.notes.is_empty(), "what was clamped is in range now: {:?}", again.notes);
}

#[test]
fn a_printed_secret_is_not_taken_for_one() {
    let environment = [
        ("BALANCE_SYNC__REDIS__URL", "redis://:hunter2-sesame@r"),
        ("DB_TRANSACTION_PASSWORD", SECRET),
        ("MULTI_TENANT_REDIS_PASSWORD", SECRET),
    ];
    let text = print(&complete("", &environment).unwrap());
    assert!(!text.contains(SECRET));
    assert!(text.contains("url = \"redis://:***@r\"  # variable BALANCE_SYNC__REDIS__URL"), "{text}");
    let error = load(&text, &[]).unwrap_err();
    let mut keys: Vec<_> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
    keys.sort_unstable();
    let expected =
        ["redis.url", "tenants.events_redis.password", "tenants.service.api_key", "tenants.single.password"];
    assert_eq!(keys, expected, "{error}");
}

fn defaults() -> Value {
    Value::serialize(toml::from_str::<toml::Table>(manual::DEFAULTS).unwrap()).unwrap()
}

/// The keys of the manual that hold values, with their defaults.
fn manual_values() -> Vec<(String, Value)> {
    let tree = defaults();
    let keys = manual::keys(&tree).into_iter();
    keys.map(|key| (key.clone(), tree.find_ref(&key).unwrap().clone()))
        .filter(|(_, value)| !matches!(value, Value::Dict(..)))
        .collect()
}

#[test]
fn the_manual_names_every_key_and_says_what_it_allows() {
    // No key is missing and none is too many: the structs refuse either, and have no defaults of their own.
    let config = complete("", &[]).unwrap();
    let known: BTreeSet<_> = manual_values().into_iter().map(|(key, _)| key).collect();
    let read = Value::serialize(toml::from_str::<toml::Table>(&print(&config)).unwrap()).unwrap();
    let in_force: BTreeSet<_> = manual::keys(&read)
        .into_iter()
        .filter(|key| !matches!(read.find_ref(key), Some(Value::Dict(..))))
        .collect();
    assert_eq!(known, in_force);
    for key in &known {
        assert!(
            manual::allowed(key).is_some_and(|text| !text.is_empty()),
            "{key} doesn't say what it allows"
        );
    }
    let standard = otel_env::VARIABLES.iter().filter(|(_, key, _)| !key.is_empty());
    let standard = standard.map(|(name, key, _)| ("standard", *name, *key));
    for (whose, name, key) in VARIABLES.iter().map(|(name, key, _)| ("ledger", *name, *key)).chain(standard) {
        let line = format!("{whose} variable: {name}");
        let named = manual::comment(key).iter().any(|comment| {
            comment.strip_prefix(&line).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        });
        assert!(named, "{key} doesn't name {name}");
    }
}

#[test]
fn the_ranges_in_the_manual_are_those_that_are_checked() {
    let mut checked = 0;
    for (key, default) in manual_values() {
        let huge = match &default {
            Value::Num(..) => "4000000000",
            Value::String(_, text) if text.parse::<humantime::Duration>().is_ok() => "1000h",
            Value::String(_, text) if text == "10MB" => "1000GB",
            _ => continue,
        };
        let name = format!("BALANCE_SYNC__{}", key.replace('.', "__").to_uppercase());
        let text = problem("", &[(&name, huge)]);
        let (_, allowed) = text.rsplit_once("allowed: ").unwrap();
        assert!(text.starts_with(&key), "{text}");
        let described = manual::allowed(&key).unwrap();
        assert!(described.starts_with(allowed), "{key}: the manual says {described}, the check {allowed}");
        assert!(
            !described[allowed.len()..].starts_with(|c: char| c.is_ascii_digit()),
            "{key}: {described} is not {allowed}"
        );
        checked += 1;
    }
    assert!(checked > 30, "only {checked}");
}
