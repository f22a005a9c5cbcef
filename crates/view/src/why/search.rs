//! Which balances an alias means: those of the tenant's rows, and those that only Redis knows.

use balance_sync_domain::{BalanceRef, Uuid};
use balance_sync_schedule::{Schedule, ScheduleError, Schedules};
use balance_sync_store::{FoundRow, Sought};

use crate::inspector::Opened;

/// Balances in one answer at most.
const MOST: usize = 50;
/// Members looked at more closely, of those in which the alias stands somewhere.
const MOST_FOUND: usize = 1000;

/// An alias, and perhaps more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) alias: &'a str,
    pub(super) key: Option<&'a str>,
    pub(super) organization: Option<Uuid>,
    pub(super) ledger: Option<Uuid>,
}

/// What was found under them.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Members, with their rows where those were found first.
    pub(super) members: Vec<(Vec<u8>, Option<FoundRow>)>,
    /// Why Postgres could not be asked. A balance without a key in Redis is then not found.
    pub(super) unasked: Option<String>,
}

impl Names<'_> {
    /// The balances of these names in Postgres, if it can be asked, and in Redis.
    ///
    /// # Errors
    /// As Redis answers.
    pub(super) async fn find(
        &self,
        schedules: &Schedules,
        database: Result<&Opened, &String>,
    ) -> Result<Found, ScheduleError> {
        let mut found = Found::default();
        let rows = match database {
            Ok(open) => {
                open.database.look_up(&open.table, &self.sought()).await.map_err(|error| error.to_string())
            }
            Err(detail) => Err(detail.clone()),
        };
        let rows = rows.unwrap_or_else(|detail| {
            found.unasked = Some(detail);
            Vec::new()
        });
        let members = &mut found.members;
        for row in rows {
            if let (Some(organization), Some(ledger)) = (row.organization, row.ledger) {
                for member in in_redis(schedules, organization, ledger, &row.alias, &row.key).await? {
                    if !members.iter().any(|(known, _)| *known == member) {
                        members.push((member, Some(row.clone())));
                    }
                }
            }
        }
        // Those without a row, or whose database can't be asked.
        for member in schedules.find_members(&format!(":{}", self.alias), MOST_FOUND).await? {
            let space = schedules.of_member(&member).space();
            let fits = BalanceRef::parse(space, &member).is_ok_and(|balance| self.fit(&balance));
            if fits && !members.iter().any(|(known, _)| *known == member) {
                members.push((member, None));
            }
        }
        members.truncate(MOST);
        Ok(found)
    }

    fn sought(&self) -> Sought<'_> {
        Sought {
            organization: self.organization,
            ledger: self.ledger,
            alias: Some(self.alias),
            key: self.key,
            ..Sought::default()
        }
    }

    fn fit(&self, balance: &BalanceRef<'_>) -> bool {
        balance.alias == self.alias
            && self.key.is_none_or(|key| balance.key == key)
            && self.organization.is_none_or(|id| balance.organization == id)
            && self.ledger.is_none_or(|id| balance.ledger == id)
    }
}

/// What may have been meant by an alias that doesn't exist: the ledger's aliases begin with `@`, and people leave that out, or
/// add it to those of external accounts that have none.
pub(super) fn meant(alias: &str) -> String {
    alias.strip_prefix('@').map_or_else(|| format!("@{alias}"), str::to_owned)
}

/// The members under which Redis knows anything about the balance of a row. A tenant whose id is a UUID has two that may be;
/// where neither is known, the one in the form in which the tenant is listed stands for both.
async fn in_redis(
    schedules: &Schedules,
    organization: Uuid,
    ledger: Uuid,
    alias: &str,
    key: &str,
) -> Result<Vec<Vec<u8>>, ScheduleError> {
    let member =
        |schedule: &Schedule| schedule.space().balance(organization, ledger, alias, key).into_bytes();
    let mut known = Vec::new();
    if schedules.iter().len() > 1 {
        for schedule in schedules.iter() {
            let member = member(schedule);
            let found = schedule.inspect(&member).await?;
            if found.score.is_some()
                || found.value.is_some()
                || found.unreadable.is_some()
                || found.quarantine.is_some()
            {
                known.push(member);
            }
        }
    }
    if known.is_empty() {
        known.push(member(schedules.first()));
    }
    Ok(known)
}
