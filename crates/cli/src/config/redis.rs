//! `[redis]` and the Redis of tenant events: from URL and keys to the settings of a link.
//!
//! Password, user and database may stand in the URL and in keys of their own, set by different layers. What is set by
//! the later layer counts; within one layer it isn't clear which was meant, so that is refused.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use balance_sync_schedule::{Authority, LinkSettings, Secret, SentinelSettings, password_in};
use balance_sync_tenants::host_fault;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::problem::{Origin, quoted};
use super::raw::{self, MASK, SentinelTls};
use super::validate::Check;

/// A cluster has one database.
const CLUSTER_DATABASE: &str = "allowed: 0, as a Redis Cluster has no other database";
/// How the ledger's clients may authenticate, and ours can't.
const GCP_IAM: &str = "REDIS_USE_GCP_IAM asks for authentication by Google Cloud IAM, which this worker does not support; allowed: a \
                       user with a password, by redis.password in the file or BALANCE_SYNC__REDIS__PASSWORD";

const URL_FORM: &str = "allowed: redis://[user[:password]@]host[:port][/database], or rediss:// for TLS";
const HOST_FORM: &str = "allowed: host:port";

/// Port of a sentinel that is named without one.
const SENTINEL_PORT: u16 = 26_379;
/// Port of a node that is named without one.
const REDIS_PORT: u16 = 6379;

const PEM_HEADER: &str = "-----BEGIN CERTIFICATE-----";

/// The settings of the link to the balances' Redis; none when something was refused.
pub(super) fn link(check: &mut Check<'_>, raw: &raw::Redis, only_reads: bool) -> Option<LinkSettings> {
    if check.wants_gcp_iam()
        && ["redis.password", "redis.password_file", "redis.url"]
            .iter()
            .all(|key| check.origin(key).rank() < Origin::File(Default::default()).rank())
    {
        check.refuse("redis.password", None, GCP_IAM);
    }
    let mut url = base(check, raw)?;
    let tls = raw.tls || url.scheme() == "rediss";

    let key_password = password(check, "redis.password", &raw.password, &raw.password_file);
    if url.password() == Some(MASK) {
        check.refuse("redis.url", None, format!("{MASK} stands for a password where one is printed"));
    }
    let password_key = match key_password {
        Some(Secret::File(_)) => "redis.password_file",
        _ => "redis.password",
    };
    let password = match choose(check, password_key, url.password().is_some(), key_password.is_some()) {
        Choice::Key => {
            set_password(&mut url, None);
            key_password
        }
        Choice::Url => None,
    };
    if let Choice::Key = choose(check, "redis.username", !url.username().is_empty(), !raw.username.is_empty())
    {
        // Fails only for URLs without a host, which `base` has refused.
        let _ = url.set_username(&raw.username);
    }
    let database = database(check, &url);
    let key_set = check.origin("redis.db") != Origin::Default;
    let db = match choose(check, "redis.db", database.is_some(), key_set) {
        Choice::Key => raw.db,
        Choice::Url => database.unwrap_or(raw.db),
    };
    url.set_path("");
    let ca = authority(check, "redis.ca_cert", &raw.ca_cert, &raw.ca_cert_base64);
    if ca.is_some() && !tls {
        check.note("redis.tls", "is off, so that the certificate authority isn't used");
    }
    let url = with_tls(&url, tls);
    let cluster_nodes = cluster_nodes(check, raw);
    if !cluster_nodes.is_empty() && db != 0 {
        check.refuse("redis.db", Some(db.to_string()), CLUSTER_DATABASE);
    }
    let sentinel = if cluster_nodes.is_empty() { sentinel(check, raw, tls, ca.as_ref()) } else { None };
    Some(LinkSettings {
        url: SecretString::from(url),
        password,
        db: Some(i64::from(db)),
        ca,
        sentinel,
        cluster_nodes,
        connect_timeout: raw.connect_timeout,
        response_timeout: raw.response_timeout,
        only_reads,
    })
}

