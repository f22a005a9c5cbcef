#![allow(clippy::unwrap_used)]
use super::*;

const ID: &str = "fb8a88b1-6f54-5836-9a3f-c5a4f86b4b4a";

/// A value of shape A in which `name` is replaced by (or, when new, extended with) `json`; empty removes it.
fn with(name: &str, json: &str) -> String {
    let id = format!("\"{ID}\"");
    change(
        &[
            ("ID", &id),
            ("Available", "\"90.25\""),
            ("OnHold", "\"0\""),
            ("OverdraftUsed", "\"5\""),
            ("Version", "2"),
            ("AssetCode", "\"BRL\""),
            ("Key", "\"default\""),
        ],
        name,
        json,
    )
}

/// The same in lowerCamel: of shape B, or with `SchemaVersion` removed of shape C.
fn lower_with(version: &str, name: &str, json: &str) -> String {
    let id = format!("\"{ID}\"");
    change(
        &[
            ("SchemaVersion", "2"),
            ("id", &id),
            ("available", "\"90.25\""),
            ("onHold", "\"0\""),
            ("overdraftUsed", "\"5\""),
            ("version", version),
            ("assetCode", "\"BRL\""),
            ("key", "\"default\""),
        ],
        name,
        json,
    )
}

fn new_with(name: &str, json: &str) -> String {
    lower_with("\"2\"", name, json)
}

fn oldest_with(name: &str, json: &str) -> String {
    lower_with("2", name, json).replace("\"SchemaVersion\":2,", "")
}

fn change(fields: &[(&str, &str)], name: &str, json: &str) -> String {
    let mut fields = fields.to_vec();
    fields.retain(|(field, _)| *field != name);
    if !json.is_empty() {
        fields.push((name, json));
    }
    let fields: Vec<_> = fields.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// `json` with more members of the object at its end.
fn and(json: &str, more: &str) -> String {
    format!("{},{more}}}", json.strip_suffix('}').unwrap())
}

fn decode(json: &str) -> BalanceValue {
    BalanceValue::decode(json.as_bytes()).unwrap_or_else(|e| panic!("{json}: {e}"))
}

fn refuse(json: &str) -> ValueError {
    BalanceValue::decode(json.as_bytes()).expect_err(json)
}

#[test]
fn all_shapes_are_read() {
    let script = format!(
        r#"{{"ID":"{ID}","Available":"90.25","OnHold":"1.50","Version":7,"AccountID":"x","AssetCode":"BRL",
            "OverdraftUsed":"3","Key":"savings","Alias":"@external\/BRL","AllowSending":1}}"#
    );
    let dual = and(
        &script,
        r#""SchemaVersion":2,"id":"x","available":"1","onHold":"1","version":"6","accountId":"x","assetCode":"USD",
            "overdraftUsed":"0","key":"default","alias":"@external\/BRL","allowSending":true"#,
    );
    let new_only = format!(
        r#"{{"SchemaVersion":2,"id":"{ID}","available":"90.25","onHold":"1.5","version":"7","assetCode":"BRL",
            "overdraftUsed":"3","key":"savings","alias":"@a","blocked":false}}"#
    );
    let oldest = format!(
        r#" {{"id":"{ID}","available":90.25,"onHold":1.50,"version":7,"accountId":"x","assetCode":"BRL",
            "overdraftUsed":3,"key":"savings","alias":"@a","unknown":{{"a":[1,{{}}],"Version":1}}}} "#
    );
    let value = decode(&script);
    assert_eq!(value, decode(&dual));
    assert_eq!(value, decode(&oldest));
    assert_eq!(decode(&new_only), BalanceValue { on_hold: Amount::parse("1.5").unwrap(), ..value.clone() });
    assert_eq!(value.id.to_string(), ID);
    assert_eq!(value.available.as_str(), "90.25");
    assert_eq!(value.on_hold.as_str(), "1.50");
    assert_eq!(value.overdraft_used.as_str(), "3");
    assert_eq!((value.version, value.asset_code.as_str(), value.key.as_str()), (7, "BRL", "savings"));
}

