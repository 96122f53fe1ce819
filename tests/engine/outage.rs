//! The engine stands still, ends, or is killed, and comes back.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::flow::{TWO_LIVES, all_succeeded, flow, in_state, mark, nothing_leaked, pace, retired};
use crate::support::broker::Job;
use crate::support::docker::BUSYBOX;
use crate::support::own_engine::OwnEngine;
use crate::support::worker::{Site, Worker, eventually, run};

/// From the engine's first answer to a worker that is ready: it listens for the engine every 3 s at worst, then makes a
/// container, while the engine has leftovers to see to. What failed before the outage ended holds nothing up.
fn recovery(warmup: Duration) -> Duration {
    Duration::from_secs(12).max(Duration::from_secs(3) + 10 * warmup)
}

/// What a test waits for until it lets the engine come back, so that jobs are published meanwhile.
async fn until_queued(site: &Site, jobs: u32) {
    let queue = site.broker.pool_queue("box");
    eventually("jobs are in the queue", async || (site.broker.ready(&queue).await >= jobs).then_some(()))
        .await;
}

#[test]
fn stands_still_for_20_seconds() {
    const STILL: Duration = Duration::from_secs(20);
    run(async |site: &Site| {
        let engine = OwnEngine::start(&[BUSYBOX]);
        let keys = "idle = 3\nconcurrency = 2\nnetwork = \"host\"";
        let worker = site.worker().env("DOCKER_HOST", &engine.host()).pool("box", keys).full().await;
        let (jobs, ()) = flow(site, pace(&worker).await, async {
            eventually("a few jobs have run", async || (served(&worker).await >= 3.0).then_some(())).await;
            worker.until_one(async |p| p["idle"].as_u64() >= Some(2)).await;
            engine.signal("STOP");
            tokio::time::sleep(STILL).await;
            engine.signal("CONT");
            let before = served(&worker).await;
            eventually("jobs run again", async || (served(&worker).await >= before + 5.0).then_some(()))
                .await;
        })
        .await;
        let results = all_succeeded(site, &jobs).await;
        let waited = |r: &&Value| r["lease"] == "hit" && r["timings_ms"]["startup"].as_f64() > Some(10_000.0);
        assert!(results.iter().any(|r| waited(&r)), "a hit waited for the engine");
        assert!(results.iter().all(|r| r["attempt"] == 1), "nothing was lost, it only took longer");
        nothing_leaked(&worker, || engine.containers()).await;
        assert!(worker.stop().await.success());
        assert_eq!(engine.containers(), []);
    });
}

/// What the worker has given up on, the engine may do all the same once it goes on: create a container that nobody knows.
/// Finding it is the sweep's, minutes later; all the rest is as it was.
#[test]
fn stands_still_for_longer_than_a_request_may_take() {
    run(async |site: &Site| {
        let engine = OwnEngine::start(&[BUSYBOX]);
        let setup =
            site.worker().env("DOCKER_HOST", &engine.host()).section("\n[engine]\ntimeout = \"6s\"\n");
        let worker = setup.pool("box", "idle = 3\nconcurrency = 2\nnetwork = \"host\"").full().await;
        let (jobs, ()) = flow(site, pace(&worker).await, async {
            worker.until_one(async |p| p["starting"].as_u64() >= Some(1)).await;
            engine.signal("STOP");
            eventually("requests have timed out", async || {
                let (_, why) = worker.get("/readyz").await.unwrap();
                let status = worker.pool("box").await;
                (why.contains("no answer within") || status["last_failure"].is_string()).then_some(())
            })
            .await;
            engine.signal("CONT");
            eventually("jobs have run", async || (served(&worker).await >= 5.0).then_some(())).await;
        })
        .await;
        all_succeeded(site, &jobs).await;
        eventually("nothing runs but what the worker has", async || {
            let pool = worker.until_full().await["pools"][0].clone();
            let said: Vec<&str> =
                pool["containers"].as_array().unwrap().iter().filter_map(|c| c["id"].as_str()).collect();
            // What timed out and was carried out later is found when all is compared.
            let there = engine.containers();
            (there.len() == said.len() && there.iter().all(|c| said.contains(&c.id.as_str()))).then_some(())
        })
        .await;
        worker.until_ready().await;
        assert!(worker.stop().await.success());
        assert_eq!(engine.containers(), []);
    });
}

async fn served(worker: &Worker) -> f64 {
    retired(worker, "used").await
}

#[test]
fn terminated_and_started_again() {
    run(async |site: &Site| comes_back(site, "TERM").await);
}

#[test]
fn killed_and_started_again() {
    run(async |site: &Site| comes_back(site, "KILL").await);
}

async fn comes_back(site: &Site, signal: &str) {
    let mut engine = OwnEngine::start(&[BUSYBOX]);
    let keys = format!("idle = 3\nconcurrency = 2\nnetwork = \"host\"\n{}", mark(site));
    let worker = site.worker().env("DOCKER_HOST", &engine.host()).pool("box", &keys).full().await;
    let recovery = recovery(worker.warmup("box").await);
    let (jobs, running) = flow(site, pace(&worker).await, async {
        let running = site.broker.submit("box", Job::shell(TWO_LIVES)).await;
        site.broker.printed(&running, "up").await;
        // In each state, so that there is something of each to be lost: the jobs that come see to it.
        let some = |p: &Value, state: &str| p[state].as_u64() >= Some(1);
        worker.until_one(async |p| some(p, "idle") && some(p, "starting") && some(p, "leased")).await;

        engine.signal(signal);
        tokio::task::block_in_place(|| engine.ended());
        let why = eventually("/readyz says that the engine is gone", async || {
            let (code, why) = worker.get("/readyz").await.unwrap();
            (code == 503 && why.contains("no engine answers")).then_some(why)
        })
        .await;
        assert!(why.starts_with("pool box: engine: "), "{why}");
        // Intake pauses: jobs stay in the queue, for others to take.
        until_queued(site, 2).await;
        let taken = deliveries(&worker).await;
        until_queued(site, 6).await;
        assert_eq!(deliveries(&worker).await, taken);
        assert_eq!(in_state(&worker, "idle").await, [""; 0]);

        engine.again();
        tokio::task::block_in_place(|| engine.until_up());
        let back = Instant::now();
        worker.until_ready().await;
        println!("ready {:?} after the engine answered", back.elapsed());
        assert!(back.elapsed() < recovery, "{:?}", back.elapsed());
        running
    })
    .await;
    all_succeeded(site, &jobs).await;
    let again = all_succeeded(site, &[running]).await;
    assert_eq!(again[0]["attempt"], 2, "{:#}", again[0]);
    nothing_leaked(&worker, || engine.containers()).await;
    assert!(worker.stop().await.success());
    assert_eq!(engine.containers(), []);
}

async fn deliveries(worker: &Worker) -> f64 {
    let metrics = worker.metrics().await;
    let of = |again| metrics.get("prewarm_deliveries_total", &[("pool", "box"), ("redelivered", again)]);
    of("true") + of("false")
}
