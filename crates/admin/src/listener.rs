//! Connections of the admin interface: who gets a place, and who loses one.
//!
//! Probes and metrics have to answer whatever others do with their connections. So a newcomer always gets in: where there
//! is no place left, the connection that has been silent for longest is closed, one of the same peer first, and one with a
//! request under way last. A client that doesn't take its answer is cut off.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_rt::time::{Instant, Sleep};
use actix_web::{
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

/// Connections at a time, and of one address among them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) of_all: usize,
    pub(crate) of_a_peer: usize,
}

/// How long a client may leave an answer lying.
const UNREAD: Duration = Duration::from_secs(10);
/// Between two tries to accept while the system refuses, for want of file descriptors say.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// How often a full interface is logged.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// One connection, as the others see it.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: IpAddr,
    /// When bytes last came or went.
    active: Cell<Instant>,
    /// Requests under way.
    requests: Cell<usize>,
    closed: CancellationToken,
}

/// All connections of the interface. Belongs to its thread.
#[derive(Debug)]
pub(crate) struct Connections {
    places: Places,
    open: RefCell<HashMap<u64, Rc<Connection>>>,
    next: Cell<u64>,
    evicted: Cell<u64>,
    logged: Cell<Option<Instant>>,
}

impl Connections {
    pub(crate) fn new(places: Places) -> Self {
        Self {
            places,
            open: RefCell::default(),
            next: Cell::default(),
            evicted: Cell::default(),
            logged: Cell::default(),
        }
    }

    /// Takes in a newcomer, for whom another one may have to go.
    fn admit(&self, peer: IpAddr, now: Instant) -> (u64, Rc<Connection>) {
        let mut open = self.open.borrow_mut();
        if let Some(victim) = victim(&open, peer, self.places)
            && let Some(gone) = open.remove(&victim)
        {
            gone.closed.cancel();
            self.evicted.set(self.evicted.get() + 1);
            if self.logged.get().is_none_or(|at| now.duration_since(at) >= LOG_EVERY) {
                self.logged.set(Some(now));
                let (peer, closed) = (gone.peer, self.evicted.replace(0));
                tracing::warn!(%peer, closed, open = open.len() + 1, "the admin interface has no place left and closed its most silent connections");
            }
        }
        let connection = Rc::new(Connection {
            peer,
            active: Cell::new(now),
            requests: Cell::default(),
            closed: CancellationToken::new(),
        });
        let id = self.next.replace(self.next.get() + 1);
        open.insert(id, Rc::clone(&connection));
        (id, connection)
    }

    fn remove(&self, id: u64) {
        self.open.borrow_mut().remove(&id);
    }

    /// Whether any is open.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Accepts until `stop`, and serves each connection by what `serve` returns for it, beside the others.
    pub(crate) async fn accept<F: Future<Output = ()> + 'static>(
        self: Rc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
        spawn: impl Fn(Pin<Box<dyn Future<Output = ()>>>),
        serve: impl Fn(Guarded, SocketAddr) -> F,
    ) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection to the admin interface can't be accepted");
                    actix_rt::time::sleep(REFUSED_PAUSE).await;
                    continue;
                }
            };
            // Small answers leave at once.
            let _ = stream.set_nodelay(true);
            let (id, connection) = self.admit(peer.ip(), Instant::now());
            let closed = connection.closed.clone();
            let serving = serve(Guarded { stream, connection, unread: None }, peer);
            // Its place is free again however it ends.
            let place = Place { connections: Rc::clone(&self), id };
            spawn(Box::pin(async move {
                let _place = place;
                tokio::select! {
                    () = closed.cancelled() => {}
                    () = serving => {}
                }
            }));
        }
    }
}

struct Place {
    connections: Rc<Connections>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.remove(self.id);
    }
}

/// Which connection goes for a newcomer of this address: of its own address if that has its share, else, if there is no
/// place at all, of the address that has most.
fn victim(open: &HashMap<u64, Rc<Connection>>, newcomer: IpAddr, places: Places) -> Option<u64> {
    let mut of_peer: HashMap<IpAddr, usize> = HashMap::new();
    for connection in open.values() {
        *of_peer.entry(connection.peer).or_default() += 1;
    }
    let own = of_peer.get(&newcomer).copied().unwrap_or_default();
    let share = if own >= places.of_a_peer {
        own
    } else if open.len() >= places.of_all {
        of_peer.values().copied().max()?
    } else {
        return None;
    };
    let candidate = |connection: &Connection| {
        if own >= places.of_a_peer { connection.peer == newcomer } else { of_peer[&connection.peer] == share }
    };
    open.iter()
        .filter(|(_, connection)| candidate(connection))
        .min_by_key(|(id, connection)| (connection.requests.get() > 0, connection.active.get(), **id))
        .map(|(id, _)| *id)
}

