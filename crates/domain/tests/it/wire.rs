//! Reads what a real producer wrote: every entry of `tests/wire/producer_samples.json`, digit for digit.

use std::collections::BTreeMap;

use balance_sync_domain::{Amount, BalanceRef, BalanceValue, KeySpace, TenantId, Uuid, effective_key};
use serde::Deserialize;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wire/producer_samples.json");

#[derive(Deserialize)]
struct Sample {
    case: String,
    tenant: Option<TenantId>,
    schedule_key: String,
    member: String,
    value: String,
}

impl Sample {
    fn space(&self) -> KeySpace {
        self.tenant.as_ref().map_or_else(KeySpace::single, KeySpace::tenant)
    }
}

fn samples() -> Vec<Sample> {
    serde_json::from_str(&std::fs::read_to_string(SAMPLES).unwrap()).unwrap()
}

/// The text between the quotes after `"<field>":` in a value whose strings hold no escaped quotes: read without
/// the code under test, and without any number type.
fn text_in<'a>(json: &'a str, field: &str) -> &'a str {
    let (_, rest) =
        json.split_once(&format!("\"{field}\":")).unwrap_or_else(|| panic!("no {field} in {json}"));
    match rest.strip_prefix('"') {
        Some(rest) => rest.split_once('"').unwrap().0,
        None => rest.split([',', '}']).next().unwrap(),
    }
}

#[test]
fn every_sample_is_read_digit_for_digit() {
    let samples = samples();
    assert_eq!(samples.len(), 14, "the file has other samples than this test was written for");
    for sample in samples {
        let (case, space) = (&sample.case, sample.space());
        assert_eq!(sample.schedule_key, space.schedule(), "{case}");

        let member = BalanceRef::parse(&space, sample.member.as_bytes()).unwrap();
        assert_eq!(member.organization.to_string(), "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50", "{case}");
        assert_eq!(member.ledger.to_string(), "0190b5f3-11aa-7c02-8f2e-5b7d9c0a4e61", "{case}");
        assert_eq!(
            space.balance(member.organization, member.ledger, member.alias, member.key),
            sample.member
        );

        let value = BalanceValue::decode(sample.value.as_bytes()).unwrap_or_else(|e| panic!("{case}: {e}"));
        let json = &sample.value;
        assert_eq!(value.id, Uuid::parse_str(text_in(json, "ID")).unwrap(), "{case}");
        assert_eq!(value.available.as_str(), text_in(json, "Available"), "{case}");
        assert_eq!(value.on_hold.as_str(), text_in(json, "OnHold"), "{case}");
        assert_eq!(value.overdraft_used.as_str(), text_in(json, "OverdraftUsed"), "{case}");
        assert_eq!(value.asset_code, text_in(json, "AssetCode"), "{case}");
        assert_eq!(value.key, text_in(json, "Key"), "{case}");
        assert_eq!(effective_key(&member, &value), value.key, "{case}");
        if !text_in(json, "Version").contains('e') {
            assert_eq!(value.version.to_string(), text_in(json, "Version"), "{case}");
        }
    }
}

/// The same written out, so that a fault in the test above can't hide one in the code.
#[test]
fn the_notable_samples_hold_what_they_are_named_for() {
    let read: BTreeMap<String, (String, BalanceValue)> = samples()
        .into_iter()
        .map(|sample| {
            let space = sample.space();
            let member = BalanceRef::parse(&space, sample.member.as_bytes()).unwrap();
            let name = format!("{}#{}", member.alias, member.key);
            (name, (sample.case, BalanceValue::decode(sample.value.as_bytes()).unwrap()))
        })
        .collect();
    let of = |name: &str| &read.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", read.keys())).1;

    assert_eq!(of("@alice#default").available.as_str(), "90.25");
    assert_eq!(of("@carol#default").available.as_str(), "1");
    assert_eq!(of("bank:br:0001#savings").available.as_str(), "7.77");
    assert_eq!(of("@whale#default").available.as_str(), "1234567890123456789012345678902");
    assert_eq!(of("@wei#default").available.as_str(), "0.500000000000000000000000000001");
    assert_eq!(of("@wei#default").asset_code, "ETH");
    assert_eq!(of("@external/BRL#default").available.as_str(), "-250.1");
    assert!(of("@external/BRL#default").available.is_negative());
    assert_eq!(
        (of("@hold#default").available.as_str(), of("@hold#default").on_hold.as_str()),
        ("6.5", "3.5")
    );
    assert_eq!(of("@od#default").overdraft_used.as_str(), "5");
    assert_eq!(of("@joão-çã#default").available.as_str(), "3");
    assert_eq!(of("@old#default").version, 123_456_789_012_350);
    assert_eq!(of("@v9#default").version, 1_000_000_000);
    assert_eq!(of("@liab#overdraft").key, "overdraft");
    assert_eq!(of("@noop#default").version, 1);
    assert_eq!(of("@noop#default").overdraft_used, Amount::zero());
}
