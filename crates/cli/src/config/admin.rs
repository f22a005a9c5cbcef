//! `[admin]`: where the interface listens, who may do what, and under which name.

use std::net::{IpAddr, SocketAddr};

use balance_sync_admin::{LONGEST_NAME, NamedToken, Role, TrustedProxies};
use secrecy::{ExposeSecret, SecretString};

use super::problem::quoted;
use super::raw::{self, MASK};
use super::types::Admin;
use super::validate::Check;

/// Checks `[admin]`.
pub(super) fn admin(check: &mut Check<'_>, raw: &raw::Admin) -> Option<Admin> {
    let Ok(listen) = raw.listen.trim().parse::<SocketAddr>() else {
        check.refuse(
            "admin.listen",
            Some(quoted(&raw.listen)),
            "allowed: address:port, as 127.0.0.1:8090 or [::]:8090",
        );
        return None;
    };
    let read_token = token(check, "admin.read_token", &raw.read_token);
    let operator_token = token(check, "admin.operator_token", &raw.operator_token);
    if let (Some(read), Some(operator)) = (&read_token, &operator_token)
        && read.expose_secret() == operator.expose_secret()
    {
        check.refuse(
            "admin.read_token",
            Some(MASK.to_owned()),
            "allowed: another one than admin.operator_token, or its bearers could act",
        );
    }
    let tokens = named_tokens(check, raw, [&read_token, &operator_token]);
    let proxies = proxies(check, raw);
    let open = raw.read_token.expose_secret().is_empty()
        && raw.operator_token.expose_secret().is_empty()
        && raw.tokens.is_empty();
    if raw.enabled && !listen.ip().is_loopback() && open {
        check.refuse(
            "admin.listen",
            Some(quoted(&raw.listen)),
            "allowed: an address of this machine alone (127.0.0.1, [::1]), or any with admin.read_token or \
             admin.operator_token set: every client that reaches it could pause tenants and drain workers",
        );
    }
    if raw.session_idle > raw.session_max {
        check.refuse(
            "admin.session_idle",
            Some(humantime::format_duration(raw.session_idle).to_string()),
            "allowed: at most admin.session_max",
        );
    }
    Some(Admin {
        enabled: raw.enabled,
        listen,
        read_token,
        operator_token,
        tokens,
        proxies,
        session_idle: raw.session_idle,
        session_max: raw.session_max,
        metrics_tenants: raw.metrics_tenants,
        freshness_objective: raw.freshness_objective,
    })
}

/// The tokens with names; each belongs to one bearer.
fn named_tokens(
    check: &mut Check<'_>,
    raw: &raw::Admin,
    others: [&Option<SecretString>; 2],
) -> Vec<NamedToken> {
    let mut known: Vec<(String, String)> =
        others.into_iter().flatten().map(|token| (String::new(), token.expose_secret().to_owned())).collect();
    let mut tokens = Vec::new();
    for (index, entry) in raw.tokens.iter().enumerate() {
        let at = format!("admin.tokens[{index}]");
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
        if entry.name.is_empty() || entry.name.len() > LONGEST_NAME || !entry.name.bytes().all(fits) {
            let allowed = format!("allowed: 1 to {LONGEST_NAME} of A-Z a-z 0-9 . _ @ -");
            check.refuse(&format!("{at}.name"), Some(quoted(&entry.name)), allowed);
        } else if known.iter().any(|(name, _)| *name == entry.name) {
            let reason = "stands in admin.tokens twice; allowed: each name once";
            check.refuse(&format!("{at}.name"), Some(quoted(&entry.name)), reason);
        }
        let role = match entry.role.as_str() {
            "reader" => Some(Role::Reader),
            "operator" => Some(Role::Operator),
            other => {
                check.refuse(
                    &format!("{at}.role"),
                    Some(quoted(other)),
                    "allowed: \"reader\" or \"operator\"",
                );
                None
            }
        };
        if entry.token.expose_secret().is_empty() {
            check.refuse(
                &format!("{at}.token"),
                None,
                "is needed; allowed: at least 16 visible ASCII characters",
            );
            continue;
        }
        let Some(token) = token(check, &format!("{at}.token"), &entry.token) else { continue };
        if known.iter().any(|(_, other)| other == token.expose_secret()) {
            let reason = "allowed: a token of its own, or operators could not be distinguished";
            check.refuse(&format!("{at}.token"), Some(MASK.to_owned()), reason);
        }
        known.push((entry.name.clone(), token.expose_secret().to_owned()));
        if let Some(role) = role {
            tokens.push(NamedToken { name: entry.name.clone(), role, token });
        }
    }
    tokens
}

/// The proxies that name who asks.
fn proxies(check: &mut Check<'_>, raw: &raw::Admin) -> Option<TrustedProxies> {
    let header = raw.name_header.trim().to_ascii_lowercase();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !header.bytes().all(fits) || ["authorization", "cookie", "host"].contains(&header.as_str()) {
        check.refuse(
            "admin.name_header",
            Some(quoted(&raw.name_header)),
            "allowed: empty (none), or the name of a header such as X-Forwarded-User",
        );
        return None;
    }
    let mut addresses = Vec::new();
    for address in &raw.trusted_proxies {
        match address.trim().parse::<IpAddr>() {
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) => check.refuse(
                "admin.trusted_proxies",
                Some(quoted(address)),
                "allowed: addresses such as 10.0.0.7, separated by commas",
            ),
        }
    }
    match (header.is_empty(), raw.trusted_proxies.is_empty()) {
        (true, true) => None,
        (false, false) => Some(TrustedProxies { header, addresses }),
        (true, false) => {
            check.refuse(
                "admin.name_header",
                None,
                "is needed, as admin.trusted_proxies is set; allowed: the name of a header",
            );
            None
        }
        (false, true) => {
            check.refuse(
                "admin.trusted_proxies",
                None,
                "are needed, as admin.name_header is set: any client could send it; allowed: addresses",
            );
            None
        }
    }
}

/// A token of the admin interface: something that can't be guessed and that fits into a header.
fn token(check: &mut Check<'_>, key: &str, value: &SecretString) -> Option<SecretString> {
    /// Shortest token, in characters.
    const SHORTEST: usize = 16;
    let token = check.header_secret(key, value)?;
    if token.expose_secret().len() < SHORTEST {
        let found = format!("{MASK} ({} characters)", token.expose_secret().len());
        check.refuse(key, Some(found), format!("allowed: at least {SHORTEST} visible ASCII characters"));
        return None;
    }
    Some(token)
}
