//! The ledger's own queues, read page by page under the rights that the worker has.

use std::collections::{BTreeMap, BTreeSet};

use balance_sync_sandbox::{RedisOptions, RedisServer, WORKER_USER};
use balance_sync_schedule::{Link, LinkSettings, LinkStats, QueueError, QueueReader};

use crate::{Tenant, ask, common::space_of, tell};

/// A server with the worker's user, the ledger's connection to it, and a reader as that user.
async fn lab() -> (RedisServer, Tenant, QueueReader, std::sync::Arc<LinkStats>) {
    let options = RedisOptions { worker_password: Some("pw".into()), ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let stats = std::sync::Arc::default();
    let settings = LinkSettings::for_url(&server.worker_url_on(server.port()));
    let link = Link::counted(&settings, std::sync::Arc::clone(&stats)).unwrap();
    (server, tenant, QueueReader::new(link), stats)
}

/// All of a hash, and how many pages it took.
async fn read(reader: &QueueReader, key: &str, records: u64) -> (BTreeMap<Vec<u8>, Option<usize>>, usize) {
    let (mut found, mut pages, mut cursor) = (BTreeMap::new(), 0, b"0".to_vec());
    loop {
        let page = reader.page(key, &cursor, records).await.unwrap();
        pages += 1;
        assert!(page.cost > 0, "whatever it holds, a page costs something");
        found.extend(page.records.into_iter().map(|(field, value)| (field, value.map(|value| value.len()))));
        match page.next {
            Some(next) => cursor = next,
            None => return (found, pages),
        }
    }
}

#[tokio::test]
async fn every_record_is_read_and_one_that_is_too_large_is_listed_without_its_value() {
    let (_server, tenant, reader, stats) = lab().await;
    let key = tenant.space.backup_queue();
    let names: Vec<String> = (0..2_500).map(|n| format!("transaction-{n:04}")).collect();
    for part in names.chunks(500) {
        let mut cmd = redis::cmd("HSET");
        cmd.arg(&key);
        part.iter().for_each(|name| {
            cmd.arg(name).arg("x".repeat(1_500));
        });
        tenant.run::<()>(&cmd).await;
    }
    tell!(tenant, "HSET", &key, "large", "x".repeat((1 << 20) + 1));
    tell!(tenant, "HSET", &key, b"\xff\x00", "");
    assert_eq!(reader.hash_depth(&key).await.unwrap(), 2_502);
    let (found, pages) = read(&reader, &key, 200).await;
    assert_eq!(found.len(), 2_502);
    assert_eq!(found[&b"large"[..]], None);
    assert_eq!(found[&b"\xff\x00"[..]], Some(0));
    assert!(names.iter().all(|name| found[name.as_bytes()] == Some(1_500)));
    assert!(pages > 10, "{pages} pages");
    assert_eq!(reader.has(&key, &[b"large", b"gone"]).await.unwrap(), [true, false]);
    assert_eq!(stats.errors_total(), 0, "finding out what the server can do is no failure");
}

#[tokio::test]
async fn pages_of_large_records_are_small() {
    let (_server, tenant, reader, _) = lab().await;
    let key = tenant.space.recovery();
    for n in 0..400 {
        tell!(tenant, "HSET", &key, n, "x".repeat(40_000));
    }
    // Redis from 7.4 on, Valkey from 8.0 on, which calls itself Redis 7.2.
    let mut listing = redis::cmd("HSCAN");
    listing.arg(&key).arg(0).arg("NOVALUES");
    let lists_fields = listing.query_async::<redis::Value>(&mut tenant.redis.clone()).await.is_ok();
    let page = reader.page(&key, b"0", 200).await.unwrap();
    let bytes: usize = page.records.iter().filter_map(|(_, value)| value.as_ref()).map(Vec::len).sum();
    if !lists_fields {
        assert!(bytes <= 1 << 20, "{bytes} bytes in a call for a quarter of a mebibyte");
    }
    assert!(page.cost >= (bytes / 4096) as u64, "{} for {bytes} bytes", page.cost);
    let (found, _) = read(&reader, &key, 200).await;
    assert_eq!(found.len(), 400);
    // So large that a server which can't list fields alone is never asked for any of them.
    tell!(tenant, "DEL", &key);
    for n in 0..9 {
        tell!(tenant, "HSET", &key, n, "x".repeat(2 << 20));
    }
    match reader.page(&key, b"0", 200).await {
        Err(QueueError::TooLarge(size)) => assert!(!lists_fields && size == 2 << 20, "{size}"),
        Ok(page) => assert!(lists_fields && page.records.iter().all(|(_, value)| value.is_none())),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn what_is_missing_is_named_and_counts_as_no_failure() {
    let (server, tenant, reader, stats) = lab().await;
    let key = tenant.space.backup_queue();
    tell!(tenant, "HSET", &key, "a", "{}");
    let set = async |rules: &[&str]| {
        let mut cmd = redis::cmd("ACL");
        cmd.arg("SETUSER").arg(WORKER_USER).arg(rules);
        tenant.run::<()>(&cmd).await;
    };
    set(&["-hlen"]).await;
    assert_eq!(reader.hash_depth(&key).await.unwrap_err().to_string(), "missing: +hlen");
    set(&["+hlen", "resetkeys", "~tenant:*:schedule:{transactions}:balance-sync*"]).await;
    let missing = "missing: %R~tenant:t:backup_queue:{transactions} (before Redis 7: ~ instead of %R~)";
    assert_eq!(reader.hash_depth(&key).await.unwrap_err().to_string(), missing);
    assert_eq!(reader.page(&key, b"0", 10).await.unwrap_err().to_string(), missing);
    // What is named is enough.
    let rule = if server.version().await.unwrap() < (7, 0) { "~" } else { "%R~" };
    set(&[&format!("{rule}tenant:t:backup_queue:{{transactions}}")]).await;
    assert_eq!(reader.hash_depth(&key).await.unwrap(), 1);
    assert_eq!(reader.page(&key, b"0", 10).await.unwrap().records.len(), 1);
    assert_eq!(stats.errors_total(), 0);
}

#[tokio::test]
async fn keys_of_another_type_are_recognized() {
    let (_server, tenant, reader, stats) = lab().await;
    let (hash, set) = (tenant.space.backup_queue(), tenant.space.recovery_cleanup());
    tell!(tenant, "SET", &hash, "x");
    tell!(tenant, "SET", &set, "x");
    assert!(matches!(reader.hash_depth(&hash).await, Err(QueueError::WrongType)));
    assert!(matches!(reader.page(&hash, b"0", 10).await, Err(QueueError::WrongType)));
    assert!(matches!(reader.set_depth(&set).await, Err(QueueError::WrongType)));
    tell!(tenant, "DEL", &set);
    assert_eq!(reader.set_depth(&set).await.unwrap(), (0, None));
    tell!(tenant, "ZADD", &set, "inf", "a");
    assert_eq!(reader.set_depth(&set).await.unwrap(), (1, None), "no time");
    tell!(tenant, "ZADD", &set, "1795751304123", "b");
    assert_eq!(reader.set_depth(&set).await.unwrap(), (2, Some(1_795_751_304_123.0)));
    assert_eq!(stats.errors_total(), 0);
}

/// Under a user that may not write, so that any command that writes would be refused; and by the server's own count.
#[tokio::test]
async fn nothing_but_reading_is_sent() {
    let (_server, tenant, reader, _) = lab().await;
    let (queue, set) = (tenant.space.backup_queue(), tenant.space.recovery_cleanup());
    tell!(tenant, "HSET", &queue, "a", "{}");
    tell!(tenant, "ZADD", &set, 1, "a");
    tell!(tenant, "ACL", "SETUSER", WORKER_USER, "-@write");
    tell!(tenant, "CONFIG", "RESETSTAT");
    reader.existing(&[&queue, &set]).await.unwrap();
    reader.hash_depth(&queue).await.unwrap();
    reader.set_depth(&set).await.unwrap();
    reader.has(&queue, &[b"a"]).await.unwrap();
    read(&reader, &queue, 10).await;
    let info: String = ask!(tenant, "INFO", "commandstats");
    let sent: BTreeSet<&str> =
        info.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next()).collect();
    let read_only = [
        "exists",
        "hlen",
        "zcard",
        "zrange",
        "hexists",
        "hscan",
        "hstrlen",
        "hmget",
        "hrandfield",
        // Of the connections, and of this test.
        "auth",
        "hello",
        "select",
        "client",
        "client|setinfo",
        "config",
        "config|resetstat",
        "info",
        "acl",
        "acl|setuser",
        "ping",
    ];
    let others: Vec<&&str> = sent.iter().filter(|command| !read_only.contains(command)).collect();
    assert!(others.is_empty() && sent.contains("hscan") && !sent.contains("hgetall"), "{sent:?}");
}
