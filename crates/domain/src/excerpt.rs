//! How a refused value is shown in an error: quoted, escaped and cut, so that one log line stays one log line
//! whatever bytes a member or value holds.

/// Most characters of a refused value that an error shows. Long enough for a tenant prefix, two UUIDs and the
/// start of an alias; a quarantined member or value is kept in full elsewhere.
const MAX_CHARS: usize = 160;

/// `value` quoted, control characters escaped, cut after [`MAX_CHARS`] with the full length appended.
pub(crate) fn excerpt(value: &str) -> String {
    let mut shown = String::with_capacity(value.len().min(MAX_CHARS) + 2);
    shown.push('"');
    let mut chars = value.chars();
    for c in chars.by_ref().take(MAX_CHARS) {
        shown.extend(c.escape_debug());
    }
    shown.push('"');
    if !chars.as_str().is_empty() {
        shown.push_str(&format!("… ({} bytes in all)", value.len()));
    }
    shown
}

/// As [`excerpt`], for bytes that need not be UTF-8: what is not is shown as U+FFFD.
pub(crate) fn excerpt_bytes(value: &[u8]) -> String {
    // A character is at most four bytes, so this prefix always fills the excerpt; the rest needn't be read.
    let head = &value[..value.len().min(4 * MAX_CHARS)];
    let mut shown = excerpt(&String::from_utf8_lossy(head));
    if head.len() < value.len() && !shown.ends_with(')') {
        shown.push('…');
    }
    shown
}

/// `text` without its numbers: each word that has a digit is replaced by "…". For foreign text that may quote amounts, where
/// a reader sees it who may not see them.
#[must_use]
pub fn without_numbers(text: &str) -> String {
    let is_of_word =
        |c: char| c.is_alphanumeric() || matches!(c, '.' | ',' | '+' | '-' | '_' | '\'' | '\u{2212}');
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let in_word = is_of_word(first);
        let (run, after) = rest.split_at(rest.find(|c| is_of_word(c) != in_word).unwrap_or(rest.len()));
        if in_word && run.contains(char::is_numeric) {
            shown.push('…');
            // What ends a clause is no part of a number.
            shown.push_str(&run[run.trim_end_matches(['.', ',']).len()..]);
        } else {
            shown.push_str(run);
        }
        rest = after;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_values_are_quoted_and_escaped() {
        assert_eq!(excerpt("a\nb\"c"), r#""a\nb\"c""#);
        assert_eq!(excerpt("joão-çã"), "\"joão-çã\"");
    }

    #[test]
    fn long_values_are_cut_and_say_how_long_they_were() {
        let shown = excerpt(&"é".repeat(1000));
        assert!(shown.ends_with("(2000 bytes in all)"), "{shown}");
        assert!(shown.chars().count() < MAX_CHARS + 40);
    }

    #[test]
    fn no_number_is_left_of_a_text() {
        for (text, shown) in [
            ("", ""),
            ("the books are closed", "the books are closed"),
            ("available=77.50, on_hold -3 of acc-1: no.", "available=…, on_hold … of …: no."),
            ("1,234'567.89 or 1_000 or 1e+21 or 0x4d2", "… or … or … or …"),
            ("\u{2212}7 \u{663}\u{664} Ⅷ", "… … …"),
            ("(12) \"3\";4,5.", "(…) \"…\";…."),
        ] {
            assert_eq!(without_numbers(text), shown);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_shown_all_the_same() {
        assert_eq!(excerpt_bytes(b"a\xffb"), "\"a\u{fffd}b\"");
        assert!(excerpt_bytes(&[b'x'; 5000]).len() < 400);
    }
}
