//! A strict reader of Prometheus' text format, which refuses what Prometheus refuses and what promtool warns of.

use std::collections::{BTreeMap, BTreeSet, HashMap};

type LabelSet = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct Family {
    help: Option<String>,
    kind: String,
}

/// A text that was found valid.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    families: BTreeMap<String, Family>,
    samples: Vec<(String, LabelSet, f64)>,
    index: HashMap<(String, LabelSet), f64>,
}

impl Exposition {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut page = Self::default();
        let mut current: Option<String> = None;
        let mut pending_help: Option<(String, String)> = None;
        let Some(body) = text.strip_suffix('\n') else {
            return Err("the last line has no end".to_owned());
        };
        // Not `lines()`: a carriage return is a character like others here.
        for line in body.split('\n') {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').ok_or("HELP without text")?;
                pending_help = Some((name.to_owned(), help.to_owned()));
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or("TYPE without type")?;
                if !["counter", "gauge", "histogram"].contains(&kind) {
                    return Err(format!("{name}: unknown type {kind}"));
                }
                let help = pending_help.take().filter(|(of, _)| of == name).map(|(_, help)| help);
                let family = Family { help, kind: kind.to_owned() };
                if page.families.insert(name.to_owned(), family).is_some() {
                    return Err(format!("{name}: its samples are not together"));
                }
                current = Some(name.to_owned());
            } else {
                let (name, labels, value) = sample(line).map_err(|error| format!("{error} in {line:?}"))?;
                let family = current.as_deref().ok_or_else(|| format!("sample without TYPE: {line}"))?;
                page.belongs(family, &name, &labels, value)
                    .map_err(|error| format!("{error} in {line:?}"))?;
                if page.index.insert((name.clone(), labels.clone()), value).is_some() {
                    return Err(format!("twice: {line}"));
                }
                page.samples.push((name, labels, value));
            }
        }
        page.check_families()?;
        Ok(page)
    }

    fn belongs(&self, family: &str, name: &str, labels: &LabelSet, value: f64) -> Result<(), String> {
        let kind = self.families[family].kind.as_str();
        let suffix = name.strip_prefix(family).ok_or_else(|| format!("not of the family {family}"))?;
        match (kind, suffix) {
            ("counter", "") if value < 0.0 => return Err("a negative counter".to_owned()),
            ("counter" | "gauge", "") | ("histogram", "_sum" | "_count") => {}
            ("histogram", "_bucket") if labels.contains_key("le") => {}
            _ => return Err(format!("not a sample of a {kind}")),
        }
        Ok(())
    }

    fn check_families(&self) -> Result<(), String> {
        for (name, family) in &self.families {
            let sets: BTreeSet<LabelSet> = self
                .samples
                .iter()
                .filter(|(of, ..)| *of == *name || *of == format!("{name}_count"))
                .map(|(_, labels, _)| labels.clone())
                .collect();
            if sets.is_empty() {
                return Err(format!("{name}: no samples"));
            }
            if family.kind != "histogram" {
                continue;
            }
            let mut buckets: HashMap<LabelSet, Vec<(f64, f64)>> = HashMap::new();
            for (_, labels, value) in self.samples.iter().filter(|(of, ..)| *of == format!("{name}_bucket")) {
                let mut labels = labels.clone();
                let bound = labels.remove("le").ok_or("no le")?;
                buckets.entry(labels).or_default().push((number(&bound)?, *value));
            }
            if buckets.len() != sets.len() {
                return Err(format!("{name}: buckets without count, or the other way round"));
            }
            for (labels, buckets) in buckets {
                let rising = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
                let last = buckets.last().copied().ok_or("no buckets")?;
                let count = self.index.get(&(format!("{name}_count"), labels.clone()));
                if !rising || last.0 != f64::INFINITY || Some(&last.1) != count {
                    return Err(format!("{name}{labels:?}: buckets don't add up: {buckets:?}"));
                }
                if !self.index.contains_key(&(format!("{name}_sum"), labels)) {
                    return Err(format!("{name}: no sum"));
                }
            }
        }
        Ok(())
    }

    /// The value of the sample with exactly these labels.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.index.get(&(name.to_owned(), labels)).copied()
    }

    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or_else(|| panic!("no sample {name} {labels:?}"))
    }

    pub(crate) fn families(&self) -> impl Iterator<Item = &str> {
        self.families.keys().map(String::as_str)
    }

    pub(crate) fn kind(&self, family: &str) -> Option<&str> {
        self.families.get(family).map(|family| family.kind.as_str())
    }

    pub(crate) fn help(&self, family: &str) -> Option<&str> {
        self.families.get(family)?.help.as_deref()
    }

    /// The values of a label in a family, in order of appearance, each once.
    pub(crate) fn label_values(&self, family: &str, label: &str) -> Vec<String> {
        let mut seen = BTreeSet::new();
        self.samples
            .iter()
            .filter(|(name, ..)| name.starts_with(family))
            .filter_map(|(_, labels, _)| labels.get(label))
            .filter(|value| seen.insert((*value).clone()))
            .cloned()
            .collect()
    }

    /// Number of samples with that label.
    pub(crate) fn with_label(&self, name: &str, label: &str, value: &str) -> usize {
        let has = |labels: &LabelSet| labels.get(label).is_some_and(|is| is == value);
        self.samples.iter().filter(|(of, labels, _)| of == name && has(labels)).count()
    }
}

