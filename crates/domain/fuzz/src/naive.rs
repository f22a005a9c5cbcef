//! The reading rule of a balance's value once more, as plainly as it can be put: every member of the object in a
//! list, names compared one with another, numbers written out digit by digit. It shares no code with the decoder,
//! not even its JSON reader, so that both can be compared on any input.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What is read: the texts of id, available, on hold, overdraft used, version, asset code and key; or the reason why
/// nothing is.
pub type Reading = Result<[String; 7], &'static str>;

/// Stands for a byte that is not UTF-8; a noncharacter, which no writer puts in a value.
const BROKEN: char = '\u{fdd0}';

/// Reads a value. `None` when it holds the character that stands for broken bytes here.
pub fn read(bytes: &[u8]) -> Option<Reading> {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| BROKEN));
    }
    if std::str::from_utf8(bytes).is_ok_and(|text| text.contains(BROKEN)) {
        return None;
    }
    Some(members(&text).map_or(Err("value_not_a_json_object"), |members| read_members(&members)))
}

/// The names, unescaped, and the raw values of an object; `None` when `text` is something else.
pub fn members(text: &str) -> Option<Vec<(String, String)>> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some(name) = map.next_key::<String>()? {
                members.push((name, map.next_value::<&RawValue>()?.get().to_owned()));
            }
            Ok(members)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let members = reader.deserialize_map(Members).ok()?;
    reader.end().ok()?;
    (!members.iter().any(|(name, _)| name.contains(BROKEN))).then_some(members)
}

fn read_members(members: &[(String, String)]) -> Reading {
    if members.iter().filter(|(name, _)| name == "SchemaVersion").count() > 1 {
        return Err("value_duplicate_name");
    }
    if members.iter().any(|(name, raw)| name == "SchemaVersion" && raw != "2") {
        return Err("value_unknown_format");
    }
    for (place, (name, _)) in members.iter().enumerate() {
        if members[..place].iter().any(|(other, _)| other == name) {
            return Err("value_duplicate_name");
        }
    }
    let has = |name: &str| members.iter().any(|(other, _)| other == name);
    let oldest = !has("ID") && !has("SchemaVersion");
    // The raw JSON that counts, and whether it must be a canonical string.
    let field = |upper: &str, lower: &str| {
        let found = |name: &str| members.iter().find(|(other, _)| other == name).map(|(_, raw)| raw.as_str());
        match found(upper) {
            Some("null") => Err("value_field_null"),
            Some(raw) => Ok(Some((raw, false))),
            None => match found(lower) {
                Some("null") => Err("value_field_null"),
                Some(raw) => Ok(Some((raw, !oldest))),
                None => Ok(None),
            },
        }
    };
    let must = |field: Option<_>| field.ok_or("value_field_missing");

    let (id, _) = must(field("ID", "id")?)?;
    let id = string(id).and_then(|id| uuid(&id)).ok_or("value_invalid_id")?;
    let (raw, strict) = must(field("Available", "available")?)?;
    let available = amount(raw, strict)?;
    let (raw, strict) = must(field("OnHold", "onHold")?)?;
    let on_hold = amount(raw, strict)?;
    let overdraft_used = match field("OverdraftUsed", "overdraftUsed")? {
        None => "0".to_owned(),
        Some(("\"\"", _)) if oldest && !has("OverdraftUsed") => "0".to_owned(),
        Some((raw, strict)) => amount(raw, strict)?,
    };
    let (raw, strict) = must(field("Version", "version")?)?;
    let version = version(raw, strict)?;
    let text = |field: Option<(&str, bool)>| match field {
        None => Ok(String::new()),
        Some((raw, _)) => string(raw).ok_or("value_invalid_text"),
    };
    let asset_code = text(field("AssetCode", "assetCode")?)?;
    let key = text(field("Key", "key")?)?;
    Ok([id, available, on_hold, overdraft_used, version, asset_code, key])
}

/// The content of a JSON string.
fn string(raw: &str) -> Option<String> {
    let text: String = serde_json::from_str(raw).ok()?;
    (!text.contains(BROKEN)).then_some(text)
}

