//! Whether anything answers at the URL that a node announces to clients.
//!
//! The broker need not be able to reach it: split networks and names are common, and a certificate is not looked
//! at. So a failure is told and weighs, and decides nothing.

use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use usher_placement::Event;
use usher_shared::id::{Incarnation, NodeId};
use usher_shared::template::NodeUrl;

use crate::handle::{CoreHandle, Input};

/// How long a URL is tried.
const TRIED_FOR: Duration = Duration::from_secs(3);
/// URLs tried at once; the rest wait.
const AT_ONCE: usize = 64;

/// Looks at the URLs of nodes that join.
#[derive(Clone)]
pub(crate) struct UrlProber {
    core: CoreHandle,
    room: Arc<Semaphore>,
    sockets: tokio::runtime::Handle,
}

impl UrlProber {
    /// `sockets` is the runtime to connect on.
    pub(crate) fn new(core: CoreHandle, sockets: tokio::runtime::Handle) -> Self {
        Self {
            core,
            room: Arc::new(Semaphore::new(AT_ONCE)),
            sockets,
        }
    }

    /// Looks, and tells the loop what came of it.
    pub(crate) fn look(&self, node: NodeId, incarnation: Incarnation, url: &NodeUrl) {
        let (core, room) = (self.core.clone(), Arc::clone(&self.room));
        let (tls, whole) = (url.scheme() == "wss", url.for_node(&node));
        self.sockets.spawn(async move {
            let permit = room.acquire_owned().await;
            let failed = tokio::time::timeout(TRIED_FOR, try_url(&whole, tls)).await;
            drop(permit);
            let failed = match failed {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("nothing answered within {} s", TRIED_FOR.as_secs())),
            };
            let event = Event::UrlProbed {
                node,
                incarnation,
                failed,
            };
            let _ = core.tell(Input::Event(event)).await;
        });
    }
}

/// Behind `wss` somebody must accept; behind `ws` somebody must speak HTTP, whatever he says.
async fn try_url(whole: &str, tls: bool) -> std::io::Result<()> {
    let rest = whole.split_once("://").map_or(whole, |(_, rest)| rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let default_port = if tls { 443 } else { 80 };
    let address = match authority.rsplit_once(':') {
        Some((_, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => authority.to_owned(),
        _ => format!("{authority}:{default_port}"),
    };
    let mut socket = TcpStream::connect(address).await?;
    if tls {
        return Ok(());
    }
    // A team that cannot be, so that nobody is asked for one that is.
    let path = path.replace("{team}", "-");
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = [0; 5];
    socket.read_exact(&mut answer).await?;
    if &answer == b"HTTP/" {
        Ok(())
    } else {
        let said = "what answers there does not speak HTTP";
        Err(std::io::Error::new(std::io::ErrorKind::InvalidData, said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn says(answer: &'static [u8]) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut read = [0; 256];
            let _ = socket.read(&mut read).await.unwrap();
            socket.write_all(answer).await.unwrap();
        });
        format!("ws://{address}/teams/{{team}}")
    }

    #[tokio::test]
    async fn whoever_speaks_http_answers_whatever_it_says() {
        let refusing = says(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        assert!(try_url(&refusing, false).await.is_ok());
        let other = says(b"SSH-2.0-x\r\n").await;
        let error = try_url(&other, false).await.unwrap_err();
        assert!(error.to_string().contains("does not speak HTTP"), "{error}");
    }

    #[tokio::test]
    async fn nobody_there_is_a_failure() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        for tls in [false, true] {
            assert!(try_url(&format!("ws://{address}/{{team}}"), tls).await.is_err());
        }
    }
}
