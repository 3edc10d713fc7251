//! From a store's entries to what they stand for.

use usher_shared::id::{NodeId, OperationId, TeamId};

use super::encoding::{self, Fault};
use super::{StoreError, Stored};

/// What is wrong with a record, with its name and the remedy.
pub(super) fn named(fault: Fault, path: &str, key: &str) -> StoreError {
    let (path, key) = (path.to_owned(), key.escape_default().to_string());
    match fault {
        Fault::Version(version) => StoreError::UnknownVersion {
            path,
            key,
            version,
            known: encoding::VERSION,
        },
        Fault::Damaged(detail) => StoreError::BadRecord { path, key, detail },
    }
}

/// Sorts entries into what they are.
pub(super) struct Reader<'p> {
    path: &'p str,
    stored: Stored,
}

impl<'p> Reader<'p> {
    pub(super) fn new(path: &'p str) -> Self {
        Self {
            path,
            stored: Stored::default(),
        }
    }

    pub(super) fn take(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let stored = &mut self.stored;
        let taken = (|| {
            if let Some(name) = key.strip_prefix(encoding::TEAM) {
                let team = name.parse::<TeamId>().map_err(unknown)?;
                stored.teams.push((team, encoding::decode(key, value)?));
            } else if let Some(name) = key.strip_prefix(encoding::NODE) {
                let node = name.parse::<NodeId>().map_err(unknown)?;
                stored.nodes.push((node, encoding::decode(key, value)?));
            } else if let Some(name) = key.strip_prefix(encoding::OPERATION) {
                let id = name.parse::<OperationId>().map_err(unknown)?;
                stored.operations.push((id, encoding::decode(key, value)?));
            } else {
                match key {
                    encoding::CLUSTER => stored.cluster = Some(encoding::decode(key, value)?),
                    encoding::TERM => stored.term = encoding::decode(key, value)?,
                    encoding::EPOCHS => stored.epochs_reserved = encoding::decode(key, value)?,
                    // Only the store itself asks for the number.
                    encoding::COMMITS => {
                        encoding::decode::<u64>(key, value)?;
                    }
                    _ => return Err(Fault::Damaged("no such kind of record".to_owned())),
                }
            }
            Ok(())
        })();
        taken.map_err(|fault| named(fault, self.path, key))
    }

    pub(super) fn finish(self) -> Stored {
        self.stored
    }
}

fn unknown(error: usher_shared::id::IdError) -> Fault {
    Fault::Damaged(error.to_string())
}
