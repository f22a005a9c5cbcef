//! The commands for people: what they show and how they end, with the fleet in every condition.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_sandbox::{Sandbox, ServiceFault, ServiceRoute, eventually};
use balance_sync_tests::command::prepare;
use balance_sync_tests::ledger::{comes_in_step, row, slow_updates};
use balance_sync_tests::{Finished, SOON, Worker, WorkerBuilder, run};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

/// A worker that notices soon what happens to its tenants.
pub(crate) fn brisk(sandbox: &Sandbox) -> WorkerBuilder {
    Worker::of(sandbox)
        .set("worker.name", "w-1")
        .set("tenants.poll_interval", "300ms")
        .set("supervisor.sample_interval", "500ms")
        .set("collector.idle_backoff_max", "100ms")
}

pub(crate) async fn ask(sandbox: &Sandbox, args: &[&str]) -> Result<Finished> {
    let config = sandbox.config_path().to_str().context("a path of text")?;
    run(&[args, &["--config", config]].concat(), &[]).await
}

/// The exit code and the one line of JSON.
pub(crate) async fn ask_json(sandbox: &Sandbox, args: &[&str]) -> Result<(Option<i32>, Value)> {
    let done = ask(sandbox, &[args, &["--json"]].concat()).await?;
    ensure!(done.stdout.lines().count() == 1, "{args:?}: not one line: {done:?}");
    Ok((done.code, serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))?))
}

/// Asks until the answer is of this verdict; gives it with the command's exit code.
async fn becomes(sandbox: &Sandbox, verdict: &str) -> Result<(Option<i32>, Value)> {
    eventually(SOON, &format!("a fleet that is {verdict}"), || async {
        let (code, overview) = ask_json(sandbox, &["status"]).await?;
        if overview["verdict"] == verdict { Ok((code, overview)) } else { bail!("{overview}") }
    })
    .await
}

fn keys(value: &Value) -> Vec<String> {
    value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
}

