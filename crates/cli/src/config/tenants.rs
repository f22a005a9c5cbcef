//! `[tenants]`: where the tenants come from. Only the section of the chosen source must be complete.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use balance_sync_domain::TenantId;
use balance_sync_engine::rollout::{Pattern, Selection, Share};
use balance_sync_engine::weights::Weights;
use balance_sync_schedule::LinkSettings;
use balance_sync_tenants::{ConnectionSettings, StaticTenant, TenantDatabase};
use secrecy::SecretString;
use url::Url;

use super::problem::quoted;
use super::raw::{self, Raw, SourceKind};
use super::redis::{events_link, url_host_fault};
use super::types::{Events, Service, TenantSource, Tenants};
use super::validate::{Check, Ranged};

const SERVICE_URL_FORM: &str = "allowed: https://host[:port][/path]";

/// Checks `[tenants]` and all below it; none when something was refused. Limits of listed tenants above the worker's
/// own are brought down to it in `raw`.
pub(super) fn tenants(check: &mut Check<'_>, raw: &mut Raw, link: Option<&LinkSettings>) -> Option<Tenants> {
    let listed = listed(check, raw);
    let raw = &raw.tenants;
    let single_password = check.secret("tenants.single.password", &raw.single.password);
    let api_key = check.header_secret("tenants.service.api_key", &raw.service.api_key);
    let source = match raw.source {
        SourceKind::Service => {
            service(check, &raw.service, &raw.environment, api_key).map(TenantSource::Service)
        }
        SourceKind::Static if raw.list.is_empty() => {
            check.refuse(
                "tenants.list",
                None,
                "is needed, as tenants.source is \"static\"; allowed: at least one [[tenants.list]] table",
            );
            None
        }
        SourceKind::Static => Some(TenantSource::Static(listed)),
        SourceKind::Single => single(check, &raw.single, single_password).map(TenantSource::Single),
    };
    if raw.source != SourceKind::Static && !raw.list.is_empty() {
        check.note("tenants.list", "isn't used, as tenants.source isn't \"static\"");
    }
    let events = events(check, raw, link);
    let rollout = rollout(check, raw);
    let weights = weights(check, raw);
    Some(Tenants {
        source: source?,
        poll_interval: raw.poll_interval,
        max_removed_share: raw.max_removed_share,
        confirm_polls: raw.confirm_polls,
        key_form: raw.key_form,
        rollout: rollout?,
        weights: weights?,
        events,
    })
}

fn service(
    check: &mut Check<'_>,
    raw: &raw::Service,
    environment: &str,
    api_key: Option<SecretString>,
) -> Option<Service> {
    if api_key.is_none() {
        check.refuse(
            "tenants.service.api_key",
            None,
            "is needed, as tenants.source is \"service\" (ledger variable MULTI_TENANT_SERVICE_API_KEY)",
        );
    }
    let name_fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if raw.service.is_empty() || !raw.service.chars().all(name_fits) {
        let allowed = "allowed: letters, digits, \"-\", \"_\" and \".\"";
        check.refuse("tenants.service.service", Some(quoted(&raw.service)), allowed);
    }
    Some(Service {
        url: service_url(check, raw, environment)?,
        api_key: api_key?,
        service: raw.service.clone(),
        allow_plain_http: raw.allow_plain_http || may_be_plain(environment),
        request_timeout: raw.request_timeout,
        connect_timeout: raw.connect_timeout,
        max_body: usize::try_from(raw.max_body.0).unwrap_or(usize::MAX),
        retries: raw.retries,
        breaker_threshold: raw.breaker_threshold,
        breaker_timeout: raw.breaker_timeout,
        settings_ttl: raw.settings_ttl,
    })
}

/// Environments in which the ledger allows a tenant service without TLS.
const PLAIN_ENVIRONMENTS: [&str; 6] = ["local", "development", "dev", "test", "testing", "staging"];

fn may_be_plain(environment: &str) -> bool {
    PLAIN_ENVIRONMENTS.iter().any(|name| environment.eq_ignore_ascii_case(name))
}

