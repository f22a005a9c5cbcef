//! Which Redis each tenant lives on, where there are several.
//!
//! [`Routes`] map a tenant's id to the name of an entry of the directory: by the id itself, by a glob, or as the entry for all
//! others. A tenant that two entries claim is on none of them: nobody may guess which schedule counts. How the directory is
//! read and followed is `balance_sync_cli::config`'s and `balance_sync_fleet::backends`'.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use crate::rollout::{Pattern, canonical};

/// Most entries of a directory: each worker looks at all others.
pub const MOST_ENTRIES: usize = 64;
/// Most ids and globs in all entries together.
pub const MOST_PATTERNS: usize = 500_000;
/// Most of them that are globs: each is tried on each tenant.
pub const MOST_GLOBS: usize = 200;
/// Longest name of an entry.
pub const LONGEST_NAME: usize = 64;

/// One Redis of a directory, by the tenants that live on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Ids and globs.
    pub tenants: Vec<Pattern>,
    /// All tenants that no entry names live on it.
    pub default: bool,
}

/// Why a tenant is on no Redis.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unrouted {
    /// No entry names it, and none is the default.
    Nowhere,
    /// These entries all name it.
    Several(Vec<String>),
}

impl fmt::Display for Unrouted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => {
                f.write_str("no entry of the Redis directory names it, and none has default = true")
            }
            Self::Several(names) => {
                write!(f, "several entries of the Redis directory name it: {}", names.join(", "))
            }
        }
    }
}

/// What is wrong with a directory: the entry, its part, the value, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutesProblem {
    /// The entry; empty where it is all of them.
    pub entry: String,
    /// `tenants` or `default`; empty for the entry itself.
    pub part: &'static str,
    /// What stands there.
    pub value: Option<String>,
    /// What is wrong, and what is allowed.
    pub reason: String,
}

/// Which Redis each tenant lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    names: Vec<String>,
    ids: HashMap<String, usize>,
    globs: Vec<(Pattern, usize)>,
    default: Option<usize>,
}

impl Routes {
    /// Out of the entries of a directory.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn new(entries: Vec<Entry>) -> Result<Self, Vec<RoutesProblem>> {
        let mut problems = Vec::new();
        let mut refuse = |entry: &str, part: &'static str, value: Option<String>, reason: String| {
            problems.push(RoutesProblem { entry: entry.to_owned(), part, value, reason });
        };
        if entries.is_empty() || entries.len() > MOST_ENTRIES {
            refuse("", "", Some(entries.len().to_string()), format!("allowed: 1 to {MOST_ENTRIES} entries"));
        }
        let all: usize = entries.iter().map(|entry| entry.tenants.len()).sum();
        if all > MOST_PATTERNS {
            let allowed = format!("allowed: at most {MOST_PATTERNS} ids and globs in all entries");
            refuse("", "tenants", Some(all.to_string()), allowed);
        }
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        let mut routes = Self { names: Vec::new(), ids: HashMap::new(), globs: Vec::new(), default: None };
        for (at, Entry { name, tenants, default }) in entries.into_iter().enumerate() {
            if !is_name(&name) {
                let allowed = format!("allowed: 1 to {LONGEST_NAME} of a-z, A-Z, 0-9, '-' and '_'");
                refuse(&name, "", None, allowed);
            }
            if default && let Some(first) = routes.default.replace(at) {
                let reason = format!("is true in {} as well; allowed: in one entry", routes.names[first]);
                refuse(&name, "default", None, reason);
            }
            for pattern in tenants {
                if pattern.is_glob() {
                    routes.globs.push((pattern, at));
                } else if let Some(first) = routes.ids.insert(pattern.as_str().to_owned(), at)
                    && first != at
                {
                    let reason = format!("stands in {} as well; allowed: in one entry", routes.names[first]);
                    refuse(&name, "tenants", Some(pattern.to_string()), reason);
                }
            }
            names.insert(name.clone(), at);
            routes.names.push(name);
        }
        if routes.globs.len() > MOST_GLOBS {
            let allowed = format!("allowed: at most {MOST_GLOBS} globs in all entries");
            refuse("", "tenants", Some(routes.globs.len().to_string()), allowed);
        } else {
            // Of two globs it shows with a tenant that both match; of an id it is known now.
            let mut twice: Vec<_> = routes
                .ids
                .iter()
                .filter_map(|(id, at)| {
                    let matches = |(glob, of): &&(Pattern, usize)| of != at && glob.matches(id);
                    routes.globs.iter().find(matches).map(|(glob, of)| (*at, id, glob, *of))
                })
                .collect();
            twice.sort();
            for (at, id, glob, of) in twice {
                let reason =
                    format!("is matched by {glob} of {} as well; allowed: by one entry", routes.names[of]);
                refuse(&routes.names[at], "tenants", Some(id.clone()), reason);
            }
        }
        if problems.is_empty() { Ok(routes) } else { Err(problems) }
    }

    /// The names of the entries, in their order.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The name of the entry that a tenant lives on.
    ///
    /// # Errors
    /// Why it lives on none.
    pub fn route(&self, tenant: &str) -> Result<&str, Unrouted> {
        let id = canonical(tenant);
        let by_id = self.ids.get(id.as_ref()).copied();
        let mut found: Vec<usize> = by_id.into_iter().collect();
        for (glob, at) in &self.globs {
            if !found.contains(at) && glob.matches(tenant) {
                found.push(*at);
            }
        }
        match *found {
            [] => self.default.map(|at| self.names[at].as_str()).ok_or(Unrouted::Nowhere),
            [at] => Ok(&self.names[at]),
            _ => {
                found.sort_unstable();
                Err(Unrouted::Several(found.into_iter().map(|at| self.names[at].clone()).collect()))
            }
        }
    }

    /// Tells two directories apart, on a screen.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut ids: Vec<(&str, usize)> = self.ids.iter().map(|(id, at)| (id.as_str(), *at)).collect();
        ids.extend(self.globs.iter().map(|(glob, at)| (glob.as_str(), *at)));
        ids.sort_unstable();
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut take = |text: &str| {
            for byte in text.bytes().chain([0]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        self.names.iter().for_each(|name| take(name));
        take(self.default.map_or("", |at| &self.names[at]));
        for (id, at) in ids {
            take(id);
            take(&self.names[at]);
        }
        format!("{:08x}", (hash ^ (hash >> 32)) as u32)
    }
}