#[tokio::test]
async fn a_worker_that_starts_is_never_shown_as_one_without_tenants() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(4, 1).await?;
    let mut worker = brisk(&sandbox).start_unready().await?;
    eventually(SOON, "a healthy fleet", || async {
        let (_, overview) = ask_json(&sandbox, &["status"]).await?;
        // Not yet known, or there with its tenants.
        let seen = overview["workers"]["live"] == 1;
        assert!(!seen || overview["tenants"]["unserved"] == 0, "{overview}");
        if overview["verdict"] == "healthy" { Ok(()) } else { bail!("{overview}") }
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_healthy_fleet_and_one_that_is_behind() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 20).await?;
    let mut worker = brisk(&sandbox)
        .set("collector.batch_size", "1")
        .set("collector.pipeline_depth", "1")
        .set("admin.freshness_objective", "1s")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    // What a worker has done is seen from outside with its next publication.
    eventually(SOON, "three tenants that are written and idle", || async {
        let (_, page) = ask_json(&sandbox, &["tenants"]).await?;
        let done = |row: &Value| row["state"] == "idle" && row["updated_total"].as_u64() >= Some(20);
        let rows = page["tenants"].as_array().context("tenants")?;
        ensure!(rows.len() == 3 && rows.iter().all(done), "{page}");
        Ok(())
    })
    .await?;
    let (code, overview) = becomes(&sandbox, "healthy").await?;
    assert_eq!(code, Some(0));
    assert_eq!((&overview["workers"]["live"], &overview["tenants"]["total"]), (&1.into(), &3.into()));

    // What the command says is what the worker says, in the same shape.
    let of_worker = |path: &'static str| {
        let worker = &worker;
        async move { anyhow::Ok(serde_json::from_str::<Value>(&worker.get(path).await?.1)?) }
    };
    assert_eq!(keys(&overview), keys(&of_worker("/api/v1/overview").await?));
    let (code, page) = ask_json(&sandbox, &["tenants", "--limit", "2"]).await?;
    assert_eq!((code, &page["total"]), (Some(0), &3.into()));
    let served = of_worker("/api/v1/tenants?per_page=2").await?;
    assert_eq!((keys(&page), keys(&page["tenants"][0])), (keys(&served), keys(&served["tenants"][0])));
    let ids = |page: &Value| -> Vec<Value> {
        page["tenants"].as_array().into_iter().flatten().map(|row| row["id"].clone()).collect()
    };
    assert_eq!(ids(&page), ids(&served));
    let tenant = sandbox.tenants().remove(1);
    let (_, detail) = ask_json(&sandbox, &["tenants", "show", &tenant.id]).await?;
    assert_eq!((&detail["id"], &detail["owners"][0]), (&tenant.id.as_str().into(), &"w-1".into()));
    // Workers report this much of a tenant only once it is requested.
    assert_eq!(detail["flushes"][0]["worker"], "w-1", "{detail}");
    assert_eq!(detail["settings"]["database"]["database"], tenant.database.as_str(), "{detail}");
    assert!(!detail.to_string().contains(sandbox.postgres().password().expose_secret()), "{detail}");

    let text = ask(&sandbox, &["status"]).await?;
    assert!(text.stdout.starts_with("HEALTHY  20") && text.code == Some(0), "{text:?}");
    assert!(text.stdout.contains("3: 3 idle") && text.stdout.contains("w-1"), "{}", text.stdout);
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 80), "{}", text.stdout);
    assert!(!text.stdout.contains('\x1b'), "colours where no terminal is: {text:?}");

    // Postgres takes its time over each row, so that the balances of that tenant wait for each other.
    slow_updates(&sandbox, &tenant, Duration::from_secs(2)).await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let (code, overview) = becomes(&sandbox, "behind").await?;
    assert_eq!(code, Some(1));
    let reason = overview["reasons"][0].as_str().context("a reason")?;
    assert!(reason.contains("behind") && reason.contains(&tenant.id), "{reason}");
    let (code, page) = ask_json(&sandbox, &["tenants", "--state", "behind"]).await?;
    assert_eq!((code, ids(&page)), (Some(1), vec![tenant.id.as_str().into()]));
    // The others are well, and shown as such when asked for by themselves.
    let other = &sandbox.tenants()[0].id;
    let (code, page) = ask_json(&sandbox, &["tenants", "--tenant", other]).await?;
    assert_eq!((code, &page["total"]), (Some(0), &1.into()));
    let text = ask(&sandbox, &["status"]).await?;
    assert!(text.stdout.starts_with("BEHIND"), "{}", text.stdout);
    slow_updates(&sandbox, &tenant, Duration::ZERO).await?;
    becomes(&sandbox, "healthy").await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_tenant_that_cannot_be_written_and_a_fleet_of_which_nothing_is_known() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    sandbox.service().set_connections_raw(&tenant.id, Some("{\"databases\": 7}"));
    let mut worker = brisk(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    // Until it has begun to serve them no worker serves them, which is as bad.
    eventually(SOON, "a degraded tenant", || async {
        let (code, overview) = ask_json(&sandbox, &["status"]).await?;
        let worst = &overview["worst"][0];
        let shown = worst["id"] == tenant.id.as_str()
            && worst["state"] == "degraded"
            && worst["verdict"] == "degraded";
        if shown && overview["verdict"] == "degraded" && overview["tenants"]["unserved"] == 0 {
            return Ok(code);
        }
        bail!("{overview}")
    })
    .await
    .and_then(|code| if code == Some(1) { Ok(()) } else { bail!("{code:?}") })?;
    let text = ask(&sandbox, &["status"]).await?;
    for part in ["DEGRADED", "tenant_config_malformed", tenant.id.as_str(), "1 degraded"] {
        assert!(text.stdout.contains(part), "{part} is missing in {}", text.stdout);
    }
    let shown = ask(&sandbox, &["tenants", "show", &tenant.id]).await?;
    assert_eq!(shown.code, Some(1), "{shown:?}");
    for part in ["degraded: tenant_config_malformed", "next", "It is tried again by itself", "ERROR AT"] {
        assert!(shown.stdout.contains(part), "{part} is missing in {}", shown.stdout);
    }
    assert_eq!(ask(&sandbox, &["tenants", "--state", "idle"]).await?.code, Some(0));
    let unknown = ask(&sandbox, &["tenants", "show", "nobody"]).await?;
    assert!(unknown.code == Some(2) && unknown.stderr.contains("nobody: no such tenant"), "{unknown:?}");
    let wrong = ask(&sandbox, &["tenants", "--state", "sleepy"]).await?;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("degraded"), "{wrong:?}");
    sandbox.service().set_connections_raw(&tenant.id, None);
    comes_in_step(&sandbox, &producer).await?;
    becomes(&sandbox, "healthy").await?;

    // The tenant service is ill: the terminal takes the list of the live worker, and both give the same verdict.
    sandbox.service().set_faults(ServiceFault::Status(500));
    let (code, overview) = becomes(&sandbox, "attention").await?;
    assert_eq!(code, Some(1), "{overview}");
    assert_eq!(overview["tenants"]["by_state"]["idle"], 2, "{overview}");
    let said = overview["reasons"].to_string();
    for part in ["The tenant service has not answered", "since", "as live workers list them"] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    let (_, seen) = worker.get("/api/v1/overview").await?;
    let seen: Value = serde_json::from_str(&seen)?;
    assert_eq!(seen["verdict"], overview["verdict"], "{seen}");
    sandbox.service().set_faults(ServiceFault::None);

    // A worker, and a tenant that it doesn't serve because it doesn't know it yet.
    let listed: Vec<String> = sandbox.tenants().into_iter().map(|tenant| tenant.id).collect();
    let listed: Vec<Value> = listed
        .iter()
        .map(String::as_str)
        .chain(["unheard-of"])
        .map(|id| json!({"id": id, "name": id, "status": "active"}))
        .collect();
    worker.signal(Signal::SIGSTOP)?;
    sandbox.service().set_list_raw(Some(&json!(listed).to_string()));
    let (code, overview) = ask_json(&sandbox, &["status"]).await?;
    assert_eq!((code, &overview["verdict"]), (Some(1), &"degraded".into()), "{overview}");
    let reason = overview["reasons"][0].as_str().unwrap_or_default();
    assert!(reason.contains("served by no live worker: unheard-of"), "{overview}");
    sandbox.service().set_list_raw(None);
    worker.signal(Signal::SIGCONT)?;
    becomes(&sandbox, "healthy").await?;

    // No worker.
    assert_eq!(worker.stop().await?.code, Some(0));
    let (code, overview) = becomes(&sandbox, "unknown").await?;
    assert_eq!((code, &overview["workers"]["live"]), (Some(2), &0.into()));
    assert_eq!(overview["tenants"]["unserved"], 2, "{overview}");
    let listed = ask(&sandbox, &["tenants"]).await?;
    assert!(listed.code == Some(2) && listed.stdout.contains("No live worker"), "{listed:?}");
    // What waits is read all the same.
    let written = producer.mutate_each(DEFAULT_TTL).await?;
    let (_, overview) = ask_json(&sandbox, &["status"]).await?;
    assert_eq!(overview["backlog"]["due"], written, "{overview}");
    assert_eq!(overview["backlog"]["unknown_tenants"], 0, "{overview}");
    let (_, page) = ask_json(&sandbox, &["tenants"]).await?;
    let due =
        |row: &Value| row["sampled"] == true && row["due"].as_u64() > Some(0) && row["state"] == "unserved";
    assert!(page["tenants"].as_array().is_some_and(|rows| rows.len() == 2 && rows.iter().all(due)), "{page}");

    // A reader that goes away before the first line ends no command with a panic.
    for args in [&["quarantine", "list"][..], &["verify"], &["tenants"], &["status", "--json"]] {
        let config = sandbox.config_path().to_str().context("a path of text")?;
        let mut child = prepare(&[args, &["--config", config]].concat(), &BTreeMap::new())?.spawn()?;
        drop(child.stdout.take());
        let ended = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code().is_some_and(|code| code <= 2) && said.is_empty(), "{args:?}: {said}");
    }

    // No Redis.
    sandbox.redis().kill()?;
    let (code, overview) = ask_json(&sandbox, &["status"]).await?;
    assert_eq!((code, &overview["redis"]), (Some(2), &"unavailable".into()));
    // Unknown is not zero.
    for number in ["due", "scheduled", "leased", "oldest_due_age_seconds", "exposure_age_seconds"] {
        assert_eq!(overview["backlog"][number], Value::Null, "{number}: {overview}");
    }
    assert_eq!((&overview["quarantined"], &overview["losses"]), (&Value::Null, &Value::Null), "{overview}");
    let all = sandbox.tenants().len();
    assert_eq!((&overview["tenants"]["total"], &overview["tenants"]["unknown"]), (&all.into(), &all.into()));
    let status = ask(&sandbox, &["status"]).await?;
    ensure!(status.stdout.contains("? due") && !status.stdout.contains(" 0 due"), "{status:?}");
    assert_eq!(ask(&sandbox, &["tenants"]).await?.code, Some(2));
    // And no usable configuration.
    assert_eq!(run(&["status", "--config", "no/such/file.toml"], &[]).await?.code, Some(2));
    Ok(())
}

