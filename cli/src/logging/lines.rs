//! Lines that a thread of their own writes.
//!
//! Whoever says something must not wait for whoever reads it, nor fall with them: a collector that stands
//! still, a terminal that is gone, a disk that is full. Nothing here blocks its caller, panics or returns
//! an error. What finds no room is dropped and counted. (`tracing-appender` bounds the number of lines and not
//! their bytes, tells nobody in the log that some are missing, and prints by `println!` where its reader hangs.)

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What may wait to be written: some 15,000 lines, more than a broker says in the second of its worst failover.
const QUEUE_BYTES: usize = 2 << 20;
/// How long the thread waits for a pipe that does not block (its reader made it so) and is full.
const FULL_PIPE: Duration = Duration::from_millis(10);

/// Lines on their way to one file, pipe or terminal.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Queue>);

/// What is told of lines that were dropped.
pub(crate) struct Losses {
    /// Called at each loss with how many lines it was.
    pub(crate) count: fn(u64),
    /// Called with how many were lost in a row, once a line was written again.
    pub(crate) tell: fn(u64),
}

struct Queue {
    waiting: Mutex<Waiting>,
    /// Rung when there is something to write, and when everything was.
    changed: Condvar,
    losses: Losses,
}

#[derive(Default)]
struct Waiting {
    /// Whole lines.
    bytes: Vec<u8>,
    /// Whether the thread holds lines that it has taken from here.
    writing: bool,
    /// Lines lost since one was last written.
    lost: u64,
}

impl Lines {
    /// Starts the thread `name`, which writes to a copy of `to`: no lock of the standard library's streams is
    /// held while it waits there.
    pub(crate) fn start(name: &str, to: &impl AsFd, losses: Losses) -> std::io::Result<Self> {
        let to = File::from(to.as_fd().try_clone_to_owned()?);
        Self::onto(name, to, losses)
    }

    fn onto(name: &str, mut to: impl Write + Send + 'static, losses: Losses) -> std::io::Result<Self> {
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            losses,
        });
        let lines = Self(Arc::clone(&queue));
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || queue.write_on(&mut to))?;
        Ok(lines)
    }

    /// Takes whole lines; never waits.
    pub(crate) fn put(&self, lines: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.bytes.len() + lines.len() > QUEUE_BYTES {
            drop(waiting);
            self.0.lose(count(lines));
            return;
        }
        waiting.bytes.extend_from_slice(lines);
        drop(waiting);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, at most for `within`.
    pub(crate) fn flush(&self, within: Duration) {
        let until = Instant::now() + within;
        let mut waiting = self.0.lock();
        while waiting.writing || !waiting.bytes.is_empty() {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return;
            };
            let woken = self.0.changed.wait_timeout(waiting, left);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, lines: u64) {
        self.lock().lost += lines;
        (self.losses.count)(lines);
    }

    fn write_on(&self, to: &mut impl Write) {
        let mut taken = Vec::new();
        // Whether the last line ended in its middle.
        let mut torn = false;
        loop {
            {
                let mut waiting = self.lock();
                waiting.writing = false;
                self.changed.notify_all();
                while waiting.bytes.is_empty() {
                    waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                }
                waiting.writing = true;
                std::mem::swap(&mut waiting.bytes, &mut taken);
            }
            // One by one: a parent and its child share a pipe, and only short writes are never mixed there.
            for line in taken.split_inclusive(|byte| *byte == b'\n') {
                let written = match torn {
                    true => write_all(to, b"\n").and_then(|_| write_all(to, line)),
                    false => write_all(to, line),
                };
                match written {
                    Ok(()) => {
                        torn = false;
                        let lost = std::mem::take(&mut self.lock().lost);
                        if lost > 0 {
                            (self.losses.tell)(lost);
                        }
                    }
                    Err(cut) => {
                        torn = torn || cut == Cut::Within;
                        self.lose(1);
                    }
                }
            }
            taken.clear();
            taken.shrink_to(64 * 1024);
        }
    }
}

fn count(lines: &[u8]) -> u64 {
    let ends = lines.iter().filter(|byte| **byte == b'\n').count();
    u64::try_from(ends.max(1)).unwrap_or(u64::MAX)
}

/// Where a write failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Before,
    Within,
}

