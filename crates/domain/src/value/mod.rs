//! The value of a balance: the JSON that the ledger keeps in Redis.
//!
//! Three shapes are alive at the same time. Which one a value has is seen from its names, compared exactly:
//!
//! | shape | names | written by |
//! |---|---|---|
//! | A | `ID` | ledgers up to 4.0: UpperCamel; from 4.1 on each field in both spellings and `SchemaVersion` 2 |
//! | B | no `ID`, `SchemaVersion` 2 | lowerCamel alone, planned |
//! | C | neither | the oldest ledgers, lowerCamel |
//!
//! Of a field in both spellings UpperCamel counts, whatever it holds, in every shape: older ledgers change a dual
//! value in UpperCamel alone, and what they leave in lowerCamel is old money beside a new version. Amounts are never
//! put through a number type, so that no digit gets lost.
//!
//! What can't be trusted is refused, never guessed: a value without a version would count as version 0 and be
//! dropped as stale, an unreadable overdraft taken for 0 would erase a debt, and of two equal names either could be
//! the old one. That an overdraft is not negative is a rule of the table, and left to the database.
//!
//! Decoding is the hottest loop of a worker: one pass over the bytes, see `json`, and no allocation but for
//! what is returned.

mod error;
mod json;
mod names;
#[cfg(test)]
mod tests;

pub use error::ValueError;

use std::borrow::Cow;

use uuid::Uuid;

use crate::amount::{Amount, Decimal, signed};
use crate::excerpt::excerpt_bytes;
use crate::member::{BalanceRef, DEFAULT_KEY, is_blank};
use json::RawString;
use names::{Fields, Pair};

/// Most digits of an `i64`.
const MAX_VERSION_DIGITS: i64 = 19;

/// What is written to the row of a balance, and what tells which row that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalanceValue {
    /// The row's primary key, not nil.
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
    /// The balance's own name for its key, which may be qualified by its alias; empty when the value has none. See
    /// [`effective_key`].
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

    /// Whether a value is in a format that only ledgers from 4.1 on write, and their workers up to 4.0 can't read.
    #[must_use]
    pub fn is_of_newer_ledger(json: &[u8]) -> bool {
        Fields::read(json).is_ok_and(|fields| !fields.schema_version.is_empty())
    }

    /// Reads a value in any of the three shapes.
    ///
    /// # Errors
    /// In this order: when it is not a JSON object, when `SchemaVersion` stands twice, when it is unknown, when another name stands
    /// twice at the top level (also an unknown name, also if one of the two is written with escapes), and when one of
    /// the fields is missing, `null`, or doesn't hold what it should.
    pub fn decode(json: &[u8]) -> Result<Self, ValueError> {
        let fields = Fields::read(json)?;
        let has_id = !fields.id.upper.is_empty();
        let has_format = !fields.schema_version.is_empty();
        let rules = Rules {
            lower: !has_id && (has_format || !fields.id.lower.is_empty()),
            // Shapes A and B: what stands in lowerCamel is written by releases that know one form only.
            canonical: has_id || has_format,
        };
        Ok(Self {
            id: read_id(rules.required(fields.id, ["ID", "id"], A_UUID)?)?,
            available: read_amount(rules.required(
                fields.available,
                ["Available", "available"],
                A_DECIMAL,
            )?)?,
            on_hold: read_amount(rules.required(fields.on_hold, ["OnHold", "onHold"], A_DECIMAL)?)?,
            overdraft_used: rules
                .optional(fields.overdraft_used, ["OverdraftUsed", "overdraftUsed"], A_DECIMAL)?
                .map_or_else(|| Ok(Amount::zero()), read_overdraft)?,
            version: read_version(rules.required(fields.version, ["Version", "version"], A_WHOLE_NUMBER)?)?,
            asset_code: read_text(rules.optional(
                fields.asset_code,
                ["AssetCode", "assetCode"],
                A_STRING,
            )?)?,
            key: read_text(rules.optional(fields.key, ["Key", "key"], A_STRING)?)?,
        })
    }
}

/// The balance key that counts: the member's own, unless it is blank or `default`; then the value's, and
/// [`DEFAULT_KEY`] when that is blank too. Of a qualified key (`@alice#savings`) the part behind the last `#` counts.
#[must_use]
pub fn effective_key<'a>(member: &BalanceRef<'a>, value: &'a BalanceValue) -> &'a str {
    if !is_blank(member.key) && member.key != DEFAULT_KEY {
        return member.key;
    }
    let key = value.key.rsplit_once('#').map_or(value.key.as_str(), |(_alias, key)| key);
    if is_blank(key) { DEFAULT_KEY } else { key }
}

const A_UUID: &str = "a UUID in a string";
const A_DECIMAL: &str = "a decimal number, as a string or a JSON number";
const A_CANONICAL_DECIMAL: &str =
    "a decimal number in a string, without exponent, needless zeros or a sign before 0";
const A_WHOLE_NUMBER: &str = "a whole number";
const A_CANONICAL_WHOLE_NUMBER: &str = "a whole number in a string, digits alone, without leading zeros";
const A_STRING: &str = "a string";

/// How the fields of a value are spelled and read.
#[derive(Clone, Copy)]
struct Rules {
    /// Shapes B and C: a missing field is named in lowerCamel.
    lower: bool,
    /// Whether numbers in lowerCamel must be canonical strings.
    canonical: bool,
}

