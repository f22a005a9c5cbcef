//! What commands print fits where it goes: a narrow terminal, a pipe that closes, a spreadsheet; and what they can't find out
//! they don't call absent.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::eventually;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_tests::SOON;
use balance_sync_tests::command::{balance_sync_lab, prepare, prepare_program, run_program};
use balance_sync_tests::ledger::quarantine_key;
use redis::AsyncCommands;

use crate::terminal::{ask, ask_json, brisk, in_a_terminal, without_escapes, written};

#[tokio::test]
async fn an_id_stays_whole_on_80_columns() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 2).await?;
    let tenant = sandbox.tenants().remove(1);
    assert_eq!(tenant.id.len(), 36, "a UUID: {}", tenant.id);
    sandbox.service().set_connections_raw(&tenant.id, Some("{\"databases\": 7}"));
    let mut worker = brisk(&sandbox).start().await?;
    sandbox.producer().mutate_each(DEFAULT_TTL).await?;
    eventually(SOON, "a degraded tenant", || async {
        let (_, overview) = ask_json(&sandbox, &["status"]).await?;
        if overview["worst"][0]["reason"] == "tenant_config_malformed" { Ok(()) } else { bail!("{overview}") }
    })
    .await?;
    for command in ["status", "tenants"] {
        let (mut child, master) = in_a_terminal(&sandbox, &[command], 80, &[("NO_COLOR", "1")])?;
        let text = without_escapes(&written(master));
        child.wait()?;
        let row = text.lines().find(|line| line.starts_with(&tenant.id));
        let row = row.with_context(|| format!("the id is cut: {text}"))?;
        assert!(row.contains("degraded: "), "{row}");
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{widest:?}: {text}");
    }
    worker.stop().await?;
    Ok(())
}

/// The write end of a pipe that nobody reads any more.
fn closed_pipe() -> Result<OwnedFd> {
    let (reader, writer) = nix::unistd::pipe()?;
    drop(reader);
    Ok(writer)
}

