//! How busy the node is: CPU, memory and descriptors, sampled each second.

mod cgroup;
mod machine;

use std::path::{Path, PathBuf};
use std::time::Duration;
use usher_shared::link::{Descriptors, Health};
use usher_shared::quantity::Millicores;

use cgroup::Quota;
pub(crate) use machine::descriptor_limit;

/// How often a sample is taken.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
/// After this time an old sample counts half.
pub(crate) const HALF_LIFE: Duration = Duration::from_secs(15);
/// A machine busier than this is under pressure, whoever keeps it busy.
const PRESSURE_CPU_PERCENT: f64 = 95.0;
/// A machine with less memory left than this is under pressure.
const PRESSURE_MEMORY_PERCENT: u64 = 3;

/// One sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) cpu_now: Millicores,
    pub(crate) cpu_average: Millicores,
    pub(crate) memory_bytes: u64,
    pub(crate) fds: Descriptors,
    pub(crate) health: Health,
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
        reading.health = self.health(dt);
        reading
    }

    fn health(&mut self, dt: Duration) -> Health {
        let ticks = machine::Ticks::read(&self.root);
        let before = std::mem::replace(&mut self.machine, ticks);
        let busy = before
            .zip(ticks)
            .and_then(|(before, now)| now.busy_percent(before));
        let busy = busy.map(|busy| self.machine_average.add(busy, dt));
        let starved = machine::memory(&self.root)
            .is_some_and(|memory| memory.available * 100 < memory.total * PRESSURE_MEMORY_PERCENT);
        if starved || busy.is_some_and(|busy| busy > PRESSURE_CPU_PERCENT) {
            Health::Pressure
        } else {
            Health::Good
        }
    }
}

fn rounded(average: f64) -> Millicores {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // `as` saturates, and it is never negative.
    Millicores::clamped(average.round() as u64)
}

#[cfg(test)]
mod tests;
