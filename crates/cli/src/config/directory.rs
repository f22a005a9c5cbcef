//! `redis.directory`: a file that says which tenants live on which Redis, and how each Redis is reached.
//!
//! An entry `[redis.NAME]` is a layer of its own over `[redis]`, so that its keys are read, checked and shown as those are. Where its server
//! is the entry says alone: an address of `[redis]` is that of a worker without a directory.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use balance_sync_engine::rollout::Pattern;
use balance_sync_engine::routes::{Entry, Routes};
use balance_sync_schedule::LinkSettings;
use figment::value::{Dict, Value};
use secrecy::ExposeSecret;

use super::layers::{Layer, Layers, parse};
use super::manual;
use super::problem::{Origin, Problem, quoted, shown};

/// Largest file, in bytes: some 300,000 ids of 36 characters.
const LARGEST: u64 = 16 << 20;
/// Problems that are listed one by one.
const MOST_PROBLEMS: usize = 50;
/// Keys of `[redis]` that an entry can't have: they say which entry it is.
const NOT_OF_ENTRIES: [&str; 2] = ["directory", "name"];
/// Keys that say where a server is, with what they are where an entry doesn't name them.
fn addresses() -> [(&'static str, Value); 5] {
    let none = || Value::from(Vec::<String>::new());
    [
        ("url", Value::from("redis://127.0.0.1:6379")),
        ("db", Value::from(0_u32)),
        ("master_name", Value::from("")),
        ("sentinels", none()),
        ("cluster_nodes", none()),
    ]
}

/// The file as it was read.
#[derive(Debug)]
pub(super) struct DirectoryFile {
    pub path: PathBuf,
    pub routes: Arc<Routes>,
    /// The keys of each entry, without those that say which tenants.
    pub entries: Vec<(String, Dict)>,
    /// What the file held.
    pub digest: u64,
}

/// Which tenants live on which Redis, once it is known to be good.
#[derive(Debug, Clone)]
pub(crate) struct RedisDirectory {
    /// The file.
    pub path: PathBuf,
    /// The entry of this worker or command.
    pub own: String,
    /// Which tenants live where.
    pub routes: Arc<Routes>,
    /// All entries, in the file's order of names.
    pub entries: Vec<RedisEntry>,
    /// What the file held when it was read.
    pub digest: u64,
}

/// One Redis of the directory.
#[derive(Debug, Clone)]
pub(crate) struct RedisEntry {
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub link: LinkSettings,
}

impl RedisDirectory {
    /// Tells the server of this worker apart from others.
    pub(crate) fn own_server(&self) -> Option<String> {
        self.entries.iter().find(|entry| entry.name == self.own).map(|entry| server(&entry.link))
    }
}

/// The bytes of a directory.
///
/// # Errors
/// When it can't be read, or is too large.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let mut held = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| format!("can't be read: {error}"))?;
    file.take(LARGEST + 1).read_to_end(&mut held).map_err(|error| format!("can't be read: {error}"))?;
    if held.len() as u64 > LARGEST {
        return Err(format!("is too large; allowed: at most {LARGEST} bytes"));
    }
    Ok(held)
}

