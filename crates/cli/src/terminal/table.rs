//! Tables of text: columns as wide as what stands in them, and one that gives way when the terminal is narrow.

use anstyle::Style;

use super::{HEAD, Screen, styled};

/// Between two columns.
const GAP: &str = "  ";
/// A column that gives way keeps this much.
const LEAST: usize = 8;

/// On which side a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// One column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    /// Above it.
    pub title: &'static str,
    /// On which side its text stands.
    pub(super) align: Align,
    /// Whether its text may be cut.
    pub gives_way: bool,
}

impl Column {
    /// Text that is shown whole.
    pub(crate) const fn text(title: &'static str) -> Self {
        Self { title, align: Align::Left, gives_way: false }
    }

    /// Text that is cut where there is no room.
    pub(crate) const fn long(title: &'static str) -> Self {
        Self { title, align: Align::Left, gives_way: true }
    }

    /// A number.
    pub(crate) const fn number(title: &'static str) -> Self {
        Self { title, align: Align::Right, gives_way: false }
    }
}

/// Rows under titles.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<(String, Style)>>,
}

impl Table {
    /// Without rows.
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One more row: a text and its style for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [(String, Style); N]) {
        self.rows.push(cells.into_iter().map(|(text, style)| (one_line(&text), style)).collect());
    }

    /// As text, a line per row.
    pub(crate) fn render(&self, screen: Screen) -> String {
        let widths = self.widths(screen.width);
        let titles: Vec<(String, Style)> =
            self.columns.iter().map(|column| (column.title.to_owned(), HEAD)).collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for ((column, width), (cell, style)) in self.columns.iter().zip(&widths).zip(row) {
                if !line.is_empty() {
                    line.push_str(GAP);
                }
                let shown = cut(cell, *width);
                let padding = " ".repeat(width.saturating_sub(shown.chars().count()));
                match column.align {
                    Align::Left => line.push_str(&format!("{}{padding}", styled(*style, shown))),
                    Align::Right => line.push_str(&format!("{padding}{}", styled(*style, shown))),
                }
            }
            text.push_str(line.trim_end_matches(' '));
            text.push('\n');
        }
        text
    }

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(at));
                let widest = cells.map(|(text, _)| text.chars().count()).max().unwrap_or_default();
                widest.max(column.title.chars().count())
            })
            .collect();
        let Some(limit) = limit else { return widths };
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        // The widest of those that give way, again and again, a column at a time.
        while widths.iter().sum::<usize>() + gaps > limit {
            let giving = self.columns.iter().zip(&mut widths).filter(|(column, _)| column.gives_way);
            let widest = giving.map(|(_, width)| width).filter(|width| **width > LEAST).max();
            match widest {
                Some(width) => *width -= 1,
                None => break,
            }
        }
        widths
    }
}

/// Without what would break the line or move the cursor: what is shown comes from outside.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::super::{BAD, PLAIN};
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[Column::long("TENANT"), Column::text("STATE"), Column::number("DUE")]);
        table.row([("a".into(), PLAIN), ("idle".into(), PLAIN), ("0".into(), PLAIN)]);
        table.row([
            ("a-tenant-with-a-long-name".into(), PLAIN),
            ("degraded".into(), BAD),
            ("12,345".into(), PLAIN),
        ]);
        table
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let text = plain(&table().render(Screen { width: None, height: None }));
        let expected = "TENANT                     STATE        DUE\n\
                        a                          idle           0\n\
                        a-tenant-with-a-long-name  degraded  12,345\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_long_one_gives_way() {
        let text = plain(&table().render(Screen { width: Some(30), height: None }));
        let expected = "TENANT        STATE        DUE\n\
                        a             idle           0\n\
                        a-tenant-wi…  degraded  12,345\n";
        assert_eq!(text, expected);
        let narrow = plain(&table().render(Screen { width: Some(5), height: None }));
        assert!(narrow.lines().all(|line| line.chars().count() <= 26), "{narrow}");
    }

    #[test]
    fn what_comes_from_outside_moves_no_cursor() {
        let mut table = Table::new(&[Column::text("X")]);
        table.row([("a\nb\x1b[2J".into(), PLAIN)]);
        assert_eq!(plain(&table.render(Screen { width: None, height: None })), "X\na b [2J\n");
    }
}
