//! A store that cannot be written: nothing is granted, and what was granted goes on.

mod support;

use support::{FakeNode, Running, config, http, until};
use usher_broker::store::MemoryStore;
use usher_shared::link::ToNode;

const JSON: &[(&str, &str)] = &[("accept", "application/json")];

fn acks(node: &FakeNode) -> usize {
    let memory = node.memory.lock();
    let acks = memory
        .told
        .iter()
        .filter(|told| matches!(told, ToNode::HeartbeatAck { .. }));
    acks.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_fails_old_teams_go_on_and_new_ones_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let (store, switch) = MemoryStore::new();
    let broker = Running::start_on(config(data.path()), store).await;
    let node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    assert_eq!(broker.admin("PUT", "/v1/teams/old", "").await.status, 201);

    switch.fail();
    let admin = broker.admin;
    let stuck = tokio::spawn(async move { http(admin, "PUT", "/v1/teams/new", &[], "").await });
    until("the broker to notice", async || {
        http(broker.clients, "GET", "/readyz", &[], "").await.status == 503
    })
    .await;
    for path in ["/healthz", "/metrics"] {
        assert_eq!(http(broker.admin, "GET", path, &[], "").await.status, 200);
    }
    let page = http(broker.admin, "GET", "/metrics", &[], "").await.body;
    assert!(page.lines().any(|line| line == "usher_store_failing 1"));
    assert_eq!(broker.connect("old", JSON).await.status, 200);
    let refused = broker.connect("another", JSON).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "store_failing"));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(broker.admin("GET", "/v1/nodes", "").await.status, 200);
    assert!(
        !node.memory.lock().held.contains_key("new"),
        "granted before it was durable"
    );
    for path in ["/v1/teams", "/v1/teams/old", "/v1/teams/old/why"] {
        let refused = broker.admin("GET", path, "").await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (503, "store_failing"),
            "{path}"
        );
        assert!(refused.headers.contains_key("retry-after"));
    }
    assert_eq!(broker.reads_refused("store_failing").await, 3);
    for path in ["/v1/status", "/v1/nodes/node-1", "/v1/operations"] {
        assert_eq!(broker.admin("GET", path, "").await.status, 200, "{path}");
    }
    let before = acks(&node);
    until("more acknowledgements", async || acks(&node) > before + 3).await;

    switch.mend();
    assert_eq!(stuck.await.unwrap().status, 201);
    until("the grant", async || node.memory.lock().held.contains_key("new")).await;
    assert_eq!(http(broker.clients, "GET", "/readyz", &[], "").await.status, 200);
    assert_eq!(broker.connect("another", JSON).await.status, 200);
    broker.stop().await;
}
