//! A server that sends too much: each connection to it ends with its own reason, after a bounded number of bytes, while another
//! database on the same thread goes on answering. The server is a fake on a loopback address.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use balance_sync_domain::TlsMode;
use balance_sync_store::{Database, DatabaseSpec, ErrorClass, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Tenant, open, spec};

/// Sent at most by the fake, whatever happens.
const MOST: usize = 512 * 1024 * 1024;
/// What may lie in the buffers of sockets between the fake and the worker.
const BUFFERS: usize = 16 * 1024 * 1024;

/// What the fake does once it has read the start-up message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    LoginError,
    LoginAnnounced,
    LoginNotices,
    LoginSettings,
    LoginForEver,
    Iterations,
    /// From here on the login succeeds, and the first statement is answered so.
    Announced,
    Notices,
    Settings,
    Rows,
    LongErrors,
    LongCode,
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

fn announced(kind: u8, length: u32) -> Vec<u8> {
    [&[kind][..], &length.to_be_bytes()].concat()
}

fn notice(kind: u8, severity: &str, code: &str, text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, text) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', text)] {
        body.push(field);
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    message(kind, &body)
}

/// A fake server that counts what it could send.
struct Fake {
    port: u16,
    sent: Arc<AtomicUsize>,
}

impl Fake {
    async fn start(fault: Fault) -> Fake {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // It ends with an error when the worker closes the socket.
                tokio::spawn(serve(socket, fault, Arc::clone(&counter)));
            }
        });
        Fake { port, sent }
    }

    fn database(&self) -> Database {
        open(DatabaseSpec {
            tls: TlsMode::Disable,
            connect_timeout: Duration::from_secs(20),
            ..spec(self.port, "hostile")
        })
    }
}

