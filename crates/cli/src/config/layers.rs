//! The four layers of the configuration, put together by figment: defaults, the variables of the ledger and of
//! OpenTelemetry, the file, our variables.
//!
//! serde stops at the first error. To report all of them at once, the value that failed is noted, replaced by its
//! default, and the whole read again.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::Path;
use std::sync::OnceLock;

use figment::error::Kind;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Deserialize;

use super::problem::{Origin, Problem, shown};
use super::raw::Raw;
use super::{ConfigNote, ledger_env, manual, otel_env};

/// What our own variables begin with; with one underscore less they are the ledger's.
const PREFIX: &str = "BALANCE_SYNC__";

/// More wrong values than this are not listed one by one.
const MAX_MENDED: usize = 200;

/// The environment as it was given; only what is read must be UTF-8.
pub(super) struct Environment(BTreeMap<String, OsString>);

impl Environment {
    pub(super) fn new<K: Into<OsString>, V: Into<OsString>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let named = |(name, value): (K, V)| Some((name.into().into_string().ok()?, value.into()));
        Environment(pairs.into_iter().filter_map(named).collect())
    }

    /// The value of a variable; none when it is unset, empty or blank.
    pub(super) fn get(&self, name: &str) -> Option<Result<&str, Problem>> {
        let value = self.0.get(name)?;
        match value.to_str() {
            Some(text) if text.trim().is_empty() => None,
            Some(text) => Some(Ok(text)),
            None => Some(Err(Problem {
                key: name.to_owned(),
                value: None,
                origin: None,
                reason: "is not UTF-8 text".to_owned(),
            })),
        }
    }

    fn ours(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(|name| name.starts_with(PREFIX))
    }
}

/// One source of values: a file, or a single variable.
pub(super) struct Layer {
    pub origin: Origin,
    pub values: Dict,
}

