//! The way to a kept task that others send to.

use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::lock;

/// The way to a kept task that others send to. It leads to the run at present: whatever a run that panicked had not answered
/// is dropped with it, and nothing is taken while there is none.
#[derive(Debug)]
pub(crate) struct Inbox<T>(Arc<Mutex<Ends<T>>>);

#[derive(Debug)]
struct Ends<T> {
    sender: mpsc::UnboundedSender<T>,
    /// Until the first run takes it.
    receiver: Option<mpsc::UnboundedReceiver<T>>,
}

impl<T> Inbox<T> {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self(Arc::new(Mutex::new(Ends { sender, receiver: Some(receiver) })))
    }

    /// What a run reads from; by this it takes the place of the one before.
    pub(crate) fn open(&self) -> mpsc::UnboundedReceiver<T> {
        let mut ends = lock(&self.0);
        if let Some(receiver) = ends.receiver.take() {
            return receiver;
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        ends.sender = sender;
        receiver
    }

    /// Sends; gives whether there is a run that takes it.
    pub(crate) fn send(&self, message: T) -> bool {
        lock(&self.0).sender.send(message).is_ok()
    }
}

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
