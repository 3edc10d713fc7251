//! Which ports a cluster on one machine takes, and whether they are free.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::str::FromStr;
use usher_shared::id::NodeId;

use crate::failure::Failure;

/// Nodes stand this far above the base, their admin listeners another hundred.
const NODES_ABOVE: u16 = 10;
const NODE_ADMINS_ABOVE: u16 = 110;
/// The most nodes: beyond it their ports would meet their admin ports.
pub(super) const NODES_MAX: u32 = 100;
/// Ports for `auto`: above the well-known services, and below 32768, where Linux starts to take
/// source ports from. A node that dies under thousands of clients must find its own port free.
const AUTO: std::ops::Range<u16> = 12_000..32_000;
/// Ports tried before `auto` gives up.
const AUTO_TRIES: usize = 10_000;

/// How ports are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ports {
    /// From this one on.
    From(u16),
    /// Free ones.
    Auto,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse::<u16>() {
            Ok(base) if (1..=65_000).contains(&base) => Ok(Self::From(base)),
            _ => Err("it is `auto` or the first port, from 1 to 65000".to_owned()),
        }
    }
}

/// The addresses of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) clients: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) node_link: SocketAddr,
    pub(super) nodes: Vec<NodeAddresses>,
}

/// The addresses of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeAddresses {
    pub(super) node: NodeId,
    pub(super) listen: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// Ports that were asked for one by one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wishes {
    pub(super) clients: Option<u16>,
    pub(super) admin: Option<u16>,
    pub(super) node_link: Option<u16>,
    pub(super) node: Option<u16>,
    pub(super) node_admin: Option<u16>,
}

