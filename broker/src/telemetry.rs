//! What the broker counts. Names and help texts are in one place, so that a dashboard's author finds
//! them; figures of nodes are rendered at each scrape by [`crate::figures`].

use metrics::{
    Counter, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use std::time::Duration;
use usher_placement::{MoveOutcome, Notice, Pace, Preservation, TrustChange};
use usher_shared::link::EndedBy;
use usher_shared::rest::{Cause, Gate, OperationKind, ProbeState};

use crate::link_message::for_log;

use crate::refusals::{CODES, Refusals};

pub(crate) const REDIRECTS: &str = "usher_redirects_total";
pub(crate) const REFUSED: &str = "usher_connect_refused_total";
pub(crate) const BAD_TICKETS: &str = "usher_tickets_bad_total";
pub(crate) const ASSIGNMENTS: &str = "usher_assignments_total";
pub(crate) const ASSIGN_DURATION: &str = "usher_assign_duration_seconds";
pub(crate) const MOVES: &str = "usher_moves_total";
pub(crate) const MOVE_DEPARTURES: &str = "usher_move_departures_total";
pub(crate) const MOVE_GAP: &str = "usher_move_gap_seconds";
pub(crate) const STORE_FLUSH: &str = "usher_store_flush_duration_seconds";
pub(crate) const READS_REFUSED: &str = "usher_reads_refused_total";
pub(crate) const STORE_FAILING: &str = "usher_store_failing";
pub(crate) const BAD_MESSAGES: &str = "usher_link_bad_messages_total";
pub(crate) const NODES_DEAD: &str = "usher_nodes_dead_total";
pub(crate) const STORE_REGRESSED: &str = "usher_store_regressed_total";
pub(crate) const CLOCK_PACE: &str = "usher_node_clock_pace_changes_total";
pub(crate) const NODES_REFUSED: &str = "usher_nodes_refused_total";
pub(crate) const PROBE_ADDRESSES: &str = "usher_node_probe_addresses_total";
pub(crate) const EXITS_DISBELIEVED: &str = "usher_node_exits_disbelieved_total";
pub(crate) const UNPLACED: &str = "usher_unplaced_total";
pub(crate) const OPERATIONS: &str = "usher_operations_total";
pub(crate) const TRUST: &str = "usher_node_trust_changes_total";
pub(crate) const URL_FAILURES: &str = "usher_node_url_failures_total";
pub(crate) const URLS_SHARED: &str = "usher_node_urls_shared_total";
pub(crate) const SELF_PRESERVATION: &str = "usher_self_preservation_changes_total";
pub(crate) const DELIVERIES_MISSED: &str = "usher_move_deliveries_missed_total";

/// Every code that a client can be refused with, and one for what a later version adds.
const REFUSALS: [&str; 15] = [
    "bad_query",
    "bad_team",
    "bad_upgrade",
    "busy",
    "foreign_origin",
    "no_node",
    "node_full",
    "other",
    "pinned",
    "query_too_long",
    "stopping",
    "store_failing",
    "too_many_hops",
    "too_many_teams",
    "unknown_team",
];

/// The counters of the clients' listener, at hand so that a redirect looks up none.
#[derive(Clone)]
pub(crate) struct ClientCounters {
    pub(crate) json: Counter,
    pub(crate) redirect: Counter,
    pub(crate) in_band: Counter,
    pub(crate) post: Counter,
    pub(crate) bad_tickets: Counter,
}

impl Default for ClientCounters {
    fn default() -> Self {
        Self {
            json: counter!(REDIRECTS, "way" => "json"),
            redirect: counter!(REDIRECTS, "way" => "redirect"),
            in_band: counter!(REDIRECTS, "way" => "in_band"),
            post: counter!(REDIRECTS, "way" => "post"),
            bad_tickets: counter!(BAD_TICKETS),
        }
    }
}

impl std::fmt::Debug for ClientCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCounters").finish_non_exhaustive()
    }
}

