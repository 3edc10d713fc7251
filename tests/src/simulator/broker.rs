//! The broker's process: the real core, on a disk that may forget what was not yet durable.

use std::collections::{BTreeMap, VecDeque};
use usher_placement::{
    Command, Core, Event, NodeRecord, OperationRecord, Record, Settings, Snapshot, TeamRecord,
};
use usher_shared::grant::GrantSigner;
use usher_shared::id::{BrokerId, ClusterId, NodeId, OperationId, TeamId};
use usher_shared::quantity::{Epoch, Term, Timestamp};
use usher_shared::secret::Key;

pub(super) fn cluster() -> ClusterId {
    ClusterId::from_bits(1)
}

pub(super) fn grants() -> GrantSigner {
    GrantSigner::new(Key::from_bytes([5; 32]), cluster())
}

/// What survives a crash.
#[derive(Clone, Default)]
pub(super) struct Disk {
    epochs: Epoch,
    pub(super) term: Term,
    teams: BTreeMap<TeamId, TeamRecord>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    operations: BTreeMap<OperationId, OperationRecord>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            epochs: Epoch::default().next(),
            ..Self::default()
        }
    }

    fn keep(&mut self, record: Record) {
        match record {
            Record::Epochs { reserved } => self.epochs = reserved,
            Record::Term(term) => self.term = term,
            Record::Team(id, record) => keep(&mut self.teams, id, record),
            Record::Node(id, record) => keep(&mut self.nodes, id, record),
            Record::Operation(id, record) => keep(&mut self.operations, id, record),
        }
    }
}

fn keep<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}

/// A running broker.
pub(super) struct Broker {
    pub(super) core: Core,
    /// Counts the processes, so that what was meant for a dead one is told apart.
    pub(super) run: u64,
    /// Writes, and the commands behind them, that wait for the disk.
    waiting: VecDeque<Command>,
    /// Writes on their way to the disk.
    in_flight: Vec<Record>,
}

impl Broker {
    /// Starts from what the disk has, under the next term, which is durable before anything else.
    pub(super) fn start(disk: &mut Disk, run: u64, now: Timestamp, wall_ms: u64) -> Self {
        disk.term = disk.term.next();
        let snapshot = Snapshot {
            cluster: cluster(),
            term: disk.term,
            epochs_reserved: disk.epochs,
            teams: disk.teams.clone().into_iter().collect(),
            nodes: disk.nodes.clone().into_iter().collect(),
            operations: disk.operations.clone().into_iter().collect(),
        };
        let id = BrokerId::from_bits(u128::from(run));
        let core = Core::new(
            Settings::default(),
            snapshot,
            id,
            "http://broker".to_owned(),
            grants(),
            now,
            wall_ms,
        );
        Self {
            core,
            run,
            waiting: VecDeque::new(),
            in_flight: Vec::new(),
        }
    }

    /// Tells the core, and says what may be carried out at once and whether a write must be begun.
    pub(super) fn handle(&mut self, event: Event, now: Timestamp) -> (Vec<Command>, bool) {
        self.core.handle(event, now);
        self.collect()
    }

    pub(super) fn wake(&mut self, now: Timestamp) -> (Vec<Command>, bool) {
        self.core.handle_deadline(now);
        self.collect()
    }

    pub(super) fn collect(&mut self) -> (Vec<Command>, bool) {
        while let Some(command) = self.core.poll_command() {
            self.waiting.push_back(command);
        }
        let ready = self.release();
        let begin = self.in_flight.is_empty() && !self.waiting.is_empty();
        if begin {
            for command in &self.waiting {
                if let Command::Write(record) = command {
                    self.in_flight.push(record.clone());
                }
            }
        }
        (ready, begin)
    }

    /// What stands before the first write that is not durable.
    fn release(&mut self) -> Vec<Command> {
        let first_write = self
            .waiting
            .iter()
            .position(|command| matches!(command, Command::Write(_)));
        let free = first_write.unwrap_or(self.waiting.len());
        self.waiting.drain(..free).collect()
    }

    /// The disk has the batch.
    pub(super) fn durable(&mut self, disk: &mut Disk) -> (Vec<Command>, bool) {
        let mut ready = Vec::new();
        let written = std::mem::take(&mut self.in_flight);
        let mut left = written.len();
        for record in written {
            disk.keep(record);
        }
        while left > 0 {
            match self.waiting.pop_front() {
                Some(Command::Write(_)) => left -= 1,
                Some(command) => ready.push(command),
                None => break,
            }
        }
        let (more, begin) = self.collect();
        ready.extend(more);
        (ready, begin)
    }
}
