//! Properties that hold for every input: what is written is read back unchanged, the newest version wins, and
//! no bytes make the readers panic.

use std::collections::BTreeMap;

use balance_sync_domain::{
    Amount, BalanceRef, BalanceValue, Candidate, DEFAULT_KEY, KeySpace, TenantId, Uuid, aggregate,
};
use proptest::prelude::*;
use proptest::sample::select;

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

/// Tenant ids, among them UUIDs in both forms and names that occur in keys.
fn tenant_id() -> impl Strategy<Value = TenantId> {
    prop_oneof![
        "[A-Za-z0-9][A-Za-z0-9_-]{0,255}",
        uuid().prop_map(|u| u.to_string()),
        uuid().prop_map(|u| u.simple().to_string()),
        select(vec!["tenant", "balance", "default"]).prop_map(str::to_owned),
    ]
    .prop_map(|id| TenantId::parse(&id).unwrap())
}

fn space() -> impl Strategy<Value = KeySpace> {
    prop_oneof![1 => Just(KeySpace::single()), 4 => tenant_id().prop_map(|id| KeySpace::tenant(&id))]
}

/// Any text, and text made of the pieces that a careless reader would trip over.
fn alias() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "\\PC{0,8}",
        uuid().prop_map(|u| u.to_string()),
        select(vec![
            ":",
            "#",
            "/",
            "@",
            " ",
            "tenant:",
            "tenant:t:",
            "balance:{transactions}:",
            "default",
            "\0"
        ])
        .prop_map(str::to_owned),
    ];
    prop_oneof![any::<String>(), prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())]
}

/// A balance key: not blank, without `#`.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![Just(DEFAULT_KEY.to_owned()), uuid().prop_map(|u| u.to_string()), "[^#]{1,20}"]
        .prop_filter("blank", |key| !key.trim().is_empty())
}

/// Decimal text without exponent, as the producer writes it.
fn decimal() -> impl Strategy<Value = String> {
    "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?"
}

/// Decimal text in any form that is allowed without a leading `+`.
fn any_decimal() -> impl Strategy<Value = String> {
    prop_oneof![decimal(), "-?([0-9]{1,30}\\.?|[0-9]{0,30}\\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?",]
}

