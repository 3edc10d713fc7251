//! What `/proc` says of this process and its machine.

use std::fs;
use std::path::Path;
use usher_shared::link::Descriptors;

/// CPU time of this process in microseconds, user and system.
pub(super) fn process_cpu_us(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/self/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything; the rest is numbers.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    // proc_pid_stat(5): utime is the 14th field, stime the 15th; `rest` begins with the 3rd.
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let per_second = procfs::ticks_per_second().max(1);
    Some((user + system).saturating_mul(1_000_000) / per_second)
}

/// Resident memory of this process in bytes.
pub(super) fn resident_bytes(root: &Path) -> u64 {
    let read = || -> Option<u64> {
        let text = fs::read_to_string(root.join("proc/self/statm")).ok()?;
        let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(pages.saturating_mul(procfs::page_size()))
    };
    read().unwrap_or(0)
}

/// Descriptors of this process.
pub(super) fn descriptors(root: &Path) -> Descriptors {
    Descriptors {
        used: open_descriptors(root),
        limit: descriptor_limit(),
    }
}

/// How many descriptors this process may hold now. It asks the kernel and needs no descriptor for it,
/// so that the answer is right also while there is none, and in the moment in which somebody raises it.
pub(crate) fn descriptor_limit() -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(u32::MAX, |limit| u32::try_from(limit).unwrap_or(u32::MAX))
}

fn open_descriptors(root: &Path) -> u32 {
    let folder = root.join("proc/self/fd");
    // Since Linux 6.2 the size of the folder is the number of descriptors; counting 15,000 entries
    // each second would cost a hundredth of a core.
    let size = fs::metadata(&folder).map_or(0, |folder| folder.len());
    let proc_size = root == Path::new("/") && size > 0;
    let used = if proc_size {
        size
    } else {
        fs::read_dir(&folder).map_or(0, |entries| entries.count() as u64)
    };
    u32::try_from(used).unwrap_or(u32::MAX)
}

/// What the machine's CPUs did since its start, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticks {
    busy: u64,
    idle: u64,
}

impl Ticks {
    pub(super) fn read(root: &Path) -> Option<Self> {
        let text = fs::read_to_string(root.join("proc/stat")).ok()?;
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        // proc_stat(5): user nice system idle iowait irq softirq steal; guest is in user already.
        let ticks: Vec<u64> = line
            .split_ascii_whitespace()
            .take(8)
            .map_while(|field| field.parse().ok())
            .collect();
        let idle = ticks.get(3)? + ticks.get(4).copied().unwrap_or(0);
        let all: u64 = ticks.iter().sum();
        Some(Self {
            busy: all - idle,
            idle,
        })
    }

    /// How busy the machine was since `before`.
    pub(super) fn busy_percent(self, before: Self) -> Option<f64> {
        let busy = self.busy.saturating_sub(before.busy);
        let all = busy + self.idle.saturating_sub(before.idle);
        #[allow(clippy::cast_precision_loss)] // Ticks between two samples are few.
        (all > 0).then(|| busy as f64 * 100.0 / all as f64)
    }
}

/// The machine's memory, in kB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) total: u64,
    pub(super) available: u64,
}

pub(super) fn memory(root: &Path) -> Option<Memory> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    Some(Memory {
        total: field("MemTotal:")?,
        available: field("MemAvailable:")?,
    })
}
