//! What `usher dev` shows when all is up: as a page for people, as a line of JSON for programs.

use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use usher_shared::id::NodeId;

use super::ports::Addresses;
use crate::table::{self, Column, NONE, count};

/// A cluster that is up.
#[derive(Debug, Serialize)]
pub(super) struct Cluster {
    pub(super) broker: BrokerProcess,
    pub(super) nodes: Vec<NodeProcess>,
    /// The data folder.
    pub(super) data: String,
}

#[derive(Debug, Serialize)]
pub(super) struct BrokerProcess {
    /// Where clients ask, as `http://host:port`.
    pub(super) clients: String,
    /// Where operators come, as `http://host:port`.
    pub(super) admin: String,
    /// Where nodes dial, as `ws://host:port`.
    pub(super) node_link: String,
    pub(super) pid: Option<u32>,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeProcess {
    pub(super) node: NodeId,
    /// Where clients connect, as `ws://host:port`.
    pub(super) url: String,
    /// Metrics and health, as `http://host:port`.
    pub(super) admin: String,
    /// The small parent.
    pub(super) pid: Option<u32>,
    /// The process that does the work.
    pub(super) worker_pid: Option<u32>,
}

impl Cluster {
    pub(super) fn new(
        addresses: &Addresses,
        broker: Option<u32>,
        nodes: Vec<(Option<u32>, Option<u32>)>,
        data: &Path,
    ) -> Self {
        Self {
            broker: BrokerProcess {
                clients: format!("http://{}", addresses.clients),
                admin: format!("http://{}", addresses.admin),
                node_link: format!("ws://{}", addresses.node_link),
                pid: broker,
            },
            nodes: addresses
                .nodes
                .iter()
                .zip(nodes)
                .map(|(node, (pid, worker_pid))| NodeProcess {
                    node: node.node.clone(),
                    url: format!("ws://{}", node.listen),
                    admin: format!("http://{}", node.admin),
                    pid,
                    worker_pid,
                })
                .collect(),
            data: data.display().to_string(),
        }
    }

    /// The page. `command` is how this executable was called.
    pub(super) fn page(&self, command: &str, scratch: Scratch) -> String {
        let mut text = format!(
            "A broker and {} are up.\n\n",
            count(self.nodes.len() as u64, "node")
        );
        text.push_str(&self.processes());
        let _ = writeln!(text, "\n{:<11}{}", "operators", self.broker.admin);
        let _ = writeln!(text, "{:<11}{}/metrics", "metrics", self.broker.admin);
        for node in &self.nodes {
            let _ = writeln!(text, "{:<11}{}/metrics", "", node.admin);
        }
        let _ = writeln!(text, "{:<11}{}", "node link", self.broker.node_link);
        let kept = match scratch {
            Scratch::Removed => "removed at the end; --data FOLDER keeps it",
            Scratch::Kept => "kept",
        };
        let _ = writeln!(text, "{:<11}{} ({kept})", "data", self.data);
        let _ = writeln!(text, "{:<11}{}/logs (--logs shows them here)", "logs", self.data);
        text.push_str(&self.tries(command));
        text
    }

    fn processes(&self) -> String {
        const COLUMNS: [Column; 4] = [
            Column::Text("PROCESS"),
            Column::Number("PID"),
            Column::Text("STATE"),
            Column::Text("CLIENTS"),
        ];
        let pid = |pid: Option<u32>| pid.map_or(NONE.to_owned(), |pid| pid.to_string());
        let broker = vec![
            "broker".to_owned(),
            pid(self.broker.pid),
            "ready".to_owned(),
            format!("{}/connect/TEAM", self.broker.clients),
        ];
        let nodes = self.nodes.iter().map(|node| {
            vec![
                node.node.to_string(),
                pid(node.worker_pid),
                "ready".to_owned(),
                format!("{}/teams/TEAM", node.url),
            ]
        });
        table::render(&COLUMNS, std::iter::once(broker).chain(nodes))
    }

