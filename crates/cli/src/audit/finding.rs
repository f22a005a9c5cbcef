//! What is reported of one balance.

use balance_sync_domain::{printable, without_numbers};
use balance_sync_engine::audit::{Judgement, Known, Scheduled, Trail, Value, Witnesses};
use serde_json::{Value as Json, json};
use uuid::Uuid;

/// Characters of foreign text that are shown.
const SHOWN: usize = 400;

/// A balance with which something is wrong.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    /// The tenant's id.
    pub tenant: String,
    /// The balance's key in Redis, which is also its member of the schedule.
    pub member: Vec<u8>,
    /// The id of its row, or of its value where there is no row.
    pub id: Option<Uuid>,
    /// Organization and ledger of its row.
    pub ledger: Option<(Uuid, Uuid)>,
    /// What is wrong.
    pub judgement: Judgement,
    /// By what.
    pub witnesses: Witnesses,
    /// Whether it stands in the list of quarantined and lost balances already.
    pub listed: bool,
}

impl Finding {
    /// The member, for people: control characters are escaped, and what is very long is cut.
    pub(crate) fn name(&self) -> String {
        shown(&String::from_utf8_lossy(&self.member))
    }

    /// Which witness knows what can be restored, if that can be.
    pub(crate) fn witness(&self) -> Option<&'static str> {
        let known = self.witnesses.recoverable()?;
        let is_record = self.witnesses.record.as_ref() == Some(known);
        Some(if is_record { "recover record" } else { "newest operation" })
    }

    /// What stands in the way of reading it; without numbers if amounts are to be hidden, as it may quote some.
    fn detail(&self, hide_amounts: bool) -> Option<String> {
        match &self.witnesses.value {
            Value::Unreadable(why) if hide_amounts => Some(shown(&without_numbers(why))),
            Value::Unreadable(why) => Some(shown(why)),
            Value::Absent | Value::Present(_) => None,
        }
    }

    /// One object; without amounts if they are to be hidden.
    pub(crate) fn json(&self, hide_amounts: bool) -> Json {
        let known = |known: &Known| {
            let mut json = json!(known);
            if hide_amounts {
                json = json!({ "version": known.version });
            }
            json
        };
        let Witnesses { value, row, trail, record, scheduled, .. } = &self.witnesses;
        let mut operation = Json::Null;
        if let Trail::Newest(newest) = trail {
            operation = known(&newest.known);
            operation["in_doubt"] = json!(newest.in_doubt);
            operation["age_seconds"] = json!((newest.age * 1000.0).round() / 1000.0);
        }
        let mut row = row.as_ref().map_or(Json::Null, |row| {
            let mut json = known(&row.known);
            json["deleted"] = json!(row.deleted);
            json
        });
        if let (Some((organization, ledger)), false) = (self.ledger, row.is_null()) {
            row["organization"] = json!(organization);
            row["ledger"] = json!(ledger);
        }
        let (scheduled, due) = match scheduled {
            Scheduled::No => (false, None),
            Scheduled::Due(since) => (true, Some((since * 1000.0).round() / 1000.0)),
            Scheduled::Distant => (true, None),
        };
        json!({
            "tenant": self.tenant, "member": String::from_utf8_lossy(&self.member), "id": self.id,
            "class": self.judgement.class, "version": self.judgement.version,
            "advice": self.judgement.advice(self.listed).sentence(), "detail": self.detail(hide_amounts), "listed": self.listed,
            "scheduled": scheduled, "due_since_seconds": due,
            "redis": if let Value::Present(value) = value { known(value) } else { Json::Null },
            "row": row, "operation": operation,
            "record": record.as_ref().map_or(Json::Null, known),
        })
    }

    /// Some lines for people.
    pub(crate) fn text(&self, hide_amounts: bool) -> String {
        let known = |known: &Known| {
            let amounts = &known.amounts;
            if hide_amounts {
                return format!("version {}", known.version);
            }
            let overdraft = amounts.overdraft_used.as_deref().unwrap_or("?");
            format!(
                "version {} (available {}, on hold {}, overdraft {})",
                known.version,
                shown(&amounts.available),
                shown(&amounts.on_hold),
                shown(overdraft)
            )
        };
        let Witnesses { value, row, trail, record, .. } = &self.witnesses;
        let mut seen = vec![match value {
            Value::Absent => "redis: nothing".to_owned(),
            Value::Unreadable(_) => format!("redis: {}", self.detail(hide_amounts).unwrap_or_default()),
            Value::Present(value) => format!("redis: {}", known(value)),
        }];
        seen.push(match row {
            None => "row: none".to_owned(),
            Some(row) => {
                format!("row: {}{}", known(&row.known), if row.deleted { ", deleted" } else { "" })
            }
        });
        if let Trail::Newest(newest) = trail {
            let doubt = if newest.in_doubt { ", amounts in doubt" } else { "" };
            seen.push(format!("operation: {}{doubt}", known(&newest.known)));
        }
        if let Some(record) = record {
            seen.push(format!("recover record: {}", known(record)));
        }
        let listed = if self.listed { "  (listed in quarantine)" } else { "" };
        format!(
            "{}  {}  {}{listed}\n    {}\n    {}\n",
            self.judgement.class,
            shown(&self.tenant),
            self.name(),
            seen.join("; "),
            self.judgement.advice(self.listed).sentence()
        )
    }
}

/// Foreign text, for people.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", printable(&text[..end])),
        None => printable(text).into_owned(),
    }
}
