//! `prewarm cancel`, wherever the job is.

use std::process::Output;

use crate::support::broker::{Attempt, Job, RESULT};
use crate::support::engine::EngineProxy;
use crate::support::marks::Marks;
use crate::support::worker::{Site, Worker, eventually, prewarm, run};

fn cancel(worker: &Worker, id: &str) -> Output {
    let config = worker.config.to_str().unwrap();
    prewarm().args(["--config", config, "cancel", id]).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

async fn cancelled(site: &Site, job: &Job) -> Attempt {
    let attempt = site.broker.finished(job).await;
    assert_eq!(attempt.status(), "cancelled", "{}", attempt.result);
    assert_eq!(attempt.result["error"]["kind"], "cancelled");
    attempt
}

#[test]
fn a_running_job_gets_its_stop_signal_and_a_grace() {
    run(async |site: &Site| {
        let worker =
            site.worker().pool("box", "idle = 1\nconcurrency = 2\nstop_grace = \"5s\"").ready().await;
        let polite = Job::shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done");
        let polite = site.broker.submit("box", polite).await;
        site.broker.printed(&polite, "up").await;
        let answer = said(&cancel(&worker, &polite.id));
        assert!(answer.contains(&format!("worker {} has it, and stops it", worker.name)), "{answer}");
        let attempt = cancelled(site, &polite).await;
        assert_eq!((attempt.stdout.as_slice(), &attempt.result["exit_code"]), (&b"up\nbye\n"[..], &7.into()));

        let stubborn =
            site.broker.submit("box", Job::shell("trap '' TERM; echo up; sleep 60 & wait; sleep 60")).await;
        site.broker.printed(&stubborn, "up").await;
        said(&cancel(&worker, &stubborn.id));
        let attempt = cancelled(site, &stubborn).await;
        assert_eq!(attempt.result["signal"], 9);
        assert!(attempt.result["timings_ms"]["run"].as_f64().unwrap() >= 5000.0);

        // A result is counted once it is confirmed, and here before that.
        eventually("both are counted", async || {
            let cancelled = [("pool", "box"), ("status", "cancelled")];
            (worker.metrics().await.get("prewarm_jobs_total", &cancelled) == 2.0).then_some(())
        })
        .await;
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&site.broker.dead()).await, 0);
    });
}

#[test]
fn a_job_that_waits_for_a_container_is_cancelled_without_one() {
    run(async |site: &Site| {
        let proxy = EngineProxy::new(&site.dir);
        let worker = site.worker().env("DOCKER_HOST", &proxy.host).pool("box", "idle = 1\nconcurrency = 2");
        let worker = worker.full().await;
        let first = site.broker.submit("box", Job::shell("sleep 60")).await;
        site.broker.started(&first).await;
        worker.until_one(async |pool| pool["idle"] == 1 && pool["starting"] == 0).await;
        // The last container is used up, and no further one can be had.
        proxy.hold();
        site.broker.run("box", Job::shell("true")).await.succeeded();
        let second = site.broker.submit("box", Job::shell("echo never")).await;
        worker.until_one(async |pool| pool["waiting"] == 1).await;
        said(&cancel(&worker, &second.id));
        let attempt = cancelled(site, &second).await;
        assert!(attempt.result.get("container").is_none() && attempt.result.get("exit_code").is_none());
        said(&cancel(&worker, &first.id));
        cancelled(site, &first).await;
        proxy.release();
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_job_that_has_not_come_is_cancelled_when_it_does() {
    run(async |site: &Site| {
        let marks = Marks::new(site);
        let keys = format!("idle = 1\nconcurrency = 1\n{}", marks.mount());
        let worker = site.worker().pool("box", &keys).ready().await;
        let first = site.broker.submit("box", Job::shell(Marks::WAIT)).await;
        site.broker.started(&first).await;
        let queued = site.broker.submit("box", Job::shell("echo run >>/marks/queued")).await;
        let answer = said(&cancel(&worker, &queued.id));
        assert!(answer.contains("not in hand at any of 1 worker(s)"), "{answer}");
        marks.let_go();
        site.broker.finished(&first).await.succeeded();
        cancelled(site, &queued).await;
        assert_eq!(marks.runs("queued"), 0);
        assert!(worker.stop().await.success());
    });
}

/// One that waits for its next attempt is not run again.
#[test]
fn a_job_that_waits_for_its_retry_is_cancelled_when_it_comes_back() {
    run(async |site: &Site| {
        let marks = Marks::new(site);
        let worker = site
            .worker()
            .env("PREWARM_BROKER_RETRY_DELAYS", "[\"10s\"]")
            .pool("box", &format!("idle = 1\nconcurrency = 1\n{}", marks.mount()))
            .ready()
            .await;
        let body = serde_json::json!({"args": ["sh", "-c", "echo run >>/marks/job; exit 1"], "retries": 3});
        let job = site.broker.submit("box", Job::new(body)).await;
        let delay = format!("{}.retry.10000ms", site.name);
        eventually("in the delay queue", async || (site.broker.ready(&delay).await == 1).then_some(())).await;
        said(&cancel(&worker, &job.id));
        let replies = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
        let result = &replies.last().unwrap().body;
        assert_eq!((&result["status"], &result["attempt"]), (&"cancelled".into(), &2.into()), "{result}");
        assert_eq!(marks.runs("job"), 1);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn with_no_worker_there_it_says_so() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1").ready().await;
        let config = worker.config.clone();
        assert!(worker.stop().await.success());
        let output = prewarm()
            .args(["--config", config.to_str().unwrap(), "cancel", "job", "--wait", "100ms"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("no worker answered"), "{said}");
    });
}
