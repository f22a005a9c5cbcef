//! When a backlog that shrinks will be gone.

use crate::record::FleetPoint;

/// What of the history is looked at.
const LOOK_BACK: f64 = 60.0;
/// From a shorter history nothing is concluded.
const LEAST: f64 = 15.0;
/// Less than this many seconds of it isn't a backlog: workers are about to write it.
const SOON: f64 = 3.0;

/// Seconds until nothing is due any more, if it goes on as in the last minute; `None` where the backlog doesn't shrink, or there is
/// none. The fleet's history is oldest first.
pub(crate) fn eta(history: &[FleetPoint]) -> Option<f64> {
    let last = history.last()?;
    let first = history.iter().find(|point| last.at - point.at <= LOOK_BACK)?;
    let took = last.at - first.at;
    if took < LEAST || last.due >= first.due {
        return None;
    }
    let eta = last.due as f64 / ((first.due - last.due) as f64 / took);
    (last.due > 0 && eta > SOON).then_some(eta)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(due: impl IntoIterator<Item = u64>) -> Vec<FleetPoint> {
        let point = |(number, due): (usize, u64)| FleetPoint {
            at: 1e9 + number as f64 * 5.0,
            rows_per_second: 0.0,
            p50_seconds: None,
            p99_seconds: None,
            due,
            oldest_due_age_seconds: 0.0,
        };
        due.into_iter().enumerate().map(point).collect()
    }

    #[test]
    fn a_backlog_that_shrinks_has_an_end() {
        // 1,000 less every 5 s.
        assert_eq!(eta(&history((0..20).map(|n| 100_000 - n * 1_000))), Some(405.0));
        // What it did more than a minute ago doesn't count.
        let risen = (0..40).map(|n| n * 10_000).chain((0..13).map(|n| 390_000 - n * 10_000));
        assert_eq!(eta(&history(risen)), Some(135.0));
    }

    #[test]
    fn one_that_grows_stands_or_is_new_has_none() {
        assert_eq!(eta(&[]), None);
        assert_eq!(eta(&history([1_000, 900])), None, "too short a history");
        assert_eq!(eta(&history((0..20).map(|n| n * 1_000))), None);
        assert_eq!(eta(&history([500; 20])), None);
        assert_eq!(eta(&history((0..20).map(|n| 20_000_u64.saturating_sub(n * 2_000)))), None, "it is gone");
    }
}
