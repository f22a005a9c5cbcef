//! `handover`: all of a tenant written, the tenant paused and audited, and a signed statement of its rows.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    path::Path,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use balance_sync_domain::printable;
use balance_sync_schedule::{Link, Schedules, Vanished};
use balance_sync_store::FURTHER;
use balance_sync_tenants::Tenant;
use balance_sync_view::{
    actions::{Action, ActionOutcome},
    reader::FleetReader,
};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::{actions, audit::RECHECK};
use crate::{
    EXIT_OK,
    args::{HandoverArgs, HandoverCommand, HandoverVerifyArgs},
    audit::{Auditor, Cursor, Finding, Options, Summary},
    config::Config,
    handover::{
        Changes, Digest, Digester, FORMAT, Found, Listed, PublicKey, SigningKey, Source, Statement, keygen,
    },
    program::interrupted,
    terminal::{self, BAD, GOOD, WARN, count, styled},
    wiring,
};

/// Refused, or signed with findings; or rows differ.
const EXIT_DIFFERENT: u8 = 1;
/// Findings, and quarantined balances, that a statement lists.
const MAX_LISTED: usize = 1000;
/// How often the schedule is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often it is reported what is still scheduled.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// What has been scheduled for no longer is in time.
const IN_FLIGHT: f64 = 10.0;

/// The command.
///
/// # Errors
/// When the command or the configuration is wrong, or something can't be read or written.
pub(crate) async fn handover(file: Option<&Path>, args: HandoverArgs) -> anyhow::Result<u8> {
    match &args.command {
        None => make(file, &args).await,
        Some(HandoverCommand::Keygen { file }) => {
            let public_file = keygen(file)?;
            terminal::print(&format!(
                "private key  {}\npublic key   {}\n",
                file.display(),
                public_file.display()
            ))?;
            Ok(EXIT_OK)
        }
        Some(HandoverCommand::Verify(args)) => verify(file, args).await,
    }
}

/// Why nothing is signed.
struct Refusal(String);

/// Either it goes on, or it is refused.
type Step<T> = anyhow::Result<Result<T, Refusal>>;

