//! A parent that is told to stop. Alone in its process, because the signal reaches every parent in it.

#![allow(clippy::unwrap_used)]

use std::time::Duration;
use usher_node::parent::{ParentConfig, supervise};
use usher_shared::secret::Token;

const DEADLINE: Duration = Duration::from_secs(20);

fn config(script: &str, brokers: Vec<String>) -> ParentConfig {
    ParentConfig {
        node: "node-1".parse().unwrap(),
        brokers,
        token: Some(Token::new("0123456789abcdef").unwrap().into()),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        stop_budget: Duration::from_secs(1),
    }
}

#[tokio::test]
async fn a_child_that_outlives_its_stop_budget_is_killed_soon_after() {
    // Deaf to SIGTERM, as a process that hangs is.
    let mut config = config(
        "trap '' TERM; : > \"$1\"; while :; do sleep 0.05; done",
        Vec::new(),
    );
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready");
    config.args.extend(["child".into(), ready.clone().into()]);
    let supervised = tokio::spawn(supervise(config));
    let until = tokio::time::Instant::now() + DEADLINE;
    while !ready.exists() {
        assert!(tokio::time::Instant::now() < until, "the child does not start");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
    let code = tokio::time::timeout(DEADLINE, supervised).await.unwrap().unwrap();
    assert_eq!(code.unwrap(), 128 + 9);
}
