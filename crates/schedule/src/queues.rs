//! The ledger's own queues: their depths, and their records page by page. Nothing is written, and no call's time grows with a
//! queue's size.
//!
//! Values may be large, so their sizes are looked at before they are read. A server that lists the fields of a hash without
//! their values (`HSCAN … NOVALUES`: Redis 7.4, Valkey 8) is found by trying it. Others can only list both; there the size of a
//! page follows from the sizes of some records picked at random.
//!
//! Plain commands, no script: a user with the right to read a key alone (`%R~`) may not name it to `EVALSHA`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures::future::{join_all, try_join_all};
use redis::{Cmd, Value};

use crate::{
    error::{ErrorClass, ScheduleError},
    link::Link,
    reply::{array, bulk, int, seconds},
};

/// A larger value is not read.
const LARGEST_VALUE: u64 = 1 << 20;
/// A page has so many bytes, about, and one command reads so many at most (but for a single larger value).
const PAGE_BYTES: u64 = 256 << 10;
/// Records picked at random for their sizes.
const SIZES: i64 = 8;

const OPERATION: &str = "read a queue of the ledger";

/// Why a queue can't be read.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The user lacks a right, as `ACL SETUSER` takes it.
    #[error("missing: {0}")]
    Denied(String),
    /// Its key holds something else.
    #[error("its key is of another type")]
    WrongType,
    /// Its values are too large for a server that can't list the fields alone.
    #[error(
        "its records have some {0} bytes each, and this server can't list them without their values (Redis before 7.4, Valkey before 8)"
    )]
    TooLarge(u64),
    /// Redis doesn't answer, or not as it should.
    #[error(transparent)]
    Redis(ScheduleError),
}

/// A part of a hash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Fields with their values; `None` = larger than what is read.
    pub records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<Vec<u8>>,
    /// What it cost, in records: a page may hold few records, or large ones.
    pub cost: u64,
}

/// Reads queues over one link.
#[derive(Debug)]
pub struct QueueReader {
    link: Link,
    /// Whether the server lists fields without values, as far as it is known.
    lists_fields: AtomicBool,
}