macro_rules! step {
    ($step:expr) => {
        match $step {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}

async fn make(file: Option<&Path>, args: &HandoverArgs) -> anyhow::Result<u8> {
    let (Some(tenant), Some(key), Some(out)) = (&args.tenant, &args.key, &args.out) else {
        bail!("--tenant, --key and --out are needed");
    };
    let Some(note) = actions::note(args.note.as_deref())? else {
        bail!("--note is empty; a handover needs a reason for the log of actions");
    };
    // What would fail in the end fails before the tenant is paused.
    let key = SigningKey::read(key)?;
    if out.exists() {
        bail!("--out: {} exists", out.display());
    }
    let config = super::load_config(file)?;
    let directory = wiring::directory(&config)?;
    let tenant = super::chosen_tenants(directory.as_ref(), std::slice::from_ref(tenant))
        .await?
        .pop()
        .context("no such tenant")?;
    let link = Link::new(&config.redis.link)?;
    let options = std::sync::Arc::new(wiring::schedule_options(&config));
    let schedules = Schedules::new(&link, tenant.key_spaces(config.tenants.key_form), &options);
    let incidents = Vanished::new(link, "handover");
    let making = Making { args, note, config: &config, tenant: &tenant, schedules, incidents };
    let made = tokio::select! {
        made = making.statement() => made?,
        signal = interrupted() => bail!("{}: nothing was signed; if the tenant was paused it still is", signal?),
    };
    match made {
        Err(Refusal(why)) if args.json => {
            terminal::print(&format!(
                "{}\n",
                json!({ "tenant": tenant.label(), "signed": false, "refused": why })
            ))?;
            Ok(EXIT_DIFFERENT)
        }
        Err(Refusal(why)) => {
            eprintln!("balance-sync: {}: nothing was signed: {why}", styled(BAD, "refused"));
            Ok(EXIT_DIFFERENT)
        }
        Ok(statement) => {
            let (truth, rows) = (statement.truth, statement.digest.rows);
            let root = statement.digest.merkle_root.clone();
            let findings = statement.findings_total + statement.quarantined_total;
            let action = statement.pause_action.clone();
            let text = statement.sign(&key)?;
            Statement::write(out, &text)?;
            if args.json {
                let signed = json!({
                    "tenant": tenant.label(), "signed": true, "truth": truth, "rows": rows, "merkle_root": root,
                    "findings": findings, "pause_action": action, "file": out.display().to_string(), "bytes": text.len(),
                });
                terminal::print(&format!("{signed}\n"))?;
                return Ok(if truth { EXIT_OK } else { EXIT_DIFFERENT });
            }
            let result = if truth {
                styled(GOOD, "signed: the rows are the truth")
            } else {
                styled(WARN, format_args!("signed with {} findings", count(findings)))
            };
            terminal::print(&format!(
                "handover {tenant}: {} rows, root {root}: {result}\n{} ({}); the tenant stays paused until `balance-sync tenants resume {tenant}`\n",
                count(rows),
                out.display(),
                terminal::bytes(text.len() as u64),
            ))?;
            Ok(if truth { EXIT_OK } else { EXIT_DIFFERENT })
        }
    }
}

/// What a statement is made with.
struct Making<'a> {
    args: &'a HandoverArgs,
    note: &'a str,
    config: &'a Config,
    tenant: &'a Tenant,
    schedules: Schedules,
    incidents: Vanished,
}

/// What the audit has found.
struct Audit {
    summary: Summary,
    findings: Vec<Found>,
    digest: Digest,
}

impl Making<'_> {
    async fn statement(&self) -> Step<Statement> {
        // What can be known before the tenant is paused is said before.
        let auditor = Auditor::new(self.config, "handover", self.options(), Cursor::default())?;
        let blind =
            auditor.preflight(self.tenant).await.context("nothing was signed, the tenant was not paused")?;
        if let (Some(why), false) = (blind, self.args.with_findings) {
            return Ok(Err(Refusal(format!(
                "the ledger's operations can't be read: {why}. The tenant was not paused; --with-findings signs what two witnesses say"
            ))));
        }
        let reader = wiring::reader(self.config)?;
        step!(self.drain(&reader).await?);
        let action = step!(self.pause(&reader).await?);
        if let Some(scheduled) = self.scheduled().await? {
            return Ok(Err(Refusal(format!(
                "a mutation came while the tenant was being paused ({scheduled}). Stop the ledger's postings to it, resume it and \
                 try again"
            ))));
        }
        let audit = self.audit().await?;
        let (quarantined_total, quarantined) = self.quarantined().await?;
        let Audit { summary, findings, digest } = audit;
        if let Some(failed) = summary.failed.first() {
            bail!("the audit failed, nothing was signed: {}", failed.text);
        }
        let counted = &summary.counted;
        let mut notices: Vec<String> = summary.notices.iter().map(|notice| notice.text.clone()).collect();
        let incident = self.incident().await?;
        let has_incident = incident.is_some();
        let truth = is_truth(counted.findings, quarantined_total, summary.witnesses, incident.as_deref());
        notices.extend(incident);
        if !truth && !self.args.with_findings {
            return Ok(Err(Refusal(open_findings(
                &findings,
                counted.findings,
                &quarantined,
                quarantined_total,
                &notices,
            ))));
        }
        let source = Source::of_tenant(self.config, self.tenant, self.args.postgres_rate).await?;
        let outcome = self.look_again(&source, &digest).await;
        source.close().await;
        let made_at = step!(outcome?);
        if !self.is_still_paused_by(&action).await? {
            return Ok(Err(Refusal("the tenant was resumed during the audit".to_owned())));
        }
        if self.incident().await?.is_some() != has_incident
            || self.quarantined().await?.0 != quarantined_total
        {
            return Ok(Err(Refusal(
                "balances were quarantined, lost or dropped during the audit: try again".to_owned(),
            )));
        }
        let claim = if truth {
            "Redis, the rows and the ledger's operations agree: at this moment the rows are the truth."
        } else {
            "The rows are as the digest says. They are not stated to be the truth: see findings, quarantined and notices."
        };
        Ok(Ok(Statement {
            format: FORMAT.to_owned(),
            tenant: self.tenant.label().to_owned(),
            made_at,
            made_by: actions::who(),
            note: self.note.to_owned(),
            pause_action: action,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            truth,
            claim: claim.to_owned(),
            witnesses: summary.witnesses,
            values: counted.values,
            classes: counted.classes.iter().map(|(class, n)| (class.to_string(), *n)).collect(),
            findings_total: counted.findings,
            findings,
            quarantined_total,
            quarantined,
            notices,
            digest,
            public_key: String::new(),
        }))
    }

    /// What Redis has lost of the tenant, as long as that is open: its values are no witness then.
    async fn incident(&self) -> anyhow::Result<Option<String>> {
        let open = self.incidents.open().await?;
        Ok(open.into_iter().find(|(tenant, _)| tenant == self.tenant.label()).map(|(_, record)| {
            let record: serde_json::Value = serde_json::from_str(&record).unwrap_or_default();
            let field = |name: &str| crate::audit::shown(record[name].as_str().unwrap_or("unknown"));
            format!(
                "Redis has lost data of the tenant ({}: {}), which is not settled yet: see `balance-sync tenants show {}`",
                field("reason"),
                field("detail"),
                self.tenant
            )
        }))
    }

    /// What is scheduled or claimed, in words.
    async fn scheduled(&self) -> anyhow::Result<Option<String>> {
        let backlog = self.schedules.backlog().await?;
        Ok((backlog.due + backlog.leased > 0)
            .then(|| format!("{} due, {} claimed or put off", count(backlog.due), count(backlog.leased))))
    }

    /// Waits until all is written. A paused tenant writes nothing, so this comes before the pause.
    async fn drain(&self, reader: &FleetReader) -> Step<()> {
        let (begin, limit) = (Instant::now(), crate::args::seconds(self.args.drain));
        let mut reported: Option<Instant> = None;
        while let Some(scheduled) = self.scheduled().await? {
            let view = reader.view().await;
            if view.find(self.tenant.label()).is_some_and(|(row, _)| row.paused.is_some()) {
                return Ok(Err(Refusal(format!(
                    "the tenant is paused, and not all is written ({scheduled}): resume it and try again"
                ))));
            }
            if begin.elapsed() >= limit {
                return Ok(Err(Refusal(format!(
                    "not all was written within {:.0} s ({scheduled}); the tenant was not paused. Stop the ledger's postings to it, \
                     and see `balance-sync tenants show {}`",
                    limit.as_secs_f64(),
                    self.tenant
                ))));
            }
            if reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
                eprintln!("drain: {scheduled}, {:.0} s", begin.elapsed().as_secs_f64());
                reported = Some(Instant::now());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Ok(()))
    }

    /// Pauses the tenant on all workers that serve it; gives the id of the action.
    async fn pause(&self, reader: &FleetReader) -> Step<String> {
        let view = reader.view().await;
        let owners = view.find(self.tenant.label()).map(|(row, _)| row.owners.clone()).unwrap_or_default();
        let operator = wiring::operator(self.config)?;
        let id = operator.tenant(Action::Pause, self.tenant, &actions::who(), Some(self.note)).await?;
        let outcomes = actions::outcomes(&operator, &id, &owners, self.args.drain).await?;
        let missing: Vec<&str> = owners
            .iter()
            .filter(|name| {
                let done = |outcome: &ActionOutcome| *outcome == ActionOutcome::Done;
                !outcomes.iter().any(|outcome| outcome.worker == **name && done(&outcome.outcome))
            })
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            return Ok(Err(Refusal(format!(
                "these workers have not paused the tenant (action {id}): {}",
                missing.join(", ")
            ))));
        }
        eprintln!("paused: action {id}");
        Ok(Ok(id))
    }

    /// Whether no later action has paused or resumed it.
    async fn is_still_paused_by(&self, action: &str) -> anyhow::Result<bool> {
        const LATEST: usize = 1000;
        let operator = wiring::operator(self.config)?;
        let (_, latest) = operator.actions(Some(self.tenant.label()), 1, LATEST).await?;
        let decisive = |what: &str| what == Action::Pause.as_str() || what == Action::Resume.as_str();
        Ok(latest.iter().find(|one| decisive(&one.what)).is_some_and(|newest| newest.id == action))
    }

    fn options(&self) -> Options {
        Options {
            trail: true,
            in_flight: IN_FLIGHT,
            recheck: RECHECK,
            since: None,
            sample: None,
            postgres_rate: self.args.postgres_rate,
            redis_rate: self.args.redis_rate,
        }
    }

    async fn audit(&self) -> anyhow::Result<Audit> {
        // The rows that are stated are those that are judged.
        let digester = Rc::new(RefCell::new(Digester::new()));
        let own = Rc::clone(&digester);
        let auditor = Auditor::new(self.config, "handover", self.options(), Cursor::default())?.observed_by(
            Box::new(move |rows, further| {
                let mut digester = own.borrow_mut();
                digester.with_further(further);
                rows.iter().for_each(|row| digester.add(row));
            }),
        );
        let findings = RefCell::new(Vec::new());
        let total = Cell::new(0);
        let report = |finding: Finding| {
            total.set(total.get() + 1);
            if findings.borrow().len() < MAX_LISTED {
                findings.borrow_mut().push(Found {
                    member: finding.name(),
                    id: finding.id,
                    class: finding.judgement.class.to_string(),
                    version: finding.judgement.version,
                    advice: finding.judgement.advice(finding.listed).sentence().to_owned(),
                });
            }
        };
        let mut summary = auditor.run(&[self.tenant.label().to_owned()], &report).await?;
        summary.counted.findings = summary.counted.findings.max(total.get());
        let digest = digester.borrow().finish();
        Ok(Audit { summary, findings: findings.into_inner(), digest })
    }

    async fn quarantined(&self) -> anyhow::Result<(u64, Vec<Listed>)> {
        let (mut total, mut listed) = (0, Vec::new());
        self.schedules
            .quarantine_each(|member, entry| {
                total += 1;
                if listed.len() < MAX_LISTED {
                    listed.push(Listed {
                        member: crate::audit::shown(&String::from_utf8_lossy(&member)),
                        reason: crate::audit::shown(&entry.reason.to_string()),
                    });
                }
            })
            .await?;
        listed.sort_by(|a, b| a.member.cmp(&b.member));
        Ok((total, listed))
    }

    /// Whether the rows are still those that were judged; gives the moment for which that holds.
    ///
    /// Pausing stops the workers, not the ledger's own. Any program that writes a row does so before it takes the member out of the schedule. So
    /// after the schedule was seen to be empty, all rows are counted in one statement: a row that was written behind the reader shows
    /// by its version.
    async fn look_again(&self, source: &Source, judged: &Digest) -> Step<String> {
        let moved =
            "rows moved during the audit, although the tenant is paused: find out who else writes them";
        if source.digest(&judged.further).await? != *judged {
            return Ok(Err(Refusal(moved.to_owned())));
        }
        // What comes later is not part of it.
        let made_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        if let Some(scheduled) = self.scheduled().await? {
            return Ok(Err(Refusal(format!(
                "a mutation came during the audit ({scheduled}). Stop the ledger's postings to it, resume it and try again"
            ))));
        }
        let (rows, sum) = source.totals().await?;
        if rows != judged.rows || sum.to_string() != judged.sum_of_versions {
            return Ok(Err(Refusal(moved.to_owned())));
        }
        Ok(Ok(made_at))
    }
}

