//! Deliveries that come back while, or just after, their job ran here; and jobs that are stopped past the worker.

use std::time::Duration;

use crate::by_way_of_a_proxy;
use crate::support::broker::{Job, RESULT};
use crate::support::docker::docker_ok;
use crate::support::marks::Marks;
use crate::support::worker::{Site, Worker, eventually, run, signal};

async fn queues_are_empty(site: &Site) {
    for queue in [site.broker.pool_queue("box"), site.broker.dead(), site.broker.results()] {
        assert_eq!(site.broker.ready(&queue).await, 0, "{queue}");
    }
}

async fn adopted(worker: &Worker) -> f64 {
    worker.metrics().await.get("prewarm_deliveries_adopted_total", &[("pool", "box")])
}

/// With a seat to spare the delivery comes back while the job runs; with none, when it is over.
#[test]
fn a_job_whose_connection_is_lost_goes_on_and_is_not_run_again() {
    for (concurrency, cuts) in [(2, 1), (2, 3), (1, 1)] {
        run(async |site: &Site| {
            let marks = Marks::new(site);
            let (proxy, address) = by_way_of_a_proxy().await;
            let keys = format!("idle = 1\nconcurrency = {concurrency}\n{}", marks.mount());
            let worker = site.worker().pool("box", &keys).start_with(&address).await;
            worker.until_ready().await;
            let job = Job::shell(&format!("echo run >>/marks/job; {}; echo done", Marks::WAIT));
            let job = site.broker.submit("box", job).await;
            site.broker.started(&job).await;
            for cut in 1..=cuts {
                proxy.cut();
                if concurrency > 1 {
                    let count = f64::from(cut);
                    eventually("adopted", async || (adopted(&worker).await >= count).then_some(())).await;
                }
            }
            marks.let_go();
            let replies = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
            let result = &replies.iter().find(|r| r.kind == RESULT).unwrap().body;
            assert_eq!((&result["status"], &result["attempt"]), (&"succeeded".into(), &1.into()), "{result}");
            let count = f64::from(cuts);
            eventually("adopted", async || (adopted(&worker).await >= count).then_some(())).await;
            // Whatever else comes is run as ever, and after it nothing of the first is left.
            assert_eq!(site.broker.run("box", Job::shell("echo next")).await.succeeded().stdout, b"next\n");
            assert!(worker.stop().await.success());
            assert_eq!(marks.runs("job"), 1);
            queues_are_empty(site).await;
            let results = site.broker.so_far(&job).iter().filter(|r| r.kind == RESULT).count();
            assert_eq!(results, 1);
        });
    }
}

/// The result is confirmed, and the acknowledgement never arrives.
#[test]
fn an_acknowledgement_that_is_lost_on_its_way_causes_no_second_run() {
    run(async |site: &Site| {
        let marks = Marks::new(site);
        let (proxy, address) = by_way_of_a_proxy().await;
        let keys = format!("idle = 1\nconcurrency = 1\n{}", marks.mount());
        let worker = site.worker().pool("box", &keys).start_with(&address).await;
        worker.until_ready().await;
        // basic.ack: method frame, class 60, method 80. Something that is none, of the same length, ends the connection.
        proxy.tamper(Some((&[0x00, 0x3c, 0x00, 0x50, 0, 0, 0, 0], &[0x7f, 0x7f, 0x7f, 0x7f, 0, 0, 0, 0])));
        let job = site.broker.submit("box", Job::shell("echo run >>/marks/job")).await;
        site.broker.finished(&job).await;
        eventually("the connection was lost", async || {
            (worker.metrics().await.get("prewarm_broker_reconnects_total", &[]) >= 1.0).then_some(())
        })
        .await;
        proxy.tamper(None);
        eventually("adopted", async || (adopted(&worker).await >= 1.0).then_some(())).await;
        assert!(worker.stop().await.success());
        assert_eq!(marks.runs("job"), 1);
        queues_are_empty(site).await;
    });
}

