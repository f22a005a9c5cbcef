//! Sessions of browsers: opened by signing in with a token, kept in Redis, valid at every worker of the group.
//!
//! - The cookie has a random id of 256 bits. Redis has its SHA-256, and a fingerprint of the token: HMAC-SHA-256 under the id.
//!   Neither leads back to the id or the token, and who can write to Redis can't make a session, for that takes a token.
//! - Name and role are those of the token, as the worker that is asked has it in its configuration. A session whose token is not
//!   there any more is refused, and ended by the first worker that took its tokens after it was opened.
//! - What Redis answered is believed for a second: that long a session that was ended elsewhere is still served here.
//! - While Redis can't be asked, who was signed in a minute ago may look, and nothing more.

use std::{
    collections::HashMap,
    fmt,
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use balance_sync_schedule::{
    Sessions, StoredSession,
    sessions::{MOST, SessionRecord},
};
use ring::{
    digest, hmac,
    rand::{SecureRandom, SystemRandom},
};
use tokio::time::{Instant, timeout};

use super::{auth::Role, problem::Problem};

/// How long Redis's answer is believed.
const FRESH: Duration = Duration::from_secs(1);
/// How long a session that Redis once confirmed may look while Redis can't be asked.
const UNCONFIRMED: Duration = Duration::from_secs(60);
/// Redis is given this long, and left alone for as long after it gave no answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Sessions that are remembered here.
const MOST_KNOWN: usize = MOST;
/// Bytes of an id.
const ID: usize = 32;
/// Digits of a session's name in lists: enough to tell all apart, and no way to its id.
pub(super) const SHOWN_DIGITS: usize = 16;

/// The id of a session, which only its browser keeps.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SessionId([u8; ID]);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({}…)", &self.key()[..SHOWN_DIGITS])
    }
}

impl SessionId {
    /// A new one, that can't be guessed.
    fn random() -> Result<Self, Problem> {
        let mut bytes = [0; ID];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| Problem::unavailable("the system has no random numbers"))?;
        Ok(Self(bytes))
    }

    /// As a cookie has it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        if text.len() != 2 * ID || text.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        let mut bytes = [0; ID];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? * 16 + digit(pair[1])?;
        }
        Some(Self(bytes))
    }

    /// For the cookie.
    pub(super) fn expose(&self) -> String {
        hex(&self.0)
    }

    /// By which Redis knows it.
    pub(super) fn key(&self) -> String {
        hex(digest::digest(&digest::SHA256, &self.0).as_ref())
    }

    /// What ties it to a token.
    fn fingerprint(&self, token: &str) -> String {
        hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), token.as_bytes()).as_ref())
    }

    /// Whether this session was opened with that token.
    pub(super) fn is_of(&self, session: &StoredSession, token: &str) -> bool {
        use subtle::ConstantTimeEq;
        self.fingerprint(token).as_bytes().ct_eq(session.record.fingerprint.as_bytes()).into()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What is known of a session.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// It is there.
    Confirmed(StoredSession),
    /// It was there a moment ago, and Redis can't be asked now, for this reason.
    Unconfirmed(StoredSession, String),
    /// There is no such session.
    None,
    /// Redis can't be asked, for this reason.
    Unknown(String),
}

/// A session that Redis has confirmed.
#[derive(Debug)]
struct Known {
    session: StoredSession,
    confirmed: Instant,
    /// When Redis last heard that it is in use; none = not from here.
    noted: Option<Instant>,
    /// Age and disuse at that moment, so that it lapses here too.
    lapses: Instant,
}

#[derive(Debug, Default)]
struct Memory {
    known: HashMap<String, Known>,
    /// When Redis last gave no answer, and why.
    failed: Option<(Instant, String)>,
}

/// The sessions as one worker sees them.
#[derive(Debug)]
pub struct SessionKeeper {
    store: Sessions,
    memory: Mutex<Memory>,
}

impl SessionKeeper {
    /// Sessions kept there.
    #[must_use]
    pub fn new(store: Sessions) -> Self {
        Self { store, memory: Mutex::default() }
    }

    /// How long a session lasts at most.
    pub(super) fn longest(&self) -> Duration {
        self.store.longest()
    }

