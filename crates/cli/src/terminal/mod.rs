//! How answers look in a terminal: tables that fit its width (`table.rs`), numbers for people (`units.rs`), values for spreadsheets (`csv.rs`), colour where
//! there is one, and pictures that are drawn anew without flicker (`watch.rs`).

mod csv;
mod guard;
mod table;
mod units;
mod watch;

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use balance_sync_domain::printable;
use balance_sync_fleet::status::Condition;
use balance_sync_view::{overview::Verdict, rows::StateView};

pub(crate) use csv::{Cell, csv};
pub(crate) use guard::{guarded, guarded_line};
pub(crate) use table::{Column, Table};
pub(crate) use units::{ago, bytes, count, optional, rate, span};
pub(crate) use watch::watch;

/// Width of what is written for people when no terminal says how wide it is.
const USUAL_WIDTH: usize = 80;
/// Narrower than this nothing is fitted.
const LEAST_WIDTH: usize = 40;
/// Columns before what is said of something: its name, and a gap.
const MARGIN: usize = 12;

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

/// Text in a style; what could act on the terminal is escaped.
pub(crate) fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{}{style:#}", printable(&text.to_string()))
}

/// A line that says this of what has that name; broken where the screen ends, and all of it below each other.
pub(crate) fn entry(name: &str, value: &str, screen: Screen) -> String {
    let name = styled(HEAD, format_args!("{name:<0$}", MARGIN - 2));
    format!("{name}  {}\n", wrap(value, screen.text_width(), MARGIN))
}

/// Writes to standard output; without colours where that is no terminal, or NO_COLOR asks for none.
///
/// # Errors
/// When it can't be written. A reader that has seen enough and went away is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    written(anstream::stdout().write_all(guarded(text).as_bytes()))
}

/// Writes lines of [`csv`] to standard output, whose ends and cells are as spreadsheets want them.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_csv(lines: &str) -> io::Result<()> {
    written(io::stdout().write_all(lines.as_bytes()))
}

fn written(written: io::Result<()>) -> io::Result<()> {
    match written.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes a line to standard output; what could act on the terminal is escaped. A reader that has seen enough and went away is no error: what a command does must
/// not depend on who reads along. Any other failure is reported once, and ends the program.
pub fn print_line(line: std::fmt::Arguments<'_>) {
    match writeln!(io::stdout(), "{}", guarded(&line.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("balance-sync: can't write to standard output: {error}");
            std::process::exit(i32::from(crate::program::EXIT_FAILED));
        }
        _ => {}
    }
}

/// Writes a line to standard error; what could act on the terminal is escaped.
pub fn print_error_line(line: std::fmt::Arguments<'_>) {
    // Nothing is left to report it to.
    let _ = writeln!(io::stderr(), "{}", guarded(&line.to_string()));
}

/// The style of a verdict.
pub(crate) fn verdict_style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Healthy => GOOD,
        Verdict::Attention | Verdict::Behind | Verdict::Unknown => WARN,
        Verdict::Degraded => BAD,
    }
}

/// The style of a tenant's state.
pub(crate) fn state_style(state: &StateView) -> Style {
    match state.condition() {
        Condition::Failing => BAD,
        Condition::Paused | Condition::Changing => WARN,
        Condition::Working => GOOD,
        Condition::Quiet => PLAIN,
    }
}

/// Text beside a heading of `indent` columns, broken between words: no line ends beyond `width` columns, and those after
/// the first are indented, so that they stand below it.
pub(crate) fn wrap(text: &str, width: usize, indent: usize) -> String {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if indent + columns(line) + 1 + columns(word) <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join(&format!("\n{}", " ".repeat(indent)))
}

/// What text takes of a line: styles take nothing.
fn columns(text: &str) -> usize {
    anstream::adapter::strip_str(text).map(|shown| shown.chars().count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_takes_the_whole_width_in_every_line() {
        let said = entry("next", &"word ".repeat(20), Screen { width: Some(40), height: None });
        let said = anstream::adapter::strip_str(&said).to_string();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], "next        word word word word word");
        assert_eq!(lines[1..], ["            word word word word word"; 3], "{said}");
        // 36 columns: another word would end in the 41st.
        assert!(lines.iter().all(|line| line.len() == 36));
    }

    #[test]
    fn text_is_broken_between_words() {
        let text = "one two three four";
        assert_eq!(wrap(text, 80, 2), text);
        assert_eq!(wrap(text, 9, 2), "one two\n  three\n  four");
        assert_eq!(wrap(text, 12, 2), "one two\n  three four", "both lines end at the same column");
        assert_eq!(wrap(text, 11, 2), "one two\n  three\n  four");
        assert_eq!(
            wrap(text, 8, 2),
            "one\n  two\n  three\n  four",
            "the heading takes room from the first line too"
        );
        assert_eq!(wrap("a-word-longer-than-the-line b", 10, 1), "a-word-longer-than-the-line\n b");
        assert_eq!(wrap("", 10, 1), "");
        let coloured = styled(BAD, "one two");
        assert_eq!(wrap(&coloured, 9, 2), coloured, "colours take no room");
    }
}