/// One line: name, labels, value.
fn sample(line: &str) -> Result<(String, LabelSet, f64), String> {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("bad name".to_owned());
    }
    let mut labels = LabelSet::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("label without value")?;
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if label.is_empty() || label.starts_with(|c: char| c.is_ascii_digit()) || !label.chars().all(word)
            {
                return Err(format!("bad label name {label:?}"));
            }
            let (value, after) = quoted(after)?;
            if labels.insert(label.to_owned(), value).is_some() {
                return Err(format!("label {label} twice"));
            }
            if let Some(after) = after.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = after.strip_prefix(',').ok_or("no comma between labels")?;
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no blank before the value")?;
    Ok((name.to_owned(), labels, number(value)?))
}

/// The text up to the closing quote, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                other => return Err(format!("unknown escape {other:?}")),
            },
            c => value.push(c),
        }
    }
    Err("label value without end".to_owned())
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            text.parse().map_err(|_| format!("not a number: {text:?}"))
        }
        _ => Err(format!("not a number: {text:?}")),
    }
}

#[test]
fn the_reader_refuses_what_is_not_valid() {
    let head = "# HELP a b\n# TYPE a counter\n";
    assert!(Exposition::parse(&format!("{head}a{{x=\"1\"}} 1\na{{x=\"2\"}} 1\n")).is_ok());
    for bad in [
        "a 1",
        "a 1\na 1\n",
        "a -1\n",
        "a{x=\"1} 1\n",
        "a{x=\"\\q\"} 1\n",
        "a{x=\"\n\"} 1\n",
        "a{x=\"1\"}1\n",
        "a{1x=\"1\"} 1\n",
        "b 1\n",
        "a NaN?\n",
        "",
    ] {
        assert!(Exposition::parse(&format!("{head}{bad}")).is_err(), "{bad:?}");
    }
    let histogram = "# TYPE h histogram\n";
    let good = "h_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n";
    assert!(Exposition::parse(&format!("{histogram}{good}")).is_ok());
    for (from, to) in [("_count 2", "_count 1"), ("\"1\"} 1", "\"1\"} 3"), ("+Inf", "9"), ("h_sum 3\n", "")] {
        assert!(
            Exposition::parse(&format!("{histogram}{}", good.replace(from, to))).is_err(),
            "{from} → {to}"
        );
    }
}