async fn serve(mut socket: TcpStream, fault: Fault, sent: Arc<AtomicUsize>) -> std::io::Result<()> {
    let length = socket.read_u32().await? as usize;
    let mut startup = vec![0; length - 4];
    socket.read_exact(&mut startup).await?;
    let filler = vec![b'x'; 64 * 1024];
    let mut settings = 0_u64;
    let mut send = async |bytes: &[u8]| -> std::io::Result<()> {
        if sent.fetch_add(bytes.len(), Ordering::Relaxed) > MOST {
            return Err(std::io::ErrorKind::QuotaExceeded.into());
        }
        socket.write_all(bytes).await
    };
    let noticed = notice(b'N', "NOTICE", "00000", &"n".repeat(1000));
    match fault {
        Fault::LoginError | Fault::LoginAnnounced => {
            let length = if fault == Fault::LoginError { 50_000_000 } else { 2_000_000_000 };
            send(&announced(b'E', length)).await?;
            loop {
                send(&filler).await?;
            }
        }
        Fault::LoginNotices => loop {
            send(&noticed).await?;
        },
        Fault::LoginSettings => loop {
            settings += 1;
            send(&message(b'S', format!("setting{settings}\0{}\0", "v".repeat(1000)).as_bytes())).await?;
        },
        Fault::LoginForEver => loop {
            send(&noticed[..1]).await?;
            send(&noticed[1..]).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        },
        Fault::Iterations => {
            send(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")).await?;
            // Its nonce isn't looked at before the iterations.
            send(&message(b'R', b"\0\0\0\x0br=nonce,s=c2FsdA==,i=2000000000")).await?;
            return std::future::pending().await;
        }
        _ => {
            send(&message(b'R', &[0; 4])).await?;
            send(&message(b'K', &[0; 8])).await?;
            send(&message(b'Z', b"I")).await?;
        }
    }
    let column =
        [b"\0\x01a\0".as_slice(), &[0; 6], &[0, 0, 0, 25], &[0xff, 0xff], &[0xff; 4], &[0; 2]].concat();
    let row =
        message(b'D', &[b"\0\x01".as_slice(), &1_000_000_u32.to_be_bytes(), &vec![b'r'; 1_000_000]].concat());
    let mut request = [0; 4096];
    while socket.read(&mut request).await? > 0 {
        let mut send = async |bytes: &[u8]| -> std::io::Result<()> {
            if sent.fetch_add(bytes.len(), Ordering::Relaxed) > MOST {
                return Err(std::io::ErrorKind::QuotaExceeded.into());
            }
            socket.write_all(bytes).await
        };
        match fault {
            Fault::Announced => {
                send(&announced(b'D', 2_000_000_000)).await?;
                loop {
                    send(&filler).await?;
                }
            }
            Fault::Notices => loop {
                send(&noticed).await?;
            },
            Fault::Settings => loop {
                settings += 1;
                send(&message(b'S', format!("setting{settings}\0{}\0", "v".repeat(1000)).as_bytes())).await?;
            },
            Fault::Rows => {
                send(&message(b'T', &column)).await?;
                loop {
                    send(&row).await?;
                }
            }
            Fault::LongErrors => {
                send(&notice(b'E', "ERROR", "53100", &"é\u{1b}[2J".repeat(2_000_000))).await?;
                send(&message(b'Z', b"I")).await?;
            }
            _ => {
                send(&notice(b'E', "ERROR", &"5".repeat(1_000_000), "x")).await?;
                send(&message(b'Z', b"I")).await?;
            }
        }
    }
    Ok(())
}

/// Asks the fake, while another database must go on answering on this thread.
async fn asks(fake: &Fake, healthy: &Database) -> StoreError {
    let database = fake.database();
    let asking = async { database.ping().await.unwrap_err() };
    tokio::pin!(asking);
    let mut answers = 0;
    loop {
        tokio::select! {
            error = &mut asking => {
                healthy.ping().await.unwrap();
                tracing::debug!(answers, "the other database answered meanwhile");
                return error;
            }
            answer = healthy.ping() => {
                answer.unwrap();
                answers += 1;
            }
        }
    }
}

#[tokio::test]
#[allow(clippy::print_stderr)] // `--nocapture` shows the figures of docs/operations.md
async fn a_server_that_sends_too_much_is_cut_off_with_its_own_reason() {
    let tenant = Tenant::new("beside_hostile").await;
    let healthy = tenant.database();
    for (fault, words, most) in [
        (Fault::LoginError, "announced a message of 50000000 bytes before the login was complete", 0),
        (Fault::LoginAnnounced, "announced a message of 2000000000 bytes before the login", 0),
        (Fault::LoginNotices, "sent more than 524288 bytes before the login was complete", 524_288),
        (Fault::LoginSettings, "sent more than 524288 bytes before the login was complete", 524_288),
        (Fault::Iterations, "asks for 2000000000 iterations of SCRAM; allowed: 100000", 0),
        (Fault::Announced, "announced a message of 2000000000 bytes; allowed: 16777216", 0),
        (Fault::Notices, "sent more than 8388608 bytes of notices during one statement", 8_388_608),
        (Fault::Settings, "sent more than 1048576 bytes of settings on one connection", 1_048_576),
        (Fault::Rows, "sent more than 67108864 bytes in answer to one statement", 67_108_864),
    ] {
        let fake = Fake::start(fault).await;
        let begun = Instant::now();
        let error = asks(&fake, &healthy).await;
        let took = begun.elapsed();
        assert_eq!(error.class(), ErrorClass::Excess, "{fault:?}: {error}");
        assert!(error.message().contains(words), "{fault:?}: {error}");
        let sent = fake.sent.load(Ordering::Relaxed);
        eprintln!("{fault:?}: ended after {took:?}, {sent} bytes were taken");
        assert!(sent < most + BUFFERS, "{fault:?}: {sent} bytes were taken");
    }
}

#[tokio::test]
async fn a_login_that_never_ends_is_given_up() {
    let tenant = Tenant::new("beside_endless").await;
    let healthy = tenant.database();
    let fake = Fake::start(Fault::LoginForEver).await;
    let database =
        open(DatabaseSpec { connect_timeout: Duration::from_millis(500), ..fake.database().spec().clone() });
    let (answer, beside) = tokio::join!(database.ping(), healthy.ping());
    beside.unwrap();
    let error = answer.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Timeout, "{error}");
    assert!(error.message().contains("connect_timeout (500ms): no answer while connecting"), "{error}");
}

#[tokio::test]
async fn errors_of_megabytes_are_cut_where_they_enter() {
    let tenant = Tenant::new("beside_errors").await;
    let healthy = tenant.database();
    for (fault, class) in
        [(Fault::LongErrors, ErrorClass::Resources), (Fault::LongCode, ErrorClass::Internal)]
    {
        let fake = Fake::start(fault).await;
        for _ in 0..5 {
            let error = asks(&fake, &healthy).await;
            let shown = error.to_string();
            assert!(shown.len() < 1400, "{} bytes", shown.len());
            assert!(!shown.contains('\u{1b}'), "{shown}");
            assert!(error.class() == class || error.class() == ErrorClass::PoolerUnsafe, "{error}");
        }
    }
}
