//! What a publisher, a client or an operator may do that nobody expects.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lapin::options::QueueDeleteOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::broker::{Job, RESULT};
use crate::support::worker::{Site, Worker, eventually, prewarm, run, signal};

async fn reconnects(worker: &Worker) -> f64 {
    worker.metrics().await.get("prewarm_broker_reconnects_total", &[])
}

/// Publishers' frames may be as long as the broker's are, by default 128 KiB, and a header is never split.
#[test]
fn long_headers_cost_no_connection() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let long = "x".repeat(100_000);
        let failing = json!({"args": ["false"], "retries": 1});
        let job = site.broker.submit("box", Job::new(failing).header("x-theirs", &long)).await;
        let replies = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
        assert_eq!(replies.last().unwrap().body["attempt"], 2, "it was retried");
        // Its trace comes back on replies, whose headers have to fit as well.
        let job = Job::shell("echo $TRACEPARENT").header("traceparent", &"1".repeat(32_653));
        let attempt = site.broker.run("box", job).await.succeeded();
        assert_eq!(attempt.stdout, b"\n", "what can't be a trace is none");
        let bad = Job::raw("no").header("x-theirs", &long).header("traceparent", &"1".repeat(20_000));
        site.broker.publish("box", &bad).await;
        eventually("in the queue of dead letters", async || {
            (site.broker.ready(&site.broker.dead()).await == 1).then_some(())
        })
        .await;
        let config = worker.config.to_str().unwrap();
        // Short ones take more than they hold.
        let mut many = Job::raw("no");
        // `CC` means something to the broker.
        let letters: Vec<char> = ('!'..='~').filter(|letter| *letter != 'C').collect();
        let pairs = letters.iter().flat_map(|a| letters.iter().map(move |b| format!("{a}{b}"))).take(4028);
        let names = pairs.chain(letters.iter().map(char::to_string));
        let table =
            names.map(|name| (name.into(), AMQPValue::LongString("".into()))).collect::<BTreeMap<_, _>>();
        many.properties = many.properties.with_headers(FieldTable::from(table));
        site.broker.publish("box", &many).await;
        eventually("another one", async || (site.broker.ready(&site.broker.dead()).await == 2).then_some(()))
            .await;
        let listed = prewarm().args(["--config", config, "dead", "ls"]).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        assert_eq!(reconnects(&worker).await, 0.0);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_queue_of_ours_that_is_deleted_is_declared_again_when_it_is_needed() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let results = site.broker.results();
        for queue in [&results, &site.broker.dead()] {
            site.broker
                .channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await
                .unwrap();
        }
        let mut job = Job::shell("echo kept");
        job.properties = lapin::BasicProperties::default();
        site.broker.publish("box", &job).await;
        // Asked for passively, which must not fail: not before it is there again.
        eventually("back", async || {
            let log = worker.log();
            (log.contains("is gone") || log.contains("declare")).then_some(())
        })
        .await;
        eventually("ready again", async || {
            let (code, _) = worker.get("/readyz").await?;
            (code == 200).then_some(())
        })
        .await;
        assert_eq!(site.broker.take(&results).await.body["stdout"]["text"], "kept\n");
        site.broker.publish("box", &Job::raw("no")).await;
        site.broker.take(&site.broker.dead()).await;
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_client_that_keeps_its_http_connection_open_does_not_keep_the_worker() {
    run(async |site: &Site| {
        let mut worker = site.worker().pool("box", "idle = 1").full().await;
        let mut half = TcpStream::connect(worker.listen).unwrap();
        half.write_all(b"GET /metr").unwrap();
        let _idle = TcpStream::connect(worker.listen).unwrap();
        let told = Instant::now();
        signal("TERM", worker.pid());
        assert!(worker.ended().await.success());
        // A connection may last 30 s otherwise.
        assert!(told.elapsed() < Duration::from_secs(25), "{:?}", told.elapsed());
    });
}

#[test]
fn an_id_that_no_job_can_have_is_not_remembered() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1").ready().await;
        let config = worker.config.to_str().unwrap();
        let args = ["--config", config, "cancel", &"x".repeat(256), "--wait", "500ms"];
        assert_eq!(prewarm().args(args).output().unwrap().status.code(), Some(1), "nobody answers to that");
        assert!(!worker.log().contains("xxxx"), "nor repeats it");
        assert!(worker.stop().await.success());
    });
}
