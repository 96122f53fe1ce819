//! Reply queues that are full, or that nothing must be sent to; brokers that take nothing while a job runs.

use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::by_way_of_a_proxy;
use crate::support::broker::{Job, RESULT};
use crate::support::worker::{Site, eventually, run};

/// A reply queue with room for one message, which refuses the others.
async fn narrow_queue(site: &Site) -> String {
    let name = format!("{}-narrow", site.name);
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    site.broker.channel.queue_declare(name.as_str().into(), options, arguments).await.unwrap();
    name
}

#[test]
fn a_full_reply_queue_does_not_hold_up_the_job_and_its_result_is_kept() {
    run(async |site: &Site| {
        let queue = narrow_queue(site).await;
        let worker = site
            .worker()
            .env("PREWARM_BROKER_REPLY_PATIENCE", "1s")
            .pool("box", "idle = 1\nconcurrency = 1\ntimeout = \"20s\"")
            .ready()
            .await;
        // More than all windows and pipes hold.
        let job = Job::shell("dd if=/dev/zero bs=64k count=128 2>/dev/null; exit 5").reply_to(&queue);
        site.broker.publish("box", &job).await;
        let reply = site.broker.take(&site.broker.results()).await;
        let result = &reply.body;
        assert_eq!(
            (reply.kind.as_str(), &result["status"], &result["exit_code"]),
            (RESULT, &"failed".into(), &5.into())
        );
        assert_eq!(result["stdout"]["total_bytes"], 8 << 20);
        let dropped = result["dropped"].as_u64().unwrap();
        assert!((100..140).contains(&dropped), "{dropped} of 1 started and about 128 log events");
        // A result is counted once it is confirmed, and here before that.
        eventually("it is counted", async || {
            let metrics = worker.metrics().await;
            let refused = metrics.get("prewarm_replies_refused_total", &[]);
            let counted = metrics.get("prewarm_replies_dropped_total", &[]);
            (refused == 1.0 && counted >= dropped as f64).then_some(())
        })
        .await;
        // A job with a queue that takes its replies is none the worse for it.
        assert!(
            site.broker.run("box", Job::shell("echo fine")).await.succeeded().result.get("dropped").is_none()
        );
        assert!(worker.stop().await.success());
        site.broker.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    });
}

#[test]
fn replies_go_only_where_the_operator_allows_it() {
    run(async |site: &Site| {
        let worker =
            site.worker().set("reply_to = [\"ok-*\", \"amq.gen-*\"]").pool("box", "idle = 1").ready().await;
        let queue = format!("{}-other", site.name);
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        site.broker
            .channel
            .queue_declare(queue.as_str().into(), options, FieldTable::default())
            .await
            .unwrap();
        site.broker.publish("box", &Job::shell("echo no").reply_to(&queue)).await;
        let dead = site.broker.take(&site.broker.dead()).await;
        let reason = dead.header("x-prewarm-reason").unwrap();
        assert!(
            reason.contains("reply_to") && reason.contains("the operator allows ok-*, amq.gen-*"),
            "{reason}"
        );
        assert_eq!(site.broker.ready(&queue).await, 0, "not even the refusal");
        // It is told where results without a reply queue go.
        assert_eq!(site.broker.take(&site.broker.results()).await.body["status"], "rejected");
        assert!(worker.stop().await.success());
    });
}

/// EXITED is behind output that nobody takes while the broker is frozen: the job had ended long before its deadline.
#[test]
fn a_job_that_ended_in_time_did_not_time_out_because_the_broker_was_silent() {
    run(async |site: &Site| {
        let (proxy, address) = by_way_of_a_proxy().await;
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").start_with(&address).await;
        worker.until_ready().await;
        // More than 1 MiB in the publisher's window, as much in the channel, and some in pipes.
        let script = "sleep 0.5; dd if=/dev/zero bs=64k count=96 2>/dev/null; exit 3";
        let body = serde_json::json!({"args": ["sh", "-c", script], "timeout": "4s"});
        let job = site.broker.submit("box", Job::new(body)).await;
        site.broker.started(&job).await;
        proxy.freeze();
        tokio::time::sleep(Duration::from_secs(7)).await;
        proxy.thaw();
        let replies = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
        let result = &replies.iter().find(|r| r.kind == RESULT).unwrap().body;
        assert_eq!((&result["status"], &result["exit_code"]), (&"failed".into(), &3.into()), "{result}");
        assert_eq!(result["stdout"]["total_bytes"], 6 << 20);
        assert!(result["dropped"].as_u64().unwrap() > 0, "what was dropped is counted: {result}");
        assert!(worker.stop().await.success());
    });
}
