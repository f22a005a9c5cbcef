//! The addresses of a server's host name. A name may be moved to another server while the former one still answers (an old
//! primary, a database that has been moved). Connections must not stay there.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::budget::lock;

/// Interval between look-ups of a name whose connections are in use.
const LOOK_UP_EVERY: Duration = Duration::from_secs(15);

/// Timeout of a look-up.
const WITHIN: Duration = Duration::from_secs(10);

/// Addresses of one name, at one moment.
pub(crate) type Addresses = Arc<[IpAddr]>;

/// The last known addresses of a name.
#[derive(Default)]
pub(crate) struct Names(Mutex<State>);

#[derive(Default)]
struct State {
    addresses: Option<Addresses>,
    asked: Option<Instant>,
}

impl Names {
    /// Whether a look-up is due. The caller that gets `true` makes it.
    pub(crate) fn is_due(&self) -> bool {
        let mut state = lock(&self.0);
        let due = state.asked.is_none_or(|asked| asked.elapsed() >= LOOK_UP_EVERY);
        if due {
            state.asked = Some(Instant::now());
        }
        due
    }

    /// Stores the answer of the name service, and returns whether the name has moved.
    pub(crate) fn note(&self, found: &Addresses) -> bool {
        let mut state = lock(&self.0);
        let moved = state.addresses.as_ref().is_some_and(|known| are_apart(known, found));
        (state.addresses, state.asked) = (Some(Arc::clone(found)), Some(Instant::now()));
        moved
    }

    /// Whether the name leads elsewhere now than when it had these addresses. One address in common counts as the same: a name
    /// service may give some of many in turns.
    pub(crate) fn has_left(&self, former: &[IpAddr]) -> bool {
        lock(&self.0).addresses.as_ref().is_some_and(|now| are_apart(former, now))
    }
}

fn are_apart(a: &[IpAddr], b: &[IpAddr]) -> bool {
    !a.is_empty() && !b.is_empty() && !a.iter().any(|address| b.contains(address))
}

/// Resolves the name.
///
/// # Errors
/// As the name service answers, or when it doesn't answer in time.
pub(crate) async fn look_up(host: &str, port: u16) -> io::Result<Addresses> {
    let asking = tokio::net::lookup_host((host, port));
    let found = tokio::time::timeout(WITHIN, asking).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(found.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(last: &[u8]) -> Addresses {
        last.iter().map(|n| IpAddr::from([192, 0, 2, *n])).collect()
    }

    #[test]
    fn a_name_has_moved_when_no_address_is_left() {
        let names = Names::default();
        assert!(!names.has_left(&addresses(&[1])), "nothing is known");
        assert!(!names.note(&addresses(&[1, 2])));
        assert!(!names.note(&addresses(&[2, 3])), "one of several in turns");
        assert!(!names.has_left(&addresses(&[1, 2])) && names.has_left(&addresses(&[1])));
        assert!(!names.note(&addresses(&[])), "no answer is no move");
        assert!(!names.has_left(&addresses(&[1])));
        names.note(&addresses(&[2]));
        assert!(names.note(&addresses(&[9])));
        assert!(!names.has_left(&[]), "an address or a socket has no name");
        assert!(!names.is_due(), "it has just been answered");
    }
}
