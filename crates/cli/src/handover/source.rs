//! The rows of a database, page by page.

use std::time::Duration;

use anyhow::{Context as _, bail};
use balance_sync_domain::TlsMode;
use balance_sync_store::{AuditPage, AuditRow, ConnectionBudget, Database, DatabaseSpec, Table};
use balance_sync_tenants::Tenant;
use percent_encoding::percent_decode_str;
use url::Url;

use super::{Digest, Digester};
use crate::{audit::Pace, config::Config, wiring};

/// Rows of a page …
const PAGE: u16 = 1000;
/// … which is halved down to this while Postgres takes too long over it.
const SMALLEST_PAGE: u16 = 60;
/// How long connections may take to end.
const CLOSE: Duration = Duration::from_secs(1);

/// A table of balances.
pub(crate) struct Source {
    database: Database,
    table: Table,
    pace: Pace,
}

impl Source {
    /// The present one of a tenant.
    ///
    /// # Errors
    /// When its settings can't be read or used.
    pub(crate) async fn of_tenant(config: &Config, tenant: &Tenant, rate: u32) -> anyhow::Result<Self> {
        let settings = wiring::directory(config)?.database(tenant).await?;
        let manager = wiring::manager_options(config);
        manager.allows(&settings)?;
        let spec =
            DatabaseSpec { application_name: "balance-sync handover".to_owned(), ..manager.spec(&settings) };
        Self::new(spec, settings.schema.as_deref(), rate)
    }

    /// That of a URL. Nothing of the URL is in an error, as it may hold a password.
    ///
    /// # Errors
    /// When it can't be used.
    pub(crate) fn of_url(url: &str, schema: Option<&str>, rate: u32) -> anyhow::Result<Self> {
        let allowed = "allowed: postgres://ROLE:PASSWORD@HOST:PORT/DATABASE?sslmode=MODE";
        let url = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "postgres" | "postgresql"))
            .with_context(|| format!("--database-url is no URL of Postgres; {allowed}"))?;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(|text| text.into_owned());
        let host = url.host_str().with_context(|| format!("--database-url names no host; {allowed}"))?;
        let host = decoded(host.trim_start_matches('[').trim_end_matches(']'))?;
        let database = decoded(url.path().trim_start_matches('/'))?;
        let role = decoded(url.username())?;
        if database.is_empty() || role.is_empty() {
            bail!("--database-url names no database or no role; {allowed}");
        }
        let password = decoded(url.password().unwrap_or_default())?;
        let mut spec = DatabaseSpec {
            application_name: "balance-sync handover".to_owned(),
            ..DatabaseSpec::new(host, url.port().unwrap_or(5432), database, role, password.into())
        };
        for (name, value) in url.query_pairs() {
            match &*name {
                "sslmode" => spec.tls = value.parse::<TlsMode>().context("--database-url: sslmode")?,
                "sslrootcert" => spec.root_cert = Some(value.into_owned().into()),
                "sslcert" => spec.cert = Some(value.into_owned().into()),
                "sslkey" => spec.key = Some(value.into_owned().into()),
                _ => bail!(
                    "--database-url has the parameter {:?}; allowed: sslmode, sslrootcert, sslcert, sslkey",
                    name.chars().take(40).collect::<String>()
                ),
            }
        }
        Self::new(spec, schema, rate)
    }

    fn new(spec: DatabaseSpec, schema: Option<&str>, rate: u32) -> anyhow::Result<Self> {
        let table = match schema {
            Some(schema) => Table::in_schema(schema)?,
            None => Table::unqualified(),
        };
        let database = Database::open(spec, ConnectionBudget::new(2))?;
        Ok(Self { database, table, pace: Pace::new(rate) })
    }

    /// Passes on all rows in the order of their ids, with these columns beside those that name a row and its state.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn each_row(
        &self,
        further: &[String],
        mut each: impl FnMut(&AuditRow),
    ) -> anyhow::Result<()> {
        let access = self.database.audit_access(&self.table).await.context("reading rows")?;
        let access = access
            .blind("rows alone are compared")
            .with_further(further)
            .map_err(|why| anyhow::anyhow!("{why}; the statement covers it"))
            .context("reading rows")?;
        let mut page = AuditPage { after: None, rows: PAGE, sample: None };
        loop {
            self.pace.take(usize::from(page.rows)).await;
            let rows = match self.database.audit_page(&self.table, &access, page).await {
                Err(error) if error.is_statement_timeout() && page.rows > SMALLEST_PAGE => {
                    page.rows /= 2;
                    continue;
                }
                rows => rows.context("reading rows")?,
            };
            rows.iter().for_each(&mut each);
            match rows.last() {
                Some(last) if rows.len() >= usize::from(page.rows) => page.after = Some(last.id),
                _ => return Ok(()),
            }
        }
    }

    /// The digest of all rows.
    ///
    /// # Errors
    /// As [`Source::each_row`].
    pub(crate) async fn digest(&self, further: &[String]) -> anyhow::Result<Digest> {
        let mut digester = Digester::new();
        digester.with_further(further);
        self.each_row(further, |row| digester.add(row)).await?;
        Ok(digester.finish())
    }

    /// How many rows there are now, and the sum of their versions.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn totals(&self) -> anyhow::Result<(u64, i128)> {
        self.database.audit_totals(&self.table).await.context("counting rows")
    }

    /// Ends its connections.
    pub(crate) async fn close(self) {
        self.database.close(CLOSE).await;
    }
}
