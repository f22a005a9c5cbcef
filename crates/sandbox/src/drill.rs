//! Breaking one tenant of a running sandbox, and mending it, for drills of people who operate workers.

use anyhow::{Context, Result};

use crate::fleet::{Sandbox, SandboxTenant};
use crate::postgres::quote_name;

/// What can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakage {
    /// The tenant's role has another password than the tenant service says.
    Password,
    /// Its database accepts no connections. Tenants that share the database have that as well.
    Postgres,
    /// Its balance table has another name.
    Schema,
}

impl Breakage {
    /// All of them, under the names on the command line.
    pub const ALL: [(&'static str, Self); 3] =
        [("password", Self::Password), ("postgres", Self::Postgres), ("schema", Self::Schema)];

    /// The one of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, breakage)| *breakage)
    }
}

/// The table's name while it is broken.
const AWAY: &str = "balance_is_away";

impl Sandbox {
    /// Breaks a tenant; done twice it stays broken.
    ///
    /// # Errors
    /// When there is no such tenant, or what PostgreSQL answers.
    pub async fn break_tenant(&self, id: &str, what: Breakage) -> Result<()> {
        let tenant = self.tenant(id)?;
        let (role, database) = (quote_name(&tenant.role), quote_name(&tenant.database));
        let admin = |sql: String| async move { self.postgres().execute("postgres", &sql).await };
        match what {
            Breakage::Password => {
                admin(format!("ALTER ROLE {role} PASSWORD 'broken for a drill'")).await?;
                self.postgres().end_sessions(Some(&tenant.role)).await?;
            }
            Breakage::Postgres => {
                admin(format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false")).await?;
                for other in self.tenants().iter().filter(|other| other.database == tenant.database) {
                    self.postgres().end_sessions(Some(&other.role)).await?;
                }
            }
            Breakage::Schema => self.rename(&tenant, "balance", AWAY).await?,
        }
        Ok(())
    }

    /// Undoes whatever was broken of a tenant; what is whole stays so.
    ///
    /// # Errors
    /// As [`Sandbox::break_tenant`].
    pub async fn mend_tenant(&self, id: &str) -> Result<()> {
        let tenant = self.tenant(id)?;
        let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", quote_name(&tenant.database));
        self.postgres().execute("postgres", &sql).await?;
        let record =
            self.service().tenant(id).with_context(|| format!("{id} is not in the tenant service"))?;
        self.postgres().set_password(&tenant.role, &record.password).await?;
        self.rename(&tenant, AWAY, "balance").await
    }

    async fn rename(&self, tenant: &SandboxTenant, from: &str, to: &str) -> Result<()> {
        let schema = quote_name(tenant.schema.as_deref().unwrap_or("public"));
        let sql = format!("ALTER TABLE IF EXISTS {schema}.{} RENAME TO {}", quote_name(from), quote_name(to));
        self.postgres().execute(&tenant.database, &sql).await
    }
}
