//! Several Redis servers: what the verdict says of the others, of tenants that live on none, and of what is left in the own one.

use balance_sync_engine::routes::Unrouted;
use balance_sync_fleet::status::LeftOver;
use serde::Serialize;

use super::judge::{NAMED, Verdict, listed};
use crate::{reader::FleetView, rows::at};

/// A look that is older says nothing any more, in seconds.
const OUTDATED: f64 = 60.0;

/// The Redis directory, in the overview.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetRouting {
    /// The entry whose fleet this is.
    pub name: String,
    /// Tells the directory in force apart from others.
    pub digest: String,
    /// Why what stands in the directory isn't in force.
    pub problem: Option<String>,
    /// When the other servers were looked at last.
    pub looked_at: Option<String>,
    /// All Redis servers of the directory.
    pub entries: Vec<RoutingEntry>,
    /// Tenants that live on no Redis.
    pub unrouted: usize,
    /// Tenants that live elsewhere and have left something here.
    pub left_tenants: u64,
    /// What is left, of up to a hundred of them.
    pub left: Vec<RoutingLeft>,
}

/// One Redis of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoutingEntry {
    /// Its name.
    pub name: String,
    /// Tenants that live on it.
    pub tenants: u64,
    /// Live workers that write there; `None` = not known.
    pub workers: Option<u64>,
    /// Why that isn't known.
    pub error: Option<String>,
}

/// What one tenant has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoutingLeft {
    /// The tenant.
    pub tenant: String,
    /// The Redis that it lives on.
    pub lives_on: String,
    /// Balances in its schedules here.
    pub scheduled: u64,
    /// Entries of its quarantine here, losses among them.
    pub aside: u64,
    /// They are being written here.
    pub departing: bool,
}

impl From<&LeftOver> for RoutingLeft {
    fn from(left: &LeftOver) -> Self {
        let LeftOver { tenant, lives_on, scheduled, aside, departing } = left.clone();
        Self { tenant, lives_on, scheduled, aside, departing }
    }
}

impl FleetView {
    /// The Redis directory; `None` where there is one Redis.
    pub(super) fn fleet_routing(&self) -> Option<FleetRouting> {
        let routing = self.routing.as_ref()?;
        let own = self.workers.iter().filter(|worker| worker.live).count() as u64;
        let entry = |(name, tenants): (&String, &u64)| {
            let look = routing.look.entries.iter().find(|look| look.name == *name);
            let workers = match *name == routing.own {
                true => self.redis_error.is_none().then_some(own),
                false => look.and_then(|look| look.workers),
            };
            RoutingEntry {
                name: name.clone(),
                tenants: *tenants,
                workers,
                error: look.and_then(|look| look.error.clone()),
            }
        };
        Some(FleetRouting {
            name: routing.own.clone(),
            digest: routing.digest.clone(),
            problem: routing.problem.clone(),
            looked_at: (routing.look.at > 0.0).then(|| at(routing.look.at)),
            entries: routing.split.tenants.iter().map(entry).collect(),
            unrouted: routing.split.unrouted.len(),
            left_tenants: routing.look.left_tenants,
            left: routing.look.left.iter().map(RoutingLeft::from).collect(),
        })
    }

    /// What the Redis directory adds to the verdict, in sentences that name their action.
    pub(super) fn judge_routing(&self) -> Vec<(Verdict, String)> {
        let Some(routing) = &self.routing else { return Vec::new() };
        let mut found = Vec::new();
        if let Some(problem) = &routing.problem {
            let problem = problem.trim_end_matches('.');
            let text = format!(
                "The Redis directory is not in force as it stands in the file ({problem}); the last good one is. Correct the file."
            );
            found.push((Verdict::Attention, text));
        }
        found.extend(unrouted(&routing.split.unrouted));
        let age = self.at - routing.look.at;
        let others = routing.split.tenants.len() > 1;
        if others && routing.look.at == 0.0 {
            found.push((Verdict::Unknown, "The other Redis servers have not been looked at yet.".to_owned()));
            return found;
        }
        if others && age > OUTDATED {
            let text = format!("The other Redis servers were looked at {age:.0} s ago for the last time.");
            found.push((Verdict::Attention, text));
        }
        for entry in &routing.look.entries {
            let tenants = routing.split.tenants.get(&entry.name).copied().unwrap_or_default();
            let whose = match tenants {
                1 => "its tenant".to_owned(),
                tenants => format!("its {tenants} tenants"),
            };
            match (entry.workers, &entry.error) {
                (Some(0), _) if tenants > 0 => {
                    let text = format!(
                        "Redis {} has no live worker: {whose} are not served. Start workers with redis.name = \"{}\".",
                        entry.name, entry.name
                    );
                    found.push((Verdict::Degraded, text.replace("tenant are", "tenant is")));
                }
                (None, Some(error)) if tenants > 0 => {
                    let text = format!(
                        "Redis {} can't be asked whether {whose} are served: {}. `balance-sync status` with redis.name = \"{}\" asks it \
                         from elsewhere.",
                        entry.name,
                        error.trim_end_matches('.'),
                        entry.name
                    );
                    found.push((Verdict::Attention, text.replace("tenant are", "tenant is")));
                }
                _ => {}
            }
        }
        if let Some(error) = &routing.look.left_unknown {
            let text = format!(
                "It isn't known what tenants that live elsewhere have left in Redis {}: {}.",
                routing.own,
                error.trim_end_matches('.')
            );
            found.push((Verdict::Attention, text));
        }
        let (going, left): (Vec<&LeftOver>, Vec<&LeftOver>) =
            routing.look.left.iter().partition(|left| left.departing && left.scheduled > 0);
        if !going.is_empty() {
            let scheduled: u64 = going.iter().map(|left| left.scheduled).sum();
            let text = format!(
                "{scheduled} balances of tenants that have moved away are still scheduled in Redis {}, and are written from here until \
                 none is left: {}.",
                routing.own,
                names(&going)
            );
            found.push((Verdict::Attention, text));
        }
        if !left.is_empty() {
            let (scheduled, aside) = left
                .iter()
                .fold((0, 0), |(scheduled, aside), left| (scheduled + left.scheduled, aside + left.aside));
            let what = match (scheduled, aside) {
                (scheduled, 0) => format!("{scheduled} balances scheduled"),
                (0, aside) => format!("{aside} entries in quarantine"),
                (scheduled, aside) => {
                    format!("{scheduled} balances scheduled and {aside} entries in quarantine")
                }
            };
            let text = format!(
                "In Redis {} are {what} of tenants that live elsewhere, and no worker writes them: {}. See that no ledger writes there any \
                 more, then give the tenant to {} in the directory until nothing is left.",
                routing.own,
                names(&left),
                routing.own
            );
            found.push((Verdict::Attention, text));
        }
        found
    }
}

