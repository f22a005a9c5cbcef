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
    fn bytes_that_are_not_utf8_are_shown_all_the_same() {
        assert_eq!(excerpt_bytes(b"a\xffb"), "\"a\u{fffd}b\"");
        assert!(excerpt_bytes(&[b'x'; 5000]).len() < 400);
    }
}
