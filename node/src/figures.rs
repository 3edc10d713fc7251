//! The node's metrics. Handles are kept: looking a metric up for each frame costs more than the frame.

use metrics::{Counter, Gauge, Histogram, Unit};
use std::sync::atomic::{AtomicU32, Ordering};

use usher_listen::frames::Rate;

use usher_node_core::admission::Refusal;

/// One relay in so many is timed: enough for quantiles, and the histogram's buffer between two
/// folds stays small on a busy node.
const TIMED: u32 = 16;

/// The handles.
pub(crate) struct Figures {
    pub(crate) connections: Gauge,
    pub(crate) teams: Gauge,
    pub(crate) received: Counter,
    pub(crate) sent: Counter,
    pub(crate) relay_seconds: Histogram,
    pub(crate) slow_readers: Counter,
    pub(crate) pretended: Counter,
    pub(crate) lost: Counter,
    pub(crate) silent: Counter,
    pub(crate) unfinished_time: Counter,
    pub(crate) unfinished_room: Counter,
    pub(crate) unfinished_bytes: Gauge,
    pub(crate) lease_remaining: Gauge,
    pub(crate) acting: Gauge,
    pub(crate) cut_off: Gauge,
    pub(crate) link_up: Gauge,
    pub(crate) cpu_now: Gauge,
    pub(crate) cpu_average: Gauge,
    pub(crate) link_unknown: Counter,
    pub(crate) link_stale: Counter,
    pub(crate) reports_dropped: Counter,
    relays: AtomicU32,
}

impl Figures {
    pub(crate) fn new() -> Self {
        describe();
        Self {
            connections: metrics::gauge!("usher_connections", "direction" => "inbound"),
            teams: metrics::gauge!("usher_node_held_teams"),
            received: metrics::counter!("usher_frames_total", "direction" => "received"),
            sent: metrics::counter!("usher_frames_total", "direction" => "sent"),
            relay_seconds: metrics::histogram!("usher_relay_duration_seconds"),
            slow_readers: metrics::counter!("usher_slow_readers_total"),
            pretended: metrics::counter!("usher_control_pretended_total"),
            lost: metrics::counter!("usher_closes_total", "code" => "lost"),
            silent: metrics::counter!("usher_closes_total", "code" => "silent"),
            unfinished_time: metrics::counter!("usher_unfinished_closed_total", "for" => "time"),
            unfinished_room: metrics::counter!("usher_unfinished_closed_total", "for" => "room"),
            unfinished_bytes: metrics::gauge!("usher_unfinished_bytes"),
            lease_remaining: metrics::gauge!("usher_lease_remaining_seconds"),
            acting: metrics::gauge!("usher_node_acting_teams"),
            cut_off: metrics::gauge!("usher_node_cut_off"),
            link_up: metrics::gauge!("usher_link_up"),
            cpu_now: metrics::gauge!("usher_node_cpu_millicores", "over" => "now"),
            cpu_average: metrics::gauge!("usher_node_cpu_millicores", "over" => "average"),
            link_unknown: metrics::counter!("usher_link_ignored_total", "why" => "unknown"),
            link_stale: metrics::counter!("usher_link_ignored_total", "why" => "old_term"),
            reports_dropped: metrics::counter!("usher_link_reports_dropped_total"),
            relays: AtomicU32::new(0),
        }
    }

    /// Counts a Close that is going out.
    pub(crate) fn closed(&self, code: u16) {
        metrics::counter!("usher_closes_total", "code" => code.to_string()).increment(1);
    }

    /// Counts a client that sent too much in a short time.
    pub(crate) fn too_fast(&self, rate: Rate) {
        metrics::counter!("usher_too_fast_total", "what" => rate.word()).increment(1);
    }

    /// Counts a ticket that opened nothing.
    pub(crate) fn refused(&self, refusal: Refusal) {
        metrics::counter!("usher_tickets_refused_total", "reason" => refusal.code()).increment(1);
    }

    /// Whether this relay is one of those that are timed.
    pub(crate) fn times_this_relay(&self) -> bool {
        self.relays.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIMED)
    }
}

fn describe() {
    metrics::describe_gauge!("usher_connections", "Open WebSockets, by who opened them.");
    metrics::describe_gauge!("usher_node_held_teams", "Teams that this node holds.");
    metrics::describe_counter!(
        "usher_frames_total",
        "Application frames read from and written to connections."
    );
    metrics::describe_histogram!(
        "usher_relay_duration_seconds",
        Unit::Seconds,
        "From a frame's receipt until it waits for every other connection of its team; one frame in 16 is timed."
    );
    metrics::describe_counter!(
        "usher_slow_readers_total",
        "Connections closed with 4308 because too much waited for them."
    );
    metrics::describe_counter!(
        "usher_too_fast_total",
        "Connections closed with 4310 because too much came in a short time, by what: frames, controls (pings, pongs), bytes."
    );
    metrics::describe_counter!(
        "usher_unfinished_closed_total",
        "Connections closed with 4308 in the middle of a message: it took too long, or all such messages together held too much."
    );
    metrics::describe_gauge!(
        "usher_unfinished_bytes",
        "What messages hold that have begun and not ended, those below 4 KiB left out."
    );
    metrics::describe_counter!(
        "usher_control_pretended_total",
        "Application frames that looked like control frames and were not relayed."
    );
    metrics::describe_counter!(
        "usher_closes_total",
        "Connections closed by this node, by close code; lost: gone without a Close; silent: two pings missed."
    );
    metrics::describe_gauge!(
        "usher_lease_remaining_seconds",
        Unit::Seconds,
        "Time until the node stops exclusive effects if no heartbeat is answered."
    );
    metrics::describe_gauge!(
        "usher_node_acting_teams",
        "Teams for which this node may have exclusive effects: owned, confirmed on the link that granted its lease, and the lease runs."
    );
    metrics::describe_gauge!(
        "usher_node_cut_off",
        "1 while the lease is over and peers hear the broker: this node is closing its connections."
    );
    metrics::describe_gauge!("usher_link_up", "1 while a broker has welcomed this node.");
    metrics::describe_gauge!(
        "usher_node_cpu_millicores",
        "CPU of this node as it reports it, over the last second and as a moving average."
    );
    metrics::describe_counter!(
        "usher_tickets_refused_total",
        "Clients sent back to the broker, by what was wrong with their ticket."
    );
    metrics::describe_counter!(
        "usher_link_ignored_total",
        "Messages of brokers that were not obeyed, by why."
    );
    metrics::describe_counter!(
        "usher_link_reports_dropped_total",
        "Arrivals and departures that were never reported because the broker was away for too long."
    );
    metrics::describe_counter!(
        "usher_accept_errors_total",
        "Connections that the kernel could not hand over, mostly for want of descriptors."
    );
}
