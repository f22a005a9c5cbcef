//! A version of a balance as JSON, in every format that live ledgers write.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::amounts::Amounts;
use super::balances::{SEED_VERSION, SeededBalance};

/// How a producer spells the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Ledgers up to 4.0: UpperCamel alone.
    #[default]
    Upper,
    /// Ledgers from 4.1 on: both spellings, sorted by name.
    Dual,
    /// Planned: lowerCamel alone, all numbers as strings.
    NewOnly,
    /// The first ledgers: lowerCamel alone, numbers as numbers, no overdraft written as `""`.
    Oldest,
    /// An upgrade under way: two releases change the same balances. The newer one writes dual values; the older one
    /// changes UpperCamel alone, leaves lowerCamel stale and writes the names in another order each time.
    Mixed,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Upper, Self::Dual, Self::NewOnly, Self::Oldest, Self::Mixed];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upper => "upper",
            Self::Dual => "dual",
            Self::NewOnly => "new-only",
            Self::Oldest => "oldest",
            Self::Mixed => "mixed",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|format| format.name()).collect();
            format!("{text:?} is no format: allowed are {}", names.join(", "))
        })
    }
}

/// Of so many versions one is written by the newer release, when two write at once.
const NEWER_WRITES_ONE_IN: u64 = 3;

impl SeededBalance {
    /// The JSON of this version in this format. It depends on nothing but the balance, the version and the format.
    pub fn json_in(&self, format: Format, version: i64) -> String {
        let fields = match format {
            Format::Upper => return self.json(version),
            Format::Dual => self.dual(version),
            Format::NewOnly => {
                let mut fields = self.lower(version);
                fields.push("\"SchemaVersion\":2".to_owned());
                fields.sort_unstable();
                fields
            }
            Format::Oldest => self.oldest(version),
            Format::Mixed => self.mixed(version),
        };
        format!("{{{}}}", fields.join(","))
    }

    /// UpperCamel as ledgers from 4.1 on write it.
    fn upper(&self, version: i64) -> Vec<String> {
        let Amounts { available, on_hold, overdraft_used } = self.amounts(version);
        let Self { id, account_id, key, asset, .. } = self;
        let (alias, account_type) = (self.json_alias(), self.account_type());
        let overdraft = u8::from(overdraft_used != "0");
        vec![
            format!("\"AccountID\":\"{account_id}\""),
            format!("\"AccountType\":\"{account_type}\""),
            format!("\"Alias\":\"{alias}\""),
            format!("\"AllowOverdraft\":{overdraft}"),
            "\"AllowReceiving\":1".to_owned(),
            "\"AllowSending\":1".to_owned(),
            format!("\"AssetCode\":\"{asset}\""),
            format!("\"Available\":\"{available}\""),
            "\"BalanceScope\":\"transactional\"".to_owned(),
            "\"Blocked\":0".to_owned(),
            "\"Direction\":\"credit\"".to_owned(),
            format!("\"ID\":\"{id}\""),
            format!("\"Key\":\"{key}\""),
            format!("\"OnHold\":\"{on_hold}\""),
            "\"OverdraftLimit\":\"0\"".to_owned(),
            "\"OverdraftLimitEnabled\":0".to_owned(),
            format!("\"OverdraftUsed\":\"{overdraft_used}\""),
            format!("\"Version\":{version}"),
        ]
    }

    /// lowerCamel as ledgers from 4.1 on write it.
    fn lower(&self, version: i64) -> Vec<String> {
        let Amounts { available, on_hold, overdraft_used } = self.amounts(version);
        let Self { id, account_id, key, asset, .. } = self;
        let (alias, account_type) = (self.json_alias(), self.account_type());
        let overdraft = overdraft_used != "0";
        vec![
            format!("\"accountId\":\"{account_id}\""),
            format!("\"accountType\":\"{account_type}\""),
            format!("\"alias\":\"{alias}\""),
            format!("\"allowOverdraft\":{overdraft}"),
            "\"allowReceiving\":true".to_owned(),
            "\"allowSending\":true".to_owned(),
            format!("\"assetCode\":\"{asset}\""),
            format!("\"available\":\"{available}\""),
            "\"balanceScope\":\"transactional\"".to_owned(),
            "\"blocked\":false".to_owned(),
            "\"direction\":\"credit\"".to_owned(),
            format!("\"id\":\"{id}\""),
            format!("\"key\":\"{key}\""),
            format!("\"onHold\":\"{on_hold}\""),
            "\"overdraftLimit\":\"0\"".to_owned(),
            "\"overdraftLimitEnabled\":false".to_owned(),
            format!("\"overdraftUsed\":\"{overdraft_used}\""),
            format!("\"version\":\"{version}\""),
        ]
    }

    fn dual(&self, version: i64) -> Vec<String> {
        let mut fields = self.upper(version);
        fields.extend(self.lower(version));
        fields.push("\"SchemaVersion\":2".to_owned());
        fields.sort_unstable();
        fields
    }

    fn oldest(&self, version: i64) -> Vec<String> {
        let Amounts { available, on_hold, overdraft_used } = self.amounts(version);
        let Self { id, account_id, key, asset, .. } = self;
        let (alias, account_type) = (self.json_alias(), self.account_type());
        let overdraft_used = if overdraft_used == "0" { "\"\"".to_owned() } else { overdraft_used };
        vec![
            format!("\"id\":\"{id}\""),
            format!("\"accountId\":\"{account_id}\""),
            format!("\"accountType\":\"{account_type}\""),
            format!("\"assetCode\":\"{asset}\""),
            format!("\"alias\":\"{alias}\""),
            format!("\"key\":\"{key}\""),
            format!("\"available\":{available}"),
            format!("\"onHold\":{on_hold}"),
            format!("\"overdraftUsed\":{overdraft_used}"),
            format!("\"version\":{version}"),
            "\"allowSending\":1".to_owned(),
            "\"allowReceiving\":1".to_owned(),
        ]
    }

