//! Three sentinels with user, password, TLS and a certificate authority of their own.

use std::{sync::Arc, time::Duration};

use balance_sync_sandbox::{RedisOptions, RedisServer, TlsAuthority, eventually};
use balance_sync_schedule::{
    Authority, Endpoint, ErrorClass, Link, LinkSettings, LinkStats, Schedule, ScheduleError, ScheduleOptions,
    Secret, SentinelSettings,
};
use secrecy::SecretString;

use crate::{SOON, common::space_of};

const REDIS_PASSWORD: &str = "r3dis-word";
/// Of the user that the link has on Redis.
const SYNC_PASSWORD: &str = "sync-w0rd";
const SENTINEL_PASSWORD: &str = "s3ntinel-word";
const WATCHER_PASSWORD: &str = "w4tcher-word";
/// As little as a client of sentinels needs.
const RIGHTS: &str = "+auth +hello +ping +client +info +sentinel|get-master-addr-by-name";

fn secret(text: &str) -> SecretString {
    SecretString::from(text.to_owned())
}

async fn order(server: &RedisServer, command: &str) -> redis::Value {
    let words: Vec<&str> = command.split(' ').collect();
    let mut cmd = redis::cmd(words[0]);
    cmd.arg(&words[1..]);
    cmd.query_async(&mut server.connect().await.unwrap()).await.unwrap()
}

/// A master with a replica, watched by three sentinels; everything but the tests' own connections uses TLS.
struct Watched {
    servers: Vec<(RedisServer, u16)>,
    sentinels: Vec<(RedisServer, u16)>,
    of_redis: TlsAuthority,
    of_sentinels: TlsAuthority,
    _folders: [tempfile::TempDir; 2],
}

impl Watched {
    async fn start() -> Self {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (of_redis, of_sentinels) =
            (TlsAuthority::new("redis").unwrap(), TlsAuthority::new("sentinels").unwrap());
        let mut redis = of_redis.redis_lines(folders[0].path()).unwrap();
        redis.extend(["tls-replication yes".to_owned(), format!("masterauth {REDIS_PASSWORD}")]);
        redis.push("repl-diskless-sync-delay 0".to_owned());
        redis.push(format!("user sync on >{SYNC_PASSWORD} ~* &* +@all"));
        let options = RedisOptions { password: Some(secret(REDIS_PASSWORD)), ..RedisOptions::default() };
        let master = RedisServer::start_with_tls(&options, &redis).await.unwrap();
        redis.push(format!("replicaof 127.0.0.1 {}", master.1));
        let replica = RedisServer::start_with_tls(&options, &redis).await.unwrap();

        let mut lines = of_sentinels.redis_lines(folders[1].path()).unwrap();
        // They meet servers and each other, and trust both authorities.
        let both = folders[1].path().join("both.pem");
        std::fs::write(&both, format!("{}{}", of_redis.ca, of_sentinels.ca)).unwrap();
        lines.push(format!("tls-ca-cert-file {}", both.display()));
        lines.extend([
            "tls-replication yes".to_owned(),
            format!("user watcher on >{WATCHER_PASSWORD} ~* &* {RIGHTS}"),
            format!("sentinel monitor m 127.0.0.1 {} 2", master.1),
            format!("sentinel auth-pass m {REDIS_PASSWORD}"),
            "sentinel down-after-milliseconds m 2000".to_owned(),
            "sentinel failover-timeout m 3000".to_owned(),
        ]);
        let options = RedisOptions {
            sentinel: true,
            password: Some(secret(SENTINEL_PASSWORD)),
            ..RedisOptions::default()
        };
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(RedisServer::start_with_tls(&options, &lines).await.unwrap());
        }
        let watched =
            Self { servers: vec![master, replica], sentinels, of_redis, of_sentinels, _folders: folders };
        watched.is_complete().await;
        watched
    }

    /// Waits until each sentinel knows the replica and the other sentinels.
    async fn is_complete(&self) {
        for (sentinel, _) in &self.sentinels {
            eventually(SOON, "a sentinel that knows the others", || async {
                let state = order(sentinel, "SENTINEL MASTER m").await;
                let fields: Vec<String> = redis::from_redis_value(state).unwrap();
                let number = |name: &str| fields.chunks(2).find(|field| field[0] == name).unwrap()[1].clone();
                (number("num-slaves") == "1"
                    && number("num-other-sentinels") == "2"
                    && number("flags") == "master")
                    .then_some(())
            })
            .await
            .unwrap();
        }
        let (replica, _) = &self.servers[1];
        eventually(SOON, "a replica in sync", || async {
            let info: redis::InfoDict =
                redis::from_redis_value(order(replica, "INFO replication").await).unwrap();
            (info.get::<String>("master_link_status").as_deref() == Some("up")).then_some(())
        })
        .await
        .unwrap();
    }

    fn settings(&self) -> LinkSettings {
        let urls = self.sentinels.iter().map(|(_, port)| format!("rediss://127.0.0.1:{port}"));
        LinkSettings {
            password: Some(Secret::Text(secret(SYNC_PASSWORD))),
            ca: Some(Authority::Pem(self.of_redis.ca.clone().into_bytes())),
            sentinel: Some(SentinelSettings {
                master: "m".to_owned(),
                urls: urls.collect(),
                username: Some("watcher".to_owned()),
                password: Some(Secret::Text(secret(WATCHER_PASSWORD))),
                ca: Some(Authority::Pem(self.of_sentinels.ca.clone().into_bytes())),
            }),
            ..LinkSettings::for_url("rediss://sync@sentinel")
        }
    }

    async fn sentinels_obey(&self, command: &str) {
        for (sentinel, _) in &self.sentinels {
            order(sentinel, command).await;
        }
    }
}

