//! What waits to be written to one connection.
//!
//! Not a channel: a channel allocates its first block for every idle connection, counts messages
//! and not bytes, and cannot be emptied from outside when the reader is too slow. This one takes no
//! heap until something waits, and holds the connection's last signs of life for the sweeper.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::task::Waker;
use tokio_tungstenite::tungstenite::Message;
use usher_shared::frame::{CloseCode, CloseReason};
use usher_shared::id::ConnectionId;
use usher_shared::link::EndedBy;

/// The most frames that wait, whatever their size: a queue of empty frames is a slow reader too.
const MAX_FRAMES: usize = 4_096;
/// A queue that was longer gives its memory back when it is empty.
const KEPT_FRAMES: usize = 16;
/// How long a Close may take, from asking for it to the end of the socket.
const CLOSE_MS: u32 = 5_000;
/// Pings without an answer that end a connection.
const MISSES: u32 = 2;

/// What a client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Its own frames only.
    Plain,
    /// Control frames, too.
    Usher,
}

/// What waits to be written to one connection.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) id: ConnectionId,
    pub(crate) speaks: Speaks,
    /// When the client was last heard, on the coarse clock.
    heard: AtomicU32,
    /// Pings sent since then.
    pinged: AtomicU8,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    frames: VecDeque<Message>,
    bytes: usize,
    ping: bool,
    phase: Phase,
    waker: Option<Waker>,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// A Close goes out once the queue is empty; `None` once it was taken.
    Closing {
        goodbye: Option<Box<Goodbye>>,
        since: u32,
        by: EndedBy,
    },
    /// Drop the socket.
    Dead(EndedBy),
}

/// How a connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Goodbye {
    pub(crate) code: u16,
    pub(crate) reason: String,
}

impl Goodbye {
    pub(crate) fn new(code: CloseCode, reason: &CloseReason) -> Self {
        Self {
            code: code.number(),
            reason: reason.to_text(),
        }
    }

    /// A goodbye that asks the client to come back through the broker after `retry_ms`.
    pub(crate) fn retry(code: CloseCode, word: &str, retry_ms: u64) -> Self {
        Self::new(code, &CloseReason::retry(word, retry_ms))
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It waits.
    Queued,
    /// The connection is being closed.
    Closing,
    /// It was one too many: the queue was dropped, and the connection is being closed.
    TooSlow,
}

/// What to write next.
#[derive(Debug)]
pub(crate) enum Next {
    Frame(Message),
    Close(Box<Goodbye>),
    Nothing,
}

/// What a sweep found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    Fine,
    Silent,
    Stuck,
}

impl Outbox {
    pub(crate) fn new(id: ConnectionId, speaks: Speaks, now: u32) -> Self {
        Self {
            id,
            speaks,
            heard: AtomicU32::new(now),
            pinged: AtomicU8::new(0),
            waiting: Mutex::new(Waiting {
                frames: VecDeque::new(),
                bytes: 0,
                ping: false,
                phase: Phase::Open,
                waker: None,
            }),
        }
    }

    /// Lets a frame wait, within `queue_bytes`.
    pub(crate) fn push(&self, frame: Message, queue_bytes: usize, now: u32) -> Pushed {
        let mut waiting = self.waiting.lock();
        if !matches!(waiting.phase, Phase::Open) {
            return Pushed::Closing;
        }
        let bytes = waiting.bytes + frame.len();
        if bytes > queue_bytes || waiting.frames.len() >= MAX_FRAMES {
            waiting.frames = VecDeque::new();
            waiting.bytes = 0;
            // Jittered by the id: slow readers of one chatty team fall together.
            let goodbye = Goodbye::retry(CloseCode::TooSlow, "too_slow", 500 + self.spread() % 1_000);
            waiting.close(goodbye, now, EndedBy::Client);
            return Pushed::TooSlow;
        }
        waiting.frames.push_back(frame);
        waiting.bytes = bytes;
        waiting.wake();
        Pushed::Queued
    }