/// The link to the Redis of tenant events: that of the balances, unless another is named.
pub(super) fn events_link(
    check: &mut Check<'_>,
    raw: &raw::EventsRedis,
    balances: Option<&LinkSettings>,
) -> Option<LinkSettings> {
    let password = password(check, "tenants.events_redis.password", &raw.password, &raw.password_file);
    if raw.host.is_empty() {
        return balances.cloned();
    }
    let key = "tenants.events_redis.host";
    let own_ca = authority(check, "tenants.events_redis.ca_cert", &raw.ca_cert, &raw.ca_cert_base64);
    // A bare IPv6 address has no port: that stands in a variable of its own.
    let host = raw.host.trim();
    let host = host.parse::<Ipv6Addr>().map_or_else(|_| host.to_owned(), |host| format!("[{host}]"));
    let Some(url) = address(&host).filter(|url| url.port().is_none() && url_host_fault(&host, url).is_none())
    else {
        check.refuse(key, Some(quoted(&raw.host)), "allowed: a host name or address");
        return None;
    };
    let mut url = url;
    let port = u16::try_from(raw.port).ok()?;
    // Fails only for URLs without a host, which `address` doesn't give.
    let _ = url.set_port(Some(port));
    Some(LinkSettings {
        url: SecretString::from(with_tls(&url, raw.tls)),
        password,
        db: None,
        sentinel: None,
        cluster_nodes: Vec::new(),
        // Where none is named, the same authority as the other's.
        ca: own_ca.or_else(|| balances?.ca.clone()),
        ..balances?.clone()
    })
}

/// The URL that the rest is taken from: the configured one, or with Sentinel one that only carries user and TLS.
fn base(check: &mut Check<'_>, raw: &raw::Redis) -> Option<Url> {
    if !raw.master_name.is_empty() {
        return Url::parse("redis://sentinel").ok();
    }
    let text = raw.url.expose_secret().trim();
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "redis" | "rediss")
            && url.host_str().is_some_and(|host| !host.is_empty())
            && url.query().is_none()
            && url.fragment().is_none()
    });
    match url.as_ref().map(|url| url_host_fault(text, url)) {
        None => check.refuse("redis.url", Some(quoted(text)), URL_FORM),
        Some(Some(wrong)) => check.refuse("redis.url", Some(quoted(text)), format!("{wrong}; {URL_FORM}")),
        Some(None) => return url,
    }
    None
}

/// What is wrong with the host of a URL that can be read all the same: the reader takes quotes and commas for a part of the
/// name, and drops line breaks.
pub(super) fn url_host_fault(text: &str, url: &Url) -> Option<String> {
    if text.contains(char::is_control) {
        return Some("contains a line break or a tab".to_owned());
    }
    let host = url.host_str().filter(|host| !host.starts_with('['))?;
    host_fault(host).map(|wrong| format!("its host {wrong}"))
}

/// The database that the URL names.
fn database(check: &mut Check<'_>, url: &Url) -> Option<u32> {
    let name = url.path().trim_start_matches('/');
    if name.is_empty() {
        return None;
    }
    match name.parse::<u32>() {
        Ok(number) if number <= 65_535 => Some(number),
        _ => {
            check.refuse(
                "redis.url",
                Some(quoted(url.as_str())),
                format!("{URL_FORM}; a database is 0 to 65535"),
            );
            None
        }
    }
}

/// Which of two places counts.
enum Choice {
    Url,
    Key,
}

fn choose(check: &mut Check<'_>, key: &str, in_url: bool, in_key: bool) -> Choice {
    if !in_url || !in_key {
        return if in_key { Choice::Key } else { Choice::Url };
    }
    let (key_origin, url_origin) = (check.origin(key), check.origin("redis.url"));
    match key_origin.rank().cmp(&url_origin.rank()) {
        std::cmp::Ordering::Greater => Choice::Key,
        std::cmp::Ordering::Less => Choice::Url,
        std::cmp::Ordering::Equal => {
            check.refuse(
                key,
                None,
                format!("stands in redis.url ({url_origin}) as well; allowed: one of them"),
            );
            Choice::Key
        }
    }
}

/// The nodes of a cluster.
fn cluster_nodes(check: &mut Check<'_>, raw: &raw::Redis) -> Vec<String> {
    let key = "redis.cluster_nodes";
    let origin = check.origin(key);
    let from_ledger = matches!(origin, Origin::Ledger(_));
    // A server that the file or our own variable names goes before the ledger's variable.
    if raw.cluster_nodes.is_empty() || from_ledger && check.origin("redis.url").rank() > origin.rank() {
        return Vec::new();
    }
    if !raw.master_name.is_empty() {
        // Hosts of the ledger's variable are sentinels where the file names a master.
        if !from_ledger {
            let master = check.origin("redis.master_name");
            let reason = format!("stands beside redis.master_name ({master}); allowed: one of them");
            check.refuse(key, Some(quoted(&raw.cluster_nodes.join(","))), reason);
        }
        return Vec::new();
    }
    hosts(check, key, &raw.cluster_nodes, REDIS_PORT, |host, port| format!("{host}:{port}"))
}

