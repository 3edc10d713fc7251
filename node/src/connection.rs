//! One WebSocket, from its upgrade to its end: a small future in a task of its own.

use futures_util::{Sink as _, Stream as _};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as WireCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use usher_shared::frame::{CloseCode, CloseReason, Control, pretends_control};
use usher_shared::link::EndedBy;

use crate::config::Relay;
use crate::floor::{Seat, jitter};
use crate::outbox::{Goodbye, Next, Speaks};

/// Frames handled in one go before other tasks get a turn.
const TURN: u32 = 32;

/// How a socket is set up. The default of tungstenite is 128 KiB for each read buffer; with this, an
/// idle connection is a few KiB.
pub(crate) fn socket_config(message_bytes: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(2_048)
        .write_buffer_size(0)
        // One message at a time waits there (the rest waits in the outbox), and some pongs.
        .max_write_buffer_size(2 * message_bytes + 4_096)
        .max_message_size(Some(message_bytes))
        .max_frame_size(Some(message_bytes))
}

/// One WebSocket.
pub(crate) struct Connection {
    socket: WebSocketStream<TcpStream>,
    seat: Seat,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Talking,
    /// What the client sends is not understood any more: the Close is going out.
    Failing,
    /// The Close is out; what the client still sends is thrown away, because closing a socket with
    /// unread data resets it, and the client would never read the Close.
    Discarding,
}

/// How it ended, for the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The close handshake is done, or the client began one.
    Closed,
    /// The TCP connection went without a Close.
    Lost,
}

impl Connection {
    pub(crate) fn new(socket: WebSocketStream<TcpStream>, seat: Seat) -> Self {
        Self {
            socket,
            seat,
            stage: Stage::Talking,
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            ready!(Pin::new(&mut self.socket).poll_ready(context))?;
            let next = match self.seat.outbox.take() {
                Next::Frame(frame) => {
                    if frame.is_text() || frame.is_binary() {
                        self.seat.floor.figures.sent.increment(1);
                    }
                    frame
                }
                Next::Close(goodbye) => {
                    self.seat.floor.figures.closed(goodbye.code);
                    Message::Close(Some(CloseFrame {
                        code: WireCode::from(goodbye.code),
                        reason: Utf8Bytes::from(goodbye.reason),
                    }))
                }
                Next::Nothing => return Poll::Ready(Ok(())),
            };
            Pin::new(&mut self.socket).start_send(next)?;
        }
    }