    /// Asks for a Close after what waits. The first one counts.
    pub(crate) fn close(&self, goodbye: Goodbye, now: u32, by: EndedBy) {
        let mut waiting = self.waiting.lock();
        if matches!(waiting.phase, Phase::Open) {
            waiting.close(goodbye, now, by);
        }
    }

    /// The same, without what waits: it is stale to whoever has another owner by then.
    pub(crate) fn close_at_once(&self, goodbye: Goodbye, now: u32, by: EndedBy) {
        let mut waiting = self.waiting.lock();
        waiting.frames = VecDeque::new();
        waiting.bytes = 0;
        if matches!(waiting.phase, Phase::Open) {
            waiting.close(goodbye, now, by);
        }
    }

    /// Drops the socket without a word.
    pub(crate) fn kill(&self) {
        let mut waiting = self.waiting.lock();
        waiting.phase = Phase::Dead(waiting.ended_by());
        waiting.frames = VecDeque::new();
        waiting.wake();
    }

    /// Notes who is to be woken; `Err` when the socket is to be dropped.
    pub(crate) fn listen(&self, waker: &Waker) -> Result<(), Dead> {
        let mut waiting = self.waiting.lock();
        if matches!(waiting.phase, Phase::Dead(_)) {
            return Err(Dead);
        }
        match &mut waiting.waker {
            Some(known) if known.will_wake(waker) => {}
            other => *other = Some(waker.clone()),
        }
        Ok(())
    }

    /// What to write next.
    pub(crate) fn take(&self) -> Next {
        let mut waiting = self.waiting.lock();
        if waiting.ping {
            waiting.ping = false;
            return Next::Frame(Message::Ping(bytes::Bytes::new()));
        }
        if let Some(frame) = waiting.frames.pop_front() {
            waiting.bytes -= frame.len();
            if waiting.frames.is_empty() && waiting.frames.capacity() > KEPT_FRAMES {
                waiting.frames = VecDeque::new();
            }
            return Next::Frame(frame);
        }
        match &mut waiting.phase {
            Phase::Closing { goodbye, .. } => goodbye.take().map_or(Next::Nothing, Next::Close),
            _ => Next::Nothing,
        }
    }

    /// The client was heard.
    pub(crate) fn heard(&self, now: u32) {
        self.heard.store(now, Ordering::Relaxed);
        if self.pinged.load(Ordering::Relaxed) != 0 {
            self.pinged.store(0, Ordering::Relaxed);
        }
    }

    /// Milliseconds since the client was heard.
    pub(crate) fn silent_ms(&self, now: u32) -> u32 {
        elapsed(now, self.heard.load(Ordering::Relaxed))
    }

    /// Pings a connection that was idle for `ping_ms`, and ends one that missed [`MISSES`] of them
    /// or did not manage to close in time.
    pub(crate) fn sweep(&self, now: u32, ping_ms: u32) -> Swept {
        let mut waiting = self.waiting.lock();
        match waiting.phase {
            Phase::Dead(_) => return Swept::Fine,
            Phase::Closing { since, .. } => {
                if elapsed(now, since) < CLOSE_MS {
                    return Swept::Fine;
                }
                drop(waiting);
                self.kill();
                return Swept::Stuck;
            }
            Phase::Open => {}
        }
        let due = elapsed(now, self.heard.load(Ordering::Relaxed)) / ping_ms.max(1);
        if due > MISSES {
            drop(waiting);
            self.kill();
            return Swept::Silent;
        }
        if due > u32::from(self.pinged.load(Ordering::Relaxed)) {
            self.pinged
                .store(u8::try_from(due).unwrap_or(u8::MAX), Ordering::Relaxed);
            waiting.ping = true;
            waiting.wake();
        }
        Swept::Fine
    }

    /// Whether nobody has asked for its end yet.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.waiting.lock().phase, Phase::Open)
    }

    /// Who ended the connection, once it has ended.
    pub(crate) fn ended_by(&self) -> EndedBy {
        self.waiting.lock().ended_by()
    }

    fn spread(&self) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        self.id.hash(&mut hasher);
        hasher.finish()
    }
}

/// The socket is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dead;

