//! Numbers for people.

use std::time::Duration;

/// Stands where nothing is known.
const NOTHING: &str = "-";

/// What may be unknown.
pub(crate) fn optional(value: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| NOTHING.to_owned(), shown)
}

/// A whole number, in groups of three.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Something per second.
pub(crate) fn rate(number: f64) -> String {
    if number < 0.05 {
        "0".to_owned()
    } else if number < 10.0 {
        format!("{number:.1}")
    } else {
        count(number.round() as u64)
    }
}

/// A span of time, with two units at most: `12ms`, `3.4s`, `4m10s`, `2h05m`, `3d04h`.
pub(crate) fn span(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "long".to_owned();
    }
    let seconds = seconds.max(0.0);
    if seconds == 0.0 {
        return "0s".to_owned();
    }
    if seconds < 0.9995 {
        return format!("{:.0}ms", (seconds * 1e3).max(1.0));
    }
    if seconds < 59.95 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes, rest) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    if days > 0 {
        format!("{days}d{hours:02}h")
    } else if hours > 0 {
        format!("{hours}h{minutes:02}m")
    } else {
        format!("{minutes}m{rest:02}s")
    }
}

/// How long ago a time (RFC 3339) was, as seen at `now` (seconds since 1970).
pub(crate) fn ago(time: &str, now: f64) -> String {
    let since = humantime::parse_rfc3339_weak(time).ok();
    let since = since.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    optional(since.as_ref().map(Duration::as_secs_f64), |since| span(now - since))
}

/// A size in memory.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    if size < 10.0 { format!("{size:.1} {unit}") } else { format!("{size:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_at_a_glance() {
        assert_eq!(
            [0, 999, 1000, 12_345, 1_000_000].map(count),
            ["0", "999", "1,000", "12,345", "1,000,000"]
        );
        assert_eq!([0.0, 0.01, 0.26, 9.94, 1234.4].map(rate), ["0", "0", "0.3", "9.9", "1,234"]);
        assert_eq!([1024, 5_300_000, 3_000_000_000].map(bytes), ["1.0 KiB", "5.1 MiB", "2.8 GiB"]);
        assert_eq!(optional(None, span), "-");
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let shown = [
            (0.0, "0s"),
            (-1.0, "0s"),
            (0.000_2, "1ms"),
            (0.012_4, "12ms"),
            (0.999_6, "1.0s"),
            (59.94, "59.9s"),
            (59.96, "1m00s"),
            (250.0, "4m10s"),
            (7500.0, "2h05m"),
            (273_600.0, "3d04h"),
            (f64::INFINITY, "long"),
        ];
        for (seconds, text) in shown {
            assert_eq!(span(seconds), text, "{seconds}");
        }
        assert_eq!(ago("1970-01-01T00:01:00.500Z", 70.5), "10.0s");
        assert_eq!(ago("yesterday", 70.5), "-");
    }
}
