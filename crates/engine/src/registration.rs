//! How a worker stays registered among the others, and what it does while its registration or its view of them is in doubt.
//!
//! A worker registers with a lease, renews it, and each answer lists the live workers. From the list it takes its share of
//! the tenants ([`crate::partition`]). The guard is in what it does *not* believe:
//!
//! - It takes no share before its second look: workers that are started together find each other in between.
//! - After a lapse (a Redis that was away or came back empty) everybody has lapsed, and who registers first is not alone:
//!   the last view stays for as long as the others may take to come back.
//! - While Redis gives no answer, the last share stays.
//! - No list knows of owners that are alive and don't work. So it looks now and then at the tenants of others, and adopts
//!   those whose balances have been due for long, for a while. After a start or a lapse everything is overdue; the owners
//!   come first.
//!
//! All of it only saves work: claims keep it correct when two views differ (`docs/decisions/0007-partition.md`).
//!
//! A driver asks [`Registration::next`] what to do, does it, and reports what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    backoff::{Backoff, Jitter},
    partition::Share,
};

/// Renewals per lease at the least: two may fail before others think that the worker is gone.
const RENEWALS: u32 = 3;
/// Longest time between two looks at who is alive, each of which renews the lease as well. Who comes first for a tenant must
/// know at once that it does, when the worker before it has left: no other worker claims until then. Some 15 µs of Redis.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A new worker looks a second time after this before it takes its share: workers that are started together find each other before
/// they have started collectors that they must stop again. Those that come later than that are found like any other; the first balance
/// waits for as long.
const FIRST_SETTLE: Duration = Duration::from_millis(25);
/// Everybody looks again after this when the view has changed.
const SETTLE: Duration = Duration::from_millis(250);
/// First delay after a registration that failed; it grows up to the time between renewals.
const RETRY: Duration = Duration::from_millis(100);
/// Looks at the tenants of others, per [`Options::overdue`].
const WATCHES: u32 = 4;
/// A tenant found abandoned is looked after for this many times [`Options::overdue`] after it was last so.
const ADOPTED_FOR: u32 = 2;

/// How a worker takes part.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name, unlike all others'.
    pub name: String,
    /// Workers that look after each tenant.
    pub replicas: usize,
    /// A worker silent for this long is gone.
    pub lease: Duration,
    /// Balances due for longer than this look abandoned.
    pub overdue: Duration,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<T> {
    /// Register or renew; ends with [`Registration::registered`] or [`Registration::failed`].
    Register,
    /// Look which tenants of others, and which of these adopted ones, have overdue balances; ends with
    /// [`Registration::watched`].
    Watch {
        /// The adopted ones.
        adopted: BTreeSet<T>,
    },
    /// Hand out this share; ends with [`Registration::announced`].
    Announce(Share<T>),
    /// Do nothing until then.
    Wait(Instant),
}

/// Whether the lease was still there when it was renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It was.
    Held,
    /// It was not: this is the first registration, or the lease had lapsed.
    Lapsed,
}

/// What to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Other workers are alive than before.
    View {
        /// How many.
        live: usize,
        /// Who came.
        joined: Vec<String>,
        /// Who went.
        left: Vec<String>,
    },
    /// Registration fails; reported once until it succeeds again.
    CutOff,
    /// It succeeds again.
    Back,
}

/// What is known of the live workers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum View {
    /// There was no answer yet.
    Unknown,
    /// There was one: the next is believed.
    LookedOnce,
    Known(BTreeSet<String>),
}

/// Whether Redis can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contact {
    There,
    CutOff,
}

/// Where it is between two registrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Register,
    /// A registration has ended: what follows from it, then a wait of this length.
    Follow {
        delay: Duration,
    },
    /// The tenants of others have been looked at, or need not be.
    Watched {
        delay: Duration,
    },
    Wait {
        until: Instant,
    },
}

/// A worker's place among the others.
#[derive(Debug)]
pub struct Registration<T> {
    options: Options,
    view: View,
    /// Tenants that seem abandoned, and until when they are looked after.
    adopted: BTreeMap<T, Instant>,
    announced: Option<Share<T>>,
    contact: Contact,
    step: Step,
    watch_at: Instant,
    retry: Backoff,
}

impl<T: Ord + Clone> Registration<T> {
    /// A worker that isn't registered yet.
    #[must_use]
    pub fn new(options: Options, now: Instant) -> Self {
        let renew = options.lease / RENEWALS;
        Self {
            view: View::Unknown,
            adopted: BTreeMap::new(),
            announced: None,
            contact: Contact::There,
            step: Step::Register,
            watch_at: now + options.overdue,
            retry: Backoff::new(RETRY.min(renew), renew),
            options,
        }
    }

