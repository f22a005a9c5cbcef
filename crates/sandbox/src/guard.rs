//! Nothing stays running and nothing stays on disk, whatever happens to us.
//!
//! Each server has a *guardian*: a small shell script in a process group of its own, so that a
//! Ctrl-C meant for us doesn't reach it. Its standard input is a pipe that only we hold open. When
//! the pipe closes, because the handle was dropped or because we were killed by any means, the
//! guardian ends the server by its process id and removes the folder.
//!
//! There is no moment at which a server runs unknown to its guardian: a server begins as a shell
//! that waits for the word `go`; we write its id into the folder first, and only then say it. If we
//! die before, that shell reads the end of its input and leaves.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

use crate::processes;

/// How long a server may take to end after it was asked to; then it is killed. The guardian's
/// script has the same number.
const END_WITHIN: Duration = Duration::from_secs(5);
/// How long a signal that can't be refused may take to show.
const SIGNAL_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at a process that is about to change.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The id of the process that the guardian has to end.
const PID_FILE: &str = "server.pid";
/// The ids of processes we have stopped with SIGSTOP: they can't react until they are continued.
const STOPPED_FILE: &str = "stopped.pids";
/// What the server writes to its standard output and error.
const LOG_FILE: &str = "server.log";

/// $1 folder, $2 the signal by which the server ends soonest and cleanly.
///
/// PostgreSQL killed without warning leaves a System V shared memory segment of a few bytes, named
/// in the seventh line of its `postmaster.pid`; it is removed too.
const GUARDIAN: &str = r#"
trap '' INT TERM HUP QUIT
cd /
while read -r _; do :; done
alive() {
  kill -0 "$1" 2>/dev/null || return 1
  [ -r "/proc/$1/stat" ] || return 0
  case "$(cat "/proc/$1/stat" 2>/dev/null)" in *") Z "*) return 1 ;; esac
  return 0
}
pid=$(cat "$1/server.pid" 2>/dev/null)
stopped=$(cat "$1/stopped.pids" 2>/dev/null)
if [ -n "$pid" ] && alive "$pid"; then
  kill -s "$2" "$pid"
  for p in $stopped; do kill -s CONT "$p"; done
  n=0
  while alive "$pid" && [ "$n" -lt 100 ]; do sleep 0.05; n=$((n + 1)); done
  alive "$pid" && kill -s KILL "$pid" $stopped
fi
if [ -s "$1/data/postmaster.pid" ]; then
  segment=$(sed -n '7s/.* //p' "$1/data/postmaster.pid")
  [ -n "$segment" ] && ipcrm -m "$segment"
fi
n=0
while ! rm -rf "$1" && [ "$n" -lt 100 ]; do sleep 0.05; n=$((n + 1)); done
"#;

/// A server before it is one: waits until its id is on record.
const STARTER: &str = r#"read -r _ || exit 1; exec "$@" </dev/null"#;

/// The system user a server runs as when we are root and it refuses to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// `postgres`, or else `nobody`, when we are root; `None` (ourselves) when we are not.
    pub(crate) fn unprivileged() -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name).with_context(|| format!("looking up user {name}"))? {
                return Ok(Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
            }
        }
        bail!("PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody")
    }

    fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

/// A folder and the process that runs in it, both watched by a guardian.
#[derive(Debug)]
pub(crate) struct Guarded {
    folder: PathBuf,
    owner: Option<Owner>,
    end_signal: Signal,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Holds the write end of the pipe in its `stdin`.
    guardian: Child,
    server: Option<Child>,
    /// Stopped by [`Guarded::pause`]: the server first, then its children.
    stopped: Vec<i32>,
}

