//! A store that is gone with its process, for tests, and one that can be made to fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
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

/// Makes a [`MemoryStore`] fail or hang, and work again.
#[derive(Clone, Debug, Default)]
pub struct Switch {
    fails: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
}

impl Switch {
    /// Every write fails from now on.
    pub fn fail(&self) {
        self.fails.store(true, Ordering::SeqCst);
    }

    /// Every write hangs from now on, like one to a disk that does not answer.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }

    /// Writes work again.
    pub fn mend(&self) {
        self.fails.store(false, Ordering::SeqCst);
        self.hangs.store(false, Ordering::SeqCst);
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
        while self.switch.hangs.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.switch.fails.load(Ordering::SeqCst) {
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
