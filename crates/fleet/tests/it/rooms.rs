//! The rooms of the crate, and the modules of the crate above it: each uses those after it only.

use std::{fs, path::Path};

/// In the order of their use.
const FLEET: [&str; 6] = ["lifecycle", "backends", "pipeline", "status", "tasks", "clock"];
/// In the order of their use.
const VIEW: [&str; 23] = [
    "operations",
    "why",
    "report",
    "timeline",
    "overview",
    "follower",
    "publisher",
    "sampler",
    "queues",
    "rollout",
    "reader",
    "facts",
    "unserved",
    "routing",
    "inspector",
    "recovery",
    "heartbeat",
    "local_worker",
    "backlog",
    "actions",
    "rows",
    "record",
    "verdict",
];

/// Lines of code, without comments, of a module: of its file, and of all files below its folder.
fn code(path: &Path, lines: &mut Vec<(String, String)>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            code(&entry.unwrap().path(), lines);
        }
    } else if path.is_file() {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).unwrap();
        let code = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        lines.extend(code.map(|line| (name.clone(), line.to_owned())));
    }
}

/// Whether a line names a module of the crate: by its path from the root, or by its own name where that was imported.
fn names(line: &str, module: &str) -> bool {
    if line.contains(&format!("crate::{module}")) {
        return true;
    }
    line.match_indices(&format!("{module}::")).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|before| !before.is_alphanumeric() && before != '_' && before != ':')
    })
}

/// Each module of a crate uses those after it only, and all of its modules are listed.
fn check(source: &Path, modules: &[&str]) {
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(name == "lib" || modules.contains(&name.as_str()), "{name} has no place in the order");
    }
    for (at, module) in modules.iter().enumerate() {
        let mut lines = Vec::new();
        code(&source.join(module).with_extension("rs"), &mut lines);
        code(&source.join(module), &mut lines);
        assert!(lines.len() > 5, "{module}: it is not where it was");
        for forbidden in &modules[..at] {
            let found = lines.iter().find(|(_, line)| names(line, forbidden));
            assert!(found.is_none(), "{module} must not use {forbidden}: {found:?}");
        }
    }
}

#[test]
fn each_room_of_the_fleet_uses_only_those_after_it() {
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &FLEET);
}

#[test]
fn each_module_of_the_view_uses_only_those_after_it() {
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../view/src"), &VIEW);
}

#[test]
fn a_use_is_seen_however_it_is_written() {
    for line in [
        "use crate::backends::Prober;",
        "use crate::backends;",
        "backends::{",
        "use crate::{backends::Prober, tasks::Tasks};",
        "let prober = backends::Prober::start();",
    ] {
        assert!(names(line, "backends"), "{line}");
    }
    for line in ["let backends = 1;", "use other::backends::Prober;", "old_backends::run();"] {
        assert!(!names(line, "backends"), "{line}");
    }
}
