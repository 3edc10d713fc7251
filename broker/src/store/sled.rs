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
        let opened = self.open_sled()?;
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

    /// A disk that was full may leave a snapshot that sled began and never finished. It is no part of
    /// the store, which is its log, but sled reads it as one and gives up.
    fn open_sled(&self) -> Result<sled::Db, StoreError> {
        let open = || self.guarded(|| sled::Config::new().path(&self.folder).open());
        match open() {
            Err(damaged @ StoreError::Damaged { .. }) => {
                let begun = self.unfinished_snapshots();
                if begun.is_empty() {
                    return Err(damaged);
                }
                for file in begun {
                    tracing::warn!(file = %file.display(), "an unfinished snapshot of the store is taken away");
                    std::fs::remove_file(file).map_err(|error| self.io(error))?;
                }
                open()
            }
            other => other,
        }
    }

    fn unfinished_snapshots(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let paths = files.map(|file| file.path());
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "generating"))
            .collect()
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
        match self.put(&open, entries) {
            Ok(()) => {
                self.open = Some(open);
                Ok(())
            }
            Err(error) => {
                // sled flushes once more when it is dropped, and may panic there.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
                Err(error)
            }
        }
    }

    fn put(&self, open: &Open, entries: Vec<(String, Option<Vec<u8>>)>) -> Result<(), StoreError> {
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
        open.sync().map_err(|error| self.io(error))
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
#[path = "sled_tests.rs"]
mod tests;
