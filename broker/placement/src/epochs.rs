//! The one counter of epochs.
//!
//! Epochs are reserved in the store in blocks, before the first of a block is given out; a restart
//! skips what is left of its block. So none is given out twice, whatever is lost in a crash.

use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Epoch;

/// Epochs reserved in the store at once. A restart skips what is left of a block.
const BLOCK: u64 = 1_000;
/// How far beyond the highest epoch that any node has shown a broker goes on whose store is an old
/// copy: nodes that died since may have had higher ones. At 1,000 epochs a second it is a quarter of
/// an hour, and the counter bears it nine thousand million times.
const REGRESSED_MARGIN: u64 = 1_000_000;

/// How often a run may go on above a node's word and remember what it gave out before: once for each old
/// copy, and a run has one store.
const MAX_RANGES: usize = 64;

/// The one counter of epochs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Epochs {
    /// What this run gave out before it went on above a node's word: from, and the first not given.
    gave: Vec<(Epoch, Epoch)>,
    /// Where it went on last.
    from: Epoch,
    next: Epoch,
    /// The first that is not reserved in the store.
    reserved: Epoch,
}

/// What the store must keep before anything later is shown: the first epoch not reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Reserve(pub(crate) Epoch);

impl Epochs {
    /// Goes on where the store says that nothing was reserved yet.
    pub(crate) fn after(reserved: Epoch) -> Self {
        Self {
            gave: Vec::new(),
            from: reserved,
            next: reserved,
            reserved,
        }
    }

    /// An epoch that was never given out.
    pub(crate) fn take(&mut self) -> (Epoch, Option<Reserve>) {
        let epoch = self.next;
        self.next = epoch.next();
        let reserve = (epoch >= self.reserved).then(|| self.reserve(epoch));
        (epoch, reserve.filter(|_| !planted::is(Bug::EpochsNotReserved)))
    }

    /// Whether this store may have given `epoch` out.
    pub(crate) fn covers(&self, epoch: Epoch) -> bool {
        epoch < self.next
    }

    /// Whether this run gave `epoch` out: then it knows the team that it was for, or has deleted it.
    pub(crate) fn gave(&self, epoch: Epoch) -> bool {
        let within = |(from, to): &(Epoch, Epoch)| *from <= epoch && epoch < *to;
        within(&(self.from, self.next)) || self.gave.iter().any(within)
    }

    /// A node has shown an epoch that this store never gave out: goes on far above it.
    pub(crate) fn surpass(&mut self, shown: Epoch) -> Option<Reserve> {
        if self.covers(shown) || planted::is(Bug::RegressedEpochsKept) {
            return None;
        }
        if self.gave.len() < MAX_RANGES {
            self.gave.push((self.from, self.next));
        }
        self.from = shown.plus(REGRESSED_MARGIN);
        self.next = self.from;
        Some(self.reserve(self.next))
    }

    /// Gives back an epoch that was taken last. Never right: for the simulator's own tests.
    pub(crate) fn undo(&mut self, epoch: Epoch) {
        if planted::is(Bug::EpochReusedAfterUndo) && epoch.next() == self.next {
            self.next = epoch;
        }
    }

    fn reserve(&mut self, from: Epoch) -> Reserve {
        self.reserved = from.plus(BLOCK);
        Reserve(self.reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(number: u64) -> Epoch {
        Epoch::new(number).unwrap()
    }

    #[test]
    fn an_epoch_is_reserved_before_it_is_given_out_and_a_block_at_a_time() {
        let mut epochs = Epochs::after(epoch(1));
        assert_eq!(epochs.take(), (epoch(1), Some(Reserve(epoch(1_001)))));
        for number in 2..=1_000 {
            assert_eq!(epochs.take(), (epoch(number), None));
        }
        assert_eq!(epochs.take(), (epoch(1_001), Some(Reserve(epoch(2_001)))));
        assert_eq!(epochs.take(), (epoch(1_002), None));
    }

    #[test]
    fn a_restart_goes_on_above_everything_that_was_reserved() {
        let mut before = Epochs::after(epoch(1));
        let (_, reserved) = before.take();
        let mut after = Epochs::after(reserved.unwrap().0);
        assert_eq!(after.take(), (epoch(1_001), Some(Reserve(epoch(2_001)))));
    }

    #[test]
    fn an_epoch_from_beyond_the_store_is_surpassed_by_far() {
        let mut epochs = Epochs::after(epoch(1_000));
        assert_eq!(epochs.surpass(epoch(999)), None);
        assert!(!epochs.covers(epoch(1_000)));
        let reserve = epochs.surpass(epoch(1_000));
        assert_eq!(reserve, Some(Reserve(epoch(1_002_000))));
        assert_eq!(epochs.take(), (epoch(1_001_000), None));
        assert_eq!(epochs.surpass(epoch(1_001_000)), None);
        assert!(epochs.covers(epoch(1_001_000)) && !epochs.covers(epoch(1_001_001)));
        assert!(
            !epochs.gave(epoch(1_000)) && epochs.gave(epoch(1_001_000)) && !epochs.gave(epoch(1_001_001))
        );
    }

    #[test]
    fn what_this_run_gave_is_told_from_what_it_skipped() {
        let mut epochs = Epochs::after(epoch(10));
        let _ = epochs.take();
        let _ = epochs.surpass(epoch(50));
        let _ = epochs.take();
        let given: Vec<u64> = [9, 10, 11, 50, 1_000_049, 1_000_050, 1_000_051]
            .into_iter()
            .filter(|number| epochs.gave(epoch(*number)))
            .collect();
        assert_eq!(given, [10, 1_000_050]);
    }

    #[test]
    fn an_epoch_is_never_given_back() {
        let mut epochs = Epochs::after(epoch(1));
        let (first, _) = epochs.take();
        epochs.undo(first);
        assert_eq!(epochs.take().0, epoch(2));
    }
}
