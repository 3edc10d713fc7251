//! One WebSocket, from its upgrade to its end: a small future in a task of its own.

use futures_util::{Sink as _, Stream as _};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as WireCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use usher_listen::frames::{Breach, FrameLimits, Rates};
use usher_shared::frame::{CloseCode, CloseReason, Control, Said, pretends_control};
use usher_shared::link::EndedBy;

use crate::config::{Config, Relay};
use crate::floor::{Floor, Seat, jitter};
use crate::handshake::Socket;
use crate::outbox::{Goodbye, Mood, Next, Speaks};
use crate::unfinished::Entry;

/// Frames handled in one go before other tasks get a turn.
const TURN: u32 = 32;

/// When a client that was closed for its own doing may come back, at the earliest.
const RETRY_MS: u64 = 1_000;

/// What a client may send.
pub(crate) fn frame_limits(config: &Config) -> FrameLimits {
    FrameLimits {
        message_bytes: config.message_bytes,
        rates: Some(Rates {
            frames_per_s: config.frames_per_s,
            controls_per_s: config.controls_per_s,
            bytes_per_s: config.bytes_per_s,
        }),
    }
}

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
    stage: Stage,
    talk: Talk,
}

/// What a connection is beside its socket.
struct Talk {
    seat: Seat,
    /// The message that the sweeper knows to be unfinished.
    message: Option<u32>,
    entry: Entry,
}

enum Stage {
    Talking(Socket),
    /// The client is not listened to any more: the Close is going out.
    Failing(Socket),
    /// The Close is out; what the client still sends is thrown away, because closing a socket with
    /// unread data resets it, and the client would never read the Close. Nothing of what it sent is held.
    Discarding(TcpStream),
    Ended,
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
    pub(crate) fn new(socket: Socket, seat: Seat) -> Self {
        Self {
            stage: Stage::Talking(socket),
            talk: Talk {
                seat,
                message: None,
                entry: None,
            },
        }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<End> {
        loop {
            let mood = self.talk.seat.outbox.listen(context.waker());
            if mood == Mood::Dead {
                return Poll::Ready(End::Closed);
            }
            let done = match &mut self.stage {
                Stage::Talking(_) if mood == Mood::Failing => Ok(()),
                Stage::Talking(socket) => ready!(self.talk.poll_talk(socket, context)),
                Stage::Failing(socket) => ready!(self.talk.poll_fail(socket, context)),
                Stage::Discarding(stream) => {
                    let _ = ready!(poll_discard(stream, context));
                    Err(End::Closed)
                }
                Stage::Ended => Err(End::Closed),
            };
            if let Err(end) = done {
                return Poll::Ready(end);
            }
            self.stage = match std::mem::replace(&mut self.stage, Stage::Ended) {
                Stage::Talking(socket) => Stage::Failing(socket),
                Stage::Failing(socket) => {
                    self.talk.forget_unfinished();
                    Stage::Discarding(socket.into_inner().into_inner())
                }
                ended => ended,
            };
        }
    }
}

impl Talk {
    fn poll_write(&self, socket: &mut Socket, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            ready!(Pin::new(&mut *socket).poll_ready(context))?;
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
            Pin::new(&mut *socket).start_send(next)?;
        }
    }