impl Guarded {
    /// Makes a folder `balance-sync-<name>-…` in the system's folder for temporary files, and its guardian.
    pub(crate) fn new(name: &str, owner: Option<Owner>, end_signal: Signal) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("balance-sync-{name}-"))
            .tempdir()
            .context("making a folder for temporary files")?;
        let guardian = Command::new("sh")
            .args(["-c", GUARDIAN, "balance-sync-guardian"])
            .arg(folder.path())
            .arg(end_signal.as_str().trim_start_matches("SIG"))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the guardian shell")?;
        // From here on the guardian removes it.
        let folder = folder.keep();
        let state = Mutex::new(State { guardian, server: None, stopped: Vec::new() });
        let guarded = Self { folder, owner, end_signal, state };
        if let Some(owner) = owner {
            std::os::unix::fs::chown(&guarded.folder, Some(owner.uid), Some(owner.gid))
                .context("giving the folder to the server's user")?;
        }
        Ok(guarded)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file that only the server's user can read.
    pub(crate) fn write_private(&self, name: &str, text: &str) -> Result<PathBuf> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.folder.join(name);
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("writing {}", path.display()))?;
        if let Some(owner) = self.owner {
            std::os::unix::fs::chown(&path, Some(owner.uid), Some(owner.gid))?;
        }
        file.write_all(text.as_bytes())?;
        Ok(path)
    }

    /// Runs a program as the process of this folder, and returns its id.
    pub(crate) fn spawn(&self, program: &Path, args: &[String]) -> Result<u32> {
        let mut state = self.lock();
        if state.server.is_some() {
            bail!("{} runs already", program.display());
        }
        // Each start has its own log, so that a failure shows its own reason.
        let log = File::create(self.folder.join(LOG_FILE)).context("making the log file")?;
        let mut command = Command::new("sh");
        command
            .args(["-c", STARTER, "balance-sync-starter"])
            .arg(program)
            .args(args)
            .current_dir(&self.folder)
            .process_group(0)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(owner) = self.owner {
            owner.apply(&mut command);
        }
        let mut server = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let pid = server.id();
        let go = server.stdin.take();
        state.server = Some(server);
        // Renamed into place: the guardian never reads half a number.
        let unfinished = self.folder.join("server.pid.new");
        fs::write(&unfinished, pid.to_string())?;
        fs::rename(&unfinished, self.folder.join(PID_FILE))?;
        go.context("the starter has no input")?.write_all(b"go\n").context("saying go to the starter")?;
        Ok(pid)
    }

    /// The id of the running process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.lock().server.as_ref().map(Child::id)
    }

    /// The end of what the process has written, for error messages.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read(self.folder.join(LOG_FILE)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// How the process ended, if it has.
    pub(crate) fn try_reap(&self) -> Result<Option<ExitStatus>> {
        self.reap(&mut self.lock())
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn wait(&self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.try_reap()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("the process has not ended within {within:?}; its log:\n{}", self.log_tail());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends the process and its children at once (SIGKILL); the folder stays.
    pub(crate) fn kill(&self) -> Result<()> {
        let mut state = self.lock();
        let Some(server) = state.server.as_ref() else { return Ok(()) };
        let pid = as_pid(server.id())?;
        // The server first: one that still lived would start to recover from the loss of its children.
        let children = processes::children(pid);
        send(pid, Signal::SIGKILL)?;
        for child in &children {
            send(*child, Signal::SIGKILL)?;
        }
        let deadline = Instant::now() + SIGNAL_WITHIN;
        let alive = |pid: i32| processes::find(pid).is_some_and(|found| found.state != 'Z');
        loop {
            self.reap(&mut state)?;
            if state.server.is_none() && !children.iter().any(|child| alive(*child)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("process {pid} was killed but has not ended within {SIGNAL_WITHIN:?}");
            }
            look_again_soon();
        }
    }

    /// Freezes the process and its children (SIGSTOP): connections stay open and nothing answers.
    pub(crate) fn pause(&self) -> Result<()> {
        let mut state = self.lock();
        let Some(server) = state.server.as_ref() else { bail!("the server does not run") };
        let pid = as_pid(server.id())?;
        // On record before it is done: the guardian must know whom to continue.
        self.record_stopped(&[pid])?;
        send(pid, Signal::SIGSTOP)?;
        let deadline = Instant::now() + SIGNAL_WITHIN;
        while processes::find(pid).is_some_and(|process| process.state != 'T') {
            if Instant::now() >= deadline {
                bail!("process {pid} did not stop within {SIGNAL_WITHIN:?}");
            }
            look_again_soon();
        }
        // The parent is stopped, so this list is complete.
        let mut stopped = vec![pid];
        stopped.extend(processes::children(pid));
        self.record_stopped(&stopped)?;
        for child in &stopped[1..] {
            send(*child, Signal::SIGSTOP)?;
        }
        state.stopped = stopped;
        Ok(())
    }

    /// Continues what [`Guarded::pause`] froze. Nothing happens if nothing is frozen.
    pub(crate) fn resume(&self) -> Result<()> {
        let mut state = self.lock();
        // Children first: the parent must not find them unresponsive.
        for pid in state.stopped.drain(..).rev() {
            send(pid, Signal::SIGCONT)?;
        }
        remove_if_there(&self.folder.join(STOPPED_FILE))
    }

    /// Asks the process to end with this signal and waits; kills it if it takes too long. The folder stays.
    pub(crate) async fn end(&self, signal: Signal) -> Result<()> {
        self.ask_to_end(signal)?;
        if self.pid().is_some() && self.wait(END_WITHIN).await.is_err() {
            self.kill()?;
        }
        Ok(())
    }

    /// Sends this signal to the process, and continues what is frozen; does not wait.
    pub(crate) fn ask_to_end(&self, signal: Signal) -> Result<()> {
        if let Some(pid) = self.pid() {
            send(as_pid(pid)?, signal)?;
            self.resume()?;
        }
        Ok(())
    }

    fn record_stopped(&self, pids: &[i32]) -> Result<()> {
        let text: String = pids.iter().map(|pid| format!("{pid} ")).collect();
        fs::write(self.folder.join(STOPPED_FILE), text).context("recording the stopped processes")
    }

    fn reap(&self, state: &mut State) -> Result<Option<ExitStatus>> {
        let Some(server) = state.server.as_mut() else { return Ok(None) };
        let Some(status) = server.try_wait().context("waiting for the server")? else { return Ok(None) };
        // Its id may now be given to another process, which the guardian must not end.
        remove_if_there(&self.folder.join(PID_FILE))?;
        remove_if_there(&self.folder.join(STOPPED_FILE))?;
        state.server = None;
        state.stopped.clear();
        Ok(Some(status))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guarded {
    /// Ends the process, lets the guardian remove the folder, and waits for both.
    fn drop(&mut self) {
        if let Err(error) = self.ask_to_end(self.end_signal) {
            tracing::debug!(%error, "could not ask the sandbox server to end");
        }
        let deadline = Instant::now() + END_WITHIN;
        while self.pid().is_some() && !matches!(self.try_reap(), Ok(Some(_))) {
            if Instant::now() >= deadline {
                if let Err(error) = self.kill() {
                    tracing::warn!(%error, "could not end the sandbox server");
                }
                break;
            }
            look_again_soon();
        }
        let mut state = self.lock();
        drop(state.guardian.stdin.take());
        if let Err(error) = state.guardian.wait() {
            tracing::warn!(%error, "could not wait for the sandbox guardian");
        }
        // Only if another process ended the guardian.
        if self.folder.exists()
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            tracing::warn!(%error, folder = %self.folder.display(), "could not remove the sandbox folder");
        }
    }
}

/// Blocks this thread for 5 ms.
#[expect(
    clippy::disallowed_methods,
    reason = "drop can't await; a signal shows within milliseconds, in tests only"
)]
fn look_again_soon() {
    thread::sleep(LOOK_EVERY);
}

fn as_pid(pid: u32) -> Result<i32> {
    i32::try_from(pid).context("process id out of range")
}

/// Sends a signal; a process that has already gone is no error.
fn send(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("sending {signal} to process {pid}")),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
