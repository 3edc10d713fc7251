//! What of a client's WebSocket frames is let through. No sockets, no clock: bytes and a time go in,
//! and the same frames come out, large ones in pieces.
//!
//! The WebSocket library behind this holds a frame until it is whole, twice while it is part of a
//! message, counts neither frames nor bytes, and takes a length in more bytes than it needs. Here each
//! frame's head is read as it passes: what breaks a bound ends the connection before it is held, and
//! what is long is passed on in pieces (RFC 6455 section 5.4 lets anybody on the way do so).

/// The longest piece of a frame. Divisible by four, so that each piece begins with the mask's first byte.
const PIECE: u64 = 4_096;
/// A frame's head is 2 bytes, up to 8 of length, and 4 of mask.
const HEAD: usize = 14;
/// By how much what comes out of [`Frames::pass`] may be longer than what went in, for inputs up to
/// [`MAX_INPUT`]: a head that was kept from before, and the head of a next piece.
pub const OVERHEAD: usize = 2 * HEAD;
/// The most that may go in at once.
pub const MAX_INPUT: usize = 2_048;
/// So many seconds' worth of a rate may come at once: clients send in bursts.
const BURST_S: u64 = 10;

const MICROS: u64 = 1_000_000;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const CLOSE: u8 = 8;

/// What a client's frames may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// The largest message.
    pub message_bytes: usize,
    /// How much may come.
    pub rates: Option<Rates>,
}

/// How much may come in a second, on average: ten times as much may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Frames of messages, fragments counted one by one.
    pub frames_per_s: u32,
    /// Pings, pongs and closes.
    pub controls_per_s: u32,
    /// Bytes, heads included.
    pub bytes_per_s: u32,
}

impl FrameLimits {
    /// Messages of so many bytes, at any rate.
    #[must_use]
    pub const fn of_messages(message_bytes: usize) -> Self {
        Self {
            message_bytes,
            rates: None,
        }
    }
}

/// Why a client is not listened to any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// It is not what RFC 6455 lets a client send.
    #[error("the frames break RFC 6455")]
    Protocol,
    /// The message is larger than one may be.
    #[error("the message is too large")]
    TooLarge,
    /// More than one of the rates.
    #[error("too many {} in a short time", .0.word())]
    TooFast(Rate),
}

/// A rate that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Frames of messages.
    Frames,
    /// Pings, pongs and closes.
    Controls,
    /// Bytes.
    Bytes,
}

impl Rate {
    /// For metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Controls => "controls",
            Self::Bytes => "bytes",
        }
    }
}

/// A message that has begun and not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Which one, counted by the connection.
    pub number: u32,
    /// What of it has come.
    pub bytes: u64,
}

/// The frames of one connection.
#[derive(Debug)]
pub struct Frames {
    limits: FrameLimits,
    head: [u8; HEAD],
    /// How much of the head has come.
    have: u8,
    frame: Option<Passing>,
    /// The message that has begun.
    message: Option<Unfinished>,
    /// What the frames of that message announced.
    announced: u64,
    messages: u32,
    /// When each rate has caught up, in microseconds.
    caught_up_us: [u64; 3],
}

/// A frame whose payload is passing.
#[derive(Clone, Copy, Debug)]
struct Passing {
    first: u8,
    mask: Option<[u8; 4]>,
    left: u64,
    /// What is left of the piece that was begun.
    piece_left: u64,
    /// The close code's bytes, as they come.
    code: [u8; 2],
    seen: u64,
}

impl Passing {
    fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    fn is_control(&self) -> bool {
        self.opcode() >= CLOSE
    }
}

