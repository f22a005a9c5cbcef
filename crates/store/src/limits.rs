//! What a server may send: bounds in bytes and iterations, looked at before the driver sees a byte.
//!
//! The driver keeps whatever a message announces in memory, and follows any number of notices, settings and iterations. A server
//! of a tenant must not cost the worker more than a connection of it. Here is the decision only; `relay.rs` carries the bytes.

/// Bytes of all messages until the login is complete; some 600 are usual, and a chain of certificates has a few thousand.
const LOGIN: usize = 512 * 1024;
/// Bytes of one message until then.
const LOGIN_MESSAGE: usize = 64 * 1024;
/// Bytes of one message after it. What an audit reads comes as one message per row; the longest errors of triggers fit as well.
const MESSAGE: usize = 16 * 1024 * 1024;
/// Bytes of all that comes between two messages of ours. An answer has a few hundred rows, or a page of an audit.
const ANSWER: usize = 64 * 1024 * 1024;
/// Bytes of notices, notifications and settings between two messages of ours: nothing of them is ever used.
const ASIDE: usize = 8 * 1024 * 1024;
/// Bytes of settings in the life of a connection, as the driver keeps them all.
const SETTINGS: usize = 1024 * 1024;
/// Iterations of SCRAM. The server's default is 4,096; 100,000 take some 50 ms of the thread's time.
pub(crate) const ITERATIONS: u64 = 100_000;

/// First bytes of the request for TLS: its length, and its code in place of a version.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// Kind of authentication message that names the iterations.
const SASL_CONTINUE: u32 = 11;

/// What a server did that ended its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excess {
    #[error("it announced a message of {0} bytes before the login was complete; allowed: {LOGIN_MESSAGE}")]
    LoginMessage(usize),
    #[error("it sent more than {LOGIN} bytes before the login was complete")]
    Login,
    #[error("it announced a message of {0} bytes; allowed: {MESSAGE}")]
    Message(usize),
    #[error("it sent more than {ANSWER} bytes in answer to one statement")]
    Answer,
    #[error("it sent more than {ASIDE} bytes of notices during one statement")]
    Aside,
    #[error("it sent more than {SETTINGS} bytes of settings on one connection")]
    Settings,
    #[error("it asks for {0} iterations of SCRAM; allowed: {ITERATIONS}")]
    Iterations(u64),
}

/// How the bytes of the server are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Nothing was sent to it yet.
    Unknown,
    /// It was asked for TLS, and answers with one byte.
    TlsAsked,
    /// Messages.
    Plain,
    /// Encrypted: bytes are counted, no message is seen.
    Encrypted,
}

/// Looks at what passes between the driver and a server.
#[derive(Debug)]
pub(crate) struct Watcher {
    form: Form,
    logged_in: bool,
    /// The header of the message that begins: its kind and length.
    header: [u8; 5],
    header_len: usize,
    kind: u8,
    /// Bytes of the message that are still to come.
    left: usize,
    /// The beginning of an authentication message.
    authentication: Vec<u8>,
    answer: usize,
    aside: usize,
    settings: usize,
}

impl Watcher {
    pub(crate) fn new() -> Watcher {
        Watcher {
            form: Form::Unknown,
            logged_in: false,
            header: [0; 5],
            header_len: 0,
            kind: 0,
            left: 0,
            authentication: Vec::new(),
            answer: 0,
            aside: 0,
            settings: 0,
        }
    }

    /// The login is complete, as the driver found; encrypted messages don't show it.
    pub(crate) fn log_in(&mut self) {
        if !self.logged_in {
            (self.logged_in, self.answer) = (true, 0);
        }
    }

    /// The driver sends these bytes: what comes now is the answer to them.
    pub(crate) fn sends(&mut self, bytes: &[u8]) {
        if matches!(self.form, Form::Unknown) {
            self.form = if bytes.starts_with(&TLS_REQUEST) { Form::TlsAsked } else { Form::Plain };
        }
        if self.logged_in {
            (self.answer, self.aside) = (0, 0);
        }
    }

    /// The server sends these bytes.
    ///
    /// # Errors
    /// More than is allowed; nothing of `bytes` may reach the driver then.
    pub(crate) fn receives(&mut self, mut bytes: &[u8]) -> Result<(), Excess> {
        self.answer += bytes.len();
        if !self.logged_in && self.answer > LOGIN {
            return Err(Excess::Login);
        }
        if self.answer > ANSWER {
            return Err(Excess::Answer);
        }
        if self.form == Form::TlsAsked
            && let [first, rest @ ..] = bytes
        {
            // Whatever else it answers, the driver gives up.
            self.form = if *first == b'S' { Form::Encrypted } else { Form::Plain };
            bytes = rest;
        }
        if self.form != Form::Encrypted {
            self.messages(bytes)?;
        }
        Ok(())
    }

