//! The small parent. This test binary is its own child: the ignored tests below are what it runs.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use usher_node::parent::{ParentConfig, supervise, tie_to_parent};
use usher_shared::link::Exited;
use usher_shared::secret::Token;

const DEADLINE: Duration = Duration::from_secs(20);

fn config(child: &str, brokers: Vec<String>) -> ParentConfig {
    ParentConfig {
        node: "node-1".parse().unwrap(),
        brokers,
        token: Some(Token::new("0123456789abcdef").unwrap()),
        args: ["--ignored", "--exact", child].map(Into::into).to_vec(),
    }
}

#[test]
#[ignore = "run by the tests below, as a child"]
fn child_that_dies() {
    std::process::exit(1);
}

#[test]
#[ignore = "run by the tests below, as a child"]
fn child_that_cannot_start() {
    std::process::exit(2);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run by the tests below, as a child"]
async fn child_that_waits_for_sigterm() {
    tie_to_parent().unwrap();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    terminate.recv().await;
    std::process::exit(8);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run by the tests below, as a parent"]
async fn parent_of_a_child_that_waits() {
    let code = supervise(config("child_that_waits_for_sigterm", Vec::new())).await;
    std::process::exit(code.unwrap());
}

#[tokio::test]
async fn each_death_is_reported_with_its_own_incarnation_and_the_child_is_started_again() {
    let listener = usher_listen::accept::bind("127.0.0.1:0".parse().unwrap(), "test", "").unwrap();
    let address = listener.local_addr().unwrap();
    let (say, mut said) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let say = say.clone();
        async move {
            assert_eq!(request.uri().path(), "/v1/node-exited");
            assert_eq!(request.headers()["authorization"], "Bearer 0123456789abcdef");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            say.send(serde_json::from_slice::<Exited>(&body).unwrap())
                .unwrap();
            Ok::<_, Infallible>(http::Response::new(Full::<bytes::Bytes>::default()))
        }
    });
    tokio::spawn(usher_listen::accept::serve(
        listener,
        usher_listen::accept::Limits::default(),
        stop.clone(),
        service,
    ));
    // A broker that is not there holds nothing up for long.
    let brokers = vec!["ws://127.0.0.1:1".to_owned(), format!("ws://{address}")];
    let supervised = tokio::spawn(supervise(config("child_that_dies", brokers)));
    let mut incarnations = BTreeSet::new();
    for _ in 0..3 {
        let exited = tokio::time::timeout(DEADLINE, said.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(exited.node.as_str(), "node-1");
        incarnations.insert(exited.incarnation);
    }
    assert_eq!(incarnations.len(), 3);
    supervised.abort();
}

#[tokio::test]
async fn a_child_that_cannot_start_as_configured_is_not_started_again() {
    let code = supervise(config("child_that_cannot_start", Vec::new()));
    let code = tokio::time::timeout(DEADLINE, code).await.unwrap();
    assert_eq!(code.unwrap(), 2);
}

#[test]
fn a_process_without_a_parent_is_tied_to_nobody() {
    assert!(tie_to_parent().is_ok());
}

/// The children of a process.
fn children(of: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{of}/task"))
        .into_iter()
        .flatten();
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Whether a process has a handler for SIGTERM.
fn listens(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask & (1 << (15 - 1)) != 0)
}

fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
    !Path::new(&format!("/proc/{pid}")).exists() || matches!(state, None | Some(b'Z'))
}

async fn eventually(what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(DEADLINE, waiting).await;
    assert!(waited.is_ok(), "in vain: {what}");
}

/// A parent in a process of its own, and its child.
async fn family() -> (tokio::process::Child, u32, u32) {
    let parent = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "parent_of_a_child_that_waits"])
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = parent.id().unwrap();
    eventually("the child listens for signals", || {
        children(pid).first().is_some_and(|child| listens(*child))
    })
    .await;
    let child = children(pid)[0];
    (parent, pid, child)
}

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[tokio::test]
async fn a_signal_is_passed_on_and_the_parent_leaves_with_the_childs_code() {
    let (mut parent, pid, child) = family().await;
    send(pid, Signal::TERM);
    let status = tokio::time::timeout(DEADLINE, parent.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(8));
    assert!(is_gone(child));
}

#[tokio::test]
async fn a_child_does_not_outlive_its_parent() {
    let (mut parent, pid, child) = family().await;
    send(pid, Signal::KILL);
    parent.wait().await.unwrap();
    eventually("the child is gone", || is_gone(child)).await;
}
