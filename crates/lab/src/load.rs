//! `load`: a producer for tests, writing as the ledger does.
//!
//! It reads the rows of each tenant's Postgres and then mutates those balances in Redis: value with version + 1 and
//! schedule in one atomic step. What it writes are made-up amounts, so it refuses a Redis that is not on this machine.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use balance_sync_cli::{Deployment, EXIT_OK};
use balance_sync_sandbox::ledger::{LoadOptions, LoadTenant, Producer, Progress, SeededBalance, TenantKeys};
use balance_sync_schedule::{LinkSettings, Secret, password_in};
use balance_sync_tenants::Tenant;
use secrecy::ExposeSecret;
use serde_json::json;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use tokio_util::sync::CancellationToken;

use crate::args::LoadArgs;

/// Mutations that could not be written, or of which that isn't known.
const EXIT_ERRORS: u8 = 1;

/// The command.
///
/// # Errors
/// When tenants or their rows can't be read, or Redis is not on this machine.
pub(crate) async fn load(args: LoadArgs) -> anyhow::Result<u8> {
    let deployment = Deployment::load(args.config.as_deref())?;
    let url = producer_url(deployment.redis())?;
    if !args.allow_remote && !is_local(&url) {
        bail!(
            "redis.url: load overwrites balances and writes only to a Redis on this machine; --allow-remote if you mean it"
        );
    }
    let tenants = tenants(&deployment, &args).await?;
    let balances: usize = tenants.iter().map(|tenant| tenant.balances.len()).sum();
    if balances == 0 {
        bail!("the {} chosen tenants have no balances in Postgres to mutate", tenants.len());
    }
    let progress = Arc::new(Progress::new(tenants.len()));
    let ids: Vec<String> = tenants.iter().map(|tenant| tenant.id.clone()).collect();
    eprintln!(
        "load: {balances} balances in {} tenants, {} mutations/s, format {}",
        tenants.len(),
        args.rate,
        args.format
    );

    let cancel = CancellationToken::new();
    let display = actix_rt::spawn(show(Arc::clone(&progress), cancel.clone()));
    let on_signal = cancel.clone();
    actix_rt::spawn(async move {
        if balance_sync_cli::interrupted().await.is_ok() {
            on_signal.cancel();
        }
    });
    let options = LoadOptions {
        rate: args.rate,
        duration: args.duration(),
        hot_key_share: args.hot_key_share,
        seed: args.seed,
        ttl: Duration::from_secs(u64::from(args.ttl)),
    };
    let mut producer = Producer::new(&url, tenants).in_format(args.format);
    let report = producer.run(&options, &progress, &cancel).await?;
    cancel.cancel();
    let _ = display.await;

    let per_second = report.mutations as f64 / report.elapsed.as_secs_f64().max(1e-9);
    if args.json {
        let by_tenant: serde_json::Map<_, _> = ids
            .iter()
            .zip(&progress.tenants)
            .map(|(id, tenant)| {
                (id.clone(), json!(tenant.mutations.load(std::sync::atomic::Ordering::Relaxed)))
            })
            .collect();
        println!(
            "{}",
            json!({
                "mutations": report.mutations, "errors": report.errors, "skipped": report.skipped,
                "seconds": report.elapsed.as_secs_f64(), "per_second": per_second, "tenants": by_tenant,
            })
        );
    } else {
        println!(
            "load: {} mutations in {:.1} s ({per_second:.0}/s), {} errors, {} skipped for lack of time",
            report.mutations,
            report.elapsed.as_secs_f64(),
            report.errors,
            report.skipped
        );
    }
    Ok(if report.errors == 0 { EXIT_OK } else { EXIT_ERRORS })
}

async fn show(progress: Arc<Progress>, cancel: CancellationToken) {
    let mut before = 0;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = progress.mutations();
        eprintln!("load: {now} mutations, {}/s, {} errors", now - before, progress.errors());
        before = now;
    }
}

