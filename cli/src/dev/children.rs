//! The processes of a cluster on one machine: started, watched, started again, and stopped.

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

use crate::TIE_VARIABLE;

/// Lines of a log that are shown when its process could not start.
const TAIL_LINES: usize = 12;
/// A process that dies this often in a row, each time soon after its start, is not started again.
const QUICK_DEATHS_MAX: u32 = 5;
/// A process that lived this long did start.
const LIVED: Duration = Duration::from_secs(10);

/// One process, and what it takes to start it again.
pub(super) struct Process {
    /// `broker` or the node's name.
    pub(super) name: String,
    /// Resolved once: a rebuild may replace the file while the cluster runs.
    executable: PathBuf,
    arguments: Vec<String>,
    pub(super) log: PathBuf,
    child: Child,
    started: Instant,
    quick_deaths: u32,
}

impl Process {
    /// Starts this executable with `arguments`; its output goes to `<logs>/<name>.log`.
    ///
    /// Must be called on the thread that lives as long as this process: the kernel ties a child to
    /// the thread that made it.
    pub(super) fn start(name: &str, arguments: Vec<String>, logs: &Path) -> anyhow::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let executable = std::env::current_exe().context("cannot find this executable")?;
        let child = spawn(name, &executable, &arguments, &log)?;
        Ok(Self {
            name: name.to_owned(),
            executable,
            arguments,
            log,
            child,
            started: Instant::now(),
            quick_deaths: 0,
        })
    }

    /// Its process id while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Starts it again after it ended. Gives up on one that cannot live.
    pub(super) fn start_again(&mut self) -> anyhow::Result<()> {
        self.quick_deaths = if self.started.elapsed() < LIVED {
            self.quick_deaths + 1
        } else {
            0
        };
        anyhow::ensure!(
            self.quick_deaths < QUICK_DEATHS_MAX,
            "{} died {QUICK_DEATHS_MAX} times in a row; the last lines of {}:\n{}",
            self.name,
            self.log.display(),
            self.tail()
        );
        self.child = spawn(&self.name, &self.executable, &self.arguments, &self.log)?;
        self.started = Instant::now();
        Ok(())
    }

    /// The end of its log.
    pub(super) fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        let tail: Vec<String> = lines[from..].iter().map(|line| format!("    {line}")).collect();
        tail.join("\n")
    }

    fn signal(&self, signal: Signal) {
        let pid = self
            .pid()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended this moment; then there is nothing to signal.
            let _ = kill_process(pid, signal);
        }
    }
}

fn spawn(name: &str, executable: &Path, arguments: &[String], log: &Path) -> anyhow::Result<Child> {
    let out = open_log(log)?;
    let err = out.try_clone().context("cannot share a log")?;
    let mut command = Command::new(executable);
    // What the environment says is meant for a single process; it would trip a whole cluster.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("USHER_") {
            command.env_remove(variable);
        }
    }
    command
        .args(arguments)
        .env(TIE_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        // A terminal's Ctrl-C goes to the whole group; here the order of the end matters.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {name}"))
}

fn open_log(log: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))
}

/// SIGTERM to all, a bounded wait, then SIGKILL to what is left. Returns how many had to be killed.
pub(super) async fn stop(processes: &mut [Process], within: Duration) -> usize {
    for process in processes.iter() {
        process.signal(Signal::TERM);
    }
    let until = Instant::now() + within;
    let mut killed = 0;
    for process in processes {
        if timeout_at(until, process.child.wait()).await.is_err() {
            killed += 1;
            process.signal(Signal::KILL);
            let _ = timeout(Duration::from_secs(2), process.child.wait()).await;
        }
    }
    killed
}

/// The process that does a node's work: the child of the small parent.
pub(super) fn worker_of(parent: u32) -> Option<u32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = stat(pid)?;
        // A dead one stays until its parent, which may be stopped, has buried it.
        (stat.parent == parent && !matches!(stat.state, 'Z' | 'X')).then_some(pid)
    })
}

/// Whether a process is there and not merely waiting to be buried.
pub(super) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

struct Stat {
    state: char,
    parent: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): the name in brackets may hold anything, brackets too.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_by_its_parent_and_seen_to_die() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        assert!(is_alive(pid));
        assert_eq!(stat(pid).map(|stat| stat.parent), Some(std::process::id()));
        assert!(worker_of(std::process::id()).is_some());
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while is_alive(pid) {
            assert!(
                std::time::Instant::now() < deadline,
                "a killed process stays alive"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_ne!(
            worker_of(std::process::id()),
            Some(pid),
            "a dead child works no more"
        );
        child.wait().unwrap();
        assert!(stat(pid).is_none_or(|stat| stat.parent != std::process::id()));
    }
}