    fn mixed(&self, version: i64) -> Vec<String> {
        // The newer release wrote this value last: its lowerCamel is what has been there since.
        let newest_dual =
            (SEED_VERSION + 1..=version).rev().find(|version| self.is_written_by_newer(*version));
        match newest_dual {
            Some(dual) if dual == version => self.dual(version),
            Some(stale) => {
                let mut fields = self.upper(version);
                fields.extend(self.lower(stale));
                fields.push("\"SchemaVersion\":2".to_owned());
                let mut numbers = mix(self.id, version);
                for place in (1..fields.len()).rev() {
                    numbers = numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let other = usize::try_from((numbers >> 33) % (place as u64 + 1)).unwrap_or_default();
                    fields.swap(place, other);
                }
                fields
            }
            // Only the older release has written it.
            None => self.upper(version),
        }
    }

    fn is_written_by_newer(&self, version: i64) -> bool {
        mix(self.id, version).is_multiple_of(NEWER_WRITES_ONE_IN)
    }

    /// The encoders escape slashes; neither quotes nor control characters are in an alias.
    pub(super) fn json_alias(&self) -> String {
        self.alias.replace('/', "\\/")
    }
}

/// Bits that depend on balance and version alone.
fn mix(id: Uuid, version: i64) -> u64 {
    let (high, low) = id.as_u64_pair();
    let bits = (high ^ low.rotate_left(17))
        .wrapping_add(version.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15));
    (bits ^ (bits >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 7
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use super::*;
    use crate::ledger::describe_balances;

    /// Names and kinds of values of an object, in its order.
    fn kinds(json: &str) -> Vec<(String, u8)> {
        let value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).unwrap();
        let mut kinds: Vec<_> =
            value.iter().map(|(name, value)| (name.clone(), value.to_string().as_bytes()[0])).collect();
        for (_, kind) in &mut kinds {
            // Numbers, and the two truth values.
            *kind = match *kind {
                b'0'..=b'9' | b'-' => b'0',
                b't' | b'f' => b't',
                other => other,
            };
        }
        kinds.sort();
        kinds
    }

    /// A live ledger's value of this case.
    fn sample(case: &str) -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wire/value_samples.json");
        let samples: Vec<serde_json::Value> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let sample = samples.iter().find(|sample| sample["case"] == case).unwrap();
        sample["value"].as_str().unwrap().to_owned()
    }

    #[test]
    fn values_have_the_names_and_kinds_of_live_ledgers() {
        let dual = sample("dual, two decimal places");
        let new_only = sample("new-only, version is the largest int64");
        let stale = sample("old script over dual: UpperCamel is newer, lowerCamel is stale");
        for balance in describe_balances("acme", 60) {
            assert_eq!(kinds(&balance.json_in(Format::Dual, 2)), kinds(&dual));
            assert_eq!(kinds(&balance.json_in(Format::NewOnly, 2)), kinds(&new_only));
            let mixed = (2..30).map(|version| balance.json_in(Format::Mixed, version));
            assert!(mixed.clone().any(|json| kinds(&json) == kinds(&stale) && json.len() > dual.len() / 2));
        }
        // The engine sorts the names.
        let place = |json: &str, name: &str| json.find(name).unwrap();
        let ours = describe_balances("acme", 1)[0].json_in(Format::Dual, 2);
        for json in [&ours, &dual] {
            assert!(place(json, "\"AccountID\"") < place(json, "\"Version\""));
            assert!(place(json, "\"Version\"") < place(json, "\"accountId\""));
        }
    }

    #[test]
    fn mixed_values_are_written_by_both_releases_and_leave_lower_camel_stale() {
        let balance = &describe_balances("acme", 1)[0];
        let (mut fresh, mut stale, mut upper_alone) = (0, 0, 0);
        let mut orders = HashSet::new();
        for version in 2..200 {
            let json = balance.json_in(Format::Mixed, version);
            assert_eq!(json, balance.json_in(Format::Mixed, version), "another process must find the same");
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            let amounts = balance.amounts(version);
            assert_eq!(value["Version"], version);
            assert_eq!(value["Available"], amounts.available.as_str());
            match value["version"].as_str() {
                None => upper_alone += 1,
                Some(lower) if lower == version.to_string() => {
                    fresh += 1;
                    assert_eq!(value["available"], amounts.available.as_str());
                }
                Some(lower) => {
                    stale += 1;
                    let lower: i64 = lower.parse().unwrap();
                    assert!(lower < version);
                    assert_eq!(value["available"], balance.amounts(lower).available.as_str());
                    let before = json.find("\"available\"").unwrap() < json.find("\"Available\"").unwrap();
                    orders.insert(before);
                }
            }
        }
        assert!(fresh > 30 && stale > 60, "{fresh} {stale} {upper_alone}");
        assert_eq!(orders.len(), 2, "either spelling may come first");
    }

    #[test]
    fn formats_are_read_by_their_names() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let error = "lower".parse::<Format>().unwrap_err();
        assert!(error.contains("\"lower\"") && error.contains("new-only"), "{error}");
    }
}
