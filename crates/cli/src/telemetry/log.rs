//! Lines of the log that say to which trace they belong: `trace_id` and `span_id`, as long as one is under way that is
//! sent. Any other line is written as it always was.

use std::fmt;

use balance_sync_trace as trace;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::{
    FmtContext, FormatEvent, FormatFields,
    format::{Format, Full, Json as JsonFormat, Writer},
};
use tracing_subscriber::registry::LookupSpan;

/// A JSON object per line, the ids among its fields.
pub(super) struct Json(pub Format<JsonFormat>);

/// Text, the ids at the end.
pub(super) struct Text(pub Format<Full>);

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
        let Some((trace, span)) = trace::ids() else { return self.0.format_event(ctx, writer, event) };
        let mut line = String::new();
        self.0.format_event(ctx, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(rest) => write!(writer, "{{\"trace_id\":\"{trace}\",\"span_id\":\"{span}\",{rest}"),
            None => writer.write_str(&line),
        }
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
        let Some((trace, span)) = trace::ids() else { return self.0.format_event(ctx, writer, event) };
        let mut line = String::new();
        self.0.format_event(ctx, Writer::new(&mut line), event)?;
        writeln!(writer, "{} trace_id={trace} span_id={span}", line.trim_end_matches('\n'))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

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
        let lines = Lines::default();
        let writer = lines.clone();
        let format = tracing_fmt::format().json().flatten_event(true);
        let layer = tracing_fmt::layer().with_writer(move || writer.clone());
        let layer = layer.event_format(Json(format)).fmt_fields(JsonFields::new());
        let before = std::panic::take_hook();
        balance_sync_fleet::tasks::panics::log_all("worker-7");
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

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    #[test]
    fn a_line_names_its_trace_and_is_otherwise_as_it_was() {
        let (json, text) = (Lines::default(), Lines::default());
        let (json_writer, text_writer) = (json.clone(), text.clone());
        let format = tracing_fmt::format().json().flatten_event(true);
        let as_json = tracing_fmt::layer()
            .event_format(Json(format))
            .fmt_fields(JsonFields::new())
            .with_writer(move || json_writer.clone());
        let as_text = tracing_fmt::layer()
            .with_ansi(false)
            .event_format(Text(tracing_fmt::format().with_ansi(false)))
            .with_writer(move || text_writer.clone());
        let _logging =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(as_json).with(as_text));
        let line = || {
            tracing::info_span!("tenant", tenant_id = "acme").in_scope(|| tracing::info!(n = 1, "flushed"));
            (json.take(), text.take())
        };

        global::set_tracer_provider(SdkTracerProvider::builder().build());
        trace::enable(TraceContextPropagator::new());
        let (json_before, text_before) = line();
        assert!(!json_before.contains("trace_id") && !text_before.contains("trace_id"));

        let span = Span::root("flush");
        let (trace, id) = span.cover(trace::ids).unwrap();
        let (json_within, text_within) = span.cover(line);
        let without = |line: &str| {
            let mut fields: serde_json::Value = serde_json::from_str(line).unwrap();
            fields.as_object_mut().unwrap().remove("timestamp");
            fields
        };
        let mut expected = without(&json_before);
        expected["trace_id"] = trace.to_string().into();
        expected["span_id"] = id.to_string().into();
        assert_eq!(without(&json_within), expected);
        let rest = |line: &str| line.trim_end().split_once(' ').unwrap().1.to_owned();
        assert_eq!(rest(&text_within), format!("{} trace_id={trace} span_id={id}", rest(&text_before)));
        assert!(text_within.ends_with('\n') && json_within.ends_with("}\n"));
    }
}
