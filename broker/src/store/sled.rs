//! The embedded store.
//!
//! sled's `flush` is `sync_file_range` on Linux, which leaves the disk's own cache and new file
//! sizes out, and it does not sync the files that it keeps large values in; so after each flush
//! those files are fsynced here.

use serde::de::DeserializeOwned;
use sled::Batch;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use usher_placement::Record;
use usher_shared::id::ClusterId;
use usher_shared::quantity::Term;

use super::encoding;
use super::reading::{Reader, named};
use super::{Store, StoreError, Stored};

/// A killed container's lock may outlive it for a moment (spacejam/sled#1533).
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// sled takes every worker's view of a batch into one log message; larger ones are cut up. The
/// pieces of a batch are flushed together, and nothing in it is granted before.
const PIECE: usize = 10_000;
/// Beside the store's folder: which cluster, term and number of commits the store must at least
/// know. sled recovers from a damaged log by cutting it off there, which alone would look like an
/// older or an empty store: teams would be gone, and epochs handed out twice.
const MARKER: &str = "store.marker";

/// A store in a folder of its own, by sled.
pub struct SledStore {
    folder: PathBuf,
    path: String,
    marker: PathBuf,
    /// `None` before [`Store::begin`].
    begun: Option<Begun>,
    /// `None` after a failure: sled refuses all work after the first error of its log, so the next
    /// commit opens it anew.
    open: Option<Open>,
}

/// What the marker says, and the file that says it.
struct Begun {
    promise: Promise,
    file: File,
}

/// What a store must at least know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Promise {
    cluster: ClusterId,
    term: Term,
    commits: u64,
}

struct Open {
    db: sled::Db,
    log: File,
    blobs: PathBuf,
}

impl SledStore {
    /// Opens the store in `data`, or makes it there.
    ///
    /// # Errors
    /// [`StoreError`] with the remedy: in use, damaged, disk full.
    pub fn open(data: &Path) -> Result<Self, StoreError> {
        let folder = data.join("store");
        let mut store = Self {
            path: folder.display().to_string(),
            marker: data.join(MARKER),
            folder,
            begun: None,
            open: None,
        };
        store.db()?;
        Ok(store)
    }

