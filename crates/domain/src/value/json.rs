//! Walks through one JSON object in a single pass, without building anything.
//!
//! Why not a general reader: nearly all of a value is names and texts that are skipped, names are compared as they
//! stand, and numbers must stay the digits they are. Checking the grammar and cutting out what matters is all that
//! is left, and costs half of what a reader with typed values costs. It accepts exactly JSON (RFC 8259), except that
//! strings that aren't read may hold bytes that are not UTF-8; `tests/it/differential.rs` compares it with
//! `serde_json`.

use std::borrow::Cow;
use std::fmt;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Where the text stops being JSON, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken {
    at: usize,
    expected: Expected,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {} {} is expected", self.at, self.expected.text())
    }
}

/// What should stand where the text is broken. One byte, so that results stay in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Object,
    Name,
    NameOfText,
    Colon,
    Value,
    Digit,
    Character,
    Escape,
    HexDigits,
    CommaOrBrace,
    CommaOrBracket,
    End,
}

impl Expected {
    fn text(self) -> &'static str {
        match self {
            Self::Object => "a JSON object",
            Self::Name => "a name",
            Self::NameOfText => "a name that is text in UTF-8",
            Self::Colon => "':'",
            Self::Value => "a value",
            Self::Digit => "a digit",
            Self::Character => "'\"' or a character that may stand in a string",
            Self::Escape => "an escape",
            Self::HexDigits => "'u' and four hexadecimal digits",
            Self::CommaOrBrace => "',' or '}'",
            Self::CommaOrBracket => "',' or ']'",
            Self::End => "the end of the value",
        }
    }
}

/// Calls `member` with the raw name, its quotes included, and the raw value of each member of the object that `json`
/// is.
pub(super) fn for_each_member<'a>(
    json: &'a [u8],
    member: impl FnMut(RawString<'a>, &'a [u8]) -> Result<(), Expected>,
) -> Result<(), Broken> {
    let mut scanner = Scanner { json, at: 0 };
    scanner.object(member).map_err(|expected| Broken { at: scanner.at, expected })
}

/// A JSON string as it stands in the input.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawString<'a> {
    /// With its quotes.
    raw: &'a [u8],
    escaped: bool,
}

impl<'a> RawString<'a> {
    /// `raw` as a string, when it is one. It must be a valid JSON text.
    pub(super) fn of(raw: &'a [u8]) -> Option<Self> {
        (raw.first() == Some(&b'"')).then(|| Self { raw, escaped: raw.contains(&b'\\') })
    }

    /// What stands between the quotes, unless something in it is escaped.
    pub(super) fn plain(&self) -> Option<&'a [u8]> {
        if self.escaped { None } else { self.raw.get(1..self.raw.len() - 1) }
    }

    /// The text, borrowed when nothing in it is escaped; `None` when it is no text (not UTF-8, or half a surrogate
    /// pair).
    pub(super) fn text(&self) -> Option<Cow<'a, str>> {
        match self.plain() {
            Some(content) => std::str::from_utf8(content).ok().map(Cow::Borrowed),
            None => serde_json::from_slice(self.raw).ok().map(Cow::Owned),
        }
    }
}

