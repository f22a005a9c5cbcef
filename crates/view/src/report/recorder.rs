//! Who records: one worker at a time, which has the duty by a lease in Redis.
//!
//! It looks at the whole fleet as any reader does, so that no two workers count the same. A worker that takes the duty over goes on with
//! what is recorded; what happened between its predecessor's last look and its own first is missing, and shown as such.

use std::{sync::Arc, time::Duration};

use balance_sync_fleet::{clock::wall_clock, tasks::Progress};
use balance_sync_schedule::{
    Controls, Reports, ScheduleError, Timelines,
    reports::{Duty, WRITE_PAGE},
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    book::{Book, Changes},
    month::Month,
    record::MonthRecord,
};
use crate::{
    reader::FleetReader,
    rollout::stage::{self, StageBook},
    timeline::history::Keeper,
};

/// Time between two looks at the fleet: that of the rates' window, so that their lags are counted once.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The same while all tenants are at rest: within what the report takes for one span of time.
const LOOK_AT_REST_EVERY: Duration = Duration::from_secs(20);
/// How long the duty is held without being renewed.
const LEASE: Duration = Duration::from_secs(25);
/// Ticks come late by less than this.
const MARGIN: Duration = Duration::from_secs(2);
/// Longest time to write the rest and give the duty up.
const FINISH_WITHIN: Duration = Duration::from_secs(2);
/// Pages of the log of actions that are read at one look.
const ACTION_PAGES: usize = 20;
/// Time without Redis from which on it is an incident, in seconds.
const AWAY: f64 = 15.0;

/// Makes a reader; only the worker with the duty has one.
pub(crate) type MakeReader = Arc<dyn Fn() -> FleetReader + Send + Sync>;

/// Records what the report is made of, as long as this worker has the duty.
pub(crate) struct Recorder {
    reports: Reports,
    controls: Controls,
    timelines: Timelines,
    history: Keeper,
    make_reader: MakeReader,
    incarnation: String,
    duty: Option<(FleetReader, Book, StageBook)>,
    /// When the fleet was looked at last, if all tenants were at rest then.
    looked_at_rest: Option<Instant>,
    /// Since when Redis hasn't answered, by the wall clock, and how it is named.
    away: Option<(f64, &'static str)>,
    /// An error that needs an operator is in the log already.
    refused: bool,
}

impl Recorder {
    pub(crate) fn new(
        reports: Reports,
        controls: Controls,
        timelines: Timelines,
        make_reader: MakeReader,
    ) -> Self {
        let incarnation = uuid::Uuid::new_v4().simple().to_string();
        Self {
            reports,
            controls,
            timelines,
            history: Keeper::default(),
            make_reader,
            incarnation,
            duty: None,
            looked_at_rest: None,
            away: None,
            refused: false,
        }
    }

    /// Runs until it is stopped; then writes what is left and gives the duty up.
    pub(crate) async fn run(mut self, stop: CancellationToken, progress: Progress) {
        // Large, and rarely moved.
        stop.run_until_cancelled(Box::pin(self.keep_recording(&progress))).await;
        let finish = async {
            if let Some((_, mut book, _)) = self.duty.take() {
                self.write(book.rest()).await?;
            }
            self.reports.leave(&self.incarnation).await
        };
        if !matches!(tokio::time::timeout(FINISH_WITHIN, finish).await, Ok(Ok(()))) {
            tracing::debug!("the duty of recording was not given up, its lease runs out");
        }
    }

    async fn keep_recording(&mut self, progress: &Progress) {
        let mut timer = tokio::time::interval(LOOK_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            if let Err(error) = self.record().await {
                self.duty = None;
                if error.is_transient() {
                    tracing::debug!(%error, "the fleet could not be recorded for the report");
                    self.away.get_or_insert((wall_clock(), error.class.reason().as_str()));
                } else if !std::mem::replace(&mut self.refused, true) {
                    tracing::warn!(%error, "the fleet can't be recorded for the report");
                } else {
                    tracing::debug!(%error, "the fleet still can't be recorded for the report");
                }
            } else {
                self.refused = false;
            }
            progress.beat();
        }
    }

