//! What one batch costs Postgres, by the form of its statement: the worker's own, and others that were considered.
//!
//! One session, one table as the ledger makes it, and nothing but the statement. The forms take turns in an order that
//! changes, and the table is vacuumed before each turn. CPU time is that of all of Postgres's processes, so writing the log to disk is
//! part of it.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{Producer, SeededBalance};
use balance_sync_sandbox::{SandboxTenant, balance_table};
use balance_sync_store::{ConnectionBudget, Database, Row, Table};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::Options;
use crate::figures::Figures;
use crate::rig::{Rig, spec};

const BALANCES: usize = 200_000;

/// Rows of a batch, and how many of them make one turn.
const BATCHES: [(usize, usize); 3] = [(500, 40), (10, 200), (1, 400)];

const SEED: u64 = 1;

/// A way to write a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// What the worker sends, by its own code.
    Own,
    /// The same without the check that rows are stored as they were sent.
    Unchecked,
    /// The same without the check that the session is what it should be.
    Unguarded,
    /// The check of what was stored raises its error in `RETURNING`, so that nothing is gathered and counted.
    CheckedInReturning,
    /// Ids in their order, which is that of the primary key.
    Sorted,
    /// `MERGE`, which can't return anything before PostgreSQL 17.
    Merge,
    /// The rows in a temporary table.
    Temporary,
    /// The rows as `VALUES` instead of arrays.
    Values,
    /// A commit that isn't waited for: never used, tells what waiting costs.
    Asynchronous,
    /// Nothing is written: rows are looked up.
    Lookup,
    /// Nothing is looked up: the message is read.
    Message,
}

const FORMS: [(Form, &str); 11] = [
    (Form::Own, "own"),
    (Form::Unchecked, "unchecked"),
    (Form::Unguarded, "unguarded"),
    (Form::CheckedInReturning, "checked_in_returning"),
    (Form::Sorted, "sorted"),
    (Form::Merge, "merge"),
    (Form::Temporary, "temporary_table"),
    (Form::Values, "values"),
    (Form::Asynchronous, "asynchronous_commit"),
    (Form::Lookup, "lookup_alone"),
    (Form::Message, "message_alone"),
];

/// Measures each form with batches of each size, and the worker's own once more in a table that leaves room in its pages.
pub(crate) async fn run(options: &Options, figures: &mut Figures) -> Result<()> {
    let rig = Rig::start(1, options.scaled(BALANCES, 100_000)).await?;
    let producer: Producer = rig.sandbox.producer();
    let load = producer.tenants().first().context("no tenant")?;
    let tenant = rig.sandbox.tenant(&load.id)?;
    let mut bench = Bench::open(&rig, &tenant, &load.balances).await?;
    for _ in 0..options.repeat {
        for (rows, batches) in BATCHES {
            let mut forms = FORMS;
            forms.shuffle(&mut bench.rng);
            for (form, name) in forms {
                let cost = bench.turn(&rig, form, rows, batches).await?;
                figures.add(&format!("statement_{rows}"), &format!("{name}_us"), cost);
            }
        }
    }
    let table = balance_table(tenant.schema.as_deref());
    bench.execute(format!("ALTER TABLE {table} SET (fillfactor = 80)")).await?;
    bench.execute(format!("VACUUM FULL {table}")).await?;
    for _ in 0..options.repeat {
        let (rows, batches) = BATCHES[0];
        figures.add(
            "statement_500",
            "own_with_fillfactor_80_us",
            bench.turn(&rig, Form::Own, rows, batches).await?,
        );
    }
    bench.session.close().await?;
    rig.stop().await
}

struct Bench<'r> {
    session: PgConnection,
    own: Database,
    table: String,
    balances: Vec<&'r SeededBalance>,
    version: i64,
    rng: StdRng,
}