/// Tells contents apart: FNV-1a.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl DirectoryFile {
    /// Reads the file; none when anything in it is refused.
    pub(super) fn read(path: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        let origin = Origin::Directory(PathBuf::from(path), String::new());
        let before = problems.len();
        let mut refuse = |key: &str, value: Option<String>, reason: String| {
            problems.push(Problem { key: key.to_owned(), value, origin: Some(origin.clone()), reason });
        };
        let held = match bytes(Path::new(path)) {
            Ok(held) => held,
            Err(why) => {
                refuse("", None, why);
                return None;
            }
        };
        let digest = digest(&held);
        let Ok(text) = String::from_utf8(held) else {
            refuse("", None, "is not UTF-8 text".to_owned());
            return None;
        };
        let mut broken = Vec::new();
        let mut top = parse(&text, &origin, &mut broken);
        if !broken.is_empty() {
            problems.append(&mut broken);
            return None;
        }
        let sections = top.remove("redis");
        for name in top.keys() {
            refuse(name, None, "unknown key; allowed: tables [redis.NAME]".to_owned());
        }
        let Some(Value::Dict(_, sections)) = sections else {
            refuse("redis", None, "is missing; allowed: one table [redis.NAME] for each Redis".to_owned());
            return None;
        };
        let known = redis_keys();
        let (mut entries, mut tenants) = (Vec::new(), Vec::new());
        for (name, section) in sections {
            let Value::Dict(_, mut section) = section else {
                refuse(&format!("redis.{name}"), None, "is no table; allowed: [redis.NAME]".to_owned());
                continue;
            };
            let mut entry = Entry { name: name.clone(), tenants: Vec::new(), default: false };
            match section.remove("default") {
                None => {}
                Some(Value::Bool(_, is_default)) => entry.default = is_default,
                Some(other) => {
                    let key = format!("redis.{name}.default");
                    refuse(&key, shown(&key, &other), "allowed: true or false".to_owned());
                }
            }
            match section.remove("tenants") {
                None => {}
                Some(Value::Array(_, items)) => {
                    for (at, item) in items.iter().enumerate() {
                        let key = format!("redis.{name}.tenants[{at}]");
                        match item.as_str().map(Pattern::parse) {
                            Some(Ok(pattern)) => entry.tenants.push(pattern),
                            Some(Err(allowed)) => refuse(&key, shown(&key, item), allowed),
                            None => {
                                refuse(&key, shown(&key, item), "allowed: a tenant id or a glob".to_owned())
                            }
                        }
                    }
                }
                Some(other) => {
                    let key = format!("redis.{name}.tenants");
                    refuse(&key, shown(&key, &other), "allowed: a list of tenant ids and globs".to_owned());
                }
            }
            for key in section.keys().filter(|key| !known.contains(key)) {
                let meant =
                    manual::nearest(key, known.iter().map(String::as_str).chain(["tenants", "default"]));
                let meant = meant.map_or_else(
                    || "those of [redis], tenants and default are allowed".to_owned(),
                    |meant| format!("did you mean {meant}?"),
                );
                refuse(&format!("redis.{name}.{key}"), None, format!("unknown key; {meant}"));
            }
            if !["url", "master_name", "cluster_nodes"].iter().any(|key| section.contains_key(*key)) {
                let allowed = "is missing; allowed: the address of this Redis, or master_name and sentinels, or cluster_nodes";
                refuse(&format!("redis.{name}.url"), None, allowed.to_owned());
            }
            let url = section.get("url").and_then(Value::as_str).and_then(|text| url::Url::parse(text).ok());
            let names_database = url.is_some_and(|url| url.path().len() > 1);
            // A database that the URL names counts; that of `[redis]` comes before it.
            for (key, absent) in addresses().into_iter().filter(|(key, _)| *key != "db" || !names_database) {
                section.entry(key.to_owned()).or_insert(absent);
            }
            entries.push((name, section));
            tenants.push(entry);
        }
        let routes = match Routes::new(tenants) {
            Ok(routes) => Some(routes),
            Err(found) => {
                for problem in found {
                    let parts = ["redis", &problem.entry, problem.part];
                    let key: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                    refuse(&key.join("."), problem.value.map(|value| quoted(&value)), problem.reason);
                }
                None
            }
        };
        if problems.len() > before + MOST_PROBLEMS {
            let more = problems.len() - before - MOST_PROBLEMS;
            problems.truncate(before + MOST_PROBLEMS);
            let reason = format!("{more} more problems");
            problems.push(Problem { key: String::new(), value: None, origin: Some(origin), reason });
        }
        let routes = routes.filter(|_| problems.len() == before)?;
        Some(Self { path: PathBuf::from(path), routes: Arc::new(routes), entries, digest })
    }

    /// The names of the entries.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// What an entry sets over `[redis]`.
    pub(super) fn layer(&self, name: &str) -> Option<Layer> {
        let (_, section) = self.entries.iter().find(|(entry, _)| entry == name)?;
        let values = Dict::from([("redis".to_owned(), Value::from(section.clone()))]);
        Some(Layer { origin: Origin::Directory(self.path.clone(), name.to_owned()), values })
    }
}

/// The keys that an entry may have beside its tenants.
fn redis_keys() -> Vec<String> {
    let keys = manual::section_keys("redis");
    keys.into_iter().filter(|key| !NOT_OF_ENTRIES.contains(&key.as_str())).collect()
}

/// What tells two servers apart: where they are, and the database.
fn server(link: &LinkSettings) -> String {
    let database = link.db.unwrap_or_default();
    match (&link.sentinel, link.cluster_nodes.as_slice()) {
        (Some(sentinel), _) => format!("{} of {} {database}", sentinel.master, sentinel.urls.join(",")),
        (None, []) => {
            let url = url::Url::parse(link.url.expose_secret()).ok();
            let host = url.as_ref().and_then(url::Url::host_str).unwrap_or_default().to_owned();
            let port = url.as_ref().and_then(url::Url::port).unwrap_or(6379);
            format!("{host}:{port} {database}")
        }
        (None, nodes) => nodes.join(","),
    }
}

/// Two entries may not be one Redis: the workers of both would share tenants out that only one of them serves.
pub(super) fn same_server(entries: &[RedisEntry]) -> Option<(&str, &str)> {
    let servers: Vec<String> = entries.iter().map(|entry| server(&entry.link)).collect();
    for (at, one) in servers.iter().enumerate() {
        if let Some(first) = servers[..at].iter().position(|other| other == one) {
            return Some((&entries[at].name, &entries[first].name));
        }
    }
    None
}

/// The layers with this entry on top.
pub(super) fn layers_of(layers: &Layers, file: &DirectoryFile, name: &str) -> Option<Layers> {
    let mut layers = layers.clone();
    layers.push(file.layer(name)?);
    Some(layers)
}
