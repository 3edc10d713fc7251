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
        moved_by: None,
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
fn a_snapshot_that_a_full_disk_left_unfinished_is_no_damage() {
    let data = tempfile::tempdir().unwrap();
    let mut store = SledStore::open(data.path()).unwrap();
    store.begin(cluster(), term(1)).unwrap();
    store.commit(&[team("a", 1)]).unwrap();
    drop(store);
    let begun = data.path().join("store/snap.00000000FFFFFFFF.generating");
    std::fs::write(&begun, []).unwrap();
    let stored = SledStore::open(data.path()).unwrap().load().unwrap();
    assert_eq!(stored.teams.len(), 1);
    assert!(!begun.exists());
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
