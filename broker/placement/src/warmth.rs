//! How much may a node take that came back lately?
//!
//! A node that joins, is uncordoned or undrained holds less than the others, so by its score alone every
//! new team would go to it in a row: on caches that are cold, and with health that nobody has seen.
//! So it takes a handful in a row and then at most twice what each of the others takes, and the
//! handful doubles each minute until it binds nobody. Nothing jumps at any age.

use usher_shared::quantity::Timestamp;

use crate::node::Node;
use crate::score::Pool;
use crate::settings::Settings;

/// After so many doublings the bound counts for nobody: 16 teams have become a million.
const DOUBLINGS: u64 = 16;

/// Placements of late, the node's own and the pool's, in thousandths; what is older has faded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Warmth {
    /// When it began to take teams.
    pub(crate) since: Timestamp,
    taken_milli: u64,
    pool_milli: u64,
    /// The pool's count of placements at the last tick.
    pool_then: u64,
}

impl Warmth {
    /// From now on the node takes teams; the pool has made so many placements.
    pub(crate) fn begin(now: Timestamp, pool_placed: u64) -> Self {
        Self {
            since: now,
            pool_then: pool_placed,
            ..Self::default()
        }
    }

    /// Counts a placement here.
    pub(crate) fn take(&mut self) {
        self.taken_milli += 1_000;
    }

    /// One tick on: what was counted fades.
    pub(crate) fn tick(&mut self, pool_placed: u64, keep_ppm: i64) {
        let keep = |milli: u64| milli * keep_ppm.unsigned_abs() / 1_000_000;
        self.pool_milli = keep(self.pool_by_now(pool_placed));
        self.pool_then = pool_placed;
        self.taken_milli = keep(self.taken_milli);
    }

    fn pool_by_now(&self, pool_placed: u64) -> u64 {
        self.pool_milli + pool_placed.saturating_sub(self.pool_then) * 1_000
    }

    /// How many teams may come in a row at this age, in thousandths; `None`: any number.
    fn in_a_row_milli(&self, settings: &Settings, now: Timestamp) -> Option<u64> {
        let age = now.since(self.since);
        let doublings = age.checked_div(settings.warm_up_ms)?;
        if doublings >= DOUBLINGS {
            return None;
        }
        let whole = (settings.warm_up_teams * 1_000) << doublings;
        // Evenly within a doubling: a step would be a jump.
        Some(whole + whole * (age % settings.warm_up_ms) / settings.warm_up_ms)
    }
}

/// Whether a node that came back lately has had its share for now.
pub(crate) fn had_its_share(
    node: &Node,
    pool: &Pool,
    pool_placed: u64,
    settings: &Settings,
    now: Timestamp,
) -> bool {
    let warmth = &node.warmth;
    let Some(in_a_row) = warmth.in_a_row_milli(settings, now) else {
        return false;
    };
    let with_this_one = warmth.taken_milli + 1_000;
    if with_this_one <= in_a_row {
        return false;
    }
    let others = warmth.pool_by_now(pool_placed).saturating_sub(warmth.taken_milli);
    let weight = u64::from(node.hello.weight.get());
    with_this_one * pool.node_weights.saturating_sub(weight) > 2 * others * weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_come_in_a_row_grows_without_a_step_until_it_binds_nobody() {
        let settings = Settings::default();
        let warmth = Warmth::begin(Timestamp::from_millis(5_000), 0);
        let at = |age_ms| warmth.in_a_row_milli(&settings, Timestamp::from_millis(5_000 + age_ms));
        assert_eq!(at(0), Some(16_000));
        assert_eq!(at(30_000), Some(24_000));
        assert_eq!(at(60_000), Some(32_000));
        assert_eq!(at(240_000), Some(256_000));
        assert_eq!(at(960_000), None);
        let mut before: u64 = 16_000;
        for second in 1..960_u64 {
            let now = at(second * 1_000).unwrap();
            assert!(
                now >= before && now <= before * 103 / 100,
                "{second} s: {before} to {now}"
            );
            before = now;
        }
    }

    #[test]
    fn what_was_taken_fades() {
        let mut warmth = Warmth::begin(Timestamp::default(), 100);
        warmth.take();
        assert_eq!((warmth.taken_milli, warmth.pool_by_now(103)), (1_000, 3_000));
        warmth.tick(103, 500_000);
        assert_eq!((warmth.taken_milli, warmth.pool_by_now(104)), (500, 2_500));
    }
}