proptest! {
    #[test]
    fn members_are_read_back(space in space(), org in uuid(), ledger in uuid(), alias in alias(), key in key()) {
        let member = space.balance(org, ledger, &alias, &key);
        let parsed = BalanceRef::parse(&space, member.as_bytes()).unwrap();
        prop_assert_eq!(parsed, BalanceRef { organization: org, ledger, alias: &alias, key: &key });
    }

    #[test]
    fn a_member_belongs_to_one_space(a in space(), b in space(), org in uuid(), ledger in uuid(), alias in alias()) {
        prop_assume!(a != b);
        let member = a.balance(org, ledger, &alias, "k");
        prop_assert!(BalanceRef::parse(&b, member.as_bytes()).is_err());
    }

    #[test]
    fn amounts_are_kept(text in any_decimal()) {
        let amount = Amount::parse(&text).unwrap();
        prop_assert_eq!(amount.as_str(), &text);
        prop_assert!(amount.same_value(&amount));
        let plus = format!("+{}", text.trim_start_matches('-'));
        let parsed = Amount::parse(&plus).unwrap();
        prop_assert_eq!(parsed.as_str(), &plus[1..]);
        prop_assert!(!parsed.is_negative());
    }

    #[test]
    fn values_are_read_back_in_both_spellings_and_forms(
        id in uuid(),
        amounts in [decimal(), decimal(), decimal()],
        strings in any::<[bool; 4]>(),
        version in 0..=i64::MAX,
        asset in any::<String>(),
        key in any::<String>(),
        upper in any::<bool>(),
        rotation in 0..9_usize,
    ) {
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        let amount = |n: usize| if strings[n] { quoted(&amounts[n]) } else { amounts[n].clone() };
        // A plain integer, or the exponent form with all its digits.
        let digits = version.to_string();
        let version_text = if strings[3] { version.to_string() } else {
            format!("{}.{}0e+{}", &digits[..1], &digits[1..], digits.len() - 1)
        };
        let names = if upper {
            ["ID", "Available", "OnHold", "OverdraftUsed", "Version", "AssetCode", "Key", "Alias", "Settings"]
        } else {
            ["id", "available", "onHold", "overdraftUsed", "version", "assetCode", "key", "alias", "settings"]
        };
        let texts = [
            quoted(&id.to_string()), amount(0), amount(1), amount(2), version_text, quoted(&asset), quoted(&key),
            quoted(&key), r#"{"Version":[1],"x":"\"}"}"#.to_owned(),
        ];
        let mut fields: Vec<String> =
            names.iter().zip(&texts).map(|(name, text)| format!("\"{name}\" : {text}")).collect();
        fields.rotate_left(rotation);
        let json = format!("{{{}}}", fields.join(","));

        let value = BalanceValue::decode(json.as_bytes()).unwrap();
        prop_assert_eq!(value.id, id);
        prop_assert_eq!(value.available.as_str(), &amounts[0]);
        prop_assert_eq!(value.on_hold.as_str(), &amounts[1]);
        prop_assert_eq!(value.overdraft_used.as_str(), &amounts[2]);
        prop_assert_eq!(value.version, version);
        prop_assert_eq!(&value.asset_code, &asset);
        prop_assert_eq!(&value.key, &key);
    }

    #[test]
    fn whole_versions_are_read_in_any_form(digits in "[0-9]{1,15}", zeros in 0..4_usize, shift in 0..20_usize) {
        // digits × 10^zeros, written with `shift` more digits behind the point than the exponent takes back.
        let expected: i64 = format!("{digits}{}", "0".repeat(zeros)).parse().unwrap();
        let padded = format!("{:0>width$}", digits, width = shift + 1);
        let (whole, fraction) = padded.split_at(padded.len() - shift);
        let whole = match whole.trim_start_matches('0') { "" => "0", whole => whole };
        let point = if fraction.is_empty() { "" } else { "." };
        let version = format!("{whole}{point}{fraction}e{}", shift + zeros);
        let json = format!(r#"{{"ID":"{}","Available":"0","OnHold":"0","Version":{version}}}"#, Uuid::max());
        prop_assert_eq!(BalanceValue::decode(json.as_bytes()).unwrap().version, expected);
    }

    #[test]
    fn the_newest_version_of_each_balance_wins(
        entries in prop::collection::vec((0..2_u128, 0..2_u128, 0..3_u8, 0..2_u8, 0..2_u8, 0..6_i64), 0..60)
    ) {
        let text = |n: u8| ["a", "ab", "b"][usize::from(n)];
        let batch: Vec<Candidate<'_>> = entries
            .iter()
            .map(|&(o, l, alias, asset, key, version)| Candidate {
                organization: Uuid::from_u128(o),
                ledger: Uuid::from_u128(l),
                alias: text(alias),
                asset: text(asset),
                key: text(key),
                version,
            })
            .collect();

        // The naive model: walk through, keep what is strictly newer.
        let balance = |c: &Candidate<'_>| (c.organization, c.ledger, c.alias.to_owned(), c.asset.to_owned(), c.key.to_owned());
        let mut newest = BTreeMap::new();
        for (index, candidate) in batch.iter().enumerate() {
            let best = newest.entry(balance(candidate)).or_insert(index);
            if candidate.version > batch[*best].version {
                *best = index;
            }
        }
        let found = aggregate(&batch);
        prop_assert_eq!(&found.winners, &newest.values().copied().collect::<Vec<_>>());
        let winner_of: Vec<usize> = batch.iter().map(|c| newest[&balance(c)]).collect();
        prop_assert_eq!(&found.winner_of, &winner_of);

        // The order of the batch changes which of equals wins, never the versions.
        let mut reversed = batch.clone();
        reversed.reverse();
        let versions = |batch: &[Candidate<'_>], winners: &[usize]| {
            winners.iter().map(|&w| (balance(&batch[w]), batch[w].version)).collect::<Vec<_>>()
        };
        let again = aggregate(&reversed);
        prop_assert_eq!(versions(&batch, &found.winners), versions(&reversed, &again.winners));
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in any::<String>(), space in space()) {
        let prefixed = [space.balance_prefix().as_bytes(), &bytes].concat();
        let _ = BalanceRef::parse(&space, &bytes).map_err(|e| (e.to_string(), e.reason()));
        let _ = BalanceRef::parse(&space, &prefixed).map_err(|e| (e.to_string(), e.reason()));
        let _ = BalanceRef::parse(&space, text.as_bytes()).map_err(|e| e.to_string());
        let _ = BalanceValue::decode(&bytes).map_err(|e| (e.to_string(), e.reason()));
        let _ = BalanceValue::decode(text.as_bytes()).map_err(|e| e.to_string());
        let _ = Amount::parse(&text).map_err(|e| (e.to_string(), e.reason()));
        let _ = TenantId::parse(&text).map_err(|e| e.to_string());
    }

    #[test]
    fn no_nearly_valid_text_makes_a_reader_panic(
        number in "[-+]?[0-9]{0,6}[.,]?[0-9]{0,6}([eE][-+]?[0-9]{0,25})?",
        field in select(vec!["ID", "Available", "OnHold", "OverdraftUsed", "Version", "AssetCode", "Key"]),
        json in prop_oneof![Just(String::new()), "[\\[\\]{}\",:0-9.eE+\\\\-]{0,30}"],
        quote in any::<bool>(),
    ) {
        let amount = Amount::parse(&number);
        prop_assert_eq!(amount.is_ok(), amount.as_ref().is_ok_and(|a| a.same_value(a)));
        for content in [&number, &json] {
            let content = if quote { format!("\"{content}\"") } else { content.clone() };
            let _ = BalanceValue::decode(format!(
                r#"{{"ID":"{}","Available":"0","OnHold":"0","Version":1,"{field}":{content}}}"#, Uuid::max()
            ).as_bytes()).map_err(|e| (e.to_string(), e.reason()));
        }
    }
}
