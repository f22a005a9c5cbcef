//! The fields of a value by their exact names, each at most once.

use std::borrow::Cow;
use std::collections::HashSet;

use super::error::ValueError;
use super::json::{self, Expected, RawString};
use crate::excerpt::{excerpt, excerpt_bytes};

/// The name that tells the format.
const FORMAT: &str = "SchemaVersion";

/// The only number that `SchemaVersion` may hold, as it must stand there.
const KNOWN_FORMAT: &[u8] = b"2";

/// The raw JSON of a field in both spellings; empty when the name doesn't occur.
#[derive(Default, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) upper: &'a [u8],
    pub(super) lower: &'a [u8],
}

/// The fields that matter, cut out of the input.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) id: Pair<'a>,
    pub(super) available: Pair<'a>,
    pub(super) on_hold: Pair<'a>,
    pub(super) overdraft_used: Pair<'a>,
    pub(super) version: Pair<'a>,
    pub(super) asset_code: Pair<'a>,
    pub(super) key: Pair<'a>,
    /// What `SchemaVersion` holds; empty when the name doesn't occur.
    pub(super) schema_version: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads the names of an object.
    ///
    /// # Errors
    /// When it isn't a JSON object, is in an unknown format, or a name stands there twice. The format comes before
    /// the names: what twice the same name means in another format is not known here.
    pub(super) fn read(json: &'a [u8]) -> Result<Self, ValueError> {
        let mut fields = Self::default();
        let mut others = Others::default();
        let mut twice = None;
        let mut format_twice = false;
        json::for_each_member(json, |name, value| {
            if fields.take(name, value, &mut others)? {
                format_twice |= name.text().is_some_and(|name| name == FORMAT);
                twice.get_or_insert(name);
            }
            Ok(())
        })
        .map_err(|broken| ValueError::NotAnObject {
            value: excerpt_bytes(json),
            detail: broken.to_string(),
        })?;
        // Which of the two counts is unknown to every release: nothing to wait for.
        if format_twice {
            return Err(ValueError::DuplicateName { name: excerpt(FORMAT) });
        }
        if !matches!(fields.schema_version, b"" | KNOWN_FORMAT) {
            // Readers are shown it, and what is in it may be anything.
            let value = match fields.schema_version {
                [b'{', ..] => "an object".to_owned(),
                [b'[', ..] => "an array".to_owned(),
                scalar => excerpt_bytes(scalar),
            };
            return Err(ValueError::UnknownFormat { value });
        }
        match twice {
            None => Ok(fields),
            Some(name) => Err(ValueError::DuplicateName { name: excerpt(&name.text().unwrap_or_default()) }),
        }
    }

    /// Keeps a member of the object, and returns whether its name has been there before.
    fn take(
        &mut self,
        name: RawString<'a>,
        value: &'a [u8],
        others: &mut Others<'a>,
    ) -> Result<bool, Expected> {
        let Some(plain) = name.plain() else {
            let text = name.text().ok_or(Expected::NameOfText)?;
            return Ok(match self.slot(text.as_bytes()) {
                Some(slot) => fill(slot, value),
                None => others.add_unescaped(text),
            });
        };
        match self.slot(plain) {
            Some(slot) => Ok(fill(slot, value)),
            None => others.add(plain),
        }
    }

    fn slot(&mut self, name: &[u8]) -> Option<&mut &'a [u8]> {
        Some(match name {
            b"ID" => &mut self.id.upper,
            b"id" => &mut self.id.lower,
            b"Available" => &mut self.available.upper,
            b"available" => &mut self.available.lower,
            b"OnHold" => &mut self.on_hold.upper,
            b"onHold" => &mut self.on_hold.lower,
            b"OverdraftUsed" => &mut self.overdraft_used.upper,
            b"overdraftUsed" => &mut self.overdraft_used.lower,
            b"Version" => &mut self.version.upper,
            b"version" => &mut self.version.lower,
            b"AssetCode" => &mut self.asset_code.upper,
            b"assetCode" => &mut self.asset_code.lower,
            b"Key" => &mut self.key.upper,
            b"key" => &mut self.key.lower,
            b"SchemaVersion" => &mut self.schema_version,
            _ => return None,
        })
    }
}

/// Fills a slot and returns whether it was filled before. The first value stays.
fn fill<'a>(slot: &mut &'a [u8], value: &'a [u8]) -> bool {
    let twice = !slot.is_empty();
    if !twice {
        *slot = value;
    }
    twice
}

/// How many names are kept without a hash map. A value of the newest ledgers has 24 that don't matter.
const FEW: usize = 32;

/// The names that don't matter, to find those that stand there twice.
///
/// A filter of 256 bits tells nearly all names apart at the cost of one multiplication; only names that meet in it
/// are compared. Beyond [`FEW`] names a hash map takes over, so that no object takes quadratic time.
struct Others<'a> {
    filter: [u64; 4],
    few: [&'a [u8]; FEW],
    len: usize,
    /// In use once there are many names, or an escaped one; then it holds all of them.
    many: Option<HashSet<Cow<'a, [u8]>>>,
}

impl Default for Others<'_> {
    fn default() -> Self {
        Self { filter: [0; 4], few: [&[]; FEW], len: 0, many: None }
    }
}

