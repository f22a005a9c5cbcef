//! The last thing that text passes before it reaches a terminal or a log: whatever could act on the reader's screen is escaped,
//! but for ends of lines and colours. What comes from outside is escaped where it is put in; this holds where that was forgotten.

use std::borrow::Cow;

use balance_sync_domain::printable;

/// What begins a colour, and every other escape sequence.
const BEGINNING: &str = "\x1b[";

/// Text of several lines, in which the program's own styles are kept.
pub(crate) fn guarded(text: &str) -> Cow<'_, str> {
    if text.split('\n').all(|line| matches!(in_line(line), Cow::Borrowed(_))) {
        return Cow::Borrowed(text);
    }
    let lines: Vec<Cow<'_, str>> = text.split('\n').map(in_line).collect();
    Cow::Owned(lines.join("\n"))
}

/// One line with its end, as the log writes it; `styled` = whether styles in it are kept.
pub(crate) fn guarded_line(text: &str, styled: bool) -> String {
    let line = text.strip_suffix('\n').unwrap_or(text);
    format!("{}\n", if styled { in_line(line) } else { printable(line) })
}

/// A line without its end; sequences that only choose colour or weight are kept.
fn in_line(line: &str) -> Cow<'_, str> {
    if !line.contains(BEGINNING) {
        return printable(line);
    }
    let mut kept = String::with_capacity(line.len() + 16);
    let mut rest = line;
    while let Some(at) = rest.find(BEGINNING) {
        kept.push_str(&printable(&rest[..at]));
        let sequence = &rest[at..];
        let end = BEGINNING.len() + style_of(&sequence[BEGINNING.len()..]);
        if end > BEGINNING.len() {
            kept.push_str(&sequence[..end]);
        } else {
            kept.push_str(&printable(BEGINNING));
        }
        rest = &sequence[end..];
    }
    kept.push_str(&printable(rest));
    if kept == line { Cow::Borrowed(line) } else { Cow::Owned(kept) }
}

/// How long the rest of a style is, with its final `m`; 0 if it is none of those that are in use: reset, bold, dim, italic,
/// and a colour.
fn style_of(rest: &str) -> usize {
    let Some(end) = rest.find('m').filter(|end| *end <= 2) else { return 0 };
    let known = matches!(&rest[..end], "" | "0" | "1" | "2" | "3" | "31" | "32" | "33" | "34" | "35");
    if known { end + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::super::{BAD, FAINT, HEAD, styled};
    use super::*;

    #[test]
    fn our_styles_and_lines_are_kept_and_nothing_else_acts() {
        let ours = format!("{}\n{} {}\n", styled(BAD, "a"), styled(FAINT, "b"), styled(HEAD.bold(), "ç"));
        assert!(matches!(guarded(&ours), Cow::Borrowed(text) if text == ours));
        for (text, shown) in [
            ("\x1b[2J\x1b[8mx\x1b[38;5;1m", r"\u001b[2J\u001b[8mx\u001b[38;5;1m"),
            ("a\x1b]8;;http://x\x07b\x1bc", r"a\u001b]8;;http://x\u0007b\u001bc"),
            ("a\rb\u{9b}2J\u{202e}\nc", "a\\rb\\u009b2J\\u202e\nc"),
            ("\x1b[", r"\u001b["),
            ("\x1b[31\x1b[31mx", "\\u001b[31\x1b[31mx"),
        ] {
            assert_eq!(guarded(text), shown);
        }
    }

    #[test]
    fn a_line_of_the_log_stays_one_line() {
        assert_eq!(guarded_line("a\nb\x1b[31m\n", false), "a\\nb\\u001b[31m\n");
        assert_eq!(guarded_line("\x1b[2ma\x1b[0m\n", true), "\x1b[2ma\x1b[0m\n");
        let json = "{\"a\":\"\u{9b}\u{202e}\"}\n";
        assert_eq!(guarded_line(json, false), "{\"a\":\"\\u009b\\u202e\"}\n");
    }
}
