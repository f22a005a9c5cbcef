//! What could not be synced, and what is done about it: list, show, retry, drop, one by one or in bulk.

use std::collections::{BTreeMap, HashSet};

use actix_web::{HttpRequest, HttpResponse, web};
use balance_sync_domain::{QuarantineReason, Reported};
use balance_sync_schedule::{Loss, Retried, quarantine::QuarantineEntry};
use balance_sync_tenants::Tenant;
use balance_sync_view::{
    actions::{Action, ActionOutcome},
    inspector::Quarantined,
    rows::at,
};
use serde::{Deserialize, Serialize};

use super::{
    Answer, State, actions::note, auth::Who, body, fleet::no_tenant, params::Params, problem::Problem,
};

/// Members in one request at most.
const MOST_MEMBERS: usize = 1000;

/// One entry. Without the right to see amounts, words that may quote the value are left out as well.
#[derive(Debug, Serialize)]
struct Entry {
    tenant: String,
    member: String,
    reason: Reported<QuarantineReason>,
    detail: Option<String>,
    first_at: String,
    last_at: String,
    count: u64,
    truncated: bool,
    has_value: bool,
    loss: Option<Lost>,
}

/// What is known of a lost mutation.
#[derive(Debug, Serialize)]
struct Lost {
    confirmed: bool,
    version: Option<i64>,
    row_version: Option<i64>,
    available: Option<String>,
    on_hold: Option<String>,
    overdraft_used: Option<String>,
    in_doubt: bool,
    forked: bool,
    row_available: Option<String>,
    row_on_hold: Option<String>,
    row_overdraft_used: Option<String>,
    later_at: Option<String>,
}

impl Lost {
    fn of(loss: &Loss, who: &Who) -> Self {
        let amount = |amount: &Option<String>| amount.clone().filter(|_| !who.amounts_hidden());
        Self {
            confirmed: loss.confirmed,
            version: loss.version,
            row_version: loss.row_version,
            available: amount(&loss.available),
            on_hold: amount(&loss.on_hold),
            overdraft_used: amount(&loss.overdraft_used),
            in_doubt: loss.in_doubt,
            forked: loss.forked,
            row_available: amount(&loss.row_available),
            row_on_hold: amount(&loss.row_on_hold),
            row_overdraft_used: amount(&loss.row_overdraft_used),
            later_at: loss.later_at.as_ref().map(|time| at(time.parse().unwrap_or_default())),
        }
    }
}

#[derive(Debug, Serialize)]
struct Page {
    total: usize,
    by_reason: BTreeMap<String, usize>,
    page: usize,
    per_page: usize,
    entries: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct One {
    #[serde(flatten)]
    entry: Entry,
    value: Option<String>,
    amounts_hidden: bool,
}

/// Which entries are meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    members: Option<Vec<String>>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    note: Option<String>,
}

#[derive(Debug, Serialize)]
struct Changed {
    action_id: String,
    done: u64,
    absent: u64,
    listed: u64,
}

fn shown(tenant: &Tenant, member: &[u8], entry: &QuarantineEntry, has_value: bool, who: &Who) -> Entry {
    let time = |text: &str| at(text.parse().unwrap_or_default());
    let quotes = entry.reason.may_quote();
    Entry {
        tenant: tenant.label().to_owned(),
        member: String::from_utf8_lossy(member).into_owned(),
        reason: entry.reason.clone(),
        detail: (!(quotes && who.amounts_hidden())).then(|| entry.detail.clone()),
        first_at: time(&entry.first_at),
        last_at: time(&entry.last_at),
        count: entry.count,
        truncated: entry.truncated,
        has_value,
        loss: entry.loss.as_ref().map(|loss| Lost::of(loss, who)),
    }
}

/// The tenants that may have something in quarantine: the one that is named, or those that are known to.
async fn tenants(state: &State, named: Option<&str>) -> Result<Vec<Tenant>, Problem> {
    match named {
        Some(id) => state.reader.tenant(id).await.map(|tenant| vec![tenant]).ok_or_else(|| no_tenant(id)),
        None => Ok(state.reader.with_quarantine().await),
    }
}

