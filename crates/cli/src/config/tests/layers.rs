//! The four layers: which of them counts, and how text becomes values.

use super::*;

#[test]
fn defaults_alone_say_what_is_missing() {
    let error = config::load(None, [("PATH", "/bin")]).unwrap_err();
    let keys: Vec<_> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["tenants.service.api_key", "tenants.service.url"]);
    assert!(error.to_string().contains("MULTI_TENANT_ENABLED=false"), "{error}");
}

#[test]
fn defaults_are_as_the_manual_gives_them() {
    let config = complete("", &[]).unwrap();
    assert_eq!(config.collector.batch_size, 500);
    assert_eq!(config.collector.flush_timeout, Duration::from_millis(50));
    assert_eq!(config.claim.ttl, Duration::from_secs(30));
    assert_eq!(config.redis.link.url.expose_secret(), "redis://127.0.0.1:6379");
    assert_eq!(config.redis.link.db, Some(0));
    assert!(config.redis.link.password.is_none());
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.tenants.key_form, KeyForm::Auto);
    assert!(config.worker.name.ends_with(&format!("-{}", std::process::id())), "{}", config.worker.name);
    assert!(config.tenants.events.is_none());
    assert!(config.notes.iter().any(|note| note.key == "tenants.events"));
    let TenantSource::Service(service) = config.tenants.source else { panic!("not the service") };
    assert_eq!((service.max_body, service.retries), (10_000_000, 2));
}

#[test]
fn later_layers_override_earlier_ones() {
    let ledger = ("BALANCE_SYNC_BATCH_SIZE", "100");
    let file = "[collector]\nbatch_size = 200";
    let ours = ("BALANCE_SYNC__COLLECTOR__BATCH_SIZE", "300");
    let batch_size = |file: &str, environment: &[(&str, &str)]| {
        let config = complete(file, environment).unwrap();
        let comment = printed(&config, "collector.batch_size").split_once("# ").unwrap().1.to_owned();
        (config.collector.batch_size, comment)
    };
    assert_eq!(batch_size("", &[]), (500, "default".to_owned()));
    assert_eq!(batch_size("", &[ledger]), (100, "ledger variable BALANCE_SYNC_BATCH_SIZE".to_owned()));
    let (size, comment) = batch_size(file, &[ledger]);
    assert_eq!(size, 200);
    assert!(comment.starts_with("file ") && comment.ends_with("sync.toml"), "{comment}");
    assert_eq!(
        batch_size(file, &[ledger, ours]),
        (300, "variable BALANCE_SYNC__COLLECTOR__BATCH_SIZE".to_owned())
    );
    // Key by key: the rest of the section stays as it was.
    assert_eq!(complete(file, &[]).unwrap().collector.pipeline_depth, 3);
}

#[test]
fn the_file_may_be_named_by_a_variable_and_an_option_goes_before_it() {
    let (named, option) = (File::new("[supervisor]\nthreads = 3"), File::new("[supervisor]\nthreads = 4"));
    let path = named.path();
    let mut environment = COMPLETE.to_vec();
    environment.push((config::FILE_VARIABLE, path.to_str().unwrap()));
    assert_eq!(config::load(None, environment.iter().copied()).unwrap().supervisor.threads, 3);
    assert_eq!(
        config::load(Some(&option.path()), environment.iter().copied()).unwrap().supervisor.threads,
        4
    );
    let gone = PathBuf::from("/nonexistent/sync.toml");
    let error = config::load(Some(&gone), COMPLETE).unwrap_err().to_string();
    assert!(error.contains("file /nonexistent/sync.toml") && error.contains("can't be read"), "{error}");
}

