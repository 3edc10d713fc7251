//! The small parent, with shells as its children. The real one is tested with the executable.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use usher_node::parent::{ParentConfig, supervise, tie_to_parent};
use usher_shared::link::Exited;
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
async fn each_death_is_reported_with_its_own_incarnation_and_the_child_is_started_again() {
    let listener = usher_listen::accept::bind("127.0.0.1:0".parse().unwrap(), "test", "").unwrap();
    let address = listener.local_addr().unwrap();
    let (say, mut said) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let service = service_fn(move |request: http::Request<usher_listen::inflow::Inflow>| {
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
        usher_listen::accept::Limits::of("test"),
        stop.clone(),
        service,
    ));
    // A broker that is not there holds nothing up for long.
    let brokers = vec!["ws://127.0.0.1:1".to_owned(), format!("ws://{address}")];
    let supervised = tokio::spawn(supervise(config("exit 1", brokers)));
    let (mut incarnations, mut nonces) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..3 {
        let exited = tokio::time::timeout(DEADLINE, said.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(exited.node.as_str(), "node-1");
        incarnations.insert(exited.incarnation);
        nonces.insert(exited.nonce.expect("the parent knows it").expose());
    }
    assert_eq!((incarnations.len(), nonces.len()), (3, 3));
    supervised.abort();
}

#[tokio::test]
async fn a_child_that_cannot_start_as_configured_is_not_started_again() {
    let code = supervise(config("exit 2", Vec::new()));
    let code = tokio::time::timeout(DEADLINE, code).await.unwrap();
    assert_eq!(code.unwrap(), 2);
}

#[test]
fn a_process_without_a_parent_is_tied_to_nobody() {
    assert!(tie_to_parent().is_ok());
}
