//! `[redis]`: sentinels, clusters, and what is read from files.

use super::*;

const SENTINELS: &str = "[redis]\nmaster_name = \"m\"\nsentinels = [\"a:1\", \"b\"]\n";

#[test]
fn sentinels_have_credentials_and_certificates_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, PEM).unwrap();
    let file = format!(
        "{SENTINELS}sentinel_username = \"watcher\"\nsentinel_password = \"{SECRET}\"\nsentinel_tls = \"on\"\n\
         sentinel_ca_cert = \"{}\"",
        ca.display()
    );
    let config = complete(&file, &[("REDIS_PASSWORD", "of-redis")]).unwrap();
    let sentinel = config.redis.link.sentinel.as_ref().unwrap();
    assert_eq!(sentinel.urls, ["rediss://a:1", "rediss://b:26379"]);
    assert_eq!(sentinel.username.as_deref(), Some("watcher"));
    assert!(matches!(&sentinel.password, Some(Secret::Text(text)) if text.expose_secret() == SECRET));
    assert!(sentinel.ca == Some(Authority::File(ca)));
    assert!(config.redis.link.ca.is_none() && config.redis.link.url.expose_secret().starts_with("redis://"));
    assert_eq!(password(&config.redis.link), "of-redis");
    for shown in [print(&config), format!("{:?}", config.redis)] {
        assert!(!shown.contains(SECRET) && !shown.contains("of-redis"), "{shown}");
    }

    // By default TLS and authority as for Redis, and never its password.
    let pem = base64::engine::general_purpose::STANDARD.encode(PEM);
    let ledger = [("REDIS_TLS", "true"), ("REDIS_CA_CERT", pem.as_str()), ("REDIS_PASSWORD", SECRET)];
    let link = complete(SENTINELS, &ledger).unwrap().redis.link;
    let sentinel = link.sentinel.unwrap();
    assert_eq!(sentinel.urls, ["rediss://a:1", "rediss://b:26379"]);
    assert!(sentinel.password.is_none() && sentinel.ca == link.ca && link.ca.is_some());
    let off = [("BALANCE_SYNC__REDIS__SENTINEL_TLS", "off")];
    let link = complete(SENTINELS, &[&ledger[..], &off].concat()).unwrap().redis.link;
    assert_eq!(link.sentinel.unwrap().urls, ["redis://a:1", "redis://b:26379"]);
    let text = problem(SENTINELS, &[&ledger[..], &off, &[("DEPLOYMENT_MODE", "saas")]].concat());
    assert!(text.starts_with("redis.sentinel_tls = \"off\"") && text.contains("require_tls"), "{text}");
}

#[test]
fn what_belongs_to_sentinels_needs_them() {
    for (key, value) in [
        ("username", "u"),
        ("password", SECRET),
        ("password_file", "/p"),
        ("tls", "on"),
        ("ca_cert", "/c"),
        ("ca_cert_base64", "Yw=="),
    ] {
        let text = problem(&format!("[redis]\nsentinel_{key} = \"{value}\""), &[]);
        assert!(text.starts_with(&format!("redis.sentinel_{key} (file ")), "{text}");
        assert!(text.contains("redis.master_name"), "{text}");
    }
    let text = problem(&format!("{SENTINELS}sentinel_tls = false"), &[]);
    assert!(text.contains("\"as_redis\", \"on\" or \"off\""), "{text}");
}

#[test]
fn passwords_may_stand_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    let file = format!("password_file = \"{}\"", path.display());
    let of_file = |password: &Option<Secret>| matches!(password, Some(Secret::File(file)) if *file == path);

    let link = complete(&format!("[redis]\n{file}"), &[]).unwrap().redis.link;
    assert!(of_file(&link.password));
    let sentinels = format!("{SENTINELS}sentinel_{file}");
    assert!(of_file(&complete(&sentinels, &[]).unwrap().redis.link.sentinel.unwrap().password));
    let events = format!("[tenants]\nenvironment = \"prod\"\n[tenants.events_redis]\nhost = \"e\"\n{file}");
    assert!(of_file(&complete(&events, &[]).unwrap().tenants.events.unwrap().link.password));

    // The later layer counts; within one layer it is an error.
    let link = complete(&format!("[redis]\n{file}"), &[("REDIS_PASSWORD", "x")]).unwrap().redis.link;
    assert!(of_file(&link.password));
    let ours = [("BALANCE_SYNC__REDIS__PASSWORD", "x")];
    assert_eq!(password(&complete(&format!("[redis]\n{file}"), &ours).unwrap().redis.link), "x");
    let text = problem(&format!("[redis]\n{file}\npassword = \"{SECRET}\""), &[]);
    assert!(text.starts_with("redis.password (file ") && text.contains("redis.password_file"), "{text}");

    // So it is beside a password in the URL.
    let variable = [("BALANCE_SYNC__REDIS__PASSWORD_FILE", path.to_str().unwrap())];
    let url = format!("[redis]\nurl = \"redis://:{SECRET}@r\"");
    let link = complete(&url, &variable).unwrap().redis.link;
    assert!(of_file(&link.password) && link.url.expose_secret() == "redis://r");
    assert!(problem(&format!("{url}\n{file}"), &[]).starts_with("redis.password_file (file "));
    complete(&format!("[redis]\n{file}"), &[("REDIS_USE_GCP_IAM", "true")]).unwrap();

    std::fs::write(&path, "\n").unwrap();
    assert!(problem(&format!("[redis]\n{file}"), &[]).contains("is empty"));
    let gone = problem("[redis]\npassword_file = \"/nonexistent/password\"", &[]);
    assert!(gone.starts_with("redis.password_file (file ") && gone.contains("can't be read"), "{gone}");
}

#[test]
fn a_cluster_is_a_list_of_nodes() {
    let link =
        complete("[redis]\ncluster_nodes = [\"a:7000\", \"b\", \"[::1]:7002\"]", &[]).unwrap().redis.link;
    assert_eq!(link.cluster_nodes, ["a:7000", "b:6379", "[::1]:7002"]);
    let text = problem("[redis]\ncluster_nodes = [\"a:x\"]", &[]);
    assert!(text.starts_with("redis.cluster_nodes[0] = \"a:x\"") && text.contains("host:port"), "{text}");
    let text = problem(&format!("{SENTINELS}cluster_nodes = [\"a:1\"]"), &[]);
    assert!(text.contains("redis.master_name"), "{text}");
    let text = problem("[redis]\ncluster_nodes = [\"a:1\"]\ndb = 2", &[]);
    assert!(text.starts_with("redis.db = 2 (file "), "{text}");
}
