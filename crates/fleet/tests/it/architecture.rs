//! `docs/architecture.md` leads to what is there.

use std::{fs, path::Path};

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_page_names_files_that_are_there_and_what_is_in_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    // Some are relative to `crates`.
    let is_path = |text: &&str| text.contains('/') && !text.contains(' ') && !text.contains('…');
    let mut paths = 0;
    for path in quoted(&page).filter(is_path) {
        let there = [path.to_owned(), format!("crates/{path}")].iter().any(|path| root.join(path).exists());
        assert!(there, "{path} is not there");
        paths += 1;
    }
    assert!(paths > 20, "{paths} paths");

    let (_, table) = page.split_once("## Where is …").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert!(rows.len() >= 6, "{rows:?}");
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [question, files, symbols] = cells[..] else { panic!("not three cells: {row}") };
        let files: Vec<&str> = quoted(files).collect();
        assert!((1..=2).contains(&files.len()), "more than two files to open: {question}");
        let text: String = files.iter().map(|file| fs::read_to_string(root.join(file)).unwrap()).collect();
        for symbol in quoted(symbols) {
            assert!(text.contains(symbol), "{symbol} is not in {files:?}");
        }
    }
}
