//! The rooms of the crate: each uses those after it only, and none uses the operators' view above them.

use std::{fs, path::Path};

/// In the order of their use.
const ROOMS: [&str; 5] = ["lifecycle", "backends", "pipeline", "status", "tasks"];
/// The modules above the rooms. `lifecycle` still starts some of these; no other room may know them.
const ABOVE: [&str; 10] =
    ["controls", "inspect", "overview", "publish", "record", "rows", "sampler", "view", "why", "worker"];

/// Lines of code, without comments, of all files below a folder.
fn code(folder: &Path, lines: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            code(&path, lines);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            let code = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
            lines.extend(code.map(|line| (name.clone(), line.to_owned())));
        }
    }
}

/// Whether a line names a module of the crate: by its path, or in the list of a `use crate::{…}`.
fn names(line: &str, module: &str) -> bool {
    line.contains(&format!("crate::{module}::"))
        || line.starts_with(&format!("{module}::"))
        || line.starts_with(&format!("use crate::{{{module}::"))
}

#[test]
fn each_room_uses_only_those_after_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (at, room) in ROOMS.iter().enumerate() {
        let mut lines = Vec::new();
        code(&source.join(room), &mut lines);
        assert!(lines.len() > 50, "{room}: the folder is not where it was");
        let above = if *room == "lifecycle" { &[][..] } else { &ABOVE[..] };
        for forbidden in ROOMS[..at].iter().chain(above) {
            let found = lines.iter().find(|(_, line)| names(line, forbidden));
            assert!(found.is_none(), "{room} must not use {forbidden}: {found:?}");
        }
    }
}

#[test]
fn a_use_is_seen_however_it_is_written() {
    for line in
        ["use crate::backends::Prober;", "backends::{", "use crate::{backends::Prober, tasks::Tasks};"]
    {
        assert!(names(line, "backends"), "{line}");
    }
    assert!(!names("let backends = 1;", "backends"));
}
