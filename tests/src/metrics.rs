//! The worker's numbers, read from its page of metrics.

use std::collections::{BTreeMap, BTreeSet};

/// One reading of `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
    families: Vec<Family>,
}

/// A metric as its head and its samples describe it.
#[derive(Debug, Clone, Default)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it says of itself.
    pub help: String,
    /// The labels of its samples with their values; not the bounds of buckets.
    pub labels: BTreeMap<String, BTreeSet<String>>,
}

impl Family {
    /// Whether a sample of this name is one of its own.
    pub fn has(&self, sample: &str) -> bool {
        match sample.strip_prefix(self.name.as_str()) {
            Some("") => self.kind != "histogram",
            Some("_bucket" | "_sum" | "_count") => self.kind == "histogram",
            _ => false,
        }
    }
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text format of Prometheus; what isn't a sample is passed over.
    pub fn parse(page: &str) -> Self {
        let mut families: Vec<Family> = Vec::new();
        let mut samples = Vec::new();
        for line in page.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                families.push(Family { name: name.to_owned(), help: help.to_owned(), ..Family::default() });
            } else if let Some((name, kind)) =
                line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
            {
                match families.last_mut().filter(|family| family.name == name) {
                    Some(family) => kind.clone_into(&mut family.kind),
                    None => families.push(Family {
                        name: name.to_owned(),
                        kind: kind.to_owned(),
                        ..Family::default()
                    }),
                }
            } else if let Some(sample) = sample(line) {
                if let Some(family) = families.last_mut().filter(|family| family.has(&sample.name)) {
                    for (label, value) in sample.labels.iter().filter(|(label, _)| *label != "le") {
                        family.labels.entry(label.clone()).or_default().insert(value.clone());
                    }
                }
                samples.push(sample);
            }
        }
        Self { samples, families }
    }

    /// All metrics, in the order of the page.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// All samples: name, labels and value.
    pub fn samples(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, String>, f64)> {
        self.samples.iter().map(|sample| (sample.name.as_str(), &sample.labels, sample.value))
    }

    /// Whether there is a sample of this name.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }

    /// A histogram over all its labels: how many observations were at most each bound, by the bound.
    pub fn histogram(&self, name: &str) -> Vec<(f64, f64)> {
        let name = format!("{name}_bucket");
        let mut counts: Vec<(f64, f64)> = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.name == name) {
            let bound = sample.labels.get("le").map(String::as_str).unwrap_or_default();
            let bound = bound.parse().unwrap_or(f64::INFINITY);
            match counts.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => counts.push((bound, sample.value)),
            }
        }
        counts.sort_by(|a, b| a.0.total_cmp(&b.0));
        counts
    }

    /// Sum of all samples of this name that carry these labels; 0 without any.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let chosen = self.samples.iter().filter(|sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|own| own == value))
        });
        chosen.map(|sample| sample.value).sum()
    }
}

/// `name{label="value",…} number`
fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (head, value) = line.rsplit_once(' ')?;
    let (name, labels) = head.split_once('{').unwrap_or((head, "}"));
    let labels = labels.strip_suffix('}')?;
    // The worker's label values are ids and names: no quotes and no commas in them.
    let labels = labels
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()));
    Some(Sample { name: name.to_owned(), labels: labels.collect(), value: value.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let page = "# HELP a Text.\n# TYPE a counter\na{tenant_id=\"x\",trigger=\"size\"} 3\n\
                    a{tenant_id=\"y\",trigger=\"size\"} 4\nb 0.5\n";
        let metrics = Metrics::parse(page);
        assert!(metrics.has("a") && !metrics.has("c"));
        let sums = [
            metrics.sum("a", &[]),
            metrics.sum("a", &[("tenant_id", "y")]),
            metrics.sum("a", &[("tenant_id", "y"), ("trigger", "timeout")]),
            metrics.sum("b", &[]),
        ];
        assert_eq!(sums, [7.0, 4.0, 0.0, 0.5]);
    }

    #[test]
    fn families_have_their_heads_and_the_labels_of_their_samples() {
        let page = "# HELP a Text of it.\n# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"4\",y=\"2\"} 4\n\
                    # HELP h Other text.\n# TYPE h histogram\nh_bucket{le=\"1\"} 0\nh_sum 0\nh_count 0\n";
        let metrics = Metrics::parse(page);
        let [a, h] = metrics.families() else { panic!("{:?}", metrics.families()) };
        assert_eq!((a.kind.as_str(), a.help.as_str()), ("counter", "Text of it."));
        assert_eq!(a.labels["x"], BTreeSet::from(["1".to_owned(), "4".to_owned()]));
        assert_eq!((h.kind.as_str(), h.labels.len()), ("histogram", 0));
        assert!(h.has("h_bucket") && h.has("h_count") && !h.has("h") && a.has("a") && !a.has("a_count"));
    }
}
