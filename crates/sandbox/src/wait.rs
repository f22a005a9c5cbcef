//! Waiting for a condition, instead of sleeping and hoping.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks at the condition.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a look at a condition can find.
pub trait Look {
    /// What is there once the condition holds.
    type Found;

    /// What was found, or what is known about why not.
    ///
    /// # Errors
    /// A remark for the message of a wait that ended in vain; may be empty.
    fn found(self) -> Result<Self::Found, String>;
}

impl Look for bool {
    type Found = ();

    fn found(self) -> Result<(), String> {
        self.then_some(()).ok_or_default()
    }
}

impl<T> Look for Option<T> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.ok_or_default()
    }
}

/// An error is looked at again too; the last one appears in the message.
impl<T, E: Display> Look for Result<T, E> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.map_err(|error| format!(": {error:#}"))
    }
}

trait OkOrDefault<T> {
    fn ok_or_default(self) -> Result<T, String>;
}

impl<T> OkOrDefault<T> for Option<T> {
    fn ok_or_default(self) -> Result<T, String> {
        self.ok_or_else(String::new)
    }
}

/// Looks every 10 ms until `look` finds something: `true`, `Some`, or `Ok`.
///
/// `what` completes the sentence "… did not come about". A look under way at the deadline is cut off.
///
/// # Errors
/// When nothing was found before the deadline.
pub async fn eventually<F, Fut, L>(deadline: Duration, what: &str, mut look: F) -> Result<L::Found>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = L>,
    L: Look,
{
    let end = Instant::now() + deadline;
    let mut remark = String::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, look()).await.map(Look::found) {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(new_remark)) => remark = new_remark,
            Err(_) => {}
        }
        if Instant::now() >= end {
            bail!("{what} did not come about within {deadline:?}{remark}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn returns_what_was_found_and_tells_the_last_error() {
        let mut looks = 0;
        let found = eventually(Duration::from_secs(5), "the third look", || {
            looks += 1;
            let now = looks;
            async move { (now == 3).then_some(now) }
        });
        assert_eq!(found.await.unwrap(), 3);
        let failed =
            eventually(Duration::from_millis(30), "a success", || async { Err::<(), _>("still ill") });
        assert!(failed.await.unwrap_err().to_string().ends_with("still ill"));
        let stuck = eventually(Duration::from_millis(30), "an answer", std::future::pending::<bool>);
        assert!(stuck.await.unwrap_err().to_string().contains("an answer did not come about"));
    }
}
