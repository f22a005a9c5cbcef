//! `config/default.toml`, the lowest layer, read as the manual it is: which keys exist, and what each allows.
//!
//! Taking both from the embedded file keeps them from drifting apart: the tests compare what it says with what is
//! checked.

use figment::value::Value;

/// The embedded file.
pub(crate) const DEFAULTS: &str = include_str!("../../../../config/default.toml");

/// A name may differ from a known one by this share of its length and still be taken for a misspelling.
const TYPO_SHARE: usize = 3;

/// The comment lines directly above a key, without their `#`; empty for an unknown key.
pub(super) fn comment(key: &str) -> Vec<&'static str> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut inside = section.is_empty();
    let mut block = Vec::new();
    for line in DEFAULTS.lines() {
        if let Some(text) = line.strip_prefix('#') {
            block.push(text.trim());
        } else if let Some(header) = line.strip_prefix('[') {
            inside = header.strip_suffix(']') == Some(section);
            block.clear();
        } else {
            if inside && line.split_once('=').is_some_and(|(left, _)| left.trim() == name) {
                return block;
            }
            block.clear();
        }
    }
    Vec::new()
}

/// What a key allows, as its comment says after `allowed:`.
pub(super) fn allowed(key: &str) -> Option<&'static str> {
    comment(key).into_iter().find_map(|line| line.strip_prefix("allowed:")).map(str::trim)
}

/// The dotted names of all sections and values; a list counts as one value.
pub(super) fn keys(tree: &Value) -> Vec<String> {
    fn walk(prefix: &str, tree: &Value, into: &mut Vec<String>) {
        let Value::Dict(_, section) = tree else { return };
        for (name, value) in section {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            walk(&key, value, into);
            into.push(key);
        }
    }
    let mut found = Vec::new();
    walk("", tree, &mut found);
    found
}

/// The names of the values in a section, without it.
pub(super) fn section_keys(section: &str) -> Vec<String> {
    let mut inside = false;
    let mut keys = Vec::new();
    for line in DEFAULTS.lines() {
        if let Some(header) = line.strip_prefix('[') {
            inside = header.strip_suffix(']') == Some(section);
        } else if inside && !line.starts_with('#') {
            keys.extend(line.split_once('=').map(|(name, _)| name.trim().to_owned()));
        }
    }
    keys
}

/// The known name that an unknown one was probably meant to be: nearly the same, or the same in another section.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    fn last(key: &str) -> &str {
        key.rsplit('.').next().unwrap_or(key)
    }
    let mut best: Option<(usize, &str)> = None;
    for name in known {
        let whole = strsim::damerau_levenshtein(unknown, name);
        // The last part decides how much may differ: with the whole key, neighbours in a long-named section are near.
        let near = whole <= (last(unknown).len() / TYPO_SHARE).clamp(1, 3);
        let distance = if near {
            whole
        } else if last(unknown) == last(name) {
            usize::MAX
        } else {
            continue;
        };
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, name));
        }
    }
    best.map(|(_, name)| name)
}