impl ClientCounters {
    /// Counts a refusal. Labels come from a fixed list, whatever the code is.
    pub(crate) fn refused(&self, code: &str) {
        let known = REFUSALS.iter().find(|known| **known == code);
        counter!(REFUSED, "code" => *known.unwrap_or(&"other")).increment(1);
    }
}

/// Describes every metric and sets those with known labels to 0, so that no graph is empty.
pub(crate) fn describe() {
    describe_counter!(
        REDIRECTS,
        Unit::Count,
        "Clients sent to their node, by how they were told"
    );
    describe_counter!(
        REFUSED,
        Unit::Count,
        "Requests for /connect that were refused, by the problem's code"
    );
    describe_counter!(
        BAD_TICKETS,
        Unit::Count,
        "Old tickets that were not ours or not for that team; they count as absent"
    );
    describe_counter!(
        ASSIGNMENTS,
        Unit::Count,
        "Teams given an owner, by what for, and by `score` or what strained the node"
    );
    describe_histogram!(
        ASSIGN_DURATION,
        Unit::Seconds,
        "From a connect or PUT that had to ask the core to its durable answer"
    );
    describe_counter!(
        MOVES,
        Unit::Count,
        "Moves of one team that ended, by what for and how"
    );
    describe_histogram!(
        MOVE_GAP,
        Unit::Seconds,
        "How long a moved client was without a connection, where it can be told apart"
    );
    describe_histogram!(
        STORE_FLUSH,
        Unit::Seconds,
        "How long the store took to make one batch durable"
    );
    describe_counter!(
        READS_REFUSED,
        Unit::Count,
        "Reads of teams that were refused, by the problem's code"
    );
    describe_gauge!(
        STORE_FAILING,
        "1 while the store cannot be written, and nothing is granted"
    );
    describe_counter!(
        BAD_MESSAGES,
        Unit::Count,
        "Messages of nodes that broke a bound, were of no known type, or came out of order, by which of these"
    );
    describe_counter!(
        NODES_DEAD,
        Unit::Count,
        "Nodes that were counted as dead, by how it was known"
    );
    describe_counter!(
        NODES_REFUSED,
        Unit::Count,
        "Links of nodes that were refused, by code; `unauthorized` is a token that is not the broker's"
    );
    describe_counter!(
        PROBE_ADDRESSES,
        Unit::Count,
        "Probe addresses that were asked who is there, by the answer"
    );
    describe_counter!(
        EXITS_DISBELIEVED,
        Unit::Count,
        "Reports of a node's end that did not show its nonce, or that its link contradicts"
    );
    describe_counter!(
        STORE_REGRESSED,
        Unit::Count,
        "Times that a node showed more than the store knows: it was restored from an old copy, or lost writes"
    );
    describe_counter!(
        CLOCK_PACE,
        Unit::Count,
        "Times that a node's clock began to run at another pace than the broker's, or like it again"
    );
    describe_counter!(
        UNPLACED,
        Unit::Count,
        "Times that a team needed an owner and no node could take it, by what for"
    );
    describe_counter!(
        TRUST,
        Unit::Count,
        "Times that a node was kept back because no client gets there or it dies again and again, was tried again, or \
         trusted again"
    );
    describe_counter!(
        URL_FAILURES,
        Unit::Count,
        "Times that nothing began to answer the broker at the URL that a node announces to clients"
    );
    describe_counter!(
        URLS_SHARED,
        Unit::Count,
        "Times that a node joined with the URL of another live node"
    );
    describe_counter!(
        SELF_PRESERVATION,
        Unit::Count,
        "Times that self-preservation began or ended, and how"
    );
    describe_counter!(
        OPERATIONS,
        Unit::Count,
        "Operations that began, ended, or waited because what left did not arrive, by kind"
    );
    describe_counter!(
        MOVE_DEPARTURES,
        Unit::Count,
        "Connections that left their old node with their team, by who ended them"
    );
    describe_counter!(
        DELIVERIES_MISSED,
        Unit::Count,
        "Frames that members of a team on its way did not get, one for each frame and member, as far as nodes count"
    );
    register();
}

