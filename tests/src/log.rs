//! A worker's log, and what must hold of the log of any worker.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde_json::Value;

/// Modules that work for one tenant at a time: each of their lines must say for which.
const TENANT_MODULES: [&str; 2] = ["balance_sync_fleet::pipeline", "balance_sync_store"];
/// Speaks of a Postgres server that many tenants share.
const SERVER_MODULE: &str = "balance_sync_store::budget";
/// Lines shown when a test fails.
const SHOWN: usize = 60;

/// One line, as JSON.
#[derive(Debug, Clone)]
pub struct Line {
    /// `ERROR`, `WARN`, …
    pub level: String,
    /// The message, without its values.
    pub message: String,
    /// The module that wrote it.
    pub target: String,
    /// Of which tenant it speaks, in its own fields or in its span's.
    pub tenant_id: Option<String>,
    /// All of it.
    pub fields: Value,
    /// As it was written.
    pub raw: String,
}

impl Line {
    fn parse(raw: &str) -> Option<Self> {
        let fields: Value = serde_json::from_str(raw).ok()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Self {
            level: text(&fields["level"])?,
            message: text(&fields["message"]).unwrap_or_default(),
            target: text(&fields["target"])?,
            tenant_id: text(&fields["tenant_id"]).or_else(|| text(&fields["span"]["tenant_id"])),
            raw: raw.to_owned(),
            fields,
        })
    }
}

/// What a process writes, read as it comes.
#[derive(Debug, Default, Clone)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Reads this stream to its end, in a thread of its own.
    pub fn follow(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let log = self.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stream);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                log.lock().push(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
        })
    }

    /// The lines so far, as they were written.
    pub fn raw(&self) -> Vec<String> {
        self.lock().clone()
    }

    /// The lines so far that are JSON.
    pub fn lines(&self) -> Vec<Line> {
        self.lock().iter().filter_map(|raw| Line::parse(raw)).collect()
    }

    /// The first line with this message.
    pub fn find(&self, message: &str) -> Option<Line> {
        self.lock()
            .iter()
            .filter(|raw| raw.contains(message))
            .find_map(|raw| Line::parse(raw).filter(|line| line.message == message))
    }

    /// What is wrong with the log of a worker that logs JSON: lines that are no JSON (a panic, for one), lines without the
    /// worker's name, lines of a tenant's collector without the tenant's id, ERROR lines that hold none of the expected texts, secrets.
    pub fn faults(&self, expected_errors: &[String], secrets: &[String]) -> Vec<String> {
        let mut faults = Vec::new();
        for raw in self.lock().iter() {
            if secrets.iter().any(|secret| raw.contains(secret.as_str())) {
                faults.push(format!("a secret is in the log: {raw}"));
            }
            let Some(line) = Line::parse(raw) else {
                faults.push(format!("not a line of JSON: {raw}"));
                continue;
            };
            if line.fields["worker"].as_str().is_none_or(str::is_empty) {
                faults.push(format!("a line without its worker's name: {raw}"));
            }
            if line.level == "ERROR" && !expected_errors.iter().any(|expected| raw.contains(expected)) {
                faults.push(format!("unexpected error: {raw}"));
            }
            let of_tenant = TENANT_MODULES
                .iter()
                .any(|module| line.target == *module || line.target.starts_with(&format!("{module}::")));
            if of_tenant && line.tenant_id.is_none() && !line.target.starts_with(SERVER_MODULE) {
                faults.push(format!("a tenant's line without tenant_id: {raw}"));
            }
        }
        faults
    }

    /// The last lines, for whoever has to find out why a test failed; without those of the drivers below INFO, which would be
    /// all of them.
    pub fn tail(&self) -> String {
        let lines = self.lock();
        let own: Vec<&String> = lines.iter().filter(|raw| !is_driver_detail(raw)).collect();
        let mut text = String::new();
        for line in &own[own.len().saturating_sub(SHOWN)..] {
            // Writing into a String can't fail.
            let _ = writeln!(text, "  {line}");
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_driver_detail(raw: &str) -> bool {
    Line::parse(raw).is_some_and(|line| {
        !line.target.starts_with("balance_sync") && matches!(line.level.as_str(), "DEBUG" | "TRACE")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_those_of_the_worker() {
        let log = Log::default();
        let ours = r#"{"level":"DEBUG","message":"flushed","target":"balance_sync_fleet::pipeline"}"#;
        let warning = r#"{"level":"WARN","message":"odd","target":"hyper_util::client"}"#;
        let detail = r#"{"level":"DEBUG","message":"reuse idle connection","target":"hyper_util::client"}"#;
        let mut lines = vec![ours, warning, "a panic"];
        lines.extend([detail; SHOWN]);
        log.lock().extend(lines.into_iter().map(str::to_owned));
        assert_eq!(log.tail(), format!("  {ours}\n  {warning}\n  a panic\n"));
    }

    #[test]
    fn every_kind_of_fault_is_found_and_a_good_log_has_none() {
        let good = r#"{"worker":"w","level":"INFO","message":"flushed","target":"balance_sync_fleet::pipeline","span":{"tenant_id":"a"}}"#;
        let listed = r#"{"worker":"w","level":"ERROR","message":"refused","target":"x","reason":"an id"}"#;
        let bad = [
            r#"{"worker":"w","level":"INFO","message":"flushed","target":"balance_sync_fleet::pipeline"}"#,
            r#"{"worker":"w","level":"ERROR","message":"broken","target":"x"}"#,
            "thread panicked",
            r#"{"level":"INFO","message":"flushed","target":"x"}"#,
            r#"{"worker":"w","level":"INFO","message":"the password is hunter2","target":"x"}"#,
        ];
        let log = Log::default();
        log.lock().extend([good, listed].map(str::to_owned));
        let (expected, secrets) = (["refused".to_owned()], ["hunter2".to_owned()]);
        assert_eq!(log.faults(&expected, &secrets), Vec::<String>::new());
        log.lock().extend(bad.map(str::to_owned));
        assert_eq!(log.faults(&expected, &secrets).len(), bad.len());
        assert_eq!(log.find("flushed").and_then(|line| line.tenant_id).as_deref(), Some("a"));
    }
}
