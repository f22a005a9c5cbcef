//! Reads values in every format that live ledgers write: each entry of `tests/wire/value_samples.json` must give what
//! the file expects, or be refused. The system test of the same name takes them on into Postgres.

use balance_sync_domain::{Amount, BalanceRef, BalanceValue, KeySpace, TenantId, effective_key};
use serde::Deserialize;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wire/value_samples.json");

#[derive(Deserialize)]
struct Sample {
    case: String,
    tenant: Option<TenantId>,
    member: String,
    value: String,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Expect {
    Refuse {
        refuse: String,
    },
    Read {
        id: String,
        available: String,
        on_hold: String,
        overdraft_used: String,
        version: String,
        asset_code: String,
        key: String,
    },
}

/// The reason that goes with what the file says, and the field that the error must name.
fn reason_of(refuse: &str) -> (&'static str, &'static str) {
    match refuse {
        "malformed authoritative Available" => ("value_invalid_amount", "Available"),
        "malformed authoritative OverdraftUsed" => ("value_field_null", "OverdraftUsed"),
        "malformed authoritative Version" => ("value_invalid_version", "Version"),
        "malformed authoritative ID" => ("value_invalid_id", "ID"),
        "unsupported SchemaVersion" => ("value_unknown_format", "SchemaVersion"),
        "duplicate field Available" => ("value_duplicate_name", "Available"),
        "new-only version must be a string" => ("value_not_canonical", "version"),
        "new-only amounts must be strings" => ("value_not_canonical", "available"),
        "empty overdraft is zero only in the oldest spelling" => ("value_invalid_amount", "overdraftUsed"),
        "version out of range" => ("value_invalid_version", "version"),
        "oldest spelling has a numeric version" => ("value_invalid_version", "version"),
        "Available is missing" => ("value_field_missing", "Available"),
        other => panic!("unknown refusal {other}"),
    }
}

#[test]
fn every_sample_gives_what_is_expected() {
    let samples: Vec<Sample> = serde_json::from_str(&std::fs::read_to_string(SAMPLES).unwrap()).unwrap();
    assert_eq!(samples.len(), 49, "the file has other samples than this test was written for");
    let mut refused = 0;
    for sample in samples {
        let case = &sample.case;
        let space = sample.tenant.as_ref().map_or_else(KeySpace::single, KeySpace::tenant);
        let member = BalanceRef::parse(&space, sample.member.as_bytes()).unwrap();
        let decoded = BalanceValue::of_member(sample.member.as_bytes(), sample.value.as_bytes());
        match sample.expect {
            Expect::Refuse { refuse } => {
                refused += 1;
                let error = decoded.expect_err(case);
                let (mut reason, field) = reason_of(&refuse);
                if sample.value.contains("\"Available\":null") {
                    reason = "value_field_null";
                }
                assert_eq!(error.reason().as_str(), reason, "{case}: {error}");
                assert!(error.to_string().contains(field), "{case}: {error}");
                assert_eq!(error.is_unknown_format(), refuse == "unsupported SchemaVersion", "{case}");
            }
            Expect::Read { id, available, on_hold, overdraft_used, version, asset_code, key } => {
                let value = decoded.unwrap_or_else(|error| panic!("{case}: {error}"));
                assert_eq!(value.id.to_string(), id, "{case}");
                for (found, expected) in [
                    (&value.available, available),
                    (&value.on_hold, on_hold),
                    (&value.overdraft_used, overdraft_used),
                ] {
                    // As numbers: what Postgres prints of them is the system test's subject.
                    assert!(
                        found.same_value(&Amount::parse(&expected).unwrap()),
                        "{case}: {found} {expected}"
                    );
                }
                assert_eq!(value.version.to_string(), version, "{case}");
                assert_eq!(value.asset_code, asset_code, "{case}");
                assert_eq!(effective_key(&member, &value), key, "{case}");
            }
        }
    }
    assert_eq!(refused, 14);
}