    fn db(&mut self) -> Result<&Open, StoreError> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let open = self.open_patiently()?;
                self.check_kept(&open.db)?;
                open
            }
        };
        Ok(self.open.insert(open))
    }

    fn open_patiently(&self) -> Result<Open, StoreError> {
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            match self.open_once() {
                Err(StoreError::InUse { .. }) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
                other => return other,
            }
        }
    }

    fn open_once(&self) -> Result<Open, StoreError> {
        let opened = self.guarded(|| sled::Config::new().path(&self.folder).open())?;
        let log = File::open(self.folder.join("db")).map_err(|error| self.io(error))?;
        // The folders' own entries must be durable too, or a crash could lose the whole log.
        for folder in [Some(self.folder.as_path()), self.folder.parent()]
            .into_iter()
            .flatten()
        {
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| self.io(error))?;
        }
        Ok(Open {
            db: opened,
            log,
            blobs: self.folder.join("blobs"),
        })
    }

    /// Runs something of sled's. On a damaged file sled may panic instead of giving an error.
    fn guarded<T>(&self, work: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(done) => done.map_err(|error| self.name(error)),
            Err(_) => Err(StoreError::Damaged {
                path: self.path.clone(),
                detail: "sled gave up on its files".to_owned(),
            }),
        }
    }

    fn name(&self, error: sled::Error) -> StoreError {
        let path = self.path.clone();
        match error {
            sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
                StoreError::InUse { path }
            }
            sled::Error::Io(error) => self.io(error),
            sled::Error::Corruption { .. } => StoreError::Damaged {
                path,
                detail: "sled found a broken page".to_owned(),
            },
            sled::Error::Unsupported(detail) | sled::Error::ReportableBug(detail) => {
                StoreError::Damaged { path, detail }
            }
            other => StoreError::Io {
                path,
                source: Box::new(other),
            },
        }
    }

    fn io(&self, error: std::io::Error) -> StoreError {
        let path = self.path.clone();
        let source = Box::new(error);
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                StoreError::DiskFull { path, source }
            }
            _ => StoreError::Io { path, source },
        }
    }

    fn write(&mut self, entries: Vec<(String, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        self.db()?;
        // Taken out, and put back only when all went well: see the field.
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let mut batch = Batch::default();
            for (key, value) in entries.by_ref().take(PIECE) {
                match value {
                    Some(value) => batch.insert(key.as_bytes(), value),
                    None => batch.remove(key.as_bytes()),
                }
            }
            self.guarded(|| open.db.apply_batch(batch))?;
        }
        self.guarded(|| open.db.flush())?;
        open.sync().map_err(|error| self.io(error))?;
        self.open = Some(open);
        Ok(())
    }

    fn read_marker(&self) -> Result<Option<Promise>, StoreError> {
        match std::fs::read(&self.marker) {
            Ok(bytes) => match Promise::parse(&String::from_utf8_lossy(&bytes)) {
                Some(promise) => Ok(Some(promise)),
                None => Err(self.regressed("the marker itself cannot be read")),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io(error)),
        }
    }

    fn write_marker(&self, promise: Promise) -> std::io::Result<File> {
        let draft = self.marker.with_extension("new");
        std::fs::write(&draft, promise.line())?;
        let file = OpenOptions::new().write(true).open(&draft)?;
        file.sync_all()?;
        std::fs::rename(&draft, &self.marker)?;
        if let Some(folder) = self.folder.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(file)
    }

    /// What this process made durable must still be there when the store is opened anew.
    fn check_kept(&self, db: &sled::Db) -> Result<(), StoreError> {
        match &self.begun {
            Some(begun) => self.check_commits(db, begun.promise),
            None => Ok(()),
        }
    }

    fn check_commits(&self, db: &sled::Db, promise: Promise) -> Result<(), StoreError> {
        match self.commits(db)? {
            commits if commits >= promise.commits => Ok(()),
            commits => Err(self.regressed(format!("{commits} of {} writes are left", promise.commits))),
        }
    }

    fn commits(&self, db: &sled::Db) -> Result<u64, StoreError> {
        Ok(self.read(db, encoding::COMMITS)?.unwrap_or_default())
    }

    fn read<T: DeserializeOwned>(&self, db: &sled::Db, key: &str) -> Result<Option<T>, StoreError> {
        self.guarded(|| db.get(key))?
            .map(|bytes| encoding::decode(key, &bytes).map_err(|fault| named(fault, &self.path, key)))
            .transpose()
    }

    fn regressed(&self, detail: impl Into<String>) -> StoreError {
        StoreError::Regressed {
            path: self.path.clone(),
            marker: MARKER,
            detail: detail.into(),
        }
    }
}

impl Promise {
    /// It only ever grows longer, so that it can be written over in place.
    fn line(self) -> String {
        format!("{} {} {}\n", self.cluster, self.term, self.commits)
    }

