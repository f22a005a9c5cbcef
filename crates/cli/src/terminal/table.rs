//! Tables of text: columns as wide as what stands in them. When the terminal is narrow, some give way, some are left out, and an
//! id is cut last of all: a part of one can't be used for anything.

use anstyle::Style;
use balance_sync_domain::printable;

use super::{HEAD, Screen, styled};

/// Between two columns.
const GAP: &str = "  ";
/// A column that gives way keeps this much.
const LEAST: usize = 8;
/// A column of ids keeps this much as long as others can be left out: a UUID.
const ID: usize = 36;

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
    /// What it keeps of its text as long as other columns can be left out.
    keeps: usize,
    /// Whether it is left out where there is no room, and which is first: the one with the lowest number.
    spare: Option<u8>,
}

impl Column {
    /// Text that is shown whole.
    pub(crate) const fn text(title: &'static str) -> Self {
        Self { title, align: Align::Left, gives_way: false, keeps: 0, spare: None }
    }

    /// Text that is cut where there is no room.
    pub(crate) const fn long(title: &'static str) -> Self {
        Self { title, align: Align::Left, gives_way: true, keeps: LEAST, spare: None }
    }

    /// An id, which is cut where there is no room even without the columns that can be left out.
    pub(crate) const fn id(title: &'static str) -> Self {
        Self { keeps: ID, ..Self::long(title) }
    }

    /// A number.
    pub(crate) const fn number(title: &'static str) -> Self {
        Self { title, align: Align::Right, gives_way: false, keeps: 0, spare: None }
    }

    /// This one keeps so much of its text as long as other columns can be left out.
    pub(crate) const fn keeping(self, keeps: usize) -> Self {
        Self { keeps, ..self }
    }

    /// This one is left out where there is no room, those with lower numbers before it.
    pub(crate) const fn spare(self, order: u8) -> Self {
        Self { spare: Some(order), ..self }
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
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = (String, Style)>) {
        self.rows
            .push(cells.into_iter().map(|(text, style)| (printable(&text).into_owned(), style)).collect());
    }

    /// As text, a line per row.
    pub(crate) fn render(&self, screen: Screen) -> String {
        let shown = self.fit(screen.width);
        let titles: Vec<(String, Style)> =
            self.columns.iter().map(|column| (column.title.to_owned(), HEAD)).collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for (at, width) in &shown {
                let (column, (cell, style)) = (&self.columns[*at], &row[*at]);
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

    /// The columns that are shown, with their widths.
    fn fit(&self, limit: Option<usize>) -> Vec<(usize, usize)> {
        let mut shown: Vec<(usize, usize)> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(at));
                let widest = cells.map(|(text, _)| text.chars().count()).max().unwrap_or_default();
                (at, widest.max(column.title.chars().count()))
            })
            .collect();
        let Some(limit) = limit else { return shown };
        loop {
            let mut narrowed = shown.clone();
            self.narrow(&mut narrowed, limit, |column| column.keeps);
            let spare = shown.iter().filter_map(|(at, _)| Some((self.columns[*at].spare?, *at))).min();
            match spare {
                Some((_, spare)) if total(&narrowed) > limit => shown.retain(|(at, _)| *at != spare),
                _ => {
                    self.narrow(&mut narrowed, limit, |_| LEAST);
                    return narrowed;
                }
            }
        }
    }

    /// Takes from the columns that give way until the limit is kept: from the widest, again and again, a character at a time.
    fn narrow(&self, shown: &mut [(usize, usize)], limit: usize, keeps: impl Fn(&Column) -> usize) {
        while total(shown) > limit {
            let giving = shown.iter_mut().filter(|(at, width)| {
                let column = &self.columns[*at];
                column.gives_way && *width > keeps(column)
            });
            match giving.max_by_key(|(_, width)| *width) {
                Some((_, width)) => *width -= 1,
                None => break,
            }
        }
    }
}

/// What columns take of a line.
fn total(shown: &[(usize, usize)]) -> usize {
    shown.iter().map(|(_, width)| width).sum::<usize>() + GAP.len() * shown.len().saturating_sub(1)
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
    fn an_id_stays_whole_as_long_as_a_column_can_be_left_out() {
        let columns = [
            Column::id("TENANT"),
            Column::long("STATE").keeping(12),
            Column::number("DUE"),
            Column::number("ROWS/S").spare(1),
            Column::number("QUAR").spare(2),
        ];
        let mut table = Table::new(&columns);
        let id = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
        let cells = [id, "degraded: postgres_unreachable", "1,234", "12", "3"];
        table.row(cells.map(|cell| (cell.to_owned(), PLAIN)));
        let shown = |width| plain(&table.render(Screen { width: Some(width), height: None }));
        let row = |width| shown(width).lines().nth(1).unwrap_or_default().to_owned();
        assert_eq!(row(85), format!("{id}  degraded: postgres_unreac…  1,234      12     3"));
        assert_eq!(row(72), format!("{id}  degraded: po…  1,234      12     3"));
        assert_eq!(row(65), format!("{id}  degraded: pos…  1,234     3"));
        assert_eq!(row(57), format!("{id}  degraded: p…  1,234"));
        assert_eq!(row(50).chars().count(), 50, "at last the id is cut");
        for width in 30..100 {
            assert!(shown(width).lines().all(|line| line.chars().count() <= width), "{}", shown(width));
        }
    }

    #[test]
    fn what_comes_from_outside_moves_no_cursor() {
        let mut table = Table::new(&[Column::text("X")]);
        table.row([("a\nb\x1b[2J".into(), PLAIN)]);
        assert_eq!(plain(&table.render(Screen { width: None, height: None })), "X\na\\nb\\u001b[2J\n");
    }
}