/// A command whose standard output is a terminal of this width.
pub(crate) fn in_a_terminal(
    sandbox: &Sandbox,
    args: &[&str],
    columns: u16,
    env: &[(&str, &str)],
) -> Result<(Child, OwnedFd)> {
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None)?;
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let args = [args, &["--config", config]].concat();
    let env = [env, &[("TERM", "xterm-256color")]].concat();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut command = prepare(&args, &env)?;
    Ok((command.stdout(Stdio::from(pty.slave)).spawn()?, pty.master))
}

/// Everything that is written to a terminal until its last writer goes.
pub(crate) fn written(master: OwnedFd) -> String {
    let mut bytes = Vec::new();
    // A terminal without writers ends with an error on Linux.
    let _ = std::fs::File::from(master).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn in_a_terminal_it_is_coloured_fits_and_is_drawn_in_place() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    sandbox.service().set_connections_raw(&tenant.id, Some("{\"databases\": 7}"));
    let mut worker = brisk(&sandbox).set("worker.name", &"w".repeat(60)).start().await?;
    sandbox.producer().mutate_each(DEFAULT_TTL).await?;
    eventually(SOON, "a degraded tenant", || async {
        let (_, overview) = ask_json(&sandbox, &["status"]).await?;
        // Before all tenants have been looked at it is unknown.
        let is_degraded = overview["verdict"] == "degraded";
        if is_degraded && overview["worst"][0]["reason"] == "tenant_config_malformed" {
            Ok(())
        } else {
            bail!("{overview}")
        }
    })
    .await?;

    for (env, coloured) in [(&[][..], true), (&[("NO_COLOR", "1")][..], false)] {
        let (mut child, master) = in_a_terminal(&sandbox, &["status"], 80, env)?;
        let text = written(master);
        assert_eq!(child.wait()?.code(), Some(1));
        assert_eq!(text.contains('\x1b'), coloured, "{text}");
        let plain = without_escapes(&text);
        assert!(plain.contains("DEGRADED") && plain.contains('…'), "{plain}");
        let widest = plain.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{widest:?}: {plain}");
    }

    let (mut child, master) = in_a_terminal(&sandbox, &["status", "--watch", "0.1"], 80, &[])?;
    let reading = std::thread::spawn(move || written(master));
    tokio::time::sleep(Duration::from_secs(2)).await;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    assert_eq!(child.wait()?.code(), Some(1), "as the last picture was");
    let Ok(text) = reading.join() else { bail!("reading the terminal panicked") };
    let times = |what: &str| text.matches(what).count();
    assert!(times("DEGRADED") >= 2, "{text}");
    // The screen is cleared once, at the start; and the shell's is there again at the end.
    assert_eq!((times("\x1b[2J"), times("\x1b[?1049h"), times("\x1b[?25l")), (1, 1, 1));
    assert!(text.ends_with("\x1b[?25h\x1b[?1049l"), "{text}");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

pub(crate) fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, escape)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = escape.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, after)| after);
    }
    plain + rest
}

