//! How answers look in a terminal: tables that fit its width (`table.rs`), numbers for people (`units.rs`), colour where
//! there is one, and pictures that are drawn anew without flicker (`watch.rs`).

mod table;
mod units;
mod watch;

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use balance_sync_fleet::{overview::Verdict, rows::UNSERVED};

pub(crate) use table::{Column, Table};
pub(crate) use units::{ago, bytes, count, optional, rate, span};
pub(crate) use watch::watch;

/// Width of what is written for people when no terminal says how wide it is.
const USUAL_WIDTH: usize = 80;
/// Narrower than this nothing is fitted.
const LEAST_WIDTH: usize = 40;

/// What is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What is on its way to being bad.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// What is bad.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// What matters less.
pub(crate) const FAINT: Style = Style::new().dimmed();
/// What stands above a table.
pub(crate) const HEAD: Style = Style::new().bold();
/// As it is.
pub(crate) const PLAIN: Style = Style::new();

/// Where answers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Screen {
    /// Columns to stay within; none for what another program reads, where nothing is cut off.
    pub width: Option<usize>,
    /// Lines that are seen at once.
    pub height: Option<usize>,
}

impl Screen {
    /// What standard output is.
    pub(crate) fn of_stdout() -> Self {
        if !io::stdout().is_terminal() {
            return Self { width: None, height: None };
        }
        match terminal_size::terminal_size() {
            Some((width, height)) => Self {
                width: Some(usize::from(width.0).max(LEAST_WIDTH)),
                height: Some(usize::from(height.0)),
            },
            None => Self { width: Some(USUAL_WIDTH), height: None },
        }
    }

    /// Columns for running text.
    pub(crate) fn text_width(self) -> usize {
        self.width.unwrap_or(USUAL_WIDTH)
    }
}

/// Text in a style.
pub(crate) fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Writes to standard output; without colours where that is no terminal, or NO_COLOR asks for none.
///
/// # Errors
/// When it can't be written. A reader that has seen enough and went away is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let written = anstream::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// The style of a verdict.
pub(crate) fn verdict_style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Healthy => GOOD,
        Verdict::Behind | Verdict::Unknown => WARN,
        Verdict::Degraded => BAD,
    }
}

/// The style of a tenant's state.
pub(crate) fn state_style(state: &str) -> Style {
    match state {
        "degraded" | UNSERVED => BAD,
        "paused" | "starting" | "stopping" => WARN,
        "syncing" => GOOD,
        _ => PLAIN,
    }
}

/// Lines of at most `width` columns, broken between words; those after the first are indented.
pub(crate) fn wrap(text: &str, width: usize, indent: usize) -> String {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let (first, line) = (lines.len() == 1, lines.last_mut());
        let Some(line) = line else { break };
        let left = if first { 0 } else { indent };
        if line.is_empty() {
            line.push_str(word);
        } else if left + line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join(&format!("\n{}", " ".repeat(indent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_between_words() {
        let text = "one two three four";
        assert_eq!(wrap(text, 80, 2), text);
        assert_eq!(wrap(text, 9, 2), "one two\n  three\n  four");
        assert_eq!(wrap("a-word-longer-than-the-line b", 10, 1), "a-word-longer-than-the-line\n b");
        assert_eq!(wrap("", 10, 1), "");
    }
}
