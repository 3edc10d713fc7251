//! How a process shows who it is.
//!
//! A name and an incarnation prove nothing: every ticket shows both. What proves something is known
//! to the process, to its parent and to the broker, and is shown to nobody else.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;
use subtle::ConstantTimeEq as _;

use crate::id::IdError;

/// 128 bits that a process shows to its broker and to nobody else. Never prints itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hidden([u8; 16]);

/// What a broker keeps of a [`Hidden`]: enough to know it again, too little to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark([u8; 16]);

impl Hidden {
    /// From 128 bits that the caller drew at random.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits.to_be_bytes())
    }

    /// From texts that only one machine knows, or one place on it.
    #[must_use]
    pub fn of(parts: &[&str]) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(part.as_bytes());
            digest.update([0]);
        }
        Self(first_half(digest))
    }

    /// 32 hexadecimal digits, for whoever is to know it: the child, the broker.
    #[must_use]
    pub fn expose(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// What a broker keeps of it.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(first_half(Sha256::new_with_prefix(self.0)))
    }
}

impl Mark {
    /// Whether this was shown, in constant time.
    #[must_use]
    pub fn is_of(&self, shown: Option<Hidden>) -> bool {
        shown.is_some_and(|shown| shown.mark().0.ct_eq(&self.0).into())
    }
}

fn first_half(digest: Sha256) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&digest.finalize()[..16]);
    half
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

impl FromStr for Hidden {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let well_formed =
            text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let bits = well_formed.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        bits.map(Self::from_bits).ok_or(IdError::Pattern {
            what: "nonce",
            pattern: "^[0-9a-f]{32}$",
            at: 0,
        })
    }
}

impl Serialize for Hidden {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.expose())
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a broker keeps of what a process showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Of [`crate::link::Hello::nonce`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Mark>,
    /// Of [`crate::link::Hello::lock`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Mark>,
}

impl Marks {
    /// Whether `nonce` is this process's. One that never showed any is known by nothing better than
    /// its incarnation.
    #[must_use]
    pub fn is_itself(&self, nonce: Option<Hidden>) -> bool {
        self.nonce.is_none_or(|mark| mark.is_of(nonce))
    }

    /// Whether whoever shows `lock` holds what this process held for as long as it lived.
    #[must_use]
    pub fn is_succeeded_by(&self, lock: Option<Hidden>) -> bool {
        self.lock.is_some_and(|mark| mark.is_of(lock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_known_again_by_its_mark_and_nothing_else_is() {
        let (one, other) = (Hidden::from_bits(7), Hidden::from_bits(8));
        assert!(one.mark().is_of(Some(one)));
        assert!(!one.mark().is_of(Some(other)));
        assert!(!one.mark().is_of(None));
        let kept = serde_json::to_string(&one.mark()).unwrap();
        assert!(!kept.contains(&one.expose()), "{kept}");
        assert_eq!(serde_json::from_str::<Mark>(&kept).unwrap(), one.mark());
    }

    #[test]
    fn nothing_hidden_is_printed() {
        assert_eq!(format!("{:?}", Hidden::from_bits(7)), "Hidden(..)");
    }

    #[test]
    fn a_process_that_showed_no_nonce_is_known_by_its_incarnation_alone() {
        let marks = Marks::default();
        assert!(marks.is_itself(None) && marks.is_itself(Some(Hidden::from_bits(1))));
        assert!(!marks.is_succeeded_by(None) && !marks.is_succeeded_by(Some(Hidden::from_bits(1))));
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(Hidden::of(&["ab", "c"]), Hidden::of(&["a", "bc"]));
    }
}
