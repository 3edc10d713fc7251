//! The accept loop.
//!
//! `axum::serve` sets no timer on hyper, which silently turns its header time-out off, has no cap
//! on connections, and its graceful stop waits for ever on event streams; hence a loop of our own.
//!
//! When all places are taken, connections give way to new ones (see [`crate::room`]). Where none does,
//! the newcomer is taken into a small waiting room: there a question about the health is answered at
//! once, and any other request as soon as there is a place for it.

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, Version};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioTimer;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use usher_shared::rest::Problem;

use crate::answer::{Answer, problem};
use crate::health;
use crate::inflow::{Inflow, Linger, Outflow, Rest, discard};
use crate::path::normalise;
use crate::places::{Place, Places};
use crate::room::Stage;
use crate::wire::Wire;

/// How long a connection that gives way may take: an answer that is being written in this moment
/// is finished, and a request that came in it is answered.
const CUT_PATIENCE: Duration = Duration::from_millis(200);
/// When a request that found no place is to come back.
const RETRY_MS: u64 = 1_000;

use crate::fold::Fold;

/// After so long without a failure connections can be accepted again.
const WORKS_FOR: Duration = Duration::from_secs(10);

/// What one listener bears.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Which listener, for metrics and the log.
    pub name: &'static str,
    /// Connections in HTTP at once; upgraded sockets do not count.
    pub connections: usize,
    /// Connections beyond these, for the health and for whoever waits for a place. When they are
    /// taken, too, the loop stops accepting, so that further clients wait in the kernel's backlog.
    pub waiting: usize,
    /// How long a request waits for a place before it is told to come back.
    pub place_timeout: Duration,
    /// How long a request head may take, also the wait for the next one on a kept connection.
    pub head_timeout: Duration,
    /// The largest request head in bytes; beyond it the answer is 431. hyper's minimum is 8 KiB.
    pub head_bytes: usize,
    /// The most headers in a request.
    pub headers: usize,
    /// How long what is written may wait for a client that does not read it. hyper has no such bound:
    /// a client that asks and never reads would keep its place, and megabytes in the kernel, for ever.
    pub write_timeout: Duration,
    /// What becomes of a body that nobody read.
    pub linger: Linger,
    /// How long connections may take to finish once a stop was asked for.
    pub stop_timeout: Duration,
}

impl Limits {
    /// The usual ones, for the listener of this name.
    #[must_use]
    pub fn of(name: &'static str) -> Self {
        Self {
            name,
            connections: 4_096,
            waiting: 64,
            place_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            head_bytes: 16 * 1024,
            headers: 64,
            write_timeout: Duration::from_secs(30),
            linger: Linger::default(),
            stop_timeout: Duration::from_secs(5),
        }
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error(
        "{what} cannot listen on {address}: the port is in use. Stop the other process or choose another with {setting}"
    )]
    InUse {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The flag that moves it.
        setting: &'static str,
    },
    /// Anything else.
    #[error("{what} cannot listen on {address}; choose another address with {setting}")]
    Other {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The flag that moves it.
        setting: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The address of whoever opened a connection, put into every request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// Listens on `address`; `what` and `setting` name it in errors. Port 0 takes a free one.
///
/// # Errors
/// [`BindError`] with the remedy.
pub fn bind(
    address: SocketAddr,
    what: &'static str,
    setting: &'static str,
) -> Result<TcpListener, BindError> {
    let open = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restarted process takes its port back although connections of the old one linger.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(4_096)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => BindError::InUse {
            what,
            address,
            setting,
        },
        _ => BindError::Other {
            what,
            address,
            setting,
            source,
        },
    })
}

/// Accepts until `stop`, gives every request to `service`, and returns once the connections that
/// are still in HTTP have ended or `limits.stop_timeout` is over.
pub async fn serve<S, B>(listener: TcpListener, limits: Limits, stop: CancellationToken, service: S)
where
    S: Service<Request<Inflow>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let hall = Hall {
        places: Places::new(limits.name, limits.connections),
        waiting: Places::new(limits.name, limits.waiting),
    };
    let tasks = TaskTracker::new();
    let mut failing = Fold::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept_one(&listener, &hall, &mut failing) => accepted,
        };
        let Some((stream, visit)) = accepted else {
            continue;
        };
        let service = service.clone();
        let stop = stop.clone();
        tasks.spawn(serve_one(stream, visit, limits, stop, service));
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(limits.stop_timeout, tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = tasks.len(),
            "requests still open at the end of the stop were cut"
        );
    }
}

/// The places of one listener.
#[derive(Clone, Debug)]
struct Hall {
    places: Arc<Places>,
    waiting: Arc<Places>,
}

/// One connection's stay.
#[derive(Debug)]
struct Visit {
    peer: SocketAddr,
    hall: Hall,
    seat: Mutex<Seat>,
    /// Cancelled when the connection has to give way.
    cut: CancellationToken,
}

#[derive(Debug)]
enum Seat {
    Placed(Place),
    Waiting(Place),
}

impl Visit {
    fn turn(&self, stage: Stage) {
        match &*self.seat() {
            Seat::Placed(place) | Seat::Waiting(place) => place.turn(stage),
        }
    }