struct Scanner<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn object(
        &mut self,
        mut member: impl FnMut(RawString<'a>, &'a [u8]) -> Result<(), Expected>,
    ) -> Result<(), Expected> {
        self.skip_space();
        self.expect(b'{', Expected::Object)?;
        self.skip_space();
        if !self.skip_if(b'}') {
            loop {
                let name = self.name()?;
                let start = self.at;
                self.value()?;
                member(name, &self.json[start..self.at])?;
                self.skip_space();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break,
                    _ => return Err(Expected::CommaOrBrace),
                }
                self.skip_space();
            }
            self.at += 1;
        }
        self.skip_space();
        if self.at == self.json.len() { Ok(()) } else { Err(Expected::End) }
    }

    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8, expected: Expected) -> Result<(), Expected> {
        if self.peek() != Some(byte) {
            return Err(expected);
        }
        self.at += 1;
        Ok(())
    }

    fn skip_if(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.at += 1;
        }
        found
    }

    #[inline(always)]
    fn skip_space(&mut self) {
        while let Some(byte) = self.peek() {
            if byte > b' ' || !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return;
            }
            self.at += 1;
        }
    }

    /// A name and the colon behind it.
    #[inline(always)]
    fn name(&mut self) -> Result<RawString<'a>, Expected> {
        let start = self.at;
        self.expect(b'"', Expected::Name)?;
        let escaped = self.rest_of_string()?;
        let raw = &self.json[start..self.at];
        self.skip_space();
        self.expect(b':', Expected::Colon)?;
        self.skip_space();
        Ok(RawString { raw, escaped })
    }

    fn value(&mut self) -> Result<(), Expected> {
        match self.peek() {
            Some(b'{' | b'[') => self.container(),
            _ => self.scalar(),
        }
    }

    fn scalar(&mut self) -> Result<(), Expected> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.rest_of_string().map(|_escaped| ())
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => Err(Expected::Value),
        }
    }

    fn word(&mut self, word: &'static [u8]) -> Result<(), Expected> {
        if self.json[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(Expected::Value)
        }
    }

    fn number(&mut self) -> Result<(), Expected> {
        self.skip_if(b'-');
        if !self.skip_if(b'0') {
            self.digits()?;
        }
        if self.skip_if(b'.') {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), Expected> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(Expected::Digit) }
    }

    /// From behind the opening quote to behind the closing one. Returns whether anything in between is escaped.
    #[inline(always)]
    fn rest_of_string(&mut self) -> Result<bool, Expected> {
        let mut escaped = false;
        loop {
            self.skip_plain();
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.at += 1;
                    self.escape()?;
                }
                _ => return Err(Expected::Character),
            }
        }
    }

    /// Skips to the next quote, backslash or control character, eight bytes at a time.
    fn skip_plain(&mut self) {
        while let Some(chunk) = self.json.get(self.at..).and_then(<[u8]>::first_chunk) {
            let word = u64::from_le_bytes(*chunk);
            // The lowest byte that is marked is always one that is looked for; higher ones may be marked by a borrow.
            let equal = |byte: u8| {
                let differs = word ^ (ONES * u64::from(byte));
                differs.wrapping_sub(ONES) & !differs
            };
            let control = word.wrapping_sub(ONES * 0x20) & !word;
            let marks = (equal(b'"') | equal(b'\\') | control) & HIGHS;
            if marks != 0 {
                self.at += (marks.trailing_zeros() / 8) as usize;
                return;
            }
            self.at += 8;
        }
        while self.peek().is_some_and(|byte| !matches!(byte, b'"' | b'\\' | ..0x20)) {
            self.at += 1;
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<(), Expected> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                let digits = self.json.get(self.at + 1..self.at + 5);
                if digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    self.at += 5;
                    Ok(())
                } else {
                    Err(Expected::HexDigits)
                }
            }
            _ => Err(Expected::Escape),
        }
    }

    /// An object or an array with all that is in it. Not recursive: how deep it is nested is the writer's choice.
    fn container(&mut self) -> Result<(), Expected> {
        let mut open = Nesting::default();
        loop {
            // A value is next.
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    self.skip_space();
                    if !self.skip_if(b'}') {
                        open.push(true);
                        self.name()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    self.skip_space();
                    if !self.skip_if(b']') {
                        open.push(false);
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // A value has ended, and with it perhaps what it stands in.
            loop {
                let Some(in_object) = open.top() else { return Ok(()) };
                self.skip_space();
                if self.skip_if(b',') {
                    self.skip_space();
                    if in_object {
                        self.name()?;
                    }
                    break;
                }
                if in_object {
                    self.expect(b'}', Expected::CommaOrBrace)?;
                } else {
                    self.expect(b']', Expected::CommaOrBracket)?;
                }
                open.pop();
            }
        }
    }
}

/// Which brackets are open: one bit each, allocated only beyond 63 levels.
struct Nesting {
    /// The innermost ones, the last in the lowest bit, below a bit that marks the end.
    bits: u64,
    outer: Vec<u64>,
}

impl Default for Nesting {
    fn default() -> Self {
        Self { bits: 1, outer: Vec::new() }
    }
}

impl Nesting {
    fn push(&mut self, object: bool) {
        if self.bits.leading_zeros() == 0 {
            self.outer.push(self.bits);
            self.bits = 1;
        }
        self.bits = self.bits << 1 | u64::from(object);
    }

    fn top(&self) -> Option<bool> {
        (self.bits != 1).then_some(self.bits & 1 == 1)
    }

    fn pop(&mut self) {
        self.bits >>= 1;
        if self.bits == 1
            && let Some(bits) = self.outer.pop()
        {
            self.bits = bits;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn members(json: &[u8]) -> Result<Vec<(String, String)>, Broken> {
        let mut members = Vec::new();
        for_each_member(json, |name, value| {
            members.push((
                name.text().ok_or(Expected::NameOfText)?.into_owned(),
                String::from_utf8_lossy(value).into_owned(),
            ));
            Ok(())
        })
        .map(|()| members)
    }

    #[test]
    fn raw_values_are_cut_out_as_they_stand() {
        let json =
            " {\"a\" : -1.50e+3 ,\n\"b\\u0063\":\"x\\\"}\",\"\":[1,{\"a\":[]}, {} ],\"é\":{\"k\":null}}\t";
        let found = members(json.as_bytes()).unwrap();
        let expected =
            [("a", "-1.50e+3"), ("bc", "\"x\\\"}\""), ("", "[1,{\"a\":[]}, {} ]"), ("é", "{\"k\":null}")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_string_ends_at_its_quote_wherever_it_stands() {
        for len in 0..40 {
            let text = "é#".repeat(20).chars().take(len).collect::<String>();
            for tail in ["", "\\\\", "\\\"", "\\u00e9"] {
                let json = format!("{{\"n\":\"{text}{tail}\",\"m\":1}}");
                let found = members(json.as_bytes()).unwrap();
                assert_eq!(found[0].1, format!("\"{text}{tail}\""));
                assert_eq!(found[1], ("m".to_owned(), "1".to_owned()));
                for control in ["\0", "\n", "\u{1f}"] {
                    let json = format!("{{\"n\":\"{text}{control}{tail}\"}}");
                    assert!(members(json.as_bytes()).is_err(), "{json:?}");
                }
            }
        }
    }

    #[test]
    fn any_depth_is_walked_through_without_recursion() {
        for depth in [1, 62, 63, 64, 65, 127, 128, 129, 1_000, 200_000] {
            let (open, close): (String, String) =
                (0..depth).map(|n| if n % 3 == 0 { ("[", "]") } else { ("{\"a\":", "}") }).unzip();
            let close: String = close.chars().rev().collect();
            let json = format!("{{\"n\":{open}1{close}}}");
            assert_eq!(members(json.as_bytes()).unwrap().len(), 1, "{depth}");
            assert!(members(format!("{{\"n\":{open}1{close}]}}").as_bytes()).is_err());
            let wrong = close.replacen(']', "}", 1);
            assert!(members(format!("{{\"n\":{open}1{wrong}}}").as_bytes()).is_err());
        }
    }

    #[test]
    fn errors_say_where_and_what_is_expected() {
        let error = members(b"{\"a\":1,}").unwrap_err();
        assert_eq!(error.to_string(), "at byte 7 a name is expected");
        assert_eq!(members(b"7").unwrap_err().to_string(), "at byte 0 a JSON object is expected");
    }
}
