//! Who removed and gave back what: a record of every change to the schedules, as Redis itself reports it.
//!
//! `MONITOR` shows each command in the order of its execution, those of scripts behind the call that ran them. The record
//! replays what they do to the schedules, so it knows at any moment who holds which lease. Nothing of the worker's is
//! changed for it: each call of a script carries the token of the worker process that makes it.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_schedule::scripts;
use redis::Script;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Between two attempts to reach a server that a fault holds down.
const RETRY: Duration = Duration::from_millis(20);
/// How long the record may take to catch up with what has happened.
const CATCHES_UP: Duration = Duration::from_secs(60);
/// What the key of every schedule ends with.
const SCHEDULE: &[u8] = b"schedule:{transactions}:balance-sync-v2";
/// The commands that change nothing.
const READS: [&str; 9] =
    ["ZCARD", "ZCOUNT", "ZMSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZSCAN", "ZSCORE", "EXISTS", "TYPE"];

/// All scores of all schedules at one moment. KEYS schedules; ARGV[1] marks the call.
const SNAPSHOT: &str = "local all = {}
for i = 1, #KEYS do all[i] = redis.call('ZRANGE', KEYS[i], 0, -1, 'WITHSCORES') end
return all";

/// The scripts by which a worker changes a schedule.
#[derive(Debug, Clone)]
pub struct Scripts {
    /// Text of the claim.
    pub claim: String,
    /// Text of settling.
    pub settle: String,
    /// Text of releasing.
    pub release: String,
    /// Text of quarantining.
    pub quarantine: String,
    /// Text of recording losses.
    pub lose: String,
    /// Text of putting off.
    pub put_off: String,
}

impl Default for Scripts {
    /// Those of the worker.
    fn default() -> Self {
        Self {
            claim: scripts::CLAIM.source().to_owned(),
            settle: scripts::SETTLE.source().to_owned(),
            release: scripts::RELEASE.source().to_owned(),
            quarantine: scripts::QUARANTINE.source().to_owned(),
            lose: scripts::RECORD_LOSSES.source().to_owned(),
            put_off: scripts::POSTPONE.source().to_owned(),
        }
    }
}

/// What was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Leases given.
    pub claimed: u64,
    /// Members removed by the holder of their lease.
    pub removed: u64,
    /// Members given back, or put off, by the holder of their lease.
    pub released: u64,
    /// Removed or given back under a lease whose beginning was not seen: only its score was compared.
    pub unattributed: u64,
    /// Times the record was interrupted, because Redis went down.
    pub gaps: u64,
}

/// The record, being made.
#[derive(Debug)]
pub struct Leases {
    task: JoinHandle<Result<Tally>>,
    cancel: CancellationToken,
}

impl Leases {
    /// Records what happens to these schedules from now on.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub async fn watch(
        port: u16,
        password: Option<SecretString>,
        schedules: Vec<String>,
        scripts: &Scripts,
    ) -> Result<Self> {
        let mut record = Record { port, password, schedules, model: Model::new(scripts) };
        let stream = record.connect().await?;
        let cancel = CancellationToken::new();
        Ok(Self { task: tokio::spawn(record.run(stream, cancel.clone())), cancel })
    }

    /// Whether it has ended by itself: a command did what [`stop`](Self::stop) then reports.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Ends it, when all that has happened until now has been looked at.
    ///
    /// # Errors
    /// What a client did that did not hold the lease.
    pub async fn stop(self) -> Result<Tally> {
        self.cancel.cancel();
        self.task.await?
    }
}

type Lines = BufReader<TcpStream>;

struct Record {
    port: u16,
    password: Option<SecretString>,
    schedules: Vec<String>,
    model: Model,
}

impl Record {
    async fn run(mut self, first: Lines, cancel: CancellationToken) -> Result<Tally> {
        let mut lines = first;
        loop {
            let cut = self.follow(&mut lines, &cancel).await?;
            if !cut {
                return Ok(self.model.tally);
            }
            self.model.tally.gaps += 1;
            lines = loop {
                match self.connect().await {
                    Ok(lines) => break lines,
                    Err(_) if !cancel.is_cancelled() => tokio::time::sleep(RETRY).await,
                    Err(error) => return Err(error),
                }
            };
        }
    }

