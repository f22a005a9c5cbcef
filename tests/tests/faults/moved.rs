//! The host name of a Postgres server that comes to lead to another server, while the former one is up and takes writes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, SeededBalance, seed_balances, stored_balances};
use balance_sync_sandbox::{
    HostNames, Isolation, PostgresOptions, PostgresServer, Sandbox, SandboxOptions, SandboxTenant, eventually,
};
use balance_sync_tests::ledger::{all_settled, comes_in_step, rows};
use balance_sync_tests::{SOON, options};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::{BUSY, brisk, report};

/// The name in the settings of all tenants.
const NAME: &str = "ledger-db.sandbox.test";
const FORMER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const NEXT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const BALANCES: usize = 40;
/// How often the worker looks a name up whose connections are in use.
const LOOK_UP_EVERY: Duration = Duration::from_secs(15);

/// Two servers that are reached at one port of two addresses.
struct Moving {
    sandbox: Sandbox,
    next: PostgresServer,
    names: HostNames,
}

/// Passes connections on to a port of this host.
fn pass_on(listener: TcpListener, to: u16) {
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect((FORMER, to)).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
}

impl Moving {
    /// The name leads to the sandbox's server. The other one has the same tenants and rows, as they were at first.
    async fn start() -> Result<Self> {
        let wanted = SandboxOptions { isolation: Isolation::Database, ..options(2, BALANCES) };
        let sandbox = Sandbox::start(wanted).await?;
        let next = PostgresServer::start(PostgresOptions::default()).await?;
        let former = TcpListener::bind((FORMER, 0)).await?;
        let port = former.local_addr()?.port();
        pass_on(former, sandbox.postgres().port());
        pass_on(TcpListener::bind((NEXT, port)).await.context("the port at the other address")?, next.port());
        for tenant in sandbox.tenants() {
            let record = sandbox.service().tenant(&tenant.id).context("a record")?;
            next.create_tenant_database(&tenant.database, &tenant.role, &record.password).await?;
            let pool = next.pool(&tenant.database);
            let seeded = seed_balances(&pool, None, &tenant.id, BALANCES).await?;
            pool.close().await;
            let ids =
                |balances: &[SeededBalance]| balances.iter().map(|balance| balance.id).collect::<Vec<_>>();
            ensure!(ids(&seeded) == ids(&tenant.balances), "other balances");
            sandbox.service().update(&tenant.id, |record| {
                NAME.clone_into(&mut record.host);
                record.port = port;
            });
        }
        let names = HostNames::new()?;
        names.set(NAME, FORMER)?;
        Ok(Self { sandbox, next, names })
    }

    /// The rows of a tenant at the server to which the name leads next.
    async fn next_rows(&self, tenant: &SandboxTenant) -> Result<BTreeMap<Uuid, i64>> {
        let pool = self.next.pool(&tenant.database);
        let rows = stored_balances(&pool, None).await;
        pool.close().await;
        Ok(rows?.into_iter().map(|row| (row.id, row.version)).collect())
    }

    async fn former_rows(&self, tenant: &SandboxTenant) -> Result<BTreeMap<Uuid, i64>> {
        Ok(rows(&self.sandbox, tenant).await?.into_iter().map(|(id, row)| (id, row.version)).collect())
    }

    /// Writes all the time until all rows follow; returns how long the former server was written after the name had moved.
    async fn follows(&self) -> Result<Duration> {
        let Self { sandbox, names, .. } = self;
        let tenants = sandbox.tenants();
        // No connection gets so old within the test.
        let mut worker = brisk(sandbox, "w").set("postgres.connection_max_age", "1h");
        for (name, value) in names.variables() {
            worker = worker.env(name, &value);
        }
        let mut worker = worker.start().await?;
        let mut producer = sandbox.producer();
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(sandbox, &producer).await?;
        all_settled(sandbox).await?;

        names.set(NAME, NEXT)?;
        let moved = Instant::now();
        // Used all the time, so that no connection is closed because it is idle.
        let mut last = moved;
        let mut before = BTreeMap::new();
        loop {
            producer.mutate_each(DEFAULT_TTL).await?;
            let mut followed = true;
            for tenant in &tenants {
                let now = self.former_rows(tenant).await?;
                if before.insert(tenant.id.clone(), now.clone()).is_some_and(|before| before != now) {
                    last = Instant::now();
                }
                followed &= self.next_rows(tenant).await?.values().any(|version| *version > 1);
            }
            if followed && last.elapsed() > Duration::from_secs(1) {
                break;
            }
            let late = moved.elapsed();
            ensure!(
                late < LOOK_UP_EVERY + BUSY,
                "the former server is still written {late:?} after the move"
            );
        }
        let took = last - moved;
        // What only the former server has is noticed and written to the next one.
        eventually(SOON, "all rows at the next server", || async {
            for (load, tenant) in producer.tenants().iter().zip(&tenants) {
                let found = self.next_rows(tenant).await?;
                for (balance, version) in load.balances.iter().zip(&load.versions) {
                    let at = found.get(&balance.id).copied();
                    ensure!(at == Some(*version), "{}: {at:?}, not {version}", balance.alias);
                }
            }
            Ok(())
        })
        .await?;
        for tenant in &tenants {
            assert_eq!(
                self.former_rows(tenant).await?,
                before[&tenant.id],
                "the former server is written again"
            );
        }
        assert_eq!(worker.stop().await?.code, Some(0));
        Ok(took)
    }
}

#[tokio::test]
async fn a_name_that_moves_is_followed_at_its_next_look_up() -> Result<()> {
    let took = Moving::start().await?.follows().await?;
    report(
        "the name of a server moved, the former one up",
        &format!("the former one was written for another {:.1} s, all rows at the next", took.as_secs_f64()),
    );
    Ok(())
}
