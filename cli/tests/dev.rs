//! `usher dev` with real processes: what it prints, what can be done to it, and that nothing is left over.

// A helper of tests is as much a test as they are.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Far beyond what anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

struct Dev {
    process: Child,
    up: serde_json::Value,
}

impl Dev {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_usher"))
            .args(["dev", "--ports", "auto", "--nodes", "2", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let up = serde_json::from_str(&line).unwrap();
        Self { process, up }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_usher"));
        command
            .args(arguments)
            .env("USHER_ADMIN", self.up["broker"]["admin"].as_str().unwrap())
            .env("USHER_BROKER", self.up["broker"]["clients"].as_str().unwrap());
        command
    }

    fn usher(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.usher(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", text(&output.stderr)))
    }

    fn worker(&self, node: usize) -> u32 {
        u32::try_from(self.up["nodes"][node]["worker_pid"].as_u64().unwrap()).unwrap()
    }

    /// Every process of the cluster.
    fn pids(&self) -> Vec<u32> {
        let nodes = self.up["nodes"].as_array().unwrap();
        let of_nodes = nodes.iter().flat_map(|node| [&node["pid"], &node["worker_pid"]]);
        of_nodes
            .chain([&self.up["broker"]["pid"]])
            .map(|pid| u32::try_from(pid.as_u64().unwrap()).unwrap())
            .collect()
    }

    fn signal(&self, signal: &str) {
        kill(signal, self.process.id());
    }
}

impl Drop for Dev {
    /// Gently, so that the scratch folder goes too.
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal("-TERM");
        }
        let _ = self.process.wait();
    }
}

fn kill(signal: &str, pid: u32) {
    assert!(
        Command::new("kill")
            .args([signal, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn eventually(what: &str, check: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Field 3 of proc_pid_stat(5), after the name in brackets.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[test]
fn clients_survive_a_killed_node_and_a_drained_one() {
    let dev = Dev::start();
    assert_eq!(dev.json(&["status"])["nodes"]["ready"], 2);

    let load = dev
        .command(&[
            "load",
            "-c",
            "40",
            "-t",
            "20",
            "--duration",
            "1h",
            "--message-rate",
            "5",
            "--json",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let all_there = || dev.json(&["status"])["connections"] == 40;
    eventually("all connections are reported", all_there);
    kill("-9", dev.worker(0));
    eventually("the dead node's teams have a new owner", || {
        let view = dev.json(&["operations"]);
        let mut operations = view["operations"].as_array().unwrap().iter();
        operations.any(|operation| operation["kind"] == "failover" && operation["teams_to_go"] == 0)
    });
    eventually("the dead node is back", || {
        dev.json(&["status"])["nodes"]["ready"] == 2
    });
    eventually("all connections are back", all_there);
    let drained = dev.usher(&["drain", "node-2", "--wait"]);
    assert!(drained.status.success(), "{}", text(&drained.stderr));
    assert!(
        text(&drained.stdout).contains("20 of 20 moved"),
        "{}",
        text(&drained.stdout)
    );
    eventually("all connections are on the other node", || {
        dev.json(&["nodes", "node-1"])["connections"] == 40
    });
    kill("-TERM", load.id());
    let load: serde_json::Value = serde_json::from_slice(&load.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(load["connected"], 40, "{load}");
    assert_eq!(load["messages"]["doubled"], 0, "{load}");
    assert_eq!(load["messages"]["crossed"], 0, "{load}");
    assert!(load["messages"]["received"].as_u64().unwrap() > 0, "{load}");
    assert!(load["interruptions"][0]["all_back_ms"].is_u64(), "{load}");
    assert_eq!(load["moves"], 40, "{load}");
    assert_eq!(load["nodes"]["node-1"]["teams"], 20, "{load}");

    let why = dev.usher(&["why", "load-0"]);
    assert!(
        text(&why.stdout).starts_with("load-0 is on node-1"),
        "{}",
        text(&why.stdout)
    );
}

#[test]
fn unknown_things_are_refused_with_a_remedy() {
    let dev = Dev::start();
    for (arguments, remedy) in [
        (&["why", "nobody"] as &[&str], "`usher teams`"),
        (&["forget", "nobody"], "`usher teams`"),
        (&["nodes", "nobody"], "`usher nodes`"),
        (&["drain", "nobody"], "`usher nodes`"),
        (&["cordon", "nobody"], "`usher nodes`"),
        (&["operation", "nothing"], "`usher operations`"),
    ] {
        let output = dev.usher(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(
            said.starts_with("error: ") && said.contains(remedy),
            "{arguments:?}: {said}"
        );
    }
    let made = dev.json(&["assign", "T1", "--weight", "3"]);
    assert_eq!((&made["team"], &made["weight"]), (&"T1".into(), &3.into()));
    assert!(dev.usher(&["forget", "T1"]).status.success());
}

#[test]
fn a_client_goes_through_the_broker_and_hears_its_team() {
    let dev = Dev::start();
    let mut hearing = dev
        .command(&["connect", "T1", "--listen"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the listener is connected", || {
        dev.json(&["status"])["connections"] == 1
    });
    let mut saying = dev
        .command(&["connect", "T1", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut saying.stdin.take().unwrap(), b"hello\n").unwrap();
    assert!(saying.wait().unwrap().success());
    let mut heard = String::new();
    BufReader::new(hearing.stdout.take().unwrap())
        .read_line(&mut heard)
        .unwrap();
    assert_eq!(heard, "hello\n");
    kill("-TERM", hearing.id());
    assert!(hearing.wait().unwrap().success());
}

#[test]
fn nothing_is_left_when_it_is_told_to_stop() {
    let mut dev = Dev::start();
    let (pids, data) = (dev.pids(), dev.up["data"].as_str().unwrap().to_owned());
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    dev.signal("-TERM");
    assert!(dev.process.wait().unwrap().success());
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert!(!std::path::Path::new(&data).exists());
}

#[test]
fn nothing_is_left_when_it_is_killed() {
    let mut dev = Dev::start();
    let (pids, data) = (dev.pids(), dev.up["data"].as_str().unwrap().to_owned());
    dev.signal("-KILL");
    dev.process.wait().unwrap();
    eventually("all processes are gone", || {
        pids.iter().all(|pid| !is_alive(*pid))
    });
    std::fs::remove_dir_all(data).unwrap();
}