    /// Follows the stream until its end, or until it has caught up after a cancellation; `true` = the stream ended.
    async fn follow(&mut self, lines: &mut Lines, cancel: &CancellationToken) -> Result<bool> {
        let mut line = Vec::new();
        let farewell = format!("farewell-{}", uuid::Uuid::new_v4().simple());
        let mut leaving = None;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled(), if leaving.is_none() => {
                    let mut redis = self.redis().await?;
                    redis::cmd("ECHO").arg(&farewell).query_async::<()>(&mut redis).await?;
                    leaving = Some(tokio::time::Instant::now() + CATCHES_UP);
                }
                // Cancelled half-way it keeps what it has read: `line` is only cleared below.
                read = lines.read_until(b'\n', &mut line) => {
                    if !matches!(read, Ok(1..)) || !line.ends_with(b"\n") {
                        return Ok(true);
                    }
                    if leaving.is_some() && holds(&line, farewell.as_bytes()) {
                        return Ok(false);
                    }
                    self.model.line(&line)?;
                    line.clear();
                }
                () = tokio::time::sleep_until(leaving.unwrap_or_else(tokio::time::Instant::now)), if leaving.is_some() => {
                    bail!("the record of leases did not catch up within {CATCHES_UP:?}");
                }
            }
        }
    }

    async fn redis(&self) -> Result<redis::aio::MultiplexedConnection> {
        let info = redis::ConnectionAddr::Tcp("127.0.0.1".to_owned(), self.port);
        let mut settings = redis::RedisConnectionInfo::default();
        if let Some(password) = &self.password {
            settings = settings.set_password(password.expose_secret());
        }
        let info = redis::IntoConnectionInfo::into_connection_info(info)?.set_redis_settings(settings);
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CATCHES_UP))
            .set_response_timeout(Some(CATCHES_UP));
        Ok(redis::Client::open(info)?.get_multiplexed_async_connection_with_config(&patient).await?)
    }

    /// Begins to listen, and takes the scores as they are at one moment of what is then received.
    async fn connect(&mut self) -> Result<Lines> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        if let Some(password) = &self.password {
            let secret = password.expose_secret();
            let auth = format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{secret}\r\n", secret.len());
            stream.write_all(auth.as_bytes()).await?;
        }
        stream.write_all(b"*1\r\n$7\r\nMONITOR\r\n").await?;
        let mut lines = BufReader::new(stream);
        for _ in 0..1 + usize::from(self.password.is_some()) {
            let mut answer = String::new();
            lines.read_line(&mut answer).await?;
            ensure!(answer.trim_end() == "+OK", "MONITOR is answered with {answer:?}");
        }
        let marker = format!("snapshot-{}", uuid::Uuid::new_v4().simple());
        let mut redis = self.redis().await?;
        let mut ask = redis::cmd("EVAL");
        ask.arg(SNAPSHOT).arg(self.schedules.len()).arg(&self.schedules).arg(&marker);
        let scores: Vec<Vec<(Vec<u8>, f64)>> = ask.query_async(&mut redis).await?;
        let mut line = Vec::new();
        while !holds(&line, marker.as_bytes()) {
            line.clear();
            ensure!(lines.read_until(b'\n', &mut line).await? > 0, "MONITOR has ended");
        }
        for (schedule, scores) in self.schedules.iter().zip(scores) {
            self.model.snapshot(schedule.as_bytes(), scores);
        }
        Ok(lines)
    }
}

fn holds(line: &[u8], text: &[u8]) -> bool {
    line.windows(text.len()).any(|part| part == text)
}

// -- what the commands mean --------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Claim,
    Settle,
    Release,
    Quarantine,
    Lose,
    PutOff,
}

/// A call of one of the worker's scripts.
#[derive(Debug)]
struct Call {
    kind: Kind,
    token: Vec<u8>,
    /// The lease that is shown for each member.
    shown: HashMap<Vec<u8>, f64>,
    /// The leases of whole claims, whose members are not named, and how many members each gave it to.
    whole: Vec<(f64, usize)>,
}

#[derive(Debug, Clone, PartialEq)]
enum By {
    /// A producer, or whoever else schedules.
    Anybody,
    /// A claim of the process with this token.
    Worker(Vec<u8>),
    /// It was not seen.
    Unseen,
}

/// The members of a schedule: score, and who wrote it.
type Members = HashMap<Vec<u8>, (f64, By)>;

struct Model {
    /// By hash.
    kinds: HashMap<Vec<u8>, Kind>,
    schedules: HashMap<Vec<u8>, Members>,
    /// The call whose commands follow; `None` = not one of ours.
    call: Option<Call>,
    tally: Tally,
}

impl Model {
    fn new(scripts: &Scripts) -> Self {
        let kinds = [
            (&scripts.claim, Kind::Claim),
            (&scripts.settle, Kind::Settle),
            (&scripts.release, Kind::Release),
            (&scripts.quarantine, Kind::Quarantine),
            (&scripts.lose, Kind::Lose),
            (&scripts.put_off, Kind::PutOff),
        ];
        let kinds = kinds.into_iter().map(|(text, kind)| (Script::new(text).get_hash().into(), kind));
        Self { kinds: kinds.collect(), schedules: HashMap::new(), call: None, tally: Tally::default() }
    }

