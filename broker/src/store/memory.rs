//! A store that is gone with its process, for tests, and one that can be made to fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use usher_placement::Record;
use usher_shared::id::ClusterId;
use usher_shared::quantity::Term;

use super::reading::Reader;
use super::{Store, StoreError, Stored, encoding};

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    entries: BTreeMap<String, Vec<u8>>,
    switch: Switch,
}

/// Makes a [`MemoryStore`] fail and work again.
#[derive(Clone, Debug, Default)]
pub struct Switch(Arc<AtomicBool>);

impl Switch {
    /// Every write fails from now on.
    pub fn fail(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Writes work again.
    pub fn mend(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl MemoryStore {
    /// An empty store, and what makes it fail.
    #[must_use]
    pub fn new() -> (Self, Switch) {
        let store = Self::default();
        let switch = store.switch.clone();
        (store, switch)
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.switch.0.load(Ordering::SeqCst) {
            return Err(StoreError::Io {
                path: "memory".to_owned(),
                source: "made to fail".into(),
            });
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        let mut reader = Reader::new("memory");
        for (key, value) in &self.entries {
            reader.take(key, value)?;
        }
        Ok(reader.finish())
    }

    fn begin(&mut self, cluster: ClusterId, term: Term) -> Result<(), StoreError> {
        self.check()?;
        let stored = self.load()?;
        if stored.term >= term {
            return Err(StoreError::TermTaken {
                stored: stored.term,
                wanted: term,
            });
        }
        let cluster = stored.cluster.unwrap_or(cluster);
        self.entries.insert(
            encoding::CLUSTER.to_owned(),
            encoding::encode(encoding::CLUSTER, &cluster),
        );
        self.commit(&[Record::Term(term)])
    }

    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.check()?;
        for record in records {
            match encoding::entry(record) {
                (key, Some(value)) => self.entries.insert(key, value),
                (key, None) => self.entries.remove(&key),
            };
        }
        Ok(())
    }
}
