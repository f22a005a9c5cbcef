//! Write slots: so many batches are written to one server at once. Waiting tenants get a slot by their weights.

use std::sync::{Arc, Mutex};

use balance_sync_engine::fair::{FairQueue, Weight};
use tokio::sync::oneshot;

use super::lock;

/// The write slots of one server.
pub(crate) struct WriteSlots(Mutex<State>);

struct State {
    free: usize,
    queue: FairQueue<oneshot::Sender<WriteSlot>>,
}

/// The right to write a batch, until it is dropped.
pub(crate) struct WriteSlot(Arc<WriteSlots>);

impl WriteSlots {
    pub(super) fn new(at_once: usize) -> Arc<WriteSlots> {
        Arc::new(WriteSlots(Mutex::new(State { free: at_once, queue: FairQueue::default() })))
    }

    /// Waits for a slot. Dropping the future leaves the queue.
    pub(crate) async fn acquire(self: &Arc<WriteSlots>, weight: Weight) -> WriteSlot {
        loop {
            let granted = {
                let mut state = lock(&self.0);
                if state.free > 0 && state.queue.is_empty() {
                    state.free -= 1;
                    return WriteSlot(Arc::clone(self));
                }
                let (grant, granted) = oneshot::channel();
                state.queue.push(weight, grant);
                granted
            };
            // The queue lives as long as `self`, which is borrowed here.
            if let Ok(slot) = granted.await {
                return slot;
            }
        }
    }
}

impl Drop for WriteSlot {
    fn drop(&mut self) {
        // A slot must not be dropped under the lock: its drop takes the lock to serve the next one.
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
                undelivered = grant.send(WriteSlot(Arc::clone(&self.0))).err();
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
    async fn slots_are_given_by_weight_and_never_more_than_there_are() {
        let slots = WriteSlots::new(1);
        let mut held = Some(slots.acquire(Weight::ONE).await);
        let heavy = Weight::new(4).unwrap();
        let mut waiting: Vec<_> = [heavy, Weight::ONE, Weight::ONE]
            .into_iter()
            .enumerate()
            .map(|(who, weight)| (who, Box::pin(slots.acquire(weight))))
            .collect();
        assert!(waiting.iter_mut().all(|(_, waits)| waits.as_mut().now_or_never().is_none()));
        let mut served = Vec::new();
        for _ in 0..12 * 6 {
            drop(held.take());
            for (who, waits) in &mut waiting {
                if let Some(slot) = waits.as_mut().now_or_never() {
                    assert!(held.is_none(), "two slots at once");
                    (held, *waits) =
                        (Some(slot), Box::pin(slots.acquire(if *who == 0 { heavy } else { Weight::ONE })));
                    assert!(waits.as_mut().now_or_never().is_none());
                    served.push(*who);
                }
            }
        }
        let of = |who: usize| served[12..].iter().filter(|served| **served == who).count();
        assert_eq!((of(0), of(1), of(2)), (40, 10, 10), "{served:?}");
    }

    #[tokio::test]
    async fn a_waiter_that_gave_up_gets_no_slot_and_one_on_its_way_is_not_lost() {
        let slots = WriteSlots::new(1);
        let first = slots.acquire(Weight::ONE).await;
        {
            let mut gives_up = pin!(slots.acquire(Weight::ONE));
            assert!(gives_up.as_mut().now_or_never().is_none());
        }
        let mut second = Box::pin(slots.acquire(Weight::ONE));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        // Its slot was sent, and it is dropped before it receives it.
        drop(second);
        slots.acquire(Weight::ONE).now_or_never().unwrap();
    }
}
