//! The configuration: four layers (`layers.rs`) read into raw structs (`raw.rs`), checked and turned into one [`Config`]
//! (`validate.rs`, `redis.rs`, `tenants.rs`, `telemetry.rs`), and shown again with the origin of every value (`print.rs`).
//!
//! `config/default.toml` is the manual. Every problem is reported in one go (`problem.rs`), none shows a secret.

mod admin;
pub(crate) mod directory;
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

use directory::{DirectoryFile, RedisEntry};
use layers::Layers;
use problem::Problem;

pub(crate) use directory::RedisDirectory;
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
    load_for(file, environment, None)
}

/// The names of the entries of the Redis directory; none where there is no directory.
///
/// # Errors
/// What is wrong with the layers or the directory.
pub(crate) fn redis_names<K: Into<OsString>, V: Into<OsString>>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (K, V)>,
) -> Result<Vec<String>, ConfigError> {
    let environment = layers::Environment::new(environment);
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    let layers = assemble(file, &environment, &mut problems, &mut notes);
    let Some(path) = layers.text("redis.directory") else { return Ok(Vec::new()) };
    match DirectoryFile::read(&path, &mut problems) {
        Some(directory) => Ok(directory.names().map(str::to_owned).collect()),
        None => Err(ConfigError { problems }),
    }
}

/// As [`load`], for this entry of the Redis directory instead of `redis.name`.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_for<K: Into<OsString>, V: Into<OsString>>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (K, V)>,
    redis: Option<&str>,
) -> Result<Config, ConfigError> {
    let environment = layers::Environment::new(environment);
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    let mut layers = assemble(file, &environment, &mut problems, &mut notes);
    let directory = match layers.text("redis.directory") {
        Some(path) => in_directory(&mut layers, &path, redis, &mut problems),
        None => {
            if layers.text("redis.name").is_some() {
                let reason = "names an entry of redis.directory, which isn't set; needs redis.directory";
                problems.push(problem(&layers, "redis.name", None, reason.to_owned()));
            }
            None
        }
    };
    match layers.extract(&mut problems) {
        Some(raw) => validate::validate(raw, &layers, directory, problems, notes),
        None => Err(ConfigError { problems }),
    }
}

/// Reads the directory, and puts the entry of this worker on top of the layers.
fn in_directory(
    layers: &mut Layers,
    path: &str,
    redis: Option<&str>,
    problems: &mut Vec<Problem>,
) -> Option<RedisDirectory> {
    let file = DirectoryFile::read(path, problems)?;
    let own = redis.map(str::to_owned).or_else(|| layers.text("redis.name")).unwrap_or_default();
    let mut entries = Vec::new();
    let before = problems.len();
    for name in file.names() {
        let of_entry = directory::layers_of(layers, &file, name)?;
        let mut found = Vec::new();
        let raw = of_entry.extract(&mut found);
        // What is wrong with the other layers is reported by itself.
        let is_of_entry = |problem: &Problem| matches!(problem.origin, Some(problem::Origin::Directory(..)));
        problems.extend(found.into_iter().filter(is_of_entry).filter(|_| name != own));
        if let Some(raw) = raw {
            let mut found = Vec::new();
            let link = validate::entry_link(&raw, &of_entry, &mut found);
            // That of this worker is checked with all else.
            problems.extend(found.into_iter().filter(|_| name != own));
            entries.extend(link.map(|link| RedisEntry { name: name.to_owned(), link }));
        }
    }
    let Some(layer) = file.layer(&own) else {
        let names: Vec<&str> = file.names().collect();
        let reason = format!(
            "which entry of redis.directory this worker or command is for; allowed: {}",
            names.join(", ")
        );
        let value = Some(own).filter(|own| !own.is_empty()).map(|own| problem::quoted(&own));
        problems.push(problem(layers, "redis.name", value, reason));
        return None;
    };
    layers.push(layer);
    if let Some((name, first)) = directory::same_server(&entries) {
        let reason =
            format!("is the Redis of {first} as well; allowed: a Redis, or a database, for each entry");
        problems.push(Problem {
            key: format!("redis.{name}.url"),
            value: None,
            origin: Some(problem::Origin::Directory(file.path.clone(), name.to_owned())),
            reason,
        });
    }
    (problems.len() == before).then_some(RedisDirectory {
        path: file.path,
        own,
        routes: file.routes,
        entries,
        digest: file.digest,
    })
}

fn problem(layers: &Layers, key: &str, value: Option<String>, reason: String) -> Problem {
    Problem { key: key.to_owned(), value, origin: Some(layers.origin(key)), reason }
}

/// The four layers.
fn assemble(
    file: Option<&Path>,
    environment: &layers::Environment,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<ConfigNote>,
) -> Layers {
    let named = match environment.get(FILE_VARIABLE) {
        Some(Ok(path)) => Some(PathBuf::from(path)),
        Some(Err(problem)) if file.is_none() => {
            problems.push(problem);
            None
        }
        _ => None,
    };
    let file = file.or(named.as_deref());
    Layers::assemble(file, environment, problems, notes)
}
