//! The panic hook: each panic is logged once, where it happens, with the task it happened in and a backtrace.

use std::backtrace::Backtrace;

use super::{CURRENT, TaskName, excerpt, text_of};

/// Longest backtrace that is logged, in characters: the frames of a deep stack, innermost first.
const LONGEST_BACKTRACE: usize = 20_000;

/// Logs all panics from now on, in whatever thread. The backtrace is there without `RUST_BACKTRACE`.
pub fn log_all() {
    std::panic::set_hook(Box::new(|panic| {
        let task = CURRENT.try_with(|name| *name).ok();
        let place = panic.location().map(ToString::to_string);
        let backtrace = one_line(&Backtrace::force_capture().to_string());
        tracing::error!(
            task = task.map(TaskName::name),
            thread_name = std::thread::current().name(),
            place,
            panic = text_of(panic.payload()),
            backtrace,
            "panic"
        );
    }));
}

/// The frames of a backtrace in one line, without those of the panic itself.
fn one_line(backtrace: &str) -> String {
    let mut frames: Vec<String> = Vec::new();
    for line in backtrace.lines().map(str::trim) {
        match line.strip_prefix("at ") {
            // Where a frame is comes after its name, in a line of its own.
            Some(place) => {
                if let Some(frame) = frames.last_mut() {
                    frame.push_str(" at ");
                    frame.push_str(place);
                }
            }
            None => frames.push(line.split_once(": ").map_or(line, |(_, name)| name).to_owned()),
        }
    }
    let first = frames.iter().position(|frame| frame.contains("panicking::panic")).unwrap_or(0);
    excerpt(&frames[first..].join(" < "), LONGEST_BACKTRACE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_backtrace_becomes_one_line_that_begins_at_the_panic() {
        let text = "   0: std::backtrace::Backtrace::create\n   1: hook::{{closure}}\n             at ./src/hook.rs:3:1\n   \
                    2: core::panicking::panic_fmt\n   3: fleet::look\n             at ./src/fleet.rs:7:9\n";
        assert_eq!(one_line(text), "core::panicking::panic_fmt < fleet::look at ./src/fleet.rs:7:9");
        assert_eq!(one_line("disabled backtrace"), "disabled backtrace");
        assert!(one_line(&"0: f\n".repeat(20_000)).chars().count() <= LONGEST_BACKTRACE + 1);
    }
}
