//! A month of the fleet: what one worker records of it in Redis (`recorder`, `book`), how that stands there ([`mod@record`]), and what is
//! reported out of it ([`summary`]).
//!
//! Unknown is not zero: time in which nothing was recorded is reported as such. Why it is kept in Redis, and how large it gets, is in
//! `docs/decisions/0029-record-for-the-monthly-report.md`.

mod book;
pub mod month;
pub mod record;
pub(crate) mod recorder;
pub mod summary;
#[cfg(test)]
mod tests;

pub use month::Month;
pub use summary::Report;
