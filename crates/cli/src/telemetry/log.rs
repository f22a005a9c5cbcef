//! Lines of the log: each names its worker, and says to which trace it belongs (`trace_id` and `span_id`) as long as one is
//! under way that is sent. How many there are is bounded ([`Limit`]). What could act on a terminal, or break a line in two, is
//! escaped: names, reasons and errors come from outside.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Instant,
};

use balance_sync_fleet::lifecycle::name::WorkerName;
use balance_sync_trace as trace;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::{
    FmtContext, FormatEvent, FormatFields, FormattedFields,
    format::{Format, Full, Json as JsonFormat, Writer},
};
use tracing_subscriber::registry::LookupSpan;

use super::limit::Limit;
use crate::terminal::guarded_line;

/// What all lines have in common.
pub(crate) struct Lines {
    configured: String,
    name: OnceLock<WorkerName>,
    /// Which of them are logged.
    pub(crate) limit: Limit,
}

impl Lines {
    /// Lines of a worker that is configured with this name, so many per minute at most.
    pub(super) fn new(worker: &str, per_minute: u64) -> Self {
        let limit = Limit::new(per_minute, Instant::now());
        Self { configured: worker.to_owned(), name: OnceLock::new(), limit }
    }

    /// From now on they have the name that is in force.
    pub(crate) fn identify(&self, name: WorkerName) {
        // Once per process.
        let _ = self.name.set(name);
    }

    fn worker(&self) -> Arc<str> {
        self.name.get().map_or_else(|| Arc::from(self.configured.as_str()), WorkerName::current)
    }

    fn admits<S, N>(&self, ctx: &FmtContext<'_, S, N>, event: &Event<'_>) -> bool
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static,
    {
        self.limit.admits(event, Instant::now(), || {
            let span = ctx.event_scope()?.find(|span| span.name() == "tenant")?;
            span.extensions().get::<FormattedFields<N>>().map(|fields| fields.fields.clone())
        })
    }
}

/// A JSON object per line, worker and ids among its fields.
pub(super) struct Json {
    pub(super) format: Format<JsonFormat>,
    pub(super) lines: Arc<Lines>,
}

