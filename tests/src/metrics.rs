//! The worker's numbers, read from its page of metrics.

use std::collections::BTreeMap;

/// One reading of `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text format of Prometheus; what isn't a sample is passed over.
    pub fn parse(page: &str) -> Self {
        Self(page.lines().filter_map(sample).collect())
    }

    /// Whether there is a sample of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }

    /// Sum of all samples of this name that carry these labels; 0 without any.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let chosen = self.0.iter().filter(|sample| {
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
}