impl QueueReader {
    /// Over this link.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link, lists_fields: AtomicBool::new(true) }
    }

    /// How many of these keys exist.
    ///
    /// # Errors
    /// As [`QueueError`].
    pub async fn existing(&self, keys: &[&str]) -> Result<u64, QueueError> {
        let mut cmd = redis::cmd("EXISTS");
        cmd.arg(keys);
        self.number(&cmd, keys.first().copied().unwrap_or_default()).await
    }

    /// Fields of a hash.
    ///
    /// # Errors
    /// As [`QueueError`].
    pub async fn hash_depth(&self, key: &str) -> Result<u64, QueueError> {
        let mut cmd = redis::cmd("HLEN");
        cmd.arg(key);
        self.number(&cmd, key).await
    }

    /// Members of a sorted set, and the lowest score.
    ///
    /// # Errors
    /// As [`QueueError`].
    pub async fn set_depth(&self, key: &str) -> Result<(u64, Option<f64>), QueueError> {
        let mut cmd = redis::cmd("ZCARD");
        cmd.arg(key);
        let depth = self.number(&cmd, key).await?;
        if depth == 0 {
            return Ok((0, None));
        }
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(key).arg(0).arg(0).arg("WITHSCORES");
        let answer = self.send(&cmd, key).await?;
        let score = match &answer {
            Value::Array(parts) => parts.get(1).map(|score| seconds(OPERATION, score)),
            _ => None,
        };
        Ok((depth, score.transpose().map_err(QueueError::Redis)?.filter(|score| score.is_finite())))
    }

    /// Which of these fields a hash has.
    ///
    /// # Errors
    /// As [`QueueError`].
    pub async fn has(&self, key: &str, fields: &[&[u8]]) -> Result<Vec<bool>, QueueError> {
        try_join_all(fields.iter().map(async |field| {
            let mut cmd = redis::cmd("HEXISTS");
            cmd.arg(key).arg(*field);
            Ok(self.number(&cmd, key).await? > 0)
        }))
        .await
    }

    /// A page of a hash from this cursor on, of about so many records, fewer if they are large.
    ///
    /// # Errors
    /// As [`QueueError`].
    pub async fn page(&self, key: &str, cursor: &[u8], records: u64) -> Result<Page, QueueError> {
        if self.lists_fields.load(Relaxed) {
            let mut cmd = scan(key, cursor, records);
            cmd.arg("NOVALUES");
            match self.send(&cmd, key).await {
                Ok(answer) => return self.page_of_fields(key, &answer, records).await,
                Err(QueueError::Redis(error)) if is_syntax(&error) => {
                    tracing::debug!("redis can't list fields without their values");
                    self.lists_fields.store(false, Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        let size = self.usual_size(key).await?;
        if size > LARGEST_VALUE {
            return Err(QueueError::TooLarge(size));
        }
        let records = records.min(PAGE_BYTES / size.max(1)).max(1);
        let answer = self.send(&scan(key, cursor, records), key).await?;
        let (next, parts) = scanned(&answer).map_err(QueueError::Redis)?;
        let pairs = parts.chunks_exact(2).map(|pair| {
            let (field, value) = (bulk(OPERATION, &pair[0])?, bulk(OPERATION, &pair[1])?);
            Ok((field.to_vec(), (value.len() as u64 <= LARGEST_VALUE).then(|| value.to_vec())))
        });
        let found = pairs.collect::<Result<Vec<_>, _>>().map_err(QueueError::Redis)?;
        Ok(Page { cost: cost(&found, records), records: found, next })
    }

    /// The records of fields that were listed, without those that are gone meanwhile.
    async fn page_of_fields(&self, key: &str, answer: &Value, asked: u64) -> Result<Page, QueueError> {
        let (next, fields) = scanned(answer).map_err(QueueError::Redis)?;
        let fields: Vec<&[u8]> = fields
            .iter()
            .map(|field| bulk(OPERATION, field))
            .collect::<Result<_, _>>()
            .map_err(QueueError::Redis)?;
        let sizes = self.sizes(key, &fields).await?;
        let mut found = Vec::with_capacity(fields.len());
        let (mut group, mut bytes) = (Vec::new(), 0);
        for (field, size) in fields.into_iter().zip(sizes) {
            if size > LARGEST_VALUE {
                found.push((field.to_vec(), None));
                continue;
            }
            if bytes + size > PAGE_BYTES && !group.is_empty() {
                self.values(key, std::mem::take(&mut group), &mut found).await?;
                bytes = 0;
            }
            bytes += size;
            group.push(field);
        }
        if !group.is_empty() {
            self.values(key, group, &mut found).await?;
        }
        Ok(Page { cost: cost(&found, asked), records: found, next })
    }

    async fn values(
        &self,
        key: &str,
        fields: Vec<&[u8]>,
        found: &mut Vec<(Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<(), QueueError> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(key).arg(&fields);
        let answer = self.send(&cmd, key).await?;
        let values = array(OPERATION, &answer, fields.len()).map_err(QueueError::Redis)?;
        for (field, value) in fields.into_iter().zip(values) {
            if *value != Value::Nil {
                let value = bulk(OPERATION, value).map_err(QueueError::Redis)?;
                found.push((field.to_vec(), Some(value.to_vec())));
            }
        }
        Ok(())
    }

    /// The average size of some values.
    async fn usual_size(&self, key: &str) -> Result<u64, QueueError> {
        let mut cmd = redis::cmd("HRANDFIELD");
        cmd.arg(key).arg(-SIZES);
        let answer = self.send(&cmd, key).await?;
        let Value::Array(fields) = &answer else { return Ok(0) };
        let fields: Vec<&[u8]> = fields.iter().filter_map(|field| bulk(OPERATION, field).ok()).collect();
        let sizes = self.sizes(key, &fields).await?;
        Ok(sizes.iter().sum::<u64>() / (sizes.len() as u64).max(1))
    }

    async fn sizes(&self, key: &str, fields: &[&[u8]]) -> Result<Vec<u64>, QueueError> {
        let sizes = join_all(fields.iter().map(async |field| {
            let mut cmd = redis::cmd("HSTRLEN");
            cmd.arg(key).arg(*field);
            self.number(&cmd, key).await
        }));
        sizes.await.into_iter().collect()
    }

    async fn number(&self, cmd: &Cmd, key: &str) -> Result<u64, QueueError> {
        int(OPERATION, &self.send(cmd, key).await?).map_err(QueueError::Redis)
    }

    async fn send(&self, cmd: &Cmd, key: &str) -> Result<Value, QueueError> {
        let expected = |error: &ScheduleError| {
            matches!(error.class, ErrorClass::Permission | ErrorClass::WrongType) || is_syntax(error)
        };
        match self.link.query_expecting(OPERATION, cmd, expected).await {
            Ok(answer) => Ok(answer),
            Err((error, _)) => Err(match error.class {
                ErrorClass::WrongType => QueueError::WrongType,
                ErrorClass::Permission if error.is_denied_key() => QueueError::Denied(format!(
                    "%R~{} (before Redis 7: ~ instead of %R~)",
                    key.escape_debug()
                )),
                ErrorClass::Permission => QueueError::Denied(format!("+{}", name_of(cmd))),
                _ => QueueError::Redis(error),
            }),
        }
    }
}

fn scan(key: &str, cursor: &[u8], records: u64) -> Cmd {
    let mut cmd = redis::cmd("HSCAN");
    cmd.arg(key).arg(cursor).arg("COUNT").arg(records);
    cmd
}

/// The cursor of the next page, if there is one, and what is in this one.
fn scanned(answer: &Value) -> Result<(Option<Vec<u8>>, &[Value]), ScheduleError> {
    let parts = array(OPERATION, answer, 2)?;
    let next = bulk(OPERATION, &parts[0])?;
    match &parts[1] {
        Value::Array(items) => Ok(((next != b"0").then(|| next.to_vec()), items)),
        _ => Err(ScheduleError::unexpected(OPERATION, "an array was expected")),
    }
}

/// A page costs what was asked for, even if the hash is sparse, and more if it brought more, or larger records than usual.
fn cost(records: &[(Vec<u8>, Option<Vec<u8>>)], asked: u64) -> u64 {
    const USUAL_BYTES: usize = 4096;
    let bytes: usize = records.iter().map(|(_, value)| value.as_ref().map_or(0, Vec::len)).sum();
    asked.max(records.len() as u64).max((bytes / USUAL_BYTES) as u64)
}

fn is_syntax(error: &ScheduleError) -> bool {
    error.class == ErrorClass::Unexpected && error.message.contains("syntax error")
}

fn name_of(cmd: &Cmd) -> String {
    match cmd.args_iter().next() {
        Some(redis::Arg::Simple(name)) => String::from_utf8_lossy(name).to_lowercase(),
        _ => String::new(),
    }
}
