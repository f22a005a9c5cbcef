//! Changes of schedules as a real Redis announces them, and peers that don't.

use std::sync::Arc;

use balance_sync_sandbox::{RedisOptions, RedisServer, WORKER_USER};
use balance_sync_schedule::{
    Endpoint, ErrorClass, LinkSettings,
    tracking::{Change, Tracking},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use crate::{SOON, Tenant, ask, common::space_of, tell};

async fn tracking(url: &str) -> Tracking {
    Tracking::open(&Endpoint::new(&LinkSettings::for_url(url)).unwrap()).await.unwrap()
}

async fn next(tracking: &mut Tracking) -> Change {
    tokio::time::timeout(SOON, tracking.next()).await.unwrap().unwrap()
}

fn key(key: &str) -> Arc<str> {
    Arc::from(key)
}

#[tokio::test]
async fn what_is_written_to_an_empty_schedule_is_announced_once() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("told"), &server.url()).await;
    let mut tracking = tracking(&server.url()).await;
    let [own, full, text] = ["schedule:own", "schedule:full", "schedule:text"].map(key);
    let own_key = tenant.space.shared_schedule();
    tell!(tenant, "ZADD", &*full, 1, "member");
    tell!(tenant, "SET", &*text, "no schedule");
    let looked_at = [Arc::clone(&own_key), full, text, own];
    assert_eq!(tracking.are_empty(&looked_at).await.unwrap(), [Some(true), Some(false), None, Some(true)]);
    assert_eq!(tracking.ready().unwrap(), None);

    // By the ledger's script, as from another client.
    tenant.mutate("first", "{}").await;
    assert_eq!(next(&mut tracking).await, Change::Of(own_key.as_bytes().to_vec()));
    tenant.mutate("second", "{}").await;
    assert_eq!(tracking.are_empty(&[Arc::clone(&own_key)]).await.unwrap(), [Some(false)]);
    assert_eq!(tracking.ready().unwrap(), None, "once for each look");

    tracking.ping().await.unwrap();
    tell!(tenant, "FLUSHALL");
    assert_eq!(next(&mut tracking).await, Change::OfAll);
    assert_eq!(tracking.are_empty(&[own_key]).await.unwrap(), [Some(true)]);
    server.kill().unwrap();
    let error = tokio::time::timeout(SOON, async {
        loop {
            if let Err(error) = tracking.next().await {
                return error;
            }
        }
    });
    assert_eq!(error.await.unwrap().class, ErrorClass::Unavailable);
}

#[tokio::test]
async fn a_server_that_forgets_what_it_tracks_says_so() {
    let extra = vec!["tracking-table-max-keys 10".to_owned()];
    let server = RedisServer::start(RedisOptions { extra, ..RedisOptions::default() }).await.unwrap();
    let mut tracking = tracking(&server.url()).await;
    let keys: Vec<_> = (0..100).map(|n| key(&format!("schedule:{n}"))).collect();
    assert!(tracking.are_empty(&keys).await.unwrap().iter().all(|empty| *empty == Some(true)));
    assert!(matches!(next(&mut tracking).await, Change::Of(_)), "none of them was written to");
}

#[tokio::test]
async fn the_right_to_it_is_named_and_the_users_that_are_shipped_have_it() {
    let options = RedisOptions { worker_password: Some("pw".into()), ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    let tenant = Tenant::on(space_of("told"), &server.url()).await;
    let endpoint = Endpoint::new(&LinkSettings::for_url(&server.worker_url_on(server.port()))).unwrap();
    Tracking::open(&endpoint).await.unwrap();
    let log: Vec<redis::Value> = ask!(tenant, "ACL", "LOG");
    assert!(log.is_empty(), "{log:?}");

    tell!(tenant, "ACL", "SETUSER", WORKER_USER, "-client");
    let error = Tracking::open(&endpoint).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Permission);
    assert!(error.message.ends_with("missing: +hello +client|tracking"), "{error}");
}

/// A peer that accepts each command of the handshake, and announces nothing.
async fn in_between() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = BufReader::new(socket);
                loop {
                    let mut words = Vec::new();
                    let mut line = String::new();
                    if socket.read_line(&mut line).await.unwrap_or(0) == 0 {
                        return;
                    }
                    for _ in 0..line.trim()[1..].parse::<usize>().unwrap() {
                        let mut size = String::new();
                        socket.read_line(&mut size).await.unwrap();
                        let mut word = vec![0; size.trim()[1..].parse::<usize>().unwrap() + 2];
                        socket.read_exact(&mut word).await.unwrap();
                        words.push(String::from_utf8_lossy(&word[..word.len() - 2]).into_owned());
                    }
                    let answer = match words[0].as_str() {
                        "HELLO" => "%1\r\n+proto\r\n:3\r\n",
                        "GET" => "_\r\n",
                        _ => "+OK\r\n",
                    };
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_peer_that_takes_the_command_and_announces_nothing_is_found_out() {
    let mut settings = LinkSettings::for_url(&format!("redis://127.0.0.1:{}", in_between().await));
    settings.response_timeout = std::time::Duration::from_millis(300);
    let error = Tracking::open(&Endpoint::new(&settings).unwrap()).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Unexpected);
    assert!(error.message.contains("no change was announced"), "{error}");
}

#[tokio::test]
async fn all_that_is_announced_is_ready_at_once_however_much_it_is() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("told"), &server.url()).await;
    let mut tracking = tracking(&server.url()).await;
    let keys: Vec<_> = (0..1000).map(|n| key(&format!("schedule:{n}"))).collect();
    tracking.are_empty(&keys).await.unwrap();
    let mut fill = redis::pipe();
    for key in &keys {
        fill.cmd("ZADD").arg(&**key).arg(1).arg("member").ignore();
    }
    let () = fill.query_async(&mut tenant.redis.clone()).await.unwrap();
    // The answer comes after all announcements.
    assert!(tracking.are_empty(&keys[..1]).await.unwrap() == [Some(false)]);
    let mut announced = 0;
    while let Some(change) = tracking.ready().unwrap() {
        assert!(matches!(change, Change::Of(_)));
        announced += 1;
    }
    assert_eq!(announced, 1000);
}

#[tokio::test]
async fn a_former_master_is_not_listened_to_and_one_that_refuses_writes_is() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("told"), &server.url()).await;
    let mut tracking = tracking(&server.url()).await;
    tracking.ping().await.unwrap();
    let keys: Vec<String> = ask!(tenant, "KEYS", "*tracking*");
    assert!(keys.is_empty(), "{keys:?}");
    // It refuses writes, and is the right one.
    tell!(tenant, "CONFIG", "SET", "min-replicas-to-write", 1);
    tracking.ping().await.unwrap();
    tell!(tenant, "CONFIG", "SET", "min-replicas-to-write", 0);
    // Of a master that nobody is: it keeps answering what it had.
    tell!(tenant, "REPLICAOF", "127.0.0.1", balance_sync_sandbox::free_port().unwrap());
    assert_eq!(tracking.ping().await.unwrap_err().class, ErrorClass::ReadOnly);
}
