//! What the workers count, read from their `/metrics`: the same way an operator's Prometheus sees it.

use std::collections::BTreeMap;

/// Balances by what they came to; those written among them.
const ROWS: &str = "balance_sync_balances_total";
/// Mutation to row: cumulative buckets.
const LAG: &str = "balance_sync_lag_seconds_bucket";

/// Time from mutation to row: upper bounds in seconds, with the number of rows at or below each; the last is infinite.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Lag(Vec<(f64, u64)>);

impl Lag {
    pub(super) fn add(&mut self, other: &Self) {
        for (at, (bound, count)) in other.0.iter().enumerate() {
            match self.0.get_mut(at) {
                Some((_, sum)) => *sum += count,
                None => self.0.push((*bound, *count)),
            }
        }
    }

    /// What has been added since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let counts = self.0.iter().enumerate();
        Self(
            counts
                .map(|(at, (bound, count))| {
                    (*bound, count.saturating_sub(before.0.get(at).map_or(0, |(_, count)| *count)))
                })
                .collect(),
        )
    }

    /// The quantile in seconds, interpolated within its bucket as Prometheus does; infinite beyond the last bound, `None`
    /// without any row.
    pub(super) fn quantile(&self, quantile: f64) -> Option<f64> {
        let count = self.0.last().map(|(_, count)| *count).filter(|count| *count > 0)?;
        let rank = quantile * count as f64;
        let (mut lower, mut below) = (0.0, 0);
        for (bound, cumulative) in &self.0 {
            if *cumulative as f64 >= rank && *cumulative > below {
                if bound.is_infinite() {
                    break;
                }
                return Some(lower + (bound - lower) * (rank - below as f64) / (cumulative - below) as f64);
            }
            (lower, below) = (*bound, *cumulative);
        }
        Some(f64::INFINITY)
    }

    fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count)
    }
}

/// What a tenant has counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counted {
    /// Rows written.
    pub rows: u64,
    /// Mutation to row.
    pub lag: Lag,
}

impl Counted {
    pub(super) fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.lag.add(&other.lag);
    }
}

/// By tenant id.
pub(super) type Scrape = BTreeMap<String, Counted>;

/// Reads the two families out of the text format.
pub(super) fn parse(text: &str) -> Scrape {
    let mut scrape = Scrape::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
        let (Some(tenant), Ok(value)) = (label(labels, "tenant_id"), value.trim().parse::<f64>()) else {
            continue;
        };
        match name {
            ROWS if label(labels, "outcome") == Some("updated") => {
                scrape.entry(tenant.to_owned()).or_default().rows = value as u64
            }
            LAG => {
                if let Some(Ok(bound)) = label(labels, "le").map(str::parse::<f64>) {
                    scrape.entry(tenant.to_owned()).or_default().lag.0.push((bound, value as u64));
                }
            }
            _ => {}
        }
    }
    scrape
}

/// The value of a label. Neither tenant ids nor bounds hold anything that is escaped.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

/// What one worker has counted since its start. It forgets tenants that it no longer serves, and counts anew those that
/// come back; here nothing falls.
#[derive(Debug, Default)]
pub(super) struct Tally {
    before: Scrape,
    now: Scrape,
}

impl Tally {
    pub(super) fn update(&mut self, scrape: Scrape) {
        for (tenant, last) in &self.now {
            let goes_on = scrape
                .get(tenant)
                .is_some_and(|now| now.rows >= last.rows && now.lag.count() >= last.lag.count());
            if !goes_on {
                self.before.entry(tenant.clone()).or_default().add(last);
            }
        }
        self.now = scrape;
    }

    /// Whether the worker knew this tenant at the last scrape.
    pub(super) fn serves(&self, tenant: &str) -> bool {
        self.now.contains_key(tenant)
    }