/// The URL with the credentials in force: the producer knows nothing of our configuration.
fn producer_url(link: &LinkSettings) -> anyhow::Result<String> {
    if link.sentinel.is_some() {
        bail!("redis.master_name: load does not ask sentinels, give the master's url");
    }
    if !link.cluster_nodes.is_empty() {
        bail!(
            "redis.cluster_nodes: load does not look for nodes, give the url of the one that serves the keys"
        );
    }
    let mut url = url::Url::parse(link.url.expose_secret()).context("redis.url")?;
    let password = match &link.password {
        Some(Secret::File(path)) => Some(password_in(path).map_err(anyhow::Error::msg)?),
        Some(Secret::Text(password)) => Some(password.clone()),
        None => None,
    };
    if let Some(password) = password {
        url.set_password(Some(password.expose_secret()))
            .map_err(|()| anyhow::anyhow!("redis.url: can't carry a password"))?;
    }
    if let Some(db) = link.db {
        url.set_path(&db.to_string());
    }
    Ok(url.to_string())
}

fn is_local(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    let Some(host) = url.host_str() else { return false };
    host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn tenants(deployment: &Deployment, args: &LoadArgs) -> anyhow::Result<Vec<LoadTenant>> {
    let mut chosen = deployment.tenants(&args.tenant).await?;
    chosen.truncate(args.tenants.map_or(usize::MAX, |most| most as usize));
    let mut tenants = Vec::with_capacity(chosen.len());
    for tenant in &chosen {
        let read = read_tenant(deployment, tenant, args.balances).await;
        tenants.push(read.with_context(|| format!("reading the balances of tenant {tenant}"))?);
    }
    Ok(tenants)
}

async fn read_tenant(deployment: &Deployment, tenant: &Tenant, most: u32) -> anyhow::Result<LoadTenant> {
    let (spec, table) = deployment.database(tenant).await?;
    let mut connection = spec.connect_options().connect().await?;
    // The table's name is validated and quoted; nothing else is put into the text.
    let sql = format!(
        "SELECT id, organization_id, ledger_id, account_id, alias, key, asset_code, account_type, version \
         FROM {} WHERE deleted_at IS NULL ORDER BY id LIMIT $1",
        table.as_sql()
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(i64::from(most)).fetch_all(&mut connection).await?;
    connection.close().await?;
    let mut balances = Vec::with_capacity(rows.len());
    let mut versions = Vec::with_capacity(rows.len());
    for row in rows {
        let account_type: Option<String> = row.try_get(7)?;
        balances.push(SeededBalance {
            id: row.try_get(0)?,
            organization: row.try_get(1)?,
            ledger: row.try_get(2)?,
            account_id: row.try_get(3)?,
            alias: row.try_get(4)?,
            key: row.try_get(5)?,
            asset: row.try_get(6)?,
            external: account_type.as_deref() == Some("external"),
        });
        versions.push(row.try_get(8)?);
    }
    let space = deployment.key_space(tenant);
    let keys = match space.tenant_id() {
        Some(id) => TenantKeys::tenant(id.as_str()),
        None => TenantKeys::single(),
    };
    Ok(LoadTenant { id: tenant.label().to_owned(), keys, balances, versions })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;

    use super::is_local;
    use crate::args::{Args, Command};

    #[test]
    fn load_ends_by_itself_unless_it_is_asked_not_to() {
        let duration = |more: &[&str]| {
            let args = Args::try_parse_from([&["balance-sync-lab", "load"], more].concat()).ok()?;
            match args.command {
                Command::Load(args) => Some(args.duration()),
                _ => None,
            }
        };
        assert_eq!(duration(&[]), Some(Some(Duration::from_secs(60))));
        assert_eq!(duration(&["--seconds", "0"]), Some(None));
        assert_eq!(duration(&["--seconds", "2.5"]), Some(Some(Duration::from_millis(2_500))));
        for wrong in ["-1", "nan", "inf", "for ever"] {
            assert_eq!(duration(&[&format!("--seconds={wrong}")]), None, "{wrong}");
        }
    }

    #[test]
    fn only_loopback_is_local() {
        for url in [
            "redis://127.0.0.1:6379",
            "redis://localhost/0",
            "redis://:secret@127.9.9.9:1/2",
            "redis://[::1]:6379",
        ] {
            assert!(is_local(url), "{url}");
        }
        for url in ["redis://10.0.0.1", "redis://redis:6379", "redis://127.0.0.1.example.org", "nonsense"] {
            assert!(!is_local(url), "{url}");
        }
    }
}
