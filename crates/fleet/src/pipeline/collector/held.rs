//! What a collector has claimed and not yet settled: the members, and since when the oldest of them has been due.
//!
//! While a member is claimed its score is the end of the lease, so Redis no longer has the time of its mutation. Without this
//! a write that hangs would look like no wait at all.

use std::{rc::Rc, time::Duration};

use balance_sync_engine::collector::FlightId;
use balance_sync_schedule::{Claim, Claimed};
use tokio::time::Instant;

use crate::status::TenantStatus;

struct Flight {
    id: FlightId,
    members: Rc<Vec<Claimed>>,
    since: Option<Instant>,
}

/// The claimed members. Nothing is held or waited for any more when this is dropped, also by a panic.
pub(super) struct Held<'a> {
    status: &'a TenantStatus,
    claim_ttl: Duration,
    /// Of what is in the buffer.
    buffered_since: Option<Instant>,
    flights: Vec<Flight>,
}

impl<'a> Held<'a> {
    pub(super) fn new(status: &'a TenantStatus, claim_ttl: Duration) -> Self {
        Self { status, claim_ttl, buffered_since: None, flights: Vec::new() }
    }

    /// The buffer takes in what a claim brought.
    pub(super) fn claimed(&mut self, claim: &Claim) {
        let since = self.status.exposure.claimed(claim, self.claim_ttl);
        self.buffered_since = self.buffered_since.into_iter().chain(since).min();
        self.show();
    }

    /// The buffer becomes a flight.
    pub(super) fn took_off(&mut self, id: FlightId, members: Rc<Vec<Claimed>>) {
        let since = self.buffered_since.take();
        self.flights.push(Flight { id, members, since });
        self.show();
    }

    pub(super) fn landed(&mut self, id: FlightId) {
        for landed in self.flights.extract_if(.., |flight| flight.id == id) {
            self.status.exposure.landed(&landed.members);
        }
        self.show();
    }

    /// Gives up all flights.
    pub(super) fn abandon(&mut self) -> Vec<Rc<Vec<Claimed>>> {
        let flights = std::mem::take(&mut self.flights);
        self.show();
        flights.into_iter().map(|flight| flight.members).collect()
    }

    fn show(&self) {
        let flights = self.flights.iter().filter_map(|flight| flight.since);
        self.status.exposure.show_held_since(flights.chain(self.buffered_since).min());
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.status.exposure.ended();
        self.status.show_permit_since(None);
    }
}
