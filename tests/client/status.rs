//! `prewarm status`, of one worker and of all.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::broker::Job;
use crate::support::worker::{Site, eventually, prewarm, run, signal};
use crate::{LIMIT, call, command, support};

#[test]
fn workers_jobs_and_failures_are_shown_by_http_and_by_the_broker() {
    run(async |site: &Site| {
        let one = site.worker().pool("box", "idle = 1\nconcurrency = 2").full().await;
        let other = site.worker().pool("other", "idle = 1\nconcurrency = 1").full().await;
        let secret = json!({"args": ["sh", "-c", "echo $T; exit 3"], "env": {"T": "s3cret"}});
        let failed = site.broker.submit("box", Job::new(secret)).await;
        site.broker.finished(&failed).await;
        let bad = site.broker.submit("other", Job::raw("{\"timeout\": 7}")).await;
        site.broker.finished(&bad).await;
        let running = site.broker.submit("box", Job::shell("sleep 60")).await;
        site.broker.started(&running).await;

        let all = call(&one, &["status", "--wait", "3s"]).ok("status");
        for word in [
            one.name.as_str(),
            &other.name,
            &running.id,
            &failed.id,
            "exit code 3",
            &bad.id,
            "rejected",
            "timeout: ",
            "prewarm-test/busybox",
        ] {
            assert!(all.contains(word), "'{word}' is not in:\n{all}");
        }
        assert!(!all.contains("s3cret"), "{all}");
        let text = call(&one, &["status", "--wait", "3s", "--json"]).ok("status --json");
        let workers: Vec<Value> = serde_json::from_str(&text).unwrap();
        let names: Vec<&str> = workers.iter().map(|worker| worker["worker"].as_str().unwrap()).collect();
        assert_eq!(names, [&one.name, &other.name]);
        assert_eq!(workers[0]["jobs"][0]["job_id"], running.id);
        let failure = &workers[0]["failures"][0];
        assert_eq!(
            (&failure["job_id"], &failure["status"], &failure["pool"]),
            (&json!(failed.id), &json!("failed"), &json!("box"))
        );
        assert_eq!(workers[1]["failures"][0]["kind"], "invalid_job");
        // One of them, without a broker; and it says the same as its port does.
        let url = format!("http://{}", other.listen);
        let done = support::docker::run(prewarm().args(["status", "--from", &url, "--json"]), None, LIMIT);
        let alone: Vec<Value> = serde_json::from_str(&done.ok("status --from")).unwrap();
        assert_eq!(alone[0]["failures"], other.status().await["failures"]);

        assert!(other.stop().await.success());
        let left = call(&one, &["status", "--wait", "3s"]).ok("status");
        assert!(left.contains(&one.name), "{left}");
        call(&one, &["cancel", &running.id]).ok("cancel");
        site.broker.finished(&running).await;
        let stopped = call(&one, &["status", "--from", "http://127.0.0.1:1"]);
        assert_eq!(stopped.code, Some(1), "{stopped:?}");
        assert!(one.stop().await.success());
    });
}

#[test]
fn it_can_be_watched() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").full().await;
        let mut watch = command(&worker, &["status", "--watch=100ms", "--wait", "200ms", "--json"]);
        let mut child = watch.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        // A line may be empty: the worker's answer came too late for it.
        eventually("no job is shown", async || (next()[0]["jobs"] == json!([])).then_some(())).await;
        let job = site.broker.submit("box", Job::shell("sleep 60")).await;
        eventually("the job is shown", async || (next()[0]["jobs"][0]["job_id"] == job.id).then_some(()))
            .await;
        call(&worker, &["cancel", &job.id]).ok("cancel");
        eventually("it is gone", async || (next()[0]["jobs"] == json!([])).then_some(())).await;
        signal("TERM", child.id());
        child.wait().unwrap();
        assert!(worker.stop().await.success());
    });
}

#[test]
fn without_a_worker_it_says_so() {
    run(async |site: &Site| {
        let mut worker = site.worker().pool("box", "idle = 1").ready().await;
        signal("TERM", worker.pid());
        worker.ended().await;
        let done = call(&worker, &["status", "--wait", "100ms"]);
        assert!(done.code == Some(1) && done.stderr.to_string().contains("no worker answered"), "{done:?}");
    });
}
