//! Spans for those who work, over OpenTelemetry's API; who exports them is the binary's business.
//!
//! Until [`enable`] was called nothing is built: a span is then one load of an atomic, and so is everything done with it.
//! The same holds below a span that the sampler left out, so that a worker pays only for the traces it sends.
//!
//! Spans of `tracing` would not do: what is worth a span is often known only when it is over (a claim that brought
//! something), and the span that carries a tenant's id to each line of the log lasts as long as its collector.

#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::{
    future::Future,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use futures::future::Either;
pub use opentelemetry::trace::{SpanId, SpanKind, TraceId};
use opentelemetry::{
    Context, KeyValue, Value,
    global::{self, BoxedTracer},
    propagation::{Injector, TextMapPropagator},
    trace::{FutureExt, SpanBuilder, Status, TraceContextExt, Tracer, WithContext},
};

/// The name under which spans are made.
const SCOPE: &str = "balance-sync";

static TRACER: OnceLock<(BoxedTracer, Box<dyn TextMapPropagator + Send + Sync>)> = OnceLock::new();

/// From now on spans are made, by the tracer provider that is installed in the process; `propagator` writes the headers by
/// which others join in. Once per process.
pub fn enable(propagator: impl TextMapPropagator + Send + Sync + 'static) {
    // A second call has nothing to say that the first hadn't.
    let _ = TRACER.set((global::tracer(SCOPE), Box::new(propagator)));
}

/// A span, or none: because traces are off, or because this one was not sampled. Ends when it is dropped, unless it is
/// the [`current`] one as that of another task.
#[derive(Debug, Default)]
pub struct Span {
    context: Option<Context>,
    /// Whether to end it is up to us.
    own: bool,
}

impl Span {
    /// No span.
    pub const NONE: Self = Self { context: None, own: false };

    /// The first span of a new trace.
    #[must_use]
    pub fn root(name: &'static str) -> Self {
        Self::build(&Context::new(), SpanBuilder::from_name(name))
    }

    /// The first span of a new trace that began so long ago.
    #[must_use]
    pub fn root_since(name: &'static str, ago: Duration) -> Self {
        match TRACER.get() {
            Some(_) => {
                Self::build(&Context::new(), SpanBuilder::from_name(name).with_start_time(before(ago)))
            }
            None => Self::NONE,
        }
    }

    /// A part of this span.
    #[must_use]
    pub fn child(&self, name: &'static str) -> Self {
        match &self.context {
            Some(context) => Self::build(context, SpanBuilder::from_name(name)),
            None => Self::NONE,
        }
    }

    /// A part of this span that began so long ago.
    #[must_use]
    pub fn child_since(&self, name: &'static str, ago: Duration) -> Self {
        match &self.context {
            Some(context) => Self::build(context, SpanBuilder::from_name(name).with_start_time(before(ago))),
            None => Self::NONE,
        }
    }

    /// A part of this span that calls another system, of this kind: `redis`, `postgresql`.
    #[must_use]
    pub fn store_call(&self, name: &'static str, system: &'static str) -> Self {
        match &self.context {
            Some(context) => Self::build(context, store_call(name, system)),
            None => Self::NONE,
        }
    }

    /// The same for one that began so long ago.
    #[must_use]
    pub fn store_call_since(&self, name: &'static str, system: &'static str, ago: Duration) -> Self {
        match &self.context {
            Some(context) => Self::build(context, store_call(name, system).with_start_time(before(ago))),
            None => Self::NONE,
        }
    }

    /// A part of this span that is a request to another service.
    #[must_use]
    pub fn request(&self, name: String) -> Self {
        match &self.context {
            Some(context) => Self::build(context, SpanBuilder::from_name(name).with_kind(SpanKind::Client)),
            None => Self::NONE,
        }
    }

    fn build(parent: &Context, builder: SpanBuilder) -> Self {
        let Some((tracer, _)) = TRACER.get() else { return Self::NONE };
        let context = parent.with_span(tracer.build_with_context(builder, parent));
        if context.span().is_recording() { Self { context: Some(context), own: true } } else { Self::NONE }
    }

