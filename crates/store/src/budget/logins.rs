//! Logins to one server at once. One costs it some ten milliseconds of a core: many at once would all be there at the end, and none
//! before, while batches wait.

use std::pin::pin;

use tokio::sync::Semaphore;

use super::LONGEST_TURN;

/// So many at once.
const LOGINS: usize = 8;

/// The logins of one server.
pub(crate) struct Logins(Semaphore);

impl Logins {
    pub(super) fn new() -> Logins {
        Logins(Semaphore::new(LOGINS))
    }

    /// Logs in as one of few, in order. One that takes longer than a turn no longer counts: it waits for the way there, or for an answer
    /// that may never come, and costs the server nothing meanwhile.
    pub(crate) async fn among<F: Future>(&self, login: F) -> F::Output {
        let turn = self.0.acquire().await;
        let mut login = pin!(login);
        tokio::select! {
            biased;
            done = login.as_mut() => return done,
            () = tokio::time::sleep(LONGEST_TURN) => drop(turn),
        }
        login.await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;
    use std::time::Duration;

    use futures::future::{join, join_all};

    use super::*;
    use crate::{ConnectionBudget, Database, DatabaseSpec, ErrorClass};

    const MS: Duration = Duration::from_millis(1);

    /// Runs so many logins that each take this long. Returns the most at once, and how long all took.
    async fn run(logins: &Logins, count: u32, each: Duration) -> (u32, Duration) {
        let (now, most) = (Cell::new(0_u32), Cell::new(0_u32));
        let begun = tokio::time::Instant::now();
        join_all((0..count).map(|_| {
            logins.among(async {
                now.set(now.get() + 1);
                most.set(most.get().max(now.get()));
                tokio::time::sleep(each).await;
                now.set(now.get() - 1);
            })
        }))
        .await;
        (most.get(), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn eight_log_in_at_once_and_the_others_after_them() {
        let (most, took) = run(&Logins::new(), 24, 100 * MS).await;
        assert_eq!(most, 8);
        assert!((300 * MS..320 * MS).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_that_hangs_holds_up_the_others_for_one_turn() {
        let logins = Logins::new();
        let hang = run(&logins, 8, Duration::from_secs(60));
        let ((hung, _), (others, took)) = join(hang, run(&logins, 8, 100 * MS)).await;
        assert_eq!((hung, others), (8, 8));
        assert!((300 * MS..320 * MS).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_not_opened_before_its_login_is_due() {
        // Nothing listens there: it fails as soon as it is tried.
        let spec = DatabaseSpec::new("127.0.0.1", 1, "d", "u", String::new().into());
        let database = Database::open(spec, ConnectionBudget::new(4)).unwrap();
        let all = database.inner().server.logins.0.acquire_many(8).await.unwrap();
        let mut ping = pin!(database.ping());
        assert!(tokio::time::timeout(Duration::from_secs(60), ping.as_mut()).await.is_err());
        drop(all);
        assert_eq!(ping.await.unwrap_err().class(), ErrorClass::Connection);
    }
}
