//! Which balances a tenant has, and under which keys they live in Redis.

use uuid::Uuid;

use super::amounts::{Amounts, amounts_of};

/// The version that a seeded row has.
pub const SEED_VERSION: i64 = 1;

const ASSETS: [&str; 6] = ["BRL", "USD", "EUR", "JPY", "BTC", "ETH"];

/// The keys of one tenant in Redis, or of the only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantKeys {
    prefix: String,
}

impl TenantKeys {
    /// The keys of this tenant, its id spelled as given.
    pub fn tenant(id: &str) -> Self {
        Self { prefix: format!("tenant:{id}:") }
    }

    /// The keys of a ledger with a single tenant: without prefix.
    pub fn single() -> Self {
        Self { prefix: String::new() }
    }

    /// `tenant:<id>:`, or nothing.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The sorted set of scheduled balances.
    pub fn schedule(&self) -> String {
        format!("{}schedule:{{transactions}}:balance-sync-v2", self.prefix)
    }

    /// The sorted set that ledgers before v3.6.2 wrote.
    pub fn legacy_schedule(&self) -> String {
        format!("{}schedule:{{transactions}}:balance-sync", self.prefix)
    }

    /// The key of a balance, which is also its member in the schedule.
    pub fn member(&self, balance: &SeededBalance) -> String {
        let SeededBalance { organization, ledger, alias, key, .. } = balance;
        format!("{}balance:{{transactions}}:{organization}:{ledger}:{alias}#{key}", self.prefix)
    }

    /// The key that claims this member for the ledger's own worker.
    pub fn lock(&self, member: &str) -> String {
        format!("{}lock:{{transactions}}:balance-sync:{member}", self.prefix)
    }
}

/// One balance of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeededBalance {
    /// Primary key of its row.
    pub id: Uuid,
    /// `organization_id`, the same for all balances of a tenant.
    pub organization: Uuid,
    /// `ledger_id`; a tenant has one ledger per 1,000 balances, at most 4.
    pub ledger: Uuid,
    /// `account_id`, each balance has its own.
    pub account_id: Uuid,
    /// Most are plain; some hold colons, slashes or letters beyond ASCII.
    pub alias: String,
    /// `default`, or for every tenth `savings`.
    pub key: String,
    /// Asset code.
    pub asset: String,
    /// An account outside of the ledger: its balance is negative.
    pub external: bool,
}

impl SeededBalance {
    /// What this version of it holds.
    pub fn amounts(&self, version: i64) -> Amounts {
        amounts_of(self.id, version, self.external)
    }

    /// `deposit` or `external`.
    pub fn account_type(&self) -> &'static str {
        if self.external { "external" } else { "deposit" }
    }

    /// The JSON of this version, as the Lua script of ledgers up to 4.0 spells it. Other formats:
    /// [`json_in`](Self::json_in).
    pub fn json(&self, version: i64) -> String {
        let Amounts { available, on_hold, overdraft_used } = self.amounts(version);
        let Self { id, account_id, key, asset, .. } = self;
        let alias = self.json_alias();
        let account_type = self.account_type();
        let overdraft = u8::from(overdraft_used != "0");
        format!(
            "{{\"Direction\":\"credit\",\"OnHold\":\"{on_hold}\",\"Key\":\"{key}\",\"Available\":\"{available}\",\
             \"ID\":\"{id}\",\"Alias\":\"{alias}\",\"OverdraftLimitEnabled\":0,\"BalanceScope\":\"transactional\",\
             \"AllowReceiving\":1,\"AccountType\":\"{account_type}\",\"OverdraftUsed\":\"{overdraft_used}\",\
             \"Version\":{version},\"AllowSending\":1,\"AccountID\":\"{account_id}\",\"OverdraftLimit\":\"0\",\
             \"AllowOverdraft\":{overdraft},\"AssetCode\":\"{asset}\"}}"
        )
    }
}

/// The first `count` balances of this tenant. The same call gives the same balances in any process, and a
/// larger `count` only adds to them.
pub fn describe_balances(tenant: &str, count: usize) -> Vec<SeededBalance> {
    let space = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("balance-sync sandbox {tenant}").as_bytes());
    let derive = |what: &str, number: usize| Uuid::new_v5(&space, format!("{what} {number}").as_bytes());
    let organization = derive("organization", 0);
    let ledgers = [0, 1, 2, 3].map(|number| derive("ledger", number));
    (0..count)
        .map(|index| {
            let (alias, external) = match index % 50 {
                7 => (format!("bank:br:{index:06}"), false),
                13 => (format!("@external/{}/{index:06}", ASSETS[index % ASSETS.len()]), true),
                21 => (format!("@joão-çã-{index:06}"), false),
                34 => (format!("{}:wallet:{index:06}", derive("alias", index)), false),
                _ => (format!("@account-{index:06}"), false),
            };
            SeededBalance {
                id: derive("balance", index),
                organization,
                ledger: ledgers[index / 1_000 % ledgers.len()],
                account_id: derive("account", index),
                alias,
                key: if index % 10 == 3 { "savings" } else { "default" }.to_owned(),
                asset: ASSETS[index % ASSETS.len()].to_owned(),
                external,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn balances_are_stable_and_distinct() {
        let ten = describe_balances("acme", 10);
        let many = describe_balances("acme", 2_500);
        assert_eq!(ten, many[..10]);
        let keys = TenantKeys::tenant("acme");
        let members: HashSet<String> = many.iter().map(|balance| keys.member(balance)).collect();
        let ids: HashSet<Uuid> = many.iter().map(|balance| balance.id).collect();
        assert_eq!((members.len(), ids.len()), (2_500, 2_500));
        assert!(describe_balances("other", 10).iter().all(|balance| !ids.contains(&balance.id)));
    }

    /// The real producer's values have the same names and the same kinds of values.
    #[test]
    fn the_json_has_the_fields_of_the_real_producer() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wire/producer_samples.json");
        let samples: Vec<serde_json::Value> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let real: serde_json::Value = serde_json::from_str(samples[0]["value"].as_str().unwrap()).unwrap();
        for balance in describe_balances("acme", 50) {
            let ours: serde_json::Value = serde_json::from_str(&balance.json(2)).unwrap();
            let kinds =
                |value: &serde_json::Value| -> Vec<(String, std::mem::Discriminant<serde_json::Value>)> {
                    let fields = value.as_object().unwrap().iter();
                    let mut kinds: Vec<_> =
                        fields.map(|(name, value)| (name.clone(), std::mem::discriminant(value))).collect();
                    kinds.sort_by(|a, b| a.0.cmp(&b.0));
                    kinds
                };
            assert_eq!(kinds(&ours), kinds(&real));
            assert_eq!(ours["Alias"], balance.alias.as_str());
        }
        let keys = TenantKeys::tenant(samples[0]["tenant"].as_str().unwrap());
        assert_eq!(keys.schedule(), samples[0]["schedule_key"].as_str().unwrap());
        let mut alice = describe_balances("acme", 1).remove(0);
        alice.organization = "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50".parse().unwrap();
        alice.ledger = "0190b5f3-11aa-7c02-8f2e-5b7d9c0a4e61".parse().unwrap();
        alice.alias = "@alice".into();
        assert_eq!(keys.member(&alice), samples[0]["member"].as_str().unwrap());
    }
}