/// `GET /api/v1/quarantine`.
pub(super) async fn list(state: State, who: Who, request: HttpRequest) -> Answer {
    let params = Params::read(&request, &["tenant", "reason", "text", "page", "per_page"])?;
    let (page, per_page) = params.paging()?;
    let tenants = tenants(&state, params.get("tenant")).await?;
    let mut found = state.inspector.quarantined(&tenants).await.map_err(Problem::from)?;
    if let Some(text) = params.get("text") {
        let text = text.to_lowercase();
        found.retain(|quarantined| has_text(quarantined, &text, &who));
    }
    let mut by_reason: BTreeMap<String, usize> = BTreeMap::new();
    for quarantined in &found {
        *by_reason.entry(quarantined.entry.reason.to_string()).or_default() += 1;
    }
    if let Some(reason) = params.get("reason") {
        found.retain(|quarantined| quarantined.entry.reason.as_str() == reason);
    }
    // The last first: that is what is asked about.
    let last = |quarantined: &Quarantined| quarantined.entry.last_at.parse::<f64>().unwrap_or_default();
    found.sort_by(|a, b| {
        last(b).total_cmp(&last(a)).then_with(|| (&a.tenant, &a.member).cmp(&(&b.tenant, &b.member)))
    });
    let total = found.len();
    let entries = found
        .iter()
        .skip((page - 1).saturating_mul(per_page))
        .take(per_page)
        .map(|quarantined| {
            let Quarantined { tenant, member, entry, has_value } = quarantined;
            shown(tenant, member, entry, *has_value, &who)
        })
        .collect();
    Ok(HttpResponse::Ok().json(Page { total, by_reason, page, per_page, entries }))
}

/// Whether an entry has this text, in lower case, where `who` may see it: in its member, alias included, reason or detail.
fn has_text(quarantined: &Quarantined, text: &str, who: &Who) -> bool {
    let Quarantined { tenant, member, entry, has_value } = quarantined;
    let shown = shown(tenant, member, entry, *has_value, who);
    let detail = shown.detail.unwrap_or_default();
    [shown.member.as_str(), entry.reason.as_str(), &detail]
        .iter()
        .any(|part| part.to_lowercase().contains(text))
}

/// `GET /api/v1/quarantine/entry`.
pub(super) async fn entry(state: State, who: Who, request: HttpRequest) -> Answer {
    let params = Params::read(&request, &["tenant", "member"])?;
    let needed = |name: &'static str, allowed: &str| {
        params.get(name).map(str::to_owned).ok_or_else(|| Problem::invalid(name, "", allowed))
    };
    let (id, member) = (needed("tenant", "a tenant's id")?, needed("member", "a member of its schedule")?);
    let tenant = state.reader.tenant(&id).await.ok_or_else(|| no_tenant(&id))?;
    let schedule = state.inspector.schedules(&tenant);
    let members = resolve(&state, &tenant, vec![member.clone()]).await?;
    let found = schedule.quarantine_get(&members[0]).await.map_err(Problem::from)?;
    let Some(entry) = found else {
        return Err(Problem::not_found(format!("{member:?} is not in the quarantine of {id}")));
    };
    let value = entry.value.clone();
    let amounts_hidden = who.amounts_hidden();
    Ok(HttpResponse::Ok().json(One {
        entry: shown(&tenant, &members[0], &entry, value.is_some(), &who),
        value: value.filter(|_| !amounts_hidden),
        amounts_hidden,
    }))
}

/// Members as bytes. One that isn't text is shown with replacement characters, and found again by them.
async fn resolve(state: &State, tenant: &Tenant, names: Vec<String>) -> Result<Vec<Vec<u8>>, Problem> {
    if !names.iter().any(|name| name.contains(char::REPLACEMENT_CHARACTER)) {
        return Ok(names.into_iter().map(String::into_bytes).collect());
    }
    let all = state.inspector.quarantined(std::slice::from_ref(tenant)).await.map_err(Problem::from)?;
    Ok(names
        .into_iter()
        .map(|name| {
            let same = |found: &&Quarantined| String::from_utf8_lossy(&found.member) == name.as_str();
            all.iter().find(same).map_or_else(|| name.clone().into_bytes(), |found| found.member.clone())
        })
        .collect())
}

/// `POST /api/v1/quarantine/retry`.
pub(super) async fn retry(state: State, who: Who, request: HttpRequest, payload: web::Payload) -> Answer {
    change(&state, who, &request, payload, Action::QuarantineRetry).await
}

/// `POST /api/v1/quarantine/drop`.
pub(super) async fn drop(state: State, who: Who, request: HttpRequest, payload: web::Payload) -> Answer {
    change(&state, who, &request, payload, Action::QuarantineDrop).await
}