/// A UUID with dashes, without them, in braces or as a URN, not nil; always returned with dashes in lower case.
fn uuid(text: &str) -> Option<String> {
    let inner = match text.strip_prefix("urn:uuid:") {
        Some(rest) => rest,
        None => text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text),
    };
    let dashed: String = inner.to_ascii_lowercase();
    let digits: String = match dashed.len() {
        32 if inner.len() == text.len() => dashed,
        36 => {
            let parts: Vec<&str> = dashed.split('-').collect();
            if parts.iter().map(|part| part.len()).ne([8, 4, 4, 4, 12]) {
                return None;
            }
            parts.concat()
        }
        _ => return None,
    };
    if !digits.chars().all(|digit| digit.is_ascii_hexdigit()) || digits.chars().all(|digit| digit == '0') {
        return None;
    }
    Some([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}

/// A decimal number written out without exponent.
struct Plain {
    minus: bool,
    whole: String,
    fraction: String,
    exponent: i64,
}

/// Beyond this no exponent is written out: it is out of every bound.
const FAR: i64 = 1_000_000;

fn plain(text: &str) -> Option<Plain> {
    let minus = text.starts_with('-');
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent),
        None => (unsigned, "0"),
    };
    let digits = |text: &str| text.chars().all(|digit| digit.is_ascii_digit());
    let exponent_digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if exponent_digits.is_empty() || !digits(exponent_digits) || !digits(whole) || !digits(fraction) {
        return None;
    }
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let size = exponent_digits.trim_start_matches('0');
    let size = if size.len() > 6 { FAR } else { format!("0{size}").parse().ok()? };
    let exponent = if exponent.starts_with('-') { -size } else { size };
    let (mut whole, mut fraction) = (whole.to_owned(), fraction.to_owned());
    if exponent.abs() < FAR {
        let places = exponent.unsigned_abs() as usize;
        if exponent > 0 {
            fraction.push_str(&"0".repeat(places.saturating_sub(fraction.len())));
            whole.extend(fraction.drain(..places));
        } else {
            whole.insert_str(0, &"0".repeat(places.saturating_sub(whole.len())));
            fraction.insert_str(0, &whole.split_off(whole.len() - places));
        }
    }
    Some(Plain { minus, whole, fraction, exponent })
}

fn amount(raw: &str, strict: bool) -> Result<String, &'static str> {
    let text = string(raw).unwrap_or_else(|| raw.to_owned());
    let number = plain(&text).ok_or("value_invalid_amount")?;
    let whole = number.whole.trim_start_matches('0').len();
    let zero = (number.whole.clone() + &number.fraction).chars().all(|digit| digit == '0');
    let too_large = whole > 131_072 || zero && number.exponent > 131_072;
    if too_large || number.fraction.len() > 16_383 || number.exponent.abs() >= FAR {
        return Err("value_invalid_amount");
    }
    if strict && (!raw.starts_with('"') || canonical(&text) != Some(text.clone())) {
        return Err("value_not_canonical");
    }
    Ok(text.strip_prefix('+').map_or(text.clone(), str::to_owned))
}

/// The canonical form of a number: the shortest text without exponent.
fn canonical(text: &str) -> Option<String> {
    let number = plain(text)?;
    let whole = number.whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let fraction = number.fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let zero = whole == "0" && fraction.is_empty();
    let minus = if number.minus && !zero { "-" } else { "" };
    Some(format!("{minus}{whole}{point}{fraction}"))
}

fn version(raw: &str, strict: bool) -> Result<String, &'static str> {
    const LARGEST: &str = "9223372036854775807";
    let text = if strict { string(raw).unwrap_or_else(|| raw.to_owned()) } else { raw.to_owned() };
    let number = plain(&text).ok_or("value_invalid_version")?;
    let zero = (number.whole.clone() + &number.fraction).chars().all(|digit| digit == '0');
    let whole = if zero { "0" } else { number.whole.trim_start_matches('0') };
    let too_large = whole.len() > LARGEST.len() || whole.len() == LARGEST.len() && whole > LARGEST;
    let broken = number.fraction.chars().any(|digit| digit != '0') || number.exponent.abs() >= FAR;
    if !zero && (number.minus || too_large || broken || whole.is_empty()) {
        return Err("value_invalid_version");
    }
    if strict && (!raw.starts_with('"') || text != whole) {
        return Err("value_not_canonical");
    }
    Ok(whole.to_owned())
}
