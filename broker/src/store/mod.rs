//! What survives a crash of the broker.

mod encoding;
mod exchange;
mod memory;
mod reading;
mod sled;

pub use exchange::{ExchangeError, export, import};
pub use memory::{MemoryStore, Switch};
pub use sled::SledStore;

use usher_placement::{NodeRecord, OperationRecord, Record, Snapshot, TeamRecord};
use usher_shared::id::{ClusterId, NodeId, OperationId, TeamId};
use usher_shared::quantity::{Epoch, Term};

/// What survives a crash of the broker.
///
/// There is one writer, the broker of the highest term. Every call blocks; the broker has a thread
/// for them.
///
/// # Stores that several brokers share
///
/// [`Store::begin`] is a compare-and-swap: it must fail with [`StoreError::TermTaken`] unless the
/// stored term is still below the new one, and every [`Store::commit`] must then be made only while
/// the stored term is still ours (in etcd: a transaction that compares the term key, and a lease
/// that ends with the process). Epochs are handed out below [`Record::Epochs`], which is written the same
/// way, so two brokers cannot hand out one epoch. A standby reads with [`Store::load`], follows a
/// watch of the same keys, and calls `begin` when the leader's lease ends; the core starts from a
/// [`Snapshot`] either way and need not change.
pub trait Store: Send {
    /// Everything that is stored.
    ///
    /// # Errors
    /// When it cannot be read in full: a start from less would hand out teams and epochs twice.
    fn load(&mut self) -> Result<Stored, StoreError>;

    /// Begins a term, durable when it returns. `cluster` is kept if the store has none yet.
    ///
    /// # Errors
    /// [`StoreError::TermTaken`] when the store has this term or a higher one already.
    fn begin(&mut self, cluster: ClusterId, term: Term) -> Result<(), StoreError>;

    /// Writes records in their order, durable when it returns. Writing a batch again changes
    /// nothing, so a failed one is simply tried again.
    ///
    /// # Errors
    /// When it is not sure that all of them are durable.
    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError>;
}

/// Everything that is stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// The cluster; `None` in a store that was never begun.
    pub cluster: Option<ClusterId>,
    /// The term of the run before.
    pub term: Term,
    /// See [`Record::Epochs`]; zero when none was ever reserved.
    pub epochs_reserved: Epoch,
    /// Every team.
    pub teams: Vec<(TeamId, TeamRecord)>,
    /// Every node.
    pub nodes: Vec<(NodeId, NodeRecord)>,
    /// Every operation.
    pub operations: Vec<(OperationId, OperationRecord)>,
}

impl Stored {
    /// What the core of `cluster` starts from under `term`.
    #[must_use]
    pub fn into_snapshot(self, cluster: ClusterId, term: Term) -> Snapshot {
        Snapshot {
            cluster,
            term,
            epochs_reserved: self.epochs_reserved.max(Epoch::default().next()),
            teams: self.teams,
            nodes: self.nodes,
            operations: self.operations,
        }
    }
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the store in {path} is in use by another broker; stop that one, or choose another data folder")]
    InUse {
        /// The store's folder.
        path: String,
    },
    /// It panicked in the middle of its work. The next attempt opens it anew.
    #[error("the store gave up in the middle of a write; it is tried again")]
    GaveUp,
    /// No space is left.
    #[error("the disk that holds the store in {path} is full; free some space there")]
    DiskFull {
        /// The store's folder.
        path: String,
        /// What the store said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The files themselves are damaged.
    #[error(
        "the store in {path} is damaged ({detail}); put a copy of the folder back, or move it away and bring the teams back with PUT or an export"
    )]
    Damaged {
        /// The store's folder.
        path: String,
        /// What showed it.
        detail: String,
    },
    /// One record does not match its checksum, or says what no record says.
    #[error(
        "record `{key}` in the store in {path} is damaged ({detail}); put a copy of the folder back, or move it away and bring the teams back with PUT or an export"
    )]
    BadRecord {
        /// The store's folder.
        path: String,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
    /// One record was written by another version.
    #[error(
        "record `{key}` in the store in {path} has version {version}, and this broker reads version {known}; start the version that wrote it"
    )]
    UnknownVersion {
        /// The store's folder.
        path: String,
        /// The record's key.
        key: String,
        /// Its version.
        version: u8,
        /// What this broker reads.
        known: u8,
    },
    /// The store lost what it once made durable.
    #[error(
        "the store in {path} is older than its own marker ({detail}): it is damaged or lost writes; put a copy of the whole folder back, or remove the file {marker} to go on with what is left"
    )]
    Regressed {
        /// The store's folder.
        path: String,
        /// The marker's file name.
        marker: &'static str,
        /// What showed it.
        detail: String,
    },
    /// Another broker began this term.
    #[error("term {stored} was begun by another broker, so this one may not begin term {wanted}")]
    TermTaken {
        /// What is stored.
        stored: Term,
        /// What was asked for.
        wanted: Term,
    },
    /// Anything else.
    #[error(
        "the store in {path} cannot be read or written; check the folder and that this user may write there"
    )]
    Io {
        /// The store's folder.
        path: String,
        /// What the store said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