#[tokio::test]
async fn watching_where_no_terminal_is_gives_a_line_each_time_until_it_is_interrupted() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 1).await?;
    let mut worker = brisk(&sandbox).start().await?;
    becomes(&sandbox, "healthy").await?;
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let args = ["status", "--watch", "0.1", "--json", "--config", config];
    let mut child = prepare(&args, &std::collections::BTreeMap::new())?.spawn()?;
    let lines = balance_sync_tests::Log::default();
    let reader = lines.follow(child.stdout.take().context("its output")?);
    eventually(SOON, "three lines", || async { lines.raw().len() >= 3 }).await?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    assert_eq!(child.wait()?.code(), Some(0), "as the last line says");
    let _ = reader.join();
    for line in lines.raw() {
        let overview: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        assert_eq!(overview["verdict"], "healthy");
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn shells_understand_the_completions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (shell, check) in
        [("bash", Some("bash")), ("zsh", Some("zsh")), ("fish", Some("fish")), ("elvish", None)]
    {
        let script = run(&["completions", shell], &[]).await?;
        assert_eq!(script.code, Some(0), "{shell}: {}", script.stderr);
        for part in ["balance-sync", "quarantine", "tenants", "watch"] {
            assert!(script.stdout.contains(part), "{shell}: {part} is missing");
        }
        let file = folder.path().join(shell);
        std::fs::write(&file, &script.stdout)?;
        let Some(check) = check else { continue };
        match std::process::Command::new(check).arg("-n").arg(&file).output() {
            Ok(checked) => {
                let said = String::from_utf8_lossy(&checked.stderr).into_owned();
                assert!(checked.status.success() && said.is_empty(), "{shell}: {said}");
            }
            Err(error) if shell != "bash" && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => bail!("{check}: {error}"),
        }
    }
    let unknown = run(&["completions", "cmd.exe"], &[]).await?;
    assert!(unknown.code == Some(2) && unknown.stderr.contains("zsh"), "{unknown:?}");
    Ok(())
}

