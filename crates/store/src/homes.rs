//! Which tenants write into which tables, so that two that are meant to be apart never write into the same.
//!
//! Where a pooler or a name service leads two databases to one server by mistake, each tenant still finds a table of the
//! expected name, and where the tables are copies of each other even the rows it looks for. The server's own account of
//! itself shows it: two tenants whose settings name different databases must not meet in one table. If they do, neither
//! writes until their connections lead to different tables.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::budget::lock;
use crate::classify::{ErrorClass, StoreError};

/// A schema of a database of a running server, by what only this server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Home {
    /// When the server was started, to the microsecond.
    pub(crate) started: String,
    /// The database's number on that server.
    pub(crate) oid: i64,
    /// The schema.
    pub(crate) schema: String,
}

/// The tenants of this worker and their tables.
#[derive(Default)]
pub(crate) struct Homes(Mutex<State>);

#[derive(Default)]
struct State {
    tenants: HashMap<String, Resident>,
    /// The tenants of each table. More than one only while some meet.
    tables: HashMap<Home, Vec<String>>,
}

struct Resident {
    home: Home,
    /// The database that its settings name.
    settings: String,
}

impl Homes {
    /// Notes that a tenant is about to use a table.
    ///
    /// # Errors
    /// [`ErrorClass::PoolerUnsafe`] if another tenant uses it by way of other settings.
    pub(crate) fn enter(&self, tenant: &str, settings: &str, home: &Home) -> Result<(), StoreError> {
        let mut state = lock(&self.0);
        let known = state
            .tenants
            .get(tenant)
            .is_some_and(|resident| resident.home == *home && resident.settings == settings);
        if !known {
            state.leave(tenant);
            let resident = Resident { home: home.clone(), settings: settings.to_owned() };
            state.tenants.insert(tenant.to_owned(), resident);
            state.tables.entry(home.clone()).or_default().push(tenant.to_owned());
        }
        let State { tenants, tables } = &*state;
        let mut others = tables.get(home).into_iter().flatten().filter_map(|other| tenants.get(other));
        match others.find(|other| other.settings != settings) {
            None => Ok(()),
            Some(other) => Err(StoreError::new(
                ErrorClass::PoolerUnsafe,
                format!(
                    "{settings} leads to the same table as {} of another tenant: neither is written",
                    other.settings
                ),
            )),
        }
    }

    /// Forgets a tenant that is no longer served.
    pub(crate) fn leave(&self, tenant: &str) {
        lock(&self.0).leave(tenant);
    }
}

impl State {
    fn leave(&mut self, tenant: &str) {
        let Some(resident) = self.tenants.remove(tenant) else { return };
        if let Some(tenants) = self.tables.get_mut(&resident.home) {
            tenants.retain(|other| other != tenant);
            if tenants.is_empty() {
                self.tables.remove(&resident.home);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn home(oid: i64, schema: &str) -> Home {
        Home { started: "1".to_owned(), oid, schema: schema.to_owned() }
    }

    #[test]
    fn tenants_with_other_settings_never_share_a_table() {
        let homes = Homes::default();
        homes.enter("a", "one:5432/a", &home(1, "public")).unwrap();
        homes.enter("b", "one:5432/b", &home(2, "public")).unwrap();
        homes.enter("c", "one:5432/a", &home(1, "c")).unwrap();

        // A pooler now leads `b` to the database of `a`: neither may go on, until it leads elsewhere.
        let error = homes.enter("b", "one:5432/b", &home(1, "public")).unwrap_err();
        assert_eq!(error.class(), ErrorClass::PoolerUnsafe);
        assert!(error.message().contains("one:5432/a"), "{error}");
        homes.enter("a", "one:5432/a", &home(1, "public")).unwrap_err();
        homes.enter("c", "one:5432/a", &home(1, "c")).unwrap();
        homes.enter("b", "one:5432/b", &home(2, "public")).unwrap();
        homes.enter("a", "one:5432/a", &home(1, "public")).unwrap();
    }

    #[test]
    fn a_tenant_may_move_and_go() {
        let homes = Homes::default();
        homes.enter("a", "direct:5432/a", &home(1, "public")).unwrap();
        homes.enter("a", "pooler:6432/a", &home(1, "public")).unwrap();
        homes.enter("b", "direct:5432/a", &home(1, "public")).unwrap_err();
        homes.leave("a");
        homes.enter("b", "direct:5432/a", &home(1, "public")).unwrap();
        homes.leave("b");
        assert!(lock(&homes.0).tables.is_empty());
    }
}
