//! A program of ours, a worker for example, under the same guard as the servers: it ends with the process that started
//! it, and its folder with its log goes with it.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::guard::Guarded;
use crate::wait::eventually;

/// Variables that the program gets from ours. No others: what configures a real worker in the environment we were
/// started in must not lead this one to real servers.
const INHERITED: [&str; 6] = ["PATH", "HOME", "TMPDIR", "LANG", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];
/// How long a killed process may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// A running program. It is killed, and leaves nothing behind, when dropped.
pub struct Program {
    guard: Guarded,
    ended: Mutex<Option<ExitStatus>>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl Program {
    /// Starts a program in a new folder `balance-sync-<name>-…`, with this environment and little else of ours. What it
    /// writes goes into a log in the folder.
    ///
    /// # Errors
    /// When the folder, its guardian or the program can't be started.
    pub fn start(
        name: &str,
        executable: &Path,
        arguments: &[String],
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let inherited =
            INHERITED.iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
        let given = environment.iter().map(|(name, value)| format!("{name}={value}"));
        let env: Vec<String> = std::iter::once("-i".to_owned())
            .chain(inherited)
            .chain(given)
            .chain([executable.display().to_string()])
            .chain(arguments.iter().cloned())
            .collect();
        // What we throw away needs no orderly end.
        let guard = Guarded::new(name, None, Signal::SIGKILL)?;
        guard.spawn(Path::new("env"), &env)?;
        Ok(Self { guard, ended: Mutex::default() })
    }

    /// Runs a program that ends by itself, with little of our environment, and gives what it has written. It is killed
    /// when the future is dropped.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn output(executable: &Path, arguments: &[&OsStr]) -> Result<Output> {
        let mut command = tokio::process::Command::new(executable);
        command.args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.output().await.with_context(|| format!("running {}", executable.display()))
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.guard.pid()
    }

    /// The end of what it has written.
    pub fn log_tail(&self) -> String {
        self.guard.log_tail()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system can't tell.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_none() {
            *ended = self.guard.try_reap()?;
        }
        Ok(*ended)
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// When the signal can't be sent.
    pub fn terminate(&self) -> Result<()> {
        self.guard.ask_to_end(Signal::SIGTERM)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it has not within this time.
    pub async fn wait(&self, within: Duration) -> Result<ExitStatus> {
        eventually(within, "the end of the process", || async { self.ended().ok().flatten() }).await
    }

    /// Ends it without warning (SIGKILL), and waits until it is gone. The folder stays until this is dropped.
    ///
    /// # Errors
    /// When it can't be ended.
    pub async fn kill(&self) -> Result<ExitStatus> {
        self.guard.ask_to_end(Signal::SIGKILL)?;
        self.wait(KILLED_WITHIN).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::processes::is_alive;

    fn shell(script: &str) -> Program {
        let arguments = ["-c".to_owned(), script.to_owned()];
        Program::start("program-test", Path::new("/bin/sh"), &arguments, &[("GIVEN", "yes".to_owned())])
            .unwrap()
    }

    #[tokio::test]
    async fn it_has_the_given_environment_and_a_log_and_tells_how_it_ended() {
        // Cargo sets this one for tests; it is not among the inherited.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let program = shell("echo given=$GIVEN cargo=$CARGO_MANIFEST_DIR; exit 7");
        assert_eq!(program.wait(Duration::from_secs(10)).await.unwrap().code(), Some(7));
        assert_eq!(program.log_tail(), "given=yes cargo=");
        assert_eq!(program.pid(), None);
        let folder = program.guard.folder().to_owned();
        assert!(folder.exists());
        drop(program);
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn one_that_ends_by_itself_is_given_with_what_it_has_written() {
        let script = "echo out=$CARGO_MANIFEST_DIR; echo err >&2; exit 7".as_ref();
        let output = Program::output(Path::new("/bin/sh"), &["-c".as_ref(), script]).await.unwrap();
        assert_eq!(output.status.code(), Some(7));
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out=\n"[..], &b"err\n"[..]));
    }

    #[tokio::test]
    async fn it_ends_when_asked_when_killed_and_when_dropped() {
        let waits = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done";
        let (asked, killed, dropped) = (shell(waits), shell(waits), shell(waits));
        for program in [&asked, &killed, &dropped] {
            eventually(Duration::from_secs(10), "readiness", || async { program.log_tail() == "ready" })
                .await
                .unwrap();
            assert_eq!(program.ended().unwrap(), None);
        }
        asked.terminate().unwrap();
        assert_eq!(asked.wait(Duration::from_secs(10)).await.unwrap().code(), Some(3));
        assert_eq!(killed.kill().await.unwrap().code(), None);
        let pid = dropped.pid().unwrap();
        drop(dropped);
        assert!(!is_alive(pid));
    }
}
