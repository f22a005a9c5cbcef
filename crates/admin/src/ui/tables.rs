//! What the dashboard shows of reasons and states: a module made from the tables of `balance_sync_engine`, so that a new one
//! needs nothing in the dashboard.

use std::{cmp::Reverse, collections::BTreeMap, sync::LazyLock};

use balance_sync_engine::{
    controls::Action,
    reason::{Advice, Reason},
    state::Condition,
};
use balance_sync_view::rows::StateView;
use serde::Serialize;

/// What the dashboard shows of a reason.
#[derive(Serialize)]
struct ReasonEntry {
    means: &'static str,
    help: &'static str,
    action: Option<Action>,
}

/// What the dashboard shows of a state.
#[derive(Serialize)]
struct StateEntry {
    name: String,
    condition: Condition,
}

/// The module `tables.js`.
pub(super) fn script() -> &'static str {
    static SCRIPT: LazyLock<String> = LazyLock::new(|| {
        let reasons: BTreeMap<Reason, ReasonEntry> = Reason::ALL
            .into_iter()
            .map(|reason| {
                let Advice { means, help, action, .. } = reason.advice();
                (reason, ReasonEntry { means, help, action })
            })
            .collect();
        let mut states: Vec<StateEntry> = StateView::all()
            .map(|state| StateEntry { name: state.to_string(), condition: state.condition() })
            .collect();
        states.sort_by_key(|state| Reverse(state.condition));
        // Names and texts are all that they hold.
        let json = |table: serde_json::Result<String>| table.unwrap_or_else(|_| "{}".to_owned());
        format!(
            "// Made from the tables of the worker that serves this page; see crates/engine/src/reason.rs and state.rs.\n\
             export const REASONS = {};\n\
             // The worst first.\n\
             export const STATES = {};\n",
            json(serde_json::to_string_pretty(&reasons)),
            json(serde_json::to_string_pretty(&states)),
        )
    });
    &SCRIPT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_has_every_reason_and_every_state() {
        let table = |name: &str| -> serde_json::Value {
            let rest = script().split(&format!("export const {name} = ")).nth(1).expect("the table");
            serde_json::from_str(rest.split(";\n").next().unwrap_or_default()).expect("JSON")
        };
        let reasons = table("REASONS");
        for reason in Reason::ALL {
            let entry = &reasons[reason.as_str()];
            assert_eq!(entry["means"], reason.advice().means);
            assert_eq!(entry["help"], reason.advice().help);
            assert_eq!(entry["action"].as_str(), reason.advice().action.map(Action::as_str));
        }
        let states = table("STATES");
        let names: Vec<&str> =
            states.as_array().into_iter().flatten().filter_map(|state| state["name"].as_str()).collect();
        assert_eq!(names[..3], ["degraded", "unserved", "paused"], "the worst first");
        assert_eq!(names.len(), StateView::all().count());
    }
}
