//! How long clients were without a connection.

use std::collections::BTreeMap;

/// How far a gap may be off when a node does not say how old its reports are: it collects them for so long.
pub(crate) const UNAGED_ERROR_MS: u64 = 100;
/// Below this each millisecond is kept apart, beyond it two digits are: a few hundred entries at most.
const EXACT_BELOW_MS: u64 = 100;

/// Gaps, by how often each was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gaps {
    seen: BTreeMap<u64, u32>,
    count: u32,
    longest: Option<u64>,
    error_ms: u64,
}

impl Gaps {
    pub(crate) fn add(&mut self, millis: u64, error_ms: u64) {
        *self.seen.entry(rounded(millis)).or_default() += 1;
        self.count = self.count.saturating_add(1);
        self.longest = self.longest.max(Some(millis));
        self.error_ms = self.error_ms.max(error_ms);
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn longest(&self) -> Option<u64> {
        self.longest
    }

    /// How far they may be off.
    pub(crate) fn error_ms(&self) -> u64 {
        self.error_ms
    }

    /// What so many of a hundred had at most.
    pub(crate) fn at(&self, percent: u64) -> Option<u64> {
        let rank = (u64::from(self.count) * percent).div_ceil(100).max(1);
        let mut below = 0;
        let found = self.seen.iter().find(|(_, many)| {
            below += u64::from(**many);
            below >= rank
        });
        let longest = self.longest?;
        found.map(|(millis, _)| (*millis).min(longest))
    }

    /// For the store: gaps with how often each was seen.
    pub(crate) fn stored(&self) -> Vec<(u64, u32)> {
        self.seen.iter().map(|(millis, many)| (*millis, *many)).collect()
    }

    pub(crate) fn from_stored(seen: Vec<(u64, u32)>, longest: Option<u64>, error_ms: u64) -> Self {
        let count = seen.iter().map(|(_, many)| *many).fold(0, u32::saturating_add);
        Self {
            seen: seen.into_iter().collect(),
            count,
            longest,
            error_ms,
        }
    }
}

/// Rounded up: a report that says "at most" must not say less.
fn rounded(millis: u64) -> u64 {
    let mut step = 1;
    while millis / step >= EXACT_BELOW_MS {
        step *= 10;
    }
    millis.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_at_most_and_the_longest_is_exact() {
        let mut gaps = Gaps::default();
        for millis in 1..=200 {
            gaps.add(millis, 0);
        }
        gaps.add(12_345, UNAGED_ERROR_MS);
        assert_eq!((gaps.at(50), gaps.longest()), (Some(110), Some(12_345)));
        assert_eq!(gaps.at(100), Some(12_345));
        assert_eq!((gaps.count(), gaps.error_ms()), (201, 100));
        let again = Gaps::from_stored(gaps.stored(), gaps.longest(), gaps.error_ms());
        assert_eq!(again, gaps);
        assert_eq!(Gaps::default().at(50), None);
    }
}
