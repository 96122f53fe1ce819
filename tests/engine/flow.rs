//! Jobs that keep coming while something happens to the engine.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::time::Duration;

use serde_json::Value;
use tokio::time::MissedTickBehavior;

use crate::support::broker::{Job, RESULT};
use crate::support::docker::docker_ok;
use crate::support::engine::Container;
use crate::support::worker::{Site, Worker, eventually};

/// A job that goes on until its container is gone, and in its second life is quick; its pool has a [`mark`]. It
/// doesn't listen when the engine tells it to end.
pub const TWO_LIVES: &str =
    "trap '' TERM; [ -e /mark/been ] || { touch /mark/been; echo up; while :; do sleep 1; done; }";

/// For a pool's keys: a folder of the host in which [`TWO_LIVES`] leaves word that it has lived.
pub fn mark(site: &Site) -> String {
    let dir = site.dir.join("mark");
    fs::create_dir(&dir).unwrap();
    format!("mounts = [{{ source = \"{}\", target = \"/mark\" }}]", dir.display())
}

/// How often jobs are to come: less often than containers can be made, however slow the machine.
pub async fn pace(worker: &Worker) -> Duration {
    Duration::from_millis(500).max(2 * worker.warmup("box").await)
}

/// Publishes a short job to the pool `box` every now and then while something else goes on; gives the jobs, and what that
/// gave.
pub async fn flow<T>(site: &Site, every: Duration, meanwhile: impl Future<Output = T>) -> (Vec<Job>, T) {
    let mut jobs = Vec::new();
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut meanwhile = std::pin::pin!(meanwhile);
    loop {
        tokio::select! {
            _ = tick.tick() => jobs.push(site.broker.submit("box", Job::shell("trap '' TERM; echo done")).await),
            done = &mut meanwhile => return (jobs, done),
        }
    }
}

/// Waits for a result of each job; all succeeded, and none is left anywhere.
pub async fn all_succeeded(site: &Site, jobs: &[Job]) -> Vec<Value> {
    let mut results = Vec::new();
    for job in jobs {
        site.broker.until(job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
    }
    for job in jobs {
        let replies = site.broker.so_far(job);
        let of_job: Vec<_> = replies.into_iter().filter(|r| r.kind == RESULT).map(|r| r.body).collect();
        let attempts: BTreeSet<_> = of_job.iter().map(|r| r["attempt"].as_u64()).collect();
        // A worker that is killed between a result and its acknowledgement has the job run again, and that shows.
        assert_eq!(attempts.len(), of_job.len(), "two results of one attempt: {of_job:#?}");
        for result in &of_job {
            let end = (&result["status"], &result["exit_code"]);
            assert_eq!(end, (&"succeeded".into(), &0.into()), "{result:#}");
        }
        results.extend(of_job.into_iter().next_back());
    }
    for queue in [site.broker.pool_queue("box"), site.broker.dead(), site.broker.results()] {
        assert_eq!(site.broker.ready(&queue).await, 0, "{queue}");
    }
    let retried = results.iter().filter(|r| r["attempt"] != 1).count();
    let missed = results.iter().filter(|r| r["lease"] != "hit").count();
    println!("{} jobs succeeded, {retried} of them in a later attempt, {missed} misses", results.len());
    results
}

/// A worker's containers in a state, as it says itself.
pub async fn in_state(worker: &Worker, state: &str) -> Vec<String> {
    let pool = worker.pool("box").await;
    let containers = pool["containers"].as_array().unwrap().iter();
    containers.filter(|c| c["state"] == state).map(|c| c["id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until the pool is full and the engine has just the containers that the worker says it has.
pub async fn nothing_leaked(worker: &Worker, on_engine: impl Fn() -> Vec<Container>) {
    worker.until_ready().await;
    // What is different, if it stays so.
    let shown = RefCell::new(String::new());
    eventually("the engine has what the worker has", async || {
        let status = worker.until_full().await;
        let pools = status["pools"].as_array().unwrap().iter();
        let said = pools.flat_map(|p| p["containers"].as_array().unwrap()).map(|c| c["id"].as_str().unwrap());
        let said: BTreeSet<&str> = said.collect();
        let found = on_engine();
        let same = found.iter().map(|c| c.id.as_str()).collect::<BTreeSet<_>>() == said;
        let states: Vec<_> = found.iter().map(|c| (&c.id, &c.state)).collect();
        let seen = format!("the worker has {said:?}, the engine {states:?}");
        if shown.replace(seen.clone()) != seen {
            println!("{seen}");
        }
        (same && found.iter().all(|c| c.state == "running")).then_some(())
    })
    .await;
}

/// So many containers were retired for this reason.
pub async fn retired(worker: &Worker, reason: &str) -> f64 {
    worker.metrics().await.get("prewarm_containers_retired_total", &[("pool", "box"), ("reason", reason)])
}

/// `docker`, while jobs keep coming.
pub async fn docker_aside(args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    tokio::task::spawn_blocking(|| docker_ok(args)).await.unwrap()
}
