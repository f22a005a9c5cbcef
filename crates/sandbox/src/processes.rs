//! The system's process list: who is whose child, who is stopped, who is only a zombie.

use std::path::Path;
use std::process::Command;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: i32,
    pub parent: i32,
    /// `T` is stopped, `Z` is a zombie: it has ended and only waits to be reaped.
    pub state: char,
}

/// Is there a process of this id that has not ended?
pub fn is_alive(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| find(pid).is_some_and(|process| process.state != 'Z'))
}

/// This process, if it exists.
pub(crate) fn find(pid: i32) -> Option<Process> {
    if Path::new("/proc/self/stat").exists() {
        return parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    }
    all().into_iter().find(|process| process.pid == pid)
}

/// The ids of the direct children of a process. (Neither server has grandchildren.)
pub(crate) fn children(parent: i32) -> Vec<i32> {
    all().into_iter().filter(|process| process.parent == parent).map(|process| process.pid).collect()
}

fn all() -> Vec<Process> {
    if let (true, Ok(entries)) = (Path::new("/proc/self/stat").exists(), std::fs::read_dir("/proc")) {
        return entries
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
            .filter_map(|entry| parse_stat(&std::fs::read_to_string(entry.path().join("stat")).ok()?))
            .collect();
    }
    // Systems without procfs.
    let listing = Command::new("ps").args(["-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="]).output();
    let text = listing.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(parse_ps).collect()
}

/// `pid (name) state parent …`; the name may itself hold spaces and brackets.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (_, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some(Process { pid: pid.parse().ok()?, parent: fields.next()?.parse().ok()?, state })
}

fn parse_ps(line: &str) -> Option<Process> {
    let mut fields = line.split_whitespace();
    Some(Process {
        pid: fields.next()?.parse().ok()?,
        parent: fields.next()?.parse().ok()?,
        state: fields.next()?.chars().next()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_with_brackets_do_not_confuse() {
        let stat = "42 (a) b (c) T 7 42 42 0 -1";
        assert_eq!(parse_stat(stat), Some(Process { pid: 42, parent: 7, state: 'T' }));
        assert_eq!(parse_ps("  42     7 Ss+"), Some(Process { pid: 42, parent: 7, state: 'S' }));
    }

    #[test]
    fn an_ended_child_is_not_alive_even_before_it_is_reaped() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(is_alive(child.id()));
        assert!(children(own).contains(&i32::try_from(child.id()).unwrap()));
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while is_alive(child.id()) {
            assert!(std::time::Instant::now() < deadline, "killed, but still alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