impl Waiting {
    fn close(&mut self, goodbye: Goodbye, now: u32, by: EndedBy) {
        self.phase = Phase::Closing {
            goodbye: Some(Box::new(goodbye)),
            since: now,
            by,
        };
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn ended_by(&self) -> EndedBy {
        match self.phase {
            Phase::Open => EndedBy::Client,
            Phase::Closing { by, .. } | Phase::Dead(by) => by,
        }
    }
}

/// Milliseconds on the coarse clock, which wraps after 49 days; nothing waits that long.
pub(crate) fn elapsed(now: u32, since: u32) -> u32 {
    let elapsed = now.wrapping_sub(since);
    // A writer may have read a later tick than the sweeper.
    if elapsed > u32::MAX / 2 { 0 } else { elapsed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::id::Incarnation;

    fn outbox() -> Outbox {
        Outbox::new(
            ConnectionId::new(Incarnation::from_bits(0), 1),
            Speaks::Plain,
            1_000,
        )
    }

    fn goodbye() -> Goodbye {
        Goodbye::retry(CloseCode::Restart, "drain", 0)
    }

    fn text(next: Next) -> Option<String> {
        match next {
            Next::Frame(Message::Text(text)) => Some(text.to_string()),
            _ => None,
        }
    }

    #[test]
    fn frames_come_out_in_order_and_the_close_comes_last() {
        let outbox = outbox();
        assert_eq!(outbox.push(Message::text("a"), 100, 0), Pushed::Queued);
        assert_eq!(outbox.push(Message::text("b"), 100, 0), Pushed::Queued);
        outbox.close(goodbye(), 0, EndedBy::Slot);
        assert_eq!(outbox.push(Message::text("c"), 100, 0), Pushed::Closing);
        assert_eq!(text(outbox.take()).as_deref(), Some("a"));
        assert_eq!(text(outbox.take()).as_deref(), Some("b"));
        assert!(matches!(outbox.take(), Next::Close(close) if close.code == 4312));
        assert!(matches!(outbox.take(), Next::Nothing));
        assert_eq!(outbox.ended_by(), EndedBy::Slot);
    }

    #[test]
    fn a_reader_that_falls_behind_loses_its_queue_and_is_closed() {
        let outbox = outbox();
        assert_eq!(outbox.push(Message::text("12345"), 9, 0), Pushed::Queued);
        assert_eq!(outbox.push(Message::text("12345"), 9, 0), Pushed::TooSlow);
        assert!(matches!(outbox.take(), Next::Close(close) if close.code == 4308));
    }

    #[test]
    fn a_queue_of_tiny_frames_is_bounded_too() {
        let outbox = outbox();
        let pushed = (0..=MAX_FRAMES).map(|_| outbox.push(Message::text(""), 1 << 20, 0));
        assert_eq!(pushed.last(), Some(Pushed::TooSlow));
    }

    #[test]
    fn an_idle_connection_is_pinged_twice_and_then_ended() {
        let outbox = outbox();
        let pings = |now| {
            let swept = outbox.sweep(now, 20_000);
            (swept, matches!(outbox.take(), Next::Frame(Message::Ping(_))))
        };
        assert_eq!(pings(20_999), (Swept::Fine, false));
        assert_eq!(pings(21_000), (Swept::Fine, true));
        assert_eq!(pings(22_000), (Swept::Fine, false));
        outbox.heard(30_000);
        assert_eq!(pings(41_000), (Swept::Fine, false));
        assert_eq!(pings(50_000), (Swept::Fine, true));
        assert_eq!(pings(70_000), (Swept::Fine, true));
        assert_eq!(pings(90_000), (Swept::Silent, false));
        assert_eq!(outbox.listen(Waker::noop()), Err(Dead));
    }

    #[test]
    fn a_close_that_does_not_get_through_is_cut() {
        let outbox = outbox();
        outbox.close(goodbye(), u32::MAX - 1_000, EndedBy::Deadline);
        assert_eq!(outbox.sweep(0, 20_000), Swept::Fine);
        assert_eq!(outbox.sweep(CLOSE_MS, 20_000), Swept::Stuck);
        assert_eq!(outbox.ended_by(), EndedBy::Deadline);
    }
}
