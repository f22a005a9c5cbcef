//! Workers beside those that are live in this group: those that died, and those of other groups that serve the same tenants.

use std::collections::{BTreeMap, BTreeSet};

use balance_sync_schedule::{ScheduleError, snapshots::Position};

use super::{FleetReader, FleetView};
use crate::{
    record::WorkerRecord,
    rows::{self, DeadWorker, StateView},
};

/// A worker of another group that serves tenants of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignWorker {
    /// Its name.
    pub name: String,
    /// Tenants of this group that it serves.
    pub tenants: usize,
    /// Which ones.
    pub serves: BTreeSet<String>,
    /// Its settings.
    pub settings: BTreeMap<String, String>,
}

/// What is known of a worker of another group.
pub(super) struct Foreign {
    position: Position,
    settings: BTreeMap<String, String>,
    tenants: BTreeSet<String>,
    /// It only looks: nobody has to count on it.
    is_shadow: bool,
}

/// What is left of a worker that died.
pub(super) struct Dead {
    /// Until when it counted as live, if Redis has that.
    until: Option<f64>,
    seen_at: f64,
    tenants: BTreeSet<String>,
    /// It only looked: no tenant was its own, and nobody misses it.
    is_shadow: bool,
}

impl FleetReader {
    /// Brings what is known of the workers of other groups up to date.
    pub(super) async fn read_foreign(
        &self,
        foreign: &mut BTreeMap<(String, String), Foreign>,
    ) -> Result<(), ScheduleError> {
        let mut live = BTreeSet::new();
        for group in self.snapshots.other_groups().await? {
            for name in group.publishers().await?.live {
                let key = (group.group().to_owned(), name);
                let mut more = true;
                while more {
                    let since = foreign.get(&key).map(|known| known.position.clone()).unwrap_or_default();
                    let Some(changes) = group.read(&key.1, &since).await? else { break };
                    more = changes.more;
                    if since.incarnation != changes.position.incarnation {
                        foreign.remove(&key);
                    }
                    let known = foreign.entry(key.clone()).or_insert_with(|| Foreign {
                        position: Position::default(),
                        settings: BTreeMap::new(),
                        tenants: BTreeSet::new(),
                        is_shadow: false,
                    });
                    known.position = changes.position;
                    if let Ok(worker) = serde_json::from_str::<WorkerRecord>(&changes.worker) {
                        known.is_shadow = worker.is_shadow();
                        known.settings = worker.settings;
                    }
                    for (tenant, record) in changes.tenants {
                        match record {
                            Some(_) => known.tenants.insert(tenant),
                            None => known.tenants.remove(&tenant),
                        };
                    }
                }
                live.insert(key);
            }
        }
        foreign.retain(|key, _| live.contains(key));
        Ok(())
    }

    /// Reads what workers that died have left, each once.
    pub(super) async fn read_dead(
        &self,
        died: BTreeMap<String, Option<f64>>,
        dead: &mut BTreeMap<String, Dead>,
    ) -> Result<(), ScheduleError> {
        dead.retain(|name, known| died.get(name).is_some_and(|until| *until == known.until));
        for (name, until) in died {
            if dead.contains_key(&name) {
                continue;
            }
            let seen_at = until.unwrap_or_default();
            let mut left = Dead { until, seen_at, tenants: BTreeSet::new(), is_shadow: false };
            let mut position = Position::default();
            while let Some(changes) = self.snapshots.read(&name, &position).await? {
                position = changes.position;
                if let Ok(worker) = serde_json::from_str::<WorkerRecord>(&changes.worker) {
                    left.seen_at = worker.seen_at;
                    left.is_shadow = worker.is_shadow();
                }
                let served = changes.tenants.into_iter().filter(|(_, record)| record.is_some());
                left.tenants.extend(served.map(|(tenant, _)| tenant));
                if !changes.more {
                    break;
                }
            }
            dead.insert(name, left);
        }
        Ok(())
    }
}

/// The workers that died, the last first, and who serves their tenants now.
pub(super) fn dead_workers(dead: &BTreeMap<String, Dead>, view: &FleetView) -> Vec<DeadWorker> {
    let mut dead: Vec<(&String, &Dead)> = dead.iter().filter(|(_, left)| !left.is_shadow).collect();
    dead.sort_by(|(_, a), (_, b)| b.seen_at.total_cmp(&a.seen_at));
    dead.into_iter()
        .map(|(name, left)| {
            // What was removed from the list needs no worker.
            let rows: Vec<_> =
                left.tenants.iter().filter_map(|id| view.find(id)).map(|(row, _)| row).collect();
            let heirs: BTreeSet<&String> = rows
                .iter()
                .flat_map(|row| row.owners.iter().filter(|owner| !row.standby.contains(owner)))
                .collect();
            DeadWorker {
                name: name.clone(),
                last_seen_at: rows::at(left.seen_at),
                age_seconds: (view.at - left.seen_at).max(0.0).round(),
                tenants: left.tenants.len(),
                unserved: rows
                    .iter()
                    .filter(|row| row.owners.is_empty() && row.state != StateView::NotInRollout)
                    .count(),
                taken_over_by: heirs.into_iter().cloned().collect(),
            }
        })
        .collect()
}

/// The workers of other groups that serve tenants of this one.
pub(super) fn foreign_workers(
    foreign: &BTreeMap<(String, String), Foreign>,
    view: &FleetView,
) -> Vec<ForeignWorker> {
    let writes = foreign.iter().filter(|(_, known)| !known.is_shadow);
    let both = writes.map(|((_, name), known)| {
        // Another fleet on the same Redis has other tenants.
        let serves: BTreeSet<String> =
            known.tenants.iter().filter(|id| view.find(id).is_some()).cloned().collect();
        ForeignWorker { name: name.clone(), tenants: serves.len(), serves, settings: known.settings.clone() }
    });
    both.filter(|worker| worker.tenants > 0).collect()
}
