//! The programs under test, and their commands that end by themselves.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Names the binary, where the one next to the tests isn't meant.
const BINARY_VARIABLE: &str = "BALANCE_SYNC_BIN";
/// The binary's file name.
const BINARY: &str = "balance-sync";
/// The second program's, in the same folder.
const LAB_BINARY: &str = "balance-sync-lab";
/// What a command inherits of our environment: a setting in it must not change a test.
const INHERITED: [&str; 4] = ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"];
/// How long a command may take that ends by itself, unless a test allows it more.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Where the binary is: `BALANCE_SYNC_BIN`, or in one of the folders above the running test.
///
/// # Errors
/// When it has not been built.
pub fn balance_sync() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{BINARY_VARIABLE} = {}: there is no such file", path.display());
    }
    let test = std::env::current_exe().context("the test's own path")?;
    // target/<profile>/deps/<test> → target/<profile>/balance-sync
    let found = test.ancestors().skip(1).map(|folder| folder.join(BINARY)).find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no {BINARY} in the folders above {}: build it first, `cargo build --package balance-sync-cli`, \
             or name it by {BINARY_VARIABLE}",
            test.display()
        )
    })
}

/// Where `balance-sync-lab` is: next to the binary.
///
/// # Errors
/// When either has not been built.
pub fn balance_sync_lab() -> Result<PathBuf> {
    let path = balance_sync()?.with_file_name(LAB_BINARY);
    anyhow::ensure!(
        path.is_file(),
        "no {}: build it first, `cargo build --package balance-sync-lab`",
        path.display()
    );
    Ok(path)
}

/// A command of the binary with nothing but these variables and what every program needs.
///
/// # Errors
/// When the binary has not been built.
pub fn prepare(args: &[impl AsRef<OsStr>], env: &BTreeMap<String, String>) -> Result<Command> {
    Ok(prepare_program(&balance_sync()?, args, env))
}

/// The same of this program.
pub fn prepare_program(
    program: &Path,
    args: &[impl AsRef<OsStr>],
    env: &BTreeMap<String, String>,
) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_clear();
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(env).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// Runs a command of the binary to its end.
///
/// # Errors
/// When it can't be started, or does not end within a minute; then it is killed.
pub async fn run(args: &[impl AsRef<OsStr>], env: &[(&str, &str)]) -> Result<Finished> {
    run_program(&balance_sync()?, args, env).await
}

/// As [`run`], for a command that may take longer.
///
/// # Errors
/// When it can't be started, or does not end within `limit`; then it is killed.
pub async fn run_within(
    limit: Duration,
    args: &[impl AsRef<OsStr>],
    env: &[(&str, &str)],
) -> Result<Finished> {
    end_within(limit, &balance_sync()?, args, env).await
}

/// Runs a command of this program to its end.
///
/// # Errors
/// When it can't be started, or does not end within a minute; then it is killed.
pub async fn run_program(
    program: &Path,
    args: &[impl AsRef<OsStr>],
    env: &[(&str, &str)],
) -> Result<Finished> {
    end_within(ENDS_WITHIN, program, args, env).await
}

async fn end_within(
    limit: Duration,
    program: &Path,
    args: &[impl AsRef<OsStr>],
    env: &[(&str, &str)],
) -> Result<Finished> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut command = tokio::process::Command::from(prepare_program(program, args, &env));
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(limit, output).await;
    let output = output.with_context(|| format!("{command:?} did not end within {limit:?}"))??;
    Ok(Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// As [`run_within`], with the most memory that the command had resident, in bytes.
///
/// # Errors
/// As [`run_within`].
pub async fn run_measured(limit: Duration, args: &[impl AsRef<OsStr>]) -> Result<(Finished, u64)> {
    let mut command = tokio::process::Command::from(prepare(args, &BTreeMap::new())?);
    let child = command.kill_on_drop(true).spawn()?;
    let status = format!("/proc/{}/status", child.id().context("it has ended at once")?);
    let output = tokio::time::timeout(limit, child.wait_with_output());
    tokio::pin!(output);
    let mut peak = 0;
    let output = loop {
        tokio::select! {
            output = &mut output => break output,
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                // The highest so far, so what is read last counts.
                let text = std::fs::read_to_string(&status).unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
                peak = kilobytes.map_or(peak, |kilobytes| kilobytes * 1024);
            }
        }
    };
    let output = output.with_context(|| format!("{command:?} did not end within {limit:?}"))??;
    let finished = Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    Ok((finished, peak))
}