    fn entry(self) -> (String, Option<Vec<u8>>) {
        let value = encoding::encode(encoding::COMMITS, &self.commits);
        (encoding::COMMITS.to_owned(), Some(value))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.trim().split(' ');
        let promise = Self {
            cluster: words.next()?.parse().ok()?,
            term: words.next()?.parse().ok().and_then(Term::new)?,
            commits: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(promise)
    }
}

impl Open {
    fn sync(&self) -> std::io::Result<()> {
        self.log.sync_all()?;
        let mut any = false;
        for blob in std::fs::read_dir(&self.blobs)? {
            File::open(blob?.path())?.sync_all()?;
            any = true;
        }
        if any {
            File::open(&self.blobs)?.sync_all()
        } else {
            Ok(())
        }
    }
}

impl Store for SledStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        let db = self.db()?.db.clone();
        let mut reader = Reader::new(&self.path);
        let mut pairs = db.iter();
        while let Some((key, value)) = self.guarded(|| pairs.next().transpose())? {
            let key = String::from_utf8_lossy(&key);
            reader.take(&key, &value)?;
        }
        let stored = reader.finish();
        let Some(promise) = self.read_marker()? else {
            return Ok(stored);
        };
        match stored.cluster {
            None => Err(self.regressed(format!("nothing is left of cluster {}", promise.cluster))),
            Some(held) if held != promise.cluster => {
                Err(self.regressed(format!("cluster {held} instead of {}", promise.cluster)))
            }
            Some(_) if stored.term < promise.term => {
                Err(self.regressed(format!("term {} after term {}", stored.term, promise.term)))
            }
            Some(_) => self.check_commits(&db, promise).map(|()| stored),
        }
    }

    fn begin(&mut self, cluster: ClusterId, term: Term) -> Result<(), StoreError> {
        let db = self.db()?.db.clone();
        let stored: Term = self.read(&db, encoding::TERM)?.unwrap_or_default();
        if stored >= term {
            return Err(StoreError::TermTaken { stored, wanted: term });
        }
        let promise = Promise {
            cluster: self.read(&db, encoding::CLUSTER)?.unwrap_or(cluster),
            term,
            commits: self.commits(&db)? + 1,
        };
        drop(db);
        self.write(vec![
            (
                encoding::CLUSTER.to_owned(),
                Some(encoding::encode(encoding::CLUSTER, &promise.cluster)),
            ),
            encoding::entry(&Record::Term(term)),
            promise.entry(),
        ])?;
        let file = self.write_marker(promise).map_err(|error| self.io(error))?;
        self.begun = Some(Begun { promise, file });
        Ok(())
    }

    fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let mut entries: Vec<_> = records.iter().map(encoding::entry).collect();
        let promise = self.begun.as_ref().map(|begun| Promise {
            commits: begun.promise.commits + 1,
            ..begun.promise
        });
        // Last: a log that is cut within this batch must not have it.
        entries.extend(promise.map(Promise::entry));
        self.write(entries)?;
        if let (Some(begun), Some(promise)) = (&mut self.begun, promise) {
            // Not fsynced, which would cost as much as the commit: it outlives this process, and after
            // a failure of the machine it may promise less than it could, never more.
            let written = begun.file.write_all_at(promise.line().as_bytes(), 0);
            begun.promise = promise;
            written.map_err(|error| self.io(error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_placement::TeamRecord;
    use usher_shared::quantity::{Epoch, Weight};
    use usher_shared::rest::TeamKind;

    fn term(number: u64) -> Term {
        Term::new(number).unwrap()
    }

    fn cluster() -> ClusterId {
        ClusterId::from_bits(7)
    }

    fn team(name: &str, epoch: u64) -> Record {
        let record = TeamRecord {
            owner: None,
            epoch: Epoch::new(epoch).unwrap(),
            kind: TeamKind::Put,
            weight: Weight::TEAM,
            region: None,
            labels: Default::default(),
            pin: None,
        };
        Record::Team(name.parse().unwrap(), Some(record))
    }

    #[test]
    fn what_was_committed_is_there_after_a_reopening() {
        let data = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(data.path()).unwrap();
        assert_eq!(store.load().unwrap(), Stored::default());
        store.begin(cluster(), term(1)).unwrap();
        let reserved = Epoch::new(1_000).unwrap();
        store
            .commit(&[Record::Epochs { reserved }, team("a", 1), team("b", 2)])
            .unwrap();
        store
            .commit(&[team("a", 3), Record::Team("b".parse().unwrap(), None)])
            .unwrap();
        drop(store);
        let stored = SledStore::open(data.path()).unwrap().load().unwrap();
        assert_eq!(
            (stored.cluster, stored.term, stored.epochs_reserved),
            (Some(cluster()), term(1), reserved)
        );
        assert_eq!(stored.teams.len(), 1);
        assert_eq!(stored.teams[0].1.epoch.get(), 3);
    }

    #[test]
    fn a_term_is_begun_once_and_the_cluster_stays() {
        let data = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(data.path()).unwrap();
        store.begin(cluster(), term(2)).unwrap();
        assert!(matches!(
            store.begin(cluster(), term(2)),
            Err(StoreError::TermTaken { .. })
        ));
        store.begin(ClusterId::from_bits(8), term(3)).unwrap();
        assert_eq!(store.load().unwrap().cluster, Some(cluster()));
    }

    #[test]
    fn a_store_in_use_says_so() {
        let data = tempfile::tempdir().unwrap();
        let _first = SledStore::open(data.path()).unwrap();
        assert!(matches!(
            SledStore::open(data.path()),
            Err(StoreError::InUse { .. })
        ));
    }

    #[test]
    fn a_log_that_is_damaged_anywhere_is_not_taken_for_a_shorter_one() {
        let data = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(data.path()).unwrap();
        store.begin(cluster(), term(1)).unwrap();
        for n in 1..=20 {
            store.commit(&[team(&format!("t{n}"), n)]).unwrap();
        }
        drop(store);
        let log = data.path().join("store/db");
        let whole = std::fs::read(&log).unwrap();
        for part in 1..=20 {
            let at = whole.len() * part / 20 - 1;
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            for damaged in [&flipped[..], &whole[..at]] {
                std::fs::write(&log, damaged).unwrap();
                match SledStore::open(data.path()).and_then(|mut store| store.load()) {
                    Ok(stored) => assert_eq!(stored.teams.len(), 20, "byte {at}"),
                    Err(StoreError::Regressed { .. } | StoreError::Damaged { .. }) => {}
                    Err(error) => panic!("byte {at}: {error}"),
                }
            }
        }
    }

    #[test]
    fn a_marker_of_garbage_stops_the_start() {
        let data = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(data.path()).unwrap();
        store.begin(cluster(), term(1)).unwrap();
        drop(store);
        let whole = std::fs::read_to_string(data.path().join(MARKER)).unwrap();
        for garbage in [&b"\xa5\xa5\xa5"[..], b"", &whole.as_bytes()[..33], b"x 1 1"] {
            std::fs::write(data.path().join(MARKER), garbage).unwrap();
            let error = SledStore::open(data.path()).unwrap().load().unwrap_err();
            assert!(matches!(error, StoreError::Regressed { .. }), "{error}");
        }
    }

    #[test]
    fn a_marker_that_fell_behind_stops_nothing() {
        let data = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(data.path()).unwrap();
        store.begin(cluster(), term(1)).unwrap();
        let marker = data.path().join(MARKER);
        let behind = std::fs::read(&marker).unwrap();
        store.commit(&[team("a", 1)]).unwrap();
        assert_ne!(std::fs::read(&marker).unwrap(), behind);
        drop(store);
        std::fs::write(&marker, behind).unwrap();
        let stored = SledStore::open(data.path()).unwrap().load().unwrap();
        assert_eq!(stored.teams.len(), 1);
    }

    fn put_raw(data: &Path, key: &str, value: &[u8]) {
        let db = sled::open(data.join("store")).unwrap();
        db.insert(key, value).unwrap();
        db.flush().unwrap();
    }

    #[test]
    fn a_damaged_record_stops_the_start_and_is_named() {
        let data = tempfile::tempdir().unwrap();
        drop(SledStore::open(data.path()).unwrap());
        let mut bytes = encoding::entry(&team("a", 1)).1.unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        put_raw(data.path(), "team/a", &bytes);
        let error = SledStore::open(data.path()).unwrap().load().unwrap_err();
        assert!(error.to_string().contains("`team/a`"), "{error}");
        assert!(matches!(error, StoreError::BadRecord { .. }));
    }

    #[test]
    fn a_record_of_another_version_stops_the_start() {
        let data = tempfile::tempdir().unwrap();
        drop(SledStore::open(data.path()).unwrap());
        put_raw(data.path(), "meta/term", &[2, 0, 0, 0, 0, b'1']);
        let error = SledStore::open(data.path()).unwrap().load().unwrap_err();
        assert!(matches!(error, StoreError::UnknownVersion { version: 2, .. }));
    }

    #[test]
    fn a_store_that_lost_its_writes_is_not_taken_for_a_new_one() {
        let data = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(data.path()).unwrap();
        store.begin(cluster(), term(1)).unwrap();
        drop(store);
        std::fs::remove_dir_all(data.path().join("store")).unwrap();
        let error = SledStore::open(data.path()).unwrap().load().unwrap_err();
        assert!(matches!(error, StoreError::Regressed { .. }), "{error}");
    }

    #[test]
    fn a_store_of_garbage_stops_the_start_without_a_crash() {
        let data = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(data.path()).unwrap();
        store.begin(cluster(), term(1)).unwrap();
        store.commit(&[team("a", 1)]).unwrap();
        drop(store);
        let log = data.path().join("store/db");
        let length = usize::try_from(std::fs::metadata(&log).unwrap().len()).unwrap();
        std::fs::write(&log, vec![0xa5; length]).unwrap();
        let outcome = SledStore::open(data.path()).and_then(|mut store| store.load());
        assert!(outcome.is_err(), "{outcome:?}");
    }

    #[test]
    fn a_large_batch_and_a_large_record_are_durable_too() {
        let data = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(data.path()).unwrap();
        store.begin(cluster(), term(1)).unwrap();
        let many: Vec<_> = (1..=25_000).map(|n| team(&format!("t{n}"), n)).collect();
        store.commit(&many).unwrap();
        let wide = "x".repeat(300_000);
        store
            .write(vec![(
                "team/wide".to_owned(),
                Some(encoding::encode("team/wide", &wide)),
            )])
            .unwrap();
        store.write(vec![("team/wide".to_owned(), None)]).unwrap();
        drop(store);
        let stored = SledStore::open(data.path()).unwrap().load().unwrap();
        assert_eq!(stored.teams.len(), 25_000);
    }
}
