//! How fast a server is asked.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

/// Lets so many items pass per second, over all who ask.
#[derive(Debug)]
pub(crate) struct Pace {
    per_second: u32,
    next: Cell<Instant>,
}

impl Pace {
    /// So many per second.
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second: per_second.max(1), next: Cell::new(Instant::now()) }
    }

    /// Waits until `items` more may pass.
    pub(crate) async fn take(&self, items: usize) {
        let begin = self.next.get().max(Instant::now());
        let cost = Duration::from_secs_f64(items as f64 / f64::from(self.per_second));
        self.next.set(begin + cost);
        tokio::time::sleep_until(begin).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_pass_in_a_second() {
        let (pace, begin) = (Pace::new(1000), Instant::now());
        for _ in 0..5 {
            pace.take(500).await;
        }
        assert_eq!(begin.elapsed(), Duration::from_secs(2), "the first passes at once");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begin = Instant::now();
        pace.take(500).await;
        pace.take(500).await;
        assert_eq!(begin.elapsed(), Duration::from_millis(500), "what was not used is not saved up");
    }
}