/// Text, worker and ids at the end.
pub(super) struct Text {
    pub(super) format: Format<Full>,
    pub(super) lines: Arc<Lines>,
    /// Whether the format has colours.
    pub(super) colours: bool,
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.lines.admits(ctx, event) {
            return Ok(());
        }
        let mut line = String::new();
        self.format.format_event(ctx, Writer::new(&mut line), event)?;
        let line = guarded_line(&line, false);
        let Some(rest) = line.strip_prefix('{') else { return writer.write_str(&line) };
        let worker = serde_json::to_string(&*self.lines.worker()).map_err(|_| fmt::Error)?;
        write!(writer, "{{\"worker\":{worker},")?;
        if let Some((trace, span)) = trace::ids() {
            write!(writer, "\"trace_id\":\"{trace}\",\"span_id\":\"{span}\",")?;
        }
        writer.write_str(rest)
    }
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.lines.admits(ctx, event) {
            return Ok(());
        }
        let mut line = String::new();
        self.format.format_event(ctx, Writer::new(&mut line), event)?;
        let line = guarded_line(&line, self.colours);
        write!(writer, "{} worker={:?}", line.trim_end_matches('\n'), self.lines.worker())?;
        if let Some((trace, span)) = trace::ids() {
            write!(writer, " trace_id={trace} span_id={span}")?;
        }
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{self, Write};
    use std::sync::Mutex;

    use balance_sync_trace::Span;
    use opentelemetry::global;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::fmt as tracing_fmt;
    use tracing_subscriber::fmt::format::JsonFields;
    use tracing_subscriber::prelude::*;

    use super::*;

    #[test]
    fn a_panic_is_one_line_with_worker_and_backtrace() {
        let lines = Written::default();
        let writer = lines.clone();
        let layer = tracing_fmt::layer().with_writer(move || writer.clone());
        let layer = layer.event_format(json("worker-7")).fmt_fields(JsonFields::new());
        let before = std::panic::take_hook();
        balance_sync_fleet::tasks::panics::log_all();
        let panicking = || std::panic::catch_unwind(|| panic!("in\nhere"));
        let ended = tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), panicking);
        std::panic::set_hook(before);
        assert!(ended.is_err());
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["level"], &line["worker"]), (&"ERROR".into(), &"worker-7".into()));
        assert_eq!(line["panic"], r"in\nhere");
        assert!(line["place"].as_str().unwrap().contains("log.rs:"), "{line}");
        let backtrace = line["backtrace"].as_str().unwrap();
        assert!(backtrace.contains("a_panic_is_one_line_with_worker_and_backtrace"), "{backtrace}");
        assert!(
            !backtrace.contains("Backtrace::force_capture"),
            "the panic's own frames are left out: {backtrace}"
        );
    }

    fn json(worker: &str) -> Json {
        let format = tracing_fmt::format().json().flatten_event(true);
        Json { format, lines: Arc::new(Lines::new(worker, 1_000)) }
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    #[test]
    fn a_line_names_its_worker_and_its_trace_and_is_otherwise_as_it_was() {
        let (as_it_was, as_json, as_text) = (Written::default(), Written::default(), Written::default());
        let (plain_writer, json_writer, text_writer) = (as_it_was.clone(), as_json.clone(), as_text.clone());
        let lines = Arc::new(Lines::new("w \"1\"", 1_000));
        let plain_layer = tracing_fmt::layer()
            .event_format(tracing_fmt::format().json().flatten_event(true))
            .fmt_fields(JsonFields::new())
            .with_writer(move || plain_writer.clone());
        let json_layer = tracing_fmt::layer()
            .event_format(Json { lines: Arc::clone(&lines), ..json("") })
            .fmt_fields(JsonFields::new())
            .with_writer(move || json_writer.clone());
        let text_layer = tracing_fmt::layer()
            .with_ansi(false)
            .event_format(Text {
                format: tracing_fmt::format().with_ansi(false),
                lines: Arc::clone(&lines),
                colours: false,
            })
            .with_writer(move || text_writer.clone());
        let registry = tracing_subscriber::registry().with(plain_layer).with(json_layer).with(text_layer);
        let _logging = tracing::subscriber::set_default(registry);
        let line = || {
            tracing::info_span!("tenant", tenant_id = "acme").in_scope(|| tracing::info!(n = 1, "flushed"));
            let fields = |line: &str| {
                let mut fields: serde_json::Value = serde_json::from_str(line).unwrap();
                fields.as_object_mut().unwrap().remove("timestamp");
                fields
            };
            let text = as_text.take();
            let text = text.strip_suffix('\n').unwrap();
            (fields(&as_it_was.take()), fields(&as_json.take()), text.split_once(' ').unwrap().1.to_owned())
        };

        let (mut expected, json, text) = line();
        expected["worker"] = "w \"1\"".into();
        assert_eq!(json, expected);
        assert!(text.ends_with("flushed n=1 worker=\"w \\\"1\\\"\""), "{text}");

        lines.identify("w-2".into());
        global::set_tracer_provider(SdkTracerProvider::builder().build());
        trace::enable(TraceContextPropagator::new());
        let span = Span::root("flush");
        let (trace, id) = span.cover(trace::ids).unwrap();
        let (_, json, text) = span.cover(line);
        expected["worker"] = "w-2".into();
        expected["trace_id"] = trace.to_string().into();
        expected["span_id"] = id.to_string().into();
        assert_eq!(json, expected);
        assert!(text.ends_with(&format!("n=1 worker=\"w-2\" trace_id={trace} span_id={id}")), "{text}");
    }

    #[test]
    fn what_happens_to_thousands_is_logged_for_some_and_summed_up() {
        let written = Written::default();
        let writer = written.clone();
        let lines = Arc::new(Lines::new("w", 40));
        let layer = tracing_fmt::layer()
            .event_format(Json { lines: Arc::clone(&lines), ..json("") })
            .fmt_fields(JsonFields::new())
            .with_writer(move || writer.clone());
        let _logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let degrade = |reason: &str, tenants: u64| {
            for n in 0..tenants {
                tracing::info_span!("tenant", tenant_id = n)
                    .in_scope(|| tracing::warn!(reason, error = "no", "tenant degraded"));
            }
        };
        let take = || -> Vec<serde_json::Value> {
            written.take().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };

        degrade("postgres_timeout", 2_000);
        degrade("postgres_timeout", 2_000);
        assert_eq!(take().len(), 20, "of a kind");
        degrade("postgres_unreachable", 100);
        assert_eq!(take().len(), 10, "of the total of 40 a quarter is for errors");
        for tenant_id in 0..100 {
            tracing::error!(tenant_id, "rejected");
            tracing::debug!("lines of this level are not bounded");
        }
        let lines_of = |lines: &[serde_json::Value], level: &str| {
            lines.iter().filter(|line| line["level"] == level).count()
        };
        let more = take();
        assert_eq!((lines_of(&more, "ERROR"), lines_of(&more, "DEBUG")), (10, 100));

        lines.limit.summarise();
        let summary: Vec<_> = take()
            .iter()
            .map(|line| {
                let number = |name: &str| line[name].as_u64().unwrap();
                let text = |name: &str| line[name].as_str().map(str::to_owned);
                (
                    text("level").unwrap(),
                    text("of").unwrap(),
                    text("reason"),
                    number("lines"),
                    number("tenants"),
                )
            })
            .collect();
        let expected = [
            ("ERROR", "rejected", None, 90, 90),
            ("WARN", "tenant degraded", Some("postgres_timeout"), 3_980, 2_000),
            ("WARN", "tenant degraded", Some("postgres_unreachable"), 90, 90),
        ];
        let owned = |(level, of, reason, lines, tenants): (&str, &str, Option<&str>, u64, u64)| {
            (level.to_owned(), of.to_owned(), reason.map(str::to_owned), lines, tenants)
        };
        assert_eq!(summary, expected.map(owned));
        lines.limit.summarise();
        assert!(take().is_empty(), "each line left out is counted once");
    }

    #[test]
    fn text_from_outside_stays_one_line_and_acts_on_no_terminal() {
        for colours in [false, true] {
            let (as_read, text) = (Written::default(), Written::default());
            let (json_writer, text_writer) = (as_read.clone(), text.clone());
            let as_json = tracing_fmt::layer()
                .event_format(json("w"))
                .fmt_fields(JsonFields::new())
                .with_writer(move || json_writer.clone());
            let format = tracing_fmt::format().with_ansi(colours);
            let as_text = tracing_fmt::layer()
                .with_ansi(colours)
                .event_format(Text { format, lines: Arc::new(Lines::new("w", 1_000)), colours })
                .with_writer(move || text_writer.clone());
            let registry = tracing_subscriber::registry().with(as_json).with(as_text);
            let hostile = "a\nFORGED\r\x1b[2J\x1b]0;t\x07\u{9b}31m\u{202e}\u{2028}b";
            tracing::subscriber::with_default(registry, || {
                tracing::info_span!("tenant", tenant_id = %hostile).in_scope(|| {
                    tracing::warn!(member = %hostile, error = hostile, other = ?hostile, "{hostile}");
                });
            });
            let (json, text) = (as_read.take(), text.take());
            let line: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(line["error"], hostile, "a reader of JSON has it as it was");
            for lines in [json, text] {
                assert_eq!(lines.lines().count(), 1, "{lines:?}");
                let shown = anstream::adapter::strip_str(&lines).to_string();
                let active = |c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2028}');
                assert_eq!(shown.trim_end_matches('\n').find(active), None, "{shown:?}");
                assert!(!lines.contains("\x1b[2J"), "{lines:?}");
            }
        }
    }
}