impl Layer {
    /// A layer of one value at a dotted key.
    pub(super) fn of(origin: Origin, key: &str, value: Value) -> Layer {
        let mut values = Dict::new();
        insert(&mut values, key, value);
        Layer { origin, values }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// All layers merged, with the origin of every value.
#[derive(Clone)]
pub(super) struct Layers {
    figment: Figment,
    /// What the layers give together. Each question to `figment` would copy all of it, and a list may hold thousands of tenants.
    merged: OnceLock<Option<Value>>,
    origins: HashMap<String, Origin>,
    defaults: Value,
    gcp_iam: bool,
}

impl Layers {
    /// Reads every layer. What can't be read is left out and added to `problems`.
    pub(super) fn assemble(
        file: Option<&Path>,
        environment: &Environment,
        problems: &mut Vec<Problem>,
        notes: &mut Vec<ConfigNote>,
    ) -> Layers {
        let defaults = parse(manual::DEFAULTS, &Origin::Default, problems);
        let mut layers = Layers {
            figment: Figment::new(),
            merged: OnceLock::new(),
            origins: HashMap::new(),
            defaults: defaults.clone().into(),
            gcp_iam: ledger_env::wants_gcp_iam(environment),
        };
        layers.push(Layer { origin: Origin::Default, values: defaults });
        let before = otel_env::implied(environment);
        let ledger = ledger_env::layers(environment, problems, notes);
        let standard = otel_env::layers(environment, notes);
        for layer in before.into_iter().chain(ledger).chain(standard) {
            layers.push(layer);
        }
        if let Some(path) = file {
            let origin = Origin::File(path.to_owned());
            let values = read(path, &origin, problems);
            layers.push(Layer { origin, values });
        }
        for name in environment.ours() {
            match layers.variable(name, environment) {
                Ok(Some(layer)) => layers.push(layer),
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        layers
    }

    /// Whether the ledger's variables ask for authentication by Google Cloud IAM, for which there is no key of ours.
    pub(super) fn wants_gcp_iam(&self) -> bool {
        self.gcp_iam
    }

    pub(super) fn push(&mut self, layer: Layer) {
        self.origins.insert(layer.origin.to_string(), layer.origin.clone());
        self.figment = std::mem::take(&mut self.figment).merge(layer);
        self.merged = OnceLock::new();
    }

    fn merged(&self) -> Option<&Value> {
        self.merged.get_or_init(|| self.figment.find_value("").ok()).as_ref()
    }

    /// Where the value of a key comes from; a list counts as one value.
    pub(super) fn origin(&self, key: &str) -> Origin {
        let key = key.split_once('[').map_or(key, |(list, _)| list);
        let value = self.merged().and_then(|merged| find(merged, key.split('.')));
        let metadata = value.and_then(|value| self.figment.get_metadata(value.tag()));
        metadata.and_then(|found| self.origins.get(found.name.as_ref())).cloned().unwrap_or(Origin::Default)
    }

    /// One of our variables; its text is read as the type that the key's default has.
    fn variable(&self, name: &str, environment: &Environment) -> Result<Option<Layer>, Problem> {
        let text = match environment.get(name) {
            None => return Ok(None),
            Some(text) => text?,
        };
        let key = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        let origin = Origin::Variable(name.to_owned());
        let refuse = |reason: String, value: Option<String>| {
            Err(Problem { key: key.clone(), value, origin: Some(origin.clone()), reason })
        };
        let default = find(&self.defaults, key.split('.'));
        let value = match default {
            None => return refuse(self.unknown(&key, variable_name), None),
            Some(Value::Dict(..)) => return refuse("is a section, not a value".to_owned(), None),
            Some(Value::Array(..)) if key == "tenants.list" || key == "admin.tokens" => {
                return refuse("can only be set in a file".to_owned(), None);
            }
            Some(Value::Array(..)) => Value::from(
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>(),
            ),
            Some(default) => match typed(text, default) {
                Some(value) => value,
                None => return refuse(allowed(&key), shown(&key, &Value::from(text))),
            },
        };
        Ok(Some(Layer::of(origin, &key, value)))
    }

    /// Says that a key is unknown, and which was probably meant, in the form that `spell` gives it.
    fn unknown(&self, key: &str, spell: impl Fn(&str) -> String) -> String {
        let known = manual::keys(&self.defaults);
        let meant = manual::nearest(key, known.iter().map(String::as_str));
        unknown_key(meant.map(spell).as_deref())
    }

    /// A text value as it is merged; none when it is empty or no text.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        let value = self.figment.find_value(key).ok()?;
        value.as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// The merged values as structs, with every value of the wrong type and every unknown key in `problems`. None only
    /// when they can't be read at all.
    pub(super) fn extract(&self, problems: &mut Vec<Problem>) -> Option<Raw> {
        let mut merged = self.merged()?.clone();
        for _ in 0..MAX_MENDED {
            let error = match Raw::deserialize(&merged) {
                Ok(raw) => return Some(raw),
                Err(error) => error,
            };
            problems.push(self.explain(&error, &merged));
            if !self.mend(&mut merged, &error.path) {
                break;
            }
        }
        None
    }

    fn explain(&self, error: &figment::Error, merged: &Value) -> Problem {
        let value = find(merged, error.path.iter().map(String::as_str));
        let key = dotted(&error.path);
        let origin = value
            .and_then(|value| self.figment.get_metadata(value.tag()))
            .and_then(|metadata| self.origins.get(metadata.name.as_ref()))
            .cloned();
        // serde's own text is not used: it may quote the value.
        let (reason, value) = match &error.kind {
            Kind::UnknownField(_, fields) if key.contains('[') => {
                let name = error.path.last().map_or("", String::as_str);
                (unknown_key(manual::nearest(name, fields.iter().copied())), None)
            }
            Kind::UnknownField(..) => (self.unknown(&key, str::to_owned), None),
            Kind::MissingField(name) => (format!("{name} is missing"), None),
            _ => (allowed(&key), value.and_then(|value| shown(&key, value))),
        };
        Problem { key, value, origin, reason }
    }

    /// Puts the default in the place of what failed, or removes what has none. False when that can't help.
    fn mend(&self, merged: &mut Value, path: &[String]) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let Some(parent) = find_mut(merged, parents) else { return false };
        match (parent, find(&self.defaults, path.iter().map(String::as_str))) {
            (Value::Dict(_, section), Some(default)) => {
                section.insert(last.clone(), default.clone()).is_some()
            }
            (Value::Dict(_, section), None) => section.remove(last).is_some(),
            // An entry of a list that is no table at all: without it the others can still be looked at.
            (Value::Array(_, items), _) => match last.parse::<usize>() {
                Ok(index) if index < items.len() => {
                    items.remove(index);
                    true
                }
                _ => false,
            },
            _ => false,
        }
    }
}

/// What a key allows, for a value that isn't of its type; entries of a list have no comment of their own.
fn allowed(key: &str) -> String {
    const ENTRY: [(&str, &str); 4] = [
        ("port", "1 to 65535"),
        ("max_open_conns", "a whole number above 0"),
        ("statement_timeout", "a duration, as \"30s\""),
        ("sslmode", "\"disable\", \"prefer\", \"require\", \"verify-ca\" or \"verify-full\""),
    ];
    let whole = if key.ends_with(']') { key.split('[').next().unwrap_or(key) } else { key };
    if let Some(allowed) = manual::allowed(whole) {
        return format!("allowed: {allowed}");
    }
    let last = key.rsplit('.').next().unwrap_or(key);
    match ENTRY.iter().find(|(name, _)| *name == last && key.contains('[')) {
        Some((_, allowed)) => format!("allowed: {allowed}"),
        None if key.contains("].") => "allowed: any text".to_owned(),
        None => "is a section, not a value".to_owned(),
    }
}

fn unknown_key(suggestion: Option<&str>) -> String {
    match suggestion {
        Some(known) => format!("unknown key; did you mean {known}?"),
        None => "unknown key; config/default.toml names all there are".to_owned(),
    }
}

/// The variable of ours that sets a key.
fn variable_name(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// `tenants.list.0.port` as `tenants.list[0].port`.
fn dotted(path: &[String]) -> String {
    let mut key = String::new();
    for part in path {
        if part.bytes().all(|b| b.is_ascii_digit()) {
            key.push_str(&format!("[{part}]"));
        } else {
            if !key.is_empty() {
                key.push('.');
            }
            key.push_str(part);
        }
    }
    key
}

/// Text as the type that `like` has.
fn typed(text: &str, like: &Value) -> Option<Value> {
    let trimmed = text.trim();
    match like {
        Value::Bool(..) => boolean(trimmed).map(Value::from),
        Value::Num(_, number) if number.to_f64().is_some() => trimmed.parse::<f64>().ok().map(Value::from),
        Value::Num(..) => trimmed.parse::<i64>().ok().map(Value::from),
        _ => Some(Value::from(text)),
    }
}

/// A yes or no as people and Go programs write it.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" | "yes" | "on" => Some(true),
        "false" | "f" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn read(path: &Path, origin: &Origin, problems: &mut Vec<Problem>) -> Dict {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, origin, problems),
        Err(error) => {
            problems.push(broken(origin, format!("can't be read: {error}")));
            Dict::new()
        }
    }
}

pub(super) fn parse(text: &str, origin: &Origin, problems: &mut Vec<Problem>) -> Dict {
    let reason = match toml::from_str::<toml::Table>(text) {
        Ok(table) => match Value::serialize(table) {
            Ok(Value::Dict(_, values)) => return values,
            _ => "is not TOML: allowed are tables of text, numbers, true and false, and lists".to_owned(),
        },
        Err(error) => {
            // Only where and what: the error's full text quotes the line, and a secret may stand in it.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            format!("is not TOML: line {line}, column {column}: {}", error.message())
        }
    };
    problems.push(broken(origin, reason));
    Dict::new()
}

fn broken(origin: &Origin, reason: String) -> Problem {
    Problem { key: String::new(), value: None, origin: Some(origin.clone()), reason }
}

fn find<'v, 'k>(tree: &'v Value, mut path: impl Iterator<Item = &'k str>) -> Option<&'v Value> {
    path.try_fold(tree, |value, name| match value {
        Value::Dict(_, section) => section.get(name),
        Value::Array(_, items) => items.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}

/// The table or list at a path, where something is to be put or removed.
fn find_mut<'v>(tree: &'v mut Value, path: &[String]) -> Option<&'v mut Value> {
    path.iter().try_fold(tree, |value, name| match value {
        Value::Dict(_, section) => section.get_mut(name),
        Value::Array(_, items) => items.get_mut(name.parse::<usize>().ok()?),
        _ => None,
    })
}

fn insert(tree: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            tree.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let entry = tree.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, section) = entry {
                insert(section, rest, value);
            }
        }
    }
}
