//! `[redis]` and the Redis of tenant events: from URL and keys to the settings of a link.
//!
//! Password, user and database may stand in the URL and in keys of their own, set by different layers. What is set by
//! the later layer counts; within one layer nobody could say which was meant, so that is refused.

use balance_sync_schedule::LinkSettings;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::problem::{Origin, quoted};
use super::raw::{self, MASK};
use super::validate::Check;

const URL_FORM: &str = "allowed: redis://[user[:password]@]host[:port][/database], or rediss:// for TLS";
const SENTINEL_FORM: &str = "allowed: host:port";

/// Port of a sentinel that is named without one.
const SENTINEL_PORT: u16 = 26_379;

const PEM_HEADER: &str = "-----BEGIN CERTIFICATE-----";

/// The settings of the link to the balances' Redis; none when something was refused.
pub(super) fn link(check: &mut Check<'_>, raw: &raw::Redis) -> Option<LinkSettings> {
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
    let Some(url) = address(&raw.host).filter(|url| url.port().is_none()) else {
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
        // The same authority as the other's: one for all is what there is.
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
    Url::parse(&format!("redis://{text}"))
        .ok()
        .filter(|url| url.host_str().is_some_and(|host| !host.is_empty()))
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
    // Encoders break lines, and shells keep the breaks.
    let compact: String = raw.ca_cert_base64.split_whitespace().collect();
    let pem = STANDARD.decode(compact).ok().filter(|pem| is_pem(pem));
    if pem.is_none() {
        check.refuse(text, None, "allowed: a PEM certificate, encoded in base64");
    }
    pem
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(PEM_HEADER.len()).any(|window| window == PEM_HEADER.as_bytes())
}
