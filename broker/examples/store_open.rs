//! How long the store takes to open with many teams.
//!
//! ```text
//! cargo run --release -p usher-broker --example store_open [TEAMS]
//! ```
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;
use usher_broker::store::{SledStore, Store};
use usher_placement::{Record, TeamRecord};
use usher_shared::id::{ClusterId, Incarnation};
use usher_shared::quantity::{Epoch, Term, Weight};
use usher_shared::rest::TeamKind;

const COMMIT: u64 = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let teams: u64 = std::env::args()
        .nth(1)
        .map_or(Ok(1_000_000), |text| text.parse())?;
    let data = tempfile::tempdir()?;
    let began = Instant::now();
    {
        let mut store = SledStore::open(data.path())?;
        store.begin(ClusterId::from_bits(1), Term::default().next())?;
        let mut batch = Vec::new();
        for number in 0..teams {
            batch.push(record(number)?);
            if batch.len() as u64 == COMMIT || number + 1 == teams {
                store.commit(&std::mem::take(&mut batch))?;
            }
        }
    }
    println!(
        "wrote {teams} teams in {:.2} s, {COMMIT} a commit",
        began.elapsed().as_secs_f64()
    );
    let began = Instant::now();
    let mut store = SledStore::open(data.path())?;
    let opened = began.elapsed();
    let stored = store.load()?;
    let loaded = began.elapsed();
    println!(
        "opened in {:.2} s, loaded {} teams after {:.2} s; {:.0} MB on disk",
        opened.as_secs_f64(),
        stored.teams.len(),
        loaded.as_secs_f64(),
        size(data.path())? / 1e6,
    );
    Ok(())
}

fn record(number: u64) -> Result<Record, Box<dyn Error>> {
    let node = format!("node-{}", number % 100).parse()?;
    let record = TeamRecord {
        owner: Some((node, Incarnation::from_bits(u128::from(number % 100) << 64))),
        epoch: Epoch::new(number + 1).ok_or("too many teams")?,
        kind: TeamKind::Put,
        weight: Weight::TEAM,
        region: None,
        labels: Default::default(),
        pin: None,
        moved_by: None,
    };
    Ok(Record::Team(format!("T{number:010}").parse()?, Some(record)))
}

fn size(folder: &std::path::Path) -> std::io::Result<f64> {
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() {
            size(&entry.path())?
        } else {
            f64::from(u32::try_from(meta.len() >> 10).unwrap_or(u32::MAX)) * 1024.0
        };
    }
    Ok(bytes)
}
