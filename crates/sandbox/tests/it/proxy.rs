//! The proxy's faults, as a client sees them.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use balance_sync_sandbox::{Fault, Proxy, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(60);
/// Long enough for an answer on a loaded machine to arrive if it were to arrive at all.
const NO_ANSWER: Duration = Duration::from_millis(200);

/// Sends back every byte, and counts them.
async fn echo() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, received) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let counter = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut bytes = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    counter.fetch_add(length as u64, Ordering::SeqCst);
                    stream.write_all(&bytes[..length]).await.unwrap();
                }
            });
        }
    });
    (address, received)
}

async fn ask(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    answer(stream, text).await
}

async fn answer(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes).await?;
    assert_eq!(bytes, text.as_bytes());
    Ok(())
}

/// The connection has ended: nothing but that can be read.
async fn is_cut(stream: &mut TcpStream) -> bool {
    !matches!(timeout(SOON, stream.read(&mut [0; 16])).await.unwrap(), Ok(1..))
}

#[tokio::test]
async fn passes_delays_and_cuts() {
    let (upstream, _) = echo().await;
    let proxy = Proxy::start(upstream).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    ask(&mut client, "hello").await.unwrap();

    let delay = Duration::from_millis(150);
    proxy.set(Fault::Latency(delay)).await;
    let start = Instant::now();
    ask(&mut client, "late").await.unwrap();
    assert!(start.elapsed() >= delay);
    proxy.set(Fault::Pass).await;

    let mut other = TcpStream::connect(proxy.addr()).await.unwrap();
    ask(&mut other, "hello").await.unwrap();
    proxy.cut();
    assert!(is_cut(&mut client).await && is_cut(&mut other).await);
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    ask(&mut client, "again").await.unwrap();
    assert_eq!(proxy.accepted(), 3);
}

#[tokio::test]
async fn a_black_hole_freezes_and_lets_go() {
    let (upstream, received) = echo().await;
    let proxy = Proxy::start(upstream).await.unwrap();
    let mut old = TcpStream::connect(proxy.addr()).await.unwrap();
    ask(&mut old, "before").await.unwrap();
    let arrived = received.load(Ordering::SeqCst);

    proxy.set(Fault::BlackHole).await;
    let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(timeout(NO_ANSWER, ask(&mut old, "frozen")).await.is_err());
    assert!(timeout(NO_ANSWER, ask(&mut new, "frozen")).await.is_err());
    assert_eq!(received.load(Ordering::SeqCst), arrived);

    proxy.set(Fault::Pass).await;
    timeout(SOON, answer(&mut old, "frozen")).await.unwrap().unwrap();
    timeout(SOON, answer(&mut new, "frozen")).await.unwrap().unwrap();
}

#[tokio::test]
async fn lost_answers_stay_lost() {
    let (upstream, received) = echo().await;
    let proxy = Proxy::start(upstream).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let mut silent = TcpStream::connect(proxy.addr()).await.unwrap();
    ask(&mut client, "before").await.unwrap();
    ask(&mut silent, "before").await.unwrap();
    let arrived = received.load(Ordering::SeqCst);

    proxy.set(Fault::DropResponses).await;
    assert!(timeout(NO_ANSWER, ask(&mut client, "lost")).await.is_err());
    eventually(SOON, "the request", || async { received.load(Ordering::SeqCst) == arrived + 4 })
        .await
        .unwrap();

    proxy.set(Fault::Pass).await;
    assert!(is_cut(&mut client).await, "a connection that has lost an answer goes on");
    ask(&mut silent, "nothing lost").await.unwrap();
}

#[tokio::test]
async fn closed_refuses_until_it_is_opened() {
    let (upstream, _) = echo().await;
    let proxy = Proxy::start(upstream).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    ask(&mut client, "before").await.unwrap();
    for _ in 0..3 {
        proxy.set(Fault::Closed).await;
        assert!(is_cut(&mut client).await);
        let refused = TcpStream::connect(proxy.addr()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        proxy.set(Fault::Pass).await;
        client = TcpStream::connect(proxy.addr()).await.unwrap();
        ask(&mut client, "after").await.unwrap();
    }
    let address = proxy.addr();
    drop(proxy);
    assert!(is_cut(&mut client).await);
    eventually(SOON, "the port's end", || async { TcpStream::connect(address).await.is_err() })
        .await
        .unwrap();
}