    async fn record(&mut self) -> Result<(), ScheduleError> {
        // Takes the duty or renews it, and writes nothing.
        let (duty, now) = self.call(Month::of(0.0), &[]).await?;
        match duty {
            Duty::Other => {
                (self.duty, self.away) = (None, None);
                return Ok(());
            }
            // Also when Redis has lost it: what it has now is what counts.
            Duty::Taken => self.duty = None,
            Duty::Held => {}
        }
        let (reader, mut book, mut stages) = match self.duty.take() {
            Some(duty) => duty,
            None => {
                let stages = StageBook::open(self.reports.read(stage::RECORD).await?);
                ((self.make_reader)(), self.open(now).await?, stages)
            }
        };
        if let Some((since, cause)) = self.away.take() {
            // The wall clock measures the time away, Redis's says when.
            let seconds = wall_clock() - since;
            if seconds > AWAY {
                book.add_incident(cause, now - seconds, now);
            }
        }
        if let Some(month) = book.other_month(now) {
            let (record, before) = (self.read(month).await?, self.read(month.before()).await?);
            if let Some(rest) = book.switch(now, record, &before)
                && !self.write(rest).await?
            {
                return Ok(());
            }
        }
        for _ in 0..ACTION_PAGES {
            let entries = self.controls.after(&book.actions_after()).await?;
            book.take_actions(&entries);
            if entries.is_empty() {
                break;
            }
        }
        let rests = reader.rests();
        if rests && self.looked_at_rest.is_some_and(|at| at.elapsed() < LOOK_AT_REST_EVERY - MARGIN) {
            self.duty = Some((reader, book, stages));
            return Ok(());
        }
        self.looked_at_rest = rests.then(Instant::now);
        let view = reader.view_once().await;
        if view.redis_error.is_none() {
            reader.record_facts(&view, now).await?;
        }
        if view.redis_error.is_some() || !view.listed {
            // What can't be seen isn't recorded: the time counts as unknown.
            self.duty = Some((reader, book, stages));
            return Ok(());
        }
        if let Some((minute, text)) = self.history.look(now, &view) {
            self.timelines.record_minute(minute, &self.incarnation, &text).await?;
        }
        for changes in book.look(now, &view) {
            if !self.write(changes).await? {
                return Ok(());
            }
        }
        if let Some(stage) = stages.look(now, &view) {
            let (fields, expires_at) = ([stage.write()], Month::of(now).expires_at());
            let record = self.reports.record(&self.incarnation, LEASE, stage::RECORD, expires_at, &fields);
            if record.await?.0 != Duty::Held {
                return Ok(());
            }
        }
        self.duty = Some((reader, book, stages));
        Ok(())
    }

    async fn open(&self, now: f64) -> Result<Book, ScheduleError> {
        let month = Month::of(now);
        Ok(Book::open(now, self.read(month).await?, &self.read(month.before()).await?))
    }

    async fn read(&self, month: Month) -> Result<MonthRecord, ScheduleError> {
        Ok(MonthRecord::read(month, &self.reports.read(&month.to_string()).await?))
    }

    /// Writes; returns whether this worker still has the duty.
    async fn write(&self, (month, fields): Changes) -> Result<bool, ScheduleError> {
        for page in fields.chunks(WRITE_PAGE) {
            let (duty, _) = self.call(month, page).await?;
            if duty != Duty::Held {
                tracing::debug!("another worker records for the report now");
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn call(&self, month: Month, fields: &[(String, String)]) -> Result<(Duty, f64), ScheduleError> {
        let expires_at = month.expires_at();
        self.reports.record(&self.incarnation, LEASE, &month.to_string(), expires_at, fields).await
    }
}
