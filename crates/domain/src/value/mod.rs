//! The value of a balance: the JSON that the ledger keeps in Redis.
//!
//! Decoding it is the hottest loop of a worker, and the place where digits could get lost. So the fields that
//! matter are cut out of the input as raw JSON, without going through a number type, and are checked after the
//! whole object has been read; everything else is skipped. As in the ledger's own reader (Go's
//! `encoding/json`) names match without regard to case, the last of several equal names wins, and `null`
//! changes nothing.
//!
//! What can't be trusted is refused, never guessed: a value without a version would count as version 0 and be
//! dropped as stale, and an unreadable overdraft taken for 0 would erase a debt. That an overdraft is not
//! negative is a rule of the table, and left to the database.

mod error;

use std::borrow::Cow;
use std::fmt;

pub use error::ValueError;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Unexpected, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::amount::{Amount, Decimal, signed};
use crate::excerpt::{excerpt, excerpt_bytes};
use crate::member::{BalanceRef, DEFAULT_KEY, is_blank};

/// Most digits of an `i64`.
const MAX_VERSION_DIGITS: i64 = 19;

/// What is written to the row of a balance, and what tells which row that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalanceValue {
    /// The row's primary key.
    pub id: Uuid,
    /// What can be spent; negative for external accounts.
    pub available: Amount,
    /// What is reserved by pending transactions.
    pub on_hold: Amount,
    /// What of the overdraft is in use; 0 when the value has none.
    pub overdraft_used: Amount,
    /// Grows by one with each mutation; never negative.
    pub version: i64,
    /// The asset's code, such as `BRL`; empty when the value has none.
    pub asset_code: String,
    /// The balance's own name for its key; empty when the value has none. See [`effective_key`].
    pub key: String,
}

impl BalanceValue {
    /// Reads the value of a member of the schedule, which may be a deletion marker in place of a balance.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), and [`ValueError::DeletionMarker`].
    pub fn of_member(member: &[u8], value: &[u8]) -> Result<Self, ValueError> {
        Self::decode(value).map_err(|error| error.under_member(member, value))
    }

    /// Reads a value as the ledger writes it.
    ///
    /// # Errors
    /// When it is not a JSON object, when `ID`, `Available`, `OnHold` or `Version` is missing, or when a field
    /// doesn't hold what it should.
    pub fn decode(json: &[u8]) -> Result<Self, ValueError> {
        let fields = Fields::read(json)
            .map_err(|e| ValueError::NotAnObject { value: excerpt_bytes(json), detail: e.to_string() })?;
        if let Some(raw) = fields.schema_version.filter(|raw| *raw != "2") {
            return Err(ValueError::UnknownFormat { value: excerpt(raw) });
        }
        const DECIMAL: &str = "a decimal number";
        let missing = |field, allowed| ValueError::Missing { field, allowed };
        Ok(Self {
            id: read_id(fields.id.ok_or_else(|| missing("ID", "a UUID"))?)?,
            available: read_amount(
                "Available",
                fields.available.ok_or_else(|| missing("Available", DECIMAL))?,
            )?,
            on_hold: read_amount("OnHold", fields.on_hold.ok_or_else(|| missing("OnHold", DECIMAL))?)?,
            overdraft_used: fields
                .overdraft_used
                .map_or_else(|| Ok(Amount::zero()), |raw| read_amount("OverdraftUsed", raw))?,
            version: read_version(fields.version.ok_or_else(|| missing("Version", "a whole number"))?)?,
            asset_code: fields.asset_code.map_or(Ok(String::new()), |raw| read_text("AssetCode", raw))?,
            key: fields.key.map_or(Ok(String::new()), |raw| read_text("Key", raw))?,
        })
    }
}

/// The balance key that counts: the member's own, unless it is blank or `default`; then the value's, and
/// [`DEFAULT_KEY`] when that is blank too.
#[must_use]
pub fn effective_key<'a>(member: &BalanceRef<'a>, value: &'a BalanceValue) -> &'a str {
    if !is_blank(member.key) && member.key != DEFAULT_KEY {
        member.key
    } else if !is_blank(&value.key) {
        &value.key
    } else {
        DEFAULT_KEY
    }
}