#[tokio::test]
async fn what_an_operator_does_in_a_terminal_is_done_by_the_workers_and_written_down() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let (tenant, other) = (sandbox.tenants().remove(0), sandbox.tenants().remove(1));
    let mut producer = sandbox.producer();
    let act = async |action: &'static str, rest: &[&str]| {
        ask_json(&sandbox, &[&["tenants", action, &tenant.id], rest].concat()).await
    };

    // Without a worker it holds all the same, for whichever comes.
    let (code, printed) = act("pause", &["--wait", "0", "--note", "index rebuild"]).await?;
    assert_eq!((code, &printed["outcomes"]), (Some(1), &serde_json::json!([])));
    let mut worker = brisk(&sandbox).start().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    eventually(SOON, "the other tenant's rows", || async {
        ensure!(row(&sandbox, &other, 9).await?.version > 1);
        anyhow::Ok(())
    })
    .await?;
    assert_eq!(row(&sandbox, &tenant, 0).await?.version, 1, "nothing of a paused tenant is written");
    let paused = eventually(SOON, "a paused tenant that is served", || async {
        let paused = ask_json(&sandbox, &["tenants", "--state", "paused"]).await?;
        if paused.0 == Some(0) && paused.1["total"] == 1 { Ok(paused) } else { bail!("{paused:?}") }
    })
    .await?;
    assert_eq!(paused.1["tenants"][0]["id"], tenant.id.as_str());
    let by = paused.1["tenants"][0]["paused"]["by"].as_str().unwrap_or_default().to_owned();
    assert!(by.starts_with("cli:") && by.contains('@'), "{by}");
    assert_eq!(paused.1["tenants"][0]["paused"]["note"], "index rebuild");
    let shown = ask(&sandbox, &["tenants", "show", &tenant.id]).await?;
    assert!(
        shown.stdout.contains(": index rebuild") && shown.stdout.contains("until it is resumed"),
        "{shown:?}"
    );

    let (code, printed) = act("flush", &[]).await?;
    assert_eq!((code, &printed["outcomes"][0]["outcome"]), (Some(1), &"refused".into()), "{printed}");
    let (code, printed) = act("resume", &[]).await?;
    assert_eq!((code, &printed["outcomes"][0]["worker"]), (Some(0), &"w-1".into()), "{printed}");
    comes_in_step(&sandbox, &producer).await?;
    let calls = sandbox.service().calls(ServiceRoute::Connections);
    let text = ask(&sandbox, &["tenants", "refresh", &tenant.id]).await?;
    assert!(text.code == Some(0) && text.stdout.contains("w-1  done: settings fetched"), "{text:?}");
    assert_eq!(sandbox.service().calls(ServiceRoute::Connections), calls + 1);
    let (code, printed) = act("flush", &["--note", "to be sure"]).await?;
    assert_eq!((code, &printed["silent"]), (Some(0), &serde_json::json!([])), "{printed}");

    // The log, the last first.
    let (code, log) = ask_json(&sandbox, &["actions", "--tenant", &tenant.id]).await?;
    let did: Vec<&str> =
        log["actions"].as_array().into_iter().flatten().filter_map(|a| a["what"].as_str()).collect();
    assert_eq!(did, ["flush", "refresh_credentials", "resume", "flush", "pause"]);
    assert_eq!(
        (code, &log["actions"][0]["note"], &log["actions"][0]["by"]),
        (Some(0), &"to be sure".into(), &by.as_str().into())
    );
    let text = ask(&sandbox, &["actions"]).await?;
    assert!(text.stdout.contains("index rebuild") && text.stdout.contains("5 actions"), "{}", text.stdout);

    // What is done with the quarantine is in it too.
    let mut redis = sandbox.redis().connect().await?;
    let member = tenant.keys.member(&tenant.balances[0]);
    put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), b"{}", Some(DEFAULT_TTL)).await?;
    worker.logs("balance can't be synced, quarantined").await?;
    let dropped =
        ask(&sandbox, &["quarantine", "drop", &member, "--tenant", &tenant.id, "--note", "made up"]).await?;
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    let (_, log) = ask_json(&sandbox, &["actions", "--limit", "1"]).await?;
    let action = &log["actions"][0];
    assert_eq!((&action["what"], &action["note"]), (&"quarantine_drop".into(), &"made up".into()));
    assert_eq!(action["outcomes"][0]["outcome"], "done", "{action}");

    // Workers: who there is, and the end of one.
    let (code, workers) = ask_json(&sandbox, &["workers"]).await?;
    assert_eq!((code, &workers["workers"][0]["name"]), (Some(0), &"w-1".into()));
    let drained = ask(&sandbox, &["workers", "drain", "w-1", "--wait", "20"]).await?;
    assert!(drained.code == Some(0) && drained.stdout.contains("w-1  done: drained"), "{drained:?}");
    assert_eq!(worker.wait().await?.code, Some(0));
    eventually(SOON, "no worker", || async {
        let (code, _) = ask_json(&sandbox, &["workers"]).await?;
        ensure!(code == Some(2));
        anyhow::Ok(())
    })
    .await?;

    // What can't be done is said, and nothing of it is written down.
    let long = "x".repeat(501);
    for (args, said) in [
        (&["tenants", "pause", "nobody"][..], "nobody: no such tenant"),
        (&["workers", "drain", "w-1"], "w-1: no live worker"),
        (&["tenants", "pause", &tenant.id, "--note", &long], "at most 500 characters"),
    ] {
        let refused = ask(&sandbox, args).await?;
        assert!(refused.code == Some(2) && refused.stderr.contains(said), "{said}: {refused:?}");
    }
    let (_, log) = ask_json(&sandbox, &["actions"]).await?;
    assert_eq!(log["total"], 7, "{log}");
    sandbox.redis().kill()?;
    assert_eq!(ask(&sandbox, &["tenants", "resume", &tenant.id]).await?.code, Some(2));
    assert_eq!(ask(&sandbox, &["actions"]).await?.code, Some(2));
    Ok(())
}

