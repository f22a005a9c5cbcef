//! Entries of a balance that was written through the other key form of its tenant.
//!
//! A balance of a UUID tenant may be in two key spaces. Its quarantine entry in one of them is obsolete once the same or a later
//! version has been written through the other. Settling deletes the entries of its own form only: there the written value has
//! replaced the refused one. In the other form the versions have to show it, so an entry of unknown version stays. A loss stays
//! in any case, and is marked: the balance may have forked.

use balance_sync_domain::{BalanceValue, KeySpace};
use redis::{Cmd, Value};

use crate::{
    balances::read_values,
    claimed::Claimed,
    error::{ErrorClass, ScheduleError},
    losses::read_loss,
    quarantine::read_entry,
    reply::{bulk, int},
    schedule::Schedule,
    schedules::Schedules,
    scripts,
};

/// Members in one call.
const PAGE: usize = 500;

impl Schedules {
    /// Whether any other form has entries: one short command, sent together with the settling.
    pub(crate) async fn others_have_entries(&self, at: usize) -> bool {
        for other in self.others(at) {
            let mut cmd = redis::cmd("EXISTS");
            cmd.arg(other.space().quarantine()).arg(other.space().losses());
            let answer = other.link().send("read entries", &cmd).await;
            if answer.and_then(|found| int("read entries", &found)).unwrap_or(0) > 0 {
                return true;
            }
        }
        false
    }

    /// Deletes obsolete entries of the other forms, and marks their losses, for balances that were written through this one.
    /// Errors are only logged: the rows are written and settled, and a superfluous entry is harmless.
    pub(crate) async fn mend_others(&self, at: usize, written: &[&Claimed]) {
        let Some(own) = self.iter().nth(at) else { return };
        for other in self.others(at) {
            for page in written.chunks(PAGE) {
                if let Err(error) = other.mend(own.space(), page).await {
                    tracing::debug!(%error, "entries under the other form of the tenant's id were left as they are");
                }
            }
        }
    }

    /// What Redis holds of these members now, under every form of the tenant's id: for each the values that are there.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn current_values(&self, members: &[&Claimed]) -> Result<Vec<Vec<Vec<u8>>>, ScheduleError> {
        let mut found = vec![Vec::new(); members.len()];
        for (page, found) in members.chunks(PAGE).zip(found.chunks_mut(PAGE)) {
            for schedule in self.iter() {
                let keys: Vec<(usize, Vec<u8>)> = page
                    .iter()
                    .enumerate()
                    .filter_map(|(at, claimed)| {
                        let own = self.iter().nth(claimed.schedule)?;
                        Some((at, renamed(&claimed.member, own.space(), schedule.space())?))
                    })
                    .collect();
                let names: Vec<&[u8]> = keys.iter().map(|(_, key)| key.as_slice()).collect();
                let values = read_values(schedule.link(), &names).await?;
                for ((at, _), value) in keys.iter().zip(values) {
                    found[*at].extend(value);
                }
            }
        }
        Ok(found)
    }

    fn others(&self, at: usize) -> impl Iterator<Item = &Schedule> {
        self.iter().enumerate().filter(move |(other, _)| *other != at).map(|(_, schedule)| schedule)
    }
}

impl Schedule {
    async fn mend(&self, from: &KeySpace, written: &[&Claimed]) -> Result<(), ScheduleError> {
        const OPERATION: &str = "read entries";
        let named: Vec<(Vec<u8>, &Claimed)> = written
            .iter()
            .filter_map(|claimed| Some((renamed(&claimed.member, from, self.space())?, *claimed)))
            .collect();
        if named.is_empty() {
            return Ok(());
        }
        let quarantined = self.fields(OPERATION, &self.space().quarantine(), &named).await?;
        let lost = self.fields(OPERATION, &self.space().losses(), &named).await?;
        let mut cmd = scripts::MEND.call(3);
        cmd.arg(self.space().schedule()).arg(self.space().quarantine()).arg(self.space().losses());
        let mut any = false;
        for (((member, claimed), entry), loss) in named.iter().zip(quarantined).zip(lost) {
            let obsolete = entry.filter(|entry| is_obsolete(member, entry, claimed));
            let mark = loss.is_some_and(|loss| is_later(claimed, &loss));
            if obsolete.is_some() || mark {
                any = true;
                cmd.arg(member).arg(obsolete.unwrap_or_default()).arg(u8::from(mark));
            }
        }
        if any {
            scripts::MEND.run(self.link(), &cmd).await?;
        }
        Ok(())
    }