    fn snapshot(&mut self, schedule: &[u8], scores: Vec<(Vec<u8>, f64)>) {
        let before = self.schedules.remove(schedule).unwrap_or_default();
        let now = scores.into_iter().map(|(member, score)| {
            // A score that is still there has still been written by whoever wrote it.
            let by = match before.get(&member) {
                Some((former, by)) if *former == score => by.clone(),
                _ => By::Unseen,
            };
            (member, (score, by))
        });
        self.schedules.insert(schedule.to_vec(), now.collect());
        self.call = None;
    }

    /// `+1795380490.466168 [0 127.0.0.1:60866] "ZADD" "key" …`, with `lua` for the address of what a script does.
    fn line(&mut self, line: &[u8]) -> Result<()> {
        let text = || String::from_utf8_lossy(&line[..line.len().min(400)]).into_owned();
        let begin = line.iter().position(|byte| *byte == b'"').with_context(text)?;
        let in_script = line[..begin].ends_with(b" lua] ");
        let mut words = Words(&line[begin..]);
        let command = words.next().unwrap_or_default().to_ascii_uppercase();
        if !in_script {
            self.call = None;
            if command == b"EVALSHA" {
                let kind = words.next().and_then(|hash| self.kinds.get(&hash).copied());
                self.call = kind.map(|kind| read_call(kind, &mut words)).transpose().with_context(text)?;
                return Ok(());
            }
            if command == b"EVAL" {
                return Ok(());
            }
        }
        let Some(key) = words.next().filter(|key| key.ends_with(SCHEDULE)) else { return Ok(()) };
        match command.as_slice() {
            b"ZADD" => {
                let end = line.iter().position(|byte| *byte == b' ').with_context(text)?;
                let now: f64 = std::str::from_utf8(&line[1..end])?.parse().with_context(text)?;
                self.added(&key, &words.collect::<Vec<_>>(), now)
            }
            b"ZREM" => self.removed(&key, words),
            b"ZREMRANGEBYSCORE" => self.removed_by_score(&key, &words.collect::<Vec<_>>()),
            other if READS.iter().any(|read| read.as_bytes() == other) => Ok(()),
            _ => bail!("no client should do this to a schedule: {}", text()),
        }
        .with_context(|| format!("at {}", text()))
    }

    fn added(&mut self, key: &[u8], words: &[Vec<u8>], now: f64) -> Result<()> {
        let (mut only_new, mut only_present) = (false, false);
        let mut rest = words;
        while let [flag, behind @ ..] = rest
            && (flag.as_slice() == b"XX" || flag.as_slice() == b"NX")
        {
            only_present |= flag.as_slice() == b"XX";
            only_new |= flag.as_slice() == b"NX";
            rest = behind;
        }
        for pair in rest.chunks_exact(2) {
            let (score, member) = (number(&pair[0])?, &pair[1]);
            let present = self.schedules.entry(key.to_vec()).or_default().contains_key(member);
            if (only_new && present) || (only_present && !present) {
                continue;
            }
            let by = match self.call.as_ref().map(|call| (call.kind, call.token.clone())) {
                Some((Kind::Claim, token)) => {
                    let (former, by) = &self.schedules[key][member];
                    ensure!(
                        *former <= now,
                        "{} was claimed under a lease of {by:?} that still holds",
                        shown(member)
                    );
                    self.tally.claimed += 1;
                    By::Worker(token)
                }
                Some((Kind::Settle, _)) => bail!("settling schedules {}", shown(member)),
                Some((Kind::Release | Kind::Quarantine | Kind::Lose | Kind::PutOff, _)) => {
                    self.may_change(key, member)?;
                    self.tally.released += 1;
                    By::Anybody
                }
                None => By::Anybody,
            };
            self.schedules.entry(key.to_vec()).or_default().insert(member.clone(), (score, by));
        }
        Ok(())
    }

    fn removed(&mut self, key: &[u8], members: Words<'_>) -> Result<()> {
        for member in members {
            let kind = self.call.as_ref().map(|call| call.kind);
            ensure!(
                matches!(kind, Some(Kind::Settle | Kind::Quarantine | Kind::Lose)),
                "{} is removed by another client ({kind:?})",
                shown(&member)
            );
            self.may_change(key, &member)?;
            self.schedules.entry(key.to_vec()).or_default().remove(&member);
            self.tally.removed += 1;
        }
        Ok(())
    }