    /// Whether there is one: what costs something to find out needs to be found out only then.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.context.is_some()
    }

    /// Says something about it.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.context {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// The same for a count.
    pub fn count(&self, key: &'static str, count: usize) {
        self.set(key, i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// It failed: `kind` is a short, stable name, `detail` is for people and holds no secret.
    pub fn fail(&self, kind: &'static str, detail: impl FnOnce() -> String) {
        if let Some(context) = &self.context {
            context.span().set_attribute(KeyValue::new("error.type", kind));
            context.span().set_status(Status::error(detail()));
        }
    }

    /// The future as a part of this span: spans of what it does, and lines it logs, belong to it.
    pub fn around<F: Future>(&self, future: F) -> Either<WithContext<F>, F> {
        match &self.context {
            Some(context) => Either::Left(future.with_context(context.clone())),
            None => Either::Right(future),
        }
    }

    /// The same for what doesn't wait.
    pub fn cover<T>(&self, work: impl FnOnce() -> T) -> T {
        let _attached = self.context.clone().map(Context::attach);
        work()
    }

    /// The same span for another task, which may make parts of it and doesn't end it.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { context: self.context.clone(), own: false }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = self.context.take()
            && self.own
        {
            context.span().end();
        }
    }
}

/// The span that the current code belongs to.
#[must_use]
pub fn current() -> Span {
    if TRACER.get().is_none() {
        return Span::NONE;
    }
    let recording = Context::map_current(|context| context.span().is_recording());
    Span { context: recording.then(Context::current), own: false }
}

/// Trace and span that the current code belongs to, as a line of the log names them.
#[must_use]
pub fn ids() -> Option<(TraceId, SpanId)> {
    TRACER.get()?;
    Context::map_current(|context| {
        let span = context.span();
        span.is_recording().then(|| (span.span_context().trace_id(), span.span_context().span_id()))
    })
}

/// Hands the headers to `set` by which another service joins the trace of this span.
pub fn propagate(span: &Span, set: &mut dyn FnMut(&str, String)) {
    struct Headers<'a>(&'a mut dyn FnMut(&str, String));
    impl Injector for Headers<'_> {
        fn set(&mut self, key: &str, value: String) {
            (self.0)(key, value);
        }
    }
    if let (Some(context), Some((_, propagator))) = (&span.context, TRACER.get()) {
        propagator.inject_context(context, &mut Headers(set));
    }
}

fn store_call(name: &'static str, system: &'static str) -> SpanBuilder {
    SpanBuilder::from_name(name)
        .with_kind(SpanKind::Client)
        .with_attributes([KeyValue::new("db.system.name", system)])
}

fn before(ago: Duration) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(ago).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::SpanId;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};

    use super::*;

    fn named<'s>(spans: &'s [SpanData], name: &str) -> &'s SpanData {
        spans.iter().find(|span| span.name == name).unwrap()
    }

    // One test, as traces are switched on for the whole process.
    #[tokio::test]
    async fn nothing_is_made_until_traces_are_on_and_then_every_part_has_its_place() {
        assert!(!Span::root("early").is_some() && !Span::root_since("early", Duration::ZERO).is_some());
        assert!(ids().is_none() && !current().is_some());

        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        global::set_tracer_provider(provider);
        enable(TraceContextPropagator::new());
        assert!(!current().is_some());
        let batch = Span::root_since("batch", Duration::from_secs(2));
        drop(batch.store_call_since("claim", "redis", Duration::from_secs(1)));
        let flush = batch.child("flush");
        let shared = flush
            .around(async {
                tokio::task::yield_now().await;
                let shared = current();
                let call = shared.request("GET /x".to_owned());
                let mut header = String::new();
                propagate(&call, &mut |name, value| {
                    if name == "traceparent" {
                        header = value;
                    }
                });
                let (trace, span) = call.cover(ids).unwrap();
                assert_eq!(header, format!("00-{trace}-{span}-01"));
                call.fail("timeout", || "no answer".to_owned());
                shared
            })
            .await;
        assert!(ids().is_none(), "what comes after it is no part of it");
        drop(shared);
        assert!(
            exporter.get_finished_spans().unwrap().iter().all(|span| span.name != "flush"),
            "not its own"
        );
        drop(flush);
        drop(batch);

        let spans = exporter.get_finished_spans().unwrap();
        let names: Vec<_> = spans.iter().map(|span| span.name.as_ref()).collect();
        assert_eq!(names, ["claim", "GET /x", "flush", "batch"]);
        let (batch, flush) = (named(&spans, "batch"), named(&spans, "flush"));
        assert_eq!(batch.parent_span_id, SpanId::INVALID);
        for part in ["claim", "flush"] {
            assert_eq!(named(&spans, part).parent_span_id, batch.span_context.span_id());
        }
        let (claim, call) = (named(&spans, "claim"), named(&spans, "GET /x"));
        assert_eq!(call.parent_span_id, flush.span_context.span_id());
        assert!(spans.iter().all(|span| span.span_context.trace_id() == batch.span_context.trace_id()));
        assert!(claim.start_time > batch.start_time && claim.start_time < flush.start_time);
        assert_eq!((&claim.span_kind, &call.span_kind), (&SpanKind::Client, &SpanKind::Client));
        assert_eq!(call.status, Status::error("no answer"));
    }
}
