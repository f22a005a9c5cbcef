//! Months and days of the report, in UTC.

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};

/// Seconds of a day.
pub const DAY: f64 = 86_400.0;
/// Months that a record is kept after its own.
pub const KEPT_MONTHS: u32 = 13;

/// A month in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: u32,
    month: u32,
}

impl Month {
    /// By its name, as `2026-11`; from 1970 on.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (year, month) = name.split_once('-')?;
        let digits = |part: &str, len| part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit());
        let (year_ok, month_ok) = (digits(year, 4), digits(month, 2));
        let parsed = Self { year: year.parse().ok()?, month: month.parse().ok()? };
        (year_ok && month_ok && parsed.year >= 1970 && (1..=12).contains(&parsed.month)).then_some(parsed)
    }

    /// The one in which this moment lies, in seconds since 1970.
    #[must_use]
    pub fn of(at: f64) -> Self {
        let text = crate::rows::at(at);
        Self::parse(text.get(..7).unwrap_or_default()).unwrap_or(Self { year: 1970, month: 1 })
    }

    /// So many months later.
    #[must_use]
    pub fn plus(self, months: u32) -> Self {
        let months = self.year * 12 + self.month - 1 + months;
        Self { year: months / 12, month: months % 12 + 1 }
    }

    /// The month before.
    #[must_use]
    pub fn before(self) -> Self {
        let months = (self.year * 12 + self.month).saturating_sub(2);
        Self { year: months / 12, month: months % 12 + 1 }
    }

    /// When it begins, in seconds since 1970.
    #[must_use]
    pub fn start(self) -> f64 {
        let begin = humantime::parse_rfc3339(&format!("{self}-01T00:00:00Z")).unwrap_or(UNIX_EPOCH);
        begin.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }

    /// When the next one begins, in seconds since 1970.
    #[must_use]
    pub fn end(self) -> f64 {
        self.plus(1).start()
    }

    /// How many days it has.
    #[must_use]
    pub fn days(self) -> u32 {
        ((self.end() - self.start()) / DAY).round() as u32
    }

    /// The day of the month in which this moment lies, from 1 on.
    #[must_use]
    pub fn day(self, at: f64) -> u32 {
        (((at - self.start()) / DAY).floor().max(0.0) as u32 + 1).min(self.days())
    }

    /// When this day begins, in seconds since 1970.
    #[must_use]
    pub fn day_start(self, day: u32) -> f64 {
        self.start() + f64::from(day.saturating_sub(1)) * DAY
    }

    /// When its record expires: 13 months after its end, since 1970.
    #[must_use]
    pub fn expires_at(self) -> Duration {
        Duration::from_secs_f64(self.plus(1 + KEPT_MONTHS).start())
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl Serialize for Month {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn months_begin_and_end_in_utc() {
        let november = Month::parse("2026-11").unwrap();
        assert_eq!((november.start(), november.end()), (1_793_491_200.0, 1_796_083_200.0));
        assert_eq!(november.days(), 30);
        assert_eq!(Month::of(november.end() - 0.002), november);
        assert_eq!(Month::of(november.end()).to_string(), "2026-12");
        assert_eq!((november.day(november.start()), november.day(november.end() - 1.0)), (1, 30));
        assert_eq!(november.day(november.start() + DAY), 2);
        assert_eq!(Month::parse("2028-02").unwrap().days(), 29);
        assert_eq!(Month::parse("2026-12").unwrap().plus(1).to_string(), "2027-01");
        assert_eq!(Month::parse("2026-01").unwrap().before().to_string(), "2025-12");
    }

    #[test]
    fn a_record_is_kept_for_thirteen_months_after_its_own() {
        let kept = Month::parse("2026-11").unwrap().expires_at();
        assert_eq!(kept.as_secs_f64(), Month::parse("2028-01").unwrap().start());
    }

    #[test]
    fn what_is_no_month_is_refused() {
        for name in ["", "2026", "2026-13", "2026-00", "2026-1", "26-11", "2026-11-01", "+026-11", "1969-12"]
        {
            assert_eq!(Month::parse(name), None, "{name}");
        }
    }
}
