//! The broker's signature under one assignment.
//!
//! A node keeps the grant of each team it holds and shows it in its inventory. A restarted broker
//! believes only entries with a grant of its own cluster, so that a bad node can neither claim a
//! team it was never given nor raise the epoch counter of everyone else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::id::{ClusterId, NodeId, TeamId};
use crate::quantity::Epoch;
use crate::secret::Key;

/// Signs and checks grants for one cluster.
#[derive(Clone, Debug)]
pub struct GrantSigner {
    key: Key,
    cluster: ClusterId,
}

impl GrantSigner {
    /// A signer for `cluster` with the grant key of its master key.
    #[must_use]
    pub const fn new(key: Key, cluster: ClusterId) -> Self {
        Self { key, cluster }
    }

    /// The grant of `team` to `node` under `epoch`: the first 16 bytes of an HMAC-SHA256, in base64url.
    #[must_use]
    pub fn sign(&self, team: &TeamId, node: &NodeId, epoch: Epoch) -> String {
        URL_SAFE_NO_PAD.encode(&self.mac(team, node, epoch)[..16])
    }

    /// Whether `grant` is ours for exactly this team, node and epoch.
    #[must_use]
    pub fn verify(&self, team: &TeamId, node: &NodeId, epoch: Epoch, grant: &str) -> bool {
        let expected = self.mac(team, node, epoch);
        let given = URL_SAFE_NO_PAD.decode(grant).unwrap_or_default();
        subtle::ConstantTimeEq::ct_eq(&expected[..16], given.as_slice()).into()
    }

    fn mac(&self, team: &TeamId, node: &NodeId, epoch: Epoch) -> [u8; 32] {
        // Neither name can hold a NUL, so the parts cannot run into each other.
        self.key.sign(&[
            &self.cluster.bits().to_be_bytes(),
            team.as_str().as_bytes(),
            &[0],
            node.as_str().as_bytes(),
            &[0],
            &epoch.get().to_be_bytes(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_holds_for_exactly_what_it_was_given_for() {
        let signer = GrantSigner::new(Key::from_bytes([3; 32]), ClusterId::from_bits(1));
        let other = GrantSigner::new(Key::from_bytes([3; 32]), ClusterId::from_bits(2));
        let (team, node): (TeamId, NodeId) = ("T1".parse().unwrap(), "n1".parse().unwrap());
        let epoch = Epoch::new(5).unwrap();
        let grant = signer.sign(&team, &node, epoch);
        assert!(signer.verify(&team, &node, epoch, &grant));
        assert!(!signer.verify(&team, &node, epoch.next(), &grant));
        assert!(!signer.verify(&"T2".parse().unwrap(), &node, epoch, &grant));
        assert!(!signer.verify(&team, &"n2".parse().unwrap(), epoch, &grant));
        assert!(!other.verify(&team, &node, epoch, &grant));
        for bad in ["", "AA", "not base64!"] {
            assert!(!signer.verify(&team, &node, epoch, bad));
        }
    }
}
