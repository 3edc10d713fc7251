//! Random numbers for ids and jitter. Nothing secret is made from these but the seeds they start from.

use std::cell::Cell;

/// Why no random numbers can be had.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers; is /dev/urandom there?")]
pub struct NoRandomness(#[source] getrandom::Error);

/// Bytes from the system, fit for keys.
///
/// # Errors
/// When the system gives none.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(NoRandomness)?;
    Ok(bytes)
}

/// 128 bits from the system.
///
/// # Errors
/// When the system gives none.
pub(crate) fn bits() -> Result<u128, NoRandomness> {
    bytes().map(u128::from_be_bytes)
}

/// 64 bits that no other call of this process has given, without a system call: splitmix64
/// (Steele, Lea, Flood 2014), one sequence for each thread from a seed of the system's.
#[must_use]
pub(crate) fn quick() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(seed());
    }
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

/// `base_ms` and up to as much again, so that clients refused together do not come back together.
#[must_use]
pub(crate) fn jittered(base_ms: u64) -> u64 {
    base_ms + quick() % base_ms.max(1)
}

fn seed() -> u64 {
    // Later calls only tell tickets apart and spread retries, so a clock will do where the system
    // gives nothing; keys and ids are drawn at the start with `bytes`, which fails loudly.
    bytes().map_or_else(
        |_| usher_shared::clock::wall_ms().rotate_left(32) ^ usher_shared::clock::boottime().as_millis(),
        u64::from_be_bytes,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn quick_numbers_do_not_repeat() {
        let drawn: HashSet<u64> = (0..10_000).map(|_| quick()).collect();
        assert_eq!(drawn.len(), 10_000);
    }

    #[test]
    fn jitter_stays_between_once_and_twice_the_base() {
        assert!((0..1_000).all(|_| (500..1_000).contains(&jittered(500))));
        assert_eq!(jittered(0), 0);
    }
}
