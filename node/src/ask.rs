//! One HTTP request on a connection of its own.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use usher_dial::dial;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the connection failed")]
    Connect(#[from] std::io::Error),
    #[error("the request failed")]
    Http(#[from] hyper::Error),
}

/// Sends one request to `address` (`host:port`) and hands `read` the answer while the connection lives.
pub(crate) async fn send<R>(
    address: &str,
    request: Request<Full<Bytes>>,
    read: impl AsyncFnOnce(Response<Incoming>) -> R,
) -> Result<R, SendError> {
    let stream = dial(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        Ok(read(answer).await)
    };
    // The answer's body comes through the connection: it must be driven until the answer was read.
    tokio::pin!(connection);
    tokio::pin!(answer);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            ended = &mut connection, if open => {
                open = false;
                ended?;
            }
        }
    }
}
