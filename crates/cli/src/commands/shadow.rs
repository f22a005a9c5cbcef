//! What shadows have found, as `status` and `tenants show` print it.

use balance_sync_view::{overview::FleetShadow, rows::ShadowView};

use crate::terminal::{ago, bytes, count, optional, span};

const NAME: &str = "shadow";

/// Over all tenants.
pub(super) fn of_fleet(found: &FleetShadow) -> Vec<(&'static str, String)> {
    let least = if found.more { "at least " } else { "" };
    let mut lines = vec![(
        NAME,
        format!(
            "{} would be written, {} left behind, {} lost by whoever writes today; lag p99 {}; {} of {} tenants compared{}",
            least.to_owned() + &count(found.would_write),
            count(found.left_behind),
            count(found.lost),
            optional(found.lag_p99_seconds, span),
            count(found.compared_tenants as u64),
            count(found.tenants as u64),
            match found.unread_tenants {
                0 => String::new(),
                tenants => format!(", rows of {} can't be read", count(tenants as u64)),
            }
        ),
    )];
    if let Some(memory) = &found.redis_memory {
        let most = if memory.max_bytes == 0 { "no limit".to_owned() } else { bytes(memory.max_bytes) };
        lines.push((
            "eviction",
            format!(
                "{} ({}); {} of {most} in use, {} keys evicted",
                if memory.policy.is_empty() { "policy not known" } else { &memory.policy },
                if memory.may_evict { "values may vanish unwritten" } else { "nothing is evicted" },
                bytes(memory.used_bytes),
                count(memory.evicted_keys)
            ),
        ));
    }
    lines
}

/// Of one tenant.
pub(super) fn of_tenant(found: &ShadowView, now: f64) -> Vec<(&'static str, String)> {
    let least = if found.more { "at least " } else { "" };
    let mut lines = vec![
        (
            NAME,
            format!(
                "{least}{} would be written, {} left behind, {} lost by whoever writes today, as {} sees it",
                count(found.would_write),
                count(found.left_behind),
                count(found.lost),
                found.by.join(", ")
            ),
        ),
        (
            NAME,
            format!(
                "a mutation takes {} to its row, p99 {} (at most; {} samples)",
                optional(found.lag_p50_seconds, span),
                optional(found.lag_p99_seconds, span),
                count(found.lag_samples)
            ),
        ),
        (
            NAME,
            match &found.compared_at {
                Some(at) => {
                    format!(
                        "all {} balances in Redis compared with their rows {} ago",
                        count(found.compared),
                        ago(at, now)
                    )
                }
                None => "the balances in Redis have not all been compared with their rows yet".to_owned(),
            },
        ),
    ];
    lines.extend(found.examples.iter().map(|one| {
        let what = if one.lost { "lost" } else { "left behind" };
        let text = format!(
            "{what} since {}: {}, version {} in Redis, {} in Postgres",
            one.since, one.member, one.version, one.row_version
        );
        (NAME, text)
    }));
    lines.extend(found.error.iter().map(|error| (NAME, format!("rows can't be read: {error}"))));
    lines
}