    /// Whether there is a place for a request; one in the waiting room waits for it.
    async fn is_placed(&self, patience: Duration) -> bool {
        if matches!(&*self.seat(), Seat::Placed(_)) {
            return true;
        }
        let address = self.peer.ip();
        let place = self.hall.places.wait(address, &self.cut);
        let Ok(place) = tokio::time::timeout(patience, place).await else {
            return false;
        };
        place.turn(Stage::Busy);
        *self.seat() = Seat::Placed(place);
        true
    }

    fn seat(&self) -> std::sync::MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept_one(
    listener: &TcpListener,
    hall: &Hall,
    failing: &mut Fold<std::io::ErrorKind>,
) -> Option<(TcpStream, Arc<Visit>)> {
    let (stream, peer) = match listener.accept().await {
        Ok(accepted) => {
            if let Some(said) = failing.over_after(WORKS_FOR, Instant::now()) {
                let (times, for_s) = (said.times, said.lasted.as_secs());
                tracing::info!(times, for_s, "connections are accepted again");
            }
            accepted
        }
        Err(error) => {
            // Out of descriptors or of memory: the connection stays in the backlog, and trying
            // again at once would spin.
            metrics::counter!("usher_accept_errors_total").increment(1);
            if let Some(said) = failing.happened(error.kind(), Instant::now()) {
                let (times, for_s) = (said.times, said.lasted.as_secs());
                tracing::warn!(%error, times, for_s, "no connection can be accepted: is the limit of descriptors reached?");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            return None;
        }
    };
    let cut = CancellationToken::new();
    let seat = match hall.places.take(peer.ip(), &cut) {
        Some(place) => Seat::Placed(place),
        None => Seat::Waiting(hall.waiting.wait(peer.ip(), &cut).await),
    };
    let visit = Visit {
        peer,
        hall: hall.clone(),
        seat: Mutex::new(seat),
        cut,
    };
    Some((stream, Arc::new(visit)))
}

/// What is done once an answer is out: the rest of its request is read, and then the next is awaited.
struct After {
    visit: Arc<Visit>,
    rest: Rest,
    linger: Linger,
}

impl Drop for After {
    fn drop(&mut self) {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(rest) = rest else {
            self.visit.turn(Stage::Idle);
            return;
        };
        let (visit, linger) = (Arc::clone(&self.visit), self.linger);
        tokio::spawn(async move {
            discard(rest, linger).await;
            visit.turn(Stage::Idle);
        });
    }
}

async fn answer<S, B>(
    request: Request<Incoming>,
    visit: Arc<Visit>,
    limits: Limits,
    service: S,
) -> Result<Response<Outflow<B, After>>, Infallible>
where
    S: Service<Request<Inflow>, Response = Response<B>, Error = Infallible>,
{
    visit.turn(Stage::Busy);
    let rest = Rest::default();
    let after = After {
        visit: Arc::clone(&visit),
        rest: Arc::clone(&rest),
        linger: limits.linger,
    };
    let mut request = request.map(|body| Inflow::new(body, rest));
    normalise(request.uri_mut());
    request.extensions_mut().insert(PeerAddress(visit.peer));
    let health = health::asks(request.uri().path());
    if !health && !visit.is_placed(limits.place_timeout).await {
        drop(request);
        return Ok(no_place().map(|body| Outflow::ours(body, after)));
    }
    // Health checks are often written by hand, and mean no place in particular.
    if !health && !has_one_host(&request) {
        drop(request);
        let bad = Problem::new(
            400,
            "bad_host",
            "HTTP/1.1 wants one `Host` header (RFC 9112 section 3.2)",
        );
        return Ok(problem(&bad).map(|body| Outflow::ours(body, after)));
    }
    let answer = service.call(request).await?;
    Ok(answer.map(|body| Outflow::theirs(body, after)))
}

/// Without one, or with two, a proxy before us and we may not mean the same place.
fn has_one_host<B>(request: &Request<B>) -> bool {
    request.version() != Version::HTTP_11 || request.headers().get_all(HOST).iter().count() == 1
}

fn no_place() -> Answer {
    metrics::counter!("usher_listener_refused_total").increment(1);
    let busy = Problem::new(503, "busy", "too many connections at once; come back later");
    problem(&busy.retry_after(RETRY_MS))
}

async fn serve_one<S, B>(
    stream: TcpStream,
    visit: Arc<Visit>,
    limits: Limits,
    stop: CancellationToken,
    service: S,
) where
    S: Service<Request<Inflow>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let _ = stream.set_nodelay(true);
    // The kernel ends the connection (TCP_USER_TIMEOUT, tcp(7)), also when the client's window is closed.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limits.write_timeout));
    let (peer, cut) = (visit.peer, visit.cut.clone());
    let of_visit = service_fn(move |request: Request<Incoming>| {
        answer(request, Arc::clone(&visit), limits, service.clone())
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(limits.head_bytes)
        .max_headers(limits.headers)
        .serve_connection(Wire::new(stream), of_visit)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = cut.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(CUT_PATIENCE, connection).await.unwrap_or(Ok(()))
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended early");
    }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
