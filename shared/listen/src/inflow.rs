//! A request's body, and what becomes of the part that nobody read.
//!
//! A server that answers before it has read all, and then closes, resets the connection: the system
//! does so when unread data is there, and the client, still sending, never sees the answer (RFC 9112
//! section 9.6). So the rest is read and dropped, up to a bound and for a while, once the answer is out.
//! Not before: whoever waits for `100 Continue` must not be told to go on by that reading.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How much of a body that nobody wants is read and dropped, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Linger {
    /// More than any body that is taken: larger ones are cut.
    pub bytes: u64,
    /// In all.
    pub time: Duration,
    /// Without a byte.
    pub pause: Duration,
}

impl Default for Linger {
    fn default() -> Self {
        Self {
            bytes: 8 << 20,
            time: Duration::from_secs(10),
            pause: Duration::from_secs(2),
        }
    }
}

/// Where the rest of a body is left.
pub(crate) type Rest = Arc<Mutex<Option<Incoming>>>;

/// A request's body.
#[derive(Debug)]
pub struct Inflow {
    body: Option<Incoming>,
    rest: Rest,
}

impl Inflow {
    pub(crate) fn new(body: Incoming, rest: Rest) -> Self {
        Self {
            body: Some(body),
            rest,
        }
    }
}

impl Body for Inflow {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let inflow = self.get_mut();
        let Some(body) = &mut inflow.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            inflow.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

/// Reads and drops what is left of a body.
pub(crate) async fn discard(mut body: Incoming, linger: Linger) {
    let until = Instant::now() + linger.time;
    let mut left = linger.bytes;
    loop {
        let frame = timeout(linger.pause, body.frame());
        let Ok(Ok(Some(Ok(frame)))) = timeout_at(until, frame).await else {
            return;
        };
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        match left.checked_sub(length) {
            Some(less) => left = less,
            None => return,
        }
    }
}

/// An answer's body: the service's or one of the listener's own. `after` is dropped with it, which is when the answer is out.
pub(crate) struct Outflow<B, A> {
    body: Either<B, Full<Bytes>>,
    _after: A,
}

impl<B, A> Outflow<B, A> {
    pub(crate) fn theirs(body: B, after: A) -> Self {
        Self {
            body: Either::Left(body),
            _after: after,
        }
    }

    pub(crate) fn ours(body: Full<Bytes>, after: A) -> Self {
        Self {
            body: Either::Right(body),
            _after: after,
        }
    }
}

impl<B, A> Body for Outflow<B, A>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    A: Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