impl<'r> Bench<'r> {
    async fn open(rig: &Rig, tenant: &SandboxTenant, balances: &'r [SeededBalance]) -> Result<Self> {
        let pool = rig.sandbox.pool(tenant);
        Ok(Self {
            // The owner of the table, who may vacuum it.
            session: PgConnection::connect_with(&pool.connect_options()).await?,
            own: Database::open(spec(tenant)?, ConnectionBudget::new(1))?,
            table: balance_table(tenant.schema.as_deref()),
            // A statement of the worker names the ledger once if all rows are of one, as most batches are.
            balances: balances.iter().filter(|balance| balance.ledger == balances[0].ledger).collect(),
            version: 1_000,
            rng: StdRng::seed_from_u64(SEED),
        })
    }

    async fn execute(&mut self, statement: String) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.session).await?;
        Ok(())
    }

    /// Writes so many batches; microseconds of Postgres's CPU time for each row.
    async fn turn(&mut self, rig: &Rig, form: Form, rows: usize, batches: usize) -> Result<f64> {
        self.execute(format!("VACUUM ANALYZE {}", self.table)).await?;
        let total = rows * batches;
        ensure!(self.balances.len() >= total, "{} balances for {total} rows", self.balances.len());
        self.balances.partial_shuffle(&mut self.rng, total);
        let meter = rig.meter(Vec::new())?;
        // The session is made before the first reading.
        self.write(form, 0, 1).await?;
        let before = meter.read()?;
        for batch in 0..batches {
            self.write(form, batch * rows, rows).await?;
        }
        Ok(meter.read()?.since(&before).postgres / total as f64)
    }

    async fn write(&mut self, form: Form, from: usize, count: usize) -> Result<()> {
        self.version += 1;
        let mut batch: Vec<&SeededBalance> = self.balances[from..from + count].to_vec();
        if form == Form::Sorted {
            batch.sort_unstable_by_key(|balance| balance.id);
        }
        let amounts: Vec<_> = batch.iter().map(|balance| balance.amounts(self.version)).collect();
        if matches!(form, Form::Own | Form::Sorted) {
            let rows: Vec<Row<'_>> = batch
                .iter()
                .zip(&amounts)
                .map(|(balance, amounts)| Row {
                    id: balance.id,
                    organization: balance.organization,
                    ledger: balance.ledger,
                    available: &amounts.available,
                    on_hold: &amounts.on_hold,
                    overdraft_used: &amounts.overdraft_used,
                    version: self.version,
                })
                .collect();
            let outcomes = self.own.update(&Table::unqualified(), &rows).await?;
            ensure!(outcomes.len() == count, "{} outcomes for {count} rows", outcomes.len());
            return Ok(());
        }
        let columns = [
            array(batch.iter().map(|balance| balance.id.to_string()), "uuid"),
            array(amounts.iter().map(|amounts| amounts.available.clone()), "numeric"),
            array(amounts.iter().map(|amounts| amounts.on_hold.clone()), "numeric"),
            array(amounts.iter().map(|amounts| amounts.overdraft_used.clone()), "numeric"),
            array(batch.iter().map(|_| self.version.to_string()), "int8"),
        ];
        let rows = format!("unnest({})", columns.join(", "));
        let values = || {
            let mut text = String::from("(VALUES ");
            for (n, (balance, amounts)) in batch.iter().zip(&amounts).enumerate() {
                let comma = if n == 0 { "" } else { "," };
                let _ = write!(
                    text,
                    "{comma}('{}'::uuid,{}::numeric,{}::numeric,{}::numeric,{}::int8)",
                    balance.id, amounts.available, amounts.on_hold, amounts.overdraft_used, self.version
                );
            }
            text + ")"
        };
        let first = batch.first().context("an empty batch")?;
        let same_row = format!(
            "b.id = v.id AND CASE WHEN v.id IS NULL THEN false ELSE b.organization_id = '{}' AND b.ledger_id = '{}' END",
            first.organization, first.ledger
        );
        let statement = statement(form, &self.table, &same_row, &rows, values);
        let commit = if form == Form::Asynchronous { "off" } else { "on" };
        self.execute(format!("{}{statement}", settings(commit))).await
    }
}

