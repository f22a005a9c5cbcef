//! `docs/settings.md` is `config/default.toml` for readers of documentation.

use std::{fmt::Write, path::Path};

use crate::config::manual::DEFAULTS;

const DOCUMENT: &str = "../../docs/settings.md";
const REWRITE: &str = "BALANCE_SYNC_REWRITE_DOCS";
const START: &str = "# Settings\n\n\
    Made from [`config/default.toml`](../config/default.toml) by a test, and compared with it by `make test`: change that file, then\n\
    `BALANCE_SYNC_REWRITE_DOCS=1 cargo test --locked --workspace --lib settings_page`.\n\n";
/// What a comment says after one of these is no running text.
const FACTS: [(&str, &str); 3] = [
    ("ledger variable:", "ledger variable"),
    ("standard variable:", "standard variable"),
    ("allowed:", "allowed"),
];

/// A comment: running text, and the facts behind it.
#[derive(Default)]
struct Comment {
    text: String,
    facts: Vec<(&'static str, String)>,
}

impl Comment {
    fn read(lines: &[&str]) -> Self {
        let mut comment = Self::default();
        let mut code = false;
        for line in lines {
            let fact = FACTS.iter().find_map(|(mark, name)| Some((*name, line.strip_prefix(mark)?)));
            if let Some((name, value)) = fact {
                comment.facts.push((name, value.trim().to_owned()));
                continue;
            }
            if let Some((_, value)) = comment.facts.last_mut() {
                value.push(' ');
                value.push_str(line);
                continue;
            }
            // Lists and examples are indented.
            if line.starts_with("  ") != code && !line.is_empty() {
                code = !code;
                let before = comment.text.trim_end().len();
                comment.text.truncate(before);
                comment.text.push_str(if code { "\n\n```\n" } else { "\n```\n\n" });
            }
            let line = if code { line.strip_prefix("  ").unwrap_or(line).to_owned() } else { escaped(line) };
            let _ = writeln!(comment.text, "{line}");
        }
        if code {
            comment.text.push_str("```\n");
        }
        while comment.text.contains("\n\n\n") {
            comment.text = comment.text.replace("\n\n\n", "\n\n");
        }
        comment
    }

    fn print(&self, into: &mut String) {
        if !self.text.trim().is_empty() {
            let _ = write!(into, "{}\n\n", self.text.trim_matches('\n'));
        }
        for (name, value) in &self.facts {
            let _ = writeln!(into, "- {name}: {}", escaped(value));
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('<', "&lt;").replace('*', "\\*")
}

/// The page.
fn page(defaults: &str) -> String {
    let mut page = START.to_owned();
    let (mut section, mut comment) = (String::new(), Vec::new());
    for line in defaults.lines().chain([""]) {
        if let Some(text) = line.strip_prefix('#') {
            let text = text.strip_prefix(' ').unwrap_or(text);
            if !text.starts_with("-----") {
                comment.push(text);
            }
        } else if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
            let _ = write!(page, "## `[{section}]`\n\n");
            Comment::read(&std::mem::take(&mut comment)).print(&mut page);
        } else if let Some((name, value)) = line.split_once(" = ") {
            let variable = format!("BALANCE_SYNC__{section}.{name}").replace('.', "__").to_uppercase();
            let _ = write!(page, "### `{section}.{name}`\n\n");
            let comment = Comment::read(&std::mem::take(&mut comment));
            comment.print(&mut page);
            let _ = writeln!(page, "- default: `{value}`");
            if !comment.facts.iter().any(|(_, fact)| fact.contains("in a file only")) {
                let _ = writeln!(page, "- variable: `{variable}`");
            }
            page.push('\n');
        } else {
            // A remark that belongs to no key.
            Comment::read(&std::mem::take(&mut comment)).print(&mut page);
            if !page.ends_with("\n\n") {
                page.push('\n');
            }
        }
    }
    format!("{}\n", page.trim_end())
}

#[test]
fn the_settings_page_says_what_the_defaults_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT);
    let page = page(DEFAULTS);
    if std::env::var_os(REWRITE).is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let document = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(document.lines()).find(|(now, was)| now != was);
    assert_eq!(
        differs, None,
        "docs/settings.md is not what config/default.toml says; {REWRITE}=1 writes it anew"
    );
    assert_eq!(page, document);
}

#[test]
fn the_settings_page_has_every_key_with_what_it_allows() {
    let page = page(DEFAULTS);
    let headings = page.lines().filter(|line| line.starts_with("### ")).count();
    assert_eq!(
        headings,
        DEFAULTS.lines().filter(|line| !line.starts_with('#') && line.contains(" = ")).count()
    );
    for entry in page.split("\n### ").skip(1) {
        for part in ["\n- allowed: ", "\n- default: `"] {
            assert_eq!(entry.matches(part).count(), 1, "{part} in {entry}");
        }
        let has_variable = entry.contains("\n- variable: `BALANCE_SYNC__");
        let allowed = entry.lines().find(|line| line.starts_with("- allowed: ")).unwrap();
        assert_ne!(has_variable, allowed.contains("in a file only"), "{entry}");
    }
}

#[test]
fn facts_may_go_on_in_the_next_line_and_examples_are_indented() {
    let defaults = "# Head.\n#\n#   a = 1\n\n# -----\n# Of it.\n[one.two]\n\n# Text, <that> goes\n# on.\n# ledger variable: A (as it\n# stands)\n# allowed: any *\nkey = \"x\"\n";
    let expected = "Head.\n\n```\na = 1\n```\n\n## `[one.two]`\n\nOf it.\n\n### `one.two.key`\n\nText, &lt;that> goes\non.\n\n\
        - ledger variable: A (as it stands)\n- allowed: any \\*\n- default: `\"x\"`\n- variable: `BALANCE_SYNC__ONE__TWO__KEY`\n";
    assert_eq!(page(defaults), format!("{START}{expected}"));
}
