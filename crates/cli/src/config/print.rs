//! The configuration in force, as TOML that can be loaded again, each value with the layer it comes from.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use toml::{Table, Value};

use super::layers::Layers;
use super::problem::ConfigNote;
use super::raw::Raw;
use super::types::Config;

/// The values in force, secrets masked, in the order of `config/default.toml`'s sections.
#[derive(Debug)]
pub(super) struct Effective {
    table: Table,
    origins: BTreeMap<String, String>,
}

impl Effective {
    pub(super) fn new(raw: &Raw, layers: &Layers) -> Result<Effective, toml::ser::Error> {
        let table = Table::try_from(raw)?;
        let mut origins = BTreeMap::new();
        collect("", &table, layers, &mut origins);
        Ok(Effective { table, origins })
    }
}

fn collect(prefix: &str, table: &Table, layers: &Layers, into: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let key = join(prefix, name);
        match value {
            Value::Table(section) => collect(&key, section, layers, into),
            _ => {
                into.insert(key.clone(), layers.origin(&key).to_string());
            }
        }
    }
}

/// The configuration in force. Secrets show as `***`, which is refused when it is loaded; what isn't secret can be.
pub(crate) fn print(config: &Config) -> String {
    let mut text = String::new();
    text.push_str(
        "# The configuration in force; behind each value where it comes from. Secrets are not shown.\n",
    );
    for note in &config.notes {
        line(&mut text, format_args!("# note: {note}"));
    }
    section(&mut text, "", &config.effective.table, config);
    text
}

fn section(text: &mut String, prefix: &str, table: &Table, config: &Config) {
    if !prefix.is_empty() {
        line(text, format_args!("\n[{prefix}]"));
    }
    // A table's own values come before its sections, or they would belong to the last of these.
    for (name, value) in table {
        let key = join(prefix, name);
        if !matches!(value, Value::Table(_)) && entries(value).is_none() {
            line(text, format_args!("{name} = {value}  # {}", comment(&key, config)));
        }
    }
    for (name, value) in table {
        let key = join(prefix, name);
        if let Value::Table(inner) = value {
            section(text, &key, inner, config);
        } else if let Some(entries) = entries(value) {
            for entry in entries {
                line(text, format_args!("\n[[{key}]]  # {}", comment(&key, config)));
                for (name, value) in entry {
                    line(text, format_args!("{name} = {value}"));
                }
            }
        }
    }
}

fn comment(key: &str, config: &Config) -> String {
    let origin = config.effective.origins.get(key).map_or("default", String::as_str);
    // A value that was clamped isn't the one that its origin names.
    let noted = config.notes.iter().any(|ConfigNote { key: noted, .. }| noted == key);
    format!("{origin}{}", if noted { ", see the note above" } else { "" })
}

/// The tables of a list of tables.
fn entries(value: &Value) -> Option<Vec<&Table>> {
    let items = value.as_array().filter(|items| !items.is_empty())?;
    items.iter().map(Value::as_table).collect()
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing into a String can't fail.
    let _ = writeln!(text, "{content}");
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