/// Whether the rows are the truth: all three witnesses were asked, none contradicts, and nothing is open.
fn is_truth(findings: u64, quarantined: u64, witnesses: u8, incident: Option<&str>) -> bool {
    findings == 0 && quarantined == 0 && witnesses == 3 && incident.is_none()
}

fn open_findings(
    findings: &[Found],
    total: u64,
    quarantined: &[Listed],
    quarantined_total: u64,
    notices: &[String],
) -> String {
    const SHOWN: usize = 10;
    let mut text = format!(
        "{} findings and {} quarantined or lost balances are open; --with-findings signs a statement that lists them, and the tenant \
         stays paused",
        count(total),
        count(quarantined_total)
    );
    for found in findings.iter().take(SHOWN) {
        let _ = write!(text, "\n  {}  {}  {}", found.class, printable(&found.member), found.advice);
    }
    for listed in quarantined.iter().take(SHOWN) {
        let _ = write!(text, "\n  quarantined: {}  {}", listed.reason, printable(&listed.member));
    }
    for notice in notices {
        let _ = write!(text, "\n  {}", printable(notice));
    }
    text
}

async fn verify(file: Option<&Path>, args: &HandoverVerifyArgs) -> anyhow::Result<u8> {
    let statement = Statement::read(&args.file, PublicKey::read(&args.public_key)?)?;
    let different = if args.signature_only {
        None
    } else {
        let source = match &args.database_url {
            Some(url) => Source::of_url(url, args.schema.as_deref(), args.postgres_rate)?,
            None => {
                let config = super::load_config(file)?;
                let directory = wiring::directory(&config)?;
                let only = [statement.tenant.clone()];
                let tenant = super::chosen_tenants(directory.as_ref(), &only).await?.pop();
                Source::of_tenant(&config, &tenant.context("no such tenant")?, args.postgres_rate).await?
            }
        };
        let different = compare(&source, &statement.digest, args.show).await;
        source.close().await;
        Some(different?)
    };
    let text = if args.json {
        let same = different.as_ref().map(Option::is_none);
        format!(
            "{}\n",
            json!({
                "valid_signature": true, "tenant": statement.tenant, "made_at": statement.made_at, "made_by": statement.made_by,
                "truth": statement.truth, "rows": statement.digest.rows, "merkle_root": statement.digest.merkle_root,
                "same_rows": same, "different": different.iter().flatten().next(),
            })
        )
    } else {
        words(&statement, different.as_ref())
    };
    terminal::print(&text)?;
    Ok(if matches!(different, Some(Some(_))) { EXIT_DIFFERENT } else { EXIT_OK })
}