async fn change(
    state: &State,
    who: Who,
    request: &HttpRequest,
    payload: web::Payload,
    what: Action,
) -> Answer {
    Params::read(request, &[])?;
    let chosen: Chosen = body::read(request, payload).await?;
    let note = note(chosen.note.as_deref())?;
    let (tenant, reason) = (chosen.tenant.as_deref(), chosen.reason.as_deref());
    if let Some(members) = &chosen.members {
        if tenant.is_none() {
            return Err(Problem::invalid("tenant", "", "the tenant whose members these are"));
        }
        if reason.is_some() || chosen.all {
            return Err(Problem::invalid("members", "…", "members alone, or reason and tenant, or all"));
        }
        if members.is_empty() || members.len() > MOST_MEMBERS {
            let count = members.len().to_string();
            return Err(Problem::invalid("members", &count, &format!("1 to {MOST_MEMBERS} of them")));
        }
    } else if tenant.is_none() && reason.is_none() && !chosen.all {
        return Err(Problem::invalid("all", "false", "true, or a tenant, a reason or members"));
    }
    let tenants = tenants(state, tenant).await?;
    // What is asked for is written down before it is done: if this worker dies in between, that is seen.
    let of = tenant.and_then(|_| tenants.first());
    let action_id = state.operator.own(what, of, &who.name, note).await.map_err(Problem::from)?;
    let ended = carry_out(state, &tenants, chosen.members, reason, what).await;
    let (outcome, detail) = match &ended {
        Ok((done, absent)) => (ActionOutcome::Done, summary(what, *done, *absent, reason)),
        Err(problem) => (ActionOutcome::Failed, problem.to_string()),
    };
    tracing::info!(
        tenant_id = tenant,
        action = what.as_str(),
        by = &*who.name,
        id = action_id,
        detail,
        "action of an operator"
    );
    if let Err(error) = state.operator.outcome(&action_id, &state.worker, outcome, &detail).await {
        tracing::warn!(%error, id = action_id, "outcome of an action could not be written down");
    }
    let (done, absent) = ended?;
    Ok(HttpResponse::Ok().json(Changed { action_id, done: done.done, absent, listed: done.listed }))
}

fn summary(what: Action, Retried { done, listed }: Retried, absent: u64, reason: Option<&str>) -> String {
    let word = if what == Action::QuarantineRetry { "scheduled again" } else { "forgotten" };
    let with = reason.map(|reason| format!(" with reason {reason}")).unwrap_or_default();
    let stay =
        if listed > 0 { format!(", {listed} stay listed as lost until dropped") } else { String::new() };
    let missing = if absent > 0 { format!(", {absent} were not in quarantine") } else { String::new() };
    format!("{done} balances{with} {word}{stay}{missing}")
}

/// Gives how many were done, and how many were not there.
async fn carry_out(
    state: &State,
    tenants: &[Tenant],
    members: Option<Vec<String>>,
    reason: Option<&str>,
    what: Action,
) -> Result<(Retried, u64), Problem> {
    let mut by_tenant: BTreeMap<&Tenant, Vec<Vec<u8>>> = BTreeMap::new();
    let named = members.is_some();
    match (members, tenants) {
        (Some(names), [tenant, ..]) => {
            // Each once, so that the numbers are right.
            let names: HashSet<String> = names.into_iter().collect();
            by_tenant.insert(tenant, resolve(state, tenant, names.into_iter().collect()).await?);
        }
        _ => {
            for tenant in tenants {
                let found =
                    state.inspector.quarantined(std::slice::from_ref(tenant)).await.map_err(Problem::from)?;
                let fits =
                    found.into_iter().filter(|found| reason.is_none_or(|r| found.entry.reason.as_str() == r));
                by_tenant.insert(tenant, fits.map(|found| found.member).collect());
            }
        }
    }
    let (mut done, mut wanted) = (Retried::default(), 0);
    for (tenant, members) in by_tenant {
        let schedule = state.inspector.schedules(tenant);
        let members: Vec<&[u8]> = members.iter().map(Vec::as_slice).collect();
        wanted += members.len() as u64;
        done += match what {
            Action::QuarantineRetry => schedule.quarantine_retry(&members).await,
            _ => schedule.quarantine_drop(&members).await.map(|done| Retried { done, listed: 0 }),
        }
        .map_err(Problem::from)?;
    }
    // In bulk, one that went meanwhile was settled by a worker.
    Ok((done, if named { wanted.saturating_sub(done.done) } else { 0 }))
}