#[test]
fn names_are_compared_exactly() {
    for (json, field) in [
        (with("Available", "").replace("\"OnHold\"", "\"AVAILABLE\":\"1\",\"OnHold\""), "Available"),
        (with("Version", "").replace("\"Key\"", "\"VERSION\":3,\"Key\""), "Version"),
        (with("ID", "").replace("\"Key\"", "\"Id\":\"x\",\"Key\""), "ID"),
        (new_with("onHold", "").replace("\"key\"", "\"onhold\":\"1\",\"key\""), "onHold"),
    ] {
        let error = refuse(&json);
        assert!(matches!(&error, ValueError::Missing { field: f, .. } if *f == field), "{error}");
    }
    assert_eq!(
        decode(&and(&with("Key", "\"k\""), "\"version\":9,\"VERSION\":9,\"available\":null")).version,
        2
    );
}

/// The fault that this module exists to prevent: old money under a new version.
#[test]
fn upper_camel_counts_whatever_it_holds_and_wherever_it_stands() {
    let stale =
        r#""available":"100","onHold":"9","overdraftUsed":"0","version":"1","assetCode":"X","key":"k""#;
    let dual = with("SchemaVersion", "2");
    let behind = and(&dual, stale);
    let before = format!("{{{stale},{}", dual.strip_prefix('{').unwrap());
    for json in [behind, before] {
        assert_eq!(decode(&json), decode(&dual));
    }
    for (name, lower) in
        [("Available", "available"), ("OnHold", "onHold"), ("OverdraftUsed", "overdraftUsed")]
    {
        for broken in ["null", "\"abc\"", "\"\"", "true"] {
            let error = refuse(&and(&with(name, broken), &format!("\"{lower}\":\"7\"")));
            assert!(error.to_string().contains(name), "{error}");
        }
        // Only where the UpperCamel name is absent is the other one read.
        let value = decode(&and(&with(name, ""), &format!("\"{lower}\":\"7\"")));
        let amounts = [value.available, value.on_hold, value.overdraft_used];
        assert!(amounts.iter().any(|amount| amount.as_str() == "7"));
    }
    for (name, broken, lower) in [
        ("ID", "\"x\"", format!("\"id\":\"{ID}\"")),
        ("ID", "null", format!("\"id\":\"{ID}\"")),
        ("Version", "\"2\"", "\"version\":\"2\"".to_owned()),
        ("Version", "null", "\"version\":\"2\"".to_owned()),
        ("Key", "7", "\"key\":\"k\"".to_owned()),
        ("AssetCode", "null", "\"assetCode\":\"BRL\"".to_owned()),
    ] {
        refuse(&and(&with(name, broken), &lower));
    }
    // Also in a value without `ID`: an older ledger would have changed UpperCamel alone.
    assert_eq!(decode(&and(&new_with("key", "\"k\""), "\"Available\":\"1e1\"")).available.as_str(), "1e1");
    assert_eq!(decode(&and(&oldest_with("key", "\"k\""), "\"Version\":3")).version, 3);
}

