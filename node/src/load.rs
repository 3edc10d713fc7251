//! How busy the node is: CPU, memory and descriptors, sampled each second.

mod cgroup;
mod machine;
mod memory;

use std::path::{Path, PathBuf};
use std::time::Duration;
use usher_shared::link::{Descriptors, Health, Memory};
use usher_shared::quantity::Millicores;

use cgroup::Quota;
pub(crate) use machine::descriptor_limit;

/// How often a sample is taken.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
/// After this time an old sample counts half.
pub(crate) const HALF_LIFE: Duration = Duration::from_secs(15);
/// A machine busier than this is under pressure, whoever keeps it busy.
const MACHINE_CPU: Threshold = Threshold {
    begins: 950,
    ends: 900,
};
/// A machine with less than 3 % of its memory left is under pressure, and no more once it has 5 %.
const MACHINE_MEMORY: Threshold = Threshold {
    begins: 971,
    ends: 950,
};
/// A container is killed at its limit, and each connection may ask for megabytes at once, so it has to leave
/// more.
const CONTAINER_MEMORY: Threshold = Threshold {
    begins: 850,
    ends: 800,
};

/// The memory that this process's container may use, in bytes: the tightest limit of its cgroup and the groups
/// above. `None` where none has a limit.
#[must_use]
pub fn container_memory() -> Option<u64> {
    memory::limit_of_container(Path::new("/"))
}

/// One sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) cpu_now: Millicores,
    pub(crate) cpu_average: Millicores,
    pub(crate) memory_bytes: u64,
    /// Of those that bind the node, the memory nearest to its limit.
    pub(crate) memory: Option<Memory>,
    pub(crate) fds: Descriptors,
    pub(crate) pressure: Option<Pressure>,
}

/// What the node's machine or container is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pressure {
    ContainerMemory,
    MachineMemory,
    MachineCpu,
}

impl Reading {
    pub(crate) fn health(&self) -> Health {
        self.pressure.map_or(Health::Good, |_| Health::Pressure)
    }
}

impl Pressure {
    /// In the words of the log.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::ContainerMemory => "the container is near the limit of its memory",
            Self::MachineMemory => "the machine is near the end of its memory",
            Self::MachineCpu => "the machine's CPUs are all busy",
        }
    }
}

/// Where pressure begins and where it ends, in thousandths of what there is: apart, so that it does not
/// come and go with each sample.
#[derive(Clone, Copy, Debug)]
struct Threshold {
    begins: u64,
    ends: u64,
}

impl Threshold {
    fn is_passed(self, before: bool, per_mille: u64) -> bool {
        per_mille >= if before { self.ends } else { self.begins }
    }
}

/// A moving average given by its half-life, so that an irregular sample means the same as a regular
/// one: a value that held for two seconds counts as one sample of two seconds or as two of one.
#[derive(Clone, Copy, Debug)]
pub struct MovingAverage {
    half_life: Duration,
    value: Option<f64>,
}

impl MovingAverage {
    /// An average without a sample.
    #[must_use]
    pub const fn new(half_life: Duration) -> Self {
        Self {
            half_life,
            value: None,
        }
    }

    /// Takes in what was the case for the last `dt`; the average after that. The first sample seeds it.
    pub fn add(&mut self, sample: f64, dt: Duration) -> f64 {
        let alpha = 1.0 - (-dt.as_secs_f64() / self.half_life.as_secs_f64()).exp2();
        let value = self.value.map_or(sample, |old| old + alpha * (sample - old));
        self.value = Some(value);
        value
    }
}

/// Takes the samples.
#[derive(Debug)]
pub(crate) struct Sampler {
    root: PathBuf,
    cores: Millicores,
    source: Source,
    cpu: Option<u64>,
    average: MovingAverage,
    machine: Option<machine::Ticks>,
    machine_average: MovingAverage,
    /// What the last sample found: container's memory, machine's memory, machine's CPU.
    short_of: [bool; 3],
}