    /// Reads until nothing is there; ready with why there will be nothing more, `None` after a Close.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Option<Error>> {
        for _ in 0..TURN {
            let message = match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Poll::Ready(Some(error)),
                None => return Poll::Ready(None),
            };
            self.seat.outbox.heard(self.seat.floor.clock.now());
            match message {
                Message::Text(text) => self.on_text(&text),
                Message::Binary(bytes) => {
                    self.seat.floor.figures.received.increment(1);
                    // Copied: a kept message would pin the connection's read buffer.
                    self.relay(|| Message::Binary(bytes::Bytes::copy_from_slice(&bytes)));
                }
                // tungstenite answers pings and closes by itself.
                _ => {}
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn on_text(&self, text: &Utf8Bytes) {
        let floor = &self.seat.floor;
        floor.figures.received.increment(1);
        if !pretends_control(text.as_str()) {
            self.relay(|| Message::Text(Utf8Bytes::from(text.as_str())));
            return;
        }
        floor.figures.pretended.increment(1);
        if self.seat.outbox.speaks == Speaks::Usher {
            let error = Control::Error {
                code: "reserved".to_owned(),
                detail: "a text frame that starts with {\"usher\": is control, and is not relayed".to_owned(),
            };
            let frame = Message::text(error.to_text());
            let _ = self
                .seat
                .outbox
                .push(frame, floor.config.queue_bytes, floor.clock.now());
        }
    }

    fn relay(&self, frame: impl FnOnce() -> Message) {
        let floor = &self.seat.floor;
        if floor.config.relay == Relay::None {
            return;
        }
        let began = floor.figures.times_this_relay().then(Instant::now);
        let from = Some(self.seat.outbox.id);
        let given = self
            .seat
            .roster
            .give(from, floor.config.queue_bytes, floor.clock.now(), frame);
        if given.too_slow > 0 {
            floor.figures.slow_readers.increment(u64::from(given.too_slow));
        }
        if let Some(began) = began {
            floor.figures.relay_seconds.record(began.elapsed());
        }
    }

    /// Begins to close because of what the client sent.
    fn fail(&mut self, goodbye: Goodbye) {
        let now = self.seat.floor.clock.now();
        self.seat.outbox.close(goodbye, now, EndedBy::Client);
        self.stage = Stage::Failing;
    }

    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [std::mem::MaybeUninit::uninit(); 2_048];
        loop {
            let mut buffer = ReadBuf::uninit(&mut scratch);
            ready!(Pin::new(self.socket.get_mut()).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<End> {
        if self.seat.outbox.listen(context.waker()).is_err() {
            return Poll::Ready(End::Closed);
        }
        if self.stage == Stage::Talking {
            if let Poll::Ready(Err(error)) = self.poll_write(context) {
                return Poll::Ready(end_of(&error));
            }
            match self.poll_read(context) {
                Poll::Pending => {}
                Poll::Ready(None) => return Poll::Ready(End::Closed),
                Poll::Ready(Some(error)) => match goodbye_for(&error) {
                    Some(goodbye) => self.fail(goodbye),
                    None => return Poll::Ready(end_of(&error)),
                },
            }
        }
        if self.stage == Stage::Failing {
            if ready!(self.poll_write(context)).is_err() {
                return Poll::Ready(End::Lost);
            }
            let flushed = ready!(Pin::new(&mut self.socket).poll_flush(context));
            let shut = ready!(Pin::new(self.socket.get_mut()).poll_shutdown(context));
            if flushed.is_err() || shut.is_err() {
                return Poll::Ready(End::Closed);
            }
            self.stage = Stage::Discarding;
        }
        if self.stage == Stage::Discarding {
            let _ = ready!(self.poll_discard(context));
            return Poll::Ready(End::Closed);
        }
        Poll::Pending
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let connection = self.get_mut();
        if ready!(connection.poll_end(context)) == End::Lost {
            connection.seat.floor.figures.lost.increment(1);
        }
        Poll::Ready(())
    }
}

/// Who broke the protocol waits up to this long before coming back: it may do so again.
const FAULT_RETRY_MS: u64 = 5_000;

/// The Close that an error asks for; `None` when nobody is there to read it.
fn goodbye_for(error: &Error) -> Option<Goodbye> {
    let fault = |code: u16, word: &str| Goodbye {
        code,
        reason: CloseReason::retry(word, FAULT_RETRY_MS / 2 + jitter(FAULT_RETRY_MS / 2)).to_text(),
    };
    match error {
        Error::Capacity(_) => Some(Goodbye {
            code: CloseCode::TooLarge.number(),
            reason: CloseReason {
                code: Some("too_large".to_owned()),
                ..CloseReason::default()
            }
            .to_text(),
        }),
        // RFC 6455 section 7.4.1: 1007 for text that is not UTF-8, 1002 for what breaks the protocol.
        Error::Utf8(_) => Some(fault(1007, "not_utf8")),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => Some(fault(1002, "protocol")),
        _ => None,
    }
}

fn end_of(error: &Error) -> End {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => End::Closed,
        // The client's Close came while something was still to be written.
        Error::Protocol(ProtocolError::SendAfterClosing) => End::Closed,
        _ => End::Lost,
    }
}

/// Runs a connection in a task of its own.
pub(crate) fn spawn(socket: WebSocketStream<TcpStream>, seat: Seat) {
    let connection = Connection::new(socket, seat);
    tokio::spawn(connection);
}

/// Sends one text frame and a Close on a socket that is not going to be a connection, and waits
/// for the client's Close for a while. The Close is sent once: a second one makes browsers report 1006.
pub(crate) async fn say_and_close(
    socket: WebSocketStream<TcpStream>,
    text: Option<String>,
    goodbye: Goodbye,
) {
    use futures_util::{SinkExt as _, StreamExt as _};
    let mut socket = socket;
    let talk = async {
        if let Some(text) = text {
            socket.send(Message::text(text)).await?;
        }
        let close = CloseFrame {
            code: WireCode::from(goodbye.code),
            reason: Utf8Bytes::from(goodbye.reason),
        };
        socket.send(Message::Close(Some(close))).await?;
        while let Some(message) = socket.next().await {
            message?;
        }
        Ok::<(), Error>(())
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), talk).await;
}
