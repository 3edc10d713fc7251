//! How much does it count that a node says it can hardly go on?
//!
//! A node above the CPU ceiling, or one whose machine or container is short of CPU or memory, is to get no new
//! teams while there are others. But nodes say so with their heartbeats, one after the other: were
//! each put behind all the rest at its word, a burst between two heartbeats would go as a whole to
//! the last to tell. So strain adds to how busy a node is: some at once, and more the longer it
//! lasts. Two nodes of one machine are never far apart by it, and neither is ever without a bound.

use usher_shared::link::Health;
use usher_shared::rest::Gate;

use crate::node::Node;
use crate::score;
use crate::settings::Settings;

const PPM: u64 = 1_000_000;

/// For how long it has lasted, as a level that rises and falls with a half-life, in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strain {
    lasting_ppm: u64,
}

impl Strain {
    /// One tick on.
    pub(crate) fn tick(&mut self, is_strained: bool, keep_ppm: i64) {
        let keep = |ppm: u64| ppm * keep_ppm.unsigned_abs() / PPM;
        self.lasting_ppm = if is_strained {
            PPM - keep(PPM - self.lasting_ppm)
        } else {
            keep(self.lasting_ppm)
        };
    }

    /// Whether it has lasted for a half-life at least.
    pub(crate) fn is_lasting(self) -> bool {
        self.lasting_ppm >= PPM / 2
    }
}

/// What speaks against giving a node more, although it may be chosen.
pub(crate) fn strained_by(node: &Node, settings: &Settings) -> Option<Gate> {
    if score::cpu_ppm(node) > settings.cpu_ceiling_ppm {
        return Some(Gate::CpuCeiling);
    }
    (node.report.health == Health::Pressure).then_some(Gate::Pressure)
}

/// What that adds to how busy it is, in parts per million.
pub(crate) fn busy_ppm(node: &Node, settings: &Settings) -> u64 {
    let at_once = if strained_by(node, settings).is_some() {
        settings.strain_ppm
    } else {
        0
    };
    at_once + settings.strain_lasting_ppm * node.strain.lasting_ppm / PPM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_towards_its_bound_and_goes_again() {
        let mut strain = Strain::default();
        strain.tick(true, 500_000);
        assert_eq!(strain.lasting_ppm, 500_000);
        assert!(strain.is_lasting());
        for _ in 0..40 {
            strain.tick(true, 500_000);
        }
        assert_eq!(strain.lasting_ppm, PPM);
        for _ in 0..40 {
            strain.tick(false, 500_000);
        }
        assert_eq!(strain, Strain::default());
    }
}