fn register() {
    let _ = ClientCounters::default();
    for code in REFUSALS {
        counter!(REFUSED, "code" => code).increment(0);
    }
    for cause in Cause::ALL {
        counter!(ASSIGNMENTS, "cause" => cause.as_str(), "reason" => "score").increment(0);
        counter!(UNPLACED, "cause" => cause.as_str()).increment(0);
    }
    for cause in [Cause::Drain, Cause::Shed, Cause::Failover, Cause::Full] {
        for outcome in MoveOutcome::ALL {
            counter!(MOVES, "cause" => cause.as_str(), "outcome" => outcome.as_str()).increment(0);
        }
    }
    for kind in OperationKind::ALL {
        for step in ["began", "ended", "waited"] {
            counter!(OPERATIONS, "kind" => kind.as_str(), "step" => step).increment(0);
        }
    }
    for change in ["unreachable", "crashing", "on_trial", "trusted"] {
        counter!(TRUST, "change" => change).increment(0);
    }
    for by in EndedBy::ALL {
        counter!(MOVE_DEPARTURES, "by" => by.as_str()).increment(0);
    }
    counter!(URL_FAILURES).increment(0);
    counter!(URLS_SHARED).increment(0);
    for change in ["begun", "recovered", "released", "expired"] {
        counter!(SELF_PRESERVATION, "change" => change).increment(0);
    }
    for what in ["bound", "unknown", "order"] {
        counter!(BAD_MESSAGES, "what" => what).increment(0);
    }
    for code in CODES {
        counter!(NODES_REFUSED, "code" => code).increment(0);
    }
    counter!(DELIVERIES_MISSED).increment(0);
    counter!(EXITS_DISBELIEVED).increment(0);
    for state in [ProbeState::Proven, ProbeState::Silent, ProbeState::Foreign] {
        counter!(PROBE_ADDRESSES, "state" => state.as_str()).increment(0);
    }
    counter!(STORE_REGRESSED).increment(0);
    for pace in ["even", "fast", "slow"] {
        counter!(CLOCK_PACE, "pace" => pace).increment(0);
    }
    for code in ["busy", "stopping", "store_failing"] {
        counter!(READS_REFUSED, "code" => code).increment(0);
    }
    gauge!(STORE_FAILING).set(0.0);
    // A histogram shows nothing until it is touched; these make its name known.
    let _ = (
        histogram!(ASSIGN_DURATION),
        histogram!(MOVE_GAP),
        histogram!(STORE_FLUSH),
    );
}