/// A verification for people.
fn words(statement: &Statement, different: Option<&Option<Different>>) -> String {
    let mut text = format!(
        "{}: {} of tenant {}, made {} by {} ({})\n",
        styled(GOOD, "valid signature"),
        count(statement.digest.rows) + " rows",
        printable(&statement.tenant),
        printable(&statement.made_at),
        printable(&statement.made_by),
        printable(&statement.note)
    );
    if !statement.truth {
        let _ = writeln!(
            text,
            "{}: {} findings, {} quarantined or lost balances; {}",
            styled(WARN, "not stated as the truth"),
            count(statement.findings_total),
            count(statement.quarantined_total),
            printable(&statement.notices.join("; "))
        );
    }
    let left_out: Vec<&str> = FURTHER
        .into_iter()
        .filter(|column| !statement.digest.further.iter().any(|own| own == column))
        .collect();
    if !left_out.is_empty() && statement.digest.rows > 0 {
        let _ = writeln!(text, "the statement doesn't cover the columns {}", left_out.join(", "));
    }
    let different = match different {
        None => return text,
        Some(None) => {
            let _ = writeln!(text, "{}", styled(GOOD, "the rows are those of the statement"));
            return text;
        }
        Some(Some(different)) => different,
    };
    let _ = writeln!(
        text,
        "{}: {} rows, the statement has {}; root {}, the statement has {}; {} groups of rows differ",
        styled(BAD, "rows differ"),
        count(different.rows),
        count(statement.digest.rows),
        different.merkle_root,
        statement.digest.merkle_root,
        different.groups
    );
    for named in &different.named {
        let _ = writeln!(text, "  {}  {}", named.id, printable(named.what));
    }
    if different.more > 0 {
        let _ = writeln!(text, "  … and {} more; --show names them", different.more);
    }
    text
}

