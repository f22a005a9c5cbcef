//! The configuration: four layers (`layers.rs`) read into raw structs (`raw.rs`), checked and turned into one [`Config`]
//! (`validate.rs`, `redis.rs`, `tenants.rs`, `telemetry.rs`), and shown again with the origin of every value (`print.rs`).
//!
//! `config/default.toml` is the manual. Every problem is reported in one go (`problem.rs`), none shows a secret.

mod admin;
mod layers;
mod ledger_env;
mod manual;
mod otel_env;
mod print;
mod problem;
mod raw;
mod redis;
mod telemetry;
mod tenants;
#[cfg(test)]
mod tests;
mod types;
mod validate;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub(crate) use print::print;
pub(crate) use problem::{ConfigError, ConfigNote};
pub(crate) use types::{
    Config, Log, LogFormat, Metrics, Otlp, OtlpProtocol, Redis, Sampler, TenantSource, Traces,
};

/// The variable that names the configuration file when no option does.
pub(crate) const FILE_VARIABLE: &str = "BALANCE_SYNC_CONFIG";

/// Reads and checks the configuration. `environment` is normally `std::env::vars_os()`; `file` goes before the file
/// that [`FILE_VARIABLE`] names.
///
/// # Errors
/// Everything that is wrong, at once: files that can't be read, unknown keys, values that aren't allowed, values that
/// contradict each other.
pub(crate) fn load<K: Into<OsString>, V: Into<OsString>>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (K, V)>,
) -> Result<Config, ConfigError> {
    let environment = layers::Environment::new(environment);
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    let named = match environment.get(FILE_VARIABLE) {
        Some(Ok(path)) => Some(PathBuf::from(path)),
        Some(Err(problem)) if file.is_none() => {
            problems.push(problem);
            None
        }
        _ => None,
    };
    let file = file.or(named.as_deref());
    let layers = layers::Layers::assemble(file, &environment, &mut problems, &mut notes);
    match layers.extract(&mut problems) {
        Some(raw) => validate::validate(raw, &layers, problems, notes),
        None => Err(ConfigError { problems }),
    }
}
