//! Links of nodes that were refused: counted by code, told without flooding the log, and remembered for a minute,
//! because who looks at a silent pool must see that it is the broker that does not let it in.

use metrics::counter;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use usher_listen::fold::Fold;

use crate::telemetry::NODES_REFUSED;

/// What counts as lately.
const LATELY: Duration = Duration::from_secs(60);
/// A refusal after so long without one is a new trouble.
const QUIET: Duration = Duration::from_secs(150);

/// Every code that a link can be refused with.
pub(crate) const CODES: [&str; 13] = [
    "bad_message",
    "busy",
    "cluster",
    "foreign_origin",
    "name_taken",
    "other",
    "pool_full",
    "protocol",
    "stopping",
    "too_many_names",
    "two_brokers",
    "unauthorized",
    "unproven",
];

/// Links that were refused.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    by_code: Mutex<BTreeMap<&'static str, Refused>>,
    /// Whether the cluster began with this process, on an empty store.
    new_cluster: AtomicBool,
    /// Whether any node was let in.
    met: AtomicBool,
}

#[derive(Debug)]
struct Refused {
    fold: Fold<()>,
    last: Instant,
    /// How many there were in this minute and in the one before.
    minute: Instant,
    now: u64,
    before: u64,
}

impl Refusals {
    /// A link was refused; `who` and `detail` are for the log.
    pub(crate) fn refused(&self, code: &str, who: &str, detail: &str) {
        let code = CODES
            .iter()
            .copied()
            .find(|known| *known == code)
            .unwrap_or("other");
        counter!(NODES_REFUSED, "code" => code).increment(1);
        let now = Instant::now();
        let said = {
            let mut by_code = self.by_code.lock();
            let refused = by_code.entry(code).or_insert_with(|| Refused::new(now));
            refused.again(now);
            refused.fold.happened((), now)
        };
        let Some(said) = said else { return };
        let (times, for_s) = (said.times, said.lasted.as_secs());
        match code {
            "unauthorized" => tracing::error!(
                code,
                who,
                times,
                for_s,
                "links are refused for their token: nodes and broker must have the same. While it is exchanged, put \
                 both into the broker's --node-token-file, one a line"
            ),
            "cluster" if self.is_new_cluster() => tracing::error!(
                code,
                who,
                times,
                for_s,
                "this broker began a new cluster on an empty data folder, and nodes of another cluster ask to be let \
                 in: is --data the right folder? If it is not, stop this broker and start it on the right one; the \
                 nodes serve on meanwhile"
            ),
            _ => tracing::warn!(code, who, detail, times, for_s, "a link was refused"),
        }
    }

    /// The cluster began with this process.
    pub(crate) fn began_cluster(&self) {
        self.new_cluster.store(true, Ordering::Relaxed);
    }

    /// A node was let in.
    pub(crate) fn met_a_node(&self) {
        self.met.store(true, Ordering::Relaxed);
    }

    fn is_new_cluster(&self) -> bool {
        self.new_cluster.load(Ordering::Relaxed)
    }

    /// Whether everything looks as if the store were another cluster's, or none: a new cluster, only nodes of
    /// others.
    pub(crate) fn looks_misplaced(&self) -> bool {
        self.is_new_cluster() && !self.met.load(Ordering::Relaxed) && self.lately().contains_key("cluster")
    }

    /// How many there were lately, by code.
    pub(crate) fn lately(&self) -> BTreeMap<&'static str, u64> {
        let now = Instant::now();
        let by_code = self.by_code.lock();
        let counts = by_code.iter().map(|(code, refused)| (*code, refused.lately(now)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

impl Refused {
    fn new(now: Instant) -> Self {
        Self {
            fold: Fold::default(),
            last: now,
            minute: now,
            now: 0,
            before: 0,
        }
    }

    fn again(&mut self, now: Instant) {
        if now.duration_since(self.last) > QUIET {
            self.fold.over(now);
        }
        self.last = now;
        let passed = now.duration_since(self.minute);
        if passed >= LATELY {
            self.before = if passed < 2 * LATELY { self.now } else { 0 };
            self.now = 0;
            self.minute = now;
        }
        self.now += 1;
    }

    /// Counted in whole minutes: at least those of the last one, at most those of two.
    fn lately(&self, now: Instant) -> u64 {
        if now.duration_since(self.last) > LATELY {
            return 0;
        }
        self.now + self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_code_and_forgotten() {
        let refusals = Refusals::default();
        for _ in 0..3 {
            refusals.refused("unauthorized", "127.0.0.1:1", "");
        }
        refusals.refused("a code of a later version", "n1", "");
        assert_eq!(
            refusals.lately(),
            BTreeMap::from([("other", 1), ("unauthorized", 3)])
        );
        let mut refused = Refused::new(Instant::now());
        refused.again(Instant::now());
        assert_eq!(
            refused.lately(Instant::now() + LATELY + Duration::from_secs(1)),
            0
        );
    }

    #[test]
    fn only_a_new_cluster_without_a_node_of_its_own_looks_misplaced() {
        let refusals = Refusals::default();
        refusals.refused("cluster", "n1", "");
        assert!(!refusals.looks_misplaced());
        refusals.began_cluster();
        assert!(refusals.looks_misplaced());
        refusals.met_a_node();
        assert!(!refusals.looks_misplaced());
    }
}
