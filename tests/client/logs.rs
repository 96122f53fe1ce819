//! `prewarm logs`: looking on at a job from elsewhere.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::broker::{Job, RESULT};
use crate::support::worker::{Site, eventually, run};
use crate::{call, ended, start};

#[test]
fn a_running_job_is_followed_from_its_beginning_to_its_end() {
    run(async |site: &Site| {
        let other = site.worker().pool("other", "idle = 1\nconcurrency = 1").ready().await;
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let script = "echo before; echo err >&2; read go; printf 'after\\377'; exit 9";
        let marks = "until [ -e /tmp/go ]; do sleep 0.05; [ $((n=n+1)) -gt 60 ] && break; done";
        let script = script.replace("read go", marks);
        // Without a reply queue too: nobody else hears of it.
        let job = Job::shell(&script);
        site.broker.publish("box", &job).await;
        eventually("it runs", async || {
            (worker.status().await["jobs"][0]["container"].is_string()).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let lookers: Vec<_> = (0..3).map(|_| start(&other, &["logs", &job.id])).collect();
        for looker in lookers {
            let output = looker.wait_with_output().unwrap();
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(9), "{err}");
            assert_eq!(output.stdout, b"before\nafter\xff");
            assert!(err.starts_with("err\n") && err.ends_with("failed, exit code 9\n"), "{err}");
        }
        assert_eq!(site.broker.take(&site.broker.results()).await.body["seq"], 0);
        assert!(other.stop().await.success());
        assert!(worker.stop().await.success());
    });
}

#[test]
fn what_no_worker_has_is_said() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let done = call(&worker, &["logs", "nobody's", "--wait", "500ms"]);
        let said = done.stderr.to_string();
        assert_eq!(done.code, Some(1), "{said}");
        assert!(said.contains("not in hand at any of 1 worker(s)"), "{said}");
        let long = "x".repeat(300);
        assert_eq!(call(&worker, &["logs", &long, "--wait", "500ms"]).code, Some(1));
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_cancelled_job_and_one_that_is_run_again_end_it_too() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let job = site.broker.submit("box", Job::shell("echo up; sleep 60")).await;
        site.broker.printed(&job, "up").await;
        let looker = start(&worker, &["logs", &job.id]);
        eventually("looked at", async || worker.log().contains("somebody looks on").then_some(())).await;
        call(&worker, &["cancel", &job.id]).ok("cancel");
        let (code, out, err) = ended(looker);
        assert_eq!((code, out.as_str()), (Some(143), "up\n"), "{err}");
        assert!(err.contains("cancelled, signal 15"), "{err}");

        let body = json!({"args": ["sh", "-c", "echo up; sleep 1; exit 1"], "retries": 1});
        let job = site.broker.submit("box", Job::new(body)).await;
        site.broker.printed(&job, "up").await;
        let (code, out, err) = ended(start(&worker, &["logs", &job.id]));
        assert!(code == Some(1) && out == "up\n" && err.contains("is run again"), "{code:?} {out} {err}");
        site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
        assert!(worker.stop().await.success());
    });
}

/// An onlooker whose queue takes nothing, and one who has gone: the job is as fast as without them, and nothing is kept for them.
#[test]
fn onlookers_who_do_not_look_do_not_slow_the_job() {
    run(async |site: &Site| {
        let worker = site
            .worker()
            .env("PREWARM_BROKER_REPLY_PATIENCE", "1s")
            .pool("box", "idle = 1\nconcurrency = 1\nlogs_limit = 1000000000")
            .ready()
            .await;
        let queue = format!("{}-narrow", site.name);
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        site.broker.channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();

        let script = "until [ -e /tmp/x ]; do sleep 1; touch /tmp/x; done; dd if=/dev/zero bs=64k count=512 2>/dev/null; echo end >&2";
        let job = Job::shell(script);
        site.broker.publish("box", &job).await;
        eventually("it runs", async || {
            (worker.status().await["jobs"][0]["container"].is_string()).then_some(())
        })
        .await;
        let gone = format!("{}-gone", site.name);
        for to in [&queue, &queue, &gone] {
            let properties = BasicProperties::default()
                .with_type("prewarm.watch.v1".into())
                .with_reply_to(to.as_str().into());
            let body = json!({"job_id": job.id}).to_string();
            let exchange = format!("{}.control", site.name);
            let options = BasicPublishOptions::default();
            let sent = site.broker.channel.basic_publish(
                exchange.into(),
                "".into(),
                options,
                body.as_bytes(),
                properties,
            );
            sent.await.unwrap().await.unwrap();
        }
        let begun = Instant::now();
        let result = site.broker.take(&site.broker.results()).await.body;
        assert_eq!(
            (&result["status"], &result["stdout"]["total_bytes"]),
            (&"succeeded".into(), &json!(32 << 20))
        );
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        assert!(worker.stop().await.success());
    });
}
