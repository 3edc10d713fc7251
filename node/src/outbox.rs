//! What waits to be written to one connection.
//!
//! Not a channel: a channel allocates its first block for every idle connection, counts messages
//! and not bytes, and cannot be emptied from outside when the reader is too slow. This one takes no
//! heap until something waits, and holds the connection's last signs of life for the sweeper.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
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
/// Pings without a word that end a connection.
const MISSES: u32 = 2;
/// No time on the coarse clock that a message begins at.
const NO_MESSAGE: u32 = u32::MAX;

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
    /// When the message began that it has not finished; [`NO_MESSAGE`] without one.
    message_since: AtomicU32,
    /// Whether it was told to move.
    told: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    frames: VecDeque<Message>,
    bytes: usize,
    ping: bool,
    pinged: u32,
    retires_at: Option<u32>,
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
        mood: Mood,
    },
    /// Drop the socket.
    Dead(EndedBy),
}

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Go on.
    Well,
    /// Send the Close, and listen no more.
    Failing,
    /// Drop the socket.
    Dead,
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
    /// A message took too long: to be failed.
    Unfinished,
    /// Another connection has its place: to be closed.
    Retired,
}

impl Outbox {
    pub(crate) fn new(id: ConnectionId, speaks: Speaks, now: u32) -> Self {
        Self {
            id,
            speaks,
            heard: AtomicU32::new(now),
            message_since: AtomicU32::new(NO_MESSAGE),
            told: AtomicBool::new(false),
            waiting: Mutex::new(Waiting {
                frames: VecDeque::new(),
                bytes: 0,
                ping: false,
                pinged: now,
                retires_at: None,
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

    /// Asks for a Close at once, and that the client is listened to no more: what it sent is dropped.
    pub(crate) fn fail(&self, goodbye: Goodbye, now: u32) {
        let mut waiting = self.waiting.lock();
        if matches!(waiting.phase, Phase::Open) {
            waiting.frames = VecDeque::new();
            waiting.bytes = 0;
            waiting.ping = false;
            waiting.close(goodbye, now, EndedBy::Client);
        }
        if let Phase::Closing { mood, .. } = &mut waiting.phase {
            *mood = Mood::Failing;
        }
        waiting.wake();
    }

    /// Another connection has taken this one's place: it is closed at `at`, when its client has had the
    /// time to do so.
    pub(crate) fn retire_at(&self, at: u32) {
        self.waiting.lock().retires_at = Some(at);
    }

    /// The client began a message that it has not finished.
    pub(crate) fn message_began(&self, now: u32) {
        self.message_since
            .store(now.min(NO_MESSAGE - 1), Ordering::Relaxed);
    }

    /// It finished it.
    pub(crate) fn message_ended(&self) {
        self.message_since.store(NO_MESSAGE, Ordering::Relaxed);
    }

    /// Drops the socket without a word.
    pub(crate) fn kill(&self) {
        let mut waiting = self.waiting.lock();
        waiting.phase = Phase::Dead(waiting.ended_by());
        waiting.frames = VecDeque::new();
        waiting.wake();
    }

    /// Notes who is to be woken, and says what is to be done.
    pub(crate) fn listen(&self, waker: &Waker) -> Mood {
        let mut waiting = self.waiting.lock();
        match &mut waiting.waker {
            Some(known) if known.will_wake(waker) => {}
            other => *other = Some(waker.clone()),
        }
        match waiting.phase {
            Phase::Dead(_) => Mood::Dead,
            Phase::Closing { mood, .. } => mood,
            Phase::Open => Mood::Well,
        }
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
    }

    /// Milliseconds since the client was heard.
    pub(crate) fn silent_ms(&self, now: u32) -> u32 {
        elapsed(now, self.heard.load(Ordering::Relaxed))
    }

    /// Pings each `ping_ms`, whatever the client sends: some watch for it. Ends a connection that was
    /// silent over [`MISSES`] pings or did not manage to close in time, and tells of one that has to go.
    pub(crate) fn sweep(&self, now: u32, ping_ms: u32, message_ms: u32) -> Swept {
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
        let ping_ms = ping_ms.max(1);
        if elapsed(now, self.heard.load(Ordering::Relaxed)) / ping_ms > MISSES {
            drop(waiting);
            self.kill();
            return Swept::Silent;
        }
        let message_since = self.message_since.load(Ordering::Relaxed);
        if message_since != NO_MESSAGE && elapsed(now, message_since) >= message_ms {
            return Swept::Unfinished;
        }
        if waiting
            .retires_at
            .is_some_and(|at| elapsed(now, at) > 0 || now == at)
        {
            return Swept::Retired;
        }
        if elapsed(now, waiting.pinged) >= ping_ms {
            waiting.pinged = now;
            waiting.ping = true;
            waiting.wake();
        }
        Swept::Fine
    }

    /// Notes whether it was told to move.
    pub(crate) fn set_told(&self, told: bool) {
        self.told.store(told, Ordering::Relaxed);
    }

    /// Whether it is there and was not told to go yet.
    pub(crate) fn stays(&self) -> bool {
        !self.told.load(Ordering::Relaxed) && self.is_open()
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

impl Waiting {
    fn close(&mut self, goodbye: Goodbye, now: u32, by: EndedBy) {
        self.phase = Phase::Closing {
            goodbye: Some(Box::new(goodbye)),
            since: now,
            by,
            mood: Mood::Well,
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

    /// What a sweep finds, and whether a ping is due.
    fn pings(outbox: &Outbox, now: u32) -> (Swept, bool) {
        let swept = outbox.sweep(now, 20_000, 60_000);
        (swept, matches!(outbox.take(), Next::Frame(Message::Ping(_))))
    }

    #[test]
    fn an_idle_connection_is_pinged_twice_and_then_ended() {
        let outbox = outbox();
        assert_eq!(pings(&outbox, 20_999), (Swept::Fine, false));
        assert_eq!(pings(&outbox, 21_000), (Swept::Fine, true));
        assert_eq!(pings(&outbox, 22_000), (Swept::Fine, false));
        assert_eq!(pings(&outbox, 41_000), (Swept::Fine, true));
        assert_eq!(pings(&outbox, 60_999), (Swept::Fine, false));
        assert_eq!(pings(&outbox, 61_000), (Swept::Silent, false));
        assert_eq!(outbox.listen(Waker::noop()), Mood::Dead);
    }

    #[test]
    fn a_client_that_speaks_is_pinged_on_time_too() {
        let outbox = outbox();
        let mut count = 0;
        for now in (1_000..=121_000).step_by(500) {
            outbox.heard(now);
            count += u32::from(pings(&outbox, now).1);
        }
        assert_eq!(count, 6);
    }

    #[test]
    fn a_message_has_to_end_in_time() {
        let outbox = outbox();
        let swept = |now| {
            outbox.heard(now);
            outbox.sweep(now, 20_000, 60_000)
        };
        outbox.message_began(2_000);
        assert_eq!(swept(61_999), Swept::Fine);
        outbox.message_ended();
        assert_eq!(swept(62_000), Swept::Fine);
        outbox.message_began(63_000);
        assert_eq!(swept(123_000), Swept::Unfinished);
        outbox.push(Message::text("stale"), 100, 0);
        outbox.fail(goodbye(), 123_000);
        assert_eq!(outbox.listen(Waker::noop()), Mood::Failing);
        assert!(matches!(outbox.take(), Next::Close(_)));
    }

    #[test]
    fn whoever_was_replaced_goes_in_a_while_if_it_is_still_there() {
        let outbox = outbox();
        outbox.retire_at(6_000);
        assert_eq!(outbox.sweep(5_999, 20_000, 60_000), Swept::Fine);
        assert_eq!(outbox.sweep(6_000, 20_000, 60_000), Swept::Retired);
    }

    #[test]
    fn a_close_that_does_not_get_through_is_cut() {
        let outbox = outbox();
        outbox.close(goodbye(), u32::MAX - 1_000, EndedBy::Deadline);
        assert_eq!(outbox.sweep(0, 20_000, 60_000), Swept::Fine);
        assert_eq!(outbox.sweep(CLOSE_MS, 20_000, 60_000), Swept::Stuck);
        assert_eq!(outbox.ended_by(), EndedBy::Deadline);
    }
}
