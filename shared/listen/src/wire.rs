//! The TCP stream as hyper sees it.
//!
//! It is the bare stream but for one thing: to a client that asks with `Connection: close, Upgrade`
//! hyper answers `101` with `connection: Upgrade, close`, and some clients (Tcl's) then wait for the
//! end of the connection that has just become theirs. A `101` names the one option that it stands for.

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

const SWITCHING: &[u8] = b"HTTP/1.1 101 ";
const UPGRADE_AND_CLOSE: &[u8] = b"\r\nconnection: Upgrade, close\r\n";
const UPGRADE: &[u8] = b"\r\nconnection: Upgrade\r\n";

/// A TCP stream under hyper.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TokioIo<TcpStream>,
    head: Option<Box<Head>>,
}

/// The head of a `101` that is going out in other words than hyper's.
#[derive(Debug)]
struct Head {
    text: Vec<u8>,
    written: usize,
    /// The length that hyper believes to have written.
    instead_of: usize,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream: TokioIo::new(stream),
            head: None,
        }
    }
}

/// The bare stream that an accepted upgrade becomes, and what the client sent early. What bounded its
/// writes in HTTP is taken off: its new protocol has its own way with readers that fall behind.
pub async fn upgraded(upgrade: OnUpgrade) -> Option<(TcpStream, Vec<u8>)> {
    let upgraded = upgrade.await.ok()?;
    let parts = upgraded.downcast::<Wire>().ok()?;
    let stream = parts.io.stream.into_inner();
    let _ = SockRef::from(&stream).set_tcp_user_timeout(None);
    Some((stream, parts.read_buf.to_vec()))
}

/// The head of a `101` without `close`; `None` for anything else.
fn reworded(head: &[u8]) -> Option<Box<Head>> {
    if !head.starts_with(SWITCHING) {
        return None;
    }
    let at = head
        .windows(UPGRADE_AND_CLOSE.len())
        .position(|part| part == UPGRADE_AND_CLOSE)?;
    let mut text = head[..at].to_vec();
    text.extend_from_slice(UPGRADE);
    text.extend_from_slice(&head[at + UPGRADE_AND_CLOSE.len()..]);
    Some(Box::new(Head {
        text,
        written: 0,
        instead_of: head.len(),
    }))
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if wire.head.is_none() {
            wire.head = reworded(bytes);
        }
        // Until the head is out, hyper comes with the same bytes again.
        while let Some(head) = &mut wire.head {
            let left = &head.text[head.written..];
            let written = ready!(Pin::new(&mut wire.stream).poll_write(context, left))?;
            head.written += written;
            if head.written >= head.text.len() {
                let claimed = head.instead_of;
                wire.head = None;
                return Poll::Ready(Ok(claimed));
            }
            if written == 0 {
                return Poll::Ready(Ok(0));
            }
        }
        Pin::new(&mut wire.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let first = slices.iter().find(|slice| !slice.is_empty());
        match first {
            Some(first) if wire.head.is_some() || first.starts_with(SWITCHING) => {
                Pin::new(wire).poll_write(context, first)
            }
            _ => Pin::new(&mut wire.stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_head_of_a_101_is_reworded() {
        let text = |head: &str| {
            let reworded = reworded(head.as_bytes())?;
            assert_eq!(reworded.instead_of, head.len());
            Some(String::from_utf8(reworded.text).unwrap())
        };
        assert_eq!(
            text("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade, close\r\nx: y\r\n\r\n").unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nx: y\r\n\r\n"
        );
        assert_eq!(text("HTTP/1.1 101 S\r\nconnection: Upgrade\r\n\r\n"), None);
        assert_eq!(
            text("HTTP/1.1 200 OK\r\nconnection: Upgrade, close\r\n\r\n"),
            None
        );
    }
}
