//! Every command that Redis executes, as `MONITOR` shows them: those of a script stand behind the call that ran it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use balance_sync_sandbox::{RedisServer, eventually};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::SOON;
use crate::worker::password_in;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// The address of the client, whose script it may be.
    pub client: String,
    /// Name, in upper case, and arguments.
    pub words: Vec<String>,
}

/// Records what Redis executes. Dropped, it ends.
#[derive(Debug)]
pub struct Monitor {
    executed: Arc<Mutex<Vec<Executed>>>,
    reading: JoinHandle<()>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Monitor {
    /// Begins to record.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn begin(redis: &RedisServer) -> Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).await?;
        let password = password_in(&redis.url());
        if let Some(password) = &password {
            let auth = format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len());
            stream.write_all(auth.as_bytes()).await?;
        }
        stream.write_all(b"*1\r\n$7\r\nMONITOR\r\n").await?;
        let mut lines = BufReader::new(stream);
        for _ in 0..1 + usize::from(password.is_some()) {
            let mut answer = String::new();
            lines.read_line(&mut answer).await?;
            ensure!(answer.trim_end() == "+OK", "MONITOR is answered with {answer:?}");
        }
        let executed = Arc::<Mutex<Vec<Executed>>>::default();
        let record = Arc::clone(&executed);
        let reading = tokio::spawn(async move {
            let (mut line, mut client) = (Vec::new(), String::new());
            while let Ok(1..) = lines.read_until(b'\n', &mut line).await {
                let text = String::from_utf8_lossy(&line);
                if let Some((by, words)) = parse(text.trim_end()) {
                    if by != "lua" {
                        client = by;
                    }
                    let one = Executed { client: client.clone(), words };
                    record.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                }
                line.clear();
            }
        });
        Ok(Self { executed, reading })
    }

    /// All that was executed before this call.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn executed(&self, redis: &RedisServer) -> Result<Vec<Executed>> {
        let marker = format!("marker-{}", uuid::Uuid::new_v4().simple());
        let _: String = redis::cmd("PING").arg(&marker).query_async(&mut redis.connect().await?).await?;
        eventually(SOON, "the record to catch up", || async {
            let executed = self.executed.lock().unwrap_or_else(PoisonError::into_inner);
            let at = executed.iter().position(|one| one.words.contains(&marker));
            at.map(|at| executed[..at].to_vec())
        })
        .await
    }
}

/// The addresses of the clients that have logged in as this user.
///
/// # Errors
/// When Redis can't be reached.
pub async fn clients_of(redis: &RedisServer, user: &str) -> Result<BTreeSet<String>> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut redis.connect().await?).await?;
    let user = format!("user={user}");
    let own = list.lines().filter(|line| line.split(' ').any(|part| part == user));
    Ok(own
        .filter_map(|line| line.split(' ').find_map(|part| part.strip_prefix("addr=")))
        .map(str::to_owned)
        .collect())
}

/// `+<time> [<db> <client>] "<name>" "<argument>" …`; what isn't printable is escaped.
fn parse(line: &str) -> Option<(String, Vec<String>)> {
    let (head, rest) = line.split_once("] ")?;
    let client = head.split_once('[')?.1.split_once(' ')?.1.to_owned();
    let mut words = Vec::new();
    let mut rest = rest.trim_start();
    while let Some(quoted) = rest.strip_prefix('"') {
        let mut end = 0;
        let bytes = quoted.as_bytes();
        while end < bytes.len() && bytes[end] != b'"' {
            end += 1 + usize::from(bytes[end] == b'\\');
        }
        words.push(quoted.get(..end)?.replace("\\\"", "\"").replace("\\\\", "\\"));
        rest = quoted.get(end + 1..)?.trim_start();
    }
    if let Some(name) = words.first_mut() {
        name.make_ascii_uppercase();
    }
    (!words.is_empty()).then_some((client, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = r#"+1339518083.107412 [0 127.0.0.1:60866] "set" "a \"b\" \\" "\xc3\xa7""#;
        let (client, words) = parse(line).unwrap_or_default();
        assert_eq!(client, "127.0.0.1:60866");
        assert_eq!(words, ["SET", r#"a "b" \"#, r"\xc3\xa7"]);
        assert_eq!(parse(r#"+1.0 [0 lua] "zcard" "k""#).unwrap_or_default().0, "lua");
    }
}
