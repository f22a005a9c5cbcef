//! `audit`: Redis, the rows and the ledger's trail, balance by balance.

use std::{
    cell::Cell,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use balance_sync_domain::printable;
use balance_sync_engine::audit::Class;
use serde_json::json;

use crate::{
    EXIT_OK,
    args::AuditArgs,
    audit::{Auditor, Cursor, Finding, Options, Summary},
    program::interrupted,
    terminal::{self, BAD, GOOD, WARN, count, styled},
};

/// Something is wrong with some balances.
const EXIT_FOUND: u8 = 1;
/// Not all could be determined.
const EXIT_UNKNOWN: u8 = 2;
/// Between two looks at a balance that is suspected.
pub(crate) const RECHECK: Duration = Duration::from_millis(300);
/// Between two writes of the file that it can be continued from.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Audits and reports.
///
/// # Errors
/// When the configuration is wrong, there is no such tenant, Redis or the tenant service can't be asked, a clock is impossible, or
/// nothing can be written to the output.
pub(crate) async fn audit(file: Option<&Path>, args: AuditArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let options = Options {
        trail: !args.without_trail,
        in_flight: args.in_flight,
        recheck: RECHECK,
        since: args.since.as_deref().map(since).transpose()?,
        sample: args.sample,
        postgres_rate: args.postgres_rate,
        redis_rate: args.redis_rate,
    };
    let cursor = args.resume.as_deref().map(read_cursor).transpose()?.unwrap_or_default();
    let auditor = Auditor::new(&config, "audit", options, cursor)?;
    let (printed, broken) = (Cell::new(0_u64), Cell::new(None));
    let report = |finding: Finding| {
        let text = match (args.json, printed.get()) {
            (true, _) => format!("{}\n", finding.json(args.hide_amounts)),
            (false, printed) if printed < args.show => finding.text(args.hide_amounts),
            (false, _) => String::new(),
        };
        printed.set(printed.get() + 1);
        if let Err(error) = terminal::print(&text) {
            broken.set(Some(error));
            auditor.stop();
        }
    };
    let running = auditor.run(&args.tenant, &report);
    tokio::pin!(running);
    let mut interrupt = Box::pin(interrupted());
    let mut is_interrupted = false;
    let summary = loop {
        tokio::select! {
            summary = &mut running => match summary {
                Ok(summary) => break summary,
                Err(error) => {
                    if let Some(file) = &args.resume {
                        write_cursor(file, &auditor.cursor())?;
                    }
                    return Err(error);
                }
            },
            signal = &mut interrupt, if !is_interrupted => {
                is_interrupted = true;
                signal?;
                auditor.stop();
            }
            () = tokio::time::sleep(SAVE_EVERY) => {
                if let Some(file) = &args.resume {
                    write_cursor(file, &auditor.cursor())?;
                }
            }
        }
    };
    if let Some(error) = broken.take() {
        return Err(error).context("writing the findings");
    }
    if let Some(file) = &args.resume {
        if summary.complete {
            // It may never have been written.
            std::fs::remove_file(file).ok();
        } else {
            write_cursor(file, &auditor.cursor())?;
        }
    }
    let text = if args.json {
        format!("{}\n", json!({ "summary": summary }))
    } else {
        render(&summary, printed.get().saturating_sub(args.show), args.resume.as_ref())
    };
    terminal::print(&text)?;
    let unknown = !summary.complete || (summary.witnesses < 3 && !args.without_trail);
    Ok(match summary.counted.findings {
        _ if unknown => EXIT_UNKNOWN,
        0 => EXIT_OK,
        _ => EXIT_FOUND,
    })
}

fn render(summary: &Summary, hidden: u64, resume: Option<&PathBuf>) -> String {
    let mut text = String::new();
    if hidden > 0 {
        let _ = writeln!(text, "… and {} more findings; --show and --json print them", count(hidden));
    }
    for notice in &summary.notices {
        let _ = writeln!(
            text,
            "{} tenant {}: {}",
            styled(WARN, "notice"),
            printable(&notice.tenant),
            printable(&notice.text)
        );
    }
    for failed in &summary.failed {
        let _ = writeln!(
            text,
            "{} tenant {} could not be audited: {}",
            styled(BAD, "failed"),
            printable(&failed.tenant),
            printable(&failed.text)
        );
    }
    for class in Class::ALL {
        if let Some(balances) = summary.counted.classes.get(&class) {
            let _ = writeln!(text, "{:>12}  {class}", count(*balances));
        }
    }
    let counted = &summary.counted;
    let style = if counted.findings == 0 { GOOD } else { BAD };
    let _ = writeln!(
        text,
        "audit: {} rows and {} values of {} tenants by {} witnesses in {:.1} s: {}",
        count(counted.rows),
        count(counted.values),
        summary.tenants,
        summary.witnesses,
        summary.seconds,
        styled(style, format_args!("{} findings", count(counted.findings))),
    );
    if !summary.complete {
        let go_on = resume.map_or_else(
            || "with --resume FILE an audit can be continued".to_owned(),
            |file| format!("--resume {} continues it", file.display()),
        );
        let _ = writeln!(text, "{}: {go_on}", styled(WARN, "not complete"));
    }
    text
}

/// Seconds since 1970 of a time, or of a duration back from now.
fn since(text: &str) -> anyhow::Result<f64> {
    let at = match humantime::parse_duration(text) {
        Ok(back) => SystemTime::now().checked_sub(back).context("--since lies too far back")?,
        Err(_) => match humantime::parse_rfc3339_weak(text) {
            Ok(at) => at,
            Err(_) => {
                bail!("--since = {text:?}; allowed: a time like 2026-11-26T08:00:00Z, or a duration like 2h")
            }
        },
    };
    Ok(at.duration_since(SystemTime::UNIX_EPOCH).context("--since lies before 1970")?.as_secs_f64())
}

fn read_cursor(file: &Path) -> anyhow::Result<Cursor> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("--resume {}: not a file that an audit wrote", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Cursor::default()),
        Err(error) => Err(error).with_context(|| format!("--resume {}", file.display())),
    }
}

/// Replaces the file as a whole, so that no half of one is ever read.
fn write_cursor(file: &Path, cursor: &Cursor) -> anyhow::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, serde_json::to_vec(cursor)?)
        .and_then(|()| std::fs::rename(&beside, file))
        .with_context(|| format!("--resume {}", file.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_time_or_a_duration_is_taken() {
        assert_eq!(since("2026-11-26T08:00:00Z").unwrap(), 1_795_680_000.0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((since("2h").unwrap() - (now - 7200.0)).abs() < 5.0);
        let refused = since("yesterday").unwrap_err().to_string();
        assert!(refused.contains("--since = \"yesterday\"") && refused.contains("allowed"), "{refused}");
    }

    #[test]
    fn a_cursor_survives_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cursor.json");
        assert_eq!(read_cursor(&file).unwrap(), Cursor::default(), "none yet");
        let mut cursor = Cursor::default();
        cursor.rows_after.insert("acme".to_owned(), uuid::Uuid::from_u128(7));
        cursor.done.push("globex".to_owned());
        cursor.counted.classes.insert(Class::Forked, 3);
        write_cursor(&file, &cursor).unwrap();
        assert_eq!(read_cursor(&file).unwrap(), cursor);
        std::fs::write(&file, "{}x").unwrap();
        assert!(read_cursor(&file).unwrap_err().to_string().contains("not a file that an audit wrote"));
    }
}