fn is_name(name: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    !name.is_empty() && name.len() <= LONGEST_NAME && name.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(name: &str, tenants: &[&str], default: bool) -> Entry {
        let tenants = tenants.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        Entry { name: name.to_owned(), tenants, default }
    }

    #[test]
    fn a_tenant_lives_where_its_id_a_glob_or_the_default_says() {
        let routes = Routes::new(vec![
            entry("a", &["acme", "eu-*"], false),
            entry("b", &["0190D3A4-5b6c-7d8e-9f00-112233445566"], false),
            entry("rest", &[], true),
        ])
        .unwrap();
        for (tenant, name) in [
            ("acme", "a"),
            ("eu-1", "a"),
            ("0190d3a45b6c7d8e9f00112233445566", "b"),
            ("0190d3a4-5b6c-7d8e-9f00-112233445566", "b"),
            ("us-1", "rest"),
        ] {
            assert_eq!(routes.route(tenant), Ok(name), "{tenant}");
        }
    }

    #[test]
    fn a_tenant_of_two_entries_or_of_none_is_on_no_redis() {
        let routes = Routes::new(vec![entry("a", &["eu-*"], false), entry("b", &["*-1"], false)]).unwrap();
        assert_eq!(routes.route("eu-2"), Ok("a"));
        assert_eq!(routes.route("eu-1"), Err(Unrouted::Several(vec!["a".to_owned(), "b".to_owned()])));
        assert_eq!(routes.route("us-2"), Err(Unrouted::Nowhere));
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_its_place() {
        let refused = |entries: Vec<Entry>| {
            let problems = Routes::new(entries).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            let RoutesProblem { entry, part, value, reason } = problems.into_iter().next().unwrap();
            (entry, part, value.unwrap_or_default(), reason)
        };
        let (entry_name, part, value, reason) =
            refused(vec![entry("a", &["acme"], false), entry("b", &["acme"], false)]);
        assert_eq!((entry_name.as_str(), part, value.as_str()), ("b", "tenants", "acme"));
        assert_eq!(reason, "stands in a as well; allowed: in one entry");
        let (entry_name, _, value, reason) =
            refused(vec![entry("a", &["acme"], false), entry("b", &["ac*"], false)]);
        assert_eq!((entry_name.as_str(), value.as_str()), ("a", "acme"));
        assert_eq!(reason, "is matched by ac* of b as well; allowed: by one entry");
        let (entry_name, part, _, _) = refused(vec![entry("a", &[], true), entry("b", &[], true)]);
        assert_eq!((entry_name.as_str(), part), ("b", "default"));
        assert!(refused(vec![entry("a b", &[], true)]).3.contains("allowed: 1 to 64"));
        assert!(refused(Vec::new()).3.contains("allowed: 1 to 64 entries"));
        let globs: Vec<String> = (0..=MOST_GLOBS).map(|n| format!("t{n}-*")).collect();
        let globs: Vec<&str> = globs.iter().map(String::as_str).collect();
        assert!(refused(vec![entry("a", &globs, true)]).3.contains("at most 200 globs"));
        // In one entry an id may stand twice, and be matched by a glob.
        Routes::new(vec![entry("a", &["acme", "acme", "ac*"], false)]).unwrap();
    }

    #[test]
    fn the_digest_follows_the_contents_and_not_their_order() {
        let of = |ids: &[&str], default| {
            Routes::new(vec![entry("a", ids, default), entry("b", &["x"], false)]).unwrap().digest()
        };
        assert_eq!(of(&["p", "q"], true), of(&["q", "p"], true));
        assert_ne!(of(&["p", "q"], true), of(&["p"], true));
        assert_ne!(of(&["p"], true), of(&["p"], false));
    }
}