/// A notice of the core, as a log line and as counts.
pub(crate) fn note(notice: &Notice, refusals: &Refusals) {
    match notice {
        Notice::NodeReady {
            node,
            teams,
            url,
            version,
        } => {
            refusals.met_a_node();
            tracing::info!(%node, teams, url = for_log(url), version = for_log(version), "node is ready");
        }
        Notice::ProbeAnswered { node, address, state } => {
            counter!(PROBE_ADDRESSES, "state" => state.as_str()).increment(1);
            if *state != ProbeState::Proven {
                let address = for_log(address);
                tracing::warn!(
                    %node,
                    address,
                    state = state.as_str(),
                    "the node does not answer at its probe address: its death is known by its parent's word or by \
                     the end of its lease, and no peer can ask it. Give it --probe-listen or --probe with an address \
                     that leads to it from here"
                );
            }
        }
        Notice::ExitDisbelieved { node, why } => {
            counter!(EXITS_DISBELIEVED).increment(1);
            tracing::error!(
                %node,
                detail = why.as_str(),
                "a report that this node has ended is not believed; whoever sent it has the node token"
            );
        }
        Notice::NodeRefused { node, code, detail } => refusals.refused(code.as_str(), node.as_str(), detail),
        Notice::NodeSilent { node } => tracing::warn!(%node, "node fell silent"),
        Notice::NodeDead {
            node,
            evidence,
            teams,
        } => {
            counter!(NODES_DEAD, "evidence" => evidence.as_str()).increment(1);
            tracing::warn!(%node, evidence = evidence.as_str(), teams, "node is dead; its teams get new owners");
        }
        Notice::Assigned {
            team,
            node,
            epoch,
            cause,
            last_resort,
        } => {
            let reason = last_resort.map_or("score", Gate::as_str);
            counter!(ASSIGNMENTS, "cause" => cause.as_str(), "reason" => reason).increment(1);
            tracing::debug!(%team, %node, %epoch, cause = cause.as_str(), reason, "team assigned");
        }
        Notice::Unplaced { team, cause } => {
            counter!(UNPLACED, "cause" => cause.as_str()).increment(1);
            tracing::debug!(%team, cause = cause.as_str(), "no node can take this team");
        }
        Notice::Moved { cause, outcome } => {
            counter!(MOVES, "cause" => cause.as_str(), "outcome" => outcome.as_str()).increment(1);
        }
        Notice::Departed { by, connections } => {
            counter!(MOVE_DEPARTURES, "by" => by.as_str()).increment(u64::from(*connections));
        }
        Notice::Gap { millis } => histogram!(MOVE_GAP).record(Duration::from_millis(*millis)),
        Notice::OperationBegan {
            operation,
            kind,
            node,
        } => {
            counter!(OPERATIONS, "kind" => kind.as_str(), "step" => "began").increment(1);
            tracing::info!(%operation, kind = kind.as_str(), %node, "operation began");
        }
        Notice::OperationWaits {
            operation,
            node,
            gone,
            back,
        } => {
            counter!(OPERATIONS, "kind" => "drain", "step" => "waited").increment(1);
            tracing::error!(
                %operation,
                %node,
                gone,
                back,
                "what leaves does not arrive elsewhere: waiting. Drain the node again to let some more go, with \
                 force to go on to the end, or undrain it"
            );
        }
        Notice::Missed { deliveries } => counter!(DELIVERIES_MISSED).increment(*deliveries),
        Notice::KeptAway { node, wish } => tracing::info!(
            %node,
            wish = wish.as_str(),
            "an operator keeps this node from taking new teams, over restarts, too, until `usher undrain` or \
             `usher uncordon`"
        ),
        Notice::OperationEnded {
            operation,
            kind,
            detail,
            report,
        } => {
            counter!(OPERATIONS, "kind" => kind.as_str(), "step" => "ended").increment(1);
            tracing::info!(
                %operation,
                kind = kind.as_str(),
                node = %report.node,
                took_ms = report.elapsed_ms,
                teams = report.teams,
                teams_moved = report.teams_moved,
                connections = report.connections,
                moved = report.connections_moved,
                back = report.connections_back,
                not_back = report.connections_not_back,
                detail,
                "operation ended"
            );
        }
        Notice::SelfPreservation {
            change,
            silent,
            nodes,
        } => {
            counter!(SELF_PRESERVATION, "change" => change.as_str()).increment(1);
            note_preservation(*change, *silent, *nodes, refusals);
        }
        Notice::GraceOver { reported, known } => tracing::info!(reported, known, "grace is over"),
        Notice::StoreRegressed { node, by } => {
            counter!(STORE_REGRESSED).increment(1);
            tracing::error!(%node, detail = %by, "the store is older than what a node knows");
        }
        Notice::ClockPace { node, pace } => {
            let word = match pace {
                Pace::Even => "even",
                Pace::Fast { .. } => "fast",
                Pace::Slow { .. } => "slow",
            };
            counter!(CLOCK_PACE, "pace" => word).increment(1);
            match pace {
                Pace::Even => tracing::info!(%node, "the node's clock runs as this broker's again"),
                Pace::Fast { ppm } | Pace::Slow { ppm } => tracing::error!(
                    %node,
                    pace = word,
                    ppm,
                    "the node's clock runs at another pace than this broker's, and leases count on less than half a \
                     percent: it gets no new teams. Mend its clock, or drain it"
                ),
            }
        }
        Notice::Trust { node, change } => note_trust(node, change),
        Notice::UrlProbed { node, url, failed } => match failed {
            Some(error) => {
                counter!(URL_FAILURES).increment(1);
                tracing::warn!(
                    %node,
                    url,
                    error,
                    "nothing answers this broker at the URL that the node announces to clients; if clients reach it from \
                     elsewhere all is well, otherwise set the node's --url"
                );
            }
            None => tracing::info!(%node, url, "something answers at the node's URL"),
        },
        Notice::UrlShared { node, other, url } => {
            counter!(URLS_SHARED).increment(1);
            tracing::error!(
                %node,
                %other,
                url,
                "two live nodes announce one URL to clients: they cannot both be right; give each its own --url, or \
                 put {{node}} into it"
            );
        }
        Notice::Full {
            node,
            by: Some(gate),
            connections,
        } => tracing::warn!(
            %node,
            by = gate.as_str(),
            connections,
            "node is full; teams that clients ask for move to others"
        ),
        Notice::Full {
            node,
            by: None,
            connections,
        } => {
            tracing::info!(%node, connections, "node has room for connections again");
        }
        Notice::Strained { node, by: Some(gate) } => {
            let by = gate.as_str();
            tracing::warn!(%node, by, "node is strained; new teams go elsewhere while others are less busy");
        }
        Notice::Strained { node, by: None } => tracing::info!(%node, "node is strained no more"),
        Notice::BadMessage { node, fault } => {
            counter!(BAD_MESSAGES, "what" => "order").increment(1);
            tracing::warn!(%node, detail = %fault, "bad message");
        }
    }
}

