//! From numbers to Prometheus' text format, or to whoever pushes them, one family at a time, so that only one family's samples are
//! in memory.

use prometheus::{
    TextEncoder,
    core::Collector,
    process_collector::ProcessCollector,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::rows::Distribution;

/// Labels of a sample.
pub(super) type Labels<'a> = &'a [(&'static str, &'a str)];

/// Where the families go.
pub(super) enum Page<'a> {
    /// The text so far.
    Text(String),
    /// Takes one after the other.
    Taken(&'a mut dyn FnMut(&MetricFamily)),
}

impl Page<'_> {
    /// An empty page of text with room for so many bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self::Text(String::with_capacity(bytes))
    }

    /// Appends a family. One without samples is left out, as the format has no place for it.
    pub(super) fn write(&mut self, family: Family) -> Result<(), prometheus::Error> {
        if family.samples.is_empty() {
            return Ok(());
        }
        let mut proto = MetricFamily::default();
        proto.set_name(family.name.to_owned());
        proto.set_help(family.help.to_owned());
        proto.set_field_type(family.kind);
        proto.set_metric(family.samples);
        self.put(&[proto])
    }

    fn put(&mut self, families: &[MetricFamily]) -> Result<(), prometheus::Error> {
        match self {
            Self::Text(text) => TextEncoder::new().encode_utf8(families, text),
            Self::Taken(take) => {
                families.iter().for_each(take);
                Ok(())
            }
        }
    }

    /// Appends what the system knows of this process: memory, processor time, open files, start.
    pub(super) fn process(&mut self) -> Result<(), prometheus::Error> {
        self.put(&ProcessCollector::for_self().collect())
    }

    /// The text; none where the families were taken.
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Taken(_) => String::new(),
        }
    }
}

/// A metric with its samples.
pub(super) struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<Metric>,
}

impl Family {
    /// A count that never falls while the worker lives.
    pub(super) fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::COUNTER, samples: Vec::new() }
    }

    /// A value as it is now.
    pub(super) fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::GAUGE, samples: Vec::new() }
    }

    /// A distribution of seconds.
    pub(super) fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::HISTOGRAM, samples: Vec::new() }
    }

    /// Adds a sample of a counter or a gauge.
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: f64) {
        let mut metric = labelled(labels);
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.samples.push(metric);
    }

    /// Adds a sample and gives the family back.
    pub(super) fn with(mut self, labels: Labels<'_>, value: f64) -> Self {
        self.sample(labels, value);
        self
    }

    /// Adds a sample of a histogram.
    pub(super) fn distribution(&mut self, labels: Labels<'_>, distribution: &Distribution) {
        let mut histogram = Histogram::default();
        histogram.set_sample_count(distribution.count);
        histogram.set_sample_sum(distribution.seconds());
        histogram.set_bucket(
            distribution
                .buckets()
                .map(|(bound, count)| {
                    let mut bucket = Bucket::default();
                    bucket.set_upper_bound(bound);
                    bucket.set_cumulative_count(count);
                    bucket
                })
                .collect(),
        );
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.samples.push(metric);
    }
}

fn labelled(labels: Labels<'_>) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}