fn schedule_on(endpoint: &Endpoint, stats: &Arc<LinkStats>) -> Schedule {
    let link = Link::to(endpoint.clone(), Arc::clone(stats));
    Schedule::new(link, space_of("t"), Arc::new(ScheduleOptions::default()))
}

async fn claim(settings: &LinkSettings) -> Result<(), ScheduleError> {
    let schedule = schedule_on(&Endpoint::new(settings)?, &Arc::default());
    schedule.claim(1).await.map(drop)
}

fn hides_secrets(text: &str) {
    for secret in [REDIS_PASSWORD, SYNC_PASSWORD, SENTINEL_PASSWORD, WATCHER_PASSWORD, "wr0ng"] {
        assert!(!text.contains(secret), "{secret} is shown in: {text}");
    }
}

#[tokio::test]
async fn sentinels_with_credentials_and_an_authority_of_their_own_lead_to_the_master_and_to_the_next_one() {
    let watched = Watched::start().await;
    let right = watched.settings();
    let with = |change: fn(&mut SentinelSettings)| {
        let mut settings = right.clone();
        change(settings.sentinel.as_mut().unwrap());
        settings
    };

    // What sentinels refuse is named, and no secret is shown.
    for (settings, class, words) in [
        (
            with(|sentinel| sentinel.password = Some(Secret::Text(secret("wr0ng")))),
            ErrorClass::Credentials,
            "sentinel 127.0.0.1:",
        ),
        (
            with(|sentinel| sentinel.username = Some("stranger".to_owned())),
            ErrorClass::Credentials,
            "sentinel 127.0.0.1:",
        ),
        (with(|sentinel| sentinel.password = None), ErrorClass::Credentials, "sentinel 127.0.0.1:"),
        (with(|sentinel| sentinel.ca = None), ErrorClass::Unavailable, "certificate"),
        (with(|sentinel| sentinel.master = "unknown".to_owned()), ErrorClass::Unavailable, "\"unknown\""),
    ] {
        let error = claim(&settings).await.unwrap_err();
        assert_eq!(error.class, class, "{error}");
        assert!(error.message.contains(words), "{error}");
        hides_secrets(&format!("{error} {error:?} {settings:?} {:?}", settings.sentinel));
    }
    // Those of Redis are another matter.
    let mut settings = right.clone();
    settings.password = Some(Secret::Text(secret("wr0ng")));
    let error = claim(&settings).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Credentials, "{error}");
    assert!(!error.message.contains("sentinel"), "{error}");
    hides_secrets(&format!("{error} {error:?}"));

    // One sentinel that hangs delays nothing, and the next master is found when the first is killed.
    let stats = Arc::<LinkStats>::default();
    let schedule = schedule_on(&Endpoint::new(&right).unwrap(), &stats);
    schedule.claim(1).await.unwrap();
    watched.servers[0].0.kill().unwrap();
    watched.sentinels[2].0.pause().unwrap();
    eventually(SOON, "the next master", || async { schedule.claim(1).await.map(drop) }).await.unwrap();
    let role: Vec<redis::Value> =
        redis::from_redis_value(order(&watched.servers[1].0, "ROLE").await).unwrap();
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));
    watched.sentinels[2].0.resume().unwrap();
}

