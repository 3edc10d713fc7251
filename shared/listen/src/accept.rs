//! The accept loop.
//!
//! `axum::serve` sets no timer on hyper, which silently turns its header time-out off, has no cap
//! on connections, and its graceful stop waits for ever on event streams; hence a loop of our own.

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fold::Fold;

/// What one listener bears.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in HTTP at once; upgraded sockets do not count. At the cap the loop stops
    /// accepting, so further clients wait in the kernel's backlog.
    pub connections: usize,
    /// How long a request head may take, also the wait for the next one on a kept connection.
    pub head_timeout: Duration,
    /// The largest request head in bytes; beyond it the answer is 431. hyper's minimum is 8 KiB.
    pub head_bytes: usize,
    /// The most headers in a request.
    pub headers: usize,
    /// How long what is written may wait for a client that does not read it. hyper has no such bound:
    /// a client that asks and never reads would keep its place, and megabytes in the kernel, for ever.
    pub write_timeout: Duration,
    /// How long connections may take to finish once a stop was asked for.
    pub stop_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            head_timeout: Duration::from_secs(10),
            head_bytes: 16 * 1024,
            headers: 64,
            write_timeout: Duration::from_secs(30),
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
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let room = Arc::new(Semaphore::new(limits.connections));
    let tasks = TaskTracker::new();
    let mut failing = Fold::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept_one(&listener, &room, &mut failing) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else {
            continue;
        };
        let service = service.clone();
        let stop = stop.clone();
        tasks.spawn(async move {
            serve_one(stream, peer, limits, stop, service).await;
            drop(permit);
        });
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

/// Takes [`Limits::write_timeout`] off a connection that is no longer in HTTP: its new protocol has
/// its own way with readers that fall behind.
pub fn upgraded(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_tcp_user_timeout(None);
}

async fn accept_one(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    failing: &mut Fold<std::io::ErrorKind>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            if let Some(said) = failing.over(Instant::now()) {
                let (times, for_s) = (said.times, said.lasted.as_secs());
                tracing::info!(times, for_s, "connections are accepted again");
            }
            Some((stream, peer, permit))
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
            None
        }
    }
}

async fn serve_one<S, B>(
    stream: TcpStream,
    peer: SocketAddr,
    limits: Limits,
    stop: CancellationToken,
    service: S,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let _ = stream.set_nodelay(true);
    // The kernel ends the connection (TCP_USER_TIMEOUT, tcp(7)), also when the client's window is closed.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limits.write_timeout));
    let with_peer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(PeerAddress(peer));
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(limits.head_bytes)
        .max_headers(limits.headers)
        .serve_connection(TokioIo::new(stream), with_peer)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
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
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_client_that_reads_nothing_does_not_keep_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits {
            connections: 1,
            write_timeout: Duration::from_millis(500),
            ..Limits::default()
        };
        let answer = service_fn(|_| async {
            let large = Bytes::from(vec![b'x'; 16 << 20]);
            Ok::<_, Infallible>(Response::new(Full::new(large)))
        });
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, limits, stop.clone(), answer));
        let mut deaf = TcpStream::connect(address).await.unwrap();
        deaf.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut next = TcpStream::connect(address).await.unwrap();
        next.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut first = [0; 12];
        let answered = tokio::time::timeout(Duration::from_secs(20), next.read_exact(&mut first)).await;
        assert!(answered.is_ok(), "the place was not given up");
        assert_eq!(&first, b"HTTP/1.1 200");
        drop((deaf, next));
        stop.cancel();
        serving.await.unwrap();
    }
}
