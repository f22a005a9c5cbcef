//! `[redis]` and the Redis of tenant events: from URL and keys to the settings of a link.
//!
//! Password, user and database may stand in the URL and in keys of their own, set by different layers. What is set by
//! the later layer counts; within one layer nobody could say which was meant, so that is refused.

use std::net::Ipv6Addr;

use balance_sync_schedule::LinkSettings;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::problem::{Origin, quoted};
use super::raw::{self, MASK};
use super::validate::Check;

/// A list of hosts without a master, as the ledger's variable gives it.
const CLUSTER: &str = "lists several hosts without a master's name: the ledger means a Redis Cluster, which this worker does not \
                       support; allowed: one host:port of a standalone server, or the sentinels of a ledger that uses Sentinel";
/// How the ledger's clients may authenticate, and ours can't.
const GCP_IAM: &str = "REDIS_USE_GCP_IAM asks for authentication by Google Cloud IAM, which this worker does not support; allowed: a \
                       user with a password, by redis.password in the file or BALANCE_SYNC__REDIS__PASSWORD";

const URL_FORM: &str = "allowed: redis://[user[:password]@]host[:port][/database], or rediss:// for TLS";
const SENTINEL_FORM: &str = "allowed: host:port";

/// Port of a sentinel that is named without one.
const SENTINEL_PORT: u16 = 26_379;

const PEM_HEADER: &str = "-----BEGIN CERTIFICATE-----";

/// The settings of the link to the balances' Redis; none when something was refused.
pub(super) fn link(check: &mut Check<'_>, raw: &raw::Redis) -> Option<LinkSettings> {
    if check.wants_gcp_iam()
        && ["redis.password", "redis.url"]
            .iter()
            .all(|key| check.origin(key).rank() < Origin::File(Default::default()).rank())
    {
        check.refuse("redis.password", None, GCP_IAM);
    }
    let mut url = base(check, raw)?;
    let tls = raw.tls || url.scheme() == "rediss";

    let key_password = check.secret("redis.password", &raw.password);
    if url.password() == Some(MASK) {
        check.refuse("redis.url", None, format!("{MASK} stands for a password where one is printed"));
    }
    let password = match choose(check, "redis.password", url.password().is_some(), key_password.is_some()) {
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
    let ca_pem = certificate(check, raw);
    if ca_pem.is_some() && !tls {
        check.note("redis.tls", "is off, so that the certificate authority isn't used");
    }
    let url = with_tls(&url, tls);
    Some(LinkSettings {
        url: SecretString::from(url),
        password,
        db: Some(i64::from(db)),
        ca_pem,
        sentinel: sentinel(check, raw, tls),
        connect_timeout: raw.connect_timeout,
        response_timeout: raw.response_timeout,
    })
}

/// The link to the Redis of tenant events: that of the balances, unless another is named.
pub(super) fn events_link(
    check: &mut Check<'_>,
    raw: &raw::EventsRedis,
    balances: Option<&LinkSettings>,
) -> Option<LinkSettings> {
    let password = check.secret("tenants.events_redis.password", &raw.password);
    if raw.host.is_empty() {
        return balances.cloned();
    }
    let key = "tenants.events_redis.host";
    let ca_key = "tenants.events_redis.ca_cert_base64";
    let own_ca =
        if raw.ca_cert_base64.is_empty() { None } else { encoded(check, ca_key, &raw.ca_cert_base64) };
    // A bare IPv6 address has no port: that stands in a variable of its own.
    let host = raw.host.trim();
    let host = host.parse::<Ipv6Addr>().map_or_else(|_| host.to_owned(), |host| format!("[{host}]"));
    let Some(url) = address(&host).filter(|url| url.port().is_none()) else {
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
        // Where none is named, the same authority as the other's.
        ca_pem: own_ca.or_else(|| balances?.ca_pem.clone()),
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
    if url.is_none() {
        check.refuse("redis.url", Some(quoted(text)), URL_FORM);
    }
    url
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

fn sentinel(check: &mut Check<'_>, raw: &raw::Redis, tls: bool) -> Option<(String, Vec<String>)> {
    match (raw.master_name.is_empty(), raw.sentinels.is_empty()) {
        (true, true) => return None,
        (true, false) if matches!(check.origin("redis.sentinels"), Origin::Ledger(_)) => {
            // A server that the file or our own variable names goes before the ledger's variable.
            if check.origin("redis.url").rank() > check.origin("redis.sentinels").rank() {
                return None;
            }
            let shown = quoted(&raw.sentinels.join(","));
            check.refuse("redis.sentinels", Some(shown), CLUSTER);
        }
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
    let mut urls = Vec::new();
    for (index, text) in raw.sentinels.iter().enumerate() {
        match address(text) {
            Some(mut url) => {
                if url.port().is_none() {
                    // Fails only for URLs without a host, which `address` doesn't give.
                    let _ = url.set_port(Some(SENTINEL_PORT));
                }
                urls.push(with_tls(&url, tls));
            }
            None => check.refuse(&format!("redis.sentinels[{index}]"), Some(quoted(text)), SENTINEL_FORM),
        }
    }
    Some((raw.master_name.clone(), urls))
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

/// The certificate authority, from a file or from base64.
fn certificate(check: &mut Check<'_>, raw: &raw::Redis) -> Option<Vec<u8>> {
    let (file, text) = ("redis.ca_cert", "redis.ca_cert_base64");
    let (file_set, text_set) = (!raw.ca_cert.is_empty(), !raw.ca_cert_base64.is_empty());
    let (file_origin, text_origin) = (check.origin(file), check.origin(text));
    if file_set && text_set && file_origin.rank() == text_origin.rank() {
        check.refuse(text, None, format!("stands beside {file} ({file_origin}); allowed: one of them"));
        return None;
    }
    if file_set && (!text_set || file_origin.rank() > text_origin.rank()) {
        let shown = Some(quoted(&raw.ca_cert));
        return match std::fs::read(&raw.ca_cert) {
            Ok(pem) if is_pem(&pem) => Some(pem),
            Ok(_) => {
                check.refuse(file, shown, "allowed: a PEM file with a certificate; it has none");
                None
            }
            Err(error) => {
                check.refuse(
                    file,
                    shown,
                    format!("allowed: a readable PEM file; this can't be read: {error}"),
                );
                None
            }
        };
    }
    if !text_set {
        return None;
    }
    encoded(check, text, &raw.ca_cert_base64)
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
