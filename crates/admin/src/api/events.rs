//! `GET /api/v1/events`: what changes, as server-sent events, for pages that are looked at.
//!
//! Each stream is a task on the interface's thread with a small channel to its client. There are few of them, a client
//! that doesn't read is dropped, and all end at once when the interface is stopped: a worker's drain never waits for
//! a client that watches it. A stream ends too when its user may no longer look: signed out, at any worker, or the token changed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Bytes, Data},
};
use balance_sync_fleet::tasks::{TaskName, Tasks};
use balance_sync_view::{reader::FleetView, rows::TenantRow};
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, MissedTickBehavior},
};

use super::{Answer, State, auth::Who, params::Params, problem::Problem};

/// Streams at a time; together with scrapers and probes they stay below the limit of connections.
pub(super) const MOST_STREAMS: usize = 32;
/// Time between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// A comment is sent when nothing else was for this long, so that no proxy in between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A client that hasn't read for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(20);
/// Tenants in detail in one stream at most.
const MOST_TENANTS: usize = 16;
/// Rows in one event: a page of changes stays small enough to be shown at once.
const ROWS: usize = 500;

/// Data of the event `tenants`.
#[derive(Debug, Serialize)]
struct Changed<'a> {
    tenants: Vec<&'a TenantRow>,
    removed: Vec<&'a str>,
}

/// Data of the event `action`.
#[derive(Debug, Serialize)]
struct News {
    /// Actions that came, or of which something became.
    ids: Vec<String>,
}

/// `GET /api/v1/events`.
pub(super) async fn events(state: State, who: Who, tasks: Data<Tasks>, request: HttpRequest) -> Answer {
    let params = Params::read(&request, &["tenant"])?;
    let named = params.get("tenant").unwrap_or_default();
    // One that isn't known has no events; the others of the same browser go on.
    let tenants: Vec<String> = named.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect();
    if tenants.len() > MOST_TENANTS {
        let allowed = format!("{MOST_TENANTS} ids at most, separated by commas");
        return Err(Problem::invalid("tenant", named, &allowed));
    }
    let Ok(permit) = Arc::clone(&state.streams).try_acquire_owned() else {
        return Err(Problem::unavailable(format!(
            "all {MOST_STREAMS} event streams of this worker are taken"
        )));
    };
    let view = state.reader.view().await;
    let (sender, mut receiver) = mpsc::channel(8);
    let stream = Stream { state, who, tenants, sender, last_sent: Instant::now(), _permit: permit };
    // Its client sees that it has ended, however it did.
    drop(tasks.once(TaskName::EventStream, stream.run(view)));
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        // Proxies that gather answers before they pass them on would make a stream useless.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(futures::stream::poll_fn(move |context| {
            receiver.poll_recv(context).map(|event| event.map(Ok::<Bytes, actix_web::Error>))
        })))
}

/// Why a stream ends.
enum Ended {
    /// The client is gone, or doesn't read.
    Client,
}

struct Stream {
    state: State,
    who: Who,
    tenants: Vec<String>,
    sender: mpsc::Sender<Bytes>,
    last_sent: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    async fn run(mut self, view: Arc<FleetView>) {
        let (stop, access, who) = (self.state.stop.clone(), self.state.access.clone(), self.who.clone());
        // Nothing is sent at the end: the client connects again by itself, if it may.
        tokio::select! {
            () = stop.cancelled() => {}
            () = access.ended(&who) => {}
            _ = Box::pin(self.send_all(view)) => {}
        }
    }

    async fn send_all(&mut self, mut before: Arc<FleetView>) -> Result<(), Ended> {
        self.send(Bytes::from_static(b"retry: 2000\n\n")).await?;
        let mut newest_seen: Option<String> = None;
        let mut timer = tokio::time::interval(EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let view = self.state.reader.view().await;
            let mut overview = view.overview();
            // A page draws the rest by itself.
            overview.history.drain(..overview.history.len().saturating_sub(1));
            self.event("overview", &overview).await?;
            self.changes(&before, &view).await?;
            self.news(&mut newest_seen).await?;
            for at in 0..self.tenants.len() {
                if let Some(detail) = self.state.reader.detail(&self.tenants[at]).await {
                    self.event("tenant", &detail).await?;
                }
            }
            before = view;
            if self.last_sent.elapsed() >= HEARTBEAT {
                self.send(Bytes::from_static(b": still here\n\n")).await?;
            }
        }
    }

    async fn changes(&mut self, before: &FleetView, now: &FleetView) -> Result<(), Ended> {
        let old: HashMap<&str, &TenantRow> =
            before.tenants.iter().map(|row| (row.id.as_str(), row)).collect();
        let changed: Vec<&TenantRow> =
            now.tenants.iter().filter(|row| old.get(row.id.as_str()) != Some(row)).collect();
        let removed: Vec<&str> =
            before.tenants.iter().map(|row| row.id.as_str()).filter(|id| now.find(id).is_none()).collect();
        for (n, rows) in changed.chunks(ROWS).enumerate() {
            let removed = if n == 0 { removed.clone() } else { Vec::new() };
            self.event("tenants", &Changed { tenants: rows.to_vec(), removed }).await?;
        }
        if changed.is_empty() && !removed.is_empty() {
            self.event("tenants", &Changed { tenants: Vec::new(), removed }).await?;
        }
        Ok(())
    }

    /// Tells of the log of actions what came since; with Redis away later.
    async fn news(&mut self, seen: &mut Option<String>) -> Result<(), Ended> {
        let operator = &self.state.operator;
        match seen {
            None => *seen = operator.newest().await.ok(),
            Some(after) => {
                if let Ok((ids, newest)) = operator.news(after).await
                    && !ids.is_empty()
                {
                    *seen = Some(newest);
                    self.event("action", &News { ids }).await?;
                }
            }
        }
        Ok(())
    }

    async fn event(&mut self, name: &str, data: &impl Serialize) -> Result<(), Ended> {
        // JSON has no line breaks, so one `data` line holds it.
        let data = serde_json::to_string(data).unwrap_or_default();
        self.send(Bytes::from(format!("event: {name}\ndata: {data}\n\n"))).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), Ended> {
        match tokio::time::timeout(PATIENCE, self.sender.send(bytes)).await {
            Ok(Ok(())) => {
                self.last_sent = Instant::now();
                Ok(())
            }
            Ok(Err(_)) | Err(_) => Err(Ended::Client),
        }
    }
}