    /// Reads until nothing is there; ready with why there will be nothing more, `None` after a Close.
    fn poll_read(&self, socket: &mut Socket, context: &mut Context<'_>) -> Poll<Option<Error>> {
        for _ in 0..TURN {
            let message = match ready!(Pin::new(&mut *socket).poll_next(context)) {
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
        let speaks_usher = self.seat.outbox.speaks == Speaks::Usher;
        if speaks_usher && let Some(Said::Ping { id }) = Said::from_text(text) {
            return self.tell(&Control::Pong { id });
        }
        floor.figures.pretended.increment(1);
        if speaks_usher {
            self.tell(&Control::Error {
                code: "reserved".to_owned(),
                detail: "a text frame that starts with {\"usher\": is control, and is not relayed".to_owned(),
            });
        }
    }

    fn tell(&self, control: &Control) {
        let floor = &self.seat.floor;
        let frame = Message::text(control.to_text());
        let outbox = &self.seat.outbox;
        let _ = outbox.push(frame, floor.config.queue_bytes, floor.clock.now());
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

    /// Tells the sweeper, and the node, of a message that has begun and not ended.
    fn note_unfinished(&mut self, socket: &Socket) {
        let floor = &self.seat.floor;
        let Some(unfinished) = socket.get_ref().unfinished() else {
            if self.message.take().is_some() {
                self.seat.outbox.message_ended();
                floor.unfinished.forget(&mut self.entry);
            }
            return;
        };
        if self.message != Some(unfinished.number) {
            floor.unfinished.forget(&mut self.entry);
            self.message = Some(unfinished.number);
            self.seat.outbox.message_began(floor.clock.now());
        }
        let in_the_way = floor
            .unfinished
            .note(&mut self.entry, &self.seat.outbox, unfinished.bytes);
        for outbox in in_the_way {
            floor.figures.unfinished_room.increment(1);
            outbox.fail(unfinished_goodbye(), floor.clock.now());
        }
    }

    fn forget_unfinished(&mut self) {
        self.seat.floor.unfinished.forget(&mut self.entry);
    }

    /// Talks until there is nothing to read or to write; ready when there will be nothing more: with
    /// an end, or when a Close was asked for because of what the client sent.
    fn poll_talk(&mut self, socket: &mut Socket, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        if let Poll::Ready(Err(error)) = self.poll_write(socket, context) {
            return Poll::Ready(Err(end_of(&error)));
        }
        let read = self.poll_read(socket, context);
        self.note_unfinished(socket);
        let Some(error) = ready!(read) else {
            return Poll::Ready(Err(End::Closed));
        };
        let goodbye = match socket.get_ref().breach() {
            Some(breach) => Some(goodbye_for_breach(&self.seat.floor, breach)),
            None => goodbye_for(&error),
        };
        let Some(goodbye) = goodbye else {
            return Poll::Ready(Err(end_of(&error)));
        };
        let now = self.seat.floor.clock.now();
        self.seat.outbox.close(goodbye, now, EndedBy::Client);
        Poll::Ready(Ok(()))
    }

    /// Sends the Close and ends the sending side.
    fn poll_fail(&self, socket: &mut Socket, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        if ready!(self.poll_write(socket, context)).is_err() {
            return Poll::Ready(Err(End::Lost));
        }
        let flushed = ready!(Pin::new(&mut *socket).poll_flush(context));
        let shut = ready!(Pin::new(socket.get_mut()).poll_shutdown(context));
        if flushed.is_err() || shut.is_err() {
            return Poll::Ready(Err(End::Closed));
        }
        Poll::Ready(Ok(()))
    }
}

fn poll_discard(stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut scratch = [std::mem::MaybeUninit::uninit(); 2_048];
    loop {
        let mut buffer = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.forget_unfinished();
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let connection = self.get_mut();
        if ready!(connection.poll_end(context)) == End::Lost {
            connection.talk.seat.floor.figures.lost.increment(1);
        }
        Poll::Ready(())
    }
}

/// Who broke the protocol waits up to this long before coming back: it may do so again.
const FAULT_RETRY_MS: u64 = 5_000;

/// What a client is told that began a message and did not end it.
pub(crate) fn unfinished_goodbye() -> Goodbye {
    Goodbye::retry(CloseCode::TooSlow, "unfinished", RETRY_MS + jitter(RETRY_MS))
}

/// The Close for frames that were not let through.
fn goodbye_for_breach(floor: &Floor, breach: Breach) -> Goodbye {
    match breach {
        Breach::TooFast(rate) => {
            floor.figures.too_fast(rate);
            let retry_ms = 5 * RETRY_MS + jitter(5 * RETRY_MS);
            Goodbye::retry(CloseCode::TooFast, "too_fast", retry_ms)
        }
        Breach::TooLarge => too_large(),
        Breach::Protocol => fault(1002, "protocol"),
    }
}

fn too_large() -> Goodbye {
    let reason = CloseReason {
        code: Some("too_large".to_owned()),
        ..CloseReason::default()
    };
    Goodbye::new(CloseCode::TooLarge, &reason)
}

fn fault(code: u16, word: &str) -> Goodbye {
    Goodbye {
        code,
        reason: CloseReason::retry(word, FAULT_RETRY_MS / 2 + jitter(FAULT_RETRY_MS / 2)).to_text(),
    }
}

/// The Close that an error asks for; `None` when nobody is there to read it.
fn goodbye_for(error: &Error) -> Option<Goodbye> {
    match error {
        Error::Capacity(_) => Some(too_large()),
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
pub(crate) fn spawn(socket: Socket, seat: Seat) {
    let connection = Connection::new(socket, seat);
    tokio::spawn(connection);
}

/// Sends one text frame and a Close on a socket that is not going to be a connection, and waits
/// for the client's Close for a while. The Close is sent once: a second one makes browsers report 1006.
pub(crate) async fn say_and_close(socket: Socket, text: Option<String>, goodbye: Goodbye) {
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
