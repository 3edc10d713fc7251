//! Durations as people write them: `500ms`, `25s`, `10m`, `1h`, `2d`, or a sum such as `1m30s`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration that is read and printed as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HumanDuration(pub(crate) Duration);

/// Longest unit first, which is the order they are printed in.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Beyond this a duration is a mistake; it also keeps every sum far from overflow.
const MAX_MS: u64 = 10 * 365 * 86_400_000;

/// Why a text is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    #[error("a duration is numbers with units, such as 500ms, 25s, 10m, 1h, 2d or 1m30s")]
    Malformed,
    #[error("a duration is at most 3650d")]
    TooLong,
}

impl HumanDuration {
    pub(crate) fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for HumanDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let mut rest = text.trim();
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(DurationError::Malformed);
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            let (number, tail) = rest.split_at(digits.ok_or(DurationError::Malformed)?);
            let letters = tail
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let scale = UNITS.iter().find(|(name, _)| *name == unit);
            let scale = scale.ok_or(DurationError::Malformed)?.1;
            total = total.saturating_add(scaled(number, scale)?);
            if total > MAX_MS {
                return Err(DurationError::TooLong);
            }
            rest = tail.trim_start();
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

/// `number`, with up to three decimals, times `scale`.
fn scaled(number: &str, scale: u64) -> Result<u64, DurationError> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if decimals.is_empty() || decimals.len() > 3 {
        return Err(DurationError::Malformed);
    }
    let whole: u64 = whole.parse().map_err(|_| DurationError::Malformed)?;
    let thousandths: u64 = format!("{decimals:0<3}")
        .parse()
        .map_err(|_| DurationError::Malformed)?;
    Ok(whole
        .saturating_mul(scale)
        .saturating_add(thousandths * scale / 1_000))
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, scale) in UNITS {
            if rest >= scale {
                write!(f, "{}{unit}", rest / scale)?;
                rest %= scale;
            }
        }
        Ok(())
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(InWords)
    }
}

struct InWords;

impl serde::de::Visitor<'_> for InWords {
    type Value = HumanDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with its unit, in quotes, such as \"500ms\", \"25s\" or \"1m30s\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<HumanDuration, E> {
        text.parse().map_err(E::custom)
    }
}

/// How long ago or how long it took, in the one unit that a reader needs: `0.4 s`, `12 s`, `3 min`.
pub(crate) fn for_people(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..10_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        10_000..120_000 => format!("{} s", millis / 1_000),
        120_000..7_200_000 => format!("{} min", millis / 60_000),
        7_200_000..172_800_000 => format!("{} h", millis / 3_600_000),
        _ => format!("{} days", millis / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("25s", 25_000),
            ("1.5s", 1_500),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("2d", 172_800_000),
            (" 1h 1ms ", 3_600_001),
            ("0s", 0),
        ] {
            let read: HumanDuration = text.parse().unwrap();
            assert_eq!(read.as_millis(), millis, "{text}");
            assert_eq!(read.to_string().parse(), Ok(read), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "25",
            "s",
            "-1s",
            "1 fortnight",
            "1.s",
            "1.2345s",
            "1e3s",
            "1s2",
            ".5s",
        ] {
            assert_eq!(
                text.parse::<HumanDuration>(),
                Err(DurationError::Malformed),
                "{text}"
            );
        }
        assert_eq!("9999999d".parse::<HumanDuration>(), Err(DurationError::TooLong));
        assert_eq!(
            "18446744073709551615d".parse::<HumanDuration>(),
            Err(DurationError::TooLong)
        );
    }

    #[test]
    fn durations_are_told_in_one_unit() {
        for (millis, text) in [
            (7, "7 ms"),
            (1_449, "1.4 s"),
            (59_999, "59 s"),
            (180_000, "3 min"),
            (7_200_000, "2 h"),
            (259_200_000, "3 days"),
        ] {
            assert_eq!(for_people(millis), text);
        }
    }
}