#[tokio::test]
async fn why_says_where_a_balance_is_and_what_happens_next() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let tenant = sandbox.tenants().remove(0);
    let balance = &tenant.balances[3];
    let member = tenant.keys.member(balance);
    let mut worker = brisk(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    becomes(&sandbox, "healthy").await?;

    let (code, found) = ask_json(&sandbox, &["why", &member]).await?;
    assert_eq!((code, &found["matches"][0]["verdict"]), (Some(0), &"in_sync".into()), "{found}");
    let encoded: String = url::form_urlencoded::byte_serialize(member.as_bytes()).collect();
    let path = format!("/api/v1/why?member={encoded}");
    let served: Value = serde_json::from_str(&worker.get(&path).await?.1)?;
    assert_eq!(keys(&found["matches"][0]), keys(&served["matches"][0]), "{served}");
    let by_alias = ["why", "--tenant", &tenant.id, "--alias", &balance.alias, "--key", &balance.key];
    let (code, by_alias) = ask_json(&sandbox, &by_alias).await?;
    assert_eq!((code, &by_alias["matches"][0]["member"]), (Some(0), &member.as_str().into()), "{by_alias}");
    let text = ask(&sandbox, &["why", &member]).await?;
    for part in ["IN SYNC", "next", "available", "not in it", "version 2"] {
        assert!(text.stdout.contains(part), "{part} is missing in {}", text.stdout);
    }
    let hidden = ask(&sandbox, &["why", &member, "--hide-amounts"]).await?;
    assert!(hidden.code == Some(0) && !hidden.stdout.contains("available"), "{}", hidden.stdout);
    let mut redis = sandbox.redis().connect().await?;
    put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), b"{}", Some(DEFAULT_TTL)).await?;
    worker.logs("balance can't be synced, quarantined").await?;
    let quarantined = ask(&sandbox, &["why", &member]).await?;
    assert!(quarantined.code == Some(1) && quarantined.stdout.contains("QUARANTINED"), "{quarantined:?}");

    for (args, said) in [
        (&["why", "nonsense"][..], "no balance key"),
        (&["why", "--tenant", "nobody", "--alias", "a"], "no tenant \"nobody\""),
        (&["why"], "required arguments"),
        (&["why", "--alias", "a"], "--tenant <ID>"),
    ] {
        let refused = ask(&sandbox, args).await?;
        assert!(refused.code == Some(2) && refused.stderr.contains(said), "{said}: {refused:?}");
    }
    let none = ask_json(&sandbox, &["why", "--tenant", &tenant.id, "--alias", "@nobody"]).await?;
    assert_eq!((none.0, &none.1["matches"]), (Some(2), &serde_json::json!([])));
    assert_eq!(worker.stop().await?.code, Some(0));
    sandbox.redis().kill()?;
    assert_eq!(ask(&sandbox, &["why", &member]).await?.code, Some(2));
    Ok(())
}
