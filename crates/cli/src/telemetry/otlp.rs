//! From the families of `/metrics` to messages of OTLP.
//!
//! All sums and histograms are cumulative. Those of a tenant begin when this worker began to count for it: a tenant that went and
//! came back counts anew, with a start of its own, so that a receiver sees the reset.

use std::{collections::BTreeMap, mem, time::Duration};

use balance_sync_admin::{Exported, metrics::TENANT};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use prometheus::proto::{self, LabelPair, MetricType};

/// Samples in one request at most: receivers of gRPC take 4 MiB by default, and a histogram takes some 400 bytes.
const SAMPLES: usize = 5_000;
const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

/// Collects families into requests, and hands over each with the number of its samples once it is full: no more than one is in
/// memory.
pub(super) struct Requests<F> {
    resource: Resource,
    /// When the worker started, and now.
    started: u64,
    now: u64,
    metrics: Vec<Metric>,
    samples: usize,
    send: F,
}

impl<F: FnMut(ExportMetricsServiceRequest, usize)> Requests<F> {
    /// Of a worker with these attributes that started then; both by the clock, since 1970.
    pub(super) fn new(
        attributes: BTreeMap<String, String>,
        started: Duration,
        now: Duration,
        send: F,
    ) -> Self {
        let resource = Resource {
            attributes: attributes.into_iter().map(|(key, value)| attribute(&key, &value)).collect(),
            ..Resource::default()
        };
        let (started, now) = (nanos(started), nanos(now));
        Self { resource, started, now, metrics: Vec::new(), samples: 0, send }
    }

    /// Adds a family, in as many parts as it takes.
    pub(super) fn add(&mut self, exported: Exported<'_>) {
        let mut samples = exported.family.get_metric();
        while !samples.is_empty() {
            let (part, rest) = samples.split_at(samples.len().min(SAMPLES - self.samples));
            self.samples += part.len();
            self.metrics.push(self.metric(exported, part));
            samples = rest;
            if self.samples == SAMPLES {
                self.cut();
            }
        }
    }

    /// Hands over the last one.
    pub(super) fn finish(mut self) {
        self.cut();
    }

    fn cut(&mut self) {
        let (metrics, samples) = (mem::take(&mut self.metrics), mem::take(&mut self.samples));
        if metrics.is_empty() {
            return;
        }
        let scope = InstrumentationScope {
            name: "balance-sync".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }],
                ..ResourceMetrics::default()
            }],
        };
        (self.send)(request, samples);
    }

    fn metric(&self, exported: Exported<'_>, samples: &[proto::Metric]) -> Metric {
        let number = |sample: &proto::Metric, value: f64, start: u64| NumberDataPoint {
            attributes: attributes(sample.get_label()),
            start_time_unix_nano: start,
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsDouble(value)),
            ..NumberDataPoint::default()
        };
        let data = match exported.family.get_field_type() {
            MetricType::COUNTER => Data::Sum(Sum {
                data_points: samples
                    .iter()
                    .map(|sample| {
                        number(sample, sample.get_counter().get_value(), self.start(exported, sample))
                    })
                    .collect(),
                aggregation_temporality: CUMULATIVE,
                is_monotonic: true,
            }),
            MetricType::HISTOGRAM => Data::Histogram(Histogram {
                data_points: samples.iter().map(|sample| self.histogram(exported, sample)).collect(),
                aggregation_temporality: CUMULATIVE,
            }),
            // There are no others.
            _ => Data::Gauge(Gauge {
                data_points: samples
                    .iter()
                    .map(|sample| number(sample, sample.get_gauge().get_value(), 0))
                    .collect(),
            }),
        };
        Metric {
            name: exported.family.name().to_owned(),
            description: exported.family.help().to_owned(),
            unit: exported.unit.to_owned(),
            data: Some(data),
            ..Metric::default()
        }
    }

    fn histogram(&self, exported: Exported<'_>, sample: &proto::Metric) -> HistogramDataPoint {
        let histogram = sample.get_histogram();
        let buckets = histogram.get_bucket();
        let mut below = 0;
        let mut counts: Vec<u64> = buckets
            .iter()
            .map(|bucket| {
                let count = bucket.cumulative_count().saturating_sub(below);
                below = bucket.cumulative_count();
                count
            })
            .collect();
        counts.push(histogram.get_sample_count().saturating_sub(below));
        HistogramDataPoint {
            attributes: attributes(sample.get_label()),
            start_time_unix_nano: self.start(exported, sample),
            time_unix_nano: self.now,
            count: histogram.get_sample_count(),
            sum: Some(histogram.get_sample_sum()),
            bucket_counts: counts,
            explicit_bounds: buckets.iter().map(proto::Bucket::upper_bound).collect(),
            ..HistogramDataPoint::default()
        }
    }

    /// When a sample began to count.
    fn start(&self, exported: Exported<'_>, sample: &proto::Metric) -> u64 {
        let tenant = sample.get_label().iter().find(|label| label.name() == TENANT);
        let since = tenant.and_then(|tenant| exported.since.get(tenant.value()));
        since.map_or(self.started, |ms| nanos(Duration::from_millis(*ms))).min(self.now)
    }
}

fn attributes(labels: &[LabelPair]) -> Vec<KeyValue> {
    labels.iter().map(|label| attribute(label.name(), label.value())).collect()
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn nanos(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use prometheus::proto::{Counter, MetricFamily};

    use super::*;

    #[test]
    fn a_large_family_is_cut_and_a_tenants_counts_begin_with_the_tenant() {
        let mut family = MetricFamily::default();
        family.set_name("x_total".to_owned());
        family.set_field_type(MetricType::COUNTER);
        let sample = |n: usize| {
            let mut label = LabelPair::default();
            label.set_name(TENANT.to_owned());
            label.set_value(format!("t{n}"));
            let mut counter = Counter::default();
            counter.set_value(n as f64);
            let mut sample = proto::Metric::from_label(vec![label]);
            sample.set_counter(counter);
            sample
        };
        family.set_metric((0..2 * SAMPLES + 1).map(sample).collect());
        let since = HashMap::from([("t3".to_owned(), 7_000)]);
        let mut points = Vec::new();
        let mut requests = Requests::new(
            BTreeMap::new(),
            Duration::from_secs(1),
            Duration::from_secs(9),
            |request: ExportMetricsServiceRequest, samples| {
                let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
                let of_request = metrics.iter().flat_map(|metric| match &metric.data {
                    Some(Data::Sum(sum)) if sum.is_monotonic => sum.data_points.clone(),
                    other => panic!("{other:?}"),
                });
                let of_request: Vec<_> = of_request.collect();
                assert_eq!(of_request.len(), samples);
                points.push(of_request);
            },
        );
        for _ in 0..2 {
            requests.add(Exported { family: &family, unit: "1", since: &since });
        }
        requests.finish();
        let sizes: Vec<usize> = points.iter().map(Vec::len).collect();
        assert_eq!(sizes, [SAMPLES, SAMPLES, SAMPLES, SAMPLES, 2]);
        let starts = [points[0][2].start_time_unix_nano, points[0][3].start_time_unix_nano];
        assert_eq!(starts, [1_000_000_000, 7_000_000_000]);
        assert_eq!(points[0][3].time_unix_nano, 9_000_000_000);
    }
}
