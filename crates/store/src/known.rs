//! What a connection leads to, taken from another one that was opened a moment ago.
//!
//! Where thousands of roles share a server, nearly every write is the first one of its connection, and to look where it leads
//! costs as much as the write. The answers are the same for each role, but for the `search_path`. So a connection to a
//! database that this worker has examined within [`VALID`] is taken to lead to the same one. The first statement checks it: it
//! fails, before it touches a row, unless the server was started when the other one was, and so is the same server on the same
//! timeline. Then the connection is closed, and the next one is examined.
//!
//! Only where nothing stands between here and the server, for a server that takes writes, and for a role that has been
//! examined before and whose tables are all named with their schema.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::budget::lock;
use crate::examine::Examined;
use crate::sql::Target;

/// How long an answer counts. The clocks of server and worker are compared as often.
const VALID: Duration = Duration::from_secs(10);

/// How long it counts on for the others while one connection is examined anew.
const EXTENDED: Duration = Duration::from_secs(20);

/// What was found of the databases of one server, by name.
#[derive(Default)]
pub(crate) struct Known(Mutex<HashMap<String, Found>>);

struct Found {
    examined: Examined,
    at: Instant,
    /// A connection is being examined anew.
    is_renewed: bool,
}

impl Known {
    /// Keeps what was found. A server that takes no writes may begin to at any moment, without a new start.
    pub(crate) fn note(&self, database: &str, found: &Examined) {
        self.note_at(database, found, Instant::now());
    }

    fn note_at(&self, database: &str, found: &Examined, now: Instant) {
        let mut known = lock(&self.0);
        known.retain(|_, found| now.saturating_duration_since(found.at) < EXTENDED);
        if found.origin.is_some() && found.database == database {
            // The schema is the role's.
            let examined = Examined { schema: None, ..found.clone() };
            known.insert(database.to_owned(), Found { examined, at: now, is_renewed: false });
        }
    }

    /// What was found lately. When that is no longer new one caller gets nothing, and examines its connection for all.
    pub(crate) fn get(&self, database: &str) -> Option<Examined> {
        self.get_at(database, Instant::now())
    }

    fn get_at(&self, database: &str, now: Instant) -> Option<Examined> {
        let mut known = lock(&self.0);
        let found = known.get_mut(database)?;
        let age = now.saturating_duration_since(found.at);
        if age >= VALID && !found.is_renewed {
            found.is_renewed = true;
            return None;
        }
        (age < EXTENDED).then(|| found.examined.clone())
    }

    /// Forgets all: another server answers.
    pub(crate) fn forget(&self) {
        lock(&self.0).clear();
    }
}

/// Whether connections of one role may be taken to lead where others do.
#[derive(Default)]
pub(crate) struct Eligible {
    examined: AtomicBool,
    uses_search_path: AtomicBool,
}

impl Eligible {
    /// A connection of it has been examined.
    pub(crate) fn note_examined(&self) {
        self.examined.store(true, Ordering::Relaxed);
    }

    /// A table of it has the schema that the `search_path` leads to.
    pub(crate) fn note_search_path(&self) {
        self.uses_search_path.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_eligible(&self) -> bool {
        self.examined.load(Ordering::Relaxed) && !self.uses_search_path.load(Ordering::Relaxed)
    }
}

/// What statements on a connection are written for that is taken to lead where another one did.
pub(crate) fn target(known: &Examined) -> Target {
    Target { database: known.database.clone(), schema: None, started: Some(known.started.clone()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::origin::Origin;

    fn found(origin: Option<&str>) -> Examined {
        Examined {
            database: "d".to_owned(),
            schema: Some("of_the_role".to_owned()),
            oid: 1,
            started: "1".to_owned(),
            pid: 1,
            clock_ahead_ms: 0,
            origin: origin.map(|started| Origin::new(None, None, started)),
        }
    }

    #[test]
    fn what_was_found_counts_for_other_roles_of_the_same_database() {
        let known = Known::default();
        known.note("d", &found(Some("1")));
        assert_eq!(known.get("d").unwrap().schema, None, "the search_path is another role's");
        assert_eq!(known.get("other"), None);
        known.forget();
        assert_eq!(known.get("d"), None);
    }

    #[test]
    fn one_connection_is_examined_anew_and_the_others_do_not_wait_for_it() {
        let (known, begun) = (Known::default(), Instant::now());
        let get = |known: &Known, seconds| known.get_at("d", begun + Duration::from_secs(seconds)).is_some();
        known.note_at("d", &found(Some("1")), begun);
        assert!(get(&known, 9));
        assert_eq!([get(&known, 10), get(&known, 10), get(&known, 19)], [false, true, true]);
        assert!(!get(&known, 20), "it was not examined after all");
        known.note_at("d", &found(Some("1")), begun + Duration::from_secs(21));
        assert_eq!([get(&known, 30), get(&known, 31), get(&known, 32)], [true, false, true]);
    }

    #[test]
    fn a_replica_and_a_database_under_another_name_are_not_kept() {
        let known = Known::default();
        known.note("d", &found(None));
        known.note("alias", &found(Some("1")));
        assert_eq!((known.get("d"), known.get("alias")), (None, None));
    }

    #[test]
    fn a_role_is_examined_first_and_again_where_its_search_path_counts() {
        let role = Eligible::default();
        assert!(!role.is_eligible());
        role.note_examined();
        assert!(role.is_eligible());
        role.note_search_path();
        assert!(!role.is_eligible());
    }
}
