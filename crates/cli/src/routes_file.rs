//! The Redis directory of a running worker, read again when the file has changed.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use balance_sync_view::routing::{DirectorySource, Reading};

use crate::{
    config::{self, RedisDirectory, directory},
    wiring,
};

/// The file that `redis.directory` names, as a worker of one of its entries reads it.
pub(crate) struct RoutesFile {
    config: Option<PathBuf>,
    path: PathBuf,
    own: String,
    /// Where the own Redis is.
    server: Option<String>,
    /// What it held when it was read last.
    seen: Mutex<Option<u64>>,
}

impl RoutesFile {
    pub(crate) fn new(config: Option<&Path>, directory: &RedisDirectory) -> Arc<Self> {
        Arc::new(Self {
            config: config.map(Path::to_owned),
            path: directory.path.clone(),
            own: directory.own.clone(),
            server: directory.own_server(),
            seen: Mutex::new(Some(directory.digest)),
        })
    }
}

impl DirectorySource for RoutesFile {
    fn read(&self, force: bool) -> Result<Option<Reading>, String> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match directory::bytes(&self.path) {
            Ok(held) => directory::digest(&held),
            Err(why) => {
                *seen = None;
                return Err(format!("{}: {why}", self.path.display()));
            }
        };
        if *seen == Some(now) && !force {
            return Ok(None);
        }
        *seen = Some(now);
        // All of it, as what an entry doesn't name is that of `[redis]`.
        let read = config::load_for(self.config.as_deref(), std::env::vars_os(), Some(&self.own));
        let config = read.map_err(|error| first(&error))?;
        let found = config.redis.directory.as_ref().ok_or("redis.directory is not set any more")?;
        if found.path != self.path {
            return Err("redis.directory names another file: that takes a restart".to_owned());
        }
        if found.own_server() != self.server {
            return Err(format!("entry {} names another server: that takes a restart", self.own));
        }
        let others = wiring::other_servers(&config, found).map_err(|error| error.to_string())?;
        Ok(Some(Reading { routes: Arc::clone(&found.routes), others }))
    }
}

/// The first of the problems, and how many more there are: it becomes a part of a sentence.
fn first(error: &config::ConfigError) -> String {
    let more = match error.problems.len() {
        0 | 1 => String::new(),
        all => format!(", and {} more problems", all - 1),
    };
    error.problems.first().map_or_else(String::new, |problem| format!("{problem}{more}"))
}
