//! The login by password (SCRAM-SHA-256, RFC 5802 and RFC 7677), with the salted password kept.
//!
//! The driver salts the password anew for each connection: 4,096 rounds, more of the worker's time than all else that a connection
//! costs it. For the same password, salt and number of rounds the result is the same. So the relay (`relay.rs`), through which the
//! login passes anyway, answers the server by itself, and the result is kept as long as the password; it is worth as much as that.
//! It takes part only where it sees the messages, so not behind TLS, and only for passwords that need no preparation (SASLprep),
//! those of printable ASCII. All other logins are the driver's.

use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ring::{digest, hmac, pbkdf2};
use secrecy::{ExposeSecret, SecretString};

use crate::budget::lock;
use crate::limits::ITERATIONS;

const MECHANISM: &str = "SCRAM-SHA-256";
/// No channel binding.
const HEADER: &str = "n,,";
/// The same as base64.
const BINDING: &str = "c=biws";
/// Bytes of chance in a nonce.
const NONCE: usize = 18;
/// Rounds that may hold up the thread: a millisecond or two. The server's default is 4,096.
const INLINE: u32 = 16_384;
const LENGTH: usize = digest::SHA256_OUTPUT_LEN;

/// Kinds of authentication messages.
const ASKS: u32 = 10;
const CONTINUES: u32 = 11;
const ENDS: u32 = 12;

/// A password, and what was computed of it last.
pub(crate) struct Login {
    password: SecretString,
    salted: Mutex<Option<Salted>>,
}

#[derive(Clone)]
struct Salted {
    salt: Vec<u8>,
    rounds: u32,
    key: hmac::Key,
}

impl Login {
    /// `None` = the password would have to be prepared.
    pub(crate) fn new(password: &SecretString) -> Option<Arc<Login>> {
        let plain = password.expose_secret().bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let known = !password.expose_secret().is_empty();
        (plain && known).then(|| Arc::new(Login { password: password.clone(), salted: Mutex::default() }))
    }

    async fn salted(&self, salt: &[u8], rounds: u32) -> Option<hmac::Key> {
        let known = lock(&self.salted).clone();
        if let Some(known) = known.filter(|known| known.salt == salt && known.rounds == rounds) {
            return Some(known.key);
        }
        let key = if rounds <= INLINE {
            salt_password(&self.password, salt, rounds)?
        } else {
            let (password, salt) = (self.password.clone(), salt.to_vec());
            tokio::task::spawn_blocking(move || salt_password(&password, &salt, rounds)).await.ok()??
        };
        *lock(&self.salted) = Some(Salted { salt: salt.to_vec(), rounds, key: key.clone() });
        Some(key)
    }
}

fn salt_password(password: &SecretString, salt: &[u8], rounds: u32) -> Option<hmac::Key> {
    let rounds = rounds.try_into().ok()?;
    let mut salted = [0; LENGTH];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        salt,
        password.expose_secret().as_bytes(),
        &mut salted,
    );
    Some(hmac::Key::new(hmac::HMAC_SHA256, &salted))
}

/// One login, as the relay sees it.
pub(crate) struct Exchange {
    login: Arc<Login>,
    step: Step,
    /// Of the server, while the relay answers it.
    pending: Vec<u8>,
}

enum Step {
    /// The server has not asked for a password yet.
    Before,
    First {
        nonce: String,
    },
    Final {
        signature: hmac::Tag,
    },
    /// The rest is between the driver and the server.
    Over,
}

/// What comes of bytes of the server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reaction {
    /// To the driver.
    pub(crate) pass: Vec<u8>,
    /// To the server.
    pub(crate) reply: Vec<u8>,
}

impl Exchange {
    pub(crate) fn new(login: Arc<Login>) -> Exchange {
        Exchange { login, step: Step::Before, pending: Vec::new() }
    }