/// The fields that matter, as raw JSON cut out of the input; `null` counts as absent.
#[derive(Default)]
struct Fields<'a> {
    id: Option<&'a str>,
    available: Option<&'a str>,
    on_hold: Option<&'a str>,
    overdraft_used: Option<&'a str>,
    version: Option<&'a str>,
    asset_code: Option<&'a str>,
    key: Option<&'a str>,
    schema_version: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn read(json: &'a [u8]) -> serde_json::Result<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        // Not `deserialize_map`, which repeats a string that stands there instead, whatever its length, in its error.
        let fields = deserializer.deserialize_any(FieldsVisitor)?;
        deserializer.end()?;
        Ok(fields)
    }

    fn slot(&mut self, name: Name) -> Option<&mut Option<&'a str>> {
        match name {
            Name::Id => Some(&mut self.id),
            Name::Available => Some(&mut self.available),
            Name::OnHold => Some(&mut self.on_hold),
            Name::OverdraftUsed => Some(&mut self.overdraft_used),
            Name::Version => Some(&mut self.version),
            Name::AssetCode => Some(&mut self.asset_code),
            Name::Key => Some(&mut self.key),
            Name::SchemaVersion => Some(&mut self.schema_version),
            Name::Other => None,
        }
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a balance as a JSON object")
    }

    /// For the error alone, which must not repeat the string.
    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::invalid_type(Unexpected::Other("string"), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<Name>()? {
            match fields.slot(name) {
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(slot) => {
                    let raw = map.next_value::<&'de RawValue>()?.get();
                    if raw != "null" || name == Name::SchemaVersion {
                        *slot = Some(raw);
                    }
                }
            }
        }
        Ok(fields)
    }
}

/// The name of a field, or of one that doesn't matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Id,
    Available,
    OnHold,
    OverdraftUsed,
    Version,
    AssetCode,
    Key,
    SchemaVersion,
    Other,
}

impl Name {
    /// The length rules nearly all candidates out, so that one comparison is enough.
    fn of(name: &str) -> Self {
        let is = |field: &str| name.eq_ignore_ascii_case(field);
        match name.len() {
            2 if is("id") => Self::Id,
            3 if is("key") => Self::Key,
            6 if is("onhold") => Self::OnHold,
            7 if is("version") => Self::Version,
            9 if is("available") => Self::Available,
            9 if is("assetcode") => Self::AssetCode,
            13 if name == "SchemaVersion" => Self::SchemaVersion,
            13 if is("overdraftused") => Self::OverdraftUsed,
            _ => Self::Other,
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(Name::of(name))
    }
}

/// The content of a JSON string, borrowed when nothing in it is escaped; `None` when `raw` isn't a string, or
/// its escapes are no text (half a surrogate pair).
fn string_content(raw: &str) -> Option<Cow<'_, str>> {
    let content = raw.strip_prefix('"')?.strip_suffix('"')?;
    if content.as_bytes().contains(&b'\\') {
        serde_json::from_str(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(content))
    }
}

fn read_id(raw: &str) -> Result<Uuid, ValueError> {
    string_content(raw)
        .and_then(|id| Uuid::try_parse(&id).ok())
        .ok_or_else(|| ValueError::InvalidId { field: "ID", value: excerpt(raw) })
}

fn read_amount(field: &'static str, raw: &str) -> Result<Amount, ValueError> {
    // A JSON number is its own text; whatever else isn't a string is no decimal number either.
    let text = string_content(raw).unwrap_or(Cow::Borrowed(raw));
    Amount::parse(&text).map_err(|rule| ValueError::InvalidAmount { field, value: excerpt(raw), rule })
}

fn read_text(field: &'static str, raw: &str) -> Result<String, ValueError> {
    string_content(raw).map(Cow::into_owned).ok_or_else(|| ValueError::invalid_text(field, raw))
}

fn read_version(raw: &str) -> Result<i64, ValueError> {
    let version = match raw.parse::<i64>() {
        Ok(version) => Some(version),
        Err(_) => whole_number(raw),
    };
    version
        .filter(|v| *v >= 0)
        .ok_or_else(|| ValueError::InvalidVersion { field: "Version", value: excerpt(raw) })
}

