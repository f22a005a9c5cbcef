//! How text from outside is shown: without characters that act on a terminal, a log or a page instead of standing in it.

use std::{borrow::Cow, fmt::Write as _};

/// `text` with every character escaped that a terminal or a log reader would act on instead of showing it: control characters
/// (of Latin-1 too, one of which begins escape sequences), ends of lines and paragraphs, and those that change the direction of
/// what follows or can't be seen. Escapes have JSON's form, so JSON text can be passed as well and keeps its meaning. Borrowed if
/// there is nothing to escape.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(is_active) else { return Cow::Borrowed(text) };
    let (before, rest) = text.split_at(first);
    let mut shown = String::with_capacity(text.len() + 16);
    shown.push_str(before);
    rest.chars().for_each(|c| push(&mut shown, c));
    Cow::Owned(shown)
}

/// As [`printable`], for bytes that need not be UTF-8: what is not is shown as U+FFFD.
#[must_use]
pub fn printable_bytes(bytes: &[u8]) -> Cow<'_, str> {
    match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(text) => printable(text),
        Cow::Owned(text) => Cow::Owned(printable(&text).into_owned()),
    }
}

fn push(shown: &mut String, c: char) {
    match c {
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\t' => shown.push_str("\\t"),
        c if is_active(c) => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a String can't fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        }
        c => shown.push(c),
    }
}

/// Whether a character acts on what shows it. Joiners (U+200C, U+200D) don't: scripts and emoji need them.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped() {
        for (text, shown) in [
            ("\x1b[2J\x1b]0;title\x07", r"\u001b[2J\u001b]0;title\u0007"),
            ("a\nb\r\tc\0", r"a\nb\r\tc\u0000"),
            ("\u{9b}31m \u{7f} \u{85}", r"\u009b31m \u007f \u0085"),
            ("\u{202e}gnp.exe\u{2066} \u{2028}\u{feff}\u{200b}", r"\u202egnp.exe\u2066 \u2028\ufeff\u200b"),
            ("\u{e0041}", r"\udb40\udc41"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn other_text_is_left_as_it_is() {
        for text in ["", "joão-çã", "日本語 \"x\" \\ '", "e\u{301} می\u{200c}خواهم 👩\u{200d}👧 ✓…→"]
        {
            assert!(matches!(printable(text), Cow::Borrowed(shown) if shown == text));
        }
        assert_eq!(printable_bytes(b"a\xffb\x1b"), "a\u{fffd}b\\u001b");
    }
}