    /// Whether all that the server sends goes to the driver from now on.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    /// Takes in what the server sends.
    ///
    /// # Errors
    /// What is wrong with the server's account of itself: it doesn't know the password.
    pub(crate) async fn receive(&mut self, bytes: &[u8]) -> Result<Reaction, &'static str> {
        self.pending.extend_from_slice(bytes);
        let mut reaction = Reaction::default();
        while let Some(length) = self.complete() {
            let message: Vec<u8> = self.pending.drain(..length).collect();
            let handled = match (&self.step, kind(&message)) {
                (Step::Before, Some((ASKS, mechanisms))) if offers(mechanisms) => {
                    Some(self.begin(BASE64_STANDARD.encode(rand::random::<[u8; NONCE]>())))
                }
                (Step::First { nonce }, Some((CONTINUES, body))) => {
                    let (nonce, body) = (nonce.clone(), body.to_vec());
                    Some(self.prove(&nonce, &body).await?)
                }
                (Step::Final { signature }, Some((ENDS, body))) => {
                    verify(signature, body)?;
                    self.step = Step::Over;
                    Some(Vec::new())
                }
                (Step::First { .. } | Step::Final { .. }, _)
                    if !matches!(message.first(), Some(b'N' | b'E')) =>
                {
                    return Err("it breaks off the login that it began");
                }
                _ => None,
            };
            match handled {
                Some(reply) => reaction.reply.extend(reply),
                None => {
                    // Notices may come before; anything else ends the exchange, a refusal among it.
                    if message.first() != Some(&b'N') {
                        self.step = Step::Over;
                    }
                    reaction.pass.extend(message);
                }
            }
            if self.is_over() {
                break;
            }
        }
        if self.is_over() || !matches!(self.step, Step::First { .. } | Step::Final { .. }) {
            reaction.pass.append(&mut self.pending);
        }
        Ok(reaction)
    }

    /// The length of the first message, if it is there as a whole. An answer to a request for TLS is one byte, and is none.
    fn complete(&mut self) -> Option<usize> {
        if matches!(self.step, Step::Before) && self.pending.len() < 5 {
            if self.pending.first().is_some_and(|first| *first != b'N') {
                self.step = Step::Over;
            }
            return None;
        }
        let length: [u8; 4] = self.pending.get(1..5)?.try_into().ok()?;
        let length = 1 + (u32::from_be_bytes(length) as usize).max(4);
        if self.pending.len() < length && matches!(self.step, Step::Before) {
            self.step = Step::Over;
        }
        (self.pending.len() >= length).then_some(length)
    }

    fn begin(&mut self, nonce: String) -> Vec<u8> {
        let first = format!("{HEADER}{}", first_bare(&nonce));
        self.step = Step::First { nonce };
        let mut body = format!("{MECHANISM}\0").into_bytes();
        body.extend(u32::try_from(first.len()).unwrap_or_default().to_be_bytes());
        body.extend(first.as_bytes());
        response(&body)
    }

    async fn prove(&mut self, nonce: &str, challenge: &[u8]) -> Result<Vec<u8>, &'static str> {
        const MALFORMED: &str = "its challenge is malformed";
        let challenge = str::from_utf8(challenge).map_err(|_| MALFORMED)?;
        let part = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name));
        let (Some(both), Some(salt), Some(rounds)) = (part("r="), part("s="), part("i=")) else {
            return Err(MALFORMED);
        };
        if !both.starts_with(nonce) || both.len() == nonce.len() {
            return Err("its challenge is to another login");
        }
        let salt = BASE64_STANDARD.decode(salt).map_err(|_| MALFORMED)?;
        // The watcher bounds them as well (`limits.rs`); here they are what is computed.
        let rounds = Some(rounds).filter(|rounds| rounds.bytes().all(|byte| byte.is_ascii_digit()));
        let rounds = rounds.and_then(|rounds| rounds.parse::<u32>().ok()).ok_or(MALFORMED)?;
        if u64::from(rounds) > ITERATIONS {
            return Err("it asks for more iterations of SCRAM than are allowed");
        }
        let salted = self.login.salted(&salt, rounds).await.ok_or(MALFORMED)?;
        let client = hmac::sign(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, client.as_ref());
        let without_proof = format!("{BINDING},r={both}");
        let agreed = format!("{},{challenge},{without_proof}", first_bare(nonce));
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, stored.as_ref()), agreed.as_bytes());
        let proof: Vec<u8> =
            client.as_ref().iter().zip(signature.as_ref()).map(|(key, mask)| key ^ mask).collect();
        let server = hmac::sign(&salted, b"Server Key");
        let server = hmac::Key::new(hmac::HMAC_SHA256, server.as_ref());
        self.step = Step::Final { signature: hmac::sign(&server, agreed.as_bytes()) };
        Ok(response(format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)).as_bytes()))
    }
}

