//! Clients that mean harm, or do some: connections that are held, requests half sent, foreign names.

use super::*;

/// More connections than the interface has places, within what a process may open.
const HELD: usize = 300;

/// What a client that only holds its connection has sent.
const PARTS: [&str; 4] = [
    "",
    "GET /metr",
    "GET /metrics HTTP/1.1\r\nhost: localhost\r\nx-long: ",
    "POST /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n",
];

async fn hold(address: SocketAddr, from: Ipv4Addr, part: &str) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    // One that has lost its place meanwhile says so here or at the next read.
    let _ = stream.write_all(part.as_bytes()).await;
    stream
}

async fn all_answer(server: &AdminServer) {
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(get(server.address(), path).await.0, 200, "{path}");
    }
}

#[actix_rt::test]
async fn probes_and_metrics_answer_however_many_connections_others_hold() {
    let fleet = Arc::<FleetStatus>::default();
    fleet.reconciled.store(true, Relaxed);
    let server = serve(&fleet);
    // Of the prober's own address first, as behind a proxy, then of another.
    for from in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)] {
        let mut held = Vec::new();
        for n in 0..HELD {
            held.push(hold(server.address(), from, PARTS[n % PARTS.len()]).await);
        }
        all_answer(&server).await;
        drop(held);
    }
    server.stop().await;
}

#[actix_rt::test]
async fn a_full_interface_closes_what_has_been_silent_for_longest() {
    let server = serve(&Arc::default());
    let mut silent = hold(server.address(), Ipv4Addr::LOCALHOST, PARTS[1]).await;
    let mut kept = TcpStream::connect(server.address()).await.unwrap();
    let mut answer = [0; 15];
    let mut held = Vec::new();
    for n in 0..HELD {
        held.push(hold(server.address(), Ipv4Addr::LOCALHOST, "").await);
        // A connection in use, as a browser's or a scraper's.
        if n % 16 == 0 {
            kept.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
            timeout(PATIENCE, kept.read_exact(&mut answer)).await.expect("no answer").unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            let mut rest = [0; 4096];
            let _ = timeout(PATIENCE, kept.read(&mut rest)).await.expect("no body");
        }
    }
    let end = timeout(PATIENCE, silent.read(&mut answer)).await.expect("it is still open");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    all_close(server).await;
}

/// Stops the interface; that it does although connections are held is part of the test.
async fn all_close(server: AdminServer) {
    timeout(PATIENCE, server.stop()).await.expect("stop hangs");
}

#[actix_rt::test]
async fn metrics_without_tokens_are_for_names_of_this_machine_and_probes_for_all() {
    let server = serve(&Arc::default());
    let ask = async |path: &str, host: &str| {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("no answer").unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    assert_eq!(ask("/metrics", "127.0.0.1:8090").await, 200);
    assert_eq!(ask("/metrics", "rebound.example").await, 403);
    assert_eq!(ask("/livez", "rebound.example").await, 200);
    server.stop().await;
}
