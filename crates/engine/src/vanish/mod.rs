//! Data that vanishes from Redis: what shows it, and what follows.
//!
//! - [`ServerWatch`]: Redis holds another data set than before, or throws keys away. For all tenants at once.
//! - [`ClockWatch`]: its clock has gone back.
//! - [`ScheduleWatch`]: members left a tenant's schedule and this worker has not removed them. Other workers remove members too,
//!   the ledger's own among them, so [`judge`] decides by what the rows have.
//! - [`Changes`]: what has happened to the server, until each tenant has its condition.
//! - [`Episode`]: one tenant's open condition, from the moment it is noticed until its balances are compared and nothing is
//!   left unexplained, or an operator acknowledges it.
//!
//! The driver reads servers and schedules, compares values, rows and operations, and keeps what is open in Redis.

mod changes;
mod clock;
mod episode;
mod replication;
mod schedule;
mod server;

use crate::reason::Reason;

/// The reasons of conditions.
pub const REASONS: [Reason; 4] =
    [Reason::RedisDataReplaced, Reason::RedisScheduleVanished, Reason::RedisEvicted, Reason::RedisUnmarked];

pub use changes::Changes;
pub use clock::ClockWatch;
pub use episode::{Episode, Found, Listed, Next, Phase};
pub use replication::History;
pub use schedule::{ScheduleWatch, Trace, Verdict, judge};
pub use server::{Change, How, ServerLook, ServerWatch};