    /// The tenants the worker knew at the last scrape.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &str> {
        self.now.keys().map(String::as_str)
    }

    /// Adds what this worker counted for one tenant, or for all.
    pub(super) fn add_to(&self, total: &mut Counted, tenant: Option<&str>) {
        for counts in [&self.before, &self.now] {
            let wanted = counts.iter().filter(|(id, _)| tenant.is_none_or(|tenant| tenant == id.as_str()));
            wanted.for_each(|(_, counted)| total.add(counted));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(tenant: &str, rows: u64, buckets: [u64; 3]) -> String {
        format!(
            "# TYPE balance_sync_balances_total counter\n\
             balance_sync_balances_total{{tenant_id=\"{tenant}\",outcome=\"updated\"}} {rows}\n\
             balance_sync_reconcile_passes_total 3\n\
             balance_sync_stage_duration_seconds_bucket{{stage=\"claim\",le=\"0.1\"}} 9\n\
             balance_sync_lag_seconds_bucket{{tenant_id=\"{tenant}\",le=\"0.1\"}} {}\n\
             balance_sync_lag_seconds_bucket{{tenant_id=\"{tenant}\",le=\"0.2\"}} {}\n\
             balance_sync_lag_seconds_bucket{{tenant_id=\"{tenant}\",le=\"+Inf\"}} {}\n\
             balance_sync_lag_seconds_count{{tenant_id=\"{tenant}\"}} {}\n",
            buckets[0], buckets[1], buckets[2], buckets[2]
        )
    }

    #[test]
    fn the_two_families_are_read_and_nothing_else() {
        let scrape = parse(&text("acme", 17, [1, 3, 4]));
        let lag = Lag(vec![(0.1, 1), (0.2, 3), (f64::INFINITY, 4)]);
        assert_eq!(scrape, Scrape::from([("acme".to_owned(), Counted { rows: 17, lag })]));
    }

    #[test]
    fn quantiles_are_interpolated() {
        let lag = Lag(vec![(0.1, 0), (0.2, 80), (0.3, 98), (f64::INFINITY, 100)]);
        let close = |quantile: f64, expected: f64| {
            let found = lag.quantile(quantile).unwrap();
            assert!((found - expected).abs() < 1e-9, "{quantile}: {found}");
        };
        close(0.4, 0.15);
        close(0.8, 0.2);
        close(0.89, 0.25);
        assert_eq!(lag.quantile(0.99), Some(f64::INFINITY));
        assert_eq!(Lag::default().quantile(0.5), None);
        assert_eq!(Lag(vec![(0.1, 0), (f64::INFINITY, 0)]).quantile(0.5), None);
        let later = Lag(vec![(0.1, 0), (0.2, 80), (0.3, 198), (f64::INFINITY, 200)]);
        assert_eq!(later.since(&lag), Lag(vec![(0.1, 0), (0.2, 0), (0.3, 100), (f64::INFINITY, 100)]));
    }

    #[test]
    fn totals_do_not_fall_when_a_tenant_goes_and_comes_back() {
        let mut tally = Tally::default();
        let total = |tally: &Tally, tenant: Option<&str>| {
            let mut total = Counted::default();
            tally.add_to(&mut total, tenant);
            (total.rows, total.lag.count())
        };
        tally.update(parse(&text("acme", 10, [4, 5, 6])));
        tally.update(parse(&text("acme", 12, [4, 5, 8])));
        assert_eq!(total(&tally, Some("acme")), (12, 8));
        tally.update(parse(&text("globex", 5, [1, 1, 1])));
        assert!(!tally.serves("acme") && tally.serves("globex"));
        assert_eq!((total(&tally, Some("acme")), total(&tally, None)), ((12, 8), (17, 9)));
        let again = text("globex", 5, [1, 1, 1]) + &text("acme", 2, [1, 1, 1]);
        tally.update(parse(&again));
        tally.update(parse(&again));
        assert_eq!(total(&tally, Some("acme")), (14, 9));
        tally.update(parse(&text("acme", 1, [0, 0, 1])));
        assert_eq!(total(&tally, Some("acme")), (15, 10));
    }
}
