//! A subscription to one channel of Redis Pub/Sub.
//!
//! It needs a connection of its own. It doesn't reconnect: when it breaks, messages may be missed, and the subscriber has to
//! know.

use std::time::Duration;

use futures::StreamExt as _;
use redis::{
    RedisError, Value,
    aio::{PubSub, PubSubSink, PubSubStream},
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::{
    endpoint::Endpoint,
    error::{ErrorClass, ScheduleError},
};

/// Interval of pings, in response timeouts: 10 s by default. Without pings a connection that was cut silently would never be
/// noticed.
const PING_EVERY: u32 = 2;

const OPERATION: &str = "subscribe";

/// An open subscription.
pub struct Subscription {
    sink: PubSubSink,
    messages: PubSubStream,
    pings: Interval,
    answer_within: Duration,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

impl Subscription {
    /// Connects and subscribes; messages published from then on are received.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn open(endpoint: &Endpoint, channel: &str) -> Result<Self, ScheduleError> {
        let settings = endpoint.settings();
        // The same limit as for other connections, handshake included.
        let bound = settings.connect_timeout * 2;
        let within = |bound| move |_| unavailable(format!("no connection within {bound:?}"));
        // With Sentinel the master is looked up each time, so that failovers are followed.
        let clients =
            tokio::time::timeout(bound, endpoint.clients(OPERATION)).await.map_err(within(bound))??;
        let mut failure = None;
        let mut halves = None;
        // In a cluster every node delivers what is published on any of them.
        for client in clients {
            let opening = async {
                let mut connection: PubSub = client.get_async_pubsub().await?;
                connection.subscribe(channel).await?;
                Ok(connection.split())
            };
            match tokio::time::timeout(bound, opening).await {
                Ok(Ok(opened)) => {
                    halves = Some(opened);
                    break;
                }
                Ok(Err(error)) => failure = Some(refused(&error, channel)),
                Err(elapsed) => failure = Some(within(bound)(elapsed)),
            }
        }
        let Some((sink, messages)) = halves else {
            return Err(failure.unwrap_or_else(|| unavailable("no server is known".to_owned())));
        };
        // `interval_at` panics on zero.
        let every = (settings.response_timeout * PING_EVERY).max(Duration::from_millis(1));
        let mut pings = interval_at(Instant::now() + every, every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { sink, messages, pings, answer_within: settings.response_timeout })
    }

    /// Waits for the next message and returns its payload. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is broken; open another subscription then.
    pub async fn next(&mut self) -> Result<Vec<u8>, ScheduleError> {
        loop {
            tokio::select! {
                biased;
                message = self.messages.next() => {
                    return message
                        .map(|message| message.get_payload_bytes().to_vec())
                        .ok_or_else(|| unavailable("the connection was closed".to_owned()));
                }
                _ = self.pings.tick() => self.ping().await?,
            }
        }
    }

    async fn ping(&mut self) -> Result<(), ScheduleError> {
        match tokio::time::timeout(self.answer_within, self.sink.ping::<Value>()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(ScheduleError::new(OPERATION, &error)),
            Err(_) => Err(unavailable(format!("no answer within {:?}", self.answer_within))),
        }
    }
}

fn refused(error: &RedisError, channel: &str) -> ScheduleError {
    let error = ScheduleError::new(OPERATION, error);
    // A command that is refused is named by Redis.
    let is_channel = error.class == ErrorClass::Permission && error.message.contains("channel");
    if is_channel { error.missing(&format!("&{channel}")) } else { error }
}

fn unavailable(message: String) -> ScheduleError {
    ScheduleError { operation: OPERATION, class: ErrorClass::Unavailable, message }
}