    fn tries(&self, command: &str) -> String {
        let mut text = "\nTry, in another terminal:\n".to_owned();
        let clients = &self.broker.clients;
        if self.broker.admin != "http://127.0.0.1:7401" {
            let _ = writeln!(text, "  export USHER_ADMIN={}", self.broker.admin);
        }
        if clients != "http://127.0.0.1:7400" {
            let _ = writeln!(text, "  export USHER_BROKER={clients}");
        }
        let mut line = |what: &str, how: &str| {
            let _ = writeln!(text, "  {what:<42}{how}");
        };
        line(
            "where does T1 go?",
            &format!("curl -s -H 'Accept: application/json' {clients}/connect/T1"),
        );
        line(
            "be a client of T1; a second one hears it",
            &format!("{command} connect T1"),
        );
        line("who is where", &format!("{command} nodes"));
        line("why T1 is where it is", &format!("{command} why T1"));
        line(
            "300 clients that check each other",
            &format!("{command} load --connections 300 --teams 150 --duration 5m"),
        );
        if let Some(node) = self.nodes.first() {
            let pid = node.worker_pid.map_or("PID".to_owned(), |pid| pid.to_string());
            line(
                &format!("kill {}: all are back in a moment", node.node),
                &format!("kill -9 {pid}"),
            );
        }
        if let Some(node) = self.nodes.get(1) {
            line(
                "empty a node, gently",
                &format!("{command} drain {} --wait", node.node),
            );
            line(
                "and let it take teams again",
                &format!("{command} undrain {}", node.node),
            );
        }
        let _ = write!(
            text,
            "\nIn a page on this machine (a browser's console will do):\n  \
             const ask = await fetch('{clients}/connect/T1', {{ headers: {{ Accept: 'application/json' }} }})\n  \
             const socket = new WebSocket((await ask.json()).url)\n  \
             socket.onmessage = message => console.log(message.data)\n  \
             socket.onopen = () => socket.send('hello')\n\
             \nCtrl-C stops everything. What happens is told below.\n\n"
        );
        text
    }
}

/// What becomes of the data folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scratch {
    Removed,
    Kept,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::ports::NodeAddresses;

    fn cluster(base: u16) -> Cluster {
        let at = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = Addresses {
            clients: at(base),
            admin: at(base + 1),
            node_link: at(base + 2),
            nodes: vec![NodeAddresses {
                node: "node-1".parse().unwrap(),
                listen: at(base + 10),
                admin: at(base + 110),
            }],
        };
        Cluster::new(
            &addresses,
            Some(10),
            vec![(Some(11), Some(12))],
            Path::new("/data"),
        )
    }

    #[test]
    fn the_page_has_processes_urls_and_what_to_try() {
        let page = cluster(7_400).page("usher", Scratch::Removed);
        assert!(
            page.starts_with(
                "A broker and 1 node are up.\n\n\
                 PROCESS  PID  STATE  CLIENTS\n\
                 broker    10  ready  http://127.0.0.1:7400/connect/TEAM\n\
                 node-1    12  ready  ws://127.0.0.1:7410/teams/TEAM\n"
            ),
            "{page}"
        );
        assert!(page.contains("kill -9 12") && !page.contains("export"), "{page}");
    }

    #[test]
    fn other_ports_come_with_the_variables_that_lead_to_them() {
        let page = cluster(8_000).page("usher", Scratch::Kept);
        assert!(
            page.contains("export USHER_ADMIN=http://127.0.0.1:8001"),
            "{page}"
        );
        assert!(
            page.contains("export USHER_BROKER=http://127.0.0.1:8000"),
            "{page}"
        );
    }

    #[test]
    fn programs_get_one_object() {
        let json = serde_json::to_string(&cluster(7_400)).unwrap();
        assert_eq!(
            json,
            "{\"broker\":{\"clients\":\"http://127.0.0.1:7400\",\"admin\":\"http://127.0.0.1:7401\",\
             \"node_link\":\"ws://127.0.0.1:7402\",\"pid\":10},\"nodes\":[{\"node\":\"node-1\",\
             \"url\":\"ws://127.0.0.1:7410\",\"admin\":\"http://127.0.0.1:7510\",\"pid\":11,\"worker_pid\":12}],\
             \"data\":\"/data\"}"
        );
    }
}