fn sentinel(
    check: &mut Check<'_>,
    raw: &raw::Redis,
    tls: bool,
    redis_ca: Option<&Authority>,
) -> Option<SentinelSettings> {
    let ledger_hosts = matches!(check.origin("redis.cluster_nodes"), Origin::Ledger(_));
    let (key, sentinels) = match raw.sentinels.is_empty() && ledger_hosts {
        true => ("redis.cluster_nodes", &raw.cluster_nodes),
        false => ("redis.sentinels", &raw.sentinels),
    };
    match (raw.master_name.is_empty(), sentinels.is_empty()) {
        (true, true) => {
            for (key, is_set) in [
                ("redis.sentinel_username", !raw.sentinel_username.is_empty()),
                ("redis.sentinel_password", !raw.sentinel_password.expose_secret().is_empty()),
                ("redis.sentinel_password_file", !raw.sentinel_password_file.is_empty()),
                ("redis.sentinel_tls", raw.sentinel_tls != SentinelTls::AsRedis),
                ("redis.sentinel_ca_cert", !raw.sentinel_ca_cert.is_empty()),
                ("redis.sentinel_ca_cert_base64", !raw.sentinel_ca_cert_base64.is_empty()),
            ] {
                if is_set {
                    check.refuse(
                        key,
                        None,
                        "is set without sentinels; needs redis.sentinels and redis.master_name",
                    );
                }
            }
            return None;
        }
        // A server that was named for this worker goes before the ledger's hosts.
        (true, false) if ledger_hosts => return None,
        (true, false) => {
            let origin = check.origin("redis.sentinels");
            let reason =
                format!("is needed, as redis.sentinels is set ({origin}); allowed: the name of the master");
            check.refuse("redis.master_name", None, reason);
        }
        (false, true) => {
            let origin = check.origin("redis.master_name");
            let reason =
                format!("are needed, as redis.master_name is set ({origin}); allowed: a list of host:port");
            check.refuse("redis.sentinels", None, reason);
        }
        (false, false) => {}
    }
    let tls = match raw.sentinel_tls {
        SentinelTls::AsRedis => tls,
        SentinelTls::On => true,
        SentinelTls::Off => false,
    };
    let scheme = if tls { "rediss" } else { "redis" };
    let ca = authority(check, "redis.sentinel_ca_cert", &raw.sentinel_ca_cert, &raw.sentinel_ca_cert_base64);
    if ca.is_some() && !tls {
        check.note("redis.sentinel_tls", "is off, so that the sentinels' certificate authority isn't used");
    }
    Some(SentinelSettings {
        master: raw.master_name.clone(),
        urls: hosts(check, key, sentinels, SENTINEL_PORT, |host, port| format!("{scheme}://{host}:{port}")),
        username: (!raw.sentinel_username.is_empty()).then(|| raw.sentinel_username.clone()),
        password: password(
            check,
            "redis.sentinel_password",
            &raw.sentinel_password,
            &raw.sentinel_password_file,
        ),
        ca: ca.or_else(|| redis_ca.cloned()),
    })
}

/// A list of `host[:port]`, each written by `write`; what can't be read is refused.
fn hosts(
    check: &mut Check<'_>,
    key: &str,
    texts: &[String],
    default_port: u16,
    write: impl Fn(&str, u16) -> String,
) -> Vec<String> {
    let mut found = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let url = address(text);
        let wrong = match &url {
            Some(url) => url_host_fault(text, url).map(|wrong| format!("{wrong}; {HOST_FORM}")),
            None => Some(HOST_FORM.to_owned()),
        };
        match (url, wrong) {
            (Some(url), None) => {
                let host = url.host_str().unwrap_or_default();
                found.push(write(host, url.port().unwrap_or(default_port)));
            }
            (_, wrong) => {
                check.refuse(&format!("{key}[{index}]"), Some(quoted(text)), wrong.unwrap_or_default());
            }
        }
    }
    found
}