/// Where the node's CPU time is read.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// Its own process: nobody rations it.
    Process,
    /// Its cgroup, because the quota is the group's and others in it use it up, too.
    Cgroup(Quota),
}

impl Sampler {
    /// A sampler for this process, with `root` before `/proc` and `/sys` (`/` but in tests) and
    /// `parallelism` cores where no quota says less.
    pub(crate) fn new(root: &Path, parallelism: u32) -> Self {
        let machine = Millicores::clamped(u64::from(parallelism.max(1)) * 1000);
        let quota = cgroup::tightest_quota(root).filter(|quota| quota.cores < machine);
        let (cores, source) = match quota {
            Some(quota) => (quota.cores, Source::Cgroup(quota)),
            None => (machine, Source::Process),
        };
        Self {
            root: root.to_owned(),
            cores,
            source,
            cpu: None,
            average: MovingAverage::new(HALF_LIFE),
            machine: None,
            machine_average: MovingAverage::new(HALF_LIFE),
            short_of: [false; 3],
        }
    }

    /// The CPU that the node may use.
    pub(crate) fn cores(&self) -> Millicores {
        self.cores
    }

    /// Takes a sample, `dt` after the last one. What cannot be read counts as nothing.
    pub(crate) fn sample(&mut self, dt: Duration) -> Reading {
        let used = match &self.source {
            Source::Process => machine::process_cpu_us(&self.root),
            Source::Cgroup(quota) => quota.used_us(),
        };
        let before = std::mem::replace(&mut self.cpu, used);
        let mut reading = Reading {
            memory_bytes: machine::resident_bytes(&self.root),
            fds: machine::descriptors(&self.root),
            ..Reading::default()
        };
        let dt_us = u64::try_from(dt.as_micros()).unwrap_or(u64::MAX);
        if let (Some(before), Some(used)) = (before, used)
            && dt_us > 0
        {
            // Microseconds of CPU in microseconds of time, in thousandths.
            let now = Millicores::clamped(used.saturating_sub(before).saturating_mul(1000) / dt_us);
            let average = self.average.add(f64::from(now.get()), dt);
            reading.cpu_now = now;
            reading.cpu_average = rounded(average);
        }
        self.look_around(dt, &mut reading);
        reading
    }

    /// What the process shares with others: the machine's CPU, and the memory of both machine and container.
    fn look_around(&mut self, dt: Duration, reading: &mut Reading) {
        let ticks = machine::Ticks::read(&self.root);
        let before = std::mem::replace(&mut self.machine, ticks);
        let busy = before
            .zip(ticks)
            .and_then(|(before, now)| now.busy_percent(before));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // From 0 to 1,000.
        let busy = busy.map_or(0, |busy| (self.machine_average.add(busy, dt) * 10.0) as u64);
        let (container, whole) = (memory::of_container(&self.root), memory::of_machine(&self.root));
        let used = |memory: Option<Memory>| memory.map_or(0, memory::per_mille);
        let [in_container, of_machine, of_cpu] = self.short_of;
        self.short_of = [
            CONTAINER_MEMORY.is_passed(in_container, used(container)),
            MACHINE_MEMORY.is_passed(of_machine, used(whole)),
            MACHINE_CPU.is_passed(of_cpu, busy),
        ];
        reading.memory = container
            .into_iter()
            .chain(whole)
            .max_by_key(|memory| memory::per_mille(*memory));
        let names = [
            Pressure::ContainerMemory,
            Pressure::MachineMemory,
            Pressure::MachineCpu,
        ];
        reading.pressure = names
            .into_iter()
            .zip(self.short_of)
            .find_map(|(pressure, is_short)| is_short.then_some(pressure));
    }
}

fn rounded(average: f64) -> Millicores {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // `as` saturates, and it is never negative.
    Millicores::clamped(average.round() as u64)
}

#[cfg(test)]
mod tests;
