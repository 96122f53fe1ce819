//! Two workers on one engine: neither takes, counts or sweeps what is the other's.

use std::collections::BTreeSet;

use crate::alone;
use crate::support::broker::Job;
use crate::support::engine::{containers, running};
use crate::support::worker::{Site, Worker, eventually, run};

const KEYS: &str = "idle = 3\nconcurrency = 1";

fn ids(worker: &str) -> BTreeSet<String> {
    running(worker).into_iter().collect()
}

/// A worker's containers, when it has no more and no fewer than it wants.
async fn own(worker: &Worker) -> BTreeSet<String> {
    worker.until_full().await;
    eventually("as many as it wants are there", async || {
        let ids = ids(&worker.name);
        (ids.len() == 3 && containers(&worker.name).len() == 3).then_some(ids)
    })
    .await
}

#[test]
fn two_workers_on_one_engine_live_together() {
    let _alone = alone();
    run(async |site: &Site| {
        let stays = site.worker().pool("box", KEYS).full().await;
        let mine = own(&stays).await;
        // Starting sweeps what a dead worker of the name has left. This one has another name.
        let mut other = site.worker().pool("box", KEYS).full().await;
        let theirs = own(&other).await;
        assert!(mine.is_disjoint(&theirs), "{mine:?} {theirs:?}");

        // Jobs run in containers of the worker that says so.
        let mut of_mine = BTreeSet::new();
        for _ in 0..8 {
            let attempt = site.broker.run("box", Job::shell("true")).await.succeeded();
            assert_eq!(attempt.result["attempt"], 1);
            let (worker, container) =
                (&attempt.result["worker"], attempt.result["container"].as_str().unwrap());
            if *worker == stays.name.as_str() {
                of_mine.insert(container.to_owned());
            }
            for (name, idle) in [(&stays.name, &mine), (&other.name, &theirs)] {
                assert!(*worker == name.as_str() || !idle.iter().any(|id| id.starts_with(container)));
            }
        }
        assert!(!of_mine.is_empty() && of_mine.len() < 8, "both have had some: {of_mine:?}");

        // It dies with containers of its own, comes back and sweeps; it goes, and drains.
        let mine = own(&stays).await;
        let name = other.name.clone();
        let lost = own(&other).await;
        other.kill();
        let back = site.worker().named(&name).pool("box", KEYS).full().await;
        let new = own(&back).await;
        assert!(new.is_disjoint(&lost) && new.is_disjoint(&mine), "{new:?}");
        assert_eq!(ids(&stays.name), mine, "not touched by the sweep");
        assert!(back.stop().await.success());
        assert_eq!(ids(&stays.name), mine, "not touched by the drain");
        assert_eq!(stays.pool("box").await["idle"], 3);
        site.broker.run("box", Job::shell("true")).await.succeeded();
        assert!(stays.stop().await.success());
    });
}