/// Counts a request as under way until it has an answer.
pub(crate) async fn count(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let connection = request.conn_data::<Rc<Connection>>().cloned();
    let add = |more: bool| {
        if let Some(connection) = &connection {
            let now = connection.requests.get();
            connection.requests.set(if more { now + 1 } else { now.saturating_sub(1) });
        }
    };
    add(true);
    let answer = next.call(request).await;
    add(false);
    answer
}

/// A connection that notes when something moves, and fails when its peer doesn't read.
#[derive(Debug)]
pub(crate) struct Guarded<S = TcpStream> {
    stream: S,
    pub(crate) connection: Rc<Connection>,
    unread: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    /// Passes on what a write has come to, or that it has waited for too long.
    fn written<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.unread = None;
            self.connection.active.set(Instant::now());
            return poll;
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(actix_rt::time::sleep(UNREAD)));
        ready!(unread.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.connection.active.set(Instant::now());
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.written(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: Places = Places { of_all: 6, of_a_peer: 4 };

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    /// Admits a connection, a second after the one before.
    fn admit(connections: &Connections, at: Instant, second: u64, last: u8) -> Rc<Connection> {
        connections.admit(peer(last), at + Duration::from_secs(second)).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_cut_off() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let (stream, mut peer_of_it) = tokio::io::duplex(1000);
        let connection = admit(&Connections::new(PLACES), Instant::now(), 0, 1);
        let mut guarded = Guarded { stream, connection: Rc::clone(&connection), unread: None };
        // Slow, and yet it moves: each byte that is taken is a new start.
        let begun = Instant::now();
        let slow = async {
            for _ in 0..5 {
                actix_rt::time::sleep(UNREAD.mul_f64(0.9)).await;
                peer_of_it.read_u8().await.ok();
            }
        };
        let (written, ()) = tokio::join!(guarded.write_all(&[0; 1005]), slow);
        assert!(written.is_ok() && begun.elapsed() > UNREAD * 4);
        let error = guarded.write_all(&[0; 1]).await.map_err(|error| error.kind());
        assert_eq!(error, Err(io::ErrorKind::TimedOut));
        assert_eq!(connection.active.get(), begun + begun.elapsed() - UNREAD);
    }

    #[test]
    fn a_newcomer_takes_the_place_of_its_own_most_silent_connection() {
        let (connections, at) = (Connections::new(PLACES), Instant::now());
        let other = admit(&connections, at, 0, 2);
        let own: Vec<_> = (1..=4).map(|second| admit(&connections, at, second, 1)).collect();
        own[0].active.set(at + Duration::from_secs(9));
        admit(&connections, at, 10, 1);
        let closed: Vec<bool> = own.iter().map(|connection| connection.closed.is_cancelled()).collect();
        assert_eq!(closed, [false, true, false, false]);
        assert!(!other.closed.is_cancelled());
    }

    #[test]
    fn a_request_under_way_goes_last() {
        let (connections, at) = (Connections::new(PLACES), Instant::now());
        let own: Vec<_> = (0..4).map(|second| admit(&connections, at, second, 1)).collect();
        own[0].requests.set(1);
        admit(&connections, at, 5, 1);
        assert!(!own[0].closed.is_cancelled() && own[1].closed.is_cancelled());
    }

    #[test]
    fn a_full_interface_takes_from_whoever_has_most() {
        let (connections, at) = (Connections::new(PLACES), Instant::now());
        let few: Vec<_> = (0..3).map(|second| admit(&connections, at, second, 2)).collect();
        let one = admit(&connections, at, 3, 3);
        let most: Vec<_> = (4..6).map(|second| admit(&connections, at, second, 1)).collect();
        // A probe of a fourth address gets in; the oldest of the three goes.
        admit(&connections, at, 7, 4);
        assert!(few[0].closed.is_cancelled());
        let kept = few[1..].iter().chain([&one]).chain(&most);
        assert!(kept.into_iter().all(|connection| !connection.closed.is_cancelled()));
        assert_eq!(connections.open.borrow().len(), PLACES.of_all);
    }
}