impl<'a> Others<'a> {
    /// Adds a name without escapes, and returns whether it is there already.
    fn add(&mut self, name: &'a [u8]) -> Result<bool, Expected> {
        let (first, last) = ends(name);
        let ascii = (first | last) & 0x8080_8080_8080_8080 == 0 && (name.len() <= 16 || name.is_ascii());
        if !ascii && std::str::from_utf8(name).is_err() {
            return Err(Expected::NameOfText);
        }
        if self.many.is_some() || self.len == FEW {
            return Ok(!self.many().insert(Cow::Borrowed(name)));
        }
        let hash =
            (first.wrapping_mul(MIX) ^ last.rotate_left(29) ^ name.len() as u64).wrapping_mul(MIX) >> 56;
        let (word, bit) = ((hash / 64) as usize, 1 << (hash % 64));
        if self.filter[word] & bit != 0 && self.few[..self.len].contains(&name) {
            return Ok(true);
        }
        self.filter[word] |= bit;
        self.few[self.len] = name;
        self.len += 1;
        Ok(false)
    }

    /// As [`add`](Self::add), for a name whose escapes have been resolved.
    fn add_unescaped(&mut self, name: Cow<'a, str>) -> bool {
        let name = match name {
            Cow::Borrowed(name) => Cow::Borrowed(name.as_bytes()),
            Cow::Owned(name) => Cow::Owned(name.into_bytes()),
        };
        !self.many().insert(name)
    }

    fn many(&mut self) -> &mut HashSet<Cow<'a, [u8]>> {
        let few = &self.few[..self.len];
        self.many.get_or_insert_with(|| few.iter().map(|name| Cow::Borrowed(*name)).collect())
    }
}

/// An odd constant with well-spread bits: 2^64 divided by the golden ratio.
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// The first and the last bytes of a name, which together are all of it up to 16 bytes.
fn ends(name: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        (u64::from_le_bytes(*first), u64::from_le_bytes(*last))
    } else if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        (u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into())
    } else {
        (name.iter().fold(0, |bytes, byte| bytes << 8 | u64::from(*byte)), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twice(names: impl IntoIterator<Item = String>) -> bool {
        let members: Vec<String> = names.into_iter().map(|name| format!("\"{name}\":1")).collect();
        let json = format!("{{{}}}", members.join(","));
        match Fields::read(json.as_bytes()) {
            Ok(_) => false,
            Err(ValueError::DuplicateName { .. }) => true,
            Err(other) => panic!("{other}"),
        }
    }

    fn numbered(count: usize) -> impl Iterator<Item = String> {
        // Long enough for names whose first and last eight bytes are equal, and that meet in the filter.
        (0..count).map(|n| format!("a-long-n{n:05}ame-indeed"))
    }

    #[test]
    fn every_name_may_stand_once() {
        for count in [0, 1, FEW - 1, FEW, FEW + 1, 500] {
            assert!(!twice(numbered(count)));
            for again in [0, 7, FEW - 1, FEW, count.saturating_sub(1)] {
                if again < count {
                    assert!(twice(numbered(count).chain(numbered(count).nth(again))), "{again} of {count}");
                }
            }
        }
        for name in ["", "a", "ab", "abcd", "abcdefg", "abcdefgh", "é", "ID", "id", "Key", "overdraftUsed"] {
            assert!(twice([name.to_owned(), "x".to_owned(), name.to_owned()]), "{name}");
        }
        let lengths = (0..200).map(|len| "a".repeat(len));
        assert!(!twice(lengths.clone()));
        assert!(twice(lengths.chain(["a".repeat(11)])));
    }

    #[test]
    fn an_escaped_name_is_the_same_name() {
        let escaped = |names: &[&str]| twice(names.iter().map(|name| (*name).to_owned()));
        assert!(escaped(&["I\\u0044", "ID"]) && escaped(&["ID", "\\u0049D"]));
        assert!(escaped(&["alias", "\\u0061lias"]) && escaped(&["\\u0061lias", "alias"]));
        assert!(escaped(&["a\\/b", "a/b"]) && escaped(&["\\u0061", "\\u0061"]));
        assert!(!escaped(&["a", "\\u0062", "c", "A", "a ", "\\u0000a"]));
    }

    #[test]
    fn an_unknown_format_comes_before_other_names_that_stand_twice() {
        let reason = |json: &str| Fields::read(json.as_bytes()).err().map(|error| error.reason().as_str());
        assert_eq!(reason(r#"{"a":1,"a":1,"SchemaVersion":3}"#), Some("value_unknown_format"));
        assert_eq!(
            reason(r#"{"a":1,"a":1,"SchemaVersion":3,"SchemaVersion":3}"#),
            Some("value_duplicate_name")
        );
        assert_eq!(reason(r#"{"SchemaVersion":2,"SchemaVersion":3}"#), Some("value_duplicate_name"));
        assert_eq!(reason(r#"{"SchemaVersion":3,"Schema\u0056ersion":2}"#), Some("value_duplicate_name"));
        assert_eq!(reason(r#"{"SchemaVersion":2,"SchemaVersion":2}"#), Some("value_duplicate_name"));
        assert_eq!(reason(r#"{"a":1,"a":1,"SchemaVersion":3"#), Some("value_not_a_json_object"));
        assert_eq!(reason(r#"{"SchemaVersion":2}"#), None);
        let nested =
            Fields::read(br#"{"SchemaVersion": {"Available":77}}"#).err().map(|error| error.to_string());
        assert!(nested.is_some_and(|words| words.starts_with("field SchemaVersion is an object:")));
    }

    #[test]
    fn names_that_are_no_text_are_refused() {
        for name in [&b"\xff"[..], b"Alia\xe9", b"a-name-longer-than-16-bytes-\xff", b"\\ud800"] {
            let json = [b"{\"", name, b"\":1}"].concat();
            assert!(matches!(Fields::read(&json), Err(ValueError::NotAnObject { .. })));
        }
    }
}