impl Frames {
    /// Nothing has come yet.
    #[must_use]
    pub const fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            head: [0; HEAD],
            have: 0,
            frame: None,
            message: None,
            announced: 0,
            messages: 0,
            caught_up_us: [0; 3],
        }
    }

    /// The message that has begun and not ended.
    #[must_use]
    pub const fn unfinished(&self) -> Option<Unfinished> {
        self.message
    }

    /// Takes `input`, which came at `now_us`, and writes to `output` what is let through. Returns its
    /// length: at most that of the input and [`OVERHEAD`], which `output` must have room for.
    ///
    /// # Errors
    /// [`Breach`] with the first bound that was broken; nothing may be passed on any more.
    pub fn pass(&mut self, mut input: &[u8], output: &mut [u8], now_us: u64) -> Result<usize, Breach> {
        debug_assert!(input.len() <= MAX_INPUT && output.len() >= input.len() + OVERHEAD);
        self.spend(Rate::Bytes, input.len() as u64, now_us)?;
        let mut out = Output { bytes: output, at: 0 };
        while !input.is_empty() {
            let Some(mut frame) = self.frame else {
                input = self.read_head(input, &mut out, now_us)?;
                continue;
            };
            if frame.piece_left == 0 {
                begin_piece(&mut frame, &mut out);
            }
            let most = usize::try_from(frame.piece_left).unwrap_or(usize::MAX);
            let (payload, rest) = input.split_at(most.min(input.len()));
            input = rest;
            out.put(payload);
            frame.see(payload)?;
            let length = payload.len() as u64;
            frame.left -= length;
            frame.piece_left -= length;
            if let Some(message) = self.message.as_mut().filter(|_| !frame.is_control()) {
                message.bytes += length;
            }
            self.frame = Some(frame);
            self.end_if_whole();
        }
        Ok(out.at)
    }

    /// Takes what of a head is there.
    fn read_head<'i>(
        &mut self,
        input: &'i [u8],
        out: &mut Output<'_>,
        now_us: u64,
    ) -> Result<&'i [u8], Breach> {
        let mut have = usize::from(self.have);
        let mut rest = input;
        while have < 2 || have < head_length(self.head[1]) {
            let Some((byte, more)) = rest.split_first() else {
                // Less than 14.
                #[allow(clippy::cast_possible_truncation)]
                {
                    self.have = have as u8;
                }
                return Ok(rest);
            };
            self.head[have] = *byte;
            have += 1;
            rest = more;
        }
        self.have = 0;
        let head = self.head;
        let mut frame = parse(&head)?;
        self.check(&frame, now_us)?;
        if frame.left > PIECE {
            begin_piece(&mut frame, out);
        } else {
            frame.piece_left = frame.left;
            out.put(&head[..have]);
        }
        self.frame = Some(frame);
        self.end_if_whole();
        Ok(rest)
    }

    /// Whether the frame may come, and what it does to the message.
    fn check(&mut self, frame: &Passing, now_us: u64) -> Result<(), Breach> {
        if frame.is_control() {
            if frame.left > 125 || frame.first & FIN == 0 || (frame.opcode() == CLOSE && frame.left == 1) {
                return Err(Breach::Protocol);
            }
            return self.spend(Rate::Controls, 1, now_us);
        }
        let begins = frame.opcode() != CONTINUATION;
        if begins == self.message.is_some() {
            return Err(Breach::Protocol);
        }
        if begins {
            self.messages = self.messages.wrapping_add(1);
            self.announced = 0;
            self.message = Some(Unfinished {
                number: self.messages,
                bytes: 0,
            });
        }
        self.announced = self.announced.saturating_add(frame.left);
        if self.announced > self.limits.message_bytes as u64 {
            return Err(Breach::TooLarge);
        }
        self.spend(Rate::Frames, 1, now_us)
    }

    fn end_if_whole(&mut self) {
        let Some(frame) = self.frame.filter(|frame| frame.left == 0) else {
            return;
        };
        if !frame.is_control() && frame.first & FIN != 0 {
            self.message = None;
        }
        self.frame = None;
    }

    /// A rate as a debt that time pays off: what comes adds to it, and it may never be more than a burst.
    fn spend(&mut self, rate: Rate, amount: u64, now_us: u64) -> Result<(), Breach> {
        let Some(rates) = self.limits.rates else {
            return Ok(());
        };
        let per_s = match rate {
            Rate::Frames => rates.frames_per_s,
            Rate::Controls => rates.controls_per_s,
            Rate::Bytes => rates.bytes_per_s,
        };
        let caught_up_us = &mut self.caught_up_us[rate as usize];
        let costs_us = amount.saturating_mul(MICROS) / u64::from(per_s.max(1));
        let then_us = (*caught_up_us).max(now_us).saturating_add(costs_us);
        if then_us > now_us.saturating_add(BURST_S * MICROS) {
            return Err(Breach::TooFast(rate));
        }
        *caught_up_us = then_us;
        Ok(())
    }
}

impl Passing {
    /// Looks at what passes: a close code that nobody may send is answered here, since the library's
    /// own answer is not in our words.
    fn see(&mut self, payload: &[u8]) -> Result<(), Breach> {
        if self.opcode() != CLOSE {
            return Ok(());
        }
        let before = self.seen;
        for (byte, at) in payload.iter().zip(before..2) {
            let at = usize::try_from(at).unwrap_or_default();
            self.code[at] = byte ^ self.mask.map_or(0, |mask| mask[at]);
        }
        self.seen += payload.len() as u64;
        let is_known = before < 2 && self.seen >= 2;
        if is_known && !may_be_sent(u16::from_be_bytes(self.code)) {
            return Err(Breach::Protocol);
        }
        Ok(())
    }
}

/// RFC 6455 section 7.4 and the IANA registry: 1004 to 1006 and 1015 never stand in a frame.
const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// The length of a head whose second byte this is.
const fn head_length(second: u8) -> usize {
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & MASKED == 0 { 0 } else { 4 };
    2 + length + mask
}

fn parse(head: &[u8; HEAD]) -> Result<Passing, Breach> {
    let masked = head[1] & MASKED != 0;
    let [_, second, a, b, c, d, e, f, g, h, ..] = *head;
    let (length, at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes([a, b])), 4),
        127 => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 10),
        short => (u64::from(short), 2),
    };
    // RFC 6455 section 5.2: the least number of bytes must be used, and the first bit is 0.
    let least = match at {
        4 => 126..=0xffff,
        10 => 0x1_0000..=i64::MAX as u64,
        _ => 0..=125,
    };
    if !least.contains(&length) {
        return Err(Breach::Protocol);
    }
    let mask = masked.then(|| [head[at], head[at + 1], head[at + 2], head[at + 3]]);
    Ok(Passing {
        first: head[0],
        mask,
        left: length,
        piece_left: 0,
        code: [0; 2],
        seen: 0,
    })
}

/// Writes the head of the next piece of a long frame.
fn begin_piece(frame: &mut Passing, out: &mut Output<'_>) {
    frame.piece_left = frame.left.min(PIECE);
    let is_last = frame.piece_left == frame.left;
    let first = if is_last { frame.first } else { frame.first & !FIN };
    // The pieces after this one go on with the message; what else the first byte said was said once.
    frame.first = (frame.first & FIN) | CONTINUATION;
    let masked = if frame.mask.is_some() { MASKED } else { 0 };
    #[allow(clippy::cast_possible_truncation)] // At most 4,096.
    let length = frame.piece_left as u16;
    if length < 126 {
        out.put(&[first, masked | length.to_be_bytes()[1]]);
    } else {
        let [high, low] = length.to_be_bytes();
        out.put(&[first, masked | 126, high, low]);
    }
    if let Some(mask) = &frame.mask {
        out.put(mask);
    }
}

struct Output<'o> {
    bytes: &'o mut [u8],
    at: usize,
}

impl Output<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