fn array(items: impl Iterator<Item = String>, kind: &str) -> String {
    format!("'{{{}}}'::{kind}[]", items.collect::<Vec<_>>().join(","))
}

/// The settings of a message of the worker.
fn settings(commit: &str) -> String {
    let mut text = String::from("SET TRANSACTION ISOLATION LEVEL READ COMMITTED;");
    for setting in [
        "statement_timeout = 30000",
        "row_security = off",
        "client_encoding = 'UTF8'",
        "lock_timeout = 1000",
        "search_path TO DEFAULT",
        "enable_hashjoin = off",
        "enable_mergejoin = off",
        "enable_seqscan = off",
        "enable_bitmapscan = off",
        "enable_material = off",
        "enable_nestloop = on",
        "enable_indexscan = on",
        "cpu_tuple_cost = 1",
        "random_page_cost = 0",
        "jit = off",
    ] {
        let _ = write!(text, "SET LOCAL {setting};");
    }
    let _ = write!(text, "SET LOCAL synchronous_commit = {commit};");
    text
}

fn statement(form: Form, table: &str, same_row: &str, rows: &str, values: impl Fn() -> String) -> String {
    const SET: &str = "available = v.available, on_hold = v.on_hold, overdraft_used = v.overdraft_used, \
                       version = v.version, updated_at = now()";
    const GUARD: &str = " AND (SELECT CASE WHEN current_setting('row_security') = 'off' \
                         AND current_setting('transaction_isolation') = 'read committed' \
                         AND current_database() <> convert_from(decode('61', 'hex'), 'UTF8') \
                         THEN true ELSE ('no: ' || current_database())::bool END)";
    const SAME: &str = "(b.version = v.version AND b.available = v.available AND b.on_hold = v.on_hold \
                        AND b.overdraft_used = v.overdraft_used) IS TRUE";
    const NEWER: &str = "b.deleted_at IS NULL AND coalesce(b.version, -1) < v.version";
    const V: &str = "AS v(id, available, on_hold, overdraft_used, version)";
    let guard = if form == Form::Unguarded { "" } else { GUARD };
    let update = |from: &str| {
        format!("UPDATE {table} AS b SET {SET} FROM {from} {V} WHERE {same_row} AND {NEWER}{guard}")
    };
    let checked = |from: &str| {
        format!(
            "WITH u AS ({} RETURNING v.id, {SAME} AS same) SELECT CASE WHEN coalesce(bool_and(same), true) THEN count(*) \
             ELSE ('altered: ' || min(id::text) FILTER (WHERE NOT same))::int8 END FROM u",
            update(from)
        )
    };
    match form {
        Form::Unchecked => update(rows),
        Form::CheckedInReturning => {
            format!(
                "{} RETURNING CASE WHEN {SAME} THEN NULL ELSE ('altered: ' || b.id)::int8 END",
                update(rows)
            )
        }
        Form::Merge => format!(
            "MERGE INTO {table} AS b USING (SELECT * FROM {rows} {V}) AS v ON {same_row} \
             WHEN MATCHED AND {NEWER}{guard} THEN UPDATE SET {SET}"
        ),
        Form::Temporary => format!(
            "CREATE TEMPORARY TABLE batch ON COMMIT DROP AS SELECT * FROM {rows} {V};\
             UPDATE {table} AS b SET {SET} FROM batch AS v WHERE {same_row} AND {NEWER}{guard}"
        ),
        Form::Values => checked(&values()),
        Form::Lookup => {
            format!("SELECT count(*) FROM {rows} {V} JOIN {table} AS b ON {same_row} AND {NEWER}{guard}")
        }
        Form::Message => format!("SELECT count(*) FROM {rows} {V} WHERE v.version > 0{guard}"),
        Form::Own | Form::Sorted | Form::Unguarded | Form::Asynchronous => checked(rows),
    }
}
