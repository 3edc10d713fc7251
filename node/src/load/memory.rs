//! How near is this process to the end of its memory?
//!
//! What binds it is the machine, its cgroup, and each group above that: a pod's limit, or a slice's, is shared
//! with others. Page cache that was not used lately does not count, since the kernel takes it back before
//! it kills anybody; so a node that writes a large file is not short of memory.

use std::fs;
use std::path::{Path, PathBuf};
use usher_shared::link::Memory;

use super::cgroup::{self, Group, Version, read_number};
use super::machine;

/// The memory that binds this process the most.
pub(super) fn of_container(root: &Path) -> Option<Memory> {
    let groups = cgroup::groups(root, "memory");
    groups
        .iter()
        .filter_map(bound)
        .max_by_key(|memory| per_mille(*memory))
}

/// The tightest memory limit among the process's groups.
pub(super) fn limit_of_container(root: &Path) -> Option<u64> {
    cgroup::groups(root, "memory").iter().filter_map(limit).min()
}

/// The machine's.
pub(super) fn of_machine(root: &Path) -> Option<Memory> {
    let memory = machine::memory(root)?;
    Some(Memory {
        used_bytes: memory
            .total
            .saturating_sub(memory.available)
            .saturating_mul(1_024),
        limit_bytes: memory.total.saturating_mul(1_024),
    })
}

/// How much of it is in use, in thousandths.
pub(super) fn per_mille(memory: Memory) -> u64 {
    memory.used_bytes.saturating_mul(1_000) / memory.limit_bytes.max(1)
}

/// A group's use and limit, where it has one.
fn bound(group: &Group) -> Option<Memory> {
    let (used, reclaimable) = match group.version {
        Version::V1 => ("memory.usage_in_bytes", "total_inactive_file "),
        Version::V2 => ("memory.current", "inactive_file "),
    };
    let used = read_number(&group.path.join(used))?;
    Some(Memory {
        used_bytes: used.saturating_sub(stat(&group.path, reclaimable).unwrap_or(0)),
        limit_bytes: limit(group)?,
    })
}

fn limit(group: &Group) -> Option<u64> {
    match group.version {
        // Without a limit: the largest number of pages, in bytes.
        Version::V1 => {
            read_number(&group.path.join("memory.limit_in_bytes")).filter(|limit| *limit < 1 << 62)
        }
        // Above `high` the kernel slows the group down until it gives memory back; `max` kills. `max`
        // is also the word for none, which is no number.
        Version::V2 => {
            let limits = ["memory.high", "memory.max"].map(|file| read_number(&group.path.join(file)));
            limits.into_iter().flatten().min()
        }
    }
}

fn stat(group: &Path, field: &str) -> Option<u64> {
    let text = fs::read_to_string(PathBuf::from(group).join("memory.stat")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().parse().ok()
}