/// The addresses, every one of them free at this moment.
pub(super) fn choose(ports: Ports, wishes: Wishes, nodes: u32) -> Result<Addresses, Failure> {
    let addresses = match ports {
        Ports::From(base) => lay_out(base, wishes, nodes)?,
        Ports::Auto => pick(wishes, nodes)?,
    };
    check(&addresses)?;
    Ok(addresses)
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn name(number: u32) -> Result<NodeId, Failure> {
    format!("node-{number}").parse().map_err(Failure::settings)
}

fn lay_out(base: u16, wishes: Wishes, nodes: u32) -> Result<Addresses, Failure> {
    let above = |start: Option<u16>, above: u16, number: u32| {
        let start = start.map_or(u32::from(base) + u32::from(above), u32::from);
        u16::try_from(start + number).map_err(|_| {
            Failure::settings(anyhow::anyhow!(
                "{nodes} nodes from port {start} go beyond port 65535"
            ))
            .try_this("a lower --ports, --node-port or --node-admin-port")
        })
    };
    let node = |number: u32| -> Result<NodeAddresses, Failure> {
        Ok(NodeAddresses {
            node: name(number + 1)?,
            listen: at(above(wishes.node, NODES_ABOVE, number)?),
            admin: at(above(wishes.node_admin, NODE_ADMINS_ABOVE, number)?),
        })
    };
    Ok(Addresses {
        clients: at(above(wishes.clients, 0, 0)?),
        admin: at(above(wishes.admin, 1, 0)?),
        node_link: at(above(wishes.node_link, 2, 0)?),
        nodes: (0..nodes).map(node).collect::<Result<_, _>>()?,
    })
}

/// Free ports, except where one was asked for.
fn pick(wishes: Wishes, nodes: u32) -> Result<Addresses, Failure> {
    let mut taken = BTreeSet::new();
    let mut free = |wish: Option<u16>| -> Result<SocketAddr, Failure> {
        if let Some(wish) = wish {
            return Ok(at(wish));
        }
        for _ in 0..AUTO_TRIES {
            let port = rand::random_range(AUTO);
            if TcpListener::bind(at(port)).is_ok() && taken.insert(port) {
                return Ok(at(port));
            }
        }
        Err(Failure::say("no free port was found").try_this("--ports BASE"))
    };
    let clients = free(wishes.clients)?;
    let admin = free(wishes.admin)?;
    let node_link = free(wishes.node_link)?;
    let mut list = Vec::new();
    for number in 0..nodes {
        // A wish for the first node's port holds for the ones after it as well.
        let after = |wish: Option<u16>| wish.and_then(|wish| wish.checked_add(u16::try_from(number).ok()?));
        list.push(NodeAddresses {
            node: name(number + 1)?,
            listen: free(after(wishes.node))?,
            admin: free(after(wishes.node_admin))?,
        });
    }
    Ok(Addresses {
        clients,
        admin,
        node_link,
        nodes: list,
    })
}

/// Refuses to start when a port is taken, naming the port and the flag that moves it.
fn check(addresses: &Addresses) -> Result<(), Failure> {
    let broker = [
        (
            "the broker's client listener",
            addresses.clients,
            "--clients-port",
        ),
        ("the broker's admin listener", addresses.admin, "--admin-port"),
        ("the broker's node link", addresses.node_link, "--node-link-port"),
    ];
    let broker = broker.map(|(what, address, flag)| (what.to_owned(), address, flag));
    let nodes = addresses.nodes.iter().flat_map(|node| {
        [
            (
                format!("{}'s client listener", node.node),
                node.listen,
                "--node-port",
            ),
            (
                format!("{}'s admin listener", node.node),
                node.admin,
                "--node-admin-port",
            ),
        ]
    });
    let mut seen = BTreeSet::new();
    for (what, address, flag) in broker.into_iter().chain(nodes) {
        if !seen.insert(address) {
            return Err(Failure::settings(anyhow::anyhow!(
                "port {} is wanted twice, the second time for {what}",
                address.port()
            ))
            .try_this(format!("another {flag}")));
        }
        if let Err(error) = TcpListener::bind(address) {
            let why = match error.kind() {
                std::io::ErrorKind::AddrInUse => "is in use".to_owned(),
                _ => format!("cannot be used ({error})"),
            };
            return Err(
                Failure::settings(anyhow::anyhow!("port {} of {what} {why}", address.port())).try_this(format!(
                    "stop what runs there (`ss -ltnp | grep {}` shows it), or {flag} PORT, or --ports BASE for all, or --ports auto",
                    address.port()
                )),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_layout_is_the_documented_one() {
        let addresses = lay_out(7_400, Wishes::default(), 3).unwrap();
        let ports = |address: &SocketAddr| address.port();
        assert_eq!(
            [&addresses.clients, &addresses.admin, &addresses.node_link].map(ports),
            [7_400, 7_401, 7_402]
        );
        let nodes: Vec<_> = addresses
            .nodes
            .iter()
            .map(|node| (node.node.as_str(), node.listen.port(), node.admin.port()))
            .collect();
        assert_eq!(
            nodes,
            [
                ("node-1", 7_410, 7_510),
                ("node-2", 7_411, 7_511),
                ("node-3", 7_412, 7_512)
            ]
        );
    }

    #[test]
    fn a_port_in_use_is_named_with_its_flag() {
        let listener = TcpListener::bind(at(0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let wishes = Wishes {
            admin: Some(port),
            ..Wishes::default()
        };
        let refused = choose(Ports::Auto, wishes, 1).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("port {port} of the broker's admin listener is in use"))
                && refused.contains("--admin-port"),
            "{refused}"
        );
    }

    #[test]
    fn automatic_ports_differ_and_are_free() {
        let addresses = choose(Ports::Auto, Wishes::default(), 20).unwrap();
        let mut ports: Vec<u16> = addresses
            .nodes
            .iter()
            .flat_map(|node| [node.listen.port(), node.admin.port()])
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 40);
    }

    #[test]
    fn ports_are_auto_or_a_base() {
        assert_eq!("auto".parse(), Ok(Ports::Auto));
        assert_eq!("8000".parse(), Ok(Ports::From(8_000)));
        for bad in ["0", "65536", "x", "-1"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
        assert!(lay_out(65_000, Wishes::default(), 100).is_ok());
        let high = Wishes {
            node: Some(65_535),
            ..Wishes::default()
        };
        assert!(lay_out(7_400, high, 2).is_err());
    }
}
