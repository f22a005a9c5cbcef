//! Parts of a script's reply as typed values, and durations as its arguments.

use std::time::Duration;

use redis::Value;

use crate::error::ScheduleError;

pub(crate) fn array<'a>(
    operation: &'static str,
    value: &'a Value,
    len: usize,
) -> Result<&'a [Value], ScheduleError> {
    match value {
        Value::Array(parts) if parts.len() == len => Ok(parts),
        _ => Err(ScheduleError::unexpected(operation, format!("the script returned no array of {len}"))),
    }
}

pub(crate) fn bulk<'a>(operation: &'static str, value: &'a Value) -> Result<&'a [u8], ScheduleError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        _ => Err(ScheduleError::unexpected(operation, "a string was expected")),
    }
}

pub(crate) fn text<'a>(operation: &'static str, value: &'a Value) -> Result<&'a str, ScheduleError> {
    std::str::from_utf8(bulk(operation, value)?)
        .map_err(|_| ScheduleError::unexpected(operation, "text was expected"))
}

pub(crate) fn seconds(operation: &'static str, value: &Value) -> Result<f64, ScheduleError> {
    text(operation, value)?.parse().map_err(|_| ScheduleError::unexpected(operation, "a time was expected"))
}

pub(crate) fn seconds_of_time(operation: &'static str, value: &Value) -> Result<f64, ScheduleError> {
    let parts = array(operation, value, 2)?;
    Ok(seconds(operation, &parts[0])? + seconds(operation, &parts[1])? / 1e6)
}

pub(crate) fn int(operation: &'static str, value: &Value) -> Result<u64, ScheduleError> {
    match value {
        Value::Int(n) => u64::try_from(*n)
            .map_err(|_| ScheduleError::unexpected(operation, "a count was expected, not a negative")),
        _ => Err(ScheduleError::unexpected(operation, "a count was expected")),
    }
}

pub(crate) fn ints(operation: &'static str, value: &Value, len: usize) -> Result<Vec<u64>, ScheduleError> {
    match value {
        Value::Int(_) if len == 1 => Ok(vec![int(operation, value)?]),
        _ => array(operation, value, len)?.iter().map(|part| int(operation, part)).collect(),
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