/// That tenants live on no Redis.
fn unrouted(tenants: &[(String, Unrouted)]) -> Option<(Verdict, String)> {
    let (_, why) = tenants.first()?;
    let names = listed(tenants.iter().map(|(id, _)| id.as_str()));
    let (are, them) = if tenants.len() == 1 { ("1 tenant lives", "it") } else { ("tenants live", "them") };
    let count = if tenants.len() == 1 { String::new() } else { format!("{} ", tenants.len()) };
    let text = format!("{count}{are} on no Redis, and no worker serves {them} ({why}): {names}.");
    Some((Verdict::Degraded, text))
}

fn names(left: &[&LeftOver]) -> String {
    let each: Vec<String> = left
        .iter()
        .take(NAMED)
        .map(|left| {
            format!("{} ({}, lives on {})", left.tenant, left.scheduled.max(left.aside), left.lives_on)
        })
        .collect();
    match left.len() - each.len() {
        0 => each.join(", "),
        more => format!("{} and {more} more", each.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use balance_sync_fleet::status::{EntryLook, RoutingLook, Split};

    use super::*;
    use crate::{overview::tests::view, routing::RoutingView};

    fn judged(
        change: impl FnOnce(&mut Split, &mut RoutingLook, &mut Option<String>),
    ) -> (Verdict, Vec<String>) {
        let mut split =
            Split { tenants: BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 1)]), ..Split::default() };
        let entry = EntryLook { name: "b".to_owned(), workers: Some(1), error: None };
        let mut look = RoutingLook { at: 99.0, entries: vec![entry], ..RoutingLook::default() };
        let mut problem = None;
        change(&mut split, &mut look, &mut problem);
        let mut view = view(Vec::new());
        view.routing = Some(RoutingView {
            own: "a".to_owned(),
            digest: String::new(),
            split: Arc::new(split),
            look: Arc::new(look),
            problem,
        });
        let overview = view.overview();
        (overview.verdict, overview.reasons)
    }

    fn expect(found: (Verdict, Vec<String>), verdict: Verdict, text: &str) {
        let (judged, reasons) = found;
        assert_eq!(judged, verdict, "{reasons:?}");
        assert!(reasons.iter().any(|reason| reason.contains(text)), "{reasons:?}");
    }

    #[test]
    fn a_fleet_whose_other_servers_are_well_is_healthy() {
        assert_eq!(judged(|_, _, _| {}), (Verdict::Healthy, Vec::new()));
    }

    #[test]
    fn what_is_served_nowhere_is_never_healthy() {
        let none = judged(|_, look, _| look.entries[0].workers = Some(0));
        expect(none, Verdict::Degraded, "Redis b has no live worker: its tenant is not served");
        let away = judged(|_, look, _| {
            look.entries[0] =
                EntryLook { name: "b".to_owned(), workers: None, error: Some("refused.".to_owned()) };
        });
        expect(away, Verdict::Attention, "Redis b can't be asked whether its tenant is served: refused. ");
        let nowhere = judged(|split, _, _| split.unrouted.push(("acme".to_owned(), Unrouted::Nowhere)));
        expect(nowhere, Verdict::Degraded, "1 tenant lives on no Redis, and no worker serves it (no entry");
        expect(judged(|_, look, _| look.at = 0.0), Verdict::Unknown, "not been looked at yet");
        expect(judged(|_, look, _| look.at = 10.0), Verdict::Attention, "90 s ago");
        let problem = judged(|_, _, problem| *problem = Some("is not TOML".to_owned()));
        expect(problem, Verdict::Attention, "(is not TOML); the last good one is");
        let empty = judged(|split, look, _| {
            split.tenants.insert("b".to_owned(), 0);
            look.entries[0].workers = Some(0);
        });
        assert_eq!(empty.0, Verdict::Healthy, "a server without tenants needs no worker");
    }

    #[test]
    fn what_is_left_here_is_named_with_tenant_and_number() {
        let left = |departing| {
            judged(|_, look, _| {
                look.left.push(LeftOver {
                    tenant: "acme".to_owned(),
                    lives_on: "b".to_owned(),
                    scheduled: 7,
                    aside: 0,
                    departing,
                });
            })
        };
        expect(left(false), Verdict::Attention, "7 balances scheduled of tenants that live elsewhere");
        expect(left(false), Verdict::Attention, "acme (7, lives on b)");
        expect(left(true), Verdict::Attention, "written from here until none is left: acme (7, lives on b)");
    }
}
