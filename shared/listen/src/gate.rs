//! A stream of WebSocket frames, of which [`Frames`] lets through what may come.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frames::{Breach, FrameLimits, Frames, MAX_INPUT, OVERHEAD, Unfinished};

/// Where less than this fits, what is read is kept here and handed out bit by bit.
const SMALL: usize = 256;

/// A client's stream: what is read went through [`Frames`], what is written goes as it is.
#[derive(Debug)]
pub struct Gate<S> {
    stream: S,
    frames: Frames,
    began: Instant,
    /// What came before the gate stood here; taken in first.
    early: Vec<u8>,
    /// What was let through and found no room.
    kept: Vec<u8>,
    breach: Option<Breach>,
}

impl<S> Gate<S> {
    /// A gate before `stream`, of which `early` was read already.
    pub fn new(stream: S, early: Vec<u8>, limits: FrameLimits) -> Self {
        Self {
            stream,
            frames: Frames::new(limits),
            began: Instant::now(),
            early,
            kept: Vec::new(),
            breach: None,
        }
    }

    /// The message that has begun and not ended.
    #[must_use]
    pub const fn unfinished(&self) -> Option<Unfinished> {
        self.frames.unfinished()
    }

    /// Why nothing comes any more.
    #[must_use]
    pub const fn breach(&self) -> Option<Breach> {
        self.breach
    }

    /// The stream alone.
    pub fn into_inner(self) -> S {
        self.stream
    }

    fn pass(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<usize> {
        let now_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.frames.pass(input, output, now_us).map_err(|breach| {
            self.breach = Some(breach);
            io::Error::new(io::ErrorKind::InvalidData, breach)
        })
    }
}

impl<S: AsyncRead + Unpin> Gate<S> {
    /// What came next, at most `room` bytes; empty at the end of the stream.
    fn poll_input<'b>(
        &mut self,
        context: &mut Context<'_>,
        bytes: &'b mut [u8],
    ) -> Poll<io::Result<&'b [u8]>> {
        if !self.early.is_empty() {
            let taken = bytes.len().min(self.early.len());
            bytes[..taken].copy_from_slice(&self.early[..taken]);
            self.early.drain(..taken);
            if self.early.is_empty() {
                self.early = Vec::new();
            }
            return Poll::Ready(Ok(&bytes[..taken]));
        }
        let mut read = ReadBuf::new(bytes);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        let length = read.filled().len();
        Poll::Ready(Ok(&bytes[..length]))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        // A head that has only begun lets nothing through, and an empty answer would mean the end.
        loop {
            if !gate.kept.is_empty() {
                let given = buffer.remaining().min(gate.kept.len());
                buffer.put_slice(&gate.kept[..given]);
                gate.kept.drain(..given);
                if gate.kept.is_empty() {
                    gate.kept = Vec::new();
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(breach) = gate.breach {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, breach)));
            }
            let mut scratch = [0; MAX_INPUT];
            let room = buffer.remaining().saturating_sub(OVERHEAD);
            if room >= OVERHEAD {
                let input = ready!(gate.poll_input(context, &mut scratch[..room.min(MAX_INPUT)]))?;
                if input.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let passed = gate.pass(input, buffer.initialize_unfilled())?;
                buffer.advance(passed);
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let input = ready!(gate.poll_input(context, &mut scratch[..SMALL]))?;
                if input.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let mut kept = vec![0; input.len() + OVERHEAD];
                let passed = gate.pass(input, &mut kept)?;
                kept.truncate(passed);
                gate.kept = kept;
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
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
    use tokio::io::AsyncReadExt as _;

    /// A masked binary message of `length` bytes, in one frame.
    fn message(length: u16) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        let mut bytes = vec![0x82, 0xfe, high, low, 0, 0, 0, 0];
        bytes.resize(8 + usize::from(length), b'x');
        bytes
    }

    #[tokio::test]
    async fn all_comes_through_whatever_room_the_reader_has() {
        for room in [1, 10, OVERHEAD, 2 * OVERHEAD, 100, 5_000] {
            let sent = message(10_000);
            let (early, late) = sent.split_at(3);
            let mut gate = Gate::new(late, early.to_vec(), FrameLimits::of_messages(10_000));
            let (mut all, mut some) = (Vec::new(), vec![0; room]);
            loop {
                match gate.read(&mut some).await.unwrap() {
                    0 => break,
                    read => all.extend_from_slice(&some[..read]),
                }
            }
            // Three pieces, with a head each.
            assert_eq!((all.len(), gate.unfinished()), (10_000 + 3 * 8, None), "{room}");
        }
    }

    #[tokio::test]
    async fn a_breach_is_the_end() {
        let sent = message(10_000);
        let mut gate = Gate::new(&sent[..], Vec::new(), FrameLimits::of_messages(9_999));
        for _ in 0..2 {
            let error = gate.read(&mut [0; 100]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(gate.breach(), Some(Breach::TooLarge));
    }
}