    /// What to do now.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        loop {
            match self.step {
                Step::Register => return Next::Register,
                Step::Follow { delay } if self.watch_at > now => self.step = Step::Watched { delay },
                Step::Follow { .. } => {
                    return Next::Watch { adopted: self.adopted.keys().cloned().collect() };
                }
                Step::Watched { delay } => match self.unannounced() {
                    Some(share) => return Next::Announce(share),
                    None => self.step = Step::Wait { until: now + delay },
                },
                Step::Wait { until } if until <= now => self.step = Step::Register,
                Step::Wait { until } => return Next::Wait(until),
            }
        }
    }

    /// It is registered, and these are alive.
    pub fn registered(&mut self, now: Instant, lease: Lease, live: BTreeSet<String>) -> Vec<Report> {
        let mut reports = Vec::new();
        self.retry.reset();
        if self.contact == Contact::CutOff {
            self.contact = Contact::There;
            reports.push(Report::Back);
        }
        if lease == Lease::Lapsed {
            self.watch_at = now + self.options.overdue;
        }
        let renew = self.options.lease / RENEWALS;
        if self.view == View::Unknown {
            self.view = View::LookedOnce;
            self.step = Step::Wait { until: now + FIRST_SETTLE.min(renew) };
            return reports;
        }
        let delay = match (lease, self.take_in(lease, live)) {
            (_, Some(change)) => {
                reports.push(change);
                SETTLE.min(renew)
            }
            (Lease::Held, None) => LOOK_EVERY.min(renew),
            // The others are to be back before the next look; they retry within `renew`.
            (Lease::Lapsed, None) => renew * 2,
        };
        self.step = Step::Follow { delay };
        reports
    }

    /// It could not be registered. What it knows stays in force.
    pub fn failed(&mut self, jitter: &mut Jitter) -> Option<Report> {
        self.step = Step::Follow { delay: self.retry.next_delay(jitter) };
        match std::mem::replace(&mut self.contact, Contact::CutOff) {
            Contact::There => Some(Report::CutOff),
            Contact::CutOff => None,
        }
    }

    /// These tenants, of others or adopted ones, have overdue balances; `None` if they could not be looked at. Returns those
    /// that are adopted now and were not before.
    pub fn watched(&mut self, now: Instant, overdue: Option<Vec<T>>) -> Vec<T> {
        if let Step::Follow { delay } = self.step {
            self.step = Step::Watched { delay };
        }
        self.watch_at = now + self.options.overdue / WATCHES;
        // Who can't look doesn't know whether they are still abandoned.
        let Some(overdue) = overdue else { return Vec::new() };
        let until = now + self.options.overdue * ADOPTED_FOR;
        let new = overdue.into_iter().filter(|tenant| self.adopted.insert(tenant.clone(), until).is_none());
        let new = new.collect();
        self.adopted.retain(|_, until| *until > now);
        new
    }

    /// The share has arrived; one that has not is handed out again after the next look.
    pub fn announced(&mut self, now: Instant, share: Share<T>) {
        self.announced = Some(share);
        self.wait(now);
    }

    /// The share could not be handed out.
    pub fn not_announced(&mut self, now: Instant) {
        self.wait(now);
    }

    fn wait(&mut self, now: Instant) {
        if let Step::Watched { delay } = self.step {
            self.step = Step::Wait { until: now + delay };
        }
    }

    /// Takes over a new view; returns whether it is another one than before.
    fn take_in(&mut self, lease: Lease, live: BTreeSet<String>) -> Option<Report> {
        let none = BTreeSet::new();
        let before = match &self.view {
            View::Unknown | View::LookedOnce => &none,
            View::Known(_) if lease == Lease::Lapsed => return None,
            View::Known(before) => before,
        };
        // An empty list, without even this worker, is not believed.
        if *before == live || live.is_empty() {
            return None;
        }
        let report = Report::View {
            live: live.len(),
            joined: live.difference(before).cloned().collect(),
            left: before.difference(&live).cloned().collect(),
        };
        self.view = View::Known(live);
        Some(report)
    }

    fn unannounced(&self) -> Option<Share<T>> {
        let View::Known(workers) = &self.view else { return None };
        let share = Share::Part {
            name: self.options.name.clone(),
            workers: workers.clone(),
            replicas: self.options.replicas,
            adopted: self.adopted.keys().cloned().collect(),
        };
        (self.announced.as_ref() != Some(&share)).then_some(share)
    }
}

#[cfg(test)]
mod tests;
