//! `verify`: Redis against Postgres, balance by balance. `audit` has a third witness, and begins with the rows.
//!
//! Redis holds a balance for some time after its last mutation; what it holds is compared, what it no longer holds can't be. On a
//! ledger that works, Redis is always a moment ahead. So a balance whose row differs is looked at again until the row has
//! reached the version that Redis held at the first look, however far Redis has gone on since.

mod comparing;
mod difference;
mod verifier;

use std::path::Path;

use balance_sync_domain::printable;
use serde::Serialize;

use crate::{
    EXIT_OK,
    args::{VerifyArgs, seconds},
};
pub(crate) use verifier::{Repair, Verifier, row_of};

/// Something differs.
const EXIT_DIFFERENT: u8 = 1;
/// Some tenant could not be compared.
const EXIT_UNKNOWN: u8 = 2;

/// One tenant's result. Numbers of balances.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct TenantResult {
    /// Its id.
    pub tenant: String,
    /// Balances that Redis holds.
    pub balances: u64,
    /// Same version and same amounts on both sides.
    pub equal: u64,
    /// Postgres has an older version.
    pub behind: u64,
    /// Postgres has no such row.
    pub missing: u64,
    /// The row is deleted: the ledger has closed the balance, and what Redis still holds of it is of no use.
    pub deleted: u64,
    /// Postgres has a newer version: Redis lost something.
    pub ahead: u64,
    /// Same version, other amounts.
    pub different: u64,
    /// Keys or values that can't be read.
    pub unreadable: u64,
    /// Members in quarantine.
    pub quarantined: u64,
    /// Members still scheduled.
    pub scheduled: u64,
    /// Behind or missing in Postgres and not scheduled: no worker would write them. With `--repair --apply` they are
    /// scheduled again.
    pub unscheduled: u64,
    /// Scheduled further ahead than a lease or delay explains: Redis's clock has jumped back. With `--repair --apply`
    /// they are made due.
    pub distant: u64,
}

impl TenantResult {
    /// Whether everything that can be compared is the same on both sides.
    pub(crate) fn is_equal(&self) -> bool {
        self.behind + self.missing + self.ahead + self.different + self.unreadable == 0
    }
}

/// A tenant that could not be compared.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failed {
    /// Its id.
    pub tenant: String,
    /// Why.
    pub error: String,
}

/// The whole result.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Verification {
    /// By tenant, in id order.
    pub tenants: Vec<TenantResult>,
    /// Tenants that could not be compared.
    pub failed: Vec<Failed>,
    /// Some of the balances that differ, with what differs.
    pub differences: Vec<String>,
    /// Members scheduled again, or made due.
    pub repaired: u64,
}

impl Verification {
    /// Whether all tenants are equal.
    pub(crate) fn is_equal(&self) -> bool {
        self.failed.is_empty() && self.tenants.iter().all(TenantResult::is_equal)
    }

    /// Sum of one number over all tenants.
    pub(crate) fn total(&self, number: fn(&TenantResult) -> u64) -> u64 {
        self.tenants.iter().map(number).sum()
    }
}

/// The command.
///
/// # Errors
/// When tenants, Redis or a Postgres can't be asked: then nothing can be determined (exit code 2).
pub(crate) async fn verify(file: Option<&Path>, args: VerifyArgs) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    let verifier = Verifier::new(&config)?;
    let wait = args.wait.map(seconds);
    let repair = if args.apply { Repair::All } else { Repair::Nothing };
    let result = verifier.compare(&args.tenant, args.show, wait, repair).await?;
    if args.json {
        println!("{}", serde_json::to_string(&result)?);
    } else {
        print_table(&result);
        if args.apply {
            println!("repair: {} balances scheduled again", result.repaired);
        } else if args.repair {
            let would = result.total(|row| row.unscheduled + row.distant);
            println!("repair: {would} balances would be scheduled again; --apply does it");
        }
    }
    Ok(if !result.failed.is_empty() {
        EXIT_UNKNOWN
    } else if result.is_equal() {
        EXIT_OK
    } else {
        EXIT_DIFFERENT
    })
}

fn print_table(result: &Verification) {
    println!(
        "{:<38} {:>9} {:>9} {:>8} {:>8} {:>7} {:>9} {:>10} {:>11} {:>9}",
        "tenant",
        "balances",
        "equal",
        "behind",
        "missing",
        "ahead",
        "different",
        "unreadable",
        "quarantined",
        "scheduled"
    );
    for row in &result.tenants {
        println!(
            "{:<38} {:>9} {:>9} {:>8} {:>8} {:>7} {:>9} {:>10} {:>11} {:>9}",
            printable(&row.tenant),
            row.balances,
            row.equal,
            row.behind,
            row.missing,
            row.ahead,
            row.different,
            row.unreadable,
            row.quarantined,
            row.scheduled
        );
    }
    for difference in &result.differences {
        println!("{}", printable(&difference.to_string()));
    }
    for Failed { tenant, error } in &result.failed {
        println!("tenant {} could not be compared: {}", printable(tenant), printable(&error.to_string()));
    }
    let distant = result.total(|row| row.distant);
    if distant > 0 {
        println!(
            "{distant} balances are scheduled further ahead than a lease or delay explains: the clock of Redis has jumped \
             back, and they wait until it has caught up; --repair --apply makes them due"
        );
    }
    println!(
        "verify: {} balances in {} tenants, {} behind, {} missing",
        result.total(|row| row.balances),
        result.tenants.len(),
        result.total(|row| row.behind),
        result.total(|row| row.missing)
    );
}
