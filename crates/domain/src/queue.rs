//! The ledger's own queues beside the schedule: their names, and when a record of one was created.

use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::names;

names! {
    /// A queue of the ledger, under the name shown everywhere.
    pub enum LedgerQueue {
        /// Transactions that are not in Postgres yet; the ledger replays those older than 30 minutes.
        Backup = "backup",
        /// Transactions that the ledger's engine has to recover (4.1 and later).
        Recovery = "recovery",
        /// Recovered transactions that the engine has to clean up (4.1 and later).
        RecoveryCleanup = "recovery_cleanup",
        /// Records of the others that the ledger has given up replaying, in a table of Postgres (4.x).
        Quarantine = "quarantine",
    }
}

/// A time before this is none: Go writes the year 1 for a time that was never set.
const EARLIEST_MS: i64 = 1_420_070_400_000; // 2015

/// A record is not what the ledger writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of the queue can't be read")]
pub struct UnreadableRecord;

#[derive(Deserialize)]
struct BackupRecord<'a> {
    #[serde(borrow, default)]
    ttl: Option<std::borrow::Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RecoveryRecord {
    #[serde(default)]
    record: Option<RecoveryBody>,
}

#[derive(Deserialize)]
struct RecoveryBody {
    #[serde(default)]
    result: Option<RecoveryResult>,
}

#[derive(Deserialize)]
struct RecoveryResult {
    #[serde(default, rename = "appliedAtUnixMicro")]
    applied_at: Option<i64>,
}

/// When a record of `backup` was created, in milliseconds since 1970; `None` if it doesn't say.
///
/// # Errors
/// When it is no JSON object, or its time is none.
pub fn backup_created_ms(value: &[u8]) -> Result<Option<i64>, UnreadableRecord> {
    let record: BackupRecord<'_> = object(value)?;
    let Some(text) = record.ttl else { return Ok(None) };
    let at = OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| UnreadableRecord)?;
    Ok(plausible(i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()))
}

/// When a record of `recovery` was applied, in milliseconds since 1970; `None` if it doesn't say.
///
/// # Errors
/// When it is no JSON object, or its time is none.
pub fn recovery_applied_ms(value: &[u8]) -> Result<Option<i64>, UnreadableRecord> {
    let record: RecoveryRecord = object(value)?;
    let micros = record.record.and_then(|record| record.result).and_then(|result| result.applied_at);
    Ok(plausible(micros.map(|micros| micros / 1_000)))
}

/// How often the ledger has tried a record.
///
/// # Errors
/// When it is no whole number.
pub fn attempts(value: &[u8]) -> Result<u64, UnreadableRecord> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(UnreadableRecord)
}

/// Everything else in the record is skipped without being kept. A struct would also be read from an array.
fn object<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, UnreadableRecord> {
    if value.trim_ascii_start().first() != Some(&b'{') {
        return Err(UnreadableRecord);
    }
    serde_json::from_slice(value).map_err(|_| UnreadableRecord)
}

fn plausible(at_ms: Option<i64>) -> Option<i64> {
    at_ms.filter(|at| *at >= EARLIEST_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_backup_record_with_any_offset_and_precision() {
        for (ttl, ms) in [
            ("2026-11-27T03:48:24Z", 1_795_751_304_000),
            ("2026-11-27T03:48:24.123456789Z", 1_795_751_304_123),
            ("2026-11-27T00:48:24.1-03:00", 1_795_751_304_100),
            ("2026-11-27T03:48:24.000001+00:00", 1_795_751_304_000),
        ] {
            // A `ttl` of something inside the record is not the record's own.
            let value = format!(
                r#"{{"header_id":"h","parserDSL":{{"metadata":{{"ttl":"2016-01-01T00:00:00Z"}}}},"ttl":"{ttl}","validate":null}}"#
            );
            assert_eq!(backup_created_ms(value.as_bytes()), Ok(Some(ms)), "{ttl}");
        }
    }

    #[test]
    fn a_record_without_a_time_is_readable() {
        for value in ["{}", r#"{"ttl":null}"#, r#"{"ttl":"0001-01-01T00:00:00Z"}"#, r#"{"TTL":"x"}"#] {
            assert_eq!(backup_created_ms(value.as_bytes()), Ok(None), "{value}");
        }
        for value in [
            "{}",
            r#"{"record":null}"#,
            r#"{"record":{"result":{}}}"#,
            r#"{"record":{"result":{"appliedAtUnixMicro":1}}}"#,
        ] {
            assert_eq!(recovery_applied_ms(value.as_bytes()), Ok(None), "{value}");
        }
    }

    #[test]
    fn the_time_of_a_recover_record() {
        let value =
            br#"{"record":{"result":{"final":[{"id":"x"}],"appliedAtUnixMicro":1795751304123456}},"v":1}"#;
        assert_eq!(recovery_applied_ms(value), Ok(Some(1_795_751_304_123)));
    }

    #[test]
    fn what_the_ledger_never_writes_is_unreadable() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let nested = format!(r#"{{"x":{deep}}}"#);
        for value in [
            &b""[..],
            b"7",
            b"null",
            b"no JSON",
            b"\xff\xfe",
            b"[\"2026-11-27T03:48:24Z\"]",
            br#"{"ttl":7}"#,
            br#"{"ttl":"yesterday"}"#,
            br#"{"ttl":"2026-02-30T00:00:00Z"}"#,
            br#"{"ttl":"2026-11-27T03:48:24Z""#,
            br#"{"ttl":"2026-11-27T03:48:24Z","ttl":"2026-11-27T03:48:24Z"}"#,
        ] {
            assert_eq!(backup_created_ms(value), Err(UnreadableRecord), "{value:?}");
        }
        for value in [
            &b"[]"[..],
            br#"{"record":7}"#,
            br#"{"record":{"result":{"appliedAtUnixMicro":"1795751304123456"}}}"#,
        ] {
            assert_eq!(recovery_applied_ms(value), Err(UnreadableRecord), "{value:?}");
        }
        // Whatever its depth, it is skipped and never walked into by recursion.
        assert!(backup_created_ms(nested.as_bytes()).is_ok());
        for value in [&b""[..], b"-1", b"1.5", b"many", b"18446744073709551616", b" 1"] {
            assert_eq!(attempts(value), Err(UnreadableRecord), "{value:?}");
        }
        assert_eq!(attempts(b"3"), Ok(3));
    }
}
