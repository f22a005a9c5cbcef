//! How often tenants' settings are looked up again because of what their Postgres servers answer. A server that fails, fails for
//! all tenants it has, and for hours: without a bound each of their tries would be a call to the tenant service.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Between two look-ups because of one server, once the first ones are used up.
const EVERY: Duration = Duration::from_millis(500);
/// Look-ups at once because settings have been refused: a password that was rotated for all tenants of a server.
const REFUSED_AT_ONCE: u32 = 100;
/// Look-ups at once because settings may be out of date.
const DOUBTED_AT_ONCE: u32 = 10;
/// Servers whose rate is known, before those that have had no look-up for long are forgotten.
const SERVERS: usize = 1_000;

/// The look-ups of all servers.
#[derive(Debug, Default)]
pub(super) struct LookupRate(HashMap<String, Server>);

/// When each kind of look-up would be due, had they all come at their rate.
#[derive(Debug, Clone, Copy)]
struct Server {
    refused: Instant,
    doubted: Instant,
}

impl LookupRate {
    /// Whether settings may be looked up again that this server has refused.
    pub(super) fn refused(&mut self, server: &str, now: Instant) -> bool {
        take(&mut self.server(server, now).refused, now, REFUSED_AT_ONCE)
    }

    /// Whether settings may be looked up again because this server fails in a way that other settings might mend.
    pub(super) fn doubted(&mut self, server: &str, now: Instant) -> bool {
        take(&mut self.server(server, now).doubted, now, DOUBTED_AT_ONCE)
    }

    fn server(&mut self, key: &str, now: Instant) -> &mut Server {
        if self.0.len() >= SERVERS && !self.0.contains_key(key) {
            self.0.retain(|_, server| server.refused > now || server.doubted > now);
        }
        self.0.entry(key.to_owned()).or_insert(Server { refused: now, doubted: now })
    }
}

fn take(due: &mut Instant, now: Instant, at_once: u32) -> bool {
    let next = (*due).max(now) + EVERY;
    let allowed = next <= now + EVERY * at_once;
    if allowed {
        *due = next;
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_server_has_its_rate() {
        let mut rate = LookupRate::default();
        let mut allowed = |server, seconds: u32| {
            let now = Instant::now() + Duration::from_secs(u64::from(seconds));
            (0..1000).filter(|_| rate.doubted(server, now)).count()
        };
        assert_eq!(allowed("one", 0), DOUBTED_AT_ONCE as usize);
        assert_eq!(allowed("two", 0), DOUBTED_AT_ONCE as usize);
        assert_eq!(allowed("one", 1), 2);
        assert_eq!(allowed("one", 3), 4);
        assert_eq!(allowed("one", 3600), DOUBTED_AT_ONCE as usize);
        let now = Instant::now();
        assert_eq!((0..1000).filter(|_| rate.refused("one", now)).count(), REFUSED_AT_ONCE as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn servers_of_long_ago_are_forgotten() {
        let mut rate = LookupRate::default();
        for n in 0..3 * SERVERS {
            let now = Instant::now() + Duration::from_secs(n as u64);
            assert!(rate.doubted(&format!("{n}"), now));
        }
        assert!(rate.0.len() <= SERVERS);
    }
}