fn first_bare(nonce: &str) -> String {
    // The server takes the name from the start of the session.
    format!("n=,r={nonce}")
}

/// Of a message of authentication, which, and the rest.
fn kind(message: &[u8]) -> Option<(u32, &[u8])> {
    let (kind, body) = message.strip_prefix(b"R")?.get(4..)?.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*kind), body))
}

fn offers(mechanisms: &[u8]) -> bool {
    mechanisms.split(|byte| *byte == 0).any(|name| name == MECHANISM.as_bytes())
}

fn response(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [b"p", &length.to_be_bytes()[..], body].concat()
}

fn verify(expected: &hmac::Tag, body: &[u8]) -> Result<(), &'static str> {
    let signature = str::from_utf8(body).ok().and_then(|body| body.strip_prefix("v="));
    let signature = signature.and_then(|signature| BASE64_STANDARD.decode(signature).ok());
    match signature {
        // No secret: it was sent in the clear.
        Some(signature) if signature == expected.as_ref() => Ok(()),
        _ => Err("it doesn't know the password itself: its signature is wrong"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).unwrap();
        [b"R", &length.to_be_bytes()[..], &kind.to_be_bytes(), body].concat()
    }

    fn exchange() -> Exchange {
        Exchange::new(Login::new(&SecretString::from("pencil")).unwrap())
    }

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const CHALLENGE: &[u8] =
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    /// Another computation of the same, step by step with the definitions.
    fn expected(challenge: &str) -> (String, String) {
        let both = challenge.split(',').next().unwrap();
        let agreed = format!("n=,r={NONCE},{challenge},c=biws,{both}");
        let sign = |key: &[u8], text: &[u8]| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
        };
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let mut round = sign(b"pencil", &[salt.as_slice(), &[0, 0, 0, 1]].concat());
        let mut salted = round.clone();
        for _ in 1..4096 {
            round = sign(b"pencil", &round);
            salted.iter_mut().zip(&round).for_each(|(into, more)| *into ^= more);
        }
        // The salted password of the example in RFC 7677.
        assert_eq!(BASE64_STANDARD.encode(&salted), "xKSVEDI6tPlSysH6mUQZOeeOp01r6B3fcJbodRPcYV0=");
        let client = sign(&salted, b"Client Key");
        let mask = sign(digest::digest(&digest::SHA256, &client).as_ref(), agreed.as_bytes());
        let proof: Vec<u8> = client.iter().zip(mask).map(|(key, mask)| key ^ mask).collect();
        let server = sign(&sign(&salted, b"Server Key"), agreed.as_bytes());
        (
            format!("c=biws,{both},p={}", BASE64_STANDARD.encode(proof)),
            format!("v={}", BASE64_STANDARD.encode(server)),
        )
    }

    #[tokio::test]
    async fn a_login_is_answered_and_the_driver_sees_its_end_only() {
        let mut exchange = exchange();
        // What it answers to a request for TLS goes by, and so does a notice.
        for passed in [&b"N"[..], b"N\0\0\0\x05\0"] {
            assert_eq!(exchange.receive(passed).await.unwrap().pass, passed);
            assert!(!exchange.is_over());
        }
        exchange.begin(NONCE.to_owned());
        let (answer, signature) = expected(str::from_utf8(CHALLENGE).unwrap());
        // In pieces, as they may come.
        let challenge = message(CONTINUES, CHALLENGE);
        assert_eq!(exchange.receive(&challenge[..20]).await.unwrap(), Reaction::default());
        let reaction = exchange.receive(&challenge[20..]).await.unwrap();
        assert_eq!((reaction.pass.len(), &reaction.reply), (0, &response(answer.as_bytes())));
        let rest = [message(0, b""), b"S\0\0\0\x06a\0".to_vec()].concat();
        let end = [message(ENDS, signature.as_bytes()), rest.clone()].concat();
        assert_eq!(exchange.receive(&end).await.unwrap(), Reaction { pass: rest, reply: Vec::new() });
        assert!(exchange.is_over());
    }

    #[tokio::test]
    async fn the_salted_password_is_kept_for_its_salt_and_rounds() {
        let login = Login::new(&SecretString::from("pencil")).unwrap();
        login.salted(b"salt", 4096).await.unwrap();
        let kept = |salt: &[u8], rounds| {
            let known = lock(&login.salted).clone().unwrap();
            known.salt == salt && known.rounds == rounds
        };
        assert!(kept(b"salt", 4096));
        login.salted(b"other", INLINE + 1).await.unwrap();
        assert!(kept(b"other", INLINE + 1));
    }

    #[tokio::test]
    async fn a_server_that_does_not_know_the_password_is_refused() {
        let mut exchange = exchange();
        exchange.begin(NONCE.to_owned());
        exchange.receive(&message(CONTINUES, CHALLENGE)).await.unwrap();
        let wrong = BASE64_STANDARD.encode([0; LENGTH]);
        exchange.receive(&message(ENDS, format!("v={wrong}").as_bytes())).await.unwrap_err();
        for challenge in [
            &b"r=another,s=c2FsdA==,i=4096"[..],
            b"s=c2FsdA==,i=4096",
            b"\xff",
            b"r=rOprNGfwEbeRWgbNEkqOx,s=?,i=1",
        ] {
            let mut exchange = self::exchange();
            exchange.begin(NONCE.to_owned());
            exchange.receive(&message(CONTINUES, challenge)).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn more_rounds_than_are_allowed_are_never_computed() {
        for rounds in ["100001", "+4294967295", "4294967296", "-1", ""] {
            let mut exchange = exchange();
            exchange.begin(NONCE.to_owned());
            let challenge = format!("r={NONCE}more,s=c2FsdA==,i={rounds}");
            exchange.receive(&message(CONTINUES, challenge.as_bytes())).await.unwrap_err();
            assert!(lock(&exchange.login.salted).is_none(), "{rounds}");
        }
    }

    #[tokio::test]
    async fn a_login_that_was_begun_ends_with_the_servers_proof_or_not_at_all() {
        // That it is logged in without a proof, and requests for the password itself.
        for message in [message(0, b""), message(3, b""), message(5, b"salt"), b"S\0\0\0\x06a\0".to_vec()] {
            let mut begun = exchange();
            begun.begin(NONCE.to_owned());
            begun.receive(&message).await.unwrap_err();
            let mut proven = exchange();
            proven.begin(NONCE.to_owned());
            proven.receive(&self::message(CONTINUES, CHALLENGE)).await.unwrap();
            proven.receive(&message).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn what_is_no_login_by_scram_is_the_drivers() {
        let md5 = message(5, b"salt");
        let refused = b"E\0\0\0\x05\0".to_vec();
        for bytes in [md5, refused, message(0, b""), message(ASKS, b"SCRAM-SHA-1\0\0"), b"S".to_vec()] {
            let mut exchange = exchange();
            let reaction = exchange.receive(&bytes).await.unwrap();
            assert_eq!((reaction.pass, exchange.is_over()), (bytes, true));
        }
        assert!(Login::new(&SecretString::from("pässword")).is_none());
        assert!(Login::new(&SecretString::from("")).is_none());
        // A wrong password: the server says so instead of going on.
        let mut exchange = exchange();
        let asks = message(ASKS, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        assert!(exchange.receive(&asks).await.unwrap().reply.starts_with(b"p"));
        let refused = b"E\0\0\0\x05\0";
        assert_eq!(exchange.receive(refused).await.unwrap().pass, refused);
        assert!(exchange.is_over());
    }
}