    /// A whole claim: those that have its lease, which must all be of that worker, and no more than were claimed.
    fn removed_by_score(&mut self, key: &[u8], range: &[Vec<u8>]) -> Result<()> {
        let [from, to] = range else { bail!("a range has two ends") };
        let lease = number(from)?;
        let call = self.call.as_mut().context("not a call of a worker")?;
        let whole = call.whole.iter().find(|(shown, _)| *shown == lease && call.kind == Kind::Settle);
        let (_, claimed) = *whole.with_context(|| format!("{lease} was not asked for"))?;
        ensure!(number(to)? == lease, "more than one score");
        let members: Vec<Vec<u8>> = (self.schedules.entry(key.to_vec()).or_default().iter())
            .filter(|(_, (score, _))| *score == lease)
            .map(|(member, _)| member.clone())
            .collect();
        ensure!(members.len() <= claimed, "{} members have the lease of {claimed}", members.len());
        call.shown.extend(members.iter().map(|member| (member.clone(), lease)));
        for member in members {
            self.may_change(key, &member)?;
            self.schedules.entry(key.to_vec()).or_default().remove(&member);
            self.tally.removed += 1;
        }
        Ok(())
    }

    /// Whether the member's score is the lease that the call shows, and was given to the same worker.
    fn may_change(&mut self, key: &[u8], member: &[u8]) -> Result<()> {
        let call = self.call.as_ref().context("not a call of a worker")?;
        let lease = call.shown.get(member).with_context(|| format!("{} was not asked for", shown(member)))?;
        let (score, by) = self
            .schedules
            .get(key)
            .and_then(|schedule| schedule.get(member))
            .with_context(|| format!("{} is not scheduled", shown(member)))?;
        ensure!(
            score == lease,
            "{} has the score {score}, by {by:?}, and {:?} shows the lease {lease}",
            shown(member),
            call.kind
        );
        match by {
            By::Worker(token) if *token == call.token => {}
            By::Unseen => self.tally.unattributed += 1,
            by => bail!(
                "the lease of {} belongs to {by:?}, not to {}",
                shown(member),
                String::from_utf8_lossy(&call.token)
            ),
        }
        Ok(())
    }
}

/// Keys and arguments as the heads of the scripts describe them.
fn read_call(kind: Kind, words: &mut Words<'_>) -> Result<Call> {
    let keys = number(&words.next().context("no number of keys")?)? as usize;
    let argv: Vec<Vec<u8>> = words.skip(keys).collect();
    let mut whole = Vec::new();
    if kind == Kind::Settle {
        let groups = number(argv.get(3).context("no number of claims")?)? as usize;
        for group in argv.get(4..4 + 4 * groups).context("too few arguments")?.chunks_exact(4) {
            whole.push((number(&group[0])?, number(&group[1])? as usize));
        }
    }
    // Position of the token, where members begin, words per member.
    let (token, first, step) = match kind {
        Kind::Claim => (6, argv.len(), 1),
        Kind::Settle => (1, 4 + 4 * whole.len(), 2),
        Kind::PutOff => (1, 5, 3),
        Kind::Release => (1, 4, 3),
        Kind::Quarantine => (1, 5, 6),
        Kind::Lose => (1, 4, 4),
    };
    let mut shown = HashMap::new();
    for member in argv.get(first..).context("too few arguments")?.chunks_exact(step) {
        shown.insert(member[1].clone(), number(&member[0])?);
    }
    Ok(Call { kind, token: argv.get(token).context("no token")?.clone(), shown, whole })
}

fn number(text: &[u8]) -> Result<f64> {
    let text = std::str::from_utf8(text)?;
    text.parse().with_context(|| format!("{text:?} is no number"))
}

fn shown(member: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(member)
}

/// The words of a line, each in quotes, with its escapes undone.
struct Words<'a>(&'a [u8]);

impl Iterator for Words<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let begin = self.0.iter().position(|byte| *byte == b'"')?;
        let mut rest = self.0[begin + 1..].iter().copied();
        let mut word = Vec::new();
        loop {
            match rest.next()? {
                b'"' => break,
                b'\\' => word.push(match rest.next()? {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'a' => 7,
                    b'b' => 8,
                    b'x' => {
                        let digits = [rest.next()?, rest.next()?];
                        u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                    }
                    other => other,
                }),
                byte => word.push(byte),
            }
        }
        self.0 = &self.0[self.0.len() - rest.len()..];
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_redis_writes_them() {
        let line = br#""ZADD" "a key" "\x00\"\\\n\xc3\xa4" """#;
        let words: Vec<Vec<u8>> = Words(line).collect();
        let last = [0, b'"', b'\\', b'\n', 0xc3, 0xa4];
        assert_eq!(words, [b"ZADD".to_vec(), b"a key".to_vec(), last.to_vec(), Vec::new()]);
    }
}