/// The spelling of a field that counts, and the raw JSON that stands there.
#[derive(Clone, Copy)]
struct Field<'a> {
    name: &'static str,
    raw: &'a [u8],
    form: Form,
}

/// How numbers must be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// UpperCamel in any shape.
    Any,
    /// lowerCamel beside UpperCamel or `SchemaVersion`.
    Canonical,
    /// lowerCamel of the oldest ledgers.
    Oldest,
}

impl Rules {
    /// The field in the spelling that counts, if it is there in any.
    fn optional<'a>(
        self,
        pair: Pair<'a>,
        [upper, lower]: [&'static str; 2],
        allowed: &'static str,
    ) -> Result<Option<Field<'a>>, ValueError> {
        let lower_form = if self.canonical { Form::Canonical } else { Form::Oldest };
        let field = match pair {
            Pair { upper: b"", lower: b"" } => return Ok(None),
            Pair { upper: b"", lower: raw } => Field { name: lower, raw, form: lower_form },
            Pair { upper: raw, .. } => Field { name: upper, raw, form: Form::Any },
        };
        if field.raw == b"null" {
            Err(ValueError::Null { field: field.name, allowed })
        } else {
            Ok(Some(field))
        }
    }

    fn required<'a>(
        self,
        pair: Pair<'a>,
        names: [&'static str; 2],
        allowed: &'static str,
    ) -> Result<Field<'a>, ValueError> {
        let field = names[usize::from(self.lower)];
        self.optional(pair, names, allowed)?.ok_or(ValueError::Missing { field, allowed })
    }
}

impl<'a> Field<'a> {
    fn shown(&self) -> String {
        excerpt_bytes(self.raw)
    }

    fn is_string(&self) -> bool {
        self.raw.first() == Some(&b'"')
    }

    /// What the string says; `None` when the field is no string, or one that is no text.
    fn text(&self) -> Option<Cow<'a, str>> {
        RawString::of(self.raw)?.text()
    }

    /// The number in the string, or the JSON number as it stands. What is neither is no number either.
    fn number_text(&self) -> Cow<'a, str> {
        self.text().unwrap_or_else(|| String::from_utf8_lossy(self.raw))
    }
}

fn read_id(field: Field<'_>) -> Result<Uuid, ValueError> {
    field
        .text()
        .and_then(|id| Uuid::try_parse(&id).ok())
        .filter(|id| !id.is_nil())
        .ok_or_else(|| ValueError::InvalidId { field: field.name, value: field.shown() })
}

fn read_amount(field: Field<'_>) -> Result<Amount, ValueError> {
    let text = field.number_text();
    let amount = Amount::parse(&text).map_err(|rule| ValueError::InvalidAmount {
        field: field.name,
        value: field.shown(),
        rule,
    })?;
    if field.form == Form::Canonical && !(field.is_string() && is_canonical_decimal(&text)) {
        return Err(not_canonical(field, A_CANONICAL_DECIMAL));
    }
    Ok(amount)
}

/// The oldest ledgers write an overdraft of 0 as `""`. Anywhere else that is an error: it could be a debt that some
/// writer failed to print.
fn read_overdraft(field: Field<'_>) -> Result<Amount, ValueError> {
    if field.form == Form::Oldest && field.raw == b"\"\"" { Ok(Amount::zero()) } else { read_amount(field) }
}

fn read_text(field: Option<Field<'_>>) -> Result<String, ValueError> {
    field.map_or(Ok(String::new()), |field| {
        field
            .text()
            .map(Cow::into_owned)
            .ok_or_else(|| ValueError::InvalidText { field: field.name, value: field.shown() })
    })
}

fn read_version(field: Field<'_>) -> Result<i64, ValueError> {
    let text = if field.form == Form::Canonical {
        field.number_text()
    } else {
        // The raw token: a version in a string is none.
        Cow::Borrowed(std::str::from_utf8(field.raw).unwrap_or_default())
    };
    let version = text.parse().ok().or_else(|| whole_number(&text)).filter(|version| *version >= 0);
    let Some(version) = version else {
        return Err(ValueError::InvalidVersion { field: field.name, value: field.shown() });
    };
    if field.form == Form::Canonical && !(field.is_string() && is_canonical_whole(text.as_bytes())) {
        return Err(not_canonical(field, A_CANONICAL_WHOLE_NUMBER));
    }
    Ok(version)
}

fn not_canonical(field: Field<'_>, allowed: &'static str) -> ValueError {
    ValueError::NotCanonical { field: field.name, value: field.shown(), allowed }
}

/// Whether decimal text is in the one form that releases from 4.1 on write in lowerCamel.
fn is_canonical_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
    match digits.iter().position(|byte| *byte == b'.') {
        None => is_canonical_whole(digits) && text != "-0",
        Some(point) => {
            let (whole, fraction) = (&digits[..point], &digits[point + 1..]);
            is_canonical_whole(whole)
                && fraction.iter().all(u8::is_ascii_digit)
                && fraction.last().is_some_and(|last| *last != b'0')
        }
    }
}

/// `0`, or digits of which the first isn't 0.
fn is_canonical_whole(digits: &[u8]) -> bool {
    match digits {
        [] => false,
        [b'0', rest @ ..] => rest.is_empty(),
        digits => digits.iter().all(u8::is_ascii_digit),
    }
}

/// The value of decimal text when it is a whole number from 0 to `i64::MAX`, computed on its digits: the
/// scripts of older ledgers write `1.2345678901235e+14` for 123456789012350.
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
