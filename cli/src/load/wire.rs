//! The text of a load message: who sent it, its number, and filling.

use std::fmt::Write as _;

/// The first word, so that other traffic of a team is left alone.
const MARK: &str = "usher-load";

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Random per run: two runs may share teams.
    pub(crate) run: u32,
    /// The team it was sent in, by its number.
    pub(crate) team: usize,
    /// The sender, by its place in the team.
    pub(crate) sender: usize,
    /// Its number, counted by the sender.
    pub(crate) number: u64,
    /// When it was sent, in microseconds since the run began.
    pub(crate) sent_us: u64,
}

impl Stamp {
    /// The text, filled up to `bytes`.
    pub(crate) fn write(&self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes.max(64));
        let _ = write!(
            text,
            "{MARK} {:08x} {} {} {} {} ",
            self.run, self.team, self.sender, self.number, self.sent_us
        );
        while text.len() < bytes {
            text.push('.');
        }
        text
    }

    /// What `text` says, if it is a message of ours.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix(MARK)?.strip_prefix(' ')?.split(' ');
        Some(Self {
            run: u32::from_str_radix(words.next()?, 16).ok()?,
            team: words.next()?.parse().ok()?,
            sender: words.next()?.parse().ok()?,
            number: words.next()?.parse().ok()?,
            sent_us: words.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_went() {
        let stamp = Stamp {
            run: 0xbeef,
            team: 12,
            sender: 3,
            number: 9_000,
            sent_us: 77,
        };
        let text = stamp.write(200);
        assert_eq!((text.len(), Stamp::read(&text)), (200, Some(stamp)));
        assert_eq!(Stamp::read(&stamp.write(0)), Some(stamp));
    }

    #[test]
    fn other_traffic_is_left_alone() {
        for text in ["", "hello", "usher-load", "usher-load x 1 2 3 ", "usher-load 1 2"] {
            assert_eq!(Stamp::read(text), None, "{text}");
        }
    }
}
