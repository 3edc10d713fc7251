//! The store as NDJSON: one object a line, for copies, for a change of store, and for people.
//!
//! ```text
//! {"kind":"cluster","cluster":"..."}
//! {"kind":"term","term":7}
//! {"kind":"epochs","reserved":4096}
//! {"kind":"team","id":"T1","record":{...}}
//! {"kind":"node","id":"node-1","record":{...}}
//! {"kind":"operation","id":"...","record":{...}}
//! ```

use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use usher_placement::{NodeRecord, OperationRecord, Record, TeamRecord};
use usher_shared::id::{ClusterId, NodeId, OperationId, TeamId};
use usher_shared::quantity::{Epoch, Term};

use super::{Store, StoreError};

/// Records that go into one commit of an import.
const COMMIT: usize = 10_000;

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Cluster {
        cluster: ClusterId,
    },
    Term {
        term: Term,
    },
    Epochs {
        reserved: Epoch,
    },
    Team {
        id: TeamId,
        record: TeamRecord,
    },
    Node {
        id: NodeId,
        record: Box<NodeRecord>,
    },
    Operation {
        id: OperationId,
        record: Box<OperationRecord>,
    },
}

/// Why an export or an import ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file.
    #[error("the file could not be read or written")]
    File(#[from] std::io::Error),
    /// A line.
    #[error("line {number} is not one of an export; nothing from it on was imported")]
    Line {
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The first lines of an export name the cluster and its term.
    #[error("the file does not begin with its cluster and its term")]
    NoHead,
    /// An import goes into an empty store.
    #[error("the store holds cluster {0} already; import into an empty data folder")]
    NotEmpty(ClusterId),
}

/// Writes everything that is stored, one object a line.
///
/// # Errors
/// When the store cannot be read in full or the file not written.
pub fn export(store: &mut dyn Store, to: &mut dyn Write) -> Result<(), ExchangeError> {
    let stored = store.load()?;
    let mut put = |line: &Line| -> Result<(), ExchangeError> {
        serde_json::to_writer(&mut *to, line).map_err(std::io::Error::from)?;
        to.write_all(b"\n")?;
        Ok(())
    };
    if let Some(cluster) = stored.cluster {
        put(&Line::Cluster { cluster })?;
    }
    put(&Line::Term { term: stored.term })?;
    put(&Line::Epochs {
        reserved: stored.epochs_reserved,
    })?;
    for (id, record) in stored.teams {
        put(&Line::Team { id, record })?;
    }
    for (id, record) in stored.nodes {
        put(&Line::Node {
            id,
            record: Box::new(record),
        })?;
    }
    for (id, record) in stored.operations {
        put(&Line::Operation {
            id,
            record: Box::new(record),
        })?;
    }
    to.flush()?;
    Ok(())
}

/// Reads an export into an empty store.
///
/// # Errors
/// At the first line that is not one; what came before it is stored.
pub fn import(store: &mut dyn Store, from: &mut dyn BufRead) -> Result<(), ExchangeError> {
    if let Some(cluster) = store.load()?.cluster {
        return Err(ExchangeError::NotEmpty(cluster));
    }
    let mut cluster = None;
    let mut begun = false;
    let mut batch = Vec::new();
    for (at, line) in from.lines().enumerate() {
        let line: Line = serde_json::from_str(&line?).map_err(|source| ExchangeError::Line {
            number: at + 1,
            source,
        })?;
        match line {
            Line::Cluster { cluster: named } => cluster = Some(named),
            Line::Term { term } => {
                store.begin(cluster.ok_or(ExchangeError::NoHead)?, term)?;
                begun = true;
            }
            Line::Epochs { reserved } => batch.push(Record::Epochs { reserved }),
            Line::Team { id, record } => batch.push(Record::Team(id, Some(record))),
            Line::Node { id, record } => batch.push(Record::Node(id, Some(*record))),
            Line::Operation { id, record } => batch.push(Record::Operation(id, Some(*record))),
        }
        if !begun && !batch.is_empty() {
            return Err(ExchangeError::NoHead);
        }
        if batch.len() >= COMMIT {
            store.commit(&std::mem::take(&mut batch))?;
        }
    }
    if !begun {
        return Err(ExchangeError::NoHead);
    }
    store.commit(&batch)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;
    use usher_shared::quantity::Weight;
    use usher_shared::rest::TeamKind;

    #[test]
    fn an_export_comes_back_as_it_went() {
        let (mut from, _) = MemoryStore::new();
        from.begin(ClusterId::from_bits(3), Term::new(4).unwrap())
            .unwrap();
        let record = TeamRecord {
            owner: None,
            epoch: Epoch::new(9).unwrap(),
            kind: TeamKind::Auto,
            weight: Weight::TEAM,
            region: None,
            labels: Default::default(),
            pin: None,
            moved_by: None,
        };
        let reserved = Epoch::new(100).unwrap();
        from.commit(&[
            Record::Epochs { reserved },
            Record::Team("T".parse().unwrap(), Some(record)),
        ])
        .unwrap();
        let mut text = Vec::new();
        export(&mut from, &mut text).unwrap();
        let (mut to, _) = MemoryStore::new();
        import(&mut to, &mut text.as_slice()).unwrap();
        assert_eq!(to.load().unwrap(), from.load().unwrap());
        assert!(matches!(
            import(&mut to, &mut text.as_slice()),
            Err(ExchangeError::NotEmpty(_))
        ));
    }

    #[test]
    fn a_file_that_is_no_export_is_refused_with_its_line() {
        let (mut store, _) = MemoryStore::new();
        let text = "{\"kind\":\"term\"}\n";
        assert!(matches!(
            import(&mut store, &mut text.as_bytes()),
            Err(ExchangeError::Line { number: 1, .. })
        ));
        assert!(matches!(
            import(&mut store, &mut "".as_bytes()),
            Err(ExchangeError::NoHead)
        ));
    }
}
