//! A store that does not answer: what waits for it is bounded. By itself, because figures are of the process.

mod support;

use std::time::Duration;
use support::{FakeNode, Running, config, http, until};
use usher_broker::store::MemoryStore;

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_disk_that_hangs_is_bounded_and_goes_with_whoever_asked() {
    let data = tempfile::tempdir().unwrap();
    let (store, switch) = MemoryStore::new();
    let broker = Running::start_on(config(data.path()), store).await;
    let _node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    assert_eq!(broker.admin("PUT", "/v1/teams/old", "").await.status, 201);

    switch.hang();
    let admin = broker.admin;
    let stuck = tokio::spawn(async move { http(admin, "PUT", "/v1/teams/new", &[], "").await });
    // A page is 1,000 rows, and 50,000 may wait.
    let page = move || async move { http(admin, "GET", "/v1/teams?limit=1000", &[], "").await };
    let mut pages = Vec::new();
    while broker.reads_refused("busy").await == 0 {
        assert!(pages.len() < 100, "what waits has no bound");
        pages.push(tokio::spawn(page()));
    }
    assert!(pages.len() > 50);
    for page in pages {
        page.abort();
    }
    // Their places are free again, although nothing came of the disk.
    until("a page to wait", async || {
        let waits = tokio::time::timeout(Duration::from_millis(100), page());
        waits.await.is_err()
    })
    .await;
    assert_eq!(http(admin, "GET", "/v1/nodes", &[], "").await.status, 200);

    switch.mend();
    assert_eq!(stuck.await.unwrap().status, 201);
    assert_eq!(page().await.status, 200);
    broker.stop().await;
}