    /// How long a session lasts without use.
    pub(super) fn idle(&self) -> Duration {
        self.store.idle()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session for the bearer of a token.
    ///
    /// # Errors
    /// When Redis can't be asked.
    pub(super) async fn open(&self, name: &str, role: Role, token: &str) -> Result<SessionId, Problem> {
        let id = SessionId::random()?;
        let (name, role) = (name.to_owned(), role.name().to_owned());
        let record = SessionRecord { name, role, fingerprint: id.fingerprint(token) };
        let ended = timeout(PATIENCE, self.store.open(&id.key(), &record))
            .await
            .map_err(|_| no_answer())
            .and_then(|answer| answer.map_err(|error| error.to_string()))
            .map_err(|error| Problem::sessions_away(&error))?;
        if ended > 0 {
            tracing::info!(ended, name = record.name, "the oldest session ended, as there were too many");
        }
        Ok(id)
    }

    /// Ends sessions, by what Redis knows them by. Returns how many there were.
    ///
    /// # Errors
    /// When Redis can't be asked.
    pub(super) async fn end(&self, keys: &[String]) -> Result<u64, Problem> {
        let ended = timeout(PATIENCE, self.store.end(keys))
            .await
            .map_err(|_| no_answer())
            .and_then(|answer| answer.map_err(|error| error.to_string()))
            .map_err(|error| Problem::sessions_away(&error))?;
        let mut memory = self.memory();
        for key in keys {
            memory.known.remove(key);
        }
        Ok(ended)
    }

    /// All sessions, the one unused for longest first.
    ///
    /// # Errors
    /// When Redis can't be asked.
    pub(super) async fn list(&self) -> Result<Vec<StoredSession>, Problem> {
        timeout(PATIENCE, self.store.list())
            .await
            .map_err(|_| no_answer())
            .and_then(|answer| answer.map_err(|error| error.to_string()))
            .map_err(|error| Problem::sessions_away(&error))
    }

    /// What is known of a session. `in_use`: this counts as a use of it.
    pub(super) async fn find(&self, id: &SessionId, in_use: bool) -> Found {
        let (key, now) = (id.key(), Instant::now());
        if let Some(found) = self.remembered(&key, in_use, now) {
            return found;
        }
        match timeout(PATIENCE, self.store.find(&key, in_use)).await {
            Ok(Ok(Some(session))) => {
                self.remember(key, &session, in_use, now);
                Found::Confirmed(session)
            }
            Ok(Ok(None)) => {
                let mut memory = self.memory();
                memory.failed = None;
                memory.known.remove(&key);
                Found::None
            }
            Ok(Err(error)) => self.failed(&key, error.to_string()),
            Err(_) => self.failed(&key, no_answer()),
        }
    }

    /// The answer without asking Redis, if it needn't or can't be asked.
    fn remembered(&self, key: &str, in_use: bool, now: Instant) -> Option<Found> {
        let memory = self.memory();
        let known = memory.known.get(key).filter(|known| now < known.lapses);
        if let Some(known) = known
            && now.duration_since(known.confirmed) < FRESH
            // Looks alone must not keep uses from being noted.
            && (!in_use
                || known.noted.is_some_and(|at| now.duration_since(at) < self.store.noted_every()))
        {
            return Some(Found::Confirmed(known.session.clone()));
        }
        let (_, error) = memory.failed.as_ref().filter(|(at, _)| now.duration_since(*at) < PATIENCE)?;
        Some(without_redis(known, error.clone(), now))
    }

    fn failed(&self, key: &str, error: String) -> Found {
        let (mut memory, now) = (self.memory(), Instant::now());
        memory.failed = Some((now, error.clone()));
        without_redis(memory.known.get(key).filter(|known| now < known.lapses), error, now)
    }

    fn remember(&self, key: String, session: &StoredSession, in_use: bool, now: Instant) {
        let mut memory = self.memory();
        memory.failed = None;
        if memory.known.len() >= MOST_KNOWN && !memory.known.contains_key(&key) {
            let oldest = memory.known.iter().min_by_key(|(_, known)| known.confirmed);
            let oldest = oldest.map(|(key, _)| key.clone());
            memory.known.retain(|key, _| oldest.as_ref() != Some(key));
        }
        let noted = if in_use { Some(now) } else { memory.known.get(&key).and_then(|known| known.noted) };
        // By the clock of this machine, at most so long.
        let lapses = now + self.idle().min(self.longest());
        memory.known.insert(key, Known { session: session.clone(), confirmed: now, noted, lapses });
    }
}

fn no_answer() -> String {
    format!("redis: no answer within {PATIENCE:?}")
}

fn without_redis(known: Option<&Known>, error: String, now: Instant) -> Found {
    match known {
        Some(known) if now.duration_since(known.confirmed) < UNCONFIRMED => {
            Found::Unconfirmed(known.session.clone(), error)
        }
        _ => Found::Unknown(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn stored(id: &SessionId, token: &str) -> StoredSession {
        let record = SessionRecord {
            name: "ann".to_owned(),
            role: "operator".to_owned(),
            fingerprint: id.fingerprint(token),
        };
        StoredSession { key: id.key(), record, created: 1.0, used: 1.0 }
    }

    #[test]
    fn an_id_is_random_and_comes_back_from_its_cookie_alone() {
        let (one, two) = (SessionId::random().unwrap(), SessionId::random().unwrap());
        assert_ne!(one, two);
        let text = one.expose();
        assert_eq!(SessionId::parse(&text), Some(one.clone()));
        assert_ne!(one.key(), text);
        assert!(!format!("{one:?}").contains(&text[..8]));
        for wrong in ["", &text[1..], &format!("{text}0"), &text.to_uppercase(), &format!("{}g", &text[1..])]
        {
            let parsed = SessionId::parse(wrong);
            // Sixty-four digits without a letter are the same in upper case.
            assert!(parsed.is_none() || wrong == text, "{wrong}");
        }
        assert_eq!(SessionId::parse(&"é".repeat(ID)), None);
    }

    #[test]
    fn a_session_belongs_to_the_token_that_opened_it() {
        let (one, two) = (SessionId::random().unwrap(), SessionId::random().unwrap());
        let session = stored(&one, "token-of-ann");
        assert!(one.is_of(&session, "token-of-ann"));
        assert!(!one.is_of(&session, "token-of-bob"));
        assert!(!two.is_of(&session, "token-of-ann"), "the fingerprint of another session says nothing");
        let text = format!("{session:?}");
        assert!(!text.contains("token-of-ann") && !text.contains(&one.expose()));
    }

    #[test]
    fn without_redis_a_session_is_believed_for_a_minute() {
        let id = SessionId::random().unwrap();
        let now = Instant::now();
        let known =
            Known { session: stored(&id, "t"), confirmed: now, noted: None, lapses: now + UNCONFIRMED * 2 };
        let after = |wait| without_redis(Some(&known), "away".to_owned(), now + wait);
        assert!(matches!(after(Duration::ZERO), Found::Unconfirmed(..)));
        assert!(matches!(after(UNCONFIRMED - FRESH), Found::Unconfirmed(..)));
        assert_eq!(after(UNCONFIRMED), Found::Unknown("away".to_owned()));
        assert_eq!(without_redis(None, "away".to_owned(), now), Found::Unknown("away".to_owned()));
    }
}
