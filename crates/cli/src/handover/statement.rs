//! What is signed, and its file.

use std::{collections::BTreeMap, fs::OpenOptions, io::Write as _, path::Path};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Digest, PublicKey, SigningKey};

/// The format, with its version.
pub(crate) const FORMAT: &str = "balance-sync-handover/2";
/// What is signed begins with this, so that no signature of anything else can be used for it.
const SIGNED: &[u8] = b"balance-sync handover 2 statement\0";
/// Longest file that is read.
const LONGEST: u64 = 4 * 1024 * 1024;
/// What is wrong with a file that has been touched.
const NOT_AS_WRITTEN: &str =
    "is not as it was written: it must be two lines, the statement and its signature";

/// What is said of a tenant. The order of the fields is part of the format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Statement {
    pub format: String,
    pub tenant: String,
    /// When the rows had been read for the second time.
    pub made_at: String,
    pub made_by: String,
    pub note: String,
    /// The id of the action that paused the tenant.
    pub pause_action: String,
    pub program_version: String,
    /// Whether the rows are the truth: nothing was found, by all three witnesses.
    pub truth: bool,
    pub claim: String,
    pub witnesses: u8,
    /// Values of Redis that were compared.
    pub values: u64,
    /// Balances by what was found of them.
    pub classes: BTreeMap<String, u64>,
    /// How many findings there are; of many only the first are listed.
    pub findings_total: u64,
    pub findings: Vec<Found>,
    /// How many quarantined and lost balances there are.
    pub quarantined_total: u64,
    pub quarantined: Vec<Listed>,
    pub notices: Vec<String>,
    /// Of the rows.
    pub digest: Digest,
    pub public_key: String,
}

/// A finding of the audit, without amounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Found {
    pub member: String,
    pub id: Option<Uuid>,
    pub class: String,
    pub version: i64,
    pub advice: String,
}

/// A quarantined or lost balance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listed {
    pub member: String,
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    signature: String,
}

fn message(statement: &str) -> Vec<u8> {
    [SIGNED, statement.as_bytes()].concat()
}

impl Statement {
    /// The text of its signed file.
    ///
    /// # Errors
    /// Never in practice: when it can't be JSON.
    pub(crate) fn sign(mut self, key: &SigningKey) -> anyhow::Result<String> {
        self.public_key = key.public().text();
        let statement = serde_json::to_string(&self)?;
        let signature = Signature { signature: key.sign(&message(&statement)) };
        Ok(format!("{statement}\n{}\n", serde_json::to_string(&signature)?))
    }

    /// The statement in the text of a file, if this key has signed it.
    ///
    /// # Errors
    /// When it hasn't, or the file is not exactly as it was written.
    pub(crate) fn verified(text: &str, key: PublicKey) -> anyhow::Result<Self> {
        let lines: Vec<&str> = text.split('\n').collect();
        let [statement, signature, ""] = lines[..] else { bail!(NOT_AS_WRITTEN) };
        let read: Signature = serde_json::from_str(signature).ok().context(NOT_AS_WRITTEN)?;
        if serde_json::to_string(&read)? != signature {
            bail!(NOT_AS_WRITTEN);
        }
        if !key.has_signed(&message(statement), &read.signature) {
            bail!("has no valid signature of this key: it was changed, or signed by another key");
        }
        let read: serde_json::Value = serde_json::from_str(statement).context("can't be read")?;
        if read["format"] != FORMAT {
            bail!("has the format {}; allowed: {FORMAT}", read["format"]);
        }
        serde_json::from_str(statement).context("can't be read")
    }

    /// Reads the file, and verifies it with this key.
    ///
    /// # Errors
    /// As [`Statement::verified`], or when it can't be read.
    pub(crate) fn read(file: &Path, key: PublicKey) -> anyhow::Result<Self> {
        let shown = file.display();
        let size = std::fs::metadata(file).with_context(|| format!("{shown} can't be read"))?.len();
        if size > LONGEST {
            bail!("{shown} has {size} bytes; allowed: {LONGEST}");
        }
        let bytes = std::fs::read(file).with_context(|| format!("{shown} can't be read"))?;
        let text = String::from_utf8(bytes).ok().with_context(|| format!("{shown} {NOT_AS_WRITTEN}"))?;
        Self::verified(&text, key).map_err(|error| anyhow::anyhow!("{shown} {error:#}"))
    }

    /// Writes the text of a file that must not exist.
    ///
    /// # Errors
    /// When it does, or can't be written.
    pub(crate) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
        let shown = file.display();
        let opened = OpenOptions::new().write(true).create_new(true).open(file);
        let mut open = opened.with_context(|| format!("{shown} can't be made"))?;
        open.write_all(text.as_bytes())
            .and_then(|()| open.sync_all())
            .with_context(|| format!("writing {shown}"))
    }
}
