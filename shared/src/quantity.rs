//! Quantities as types, with their units and bounds.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A moment in milliseconds on a clock that counts suspend. Only differences mean anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A moment from its reading in milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// The reading in milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The moment `millis` later, stopping at the end of time instead of wrapping.
    #[must_use]
    pub const fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// The moment `millis` earlier, stopping at zero.
    #[must_use]
    pub const fn minus(self, millis: u64) -> Self {
        Self(self.0.saturating_sub(millis))
    }

    /// Milliseconds from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// So many connections a second a node takes in without its others noticing: what moves, what is closed and what is
/// sent back is spread by it.
pub const RETURNS_PER_S: u32 = 200;

/// The largest epoch, term or sequence number: beyond 2^53 a JSON number loses digits in many languages.
pub const MAX_COUNTER: u64 = (1 << 53) - 1;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// A value from its number; `None` above [`MAX_COUNTER`].
            #[must_use]
            pub const fn new(value: u64) -> Option<Self> {
                if value <= MAX_COUNTER { Some(Self(value)) } else { None }
            }

            /// The number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The next value. Stays at the bound instead of wrapping; at one a microsecond the
            /// bound is 285 years away.
            #[must_use]
            pub const fn next(self) -> Self {
                if self.0 < MAX_COUNTER { Self(self.0 + 1) } else { self }
            }

            /// The value `count` further on, stopping at the bound.
            #[must_use]
            pub const fn plus(self, count: u64) -> Self {
                let sum = self.0.saturating_add(count);
                if sum <= MAX_COUNTER { Self(sum) } else { Self(MAX_COUNTER) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let value = u64::deserialize(from)?;
                Self::new(value).ok_or_else(|| {
                    serde::de::Error::custom(concat!(stringify!($name), " must be below 2^53"))
                })
            }
        }
    };
}

counter! {
    /// Numbers one assignment of one team. One counter for the whole cluster, never reused.
    Epoch
}
counter! {
    /// Grows at every start of the broker; a node obeys no term below the highest it has seen.
    Term
}

/// CPU in thousandths of a core: 1,000 is one core kept busy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Millicores(u32);

impl Millicores {
    /// More than any machine has (4,096 cores); a report above it is refused as nonsense.
    pub const MAX: Self = Self(4_096_000);

    /// A value from its number; `None` above [`Millicores::MAX`].
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// A value from its number, held to [`Millicores::MAX`].
    #[must_use]
    pub fn clamped(value: u64) -> Self {
        Self(u32::try_from(value).unwrap_or(u32::MAX).min(Self::MAX.0))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Millicores {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = u32::deserialize(from)?;
        Self::new(value).ok_or_else(|| serde::de::Error::custom("millicores must be at most 4096000"))
    }
}

/// How much a team counts, or how much a node can carry beside others, relative to the default.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct Weight(u32);

impl Weight {
    /// The heaviest weight accepted.
    pub const MAX: u32 = 10_000;
    /// What a team weighs when nobody said otherwise.
    pub const TEAM: Self = Self(1);
    /// What a node weighs when nobody said otherwise.
    pub const NODE: Self = Self(100);

    /// A weight from 1 to [`Weight::MAX`].
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value >= 1 && value <= Self::MAX {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = u32::deserialize(from)?;
        Self::new(value).ok_or_else(|| serde::de::Error::custom("weight must be from 1 to 10000"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_refuse_what_json_cannot_carry() {
        assert_eq!(Epoch::new(MAX_COUNTER).map(Epoch::get), Some(MAX_COUNTER));
        assert_eq!(Epoch::new(MAX_COUNTER + 1), None);
        assert!(serde_json::from_str::<Epoch>("9007199254740992").is_err());
        assert!(serde_json::from_str::<Term>("-1").is_err());
        assert!(serde_json::from_str::<Term>("1.5").is_err());
    }

    #[test]
    fn counters_stop_at_their_bound() {
        let last = Epoch::new(MAX_COUNTER).unwrap();
        assert_eq!(last.next(), last);
        assert_eq!(Epoch::default().plus(u64::MAX), last);
    }

    #[test]
    fn weights_and_millicores_have_bounds() {
        assert!(serde_json::from_str::<Weight>("0").is_err());
        assert!(serde_json::from_str::<Weight>("10001").is_err());
        assert!(serde_json::from_str::<Millicores>("4096001").is_err());
        assert_eq!(Millicores::clamped(u64::MAX), Millicores::MAX);
    }
}
