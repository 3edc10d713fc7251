//! A [`Room`] that connections share, and the word to those who have to go.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::room::{Origin, PlaceId, Room, Stage};

/// How often a full room is looked at again although nobody left: the silent grow old.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often the log says that a room is full.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Places for connections of one kind.
#[derive(Debug)]
pub struct Places {
    /// The kind, for metrics and the log.
    name: &'static str,
    began: Instant,
    inner: Mutex<Inner>,
    /// Rung when a place was given up.
    freed: Notify,
}

#[derive(Debug)]
struct Inner {
    room: Room,
    cuts: HashMap<PlaceId, CancellationToken>,
    told: Option<Instant>,
}

/// A connection's place; given up when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    id: PlaceId,
}

impl Places {
    /// Room for `limit` connections of a kind that metrics call `name`.
    #[must_use]
    pub fn new(name: &'static str, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            began: Instant::now(),
            inner: Mutex::new(Inner {
                room: Room::new(limit),
                cuts: HashMap::new(),
                told: None,
            }),
            freed: Notify::new(),
        })
    }

    /// A place for a connection from `address`, if there is one or somebody has to go for it. `cut` is
    /// cancelled when this connection has to go in its turn.
    #[must_use]
    pub fn take(self: &Arc<Self>, address: IpAddr, cut: &CancellationToken) -> Option<Place> {
        let mut inner = self.lock();
        let taken = inner.room.enter(Origin::from(address), self.now_ms()).ok()?;
        inner.cuts.insert(taken.place, cut.clone());
        if let Some((goes, stage)) = taken.instead_of {
            if let Some(cut) = inner.cuts.remove(&goes) {
                cut.cancel();
            }
            metrics::counter!("usher_listener_cut_total", "listener" => self.name, "stage" => stage.word())
                .increment(1);
            if inner.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                inner.told = Some(Instant::now());
                tracing::warn!(
                    listener = self.name,
                    connections = inner.room.held(),
                    stage = stage.word(),
                    "no room is left: connections give way to new ones, first the idle ones, and those of the address that holds the most"
                );
            }
        }
        drop(inner);
        Some(Place {
            places: Arc::clone(self),
            id: taken.place,
        })
    }

    /// The same, waiting until there is one.
    pub async fn wait(self: &Arc<Self>, address: IpAddr, cut: &CancellationToken) -> Place {
        loop {
            if let Some(place) = self.take(address, cut) {
                return place;
            }
            let _ = timeout(LOOK_AGAIN, self.freed.notified()).await;
        }
    }

    /// Connections that have a place.
    #[must_use]
    pub fn held(&self) -> usize {
        self.lock().room.held()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The connection begins with something else.
    pub fn turn(&self, stage: Stage) {
        let now_ms = self.places.now_ms();
        self.places.lock().room.turn(self.id, stage, now_ms);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.places.lock();
        inner.room.leave(self.id);
        inner.cuts.remove(&self.id);
        drop(inner);
        self.places.freed.notify_one();
    }
}