#[test]
fn variables_are_read_as_the_type_of_their_default() {
    let config = complete(
        "",
        &[
            ("BALANCE_SYNC__REDIS__PASSWORD", "0123"),
            ("BALANCE_SYNC__TENANTS__MAX_REMOVED_SHARE", "1"),
            ("BALANCE_SYNC__TENANTS__SERVICE__ALLOW_PLAIN_HTTP", "TRUE"),
            ("BALANCE_SYNC__TENANTS__SERVICE__MAX_BODY", "2000000"),
            ("BALANCE_SYNC__CLAIM__MODE", "lock"),
            ("BALANCE_SYNC__REDIS__MASTER_NAME", "main"),
            ("BALANCE_SYNC__REDIS__SENTINELS", "a:1, b ,[::1]:3"),
            ("BALANCE_SYNC__COLLECTOR__BATCH_SIZE", ""),
        ],
    )
    .unwrap();
    assert_eq!(password(&config.redis.link), "0123");
    assert!((config.tenants.max_removed_share - 1.0).abs() < f64::EPSILON);
    assert_eq!(config.claim.mode, balance_sync_schedule::ClaimMode::Lock);
    let sentinel = config.redis.link.sentinel.unwrap();
    assert_eq!(sentinel.master, "main");
    assert_eq!(sentinel.urls, ["redis://a:1", "redis://b:26379", "redis://[::1]:3"]);
    let TenantSource::Service(service) = config.tenants.source else { panic!("not the service") };
    assert!(service.allow_plain_http);
    assert_eq!(service.max_body, 2_000_000);
    assert_eq!(config.collector.batch_size, 500, "an empty variable counts as unset");
}

#[test]
fn a_claim_mode_is_called_what_it_is_called_in_the_configuration() {
    for name in ["lease", "lock"] {
        let config = complete("", &[("BALANCE_SYNC__CLAIM__MODE", name)]).unwrap();
        assert_eq!(config.claim.mode.as_str(), name);
    }
}

#[test]
fn tenant_events_come_from_their_own_redis_or_from_that_of_the_balances() {
    let env = [("ENV_NAME", "prod"), ("REDIS_HOST", "valkey:5704"), ("REDIS_PASSWORD", SECRET)];
    let events = complete("", &env).unwrap().tenants.events.unwrap();
    assert_eq!(events.channel, "tenant-events:prod:");
    assert_eq!(events.link.url.expose_secret(), "redis://valkey:5704");
    assert!(events.link.password.is_some());
    let own = [("MULTI_TENANT_REDIS_HOST", "events"), ("MULTI_TENANT_REDIS_TLS", "1")];
    let events = complete("", &[&env[..], &own].concat()).unwrap().tenants.events.unwrap();
    assert_eq!(events.link.url.expose_secret(), "rediss://events:6379");
    assert!(events.link.password.is_none(), "the balances' password isn't sent elsewhere");
}

#[test]
fn redis_password_user_and_database_may_stand_in_the_url_or_beside_it() {
    let ledger = [("REDIS_PASSWORD", "from-the-ledger"), ("REDIS_DB", "5")];
    // The file's URL stands above the ledger's variables …
    let link = complete("[redis]\nurl = \"rediss://me:from-the-url@r:1/2\"", &ledger).unwrap().redis.link;
    assert_eq!(link.url.expose_secret(), "rediss://me:from-the-url@r:1");
    assert!(link.password.is_none());
    assert_eq!(link.db, Some(2));
    // … and they fill in what it doesn't say.
    let link = complete("[redis]\nurl = \"redis://r\"", &ledger).unwrap().redis.link;
    assert_eq!(password(&link), "from-the-ledger");
    assert_eq!(link.db, Some(5));
    // Our variable stands above the file.
    let ours = [("BALANCE_SYNC__REDIS__PASSWORD", "from-us"), ("BALANCE_SYNC__REDIS__DB", "0")];
    let link = complete("[redis]\nurl = \"redis://:from-the-url@r/2\"", &ours).unwrap().redis.link;
    assert_eq!(link.url.expose_secret(), "redis://r");
    assert_eq!(password(&link), "from-us");
    assert_eq!(link.db, Some(0));
    // Within one layer it isn't clear.
    let text = problem(&format!("[redis]\nurl = \"redis://:{SECRET}@r\"\npassword = \"{SECRET}\""), &[]);
    assert!(text.starts_with("redis.password (file ") && text.contains("redis.url"), "{text}");
}

#[cfg(unix)]
#[test]
fn variables_that_are_not_text_matter_only_when_they_are_read() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;
    let broken = || OsString::from_vec(vec![0xff]);
    let base = || COMPLETE.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    config::load(None, base().chain([(OsString::from("OTHER"), broken()), (broken(), broken())])).unwrap();
    let error = config::load(None, base().chain([(OsString::from("REDIS_HOST"), broken())])).unwrap_err();
    assert!(error.to_string().contains("REDIS_HOST: is not UTF-8"), "{error}");
}