fn note_preservation(change: Preservation, silent: u32, nodes: u32, refusals: &Refusals) {
    match change {
        Preservation::Begun { for_ms } if refusals.lately().contains_key("unauthorized") => tracing::error!(
            silent,
            nodes,
            ends_in_ms = for_ms,
            "too many nodes fell silent at once, and links are refused for their token: the nodes live and cannot come \
             in. Give nodes and broker the same token; do not release self-preservation"
        ),
        Preservation::Begun { for_ms } => tracing::error!(
            silent,
            nodes,
            ends_in_ms = for_ms,
            "too many nodes that hold teams fell silent at once: for that long none counts as dead for silence alone; \
             POST /v1/self-preservation/release once they are known to be dead"
        ),
        Preservation::Expired => tracing::error!(
            silent,
            nodes,
            "self-preservation is over by its bound in time: silent nodes count as dead, their teams move"
        ),
        Preservation::Recovered | Preservation::Released => {
            tracing::info!(silent, nodes, how = change.as_str(), "self-preservation is over");
        }
    }
}

fn note_trust(node: &usher_shared::id::NodeId, change: &TrustChange) {
    counter!(TRUST, "change" => change.as_str()).increment(1);
    match change {
        TrustChange::Distrusted { why, for_ms } => tracing::error!(
            %node,
            why,
            again_in_ms = for_ms,
            "no client gets to this node although it is heard: new teams go elsewhere, and its teams follow their clients. \
             Look at its --url, firewalls and TLS"
        ),
        TrustChange::OnTrial => tracing::info!(%node, "a few teams try this node again"),
        TrustChange::Trusted => tracing::info!(%node, "clients get to this node again"),
        TrustChange::Crashing { deaths, for_ms } => tracing::error!(
            %node,
            deaths,
            again_in_ms = for_ms,
            "this node dies again and again: new teams go elsewhere for a while"
        ),
    }
}