/// The rows that are there, where they are not those of a statement.
#[derive(Serialize)]
struct Different {
    rows: u64,
    merkle_root: String,
    groups: usize,
    named: Vec<Named>,
    /// So many more could be named.
    more: usize,
}

#[derive(Serialize)]
struct Named {
    id: Uuid,
    what: &'static str,
}

/// Which rows differ, if any do.
async fn compare(source: &Source, signed: &Digest, show: usize) -> anyhow::Result<Option<Different>> {
    let present = source.digest(&signed.further).await?;
    let Some(changes) = Changes::between(signed, &present) else { return Ok(None) };
    let (mut named, mut more) = (Vec::new(), 0);
    let mut name = |id, what| {
        if named.len() < show { named.push(Named { id, what }) } else { more += 1 }
    };
    changes.removed().into_iter().for_each(|id| name(id, "removed"));
    source
        .each_row(&signed.further, |row| {
            if changes.may_be(row.id) {
                name(row.id, changes.describe(row.id));
            }
        })
        .await?;
    Ok(Some(Different {
        rows: present.rows,
        groups: changes.groups(),
        merkle_root: present.merkle_root,
        named,
        more,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_that_is_open_or_not_asked_keeps_the_rows_from_being_the_truth() {
        assert!(is_truth(0, 0, 3, None));
        for (findings, quarantined, witnesses, incident) in
            [(1, 0, 3, None), (0, 1, 3, None), (0, 0, 2, None), (0, 0, 3, Some("Redis has lost data"))]
        {
            assert!(!is_truth(findings, quarantined, witnesses, incident));
        }
    }
}
