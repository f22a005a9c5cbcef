//! What was found, put together: equal findings about many tenants are one line.

use std::fmt::Write as _;

use balance_sync_domain::printable;
use serde::Serialize;

use crate::terminal::{BAD, GOOD, HEAD, Screen, WARN, styled, wrap};

/// Tenants that are named in one line.
const NAMED: usize = 3;
/// Lines with findings of one kind about tenants; those that differ beyond it are counted in the last line.
const LINES_OF_A_KIND: usize = 5;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// It works, and may not always, or shows less.
    Warn,
    /// A worker could not do its work.
    Fail,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at: `redis`, `tenants`, `postgres` and so on.
    pub area: &'static str,
    /// What it is about, where several tenants may have the same: `grants`, `postgres_tls`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// What was found.
    pub found: String,
    /// What helps; empty where nothing is needed.
    pub help: String,
    /// The tenants that it is about; none where it is about all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<String>,
}

/// All of it, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    level: Level,
    findings: &'a [Finding],
}

/// Everything that was found, in the order in which it was looked at.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    /// As it should be.
    pub(super) fn ok(&mut self, area: &'static str, found: impl Into<String>) {
        self.note(Level::Ok, area, found.into(), "");
    }

    /// It works, and may not always.
    pub(super) fn warn(&mut self, area: &'static str, found: impl Into<String>, help: &str) {
        self.note(Level::Warn, area, found.into(), help);
    }

    /// It does not work.
    pub(super) fn fail(&mut self, area: &'static str, found: impl Into<String>, help: &str) {
        self.note(Level::Fail, area, found.into(), help);
    }

    /// Something about one tenant. What has the same level, area, kind and words about several is one line.
    pub(super) fn of_tenant(
        &mut self,
        tenant: &str,
        area: &'static str,
        kind: &str,
        finding: (Level, String, String),
    ) {
        const OTHERS: &str = "; of the others something like it";
        let (level, found, help) = finding;
        let mut of_kind: Vec<&mut Finding> = self
            .0
            .iter_mut()
            .filter(|known| known.level == level && known.area == area && known.kind == kind)
            .collect();
        let is_full = of_kind.len() >= LINES_OF_A_KIND;
        if let Some(same) = of_kind.iter_mut().find(|known| known.found == found) {
            same.tenants.push(tenant.to_owned());
        } else if let Some(last) = of_kind.pop().filter(|_| is_full) {
            if !last.found.ends_with(OTHERS) {
                last.found.push_str(OTHERS);
            }
            last.tenants.push(tenant.to_owned());
        } else {
            let (kind, tenants) = (kind.to_owned(), vec![tenant.to_owned()]);
            self.0.push(Finding { level, area, kind, found, help, tenants });
        }
    }

    fn note(&mut self, level: Level, area: &'static str, found: String, help: &str) {
        let (kind, help) = (String::new(), help.to_owned());
        self.0.push(Finding { level, area, kind, found, help, tenants: Vec::new() });
    }

    /// The worst of them.
    pub(super) fn worst(&self) -> Level {
        self.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    /// In the order in which it was looked at.
    #[cfg(test)]
    pub(super) fn list(&self) -> &[Finding] {
        &self.0
    }

    /// For another program.
    pub(super) fn report(&self) -> Report<'_> {
        Report { level: self.worst(), findings: &self.0 }
    }

    /// For people.
    pub(super) fn render(&self, screen: Screen) -> String {
        const INDENT: usize = 18;
        let mut text = String::new();
        for Finding { level, area, found, help, tenants, .. } in &self.0 {
            let mark = match level {
                Level::Ok => styled(GOOD, "ok  "),
                Level::Warn => styled(WARN, "warn"),
                Level::Fail => styled(BAD, "FAIL"),
            };
            let of: Vec<&str> = tenants.iter().map(String::as_str).collect();
            let whose = match of.len() {
                0 => String::new(),
                1 => format!("{}: ", of[0]),
                n => format!("{n} tenants ({}): ", names(&of)),
            };
            let said = wrap(&printable(&format!("{whose}{found}")), screen.text_width(), INDENT);
            let _ = writeln!(text, "{mark}  {area:<10}  {said}");
            if !help.is_empty() {
                let help = wrap(&printable(&format!("→ {help}")), screen.text_width(), INDENT + 2);
                let _ = writeln!(text, "{:INDENT$}{help}", "");
            }
        }
        let count = |level| self.0.iter().filter(|finding| finding.level == level).count();
        let (ok, warn, fail) = (count(Level::Ok), count(Level::Warn), count(Level::Fail));
        let _ = writeln!(text, "{}", styled(HEAD, format_args!("check: {ok} ok, {warn} warn, {fail} fail")));
        text
    }
}

/// Some names, and how many more there are.
pub(crate) fn names(all: &[&str]) -> String {
    let more = all.len().saturating_sub(NAMED);
    let named = all[..all.len() - more].join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_found_of_many_tenants_takes_few_lines() {
        let mut findings = Findings::default();
        for n in 0..10_000 {
            let found = format!("host \"db-{}:5432\" contains a port", n.min(1) + n % 7);
            let finding = (Level::Fail, found, "correct it".to_owned());
            findings.of_tenant(&format!("t{n}"), "postgres", "settings", finding);
        }
        assert_eq!(findings.0.len(), LINES_OF_A_KIND);
        assert_eq!(findings.0.iter().map(|finding| finding.tenants.len()).sum::<usize>(), 10_000);
        let (last, others) = findings.0.split_last().unwrap();
        assert!(last.found.ends_with("something like it"), "{last:?}");
        assert!(others.iter().all(|finding| finding.found.ends_with("contains a port")));
        assert_eq!(findings.worst(), Level::Fail);
    }
}
