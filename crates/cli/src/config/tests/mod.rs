//! The configuration as a whole.

#![allow(clippy::unwrap_used)]

mod directory;
mod layers;
mod ledger;
mod redis;
mod reference;
mod refusals;
mod shown;
mod telemetry;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use balance_sync_domain::TlsMode;
use balance_sync_schedule::{Authority, LinkSettings, Secret};
use balance_sync_tenants::KeyForm;
use base64::Engine as _;
use figment::value::Value;
use secrecy::ExposeSecret;

use crate::config;

use super::ledger_env::{Kind, VARIABLES};

use super::{
    Config, ConfigError, LogFormat, OtlpProtocol, Sampler, TenantSource, Traces, manual, otel_env, print,
};

/// A secret that must not be seen anywhere.
const SECRET: &str = "hunter2-sesame";

const PEM: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

/// What the default source needs, so that a test speaks of what it is about.
const COMPLETE: [(&str, &str); 2] = [
    ("BALANCE_SYNC__TENANTS__SERVICE__URL", "https://tenants.internal"),
    ("BALANCE_SYNC__TENANTS__SERVICE__API_KEY", SECRET),
];

/// A configuration file that is gone when the test is over.
struct File(tempfile::TempDir);

impl File {
    fn new(text: &str) -> File {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("sync.toml"), text).unwrap();
        File(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("sync.toml")
    }
}

fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let file = File::new(file);
    config::load(Some(&file.path()), environment.iter().copied())
}

/// Loads with a complete tenant service.
fn complete(file: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    load(file, &[&COMPLETE, environment].concat())
}

fn refused(file: &str, environment: &[(&str, &str)]) -> ConfigError {
    let error = complete(file, environment).unwrap_err();
    assert!(!error.to_string().contains(SECRET), "{error}");
    assert!(!format!("{error:?}").contains(SECRET));
    error
}

/// The only problem, as text.
fn problem(file: &str, environment: &[(&str, &str)]) -> String {
    let error = refused(file, environment);
    assert_eq!(error.problems.len(), 1, "{error}");
    error.problems[0].to_string()
}

/// The password that a link has by its own setting.
fn password(link: &LinkSettings) -> &str {
    match &link.password {
        Some(Secret::Text(password)) => password.expose_secret(),
        _ => panic!("no password as text"),
    }
}

/// What is printed for a key, with its comment.
fn printed(config: &Config, key: &str) -> String {
    let (section, name) = key.rsplit_once('.').unwrap();
    let text = print(config);
    let start = text.find(&format!("\n[{section}]\n")).unwrap();
    let found = text[start..].lines().skip(2).take_while(|line| !line.starts_with('['));
    let start = format!("{name} = ");
    found.filter_map(|line| line.strip_prefix(&start)).next().unwrap().to_owned()
}

/// Two listed tenants, one with limits above the worker's.
const TENANTS: &str = r#"
    [tenants]
    source = "static"
    [[tenants.list]]
    id = "acme"
    host = "pg"
    database = "acme"
    username = "ledger"
    password = "hunter2-sesame"
    max_open_conns = 25
    statement_timeout = "30s"
    [[tenants.list]]
    id = "globex"
    host = "pg"
    port = 5433
    database = "shared"
    username = "ledger"
    schema = "globex"
    sslmode = "verify-full"
"#;