fn write_all(to: &mut impl Write, line: &[u8]) -> Result<(), Cut> {
    let mut rest = line;
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(0) => break,
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_PIPE),
            Err(_) => break,
        }
    }
    match rest.len() {
        0 => Ok(()),
        left if left == line.len() => Err(Cut::Before),
        _ => Err(Cut::Within),
    }
}

/// One line as `tracing` hands it over.
pub(crate) struct Line(Lines);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'writer> tracing_subscriber::fmt::MakeWriter<'writer> for Lines {
    type Writer = Line;

    fn make_writer(&'writer self) -> Self::Writer {
        Line(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    const SOON: Duration = Duration::from_secs(20);

    const QUIET: Losses = Losses {
        count: |_| {},
        tell: |_| {},
    };

    type Word = std::io::Result<usize>;
    type Written = Arc<Mutex<Vec<u8>>>;

    /// A writer that does what the test says, one word a write.
    struct Told(mpsc::Receiver<Word>, Written);

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let take = self.0.recv().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
            self.1.lock().unwrap().extend_from_slice(&bytes[..take]);
            Ok(take)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn told(losses: Losses) -> (Lines, mpsc::Sender<Word>, Written) {
        let (say, words) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let lines = Lines::onto("test-log", Told(words, Arc::clone(&written)), losses).unwrap();
        (lines, say, written)
    }

    fn broken() -> std::io::Error {
        std::io::Error::from(ErrorKind::BrokenPipe)
    }

    #[test]
    fn lines_come_out_in_order() {
        let (lines, say, written) = told(QUIET);
        drop(say);
        for number in 0..1_000 {
            lines.put(format!("{number}\n").as_bytes());
        }
        lines.flush(SOON);
        let expected: String = (0..1_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(
            String::from_utf8(written.lock().unwrap().clone()).unwrap(),
            expected
        );
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_no_time() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        static TOLD: AtomicU64 = AtomicU64::new(0);
        let (lines, say, written) = told(Losses {
            count: |lines| {
                LOST.fetch_add(lines, Ordering::SeqCst);
            },
            tell: |lines| {
                TOLD.fetch_add(lines, Ordering::SeqCst);
            },
        });
        let line = [[b'x'; 1_023].as_slice(), b"\n"].concat();
        let many = 3 * QUEUE_BYTES / line.len();
        for _ in 0..many {
            lines.put(&line);
        }
        lines.flush(Duration::from_millis(1));
        let lost = usize::try_from(LOST.load(Ordering::SeqCst)).unwrap();
        assert!(lost >= many / 3, "{lost} of {many}");
        drop(say);
        lines.flush(SOON);
        assert_eq!(written.lock().unwrap().len() / line.len() + lost, many);
        assert_eq!(TOLD.load(Ordering::SeqCst), LOST.load(Ordering::SeqCst));
    }

    #[test]
    fn a_reader_that_is_gone_or_a_full_disk_loses_lines_and_nothing_else() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        let (lines, say, written) = told(Losses {
            count: |lines| {
                LOST.fetch_add(lines, Ordering::SeqCst);
            },
            tell: |_| {},
        });
        for word in [Err(broken()), Ok(3), Err(broken()), Ok(9), Ok(9), Ok(9)] {
            say.send(word).unwrap();
        }
        for line in ["gone\n", "half\n", "next\n", "last\n"] {
            lines.put(line.as_bytes());
        }
        lines.flush(SOON);
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(
            written, "hal\nnext\nlast\n",
            "the line after a torn one begins a new one"
        );
        assert_eq!(LOST.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_full_pipe_that_does_not_block_is_waited_for() {
        let (mut reads, writes) = std::io::pipe().unwrap();
        let lines = Lines::start("test-pipe", &writes, QUIET).unwrap();
        drop(writes);
        let long = [[b'y'; 100_000].as_slice(), b"\n"].concat();
        lines.put(&long);
        let mut read = vec![0; long.len()];
        reads.read_exact(&mut read).unwrap();
        assert_eq!(read, long);
        let (lines, say, written) = told(QUIET);
        say.send(Err(std::io::Error::from(ErrorKind::WouldBlock)))
            .unwrap();
        drop(say);
        lines.put(b"late\n");
        lines.flush(SOON);
        assert_eq!(*written.lock().unwrap(), b"late\n");
    }
}
