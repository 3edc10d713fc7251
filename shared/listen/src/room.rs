//! Who has a place when there are fewer places than connections. No clock, no sockets: a time goes in,
//! and who has to go comes out.
//!
//! Nobody is held to a share while there is room: a whole company, or all clients behind one proxy,
//! come from one address. Once there is none, whoever comes takes the place of another: of the origin
//! that holds the most, if that is more than the newcomer's own holds, so that no single origin can
//! shut out the others.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// A silent connection keeps its place so long against its equals: a head that is under way takes
/// less, over any line.
const SILENT_MS: u64 = 1_000;
/// A request is in progress so long before it gives way to another origin: answers here take milliseconds.
const BUSY_MS: u64 = 2_000;

/// Where a connection comes from: an IPv4 address, or the /64 that one IPv6 host has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
            address => address,
        })
    }
}

/// What a connection is doing, in the order in which connections give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It had an answer, and may bring another request.
    Idle,
    /// Its request has not come yet.
    Silent,
    /// Its request is being answered.
    Busy,
}

const STAGES: usize = 3;

impl Stage {
    /// For metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Silent => "silent",
            Self::Busy => "busy",
        }
    }
}

/// One place; never used again for another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlaceId(u64);

/// A place that was taken, and who had to go for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The newcomer's.
    pub place: PlaceId,
    /// Whose connection is to be closed: it has no place any more.
    pub instead_of: Option<(PlaceId, Stage)>,
}

/// There is no place, and nobody who would have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug)]
struct Held {
    origin: Origin,
    stage: Stage,
    since_ms: u64,
}

/// By stage, the oldest first.
type Queues = [BTreeSet<(u64, PlaceId)>; STAGES];

#[derive(Debug, Default)]
struct Share {
    held: usize,
    queues: Queues,
}

/// The places and who has them.
#[derive(Debug)]
pub struct Room {
    limit: usize,
    held: HashMap<PlaceId, Held>,
    shares: HashMap<Origin, Share>,
    /// Origins by how many places they have.
    ranking: BTreeSet<(usize, Origin)>,
    all: Queues,
    last: u64,
}

impl Room {
    /// Room for `limit` connections.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            held: HashMap::new(),
            shares: HashMap::new(),
            ranking: BTreeSet::new(),
            all: Queues::default(),
            last: 0,
        }
    }

    /// Connections that have a place.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes a place for a connection that has said nothing yet.
    ///
    /// # Errors
    /// [`Full`] when nobody has to go for it now; in a while somebody may.
    pub fn enter(&mut self, origin: Origin, now_ms: u64) -> Result<Taken, Full> {
        let mut instead_of = None;
        if self.held.len() >= self.limit {
            let (place, stage) = self.victim(origin, now_ms).ok_or(Full)?;
            self.leave(place);
            instead_of = Some((place, stage));
        }
        self.last += 1;
        let place = PlaceId(self.last);
        self.count(origin, 1);
        let held = Held {
            origin,
            stage: Stage::Silent,
            since_ms: now_ms,
        };
        self.queue(place, &held);
        self.held.insert(place, held);
        Ok(Taken { place, instead_of })
    }

    /// A connection begins with something else. One that lost its place has none to keep.
    pub fn turn(&mut self, place: PlaceId, stage: Stage, now_ms: u64) {
        let Some(mut held) = self.held.remove(&place) else {
            return;
        };
        self.unqueue(place, &held);
        held.stage = stage;
        held.since_ms = now_ms;
        self.queue(place, &held);
        self.held.insert(place, held);
    }

    /// Gives a place up; nothing happens if it was lost before.
    pub fn leave(&mut self, place: PlaceId) {
        if let Some(held) = self.held.remove(&place) {
            self.unqueue(place, &held);
            self.count(held.origin, -1);
        }
    }

    fn victim(&self, newcomer: Origin, now_ms: u64) -> Option<(PlaceId, Stage)> {
        let own = self.shares.get(&newcomer);
        let own_held = own.map_or(0, |share| share.held);
        let (most, top) = self.ranking.last()?;
        let greedy = (*top != newcomer && *most > own_held + 1)
            .then(|| self.shares.get(top))
            .flatten();
        if let Some(greedy) = greedy {
            let goes = oldest(&greedy.queues, Stage::Idle, now_ms, 0)
                .or_else(|| oldest(&greedy.queues, Stage::Silent, now_ms, 0))
                .or_else(|| oldest(&greedy.queues, Stage::Busy, now_ms, BUSY_MS));
            if goes.is_some() {
                return goes;
            }
        }
        // An origin that has half of all already makes room among its own.
        let among = match own {
            Some(own) if own_held * 2 >= self.limit => &own.queues,
            _ => &self.all,
        };
        oldest(among, Stage::Idle, now_ms, 0).or_else(|| oldest(among, Stage::Silent, now_ms, SILENT_MS))
    }

    fn queue(&mut self, place: PlaceId, held: &Held) {
        let entry = (held.since_ms, place);
        self.all[held.stage as usize].insert(entry);
        if let Some(share) = self.shares.get_mut(&held.origin) {
            share.queues[held.stage as usize].insert(entry);
        }
    }

    fn unqueue(&mut self, place: PlaceId, held: &Held) {
        let entry = (held.since_ms, place);
        self.all[held.stage as usize].remove(&entry);
        if let Some(share) = self.shares.get_mut(&held.origin) {
            share.queues[held.stage as usize].remove(&entry);
        }
    }

    fn count(&mut self, origin: Origin, change: isize) {
        let share = self.shares.entry(origin).or_default();
        self.ranking.remove(&(share.held, origin));
        share.held = share.held.saturating_add_signed(change);
        if share.held > 0 {
            self.ranking.insert((share.held, origin));
        } else {
            self.shares.remove(&origin);
        }
    }
}

/// The connection that is in `stage` for the longest, if that is at least `age_ms`.
fn oldest(queues: &Queues, stage: Stage, now_ms: u64, age_ms: u64) -> Option<(PlaceId, Stage)> {
    let (since_ms, place) = queues[stage as usize].first()?;
    (since_ms + age_ms <= now_ms).then_some((*place, stage))
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
