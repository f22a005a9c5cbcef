//! Passwords and certificates that are rotated while a link is open.

use std::sync::Arc;

use balance_sync_sandbox::{RedisOptions, RedisServer, TlsAuthority, eventually};
use balance_sync_schedule::{
    Authority, Endpoint, ErrorClass, Link, LinkSettings, LinkStats, Schedule, ScheduleOptions, Secret,
    Subscription,
};
use secrecy::SecretString;

use crate::{SOON, common::space_of};

fn schedule_on(endpoint: &Endpoint, stats: &Arc<LinkStats>) -> Schedule {
    let link = Link::to(endpoint.clone(), Arc::clone(stats));
    Schedule::new(link, space_of("t"), Arc::new(ScheduleOptions::default()))
}

/// Names the connection that the link uses now, by its id.
async fn connection_id(link: &Link) -> i64 {
    redis::from_redis_value(link.send("id", redis::cmd("CLIENT").arg("ID")).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_password_in_a_file_is_read_again_on_refusal_and_on_change() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut admin = server.connect().await.unwrap();
    let mut set = async |password: &str| {
        let mut cmd = redis::cmd("ACL");
        cmd.arg("SETUSER")
            .arg("sync")
            .arg("on")
            .arg("resetpass")
            .arg(format!(">{password}"))
            .arg("~*")
            .arg("&*");
        cmd.arg("+@all").query_async::<()>(&mut admin).await.unwrap();
    };
    set("first").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, "first\n").unwrap();
    let settings = LinkSettings {
        password: Some(Secret::File(path.clone())),
        ..LinkSettings::for_url(&format!("redis://sync@127.0.0.1:{}/0", server.port()))
    };
    let endpoint = Endpoint::new(&settings).unwrap();
    let stats = Arc::<LinkStats>::default();
    let link = Link::to(endpoint.clone(), Arc::clone(&stats));
    let first = connection_id(&link).await;

    // On change: the connection is replaced while it still works, once.
    set("second").await;
    std::fs::write(&path, "second\n").unwrap();
    assert_eq!(connection_id(&link).await, first, "nothing has looked");
    endpoint.refresh().await;
    let second = connection_id(&link).await;
    assert_ne!(second, first);
    endpoint.refresh().await;
    assert_eq!(connection_id(&link).await, second, "nothing has changed");

    // A file that is ahead of the server costs nothing: the former connection is used.
    std::fs::write(&path, "third\n").unwrap();
    endpoint.refresh().await;
    for _ in 0..3 {
        assert_eq!(connection_id(&link).await, second);
    }
    // So does one that is gone for a moment.
    std::fs::remove_file(&path).unwrap();
    endpoint.refresh().await;
    assert_eq!(connection_id(&link).await, second);

    // On refusal: refresh was not called.
    set("fourth").await;
    let mut killer = server.connect().await.unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("USER").arg("sync").query_async::<()>(&mut killer).await.unwrap();
    let refused = || async {
        let error = link.send("ping", &redis::cmd("PING")).await.err()?;
        (error.class == ErrorClass::Credentials).then_some(())
    };
    eventually(SOON, "the refusal", refused).await.unwrap();
    std::fs::write(&path, "fourth\n").unwrap();
    eventually(SOON, "an answer", || async { link.send("ping", &redis::cmd("PING")).await.map(drop) })
        .await
        .unwrap();
}

#[tokio::test]
async fn settings_that_were_read_again_replace_the_password() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut admin = server.connect().await.unwrap();
    let mut set = async |password: &str| {
        redis::cmd("CONFIG")
            .arg("SET")
            .arg("requirepass")
            .arg(password)
            .query_async::<()>(&mut admin)
            .await
            .unwrap();
    };
    set("first").await;
    let settings = |password: &str| LinkSettings {
        password: Some(Secret::Text(SecretString::from(password.to_owned()))),
        ..LinkSettings::for_url(&format!("redis://127.0.0.1:{}/0", server.port()))
    };
    let endpoint = Endpoint::new(&settings("first")).unwrap();
    let link = Link::to(endpoint.clone(), Arc::default());
    let first = connection_id(&link).await;
    endpoint.replace(&settings("first")).unwrap();
    assert_eq!(connection_id(&link).await, first, "nothing has changed");
    set("second").await;
    endpoint.replace(&settings("second")).unwrap();
    assert_ne!(connection_id(&link).await, first);
    // The subscription to tenant events uses what is in force.
    Subscription::open(&endpoint, "tenant-events:test:").await.unwrap();
    // Another server is not reached by reading the configuration again.
    let elsewhere = LinkSettings { password: None, ..LinkSettings::for_url("redis://127.0.0.1:1/0") };
    assert!(endpoint.replace(&elsewhere).unwrap_err().message.contains("restart"));
    connection_id(&link).await;
}

#[tokio::test]
async fn a_certificate_authority_in_a_file_is_rotated_without_a_restart() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (old, new) = (TlsAuthority::new("old").unwrap(), TlsAuthority::new("new").unwrap());
    let (server, port) =
        RedisServer::start_with_tls(&RedisOptions::default(), &old.redis_lines(folders[0].path()).unwrap())
            .await
            .unwrap();
    let path = folders[0].path().join("trusted.pem");
    std::fs::write(&path, &old.ca).unwrap();
    let settings = LinkSettings {
        ca: Some(Authority::File(path.clone())),
        ..LinkSettings::for_url(&format!("rediss://127.0.0.1:{port}/0"))
    };
    let endpoint = Endpoint::new(&settings).unwrap();
    let stats = Arc::<LinkStats>::default();
    let schedule = schedule_on(&endpoint, &stats);
    schedule.claim(1).await.unwrap();

    let mut admin = server.connect().await.unwrap();
    let mut change = redis::cmd("CONFIG");
    change.arg("SET");
    for line in &new.redis_lines(folders[1].path()).unwrap()[..3] {
        let (name, value) = line.split_once(' ').unwrap();
        change.arg(name).arg(value);
    }
    change.query_async::<()>(&mut admin).await.unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").query_async::<()>(&mut admin).await.unwrap();
    let refused = || async {
        let error = schedule.claim(1).await.err()?;
        error.message.contains("certificate").then_some(())
    };
    eventually(SOON, "a certificate that is not trusted", refused).await.unwrap();
    // One half written is not used.
    std::fs::write(&path, &new.ca[..new.ca.len() / 2]).unwrap();
    endpoint.refresh().await;
    std::fs::write(&path, &new.ca).unwrap();
    eventually(SOON, "a claim", || async { schedule.claim(1).await.map(drop) }).await.unwrap();
}
