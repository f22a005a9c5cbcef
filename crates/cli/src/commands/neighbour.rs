//! What is known of the ledger's own worker, as `status` and `tenants show` print it.

use balance_sync_view::{overview::FleetNeighbour, rows::NeighbourView};

use crate::terminal::{ago, count};

/// Over all tenants.
pub(super) fn of_fleet(found: &FleetNeighbour) -> String {
    let dropped = match found.dropped {
        0 => String::new(),
        balances => format!("; {} balances dropped by it and scheduled again", count(balances)),
    };
    let deadly = match found.deadly_mix {
        0 => String::new(),
        tenants => format!("; removes newer formats unwritten on {}", count(tenants as u64)),
    };
    format!(
        "the ledger's own is active on {} tenants, quiet on {}, parked on {}{deadly}{dropped}; claims take its locks on {}",
        count(found.active as u64),
        count(found.quiet as u64),
        count(found.parked as u64),
        count(found.claimed_with_locks as u64)
    )
}

/// Of one tenant.
pub(super) fn of_tenant(found: &NeighbourView, now: f64) -> Vec<(&'static str, String)> {
    const NAME: &str = "ledger's own";
    let time =
        |at: &Option<String>| at.as_ref().map_or_else(|| "never".to_owned(), |at| ago(at, now) + " ago");
    let sign = found.sign.as_ref().map(|sign| format!(" (by its {sign})")).unwrap_or_default();
    let mut lines = vec![(
        NAME,
        format!(
            "worker {}, seen {}{sign}; balances are claimed in mode {}",
            found.presence,
            time(&found.seen_at),
            found.claim_mode
        ),
    )];
    if found.deadly_mix {
        lines.push((
            NAME,
            "is of a release up to 4.0 next to writers of 4.1 or later: it removes their balances unwritten"
                .to_owned(),
        ));
    }
    if found.dropped > 0 {
        lines.push((
            "dropped",
            format!(
                "{} balances were out of the schedule unwritten while it was active, the last found {}, among them {}",
                count(found.dropped),
                time(&found.dropped_at),
                found.examples.join(", ")
            ),
        ));
    }
    lines
}
