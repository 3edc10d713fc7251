//! `usher nodes`: who is in the pool and how busy each is.

use clap::Args;
use std::fmt::Write as _;
use std::process::ExitCode;
use usher_shared::id::NodeId;
use usher_shared::rest::{Gate, NodeView, NodesView, ProbeState};

use crate::api::{Api, AskArgs, json};
use crate::duration::for_people;
use crate::failure::Failure;
use crate::output;
use crate::table::{self, Column, NONE, bytes, cores, ppm};

/// The nodes, how busy each is, and what keeps new teams away
#[derive(Args)]
#[command(
    after_help = "BUSY is the score: the node with the lowest gets the next team. CPU is the moving\n\
    average in cores, of the cores the node may use. OF LIMIT is how much of the memory of its container,\n\
    or of its machine, is in use.\n\n\
    Examples:\n  usher nodes\n  usher nodes node-1\n  usher nodes --json | jq '.nodes[].score'"
)]
pub(crate) struct NodesArgs {
    /// Only this node
    #[arg(value_name = "NODE")]
    node: Option<NodeId>,
    #[command(flatten)]
    ask: AskArgs,
}

pub(crate) async fn run(args: NodesArgs) -> Result<ExitCode, Failure> {
    let api = Api::new(&args.ask.admin)?;
    let view = match &args.node {
        Some(node) => {
            let node: NodeView = api.get(&format!("/v1/nodes/{node}")).await?;
            NodesView { nodes: vec![node] }
        }
        None => api.get("/v1/nodes").await?,
    };
    if args.ask.json {
        match (&args.node, view.nodes.first()) {
            (Some(_), Some(node)) => output::line(&json(node)?),
            _ => output::line(&json(&view)?),
        }
    } else if view.nodes.is_empty() {
        output::line("no node has joined yet; start one with `usher node --broker ws://BROKER:7402`");
    } else {
        output::text(&render(&view));
        for note in view
            .nodes
            .iter()
            .flat_map(|node| [rival(node), probe(node)])
            .flatten()
        {
            output::line(&note);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn render(view: &NodesView) -> String {
    const COLUMNS: [Column; 11] = [
        Column::Text("NODE"),
        Column::Text("STATE"),
        Column::Number("TEAMS"),
        Column::Number("CONNECTIONS"),
        Column::Number("BUSY"),
        Column::Number("CPU"),
        Column::Number("MEMORY"),
        Column::Number("OF LIMIT"),
        Column::Number("HEARD"),
        Column::Text("KEEPS NEW TEAMS AWAY"),
        Column::Text("URL"),
    ];
    let rows = view.nodes.iter().map(|node| {
        vec![
            node.node.to_string(),
            state(node),
            node.teams.to_string(),
            node.connections.to_string(),
            ppm(node.score.busy_ppm),
            format!("{}/{}", cores(node.cpu_average), cores(node.cores)),
            bytes(node.memory_bytes),
            of_limit(node),
            for_people(node.heartbeat_age_ms),
            gates(&node.gates),
            node.url.clone(),
        ]
    });
    let mut text = table::render(&COLUMNS, rows);
    for node in &view.nodes {
        text.push_str(&doubts(node));
    }
    text
}

/// What speaks against a node that is heard well, a line each.
fn doubts(node: &NodeView) -> String {
    let mut text = String::new();
    if let Some(distrust) = &node.distrust {
        let again = match distrust.again_in_ms {
            0 => "being tried again".to_owned(),
            millis => format!("tried again in {}", for_people(millis)),
        };
        let since = for_people(distrust.since_ms);
        let _ = writeln!(text, "{}: for {since}: {}; {again}", node.node, distrust.why);
    }
    if let Some(other) = &node.same_url {
        let _ = writeln!(
            text,
            "{}: announces the same URL as {other}; they cannot both be right",
            node.node
        );
    }
    if node.url_answers == Some(false) {
        let _ = writeln!(text, "{}: nothing answers the broker at {}", node.node, node.url);
    }
    text
}

fn state(node: &NodeView) -> String {
    match &node.operation {
        Some(operation) => format!("{} ({operation})", node.state.as_str()),
        None => node.state.as_str().to_owned(),
    }
}

/// What to say of a node whose name another process wants.
fn rival(node: &NodeView) -> Option<String> {
    let rival = node.rival?;
    Some(format!(
        "{name}: another process wants this name and is refused ({} times, the last {} ago); stop it, or give it \
         another --name",
        rival.refused,
        for_people(rival.age_ms),
        name = node.node,
    ))
}

/// What to say of a node that does not answer at its probe address.
fn probe(node: &NodeView) -> Option<String> {
    let who = match node.probe_state {
        ProbeState::Unknown | ProbeState::Proven => return None,
        ProbeState::Silent => "nobody says that he is this node",
        ProbeState::Foreign => "another process answers",
    };
    Some(format!(
        "{}: at its probe address {} {who}; give it --probe-listen or --probe with one that leads to it from the broker",
        node.node, node.probe
    ))
}

/// How far the memory that it shares with others is used up.
fn of_limit(node: &NodeView) -> String {
    node.memory.map_or(NONE.to_owned(), |memory| {
        let percent = memory.used_bytes.saturating_mul(100) / memory.limit_bytes.max(1);
        format!("{percent} %")
    })
}

fn gates(gates: &[Gate]) -> String {
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let words: Vec<&str> = gates.iter().map(|gate| words(*gate)).collect();
    words.join(", ")
}

/// A gate as a person would say it.
pub(crate) const fn words(gate: Gate) -> &'static str {
    match gate {
        Gate::NotReady => "not ready",
        Gate::Cordoned => "cordoned",
        Gate::Draining => "draining",
        Gate::Silent => "silent",
        Gate::FullTeams => "holds as many teams as it may",
        Gate::FullConnections => "holds as many connections as it may",
        Gate::Descriptors => "out of file descriptors",
        Gate::Clock => "clock off by more than 5 s",
        Gate::Region => "another region",
        Gate::Labels => "lacks a label",
        Gate::Leaving => "the team leaves it",
        Gate::Room => "lacks room for the team",
        Gate::Young => "back lately, had its share",
        Gate::CpuCeiling => "CPU over the ceiling",
        Gate::Pressure => "machine or container under pressure",
        Gate::Unreachable => "no client gets there",
        Gate::Crashing => "dies again and again",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use usher_shared::id::Incarnation;
    use usher_shared::link::{Capacity, Memory};
    use usher_shared::quantity::{Millicores, Weight};
    use usher_shared::rest::{NodeState, ScoreView};

    pub(crate) fn score(name: &str, teams_ppm: u64, cpu_ppm: u64, teams: u32) -> ScoreView {
        ScoreView {
            node: name.parse().unwrap(),
            busy_ppm: teams_ppm + cpu_ppm,
            teams_ppm,
            connections_ppm: 0,
            cpu_ppm,
            strain_ppm: 0,
            teams,
            connections: 2 * teams,
            connections_pending: 0,
            cpu_average: Millicores::clamped(120),
            cpu_pending: Millicores::clamped(10),
            last_resort: None,
        }
    }

    pub(crate) fn node(name: &str, incarnation: u128, state: NodeState, teams: u32) -> NodeView {
        NodeView {
            node: name.parse().unwrap(),
            incarnation: Incarnation::from_bits(incarnation),
            state,
            version: "0.1.0".to_owned(),
            url: format!("ws://127.0.0.1:7410/{name}"),
            region: None,
            zone: None,
            labels: BTreeMap::new(),
            weight: Weight::NODE,
            cores: Millicores::clamped(2_000),
            capacity: Capacity {
                teams: 10,
                connections: 10,
            },
            teams,
            connections: 2 * teams,
            cpu_now: Millicores::clamped(0),
            cpu_average: Millicores::clamped(120),
            memory_bytes: 41_943_040,
            memory: Some(Memory {
                used_bytes: 60 << 20,
                limit_bytes: 200 << 20,
            }),
            score: score(name, 480_000, 60_000, teams),
            gates: Vec::new(),
            heartbeat_age_ms: 412,
            operation: None,
            sent: 0,
            arrived: None,
            url_answers: None,
            same_url: None,
            distrust: None,
            probe: "127.0.0.1:7410".to_owned(),
            probe_state: ProbeState::Proven,
            rival: None,
        }
    }

    #[test]
    fn a_second_process_of_a_name_is_told() {
        let mut node = node("node-1", 1, NodeState::Ready, 1);
        assert_eq!(rival(&node), None);
        node.rival = Some(usher_shared::rest::RivalView {
            refused: 3,
            age_ms: 412,
        });
        let said = rival(&node).unwrap();
        assert!(
            said.starts_with("node-1: ") && said.contains("3 times, the last 412 ms ago"),
            "{said}"
        );
    }

    #[test]
    fn nodes_stand_in_a_table() {
        let mut second = node("node-2", 2, NodeState::Draining, 9);
        second.gates = vec![Gate::Draining, Gate::Young];
        second.operation = Some("drain-1".parse().unwrap());
        let view = NodesView {
            nodes: vec![node("node-1", 1, NodeState::Ready, 120), second],
        };
        assert_eq!(
            render(&view),
            "NODE    STATE               TEAMS  CONNECTIONS  BUSY        CPU  MEMORY  OF LIMIT   HEARD  KEEPS NEW TEAMS AWAY                  URL\n\
             node-1  ready                 120          240  0.54  0.12/2.00   41 MB      30 %  412 ms  -                                     ws://127.0.0.1:7410/node-1\n\
             node-2  draining (drain-1)      9           18  0.54  0.12/2.00   41 MB      30 %  412 ms  draining, back lately, had its share  ws://127.0.0.1:7410/node-2\n"
        );
    }
}
