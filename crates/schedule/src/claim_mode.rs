//! Whether the claims of a tenant take the locks of the ledger's own worker, which may change between two claims.
//!
//! A claim is safe in either mode, because it is a lease; so the mode may change at any moment. But what a claim has locked must be
//! unlocked when it ends. So calls that end claims look for locks until the last ones have expired.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::schedule::ClaimMode;

/// The mode in force.
#[derive(Debug)]
pub(crate) struct Locking {
    mode: ClaimMode,
    auto: Mutex<Auto>,
}

#[derive(Debug)]
struct Auto {
    takes: bool,
    /// No lock that was taken lives longer.
    until: Option<Instant>,
}

impl Locking {
    /// Mode `auto` begins with locks: nothing is known of the tenant.
    pub(crate) fn new(mode: ClaimMode) -> Self {
        // Where it is not known whether locks were taken, as in a command beside a worker, they are looked for.
        Self { mode, auto: Mutex::new(Auto { takes: true, until: None }) }
    }

    pub(crate) fn take(&self, take: bool) {
        self.lock().takes = take;
    }

    pub(crate) fn takes(&self) -> bool {
        match self.mode {
            ClaimMode::Lease => false,
            ClaimMode::Lock => true,
            ClaimMode::Auto => self.lock().takes,
        }
    }

    /// A claim begins; returns whether it takes locks, which live for `ttl`.
    pub(crate) fn claim(&self, ttl: Duration) -> bool {
        if self.mode != ClaimMode::Auto {
            return self.takes();
        }
        let mut auto = self.lock();
        if auto.takes {
            // The call itself takes time, for which Redis's answer is waited.
            auto.until = Some(Instant::now() + 2 * ttl);
        }
        auto.takes
    }

    /// Whether a claim may have taken a lock that has not expired.
    pub(crate) fn may_hold(&self) -> bool {
        if self.mode != ClaimMode::Auto {
            return self.takes();
        }
        let auto = self.lock();
        auto.takes || auto.until.is_some_and(|until| until > Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Auto> {
        // Each change is one assignment.
        self.auto.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_auto_changes_and_locks_are_looked_for_until_they_have_expired() {
        for (mode, takes) in [(ClaimMode::Lease, false), (ClaimMode::Lock, true)] {
            let locking = Locking::new(mode);
            locking.take(!takes);
            assert_eq!(
                (locking.takes(), locking.claim(Duration::ZERO), locking.may_hold()),
                (takes, takes, takes)
            );
        }
        let auto = Locking::new(ClaimMode::Auto);
        assert!(auto.takes() && auto.may_hold(), "nothing is known");
        auto.take(false);
        assert!(!auto.claim(Duration::from_secs(60)) && !auto.may_hold(), "it has taken none");
        auto.take(true);
        assert!(auto.claim(Duration::from_secs(60)));
        auto.take(false);
        assert!(!auto.claim(Duration::from_secs(60)) && auto.may_hold(), "those of the claim before");
        auto.take(true);
        assert!(auto.claim(Duration::ZERO));
        auto.take(false);
        assert!(!auto.may_hold(), "they have expired");
    }
}
