//! How a record is written: a version, a checksum over key and payload, and the payload as JSON.
//!
//! The checksum covers the key too, so that a value under the wrong key shows. JSON costs about a
//! microsecond a team at the start, and a damaged store can be read by a person.

use serde::Serialize;
use serde::de::DeserializeOwned;
use usher_placement::Record;
use usher_shared::quantity::{Epoch, Term};

/// What this broker writes and reads.
pub(crate) const VERSION: u8 = 1;
const HEAD: usize = 5;

pub(crate) const CLUSTER: &str = "meta/cluster";
pub(crate) const TERM: &str = "meta/term";
pub(crate) const EPOCHS: &str = "meta/epochs";
pub(crate) const COMMITS: &str = "meta/commits";
pub(crate) const TEAM: &str = "team/";
pub(crate) const NODE: &str = "node/";
pub(crate) const OPERATION: &str = "operation/";

/// What is wrong with a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Version(u8),
    Damaged(String),
}

/// The bytes of a value under `key`.
pub(crate) fn encode<T: Serialize>(key: &str, value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION, 0, 0, 0, 0];
    // Plain structs with text keys: there is nothing in them that JSON cannot carry.
    let _ = serde_json::to_writer(&mut bytes, value);
    let sum = checksum(key, &bytes[HEAD..]);
    bytes[1..HEAD].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The value under `key`.
pub(crate) fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, Fault> {
    let Some((&version, rest)) = bytes.split_first() else {
        return Err(Fault::Damaged("it is empty".to_owned()));
    };
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let Some((sum, payload)) = rest.split_first_chunk::<4>() else {
        return Err(Fault::Damaged("it is cut short".to_owned()));
    };
    if u32::from_le_bytes(*sum) != checksum(key, payload) {
        return Err(Fault::Damaged("its checksum does not fit".to_owned()));
    }
    serde_json::from_slice(payload).map_err(|error| Fault::Damaged(error.to_string()))
}

fn checksum(key: &str, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Key and value of a record; no value: the key goes.
pub(crate) fn entry(record: &Record) -> (String, Option<Vec<u8>>) {
    fn keyed<T: Serialize>(key: String, value: Option<&T>) -> (String, Option<Vec<u8>>) {
        let bytes = value.map(|value| encode(&key, value));
        (key, bytes)
    }
    match record {
        Record::Epochs { reserved } => keyed::<Epoch>(EPOCHS.to_owned(), Some(reserved)),
        Record::Term(term) => keyed::<Term>(TERM.to_owned(), Some(term)),
        Record::Team(team, value) => keyed(format!("{TEAM}{team}"), value.as_ref()),
        Record::Node(node, value) => keyed(format!("{NODE}{node}"), value.as_ref()),
        Record::Operation(id, value) => keyed(format!("{OPERATION}{id}"), value.as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_under_its_own_key_only() {
        let bytes = encode("team/a", &7_u64);
        assert_eq!(decode::<u64>("team/a", &bytes), Ok(7));
        assert!(matches!(decode::<u64>("team/b", &bytes), Err(Fault::Damaged(_))));
    }

    #[test]
    fn any_flipped_bit_shows() {
        let bytes = encode("k", &"some payload");
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(decode::<String>("k", &damaged).is_err(), "bit {at}");
        }
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let mut bytes = encode("k", &1_u8);
        bytes[0] = 9;
        assert_eq!(decode::<u8>("k", &bytes), Err(Fault::Version(9)));
        for cut in [&[][..], &[VERSION], &[VERSION, 0, 0]] {
            assert!(matches!(decode::<u8>("k", cut), Err(Fault::Damaged(_))));
        }
    }
}
