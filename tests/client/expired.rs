//! Jobs whose time was over before they began, and jobs that are given out again and again.

use lapin::options::{BasicGetOptions, BasicPublishOptions, BasicRejectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::call;
use crate::support::broker::{Attempt, Job, RESULT};
use crate::support::own_broker::{self, OwnBroker};
use crate::support::worker::{Site, eventually, run};

fn expiring(milliseconds: &str) -> Job {
    let mut job = Job::new(json!({"args": ["echo", "never"], "metadata": {"mine": 1}}));
    job.properties = job.properties.with_expiration(milliseconds.into());
    job
}

/// Keeps the pool's only seat until it is cancelled.
async fn blocker(site: &Site) -> Job {
    let job = site.broker.submit("box", Job::shell("sleep 60")).await;
    site.broker.started(&job).await;
    job
}

#[test]
fn an_expired_job_is_answered_if_that_is_configured() {
    run(async |site: &Site| {
        let setup = site.worker().env("PREWARM_BROKER_EXPIRED", "answer");
        let setup = setup.env("PREWARM_BROKER_DELIVERY_LIMIT", "1");
        let worker = setup.pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let first = blocker(site).await;
        let job = site.broker.submit("box", expiring("300")).await;
        let Attempt { result, replies, .. } = site.broker.finished(&job).await;
        assert_eq!((&result["status"], &result["error"]["kind"]), (&json!("expired"), &json!("expired")));
        assert_eq!((replies.len(), &result["metadata"]), (1, &json!({"mine": 1})));
        assert!(result.get("exit_code").is_none() && result.get("container").is_none(), "{result}");

        // One that nobody settles, as if it killed its workers: an error, and a dead letter.
        let job = site.broker.submit("box", Job::shell("echo never")).await;
        let queue = site.broker.pool_queue("box");
        for _ in 0..2 {
            let message = eventually("it is given out", async || {
                site.broker
                    .channel
                    .basic_get(queue.as_str().into(), BasicGetOptions::default())
                    .await
                    .unwrap()
            })
            .await;
            message.delivery.acker.reject(BasicRejectOptions { requeue: true }).await.unwrap();
        }
        let result = site.broker.finished(&job).await.result;
        assert_eq!(
            (&result["status"], &result["error"]["kind"]),
            (&json!("error"), &json!("delivery_limit")),
            "{result}"
        );
        let text = call(&worker, &["dead", "ls", "--json"]).ok("dead ls");
        let dead: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(dead.len(), 1, "only the one that may be a killer: {text}");
        assert_eq!((&dead[0]["id"], &dead[0]["kind"]), (&json!(job.id), &json!("delivery_limit")));
        assert_eq!(dead[0]["pool"], "box");
        let failures = worker.status().await["failures"].clone();
        assert_eq!(failures.as_array().unwrap().len(), 2, "{failures}");
        let metrics = worker.metrics().await;
        assert_eq!(metrics.get("prewarm_jobs_total", &[("pool", "box"), ("status", "expired")]), 1.0);
        call(&worker, &["cancel", &first.id]).ok("cancel");
        site.broker.finished(&first).await;
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&format!("{}.died", site.name)).await, 0);
    });
}

#[test]
fn otherwise_it_is_a_dead_letter() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let first = blocker(site).await;
        let job = site.broker.submit("box", expiring("300")).await;
        eventually("dead", async || (site.broker.ready(&site.broker.dead()).await == 1).then_some(())).await;
        let text = call(&worker, &["dead", "ls", "--json"]).ok("dead ls");
        let dead: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&dead["id"], &dead["kind"]), (&json!(job.id), &json!("expired")));
        call(&worker, &["cancel", &first.id]).ok("cancel");
        site.broker.finished(&first).await;
        assert!(site.broker.so_far(&job).iter().all(|reply| reply.kind != RESULT));
        assert!(worker.stop().await.success());
    });
}

/// The same on brokers of later versions, where dead-lettering was changed.
#[test]
fn later_brokers_tell_of_expired_jobs_too() {
    for suite in ["trixie", "sid"] {
        run(async |site: &Site| {
            let root = own_broker::root(suite);
            let mut broker = OwnBroker::prepare(Some(&root), |_| String::new());
            broker.up();
            let setup = site.worker().env("PREWARM_BROKER_EXPIRED", "answer");
            let worker = setup.pool("box", "idle = 1\nconcurrency = 1").start_with(&broker.url()).await;
            worker.until_ready().await;
            let id = call(&worker, &["submit", "box", "--detach", "--", "sleep", "60"]).ok("submit");
            eventually("it runs", async || {
                worker.status().await["jobs"][0]["container"].is_string().then_some(())
            })
            .await;
            let connection =
                Connection::connect(&broker.url(), ConnectionProperties::default()).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
            let replies = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.unwrap();
            let job = expiring("300").reply_to(replies.name().as_str());
            let exchange = format!("{}.jobs", site.name);
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let sent = channel.basic_publish(
                exchange.into(),
                "box".into(),
                options,
                &job.body,
                job.properties.clone(),
            );
            sent.await.unwrap().await.unwrap();
            let reply = eventually("the result", async || {
                let get = channel.basic_get(replies.name().clone(), BasicGetOptions { no_ack: true });
                get.await.unwrap().map(|message| message.delivery.data)
            })
            .await;
            let result: Value = serde_json::from_slice(&reply).unwrap();
            assert_eq!(
                (&result["job_id"], &result["status"]),
                (&json!(job.id), &json!("expired")),
                "{suite}"
            );
            call(&worker, &["cancel", id.trim()]).ok("cancel");
            connection.close(200, "".into()).await.unwrap();
            assert!(worker.stop().await.success());
        });
    }
}

/// A publisher's own delay: the exchanges in which retries wait are as good for a job's first time.
#[test]
fn a_job_can_be_published_to_begin_later() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let job = Job::shell("true").reply_to(&site.broker.reply_queue);
        let exchange = format!("{}.retry.1000ms", site.name);
        let begun = std::time::Instant::now();
        let sent = site.broker.channel.basic_publish(
            exchange.into(),
            "box".into(),
            BasicPublishOptions { mandatory: true, ..Default::default() },
            &job.body,
            job.properties.clone(),
        );
        sent.await.unwrap().await.unwrap();
        let attempt = site.broker.finished(&job).await.succeeded();
        assert_eq!(attempt.result["attempt"], 1);
        assert!(begun.elapsed() >= std::time::Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(worker.stop().await.success());
    });
}
