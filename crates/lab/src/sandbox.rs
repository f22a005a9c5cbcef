//! `sandbox`: private servers for trying things by hand, and for foreign producers.

use anyhow::Context;
use balance_sync_cli::{EXIT_OK, interrupted};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, free_port};
use secrecy::ExposeSecret;
use serde_json::json;

use crate::{
    args::{IsolationArg, SandboxArgs, SandboxCommand},
    drill,
};

/// Stays until interrupted; leaves nothing behind.
///
/// # Errors
/// When a server can't be started; the text says what to install.
pub(crate) async fn sandbox(args: SandboxArgs) -> anyhow::Result<u8> {
    match &args.command {
        None => {}
        Some(SandboxCommand::Break { tenant, what, of }) => {
            return drill::ask(&of.config, &drill::Order::Break(tenant.clone(), *what)).await;
        }
        Some(SandboxCommand::Mend { tenant, of }) => {
            return drill::ask(&of.config, &drill::Order::Mend(tenant.clone())).await;
        }
    }
    // Listened to from the beginning: an interrupt while the servers start must clean up as well.
    let interrupted = interrupted();
    tokio::pin!(interrupted);
    if !args.json {
        eprintln!("starting Redis, Postgres and a tenant service with {} tenants …", args.tenants);
    }
    let sandbox = tokio::select! {
        started = Sandbox::start(options(&args)?) => started?,
        signal = &mut interrupted => {
            signal.context("listening to signals")?;
            return Ok(EXIT_OK);
        }
    };
    if args.json {
        println!("{}", describe(&sandbox));
    } else {
        println!("redis           {}", sandbox.redis_url());
        println!("tenant service  {}", sandbox.service().base_url());
        println!("config          {}", sandbox.config_path().display());
        println!("dashboard       {} (of the first worker)", dashboard(&sandbox));
        for tenant in sandbox.tenants() {
            let schema =
                tenant.schema.as_ref().map(|schema| format!("  schema {schema}")).unwrap_or_default();
            println!("tenant          {}  {}{schema}", tenant.id, tenant.database_url());
        }
        println!("\nin other terminals:");
        let config = sandbox.config_path().display();
        println!("  balance-sync run      --config {config}");
        println!("  balance-sync-lab load --config {config} --rate 5000 --seconds 20");
        println!("  balance-sync verify   --config {config}");
        println!(
            "  BALANCE_SYNC__ADMIN__LISTEN=127.0.0.1:0 balance-sync run --config {config}   # a second worker"
        );
        println!("\ndrills (password, postgres or schema of a tenant):");
        println!("  balance-sync-lab sandbox break tenant-0001 password --config {config}");
        println!("  balance-sync-lab sandbox mend  tenant-0001 --config {config}");
        println!("\nCtrl-C ends and removes all of it");
    }
    let orders = drill::listen(&sandbox)?;
    tokio::select! {
        signal = interrupted => signal.context("listening to signals").map(drop)?,
        () = drill::serve(&orders, &sandbox) => {}
    }
    drop(orders);
    sandbox.stop().await?;
    Ok(EXIT_OK)
}

fn options(args: &SandboxArgs) -> anyhow::Result<SandboxOptions> {
    Ok(SandboxOptions {
        tenants: args.tenants as usize,
        balances: args.balances as usize,
        isolation: match args.isolation {
            IsolationArg::Database => Isolation::Database,
            IsolationArg::Schema => Isolation::Schema,
            IsolationArg::Mixed => Isolation::Mixed,
        },
        // `load` writes as the ledger, with the same configuration.
        least_privilege: false,
        // Known before the first worker starts, so that it can be printed.
        admin_port: free_port()?,
        ..SandboxOptions::default()
    })
}

/// Where the dashboard is once a worker runs.
fn dashboard(sandbox: &Sandbox) -> String {
    format!("http://127.0.0.1:{}/", sandbox.options().admin_port)
}

/// The line of JSON. The credentials in it open servers that listen on loopback only and end with this process.
fn describe(sandbox: &Sandbox) -> serde_json::Value {
    let tenants: Vec<_> = sandbox
        .tenants()
        .iter()
        .map(
            |tenant| json!({"id": tenant.id, "database_url": tenant.database_url(), "schema": tenant.schema}),
        )
        .collect();
    json!({
        "redis_url": sandbox.redis_url(),
        "tenant_service_url": sandbox.service().base_url(),
        "api_key": sandbox.service().api_key().expose_secret(),
        "config": sandbox.config_path(),
        "dashboard_url": dashboard(sandbox),
        "tenants": tenants,
    })
}