#[tokio::test]
async fn another_master_is_followed_while_the_former_one_still_answers() {
    let watched = Watched::start().await;
    let endpoint = Endpoint::new(&watched.settings()).unwrap();
    let stats = Arc::<LinkStats>::default();
    let schedule = schedule_on(&endpoint, &stats);
    schedule.claim(1).await.unwrap();
    // As on the far side of a partition, where the former master does not learn that it is none any more.
    let (next, port) = &watched.servers[1];
    watched.sentinels_obey("SENTINEL REMOVE m").await;
    order(next, "REPLICAOF NO ONE").await;
    watched.sentinels_obey(&format!("SENTINEL MONITOR m 127.0.0.1 {port} 2")).await;
    endpoint.refresh().await;
    schedule.claim(1).await.unwrap();
    assert_eq!(stats.connects(), 2);
    assert!(scripts_called(next).await > 0, "the claim went to the new master");
}

/// Calls of scripts that the server has had.
async fn scripts_called(server: &RedisServer) -> u64 {
    let info: redis::InfoDict = redis::from_redis_value(order(server, "INFO commandstats").await).unwrap();
    let calls: String = info.get("cmdstat_evalsha").unwrap_or_default();
    calls.split(['=', ',']).nth(1).map_or(0, |calls| calls.parse().unwrap())
}

/// `None` if it doesn't answer: a server that sentinels give another role ends its connections.
async fn role(server: &RedisServer) -> Option<String> {
    role_by(&mut server.connect().await.ok()?).await
}

async fn role_by(connection: &mut redis::aio::MultiplexedConnection) -> Option<String> {
    let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(connection).await.ok()?;
    redis::from_redis_value(role[0].clone()).ok()
}

#[tokio::test]
async fn a_master_that_only_sentinels_have_lost_is_left_for_the_one_that_they_elect() {
    let watched = Watched::start().await;
    let endpoint = Endpoint::new(&watched.settings()).unwrap();
    let schedule = schedule_on(&endpoint, &Arc::default());
    schedule.claim(1).await.unwrap();
    let ((former, _), (next, _)) = (&watched.servers[0], &watched.servers[1]);
    // Sentinels and replica can't talk to it any more; the link, which is another user, still can.
    let mut admin = former.connect().await.unwrap();
    let mut send = async |command: &str| {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        for word in words {
            cmd.arg(word);
        }
        cmd.query_async::<redis::Value>(&mut admin).await.unwrap()
    };
    send("ACL SETUSER default resetpass >elsewhere").await;
    send("CLIENT KILL USER default").await;
    eventually(SOON, "an elected master", || async { (role(next).await? == "master").then_some(()) })
        .await
        .unwrap();
    assert_eq!(scripts_called(next).await, 0);
    eventually(SOON, "a claim at the elected master", || async {
        endpoint.refresh().await;
        schedule.claim(1).await.map_err(|error| error.to_string())?;
        if scripts_called(next).await > 0 { Ok(()) } else { Err("it went to the former one".to_owned()) }
    })
    .await
    .unwrap();
    assert_eq!(role_by(&mut admin).await.as_deref(), Some("master"), "the former one still thinks so");
}

