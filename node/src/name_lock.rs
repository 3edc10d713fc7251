//! One process of a name at a time, as far as its own machine can see to that.
//!
//! The lock is a socket in the abstract namespace (unix(7)): the kernel has one of each name in a
//! network namespace, lets it go with the process and not a moment before, and needs no file. So a second
//! process of the name does not start beside the first, whoever stands still; and one that does start
//! proves that the first has ended. The broker is shown a digest of the lock and where it is held:
//! the same place and the same lock mean the same kernel and the same namespace, for those are not made
//! again while a process holds a socket in them.

use std::io;
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use usher_shared::id::NodeId;
use usher_shared::identity::Hidden;

use crate::brokers::BrokerAddress;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Of the thread, because a thread can be in a namespace of its own.
const NETWORK: &str = "/proc/thread-self/ns/net";

/// Held for as long as it lives.
#[derive(Debug)]
pub(crate) struct NameLock {
    _socket: UnixDatagram,
    /// Of this machine's boot, the network namespace and the lock; `None` where the machine does not say.
    held_at: Option<Hidden>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NameLockError {
    /// A live process holds it.
    #[error("another process holds it")]
    Held(String),
    /// The system gives none.
    #[error("the system gives no such lock")]
    System(#[source] io::Error),
}

impl NameLock {
    /// Takes the lock of this name with these brokers: a machine may run nodes of one name in several pools.
    pub(crate) fn take(node: &NodeId, brokers: &[BrokerAddress]) -> Result<Self, NameLockError> {
        let mut pool: Vec<&str> = brokers.iter().map(BrokerAddress::authority).collect();
        pool.sort_unstable();
        pool.dedup();
        let mut parts = vec![node.as_str()];
        parts.extend(&pool);
        // The name of the node is there for whoever looks for its holder.
        let digest = Hidden::of(&parts).expose();
        let name = format!("usher-node/{node}/{}", &digest[..16]);
        let address = SocketAddr::from_abstract_name(name.as_bytes()).map_err(NameLockError::System)?;
        let socket = match UnixDatagram::bind_addr(&address) {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(NameLockError::Held(name)),
            Err(error) => return Err(NameLockError::System(error)),
        };
        let held_at = place().map(|(boot, network)| Hidden::of(&[&boot, &network, &digest]));
        Ok(Self {
            _socket: socket,
            held_at,
        })
    }

    /// What a broker is shown on a connection from this address. It is in it because machines that were
    /// started from one snapshot of a running one share the rest.
    pub(crate) fn shown(&self, from: IpAddr) -> Option<Hidden> {
        let held_at = self.held_at?.expose();
        Some(Hidden::of(&["usher lock v1", &held_at, &from.to_string()]))
    }
}

/// This boot of the machine, and the network namespace.
fn place() -> Option<(String, String)> {
    let boot = std::fs::read_to_string(BOOT_ID).ok()?;
    let network = std::fs::metadata(NETWORK).ok()?.ino();
    Some((boot.trim().to_owned(), network.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn take(node: &str, brokers: &[&str]) -> Result<NameLock, NameLockError> {
        let brokers: Vec<BrokerAddress> = brokers.iter().map(|broker| broker.parse().unwrap()).collect();
        NameLock::take(&node.parse().unwrap(), &brokers)
    }

    #[test]
    fn a_name_is_one_process_s_at_a_time_and_free_after_it() {
        let first = take("lock-test-1", &["ws://a:1", "ws://b:2"]).unwrap();
        let held = take("lock-test-1", &["ws://b:2", "ws://a:1"]);
        assert!(matches!(held, Err(NameLockError::Held(_))), "{held:?}");
        let shown = first.shown(HERE);
        drop(first);
        let next = take("lock-test-1", &["ws://a:1", "ws://b:2"]).unwrap();
        assert!(shown.is_some() && next.shown(HERE) == shown);
        assert_ne!(next.shown("10.0.0.1".parse().unwrap()), shown);
    }

    #[test]
    fn other_names_and_other_pools_are_no_rivals() {
        let first = take("lock-test-2", &["ws://a:1"]).unwrap();
        let other_name = take("lock-test-3", &["ws://a:1"]).unwrap();
        let other_pool = take("lock-test-2", &["ws://a:2"]).unwrap();
        let shown = first.shown(HERE);
        assert!(shown != other_name.shown(HERE) && shown != other_pool.shown(HERE));
    }
}