    fn messages(&mut self, mut bytes: &[u8]) -> Result<(), Excess> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (body, rest) = bytes.split_at(bytes.len().min(self.left));
                self.left -= body.len();
                if self.kind == b'R' && !self.logged_in {
                    self.authentication.extend_from_slice(body);
                }
                bytes = rest;
            } else {
                let missing = self.header.len() - self.header_len;
                let (part, rest) = bytes.split_at(bytes.len().min(missing));
                self.header[self.header_len..][..part.len()].copy_from_slice(part);
                self.header_len += part.len();
                bytes = rest;
                if self.header_len < self.header.len() {
                    return Ok(());
                }
                self.begin()?;
            }
            if self.left == 0 {
                self.end()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Excess> {
        let [kind, length @ ..] = self.header;
        let length = u32::from_be_bytes(length) as usize;
        (self.kind, self.header_len) = (kind, 0);
        // The length counts itself. A shorter one is the driver's to refuse.
        self.left = length.saturating_sub(4);
        self.authentication.clear();
        if !self.logged_in && length > LOGIN_MESSAGE {
            return Err(Excess::LoginMessage(length));
        }
        if length > MESSAGE {
            return Err(Excess::Message(length));
        }
        match kind {
            b'N' | b'A' => self.aside += length,
            b'S' => (self.aside, self.settings) = (self.aside + length, self.settings + length),
            _ => {}
        }
        if self.aside > ASIDE {
            return Err(Excess::Aside);
        }
        if self.settings > SETTINGS {
            return Err(Excess::Settings);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Excess> {
        match self.kind {
            b'Z' => self.log_in(),
            b'R' => {
                if let Some(asked) = iterations(&self.authentication)
                    && asked > ITERATIONS
                {
                    return Err(Excess::Iterations(asked));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The iterations that a message of SCRAM asks for; the most there can be if it names more than can be counted.
fn iterations(message: &[u8]) -> Option<u64> {
    let (kind, text) = message.split_first_chunk::<4>()?;
    if u32::from_be_bytes(*kind) != SASL_CONTINUE {
        return None;
    }
    let asked = text.split(|byte| *byte == b',').find_map(|part| part.strip_prefix(b"i="))?;
    let digits =
        std::str::from_utf8(asked).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    fn announced(kind: u8, length: u32) -> Vec<u8> {
        [&[kind][..], &length.to_be_bytes()].concat()
    }

    fn scram(iterations: &str) -> Vec<u8> {
        message(b'R', format!("\0\0\0\u{b}r=nonce,s=c2FsdA==,i={iterations}").as_bytes())
    }

    fn started() -> Watcher {
        let mut watcher = Watcher::new();
        watcher.sends(&[0, 0, 0, 9, 0, 3, 0, 0, 0]);
        watcher
    }

    fn logged_in() -> Watcher {
        let mut watcher = started();
        watcher.receives(&message(b'R', &[0; 4])).unwrap();
        watcher.receives(&message(b'Z', b"I")).unwrap();
        watcher
    }

    #[test]
    fn a_login_is_bounded_in_messages_bytes_and_iterations() {
        for (bytes, excess) in [
            (announced(b'E', 50_000_000), Excess::LoginMessage(50_000_000)),
            (announced(b'R', u32::MAX), Excess::LoginMessage(u32::MAX as usize)),
            (scram("100001"), Excess::Iterations(100_001)),
            (scram("99999999999999999999999"), Excess::Iterations(u64::MAX)),
            (message(b'S', &[b'x'; 1000]).repeat(600), Excess::Login),
            (message(b'N', &[b'x'; 1000]).repeat(600), Excess::Login),
        ] {
            assert_eq!(started().receives(&bytes), Err(excess));
            // However it is cut into pieces.
            let mut watcher = started();
            let pieces: Result<(), Excess> = bytes.iter().try_for_each(|byte| watcher.receives(&[*byte]));
            assert_eq!(pieces, Err(excess));
        }
        for bytes in [scram("4096"), scram("100000"), scram("x"), message(b'E', &[b'x'; 60_000])] {
            assert_eq!(started().receives(&bytes), Ok(()));
        }
    }

    #[test]
    fn an_answer_is_bounded_and_a_new_statement_begins_anew() {
        let mut watcher = logged_in();
        let rows = message(b'D', &[0; 1_000_000]);
        for _ in 0..1000 {
            watcher.sends(b"Q");
            watcher.receives(&rows).unwrap();
        }
        assert!((0..100).any(|_| watcher.receives(&rows) == Err(Excess::Answer)));
        assert_eq!(
            logged_in().receives(&announced(b'D', 2_000_000_000)),
            Err(Excess::Message(2_000_000_000))
        );
        assert_eq!(
            logged_in().receives(&message(b'E', &[b'x'; 10_000_000])),
            Ok(()),
            "a trigger may say much"
        );
    }

    #[test]
    fn notices_are_bounded_per_statement_and_settings_per_connection() {
        let notices = message(b'N', &[b'x'; 1000]);
        let mut watcher = logged_in();
        for _ in 0..20_000 {
            watcher.sends(b"Q");
            watcher.receives(&notices).unwrap();
        }
        assert!((0..9_000).any(|_| watcher.receives(&notices) == Err(Excess::Aside)));
        let settings = message(b'S', &[b'x'; 1000]);
        let mut watcher = logged_in();
        let sent = (0..2_000).take_while(|_| {
            watcher.sends(b"Q");
            watcher.receives(&settings).is_ok()
        });
        assert!((1_000..1_100).contains(&sent.count()));
    }

    #[test]
    fn behind_tls_bytes_are_counted() {
        let mut watcher = Watcher::new();
        watcher.sends(&TLS_REQUEST);
        watcher.receives(b"S").unwrap();
        // What would be an announcement of 2 GB is part of a record.
        watcher.receives(&announced(b'D', 2_000_000_000)).unwrap();
        assert_eq!(watcher.receives(&vec![0; LOGIN]), Err(Excess::Login));
        let mut watcher = Watcher::new();
        watcher.sends(&TLS_REQUEST);
        watcher.receives(b"S").unwrap();
        watcher.receives(&[0; 4000]).unwrap();
        watcher.log_in();
        assert_eq!(watcher.receives(&vec![0; 10_000_000]), Ok(()));
        // Refused, and the login goes on in the clear.
        let mut watcher = Watcher::new();
        watcher.sends(&TLS_REQUEST);
        watcher.receives(b"N").unwrap();
        watcher.sends(&[0, 0, 0, 9, 0, 3, 0, 0, 0]);
        assert_eq!(watcher.receives(&announced(b'R', 1_000_000)), Err(Excess::LoginMessage(1_000_000)));
    }
}