#[tokio::test]
async fn a_sentinel_that_is_cut_off_from_the_others_is_outvoted_by_the_newer_configuration() {
    let watched = Watched::start().await;
    let (cut_off, of_cut_off) = &watched.sentinels[2];
    let (next, _) = &watched.servers[1];
    watched.sentinels_obey("ACL SETUSER watcher +sentinel|master").await;
    // It is reached by users only, and reaches no other server: it does not learn of the next failover.
    let mut admin = cut_off.connect().await.unwrap();
    for command in [
        "SENTINEL SET m auth-pass elsewhere",
        "ACL SETUSER default resetpass >elsewhere",
        "CLIENT KILL TYPE normal",
    ] {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        for word in words {
            cmd.arg(word);
        }
        cmd.query_async::<redis::Value>(&mut admin).await.unwrap();
    }
    eventually(SOON, "a failover", || async {
        let mut connection = watched.sentinels[0].0.connect().await.unwrap();
        let mut cmd = redis::cmd("SENTINEL");
        // Refused while the former one goes on.
        let _: Result<(), _> = cmd.arg("FAILOVER").arg("m").query_async(&mut connection).await;
        (role(next).await? == "master").then_some(())
    })
    .await
    .unwrap();
    let named = async |connection: &mut redis::aio::MultiplexedConnection| {
        let mut cmd = redis::cmd("SENTINEL");
        let named: (String, u16) =
            cmd.arg("GET-MASTER-ADDR-BY-NAME").arg("m").query_async(connection).await.unwrap();
        named.1
    };
    eventually(SOON, "the next master's address", || async {
        let mut connection = watched.sentinels[0].0.connect().await.unwrap();
        (named(&mut connection).await == watched.servers[1].1).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(named(&mut admin).await, watched.servers[0].1, "it still names the former one");
    let mut settings = watched.settings();
    // By itself it is believed.
    settings.sentinel.as_mut().unwrap().urls = vec![format!("rediss://127.0.0.1:{of_cut_off}")];
    let (former, _) = &watched.servers[0];
    let asked = scripts_called(former).await;
    claim(&settings).await.unwrap();
    let asked_once = scripts_called(former).await;
    assert!(asked_once > asked);
    // A majority of these two is both of them, whichever answers first.
    let of_first = watched.sentinels[0].1;
    settings.sentinel.as_mut().unwrap().urls =
        [*of_cut_off, of_first].map(|port| format!("rediss://127.0.0.1:{port}")).to_vec();
    for _ in 0..6 {
        claim(&settings).await.unwrap();
        settings.sentinel.as_mut().unwrap().urls.reverse();
    }
    assert_eq!(scripts_called(former).await, asked_once, "all others went to the next master");
    assert!(scripts_called(next).await >= 6);
}

#[tokio::test]
async fn a_master_that_hangs_is_left_and_not_returned_to_when_it_goes_on() {
    let watched = Watched::start().await;
    let mut settings = watched.settings();
    settings.response_timeout = Duration::from_millis(500);
    let endpoint = Endpoint::new(&settings).unwrap();
    let schedule = schedule_on(&endpoint, &Arc::default());
    schedule.claim(1).await.unwrap();
    let ((former, _), (next, _)) = (&watched.servers[0], &watched.servers[1]);
    former.pause().unwrap();
    let error = schedule.claim(1).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Unavailable, "{error}");
    eventually(SOON, "the next master", || async { schedule.claim(1).await.map(drop) }).await.unwrap();
    assert!(scripts_called(next).await > 0);
    // It goes on as the master that it was, until the sentinels reconfigure it.
    former.resume().unwrap();
    let before = scripts_called(former).await;
    eventually(SOON, "a replica", || async {
        endpoint.refresh().await;
        schedule.claim(1).await.unwrap();
        (role(former).await? == "slave").then_some(())
    })
    .await
    .unwrap();
    assert_eq!(scripts_called(former).await, before, "nothing was asked of it");
}

#[tokio::test]
async fn a_rotated_password_of_sentinels_and_of_redis_takes_no_restart() {
    let watched = Watched::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (redis, sentinel) = (folder.path().join("redis"), folder.path().join("sentinel"));
    std::fs::write(&redis, SYNC_PASSWORD).unwrap();
    std::fs::write(&sentinel, format!("{WATCHER_PASSWORD}\n")).unwrap();
    let mut settings = watched.settings();
    settings.password = Some(Secret::File(redis.clone()));
    settings.sentinel.as_mut().unwrap().password = Some(Secret::File(sentinel.clone()));
    let endpoint = Endpoint::new(&settings).unwrap();
    let stats = Arc::<LinkStats>::default();
    let schedule = schedule_on(&endpoint, &stats);
    schedule.claim(1).await.unwrap();

    watched.sentinels_obey("ACL SETUSER watcher resetpass >new-w4tcher").await;
    let (master, _) = &watched.servers[0];
    order(master, "ACL SETUSER sync resetpass >new-w0rd").await;
    order(master, "CLIENT KILL USER sync").await;
    let refused = || async {
        let error = schedule.claim(1).await.err()?;
        hides_secrets(&format!("{error} {error:?}"));
        (error.class == ErrorClass::Credentials && error.message.contains("sentinel")).then_some(())
    };
    eventually(SOON, "the sentinels' refusal", refused).await.unwrap();
    std::fs::write(&sentinel, "new-w4tcher\n").unwrap();
    let refused = || async {
        let error = schedule.claim(1).await.err()?;
        (error.class == ErrorClass::Credentials && !error.message.contains("sentinel")).then_some(())
    };
    eventually(SOON, "the refusal of Redis", refused).await.unwrap();
    std::fs::write(&redis, "new-w0rd\n").unwrap();
    eventually(SOON, "a claim", || async { schedule.claim(1).await.map(drop) }).await.unwrap();
}