#[test]
fn a_name_may_stand_once() {
    for more in [
        "\"Version\":2",
        "\"\\u0056ersion\":2",
        "\"Extension\":1,\"Extension\":1",
        "\"Extension\":1,\"Extens\\u0069on\":null",
        "\"version\":\"1\",\"version\":\"1\"",
        "\"SchemaVersion\":2,\"SchemaVersion\":2",
        "\"\":1,\"\":1",
    ] {
        assert_eq!(
            refuse(&and(&with("Key", "\"k\""), more)).reason().as_str(),
            "value_duplicate_name",
            "{more}"
        );
    }
    decode(&and(&with("Key", "\"k\""), "\"x\":{\"a\":1,\"a\":2},\"X\":[{\"ID\":1}]"));
    assert!(refuse(&and(&with("Key", "\"k\""), "\"\\n\":1,\"\\n\":1")).to_string().contains(r#""\n""#));
}

#[test]
fn numbers_keep_their_digits() {
    for (json, text) in [
        ("0.500000000000000000000000000001", "0.500000000000000000000000000001"),
        ("1234567890123456789012345678902", "1234567890123456789012345678902"),
        ("-250.10", "-250.10"),
        ("1e+20", "1e+20"),
        ("\"1.2e3\"", "1.2e3"),
        ("\"\\u0031.5\"", "1.5"),
        ("-0", "-0"),
        ("\"0090.250\"", "0090.250"),
    ] {
        assert_eq!(decode(&with("Available", json)).available.as_str(), text, "{json}");
        assert_eq!(decode(&oldest_with("available", json)).available.as_str(), text, "{json}");
    }
}

#[test]
fn amounts_that_are_none_are_refused_never_zero() {
    for json in
        ["\"\"", "\" \"", "\"abc\"", "\"NaN\"", "true", "[]", "{}", "[\"1\"]", "\"1e999999\"", "\"\\ud800\""]
    {
        for field in ["Available", "OnHold", "OverdraftUsed"] {
            let error = refuse(&with(field, json));
            assert_eq!(error.reason().as_str(), "value_invalid_amount", "{field} {json}");
            assert!(error.to_string().contains(field), "{error}");
        }
        for field in ["available", "onHold", "overdraftUsed"] {
            assert_eq!(
                refuse(&new_with(field, json)).reason().as_str(),
                "value_invalid_amount",
                "{field} {json}"
            );
            if (field, json) != ("overdraftUsed", "\"\"") {
                assert_eq!(
                    refuse(&oldest_with(field, json)).reason().as_str(),
                    "value_invalid_amount",
                    "{field} {json}"
                );
            }
        }
    }
    assert_eq!(decode(&oldest_with("overdraftUsed", "\"\"")).overdraft_used, Amount::zero());
    refuse(&and(&oldest_with("overdraftUsed", ""), "\"OverdraftUsed\":\"\""));
}

#[test]
fn lower_camel_amounts_of_known_formats_are_canonical_strings() {
    for json in ["\"0\"", "\"-1\"", "\"90.25\"", "\"0.001\"", "\"-0.5\"", "\"10\"", "\"\\u0031\""] {
        decode(&new_with("available", json));
        decode(&and(&with("Available", ""), &format!("\"available\":{json}")));
    }
    for json in [
        "90.25",
        "0",
        "\"90.250\"",
        "\"1.0\"",
        "\"00\"",
        "\"01\"",
        "\"-0\"",
        "\"-0.0\"",
        "\"-00.5\"",
        "\"1e2\"",
        "\"1E2\"",
        "\"+1\"",
        "\".5\"",
        "\"5.\"",
        "\"0e0\"",
    ] {
        for field in ["available", "onHold", "overdraftUsed"] {
            let error = refuse(&new_with(field, json));
            assert_eq!(error.reason().as_str(), "value_not_canonical", "{json}");
            assert!(error.to_string().contains(field), "{error}");
        }
        let patched = and(&with("Available", ""), &format!("\"available\":{json}"));
        assert_eq!(refuse(&patched).reason().as_str(), "value_not_canonical", "{json}");
        decode(&oldest_with("available", json));
    }
}

#[test]
fn absent_and_null_fields() {
    assert_eq!(decode(&with("OverdraftUsed", "")).overdraft_used.as_str(), "0");
    assert_eq!(decode(&new_with("overdraftUsed", "")).overdraft_used.as_str(), "0");
    assert_eq!(decode(&with("AssetCode", "")).asset_code, "");
    assert_eq!(decode(&oldest_with("key", "")).key, "");
    for field in ["Available", "OnHold", "Version"] {
        let error = refuse(&with(field, ""));
        assert!(matches!(&error, ValueError::Missing { field: f, .. } if *f == field), "{error}");
    }
    for field in ["id", "available", "onHold", "version"] {
        let error = refuse(&new_with(field, ""));
        assert!(matches!(&error, ValueError::Missing { field: f, .. } if *f == field), "{error}");
    }
    for field in ["ID", "Available", "OnHold", "OverdraftUsed", "Version", "AssetCode", "Key"] {
        assert_eq!(refuse(&with(field, "null")).reason().as_str(), "value_field_null", "{field}");
        let mut lower = field.to_owned();
        lower[..1].make_ascii_lowercase();
        let lower = lower.replace("iD", "id");
        assert_eq!(refuse(&new_with(&lower, "null")).reason().as_str(), "value_field_null", "{lower}");
        assert_eq!(refuse(&oldest_with(&lower, "null")).reason().as_str(), "value_field_null", "{lower}");
    }
    assert!(refuse("{}").to_string().contains("ID"));
}

#[test]
fn escaped_names_and_texts_are_read() {
    let value =
        decode(&with("AssetCode", r#""B\u0052L\/x\ud83d\ude00""#).replace("\"Key\"", "\"K\\u0065y\""));
    assert_eq!(value.asset_code, "BRL/x😀");
    assert_eq!(value.key, "default");
}

#[test]
fn versions() {
    for (json, version) in [
        ("0", 0),
        ("-0", 0),
        ("0e99999999999999999999", 0),
        ("2.0", 2),
        ("2.000e0", 2),
        ("120e-1", 12),
        ("0.5e1", 5),
        ("1e+14", 100_000_000_000_000),
        ("1.2345678901235e+14", 123_456_789_012_350),
        ("1.2345678901235E14", 123_456_789_012_350),
        ("9.007199254741e+15", 9_007_199_254_741_000),
        ("9007199254740993", 9_007_199_254_740_993),
        ("9.007199254740993e15", 9_007_199_254_740_993),
        ("9223372036854775807", i64::MAX),
        ("9.223372036854775807e+18", i64::MAX),
        ("9223372036854775807.000", i64::MAX),
        ("1e18", 1_000_000_000_000_000_000),
    ] {
        assert_eq!(decode(&with("Version", json)).version, version, "{json}");
        assert_eq!(decode(&oldest_with("version", json)).version, version, "{json}");
    }
    for json in [
        "-1",
        "1.5",
        "1e-1",
        "-2.0",
        "9223372036854775808",
        "9.223372036854775808e18",
        "1e19",
        "1e99999999999999999999",
        "1e-99999999999999999999",
        "\"2\"",
        "\"\"",
        "true",
        "[2]",
        "{}",
        "123456789012345678901234567890",
    ] {
        assert_eq!(refuse(&with("Version", json)).reason().as_str(), "value_invalid_version", "{json}");
        assert_eq!(
            refuse(&oldest_with("version", json)).reason().as_str(),
            "value_invalid_version",
            "{json}"
        );
    }
}

#[test]
fn lower_camel_versions_of_known_formats_are_canonical_strings() {
    for (json, version) in [
        ("\"0\"", 0),
        ("\"2\"", 2),
        ("\"9007199254740993\"", 9_007_199_254_740_993),
        ("\"9223372036854775807\"", i64::MAX),
    ] {
        assert_eq!(decode(&new_with("version", json)).version, version, "{json}");
        assert_eq!(decode(&and(&with("Version", ""), &format!("\"version\":{json}"))).version, version);
    }
    for json in ["2", "0", "1e3", "\"02\"", "\"00\"", "\"+2\"", "\"-0\"", "\"2.0\"", "\"1e3\"", "\"2.\""] {
        assert_eq!(refuse(&new_with("version", json)).reason().as_str(), "value_not_canonical", "{json}");
    }
    for json in ["\"9223372036854775808\"", "\"-1\"", "\"\"", "\" 2\"", "\"1.5\"", "true", "[]", "\"٢\""] {
        assert_eq!(refuse(&new_with("version", json)).reason().as_str(), "value_invalid_version", "{json}");
    }
}

#[test]
fn ids_and_texts_that_are_none_are_refused() {
    let nil = "\"00000000-0000-0000-0000-000000000000\"";
    for json in ["\"\"", "\"x\"", "7", "[]", "\"fb8a88b1-6f54-5836-9a3f-c5a4f86b4b4\"", nil] {
        assert_eq!(refuse(&with("ID", json)).reason().as_str(), "value_invalid_id", "{json}");
        assert_eq!(refuse(&new_with("id", json)).reason().as_str(), "value_invalid_id", "{json}");
    }
    for field in ["AssetCode", "Key"] {
        for json in ["7", "true", "{}", "\"\\ud800\""] {
            assert_eq!(refuse(&with(field, json)).reason().as_str(), "value_invalid_text", "{field} {json}");
        }
    }
    let broken = [with("Key", "\"").as_bytes().strip_suffix(b"}").unwrap(), b"\xff\"}"].concat();
    assert_eq!(BalanceValue::decode(&broken).unwrap_err().reason().as_str(), "value_invalid_text");
}

#[test]
fn what_is_not_one_json_object_is_refused() {
    let whole = with("Key", "\"k\"");
    for json in ["", " ", "null", "7", "[]", "\"x\"", "{", "{}x", "{\"ID\"}", "{\"ID\":NaN}", "{\"a\":1,}"] {
        let error = refuse(json);
        assert_eq!(error.reason().as_str(), "value_not_a_json_object", "{json:?}");
    }
    assert!(BalanceValue::decode(&whole.as_bytes()[..whole.len() - 1]).is_err());
    assert!(BalanceValue::decode(format!("{whole}{whole}").as_bytes()).is_err());
    assert!(BalanceValue::decode(&[whole.as_bytes(), b"\xff"].concat()).is_err());
    assert!(BalanceValue::decode(b"\xff\xfe").is_err());
    assert_eq!(refuse("{}").reason().as_str(), "value_field_missing");
}

#[test]
fn errors_name_field_value_and_what_is_allowed() {
    let text = refuse(&with("OnHold", &format!("\"{}\"", "x".repeat(10_000)))).to_string();
    assert!(text.contains("OnHold") && text.contains("decimal number") && text.len() < 1000, "{text}");
    let text = refuse(&format!("\"{}\"", "\\f".repeat(10_000))).to_string();
    assert!(text.contains("a JSON object is expected") && text.len() < 2000, "{text}");
    let text = refuse(&with("Version", "-3")).to_string();
    assert!(text.contains("Version is \"-3\"") && text.contains("9223372036854775807"), "{text}");
}

#[test]
fn an_unknown_format_is_not_taken_apart() {
    for json in ["3", "1", "\"2\"", "2.0", "2e0", "-2", "null", "{}"] {
        for value in [with("SchemaVersion", json), new_with("SchemaVersion", json)] {
            let error = refuse(&value);
            assert!(error.is_unknown_format() && error.keeps_scheduled(), "{error}");
        }
    }
    assert!(refuse("{\"SchemaVersion\":3}").is_unknown_format());
    assert_eq!(decode(&with("SchemaVersion", "2")).version, 2);
    assert_eq!(decode(&with("schemaVersion", "3")).version, 2);
}

#[test]
fn a_token_under_the_key_of_a_deletion_marker_is_no_broken_balance() {
    let marker = |member: &str, value: &str| {
        let error = BalanceValue::of_member(member.as_bytes(), value.as_bytes()).expect_err(value);
        assert_eq!(error.keeps_scheduled(), error.is_deletion_marker(), "{error}");
        error.is_deletion_marker()
    };
    let deleted = "tenant:t:balance:{transactions}:o:l:@a#default:deleted";
    for token in [ID, "1", "deleted", "9f86d081884c7d65", "dG9rZW4=", "true", "1795634784.766502"] {
        assert!(marker(deleted, token), "{token}");
        assert!(!marker(deleted.trim_end_matches(":deleted"), token), "{token}");
        assert!(!marker("balance:{transactions}:o:l:@a#deleted", token), "{token}");
    }
    let long = "x".repeat(257);
    for value in ["", " ", "a b", "{", "{}", "[]", "\"x\"", "{\"ID\":", "x\n", "é", long.as_str()] {
        assert!(!marker(deleted, value), "{value}");
    }
    assert!(BalanceValue::of_member(deleted.as_bytes(), with("Key", "\"k\"").as_bytes()).is_ok());
}

#[test]
fn the_members_key_comes_before_the_values() {
    let value = |key: &str| decode(&with("Key", &serde_json::to_string(key).unwrap()));
    let member = |key| BalanceRef { organization: Uuid::nil(), ledger: Uuid::nil(), alias: "@a", key };
    for (member_key, value_key, expected) in [
        ("savings", "other", "savings"),
        ("savings", "", "savings"),
        ("default", "savings", "savings"),
        ("", "savings", "savings"),
        (" ", "savings", "savings"),
        ("default", "", "default"),
        ("default", " \t", "default"),
        ("default", "default", "default"),
        ("Default", "x", "Default"),
        ("default", "@alice#savings", "savings"),
        ("default", "@alice3#default", "default"),
        ("", "0#@alice#savings", "savings"),
        ("default", "@alice# ", "default"),
        ("default", "#", "default"),
        ("savings", "@alice#other", "savings"),
    ] {
        assert_eq!(
            effective_key(&member(member_key), &value(value_key)),
            expected,
            "{member_key:?} {value_key:?}"
        );
    }
}