/// The value of decimal text when it is a whole number from 0 to `i64::MAX`, computed on its digits: the
/// producer's encoder writes `1.2345678901235e+14` for 123456789012350.
fn whole_number(text: &str) -> Option<i64> {
    let decimal = Decimal::read(text)?;
    if decimal.is_zero() {
        return Some(0);
    }
    // How many zeros follow the significant digits; fewer than none means that there is a fraction.
    let zeros = decimal.exponent - signed(decimal.fraction.len()) + signed(decimal.trailing_zeros());
    if decimal.negative || !(0..MAX_VERSION_DIGITS).contains(&zeros) {
        return None;
    }
    let shift = |number: i64, digit: u8| number.checked_mul(10)?.checked_add(i64::from(digit));
    let number = decimal.significant().try_fold(0, |number, digit| shift(number, digit - b'0'))?;
    (0..zeros).try_fold(number, |number, _| shift(number, 0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ID: &str = "fb8a88b1-6f54-5836-9a3f-c5a4f86b4b4a";

    /// A value in which `name` is replaced by (or, when new, extended with) `json`; empty removes it.
    fn with(name: &str, json: &str) -> String {
        let id = format!("\"{ID}\"");
        let mut fields = vec![
            ("ID", id.as_str()),
            ("Available", "\"90.25\""),
            ("OnHold", "\"0\""),
            ("OverdraftUsed", "\"5\""),
            ("Version", "2"),
            ("AssetCode", "\"BRL\""),
            ("Key", "\"default\""),
        ];
        fields.retain(|(field, _)| *field != name);
        if !json.is_empty() {
            fields.push((name, json));
        }
        let fields: Vec<_> = fields.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
        format!("{{{}}}", fields.join(","))
    }

    fn decode(json: &str) -> BalanceValue {
        BalanceValue::decode(json.as_bytes()).unwrap_or_else(|e| panic!("{json}: {e}"))
    }

    fn refuse(json: &str) -> ValueError {
        BalanceValue::decode(json.as_bytes()).expect_err(json)
    }

    #[test]
    fn both_spellings_are_read() {
        let script = format!(
            r#"{{"ID":"{ID}","Available":"90.25","OnHold":"1.50","Version":7,"AccountID":"x","AssetCode":"BRL",
                "OverdraftUsed":"3","Key":"savings","Alias":"@external\/BRL","AllowSending":1}}"#
        );
        let older = format!(
            r#" {{"id":"{ID}","available":90.25,"onHold":1.50,"version":7,"accountId":"x","assetCode":"BRL",
                "overdraftUsed":3,"key":"savings","alias":"@a","unknown":{{"a":[1,{{}}],"Version":1}}}} "#
        );
        let value = decode(&script);
        assert_eq!(value, decode(&older));
        assert_eq!(value.id.to_string(), ID);
        assert_eq!(value.available.as_str(), "90.25");
        assert_eq!(value.on_hold.as_str(), "1.50");
        assert_eq!(value.overdraft_used.as_str(), "3");
        assert_eq!((value.version, value.asset_code.as_str(), value.key.as_str()), (7, "BRL", "savings"));
        assert_eq!(decode(&script.to_ascii_uppercase().replace("\"BRL\"", "\"brl\"")).version, 7);
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
        ] {
            assert_eq!(decode(&with("Available", json)).available.as_str(), text, "{json}");
        }
    }

    #[test]
    fn amounts_that_are_none_are_refused_never_zero() {
        for field in ["Available", "OnHold", "OverdraftUsed"] {
            for json in [
                "\"\"",
                "\" \"",
                "\"abc\"",
                "\"NaN\"",
                "true",
                "[]",
                "{}",
                "[\"1\"]",
                "\"1e999999\"",
                "\"\\ud800\"",
            ] {
                let error = refuse(&with(field, json));
                assert_eq!(error.reason(), "value_invalid_amount", "{field} {json}");
                assert!(error.to_string().contains(field), "{error}");
            }
        }
    }

    #[test]
    fn absent_and_null_fields() {
        for json in ["", "null"] {
            assert_eq!(decode(&with("OverdraftUsed", json)).overdraft_used.as_str(), "0");
            assert_eq!(decode(&with("AssetCode", json)).asset_code, "");
            assert_eq!(decode(&with("Key", json)).key, "");
            for field in ["ID", "Available", "OnHold", "Version"] {
                let error = refuse(&with(field, json));
                assert!(matches!(&error, ValueError::Missing { field: f, .. } if *f == field), "{error}");
            }
        }
    }

    #[test]
    fn the_last_of_equal_names_wins_and_null_changes_nothing() {
        let twice = |first: &str, second: &str| with("Version", &format!("{first},\"version\":{second}"));
        assert_eq!(decode(&twice("3", "4")).version, 4);
        assert_eq!(decode(&twice("\"broken\"", "4")).version, 4);
        assert_eq!(decode(&twice("3", "null")).version, 3);
        refuse(&twice("3", "\"broken\""));
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
            ("9007199254740993", 9_007_199_254_740_993),
            ("9.007199254740993e15", 9_007_199_254_740_993),
            ("9223372036854775807", i64::MAX),
            ("9.223372036854775807e+18", i64::MAX),
            ("9223372036854775807.000", i64::MAX),
            ("1e18", 1_000_000_000_000_000_000),
        ] {
            assert_eq!(decode(&with("Version", json)).version, version, "{json}");
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
            assert_eq!(refuse(&with("Version", json)).reason(), "value_invalid_version", "{json}");
        }
    }

    #[test]
    fn ids_and_texts_that_are_none_are_refused() {
        for json in ["\"\"", "\"x\"", "7", "[]", "\"fb8a88b1-6f54-5836-9a3f-c5a4f86b4b4\""] {
            assert_eq!(refuse(&with("ID", json)).reason(), "value_invalid_id", "{json}");
        }
        for field in ["AssetCode", "Key"] {
            for json in ["7", "true", "{}", "\"\\ud800\""] {
                assert_eq!(refuse(&with(field, json)).reason(), "value_invalid_text", "{field} {json}");
            }
        }
    }

    #[test]
    fn what_is_not_one_json_object_is_refused() {
        let whole = with("Key", "\"k\"");
        for json in
            ["", " ", "null", "7", "[]", "\"x\"", "{", "{}x", "{\"ID\"}", "{\"ID\":NaN}", "{\"a\":1,}"]
        {
            let error = refuse(json);
            assert_eq!(error.reason(), "value_not_a_json_object", "{json:?}");
        }
        assert!(BalanceValue::decode(&whole.as_bytes()[..whole.len() - 1]).is_err());
        assert!(BalanceValue::decode(format!("{whole}{whole}").as_bytes()).is_err());
        assert!(BalanceValue::decode(&[whole.as_bytes(), b"\xff"].concat()).is_err());
        assert!(BalanceValue::decode(b"\xff\xfe").is_err());
        assert_eq!(refuse("{}").reason(), "value_field_missing");
    }

    #[test]
    fn errors_name_field_value_and_what_is_allowed() {
        let text = refuse(&with("OnHold", &format!("\"{}\"", "x".repeat(10_000)))).to_string();
        assert!(text.contains("OnHold") && text.contains("decimal number") && text.len() < 1000, "{text}");
        let text = refuse(&format!("\"{}\"", "\\f".repeat(10_000))).to_string();
        assert!(text.contains("invalid type: string") && text.len() < 2000, "{text}");
        let text = refuse(&with("Version", "-3")).to_string();
        assert!(text.contains("Version is \"-3\"") && text.contains("9223372036854775807"), "{text}");
    }

    #[test]
    fn an_unknown_format_is_not_taken_apart() {
        for json in ["3", "1", "\"2\"", "2.0", "null", "{}"] {
            let error = refuse(&with("SchemaVersion", json));
            assert!(error.is_unknown_format() && error.keeps_scheduled(), "{error}");
        }
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
        ] {
            assert_eq!(
                effective_key(&member(member_key), &value(value_key)),
                expected,
                "{member_key:?} {value_key:?}"
            );
        }
    }
}
