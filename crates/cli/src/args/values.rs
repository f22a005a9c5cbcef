//! How the values of options are read, with what is allowed in the message of a refusal.

use std::convert::Infallible;
use std::time::Duration;

use balance_sync_domain::{QuarantineReason, Reported};
use balance_sync_view::{
    overview::Verdict,
    reader::{StateFilter, TenantSort},
    report::Month,
    timeline::{WITHIN_ALLOWED, parse_within},
};
use url::Url;

pub(super) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("must be a number above 0".to_owned()),
    }
}

/// A month in UTC.
pub(super) fn month(text: &str) -> Result<Month, String> {
    Month::parse(text).ok_or_else(|| "must be a month as 2026-11, from 1970-01 on".to_owned())
}

/// A span of time as `90m`, of a day at most.
pub(super) fn within_a_day(text: &str) -> Result<Duration, String> {
    parse_within(text).ok_or_else(|| format!("must be {WITHIN_ALLOWED}"))
}

pub(super) fn positive_count(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("must be a whole number above 0".to_owned()),
    }
}

/// What is drawn is at most as fresh as this.
pub(super) fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.1..=3600.0).contains(&number) => Ok(number),
        _ => Err("must be a number of seconds from 0.1 to 3600".to_owned()),
    }
}

pub(super) fn patience(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=3600.0).contains(&number) => Ok(number),
        _ => Err("must be a number of seconds from 0 to 3600".to_owned()),
    }
}

/// A verdict that a caller can live with: not knowing is none.
pub(super) fn accepted(text: &str) -> Result<Verdict, String> {
    [Verdict::Healthy, Verdict::Attention, Verdict::Behind, Verdict::Degraded]
        .into_iter()
        .find(|verdict| verdict.name() == text)
        .ok_or_else(|| "must be one of healthy, attention, behind, degraded".to_owned())
}

/// What `probe` can ask.
pub(super) fn address(text: &str) -> Result<Url, String> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| "must be http://host[:port]/path, or https://".to_owned())
}

/// A share as a number up to 1, or in per cent.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let number = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse::<f64>(),
    };
    match number {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("must be a number above 0 and up to 1, or above 0% and up to 100%".to_owned()),
    }
}

pub(super) fn state(text: &str) -> Result<StateFilter, String> {
    StateFilter::parse(text).ok_or_else(|| format!("must be one of {}", StateFilter::names()))
}

/// A reason, of a later release too: whether it is one is seen when the entries are read.
pub(super) fn quarantine_reason(text: &str) -> Result<Reported<QuarantineReason>, Infallible> {
    Ok(Reported::from(text))
}

pub(super) fn sort(text: &str) -> Result<TenantSort, String> {
    TenantSort::parse(text).ok_or_else(|| format!("must be one of {}", TenantSort::NAMES))
}

/// Seconds given as a number.
pub(crate) fn seconds(number: f64) -> Duration {
    Duration::from_secs_f64(number.min(1e9))
}