/// `host` or `host:port` as a URL; none when it is anything more or less.
fn address(text: &str) -> Option<Url> {
    let text = text.trim();
    if text.contains(['/', '@', '?', '#']) || text.contains(char::is_whitespace) {
        return None;
    }
    Url::parse(&format!("redis://{}", bracketed(text)))
        .ok()
        .filter(|url| url.host_str().is_some_and(|host| !host.is_empty()))
}

/// A host with an IPv6 address as a URL has it, in brackets; whatever else as it is. A bare address may have a port behind it,
/// as variables put together from an address and a port have: where both readings are possible, the last group is the port.
pub(super) fn bracketed(host: &str) -> String {
    let is_address = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    match host.rsplit_once(':') {
        Some((address, port)) if is_address(address) && port.parse::<u16>().is_ok() && port.len() == 4 => {
            format!("[{address}]:{port}")
        }
        Some((address, port)) if is_address(address) && !is_address(host) => format!("[{address}]:{port}"),
        _ if is_address(host) => format!("[{host}]"),
        _ => host.to_owned(),
    }
}

/// The URL under the scheme that says whether TLS is used. By text: `Url::set_scheme` is not made for these schemes.
fn with_tls(url: &Url, tls: bool) -> String {
    let rest = url.as_str().split_once("://").map_or("", |(_, rest)| rest);
    format!("{}://{rest}", if tls { "rediss" } else { "redis" })
}

fn set_password(url: &mut Url, password: Option<&str>) {
    // Fails only for URLs without a host, which `base` has refused.
    let _ = url.set_password(password);
}

/// Which of a value and a file counts, where a key of its own names the file: the later layer; within one layer that is
/// refused.
fn choose_file(
    check: &mut Check<'_>,
    text: &str,
    file: &str,
    text_set: bool,
    file_set: bool,
) -> Option<bool> {
    if !text_set || !file_set {
        return Some(file_set);
    }
    let (file_origin, text_origin) = (check.origin(file), check.origin(text));
    if file_origin.rank() == text_origin.rank() {
        check.refuse(text, None, format!("stands beside {file} ({file_origin}); allowed: one of them"));
        return None;
    }
    Some(file_origin.rank() > text_origin.rank())
}

/// The password of a key, or of the file that `<key>_file` names.
fn password(check: &mut Check<'_>, key: &str, text: &SecretString, file: &str) -> Option<Secret> {
    let file_key = format!("{key}_file");
    let text = check.secret(key, text);
    if !choose_file(check, key, &file_key, text.is_some(), !file.is_empty())? {
        return text.map(Secret::Text);
    }
    if let Err(problem) = password_in(file.as_ref()) {
        check.refuse(&file_key, None, format!("allowed: a readable file that isn't empty; {problem}"));
    }
    Some(Secret::File(PathBuf::from(file)))
}

/// The certificate authority: the PEM file that `key` names, or `<key>_base64`.
fn authority(check: &mut Check<'_>, key: &str, file: &str, text: &str) -> Option<Authority> {
    let text_key = format!("{key}_base64");
    if !choose_file(check, &text_key, key, !text.is_empty(), !file.is_empty())? {
        return if text.is_empty() { None } else { encoded(check, &text_key, text).map(Authority::Pem) };
    }
    let shown = Some(quoted(file));
    match std::fs::read(file) {
        Ok(pem) if is_pem(&pem) => Some(Authority::File(PathBuf::from(file))),
        Ok(_) => {
            check.refuse(key, shown, "allowed: a PEM file with a certificate; it has none");
            None
        }
        Err(error) => {
            check.refuse(key, shown, format!("allowed: a readable PEM file; this can't be read: {error}"));
            None
        }
    }
}

/// A certificate in base64.
fn encoded(check: &mut Check<'_>, key: &str, text: &str) -> Option<Vec<u8>> {
    // Encoders break lines, and shells keep the breaks.
    let compact: String = text.split_whitespace().collect();
    let pem = STANDARD.decode(compact).ok().filter(|pem| is_pem(pem));
    if pem.is_none() {
        check.refuse(key, None, "allowed: a PEM certificate, encoded in base64");
    }
    pem
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(PEM_HEADER.len()).any(|window| window == PEM_HEADER.as_bytes())
}