    /// Fields of a hash; `None` for all if the key is of another type.
    async fn fields(
        &self,
        operation: &'static str,
        key: &str,
        named: &[(Vec<u8>, &Claimed)],
    ) -> Result<Vec<Option<Vec<u8>>>, ScheduleError> {
        let mut cmd: Cmd = redis::cmd("HMGET");
        cmd.arg(key);
        for (member, _) in named {
            cmd.arg(member);
        }
        let found = match self.link().send(operation, &cmd).await {
            Ok(Value::Array(found)) => found,
            Ok(_) => return Err(ScheduleError::unexpected(operation, "HMGET gave no array")),
            Err(error) if error.class == ErrorClass::WrongType => return Ok(vec![None; named.len()]),
            Err(error) => return Err(error),
        };
        let field = |value: &Value| match value {
            Value::Nil => Ok(None),
            value => bulk(operation, value).map(|raw| Some(raw.to_vec())),
        };
        found.iter().map(field).collect()
    }
}

/// The member's name in the other form; `None` if it doesn't have the prefix of its own.
fn renamed(member: &[u8], from: &KeySpace, to: &KeySpace) -> Option<Vec<u8>> {
    let rest = member.strip_prefix(from.balance_prefix().as_bytes())?;
    Some([to.balance_prefix().as_bytes(), rest].concat())
}

/// Whether an entry's version of the same balance is not newer than the written one. For equal versions the amounts must be equal
/// too: otherwise the two forms have forked.
fn is_obsolete(member: &[u8], entry: &[u8], written: &Claimed) -> bool {
    let entry = read_entry(entry);
    let kept = entry.value.filter(|_| !entry.truncated);
    let Some(kept) = kept.and_then(|kept| BalanceValue::of_member(member, kept.as_bytes()).ok()) else {
        return false;
    };
    let new = written.value.as_deref().map(|value| BalanceValue::of_member(&written.member, value));
    let Some(Ok(new)) = new else { return false };
    let same = (&kept.available, &kept.on_hold, &kept.overdraft_used)
        == (&new.available, &new.on_hold, &new.overdraft_used);
    kept.id == new.id && (kept.version < new.version || kept.version == new.version && same)
}

/// Whether a mutation was scheduled after a loss was recorded; also true if its time is unknown.
fn is_later(written: &Claimed, loss: &[u8]) -> bool {
    let recorded: f64 = read_loss(loss).last_at.parse().unwrap_or(0.0);
    written.scheduled_at().is_none_or(|at| at > recorded)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const ID: &str = "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d99";

    fn value(id: &str, version: i64, available: &str) -> String {
        format!(
            r#"{{"ID":"{id}","Available":"{available}","OnHold":"0","Version":{version},"AssetCode":"BRL","Key":"default"}}"#
        )
    }

    fn entry(value: Option<&str>, truncated: bool) -> Vec<u8> {
        let entry = serde_json::json!({
            "reason": "missing_row", "value": value, "truncated": truncated, "first_at": "1", "last_at": "1", "count": 1,
        });
        entry.to_string().into_bytes()
    }

    #[test]
    fn an_entry_is_obsolete_only_where_the_versions_show_it() {
        let written = Claimed {
            member: b"new".to_vec(),
            lease: Arc::from("0"),
            leased: 1,
            schedule: 0,
            former: "1".to_owned(),
            value: Some(value(ID, 7, "70").into_bytes()),
            unreadable: None,
        };
        let other = "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d00";
        for (kept, truncated, obsolete) in [
            (Some(value(ID, 6, "9")), false, true),
            (Some(value(ID, 7, "70")), false, true),
            (Some(value(ID, 7, "71")), false, false),
            (Some(value(ID, 8, "70")), false, false),
            (Some(value(other, 6, "9")), false, false),
            (Some(value(ID, 6, "9")), true, false),
            (Some("[]".to_owned()), false, false),
            (None, false, false),
        ] {
            let found = is_obsolete(b"old", &entry(kept.as_deref(), truncated), &written);
            assert_eq!(found, obsolete, "{kept:?} {truncated}");
        }
        // Lost at 5 s; the mutation came at 1 s, later, or at an unknown time.
        let loss = br#"{"loss":"{}","first_at":"2","last_at":"5","count":2}"#;
        let at = |former: &str| Claimed { former: former.to_owned(), ..written.clone() };
        assert!(!is_later(&written, loss));
        assert!(is_later(&at("6"), loss) && is_later(&at("1795380490.0000005"), loss));

        let without = Claimed { value: None, ..written };
        assert!(!is_obsolete(b"old", &entry(Some(&value(ID, 6, "9")), false), &without));
    }
}
