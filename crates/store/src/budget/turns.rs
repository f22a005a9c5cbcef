//! Turns to write a batch: so many at once on one server, given to those who wait by their weights.

use std::sync::{Arc, Mutex};

use balance_sync_engine::fair::{FairQueue, Weight};
use tokio::sync::oneshot;

use super::lock;

/// The turns of one server.
pub(crate) struct Turns(Mutex<State>);

struct State {
    free: usize,
    queue: FairQueue<oneshot::Sender<Turn>>,
}

/// The right to write a batch, until it is dropped.
pub(crate) struct Turn(Arc<Turns>);

impl Turns {
    pub(super) fn new(at_once: usize) -> Arc<Turns> {
        Arc::new(Turns(Mutex::new(State { free: at_once, queue: FairQueue::default() })))
    }

    /// Waits for a turn. Dropping the future leaves the queue.
    pub(crate) async fn take(self: &Arc<Turns>, weight: Weight) -> Turn {
        loop {
            let granted = {
                let mut state = lock(&self.0);
                if state.free > 0 && state.queue.is_empty() {
                    state.free -= 1;
                    return Turn(Arc::clone(self));
                }
                let (grant, granted) = oneshot::channel();
                state.queue.push(weight, grant);
                granted
            };
            // The queue lives as long as the turns, which are borrowed here.
            if let Ok(turn) = granted.await {
                return turn;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // A turn must not be dropped under the lock. Its drop gives it to the next.
        let mut undelivered = None;
        let mut state = lock(&self.0.0);
        state.free += 1;
        while state.free > 0 && undelivered.is_none() {
            let gone = match state.queue.get(0) {
                Some(grant) => grant.is_closed(),
                None => break,
            };
            if gone {
                drop(state.queue.leave(0));
            } else if let Some(grant) = state.queue.serve(0) {
                state.free -= 1;
                undelivered = grant.send(Turn(Arc::clone(&self.0))).err();
            }
        }
        drop(state);
        drop(undelivered);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn turns_are_given_by_weight_and_never_more_than_there_are() {
        let turns = Turns::new(1);
        let mut held = Some(turns.take(Weight::ONE).await);
        let heavy = Weight::new(4).unwrap();
        let mut waiting: Vec<_> = [heavy, Weight::ONE, Weight::ONE]
            .into_iter()
            .enumerate()
            .map(|(who, weight)| (who, Box::pin(turns.take(weight))))
            .collect();
        assert!(waiting.iter_mut().all(|(_, turn)| turn.as_mut().now_or_never().is_none()));
        let mut served = Vec::new();
        for _ in 0..12 * 6 {
            drop(held.take());
            for (who, waits) in &mut waiting {
                if let Some(turn) = waits.as_mut().now_or_never() {
                    assert!(held.is_none(), "two turns at once");
                    (held, *waits) =
                        (Some(turn), Box::pin(turns.take(if *who == 0 { heavy } else { Weight::ONE })));
                    assert!(waits.as_mut().now_or_never().is_none());
                    served.push(*who);
                }
            }
        }
        let of = |who: usize| served[12..].iter().filter(|served| **served == who).count();
        assert_eq!((of(0), of(1), of(2)), (40, 10, 10), "{served:?}");
    }

    #[tokio::test]
    async fn who_gave_up_gets_none_and_a_turn_on_its_way_to_it_is_not_lost() {
        let turns = Turns::new(1);
        let first = turns.take(Weight::ONE).await;
        {
            let mut gives_up = pin!(turns.take(Weight::ONE));
            assert!(gives_up.as_mut().now_or_never().is_none());
        }
        let mut second = Box::pin(turns.take(Weight::ONE));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        // Its turn was sent, and it is dropped before it takes it.
        drop(second);
        turns.take(Weight::ONE).now_or_never().unwrap();
    }
}
