//! Whether there is anything in the schedules that a tenant seldom has: those of ledgers before v3.6.2, and of the other key form.
//!
//! Each collector asks once a minute or so, and nearly always there is nothing. So those of a thread that ask at about the same time
//! ask together: one command for all of them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use balance_sync_schedule::{Link, QueueReader};
use tokio::sync::oneshot;

/// How long the first one waits for others.
const GATHER: Duration = Duration::from_millis(100);
/// Keys in one command: some 100 µs of Redis.
const PAGE: usize = 500;

#[derive(Debug)]
struct Asker {
    keys: Vec<String>,
    answer: oneshot::Sender<bool>,
}

/// Asks for many collectors.
#[derive(Debug, Clone)]
pub struct Surveyor {
    reader: Arc<QueueReader>,
    waiting: Arc<Mutex<Vec<Asker>>>,
}

impl Surveyor {
    /// Over this link.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { reader: Arc::new(QueueReader::new(link)), waiting: Arc::default() }
    }

    /// Whether it is known that none of these keys exists. `false`: one does, or of those that ask at the same time another's, or
    /// Redis doesn't answer; then each has to look for itself.
    pub async fn none_exists(&self, keys: Vec<String>) -> bool {
        self.ask(keys, async |keys: &[&str]| self.reader.existing(keys).await.ok()).await
    }

    async fn ask(&self, keys: Vec<String>, existing: impl AsyncFn(&[&str]) -> Option<u64>) -> bool {
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut waiting = self.lock();
            waiting.push(Asker { keys, answer });
            waiting.len() == 1
        };
        if is_first {
            let mut gathered = Gathered { surveyor: self, askers: None };
            tokio::time::sleep(GATHER).await;
            for page in pages(gathered.take()) {
                let keys: Vec<&str> = page.iter().flat_map(|asker| &asker.keys).map(String::as_str).collect();
                let none = existing(&keys).await == Some(0);
                for asker in page {
                    // It may have been stopped.
                    let _ = asker.answer.send(none);
                }
            }
        }
        // One that was stopped while it asked for the others leaves no answer.
        answered.await.unwrap_or(false)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Asker>> {
        // Each change of it is one call.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the first one asks for. Where that is dropped before it has begun, the others are let go, and the next one is the first.
struct Gathered<'a> {
    surveyor: &'a Surveyor,
    askers: Option<()>,
}

impl Gathered<'_> {
    fn take(&mut self) -> Vec<Asker> {
        self.askers = Some(());
        std::mem::take(&mut *self.surveyor.lock())
    }
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        if self.askers.is_none() {
            self.take();
        }
    }
}

/// Askers that share a command.
fn pages(askers: Vec<Asker>) -> Vec<Vec<Asker>> {
    let mut pages: Vec<Vec<Asker>> = Vec::new();
    let mut room = 0;
    for asker in askers {
        match pages.last_mut() {
            Some(page) if asker.keys.len() <= room => {
                room -= asker.keys.len();
                page.push(asker);
            }
            _ => {
                room = PAGE.saturating_sub(asker.keys.len());
                pages.push(vec![asker]);
            }
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{cell::RefCell, rc::Rc};

    use balance_sync_schedule::LinkSettings;
    use tokio::task::LocalSet;

    use super::*;

    #[derive(Default)]
    struct Redis {
        existing: RefCell<Vec<String>>,
        asked: RefCell<Vec<usize>>,
    }

    async fn local(test: impl AsyncFnOnce(Surveyor, Rc<Redis>)) {
        let settings = LinkSettings::for_url("redis://127.0.0.1:1");
        let surveyor = Surveyor::new(Link::new(&settings).unwrap());
        LocalSet::new().run_until(test(surveyor, Rc::default())).await;
    }

    fn ask(surveyor: &Surveyor, redis: &Rc<Redis>, key: &str) -> tokio::task::JoinHandle<bool> {
        let (surveyor, redis, keys) = (surveyor.clone(), Rc::clone(redis), vec![key.to_owned()]);
        tokio::task::spawn_local(async move {
            let existing = async |keys: &[&str]| {
                redis.asked.borrow_mut().push(keys.len());
                let there = redis.existing.borrow();
                Some(keys.iter().filter(|key| there.iter().any(|there| there == **key)).count() as u64)
            };
            surveyor.ask(keys, existing).await
        })
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_ask_at_about_the_same_time_share_commands() {
        local(async |surveyor, redis| {
            let asks: Vec<_> = (0..PAGE + 10).map(|n| ask(&surveyor, &redis, &format!("k{n}"))).collect();
            for ask in asks {
                assert!(ask.await.unwrap());
            }
            assert_eq!(*redis.asked.borrow(), [PAGE, 10]);
            redis.existing.borrow_mut().push("b".to_owned());
            let (a, b) = (ask(&surveyor, &redis, "a"), ask(&surveyor, &redis, "b"));
            assert!(!a.await.unwrap() && !b.await.unwrap(), "each looks for itself");
            assert!(ask(&surveyor, &redis, "a").await.unwrap());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_stopped_while_others_wait_for_it_lets_them_go() {
        local(async |surveyor, redis| {
            let (first, second) = (ask(&surveyor, &redis, "a"), ask(&surveyor, &redis, "b"));
            tokio::time::sleep(GATHER / 2).await;
            first.abort();
            assert!(!second.await.unwrap());
            assert!(redis.asked.borrow().is_empty());
            assert!(ask(&surveyor, &redis, "c").await.unwrap(), "the next one is the first");
        })
        .await;
    }
}