/// `docker stop`, as the engine's own shutdown, signals the job past the worker: it did not fail by itself.
#[test]
fn a_job_whose_container_is_stopped_or_killed_from_outside_is_run_again() {
    for how in ["stop", "kill"] {
        run(async |site: &Site| {
            let marks = Marks::new(site);
            let keys = format!("idle = 1\nconcurrency = 1\n{}", marks.mount());
            let worker = site.worker().pool("box", &keys).ready().await;
            let script = "echo run >>/marks/job; [ $(wc -l </marks/job) = 2 ] || sleep 60; echo again";
            let job = site.broker.submit("box", Job::shell(script)).await;
            let started = site.broker.started(&job).await;
            docker_ok([how, started["container"].as_str().unwrap()]);
            let replies = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
            let result = &replies.last().unwrap().body;
            assert_eq!((&result["status"], &result["attempt"]), (&"succeeded".into(), &2.into()), "{result}");
            assert_eq!(marks.runs("job"), 2);
            assert!(worker.stop().await.success());
            queues_are_empty(site).await;
        });
    }
}

#[test]
fn a_job_s_own_failure_is_run_again_only_if_it_asks_for_that() {
    run(async |site: &Site| {
        let marks = Marks::new(site);
        let keys = format!("idle = 1\nconcurrency = 2\n{}", marks.mount());
        let worker = site.worker().pool("box", &keys).ready().await;
        let script = |name: &str| format!("echo run >>/marks/{name}; exit $((3 - $(wc -l </marks/{name})))");
        let asks = |name: &str, retries: u32| {
            Job::new(serde_json::json!({"args": ["sh", "-c", script(name)], "retries": retries}))
        };
        let once = site.broker.submit("box", asks("once", 0)).await;
        let enough = site.broker.submit("box", asks("enough", 5)).await;
        let too_few = site.broker.submit("box", asks("few", 1)).await;
        for (job, name, exit_code, attempt) in
            [(once, "once", 2, 1), (too_few, "few", 1, 2), (enough, "enough", 0, 3)]
        {
            let replies = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
            let results: Vec<_> = replies.iter().filter(|r| r.kind == RESULT).collect();
            let result = &results[0].body;
            assert_eq!((&result["exit_code"], &result["attempt"]), (&exit_code.into(), &attempt.into()));
            assert_eq!((results.len(), marks.runs(name)), (1, attempt), "{name}");
        }
        assert!(worker.stop().await.success());
        queues_are_empty(site).await;
    });
}

/// A second signal ends the worker at once, and what it had in hand is run by another.
#[test]
fn a_second_signal_forces_and_loses_nothing() {
    run(async |site: &Site| {
        let marks = Marks::new(site);
        let keys = format!("idle = 1\nconcurrency = 1\n{}", marks.mount());
        let mut worker = site.worker().pool("box", &keys).ready().await;
        let script = "echo run >>/marks/job; [ $(wc -l </marks/job) = 2 ] || sleep 60";
        let job = site.broker.submit("box", Job::shell(script)).await;
        site.broker.started(&job).await;
        // A container that is being created would be left to a sweep.
        worker.until_one(async |pool| pool["idle"] == 1 && pool["starting"] == 0).await;
        signal("TERM", worker.pid());
        eventually("draining", async || worker.log().contains("draining").then_some(())).await;
        let forced = std::time::Instant::now();
        signal("INT", worker.pid());
        assert!(!worker.ended().await.success());
        assert!(forced.elapsed() < Duration::from_secs(10), "{:?}", forced.elapsed());
        let other = site.worker().pool("box", &keys).ready().await;
        let replies = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
        let result = &replies.last().unwrap().body;
        assert_eq!((&result["status"], &result["attempt"]), (&"succeeded".into(), &2.into()), "{result}");
        assert!(other.stop().await.success());
        queues_are_empty(site).await;
    });
}
