//! Comma-separated values, for spreadsheets: RFC 4180, with a line of titles.

use balance_sync_domain::printable;

/// One cell.
pub(crate) enum Cell<'a> {
    /// Text, which may come from outside.
    Text(&'a str),
    /// Something that is written by us, such as a number or a time.
    Own(String),
    /// Not known, or not there.
    Empty,
}

impl<'a> From<&'a str> for Cell<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<Option<&'a str>> for Cell<'a> {
    fn from(text: Option<&'a str>) -> Self {
        text.map_or(Self::Empty, Self::Text)
    }
}

impl From<u64> for Cell<'_> {
    fn from(number: u64) -> Self {
        Self::Own(number.to_string())
    }
}

impl From<Option<f64>> for Cell<'_> {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Self::Empty, |number| Self::Own(number.to_string()))
    }
}

/// A line of titles, and one per row.
pub(crate) fn csv<'a, const N: usize>(
    titles: [&'static str; N],
    rows: impl Iterator<Item = [Cell<'a>; N]>,
) -> String {
    let mut text = titles.join(",");
    text.push_str("\r\n");
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            if at > 0 {
                text.push(',');
            }
            match cell {
                Cell::Text(foreign) => quote(foreign, &mut text),
                Cell::Own(own) => text.push_str(own),
                Cell::Empty => {}
            }
        }
        text.push_str("\r\n");
    }
    text
}

fn quote(foreign: &str, text: &mut String) {
    text.push('"');
    // A spreadsheet would take it for a formula, and run it.
    if foreign.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        text.push('\'');
    }
    text.push_str(&printable(foreign).replace('"', "\"\""));
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_in_its_cell_and_is_no_formula() {
        let rows = [
            ["a,b \"c\"\nd".into(), Some(0.5).into(), 7.into()],
            ["=1+1".into(), Cell::Empty, Cell::Own("x".to_owned())],
            ["\u{1b}[2J".into(), Cell::Empty, 0.into()],
        ];
        let text = csv(["id", "lag", "due"], rows.into_iter());
        let expected = "id,lag,due\r\n\"a,b \"\"c\"\"\\nd\",0.5,7\r\n\"'=1+1\",,x\r\n\"\\u001b[2J\",,0\r\n";
        assert_eq!(text, expected);
    }
}
