//! What a worker reports while it works: the log (`log.rs`), traces (`traces.rs`) and the push of metrics (`metrics.rs`; `otlp.rs` makes
//! its requests, `sender.rs` sends them). `receiver.rs` has what traces and metrics share.

mod limit;
mod log;
mod metrics;
mod otlp;
mod receiver;
mod sender;
mod traces;

use std::{io::IsTerminal, sync::Arc};

use anyhow::Context;
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, ParseError},
    fmt,
    prelude::*,
};

use crate::config::{Config, Log, LogFormat};

pub(crate) use log::Lines;
pub(crate) use metrics::MetricsPush;
pub(crate) use traces::Traces;

/// Log and traces of a worker.
pub(crate) struct Telemetry {
    /// What all lines of the log have in common.
    pub(crate) log: Arc<Lines>,
    /// The export of traces, if they are sent.
    pub(crate) traces: Option<Traces>,
}

/// Starts log and traces as configured.
///
/// # Errors
/// When the filter can't be read, or logging was started already. Where traces can't be sent in the way that is asked for, a
/// warning says so and the worker goes on without: balances matter more.
pub(crate) fn init(config: &Config) -> anyhow::Result<Telemetry> {
    let log = Arc::new(Lines::new(&config.worker.name, config.log.lines_per_minute));
    start_log(&config.log, &log)?;
    let traces = config.traces.as_ref().and_then(|traces| {
        Traces::start(traces, &config.worker.name)
            .inspect_err(|error| {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "traces can't be sent, the worker goes on without them"
                );
            })
            .ok()
    });
    Ok(Telemetry { log, traces })
}

/// The filter for a level. The HTTP server speaks at INFO of each of its steps at start and end: only its warnings are
/// shown, unless it is named. Notices of Postgres are never shown: a server may send any number of them, and what triggers raise can
/// hold amounts.
fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    let quieter = level.trim().parse::<LevelFilter>().is_ok_and(|level| level < LevelFilter::WARN);
    // Of two directives for one target the later counts.
    EnvFilter::try_new(if quieter {
        format!("{level},sqlx::postgres::notice=off")
    } else {
        format!("actix_server=warn,{level},sqlx::postgres::notice=off")
    })
}

fn start_log(log: &Log, common: &Arc<Lines>) -> anyhow::Result<()> {
    let filter = filter(&log.level).with_context(|| format!("log.level = {:?}", log.level))?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(std::io::stderr);
    let lines = Arc::clone(common);
    match log.format {
        LogFormat::Json => {
            let format =
                fmt::format().json().flatten_event(true).with_current_span(true).with_span_list(false);
            let fields = fmt::format::JsonFields::new();
            registry.with(layer.event_format(log::Json { format, lines }).fmt_fields(fields)).try_init()
        }
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            let format = fmt::format().with_ansi(colours);
            let format = log::Text { format, lines, colours };
            registry.with(layer.with_ansi(colours).event_format(format)).try_init()
        }
    }
    .context("starting the log")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_http_server_is_logged_when_it_warns_or_is_named() {
        let shown = |level: &str| filter(level).unwrap().to_string();
        assert!(shown("info").contains("actix_server=warn"));
        assert!(shown("debug,balance_sync_fleet=trace").contains("actix_server=warn"));
        assert!(shown("info,actix_server=debug").contains("actix_server=debug"));
        assert!(!shown("info,actix_server=debug").contains("actix_server=warn"));
        for level in ["error", "off"] {
            let more = shown(level).replace("sqlx::postgres::notice=off", "");
            assert_eq!(more.trim_matches(','), level, "never more than what was asked for");
        }
    }

    #[test]
    fn notices_of_postgres_are_not_shown_whatever_the_level() {
        for level in
            ["trace", "error", "sqlx=trace", "sqlx::postgres::notice=trace", "info,sqlx::postgres=debug"]
        {
            let shown = filter(level).unwrap().to_string();
            assert!(shown.contains("sqlx::postgres::notice=off"), "{shown}");
            assert!(!shown.contains("sqlx::postgres::notice=trace"), "{shown}");
        }
    }
}
