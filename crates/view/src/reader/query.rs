//! Tenants picked and put in order, a page at a time.

use balance_sync_fleet::status::TenantState;

use super::FleetView;
use crate::rows::{StateView, TenantRow};

/// Which tenants are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantQuery {
    /// In one of these states; all when empty.
    pub states: Vec<StateFilter>,
    /// With this in their id, whatever its case.
    pub text: String,
    /// In this order …
    pub sort: TenantSort,
    /// … or the other way round.
    pub descending: bool,
    /// Which page; the first is 1.
    pub page: usize,
    /// How many on it.
    pub per_page: usize,
}

/// What a tenant may be asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateFilter {
    /// Its state.
    Is(StateView),
    /// An operator paused it, whatever its collectors are doing at this moment.
    Paused,
    /// Its balances are late.
    Behind,
}

impl StateFilter {
    const BEHIND: &'static str = "behind";

    /// The names, for messages.
    #[must_use]
    pub fn names() -> String {
        let states = StateView::all().map(|state| state.to_string()).chain([Self::BEHIND.to_owned()]);
        states.collect::<Vec<_>>().join(", ")
    }

    /// By name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if name == Self::BEHIND {
            return Some(Self::Behind);
        }
        StateView::parse(name).map(|state| match state {
            StateView::Is(TenantState::Paused) => Self::Paused,
            state => Self::Is(state),
        })
    }
}

/// What tenants are put in order by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantSort {
    /// Id.
    Id,
    /// State, by name.
    State,
    /// Members in the schedule.
    Backlog,
    /// Members due.
    Due,
    /// Age of the oldest due member.
    Oldest,
    /// Lag that 99 of 100 stayed within.
    Lag,
    /// Rows per second.
    Rows,
    /// Entries in quarantine.
    Quarantined,
}

impl TenantSort {
    /// The names, for messages.
    pub const NAMES: &'static str = "id, state, backlog, due, oldest, lag, rows, quarantined";

    /// By name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "id" => Self::Id,
            "state" => Self::State,
            "backlog" => Self::Backlog,
            "due" => Self::Due,
            "oldest" => Self::Oldest,
            "lag" => Self::Lag,
            "rows" => Self::Rows,
            "quarantined" => Self::Quarantined,
            _ => return None,
        })
    }
}

impl FleetView {
    /// The tenants that fit, in order, one page of them.
    #[must_use]
    pub fn page(&self, query: &TenantQuery) -> (usize, Vec<&TenantRow>) {
        let wanted = query.text.to_lowercase();
        let mut rows: Vec<&TenantRow> = self
            .tenants
            .iter()
            .filter(|row| {
                (query.states.is_empty()
                    || query.states.iter().any(|state| match state {
                        StateFilter::Behind => row.is_behind(self.objective_seconds),
                        StateFilter::Is(state) => row.state == *state,
                        StateFilter::Paused => {
                            row.paused.is_some() || row.state == TenantState::Paused.into()
                        }
                    }))
                    && (wanted.is_empty() || row.id.to_lowercase().contains(&wanted))
            })
            .collect();
        let number = |row: &TenantRow| match query.sort {
            TenantSort::Id | TenantSort::State => 0.0,
            TenantSort::Backlog => row.scheduled as f64,
            TenantSort::Due => row.due as f64,
            TenantSort::Oldest => row.oldest_due_age_seconds,
            TenantSort::Lag => row.lag_p99_seconds.unwrap_or(-1.0),
            TenantSort::Rows => row.rows_per_second,
            TenantSort::Quarantined => row.quarantined as f64,
        };
        // Stable, and in id order so far.
        rows.sort_by(|a, b| {
            let order = match query.sort {
                TenantSort::Id => a.id.cmp(&b.id),
                TenantSort::State => a.state.as_str().cmp(b.state.as_str()),
                _ => number(a).total_cmp(&number(b)),
            };
            if query.descending { order.reverse() } else { order }
        });
        let total = rows.len();
        let from = query.page.saturating_sub(1).saturating_mul(query.per_page);
        (total, rows.into_iter().skip(from).take(query.per_page).collect())
    }
}
