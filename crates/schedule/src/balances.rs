//! The balances that Redis holds, page by page, scheduled or not.

use std::collections::HashMap;

use balance_sync_domain::KeySpace;
use redis::Value;

use crate::{
    error::ScheduleError,
    link::Link,
    reply::{array, bulk},
};

/// Keys that Redis looks at in one call: below a millisecond.
const SCAN_COUNT: usize = 2000;

/// Walks over the keys of Redis once, and returns those of balances with the key space that each belongs to.
#[derive(Debug)]
pub struct BalanceKeys {
    link: Link,
    /// The number of a key space, by its prefix.
    spaces: HashMap<Vec<u8>, usize>,
    pattern: String,
    cursor: Option<Vec<u8>>,
}

impl BalanceKeys {
    /// The keys of these key spaces; a page gives each space by its number here.
    pub fn new(link: Link, spaces: impl IntoIterator<Item = KeySpace>) -> Self {
        let spaces: HashMap<Vec<u8>, usize> = spaces
            .into_iter()
            .enumerate()
            .map(|(n, space)| (space.balance_prefix().into_bytes(), n))
            .collect();
        let mut prefixes = spaces.keys();
        let pattern = match (prefixes.next(), prefixes.next()) {
            (Some(only), None) => format!("{}*", escaped(&String::from_utf8_lossy(only))),
            _ => "*balance:{transactions}:*".to_owned(),
        };
        Self { link, spaces, pattern, cursor: Some(b"0".to_vec()) }
    }

    /// The next page, which may be empty; `None` after the last one. A key that exists all the while is in one page at least, and
    /// may be in several.
    ///
    /// # Errors
    /// As Redis answers; the same page comes again.
    pub async fn next(&mut self) -> Result<Option<Vec<(usize, Vec<u8>)>>, ScheduleError> {
        const OPERATION: &str = "scan balances";
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(SCAN_COUNT);
        let answer = self.link.send(OPERATION, &scan).await?;
        let parts = array(OPERATION, &answer, 2)?;
        let next = bulk(OPERATION, &parts[0])?;
        let mut page = Vec::new();
        if let Value::Array(keys) = &parts[1] {
            for key in keys {
                let key = bulk(OPERATION, key)?;
                if let Some(space) = prefix(key).and_then(|prefix| self.spaces.get(prefix)) {
                    page.push((*space, key.to_vec()));
                }
            }
        }
        self.cursor = (next != b"0").then(|| next.to_vec());
        Ok(Some(page))
    }
}

/// The values of these keys, in order; `None` where there is none, or one of another type.
///
/// # Errors
/// As Redis answers.
pub async fn read_values<K: AsRef<[u8]>>(
    link: &Link,
    keys: &[K],
) -> Result<Vec<Option<Vec<u8>>>, ScheduleError> {
    const OPERATION: &str = "read balances";
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut get = redis::cmd("MGET");
    for key in keys {
        get.arg(key.as_ref());
    }
    let answer = link.send(OPERATION, &get).await?;
    let values = array(OPERATION, &answer, keys.len())?;
    let value = |value: &Value| match value {
        Value::BulkString(bytes) => Some(bytes.clone()),
        _ => None,
    };
    Ok(values.iter().map(value).collect())
}

/// The part of a balance key up to and with its `balance:{transactions}:`.
fn prefix(key: &[u8]) -> Option<&[u8]> {
    const MARK: &[u8] = b"balance:{transactions}:";
    let at = if key.starts_with(b"tenant:") {
        key.windows(MARK.len()).position(|window| window == MARK)?
    } else {
        key.starts_with(MARK).then_some(0)?
    };
    Some(&key[..at + MARK.len()])
}

/// A literal for `MATCH`.
fn escaped(literal: &str) -> String {
    literal.chars().fold(String::with_capacity(literal.len()), |mut out, c| {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            out.push('\\');
        }
        out.push(c);
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_the_tenant_of_its_prefix() {
        assert_eq!(
            prefix(b"tenant:a:balance:{transactions}:o:l:@x#default"),
            Some(&b"tenant:a:balance:{transactions}:"[..])
        );
        assert_eq!(prefix(b"balance:{transactions}:o:l:@x#default"), Some(&b"balance:{transactions}:"[..]));
        assert_eq!(prefix(b"tenant:a:schedule:{transactions}:balance-sync-v2"), None);
        assert_eq!(prefix(b"other"), None);
    }
}