fn service_url(check: &mut Check<'_>, raw: &raw::Service, environment: &str) -> Option<Url> {
    let key = "tenants.service.url";
    let text = raw.url.trim();
    if text.is_empty() {
        let reason = "is needed, as tenants.source is \"service\" (ledger variable MULTI_TENANT_URL); for one tenant \
                      without a tenant service set tenants.source to \"single\" (MULTI_TENANT_ENABLED=false)";
        check.refuse(key, None, reason);
        return None;
    }
    let shown = Some(quoted(text));
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    let Some(url) = url else {
        check.refuse(key, shown, format!("{SERVICE_URL_FORM}, without credentials, query or fragment"));
        return None;
    };
    if let Some(wrong) = url_host_fault(text, &url) {
        check.refuse(key, shown, format!("{wrong}; {SERVICE_URL_FORM}"));
        return None;
    }
    if url.scheme() == "http" && !raw.allow_plain_http && may_be_plain(environment) {
        let text = format!(
            "is http://, which is allowed in the environment {}: its answers contain passwords",
            quoted(environment)
        );
        check.note(key, text);
    } else if url.scheme() == "http" && !raw.allow_plain_http {
        check.refuse(
            key,
            shown,
            format!("{SERVICE_URL_FORM}; http:// only with tenants.service.allow_plain_http = true, or where the environment \
                 (ENVIRONMENT_NAME) is {}", PLAIN_ENVIRONMENTS.join(", ")),
        );
        return None;
    }
    Some(url)
}

fn single(
    check: &mut Check<'_>,
    raw: &raw::Single,
    password: Option<SecretString>,
) -> Option<TenantDatabase> {
    let needed = [
        ("host", &raw.host, "DB_TRANSACTION_HOST"),
        ("database", &raw.database, "DB_TRANSACTION_NAME"),
        ("username", &raw.username, "DB_TRANSACTION_USER"),
    ];
    for (field, value, variable) in needed {
        if value.is_empty() {
            let reason = format!("is needed, as tenants.source is \"single\" (ledger variable {variable})");
            check.refuse(&format!("tenants.single.{field}"), None, reason);
        }
    }
    let database = TenantDatabase {
        host: raw.host.clone(),
        port: u16::try_from(raw.port).ok()?,
        database: raw.database.clone(),
        username: raw.username.clone(),
        password: password.unwrap_or_default(),
        schema: None,
        tls: raw.sslmode,
        root_cert: path(&raw.sslrootcert),
        cert: None,
        key: None,
        settings: ConnectionSettings::default(),
    };
    valid(check, "tenants.single", &database).then_some(database)
}

/// The listed tenants; those with a problem are left out, and the problem refuses the whole.
fn listed(check: &mut Check<'_>, raw: &mut Raw) -> Vec<StaticTenant> {
    let limits = raw.postgres.clone();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut tenants = Vec::new();
    for (index, entry) in raw.tenants.list.iter_mut().enumerate() {
        let at = format!("tenants.list[{index}]");
        let id = match TenantId::parse(&entry.id) {
            Ok(id) => Some(id),
            Err(error) => {
                check.refuse(&format!("{at}.id"), None, error.to_string());
                None
            }
        };
        if let Some(first) = seen.insert(entry.id.clone(), index)
            && id.is_some()
        {
            let reason = format!("stands in tenants.list[{first}] too; allowed: each id once");
            check.refuse(&format!("{at}.id"), Some(quoted(&entry.id)), reason);
        }
        for (field, value) in
            [("host", &entry.host), ("database", &entry.database), ("username", &entry.username)]
        {
            if value.is_empty() {
                check.refuse(&format!("{at}.{field}"), None, "is needed for every tenant; allowed: any text");
            }
        }
        limit(
            check,
            &format!("{at}.max_open_conns"),
            &mut entry.max_open_conns,
            limits.connections_per_tenant,
        );
        limit(
            check,
            &format!("{at}.statement_timeout"),
            &mut entry.statement_timeout,
            limits.statement_timeout,
        );
        check.exactly_within(&format!("{at}.port"), entry.port, 1..=65_535);
        let password = check.secret(&format!("{at}.password"), &entry.password).unwrap_or_default();
        let (Some(id), Ok(port)) = (id, u16::try_from(entry.port)) else { continue };
        let database = TenantDatabase {
            host: entry.host.clone(),
            port,
            database: entry.database.clone(),
            username: entry.username.clone(),
            password,
            schema: (!entry.schema.is_empty()).then(|| entry.schema.clone()),
            tls: entry.sslmode,
            root_cert: path(&entry.sslrootcert),
            cert: path(&entry.sslcert),
            key: path(&entry.sslkey),
            settings: ConnectionSettings {
                max_open_conns: entry.max_open_conns,
                max_idle_conns: None,
                statement_timeout: entry.statement_timeout,
            },
        };
        if valid(check, &at, &database) {
            tenants.push(StaticTenant { id, name: None, database });
        }
    }
    crowded(check, &tenants, limits.connections_per_tenant, limits.connections_per_server);
    tenants
}