#[tokio::test]
async fn a_closed_pipe_ends_every_command_quietly() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 3).await?;
    let tenant = sandbox.tenants().remove(0);
    let member = tenant.keys.member(&tenant.balances[0]);
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let folder = tempfile::tempdir()?;
    let (pages, absent) = (folder.path().join("man"), folder.path().join("absent"));
    let pages = pages.to_str().context("a path of text")?;
    let absent = absent.to_str().context("a path of text")?;
    let commands: &[&[&str]] = &[
        &["check"],
        &["check", "--connect"],
        &["status"],
        &["tenants"],
        &["tenants", "--csv"],
        &["tenants", "show", &tenant.id],
        &["workers"],
        &["actions"],
        &["quarantine", "list"],
        &["quarantine", "show", "nonsense"],
        &["why", &member],
        &["verify"],
        &["audit"],
        &["recover"],
        &["report", "--month", "2026-01"],
        &["timeline", &tenant.id],
        &["history"],
        &["rollout", "status"],
        &["rollout", "history"],
        &["retire", "--all", "--plan"],
        &["sessions", "list"],
        &["handover", "--tenant", &tenant.id, "--key", absent, "--out", absent, "--note", "why"],
        &["handover", "verify", "--public-key", absent, absent],
        &["completions", "bash"],
        &["man", pages],
    ];
    for &command in commands {
        // What it answers if somebody reads it, and if nobody does, on either stream.
        let expected = ask(&sandbox, command).await?.code;
        let args = [command, &["--config", config]].concat();
        for (closed_out, closed_err) in [(true, false), (false, true), (true, true)] {
            let mut prepared = prepare(&args, &BTreeMap::new())?;
            if closed_out {
                prepared.stdout(Stdio::from(closed_pipe()?));
            }
            if closed_err {
                prepared.stderr(Stdio::from(closed_pipe()?));
            }
            let ended = tokio::process::Command::from(prepared).kill_on_drop(true).output().await?;
            let stderr = String::from_utf8_lossy(&ended.stderr);
            assert!(
                ended.status.code() == expected && !stderr.contains("panic") && !stderr.contains("pipe"),
                "{command:?} ends with {:?} instead of {expected:?}: {stderr}",
                ended.status
            );
        }
    }
    // What the tests' own program prints goes the same way.
    let lab = balance_sync_lab()?;
    for args in [
        &["--help"][..],
        &["load", "--config", config, "--rate", "50", "--seconds", "0.2"],
        &["load", "--config", config, "--rate", "50", "--seconds", "0.2", "--json"],
    ] {
        let expected = run_program(&lab, args, &[]).await?.code;
        let mut prepared = prepare_program(&lab, args, &BTreeMap::new());
        prepared.stdout(Stdio::from(closed_pipe()?)).stderr(Stdio::from(closed_pipe()?));
        let ended = tokio::process::Command::from(prepared).kill_on_drop(true).status().await?;
        assert_eq!(ended.code(), expected, "balance-sync-lab {args:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_quarantine_can_be_exported_and_a_misspelt_reason_is_refused() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 3).await?;
    let tenant = sandbox.tenants().remove(0);
    let mut worker = brisk(&sandbox).start().await?;
    let member = tenant.keys.member(&tenant.balances[0]).replace('@', "@a\"b,");
    let mut redis = sandbox.redis().connect().await?;
    put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), b"{}", Some(DEFAULT_TTL)).await?;
    eventually(SOON, "an entry", || async {
        let mut redis = sandbox.redis().connect().await?;
        ensure!(redis.hlen::<_, usize>(quarantine_key(&tenant)).await? == 1);
        Ok(())
    })
    .await?;

    let list = ask(&sandbox, &["quarantine", "list", "--csv", "--reason", "value_field_missing"]).await?;
    assert_eq!(list.code, Some(1), "{list:?}");
    let lines: Vec<&str> = list.stdout.split("\r\n").collect();
    assert_eq!(lines[0], "tenant,member,reason,detail,first_at,last_at,count,loss,version,row_version");
    let begin = format!("\"{}\",\"{}\",\"value_field_missing\",\"", tenant.id, member.replace('"', "\"\""));
    assert!(lines[1].starts_with(&begin) && lines[1].ends_with("Z\",1,,,"), "{list:?}");
    assert_eq!(lines[2..], [""]);
    let text = ask(&sandbox, &["quarantine", "list"]).await?.stdout;
    assert!(text.contains("value_field_missing  1 times since 20"), "{text}");

    let tenants = ask(&sandbox, &["tenants", "--csv"]).await?.stdout;
    let lines: Vec<&str> = tenants.split("\r\n").collect();
    assert!(lines[0].starts_with("tenant,state,reason,detail,since,"), "{tenants}");
    assert_eq!(lines.len(), 1 + 2 + 1, "{tenants}");

    for command in ["list", "show", "retry", "drop"] {
        let member = if command == "list" { None } else { Some(member.as_str()) };
        let args: Vec<&str> = ["quarantine", command].into_iter().chain(member).collect();
        let refused = ask(&sandbox, &[&args[..], &["--reason", "missing_rows"]].concat()).await?;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        for part in ["missing_rows", "must be one of missing_row, forked,", "value_field_missing"] {
            assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
        }
    }
    worker.stop().await?;
    Ok(())
}

#[tokio::test]
async fn an_alias_without_its_sign_is_suggested_and_what_cannot_be_asked_is_not_absent() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 3).await?;
    let tenant = sandbox.tenants().remove(0);
    let balance = &tenant.balances[0];
    let name = balance.alias.strip_prefix('@').context("an alias begins with @")?;
    let question = |alias| ["why", "--tenant", tenant.id.as_str(), "--alias", alias];
    let asked = ask(&sandbox, &question(name)).await?;
    assert_eq!(asked.code, Some(2), "{asked:?}");
    let words = asked.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains(&format!(
            "no such balance in Redis, in the schedule or in Postgres; there is {:?}",
            balance.alias
        )),
        "{words}"
    );
    let (code, found) = ask_json(&sandbox, &question(name)).await?;
    assert_eq!((code, &found["meant"]), (Some(2), &balance.alias.as_str().into()), "{found}");
    let (_, found) = ask_json(&sandbox, &question("nobody")).await?;
    assert!(found.get("meant").is_none() && found.get("unasked").is_none(), "{found}");

    // The role may not read the table.
    let sql = "REVOKE SELECT ON balance FROM balance_sync_tenants";
    sandbox.postgres().execute(&tenant.database, sql).await?;
    let asked = ask(&sandbox, &question("@nobody")).await?;
    let words = asked.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(asked.code == Some(2) && !words.contains("no such balance in"), "{asked:?}");
    for part in ["can't be asked", "permission denied for table balance"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    Ok(())
}