/// A limit that a tenant asks for: not nothing, and not above the worker's own.
fn limit<T: Ranged + Default>(check: &mut Check<'_>, key: &str, asked: &mut Option<T>, most: T) {
    let Some(value) = asked else { return };
    if *value <= T::default() {
        check.refuse(key, Some(value.written()), "allowed: more than 0");
    } else if *value > most {
        check.note(
            key,
            format!("{} is clamped to {}, the worker's own limit", value.written(), most.written()),
        );
        *value = most;
    }
}

/// Notes servers on which not all tenants can be busy at once.
fn crowded(check: &mut Check<'_>, tenants: &[StaticTenant], per_tenant: u32, per_server: u32) {
    let mut wanted: HashMap<(&str, u16), u64> = HashMap::new();
    for StaticTenant { database, .. } in tenants {
        let connections = database.settings.max_open_conns.unwrap_or(per_tenant);
        *wanted.entry((&database.host, database.port)).or_default() += u64::from(connections);
    }
    let mut crowded: Vec<_> = wanted.into_iter().filter(|(_, sum)| *sum > u64::from(per_server)).collect();
    crowded.sort_unstable();
    for ((host, port), sum) in crowded {
        let text =
            format!("is {per_server}, while the tenants on {host}:{port} may want {sum}: some will wait");
        check.note("postgres.connections_per_server", text);
    }
}

fn valid(check: &mut Check<'_>, at: &str, database: &TenantDatabase) -> bool {
    match database.validate() {
        Ok(()) => true,
        Err(error) => {
            check.refuse(&format!("{at}.{}", error.field), None, error.reason);
            false
        }
    }
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

/// Which tenants are served.
fn rollout(check: &mut Check<'_>, raw: &raw::Tenants) -> Option<Selection> {
    let mut list = |key: &str, texts: &[String]| {
        let mut patterns = BTreeSet::new();
        let mut complete = true;
        for text in texts {
            match Pattern::parse(text) {
                Ok(pattern) => drop(patterns.insert(pattern)),
                Err(allowed) => {
                    check.refuse(key, Some(quoted(text)), allowed);
                    complete = false;
                }
            }
        }
        if let Err(allowed) = Selection::new(patterns.clone(), BTreeSet::new(), Share::ALL) {
            check.refuse(key, Some(format!("{} entries", patterns.len())), allowed);
            complete = false;
        }
        complete.then_some(patterns)
    };
    let include = list("tenants.include", &raw.include);
    let exclude = list("tenants.exclude", &raw.exclude);
    let share = match Share::parse(&raw.share) {
        Ok(share) => share,
        Err(allowed) => {
            check.refuse("tenants.share", Some(quoted(&raw.share)), allowed);
            return None;
        }
    };
    // Each list is within its bounds.
    Selection::new(include?, exclude?, share).ok()
}

/// Which tenants get more than others.
fn weights(check: &mut Check<'_>, raw: &raw::Tenants) -> Option<Weights> {
    if raw.source == SourceKind::Single && !raw.weights.is_empty() {
        check.note("tenants.weights", "is of no effect, as tenants.source is \"single\"");
    }
    match Weights::parse(&raw.weights) {
        Ok(weights) => Some(weights),
        Err((entry, allowed)) => {
            check.refuse("tenants.weights", Some(quoted(&entry)), allowed);
            None
        }
    }
}

fn events(check: &mut Check<'_>, raw: &raw::Tenants, link: Option<&LinkSettings>) -> Option<Events> {
    let link = events_link(check, &raw.events_redis, link);
    if raw.environment.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) {
        let allowed = "allowed: any text without spaces or colons";
        check.refuse("tenants.environment", Some(quoted(&raw.environment)), allowed);
    }
    if !raw.events || raw.source != SourceKind::Service {
        return None;
    }
    if raw.environment.is_empty() {
        check.note(
            "tenants.events",
            "is of no effect, as tenants.environment (ENVIRONMENT_NAME, ENV_NAME) isn't set",
        );
        return None;
    }
    Some(Events { channel: format!("tenant-events:{}:", raw.environment), link: link? })
}
