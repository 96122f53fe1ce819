//! Jobs through the built binary, a real RabbitMQ and a real engine, as publishers and operators see them (DESIGN
//! section 7). Each test has its own broker prefix and worker, and none may leave a container or a queue behind.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lapin::types::AMQPValue;
use serde_json::{Value, json};
use support::broker::{Attempt, DIRECT, Job, LOG, RESULT, STARTED, data};
use support::docker::{BUSYBOX, Image, docker, docker_ok};
use support::engine::{EngineProxy, containers};
use support::gate::Gate;
use support::worker::{Site, Worker, eventually, run, signal};

const TAIL: usize = 64 * 1024;

fn keys(of: &Value) -> BTreeSet<&str> {
    of.as_object().unwrap().keys().map(String::as_str).collect()
}

fn set<'a>(names: &[&'a str]) -> BTreeSet<&'a str> {
    names.iter().copied().collect()
}

fn is_between(value: &Value, least: f64, most: f64) {
    let n = value.as_f64().unwrap_or_else(|| panic!("a number: {value}"));
    assert!((least..=most).contains(&n), "{n} is not within {least}..={most}");
}

#[test]
fn one_job_with_everything() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").full().await;
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let metadata = json!({"any": "thing", "n": [1, null, {"deep": true}]});
        let script = "echo \"$GREETING, $TRACEPARENT\"; echo oops >&2; sleep 0.2; echo bye; exit 3";
        let body =
            json!({"env": {"GREETING": "hélo\nworld"}, "args": ["sh", "-c", script], "metadata": metadata});
        let mut job = Job::new(body).header("traceparent", trace);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        job.properties = job.properties.with_timestamp(now);
        let attempt = site.broker.run("box", job.clone()).await;

        let envelope = ["job_id", "attempt", "seq", "time", "metadata"];
        for reply in &attempt.replies {
            assert_eq!(reply.body["attempt"], 1);
            assert_eq!(reply.body["metadata"], metadata);
            assert_eq!(reply.header("traceparent").as_deref(), Some(trace));
            assert_eq!(*reply.properties.delivery_mode(), Some(2), "replies are persistent");
        }
        let started = attempt.started();
        let own = ["pool", "worker", "lease", "startup_ms", "container"];
        assert_eq!(keys(started), set(&[&envelope[..], &own].concat()));
        assert_eq!(started["pool"], "box");
        assert_eq!(started["worker"], worker.name);
        assert_eq!(started["lease"], "hit");
        is_between(&started["startup_ms"], 0.001, 5000.0);
        let container = started["container"].as_str().unwrap();
        assert!(container.len() == 64 && container.bytes().all(|b| b.is_ascii_hexdigit()), "{container}");

        for log in attempt.logs() {
            assert_eq!(keys(log), set(&[&envelope[..], &["stream", "offset", "text"]].concat()));
        }
        let said = format!("hélo\nworld, {trace}\nbye\n");
        assert_eq!(String::from_utf8_lossy(&attempt.stdout), said);
        assert_eq!(attempt.stderr, b"oops\n");

        let result = &attempt.result;
        let own = [
            "status",
            "exit_code",
            "oom_killed",
            "lease",
            "timings_ms",
            "usage",
            "stdout",
            "stderr",
            "image",
            "container",
            "pool",
            "worker",
        ];
        assert_eq!(keys(result), set(&[&envelope[..], &own].concat()));
        assert_eq!(result["status"], "failed");
        assert_eq!(result["exit_code"], 3);
        assert_eq!(result["oom_killed"], false);
        assert_eq!(result["lease"], "hit");
        assert_eq!(result["container"], container);
        assert_eq!(result["pool"], "box");
        assert_eq!(result["worker"], worker.name);
        assert_eq!(result["stdout"], json!({"text": said, "total_bytes": said.len(), "truncated": false}));
        assert_eq!(result["stderr"], json!({"text": "oops\n", "total_bytes": 5, "truncated": false}));
        let id = docker_ok(["image", "inspect", "--format", "{{.Id}}", BUSYBOX]);
        assert_eq!(result["image"], format!("{BUSYBOX}@{}", id.trim_end()));
        let timings = &result["timings_ms"];
        assert_eq!(keys(timings), set(&["queued", "lease", "startup", "run", "total"]));
        assert_eq!(timings["startup"], started["startup_ms"]);
        is_between(&timings["queued"], 0.0, 30_000.0);
        is_between(&timings["lease"], 0.0, timings["startup"].as_f64().unwrap());
        is_between(&timings["run"], 200.0, 10_000.0);
        let least = timings["startup"].as_f64().unwrap() + timings["run"].as_f64().unwrap();
        is_between(&timings["total"], least, least + 5000.0);
        assert_eq!(keys(&result["usage"]), set(&["cpu_ms", "max_rss_bytes"]));
        is_between(&result["usage"]["max_rss_bytes"], 64e3, 64e6);

        // The container is thrown away and replaced.
        worker.until_full().await;
        assert!(containers(&worker.name).iter().all(|c| c.id != container));
        assert!(worker.stop().await.success());
        for queue in [site.broker.pool_queue("box"), site.broker.dead(), site.broker.results()] {
            assert_eq!(site.broker.ready(&queue).await, 0, "{queue}");
        }
    });
}

/// A minimal message: no content type, no ids, an empty object.
#[test]
fn a_job_needs_nothing_but_a_body() {
    run(async |site: &Site| {
        let worker =
            site.worker().pool("box", "idle = 1\nargs = [\"echo\", \"from the pool\"]").ready().await;
        let mut job = Job::raw("{}");
        job.properties = lapin::BasicProperties::default();
        site.broker.publish("box", &job).await;
        let reply = site.broker.take(&site.broker.results()).await;
        assert_eq!(reply.kind, RESULT);
        assert_eq!(reply.body["stdout"]["text"], "from the pool\n");
        assert_eq!(reply.body.get("metadata"), None);
        assert_eq!(reply.body["timings_ms"].get("queued"), None, "nobody said when it was published");
        assert!(uuid::Uuid::parse_str(reply.body["job_id"].as_str().unwrap()).is_ok(), "an id is given");
        assert!(reply.properties.correlation_id().is_none());
        assert!(worker.stop().await.success());
    });
}

#[test]
fn two_hundred_jobs_four_at_a_time() {
    const JOBS: usize = 200;
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 4\nconcurrency = 4").full().await;
        // The lines are unlike any other job's, and many enough for several pieces.
        let script = r#"i=0; while [ $i -lt 40 ]; do echo "$ID out $i"; echo "$ID err $i" >&2; i=$((i+1)); done
                        sleep 0.02; echo "$ID end"; echo "$ID end" >&2; exit $((N % 7))"#;
        let mut jobs = Vec::new();
        for n in 0..JOBS {
            let id = format!("{}-{n}", uuid::Uuid::now_v7().simple());
            let env = json!({"ID": id, "N": n.to_string()});
            let job = Job::new(json!({"env": env, "args": ["sh", "-c", script], "metadata": {"id": id}}));
            jobs.push((job.reply_to(&site.broker.reply_queue), id, n));
        }
        futures_util::future::join_all(jobs.iter().map(|(job, ..)| site.broker.publish("box", job))).await;
        let (mut most, mut hits, mut used, mut bytes) = (0.0f64, 0.0, BTreeSet::new(), 0);
        for (job, id, n) in &jobs {
            // Looked at while they run, not after.
            let metrics = worker.metrics().await;
            most = most.max(metrics.get("prewarm_jobs_running", &[("pool", "box")]));
            let in_state = |s| metrics.get("prewarm_pool_containers", &[("pool", "box"), ("state", s)]);
            let all: f64 = ["starting", "idle", "leased", "removing"].into_iter().map(in_state).sum();
            assert!(
                all <= 8.0 && in_state("leased") <= 4.0,
                "{all} containers, {} leased",
                in_state("leased")
            );

            let attempt = site.broker.finished(job).await;
            assert_eq!(attempt.result["attempt"], 1);
            assert_eq!(attempt.result["exit_code"], n % 7, "{:#}", attempt.result);
            assert_eq!(attempt.result["metadata"]["id"], *id);
            for (stream, name) in [(&attempt.stdout, "out"), (&attempt.stderr, "err")] {
                let want: String = (0..40).map(|i| format!("{id} {name} {i}\n")).collect();
                let want = format!("{want}{id} end\n");
                assert_eq!(String::from_utf8_lossy(stream), want);
                assert_eq!(attempt.result[format!("std{name}")]["text"], want);
                bytes += want.len();
            }
            hits += f64::from(attempt.result["lease"] == "hit");
            assert!(used.insert(attempt.result["container"].to_string()), "a container served twice");
        }
        assert_eq!(most, 4.0, "four at a time");

        let status = worker.until_full().await;
        assert_eq!(status["jobs"], json!([]));
        let metrics = worker.metrics().await;
        let pool = ("pool", "box");
        let leases = |result| metrics.get("prewarm_pool_leases_total", &[pool, ("result", result)]);
        assert_eq!(leases("hit") + leases("miss"), JOBS as f64);
        assert_eq!(leases("hit"), hits, "as the results say");
        let startups = |lease| metrics.get("prewarm_startup_seconds_count", &[pool, ("lease", lease)]);
        assert_eq!((startups("hit"), startups("miss")), (leases("hit"), leases("miss")));
        let with = |status| metrics.get("prewarm_jobs_total", &[pool, ("status", status)]);
        let zero = (JOBS).div_ceil(7) as f64;
        assert_eq!((with("succeeded"), with("failed")), (zero, JOBS as f64 - zero));
        assert_eq!(metrics.get("prewarm_deliveries_total", &[pool, ("redelivered", "false")]), JOBS as f64);
        assert_eq!(metrics.get("prewarm_deliveries_total", &[pool, ("redelivered", "true")]), 0.0);
        assert_eq!(metrics.get("prewarm_containers_retired_total", &[pool, ("reason", "used")]), JOBS as f64);
        assert_eq!(metrics.get("prewarm_run_seconds_count", &[pool]), JOBS as f64);
        assert_eq!(metrics.get("prewarm_lease_wait_seconds_count", &[pool]), JOBS as f64);
        let printed = |stream| metrics.get("prewarm_output_bytes_total", &[pool, ("stream", stream)]);
        assert_eq!(printed("stdout") + printed("stderr"), bytes as f64);
        assert_eq!(metrics.get("prewarm_jobs_running", &[pool]), 0.0);

        // Engine and worker agree on what is left: the idle ones.
        assert_eq!(metrics.get("prewarm_pool_containers", &[pool, ("state", "idle")]), 4.0);
        let left = containers(&worker.name);
        assert!(left.len() == 4 && left.iter().all(|c| c.state == "running"), "{left:?}");
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&site.broker.pool_queue("box")).await, 0, "nothing was unsettled");
        assert_eq!(site.broker.ready(&site.broker.dead()).await, 0);
    });
}

#[test]
fn logs_can_be_only_in_the_result_or_nowhere() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 2").ready().await;
        let job =
            |logs: &str| Job::new(json!({"args": ["sh", "-c", "echo out; echo err >&2"], "logs": logs}));
        let only = site.broker.run("box", job("result")).await.succeeded();
        assert_eq!(only.replies.iter().map(|r| r.kind.as_str()).collect::<Vec<_>>(), [STARTED, RESULT]);
        assert_eq!(only.result["stdout"]["text"], "out\n");
        assert_eq!(only.result["stderr"]["text"], "err\n");
        let off = site.broker.run("box", job("off")).await.succeeded();
        assert_eq!(off.replies.iter().map(|r| r.kind.as_str()).collect::<Vec<_>>(), [STARTED, RESULT]);
        assert_eq!((off.result.get("stdout"), off.result.get("stderr")), (None, None));
        assert!(worker.stop().await.success());
    });
}

#[test]
fn past_the_limit_of_logs_the_job_goes_on_and_tails_are_the_end() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 2\nlogs_limit = \"100KiB\"").ready().await;
        // 1 000 bytes a line, numbered, 300 of them; then something at its end.
        let script = r#"pad=$(printf '%0990d' 0); i=0
                        while [ $i -lt 300 ]; do printf '%8d %s\n' $i "$pad"; i=$((i+1)); done; echo the end; exit 7"#;
        let attempt = site.broker.run("box", Job::shell(script)).await;
        let pad = "0".repeat(990);
        let all: String = (0..300).map(|i| format!("{i:8} {pad}\n")).collect();
        let all = all + "the end\n";

        assert_eq!(attempt.result["exit_code"], 7, "it went on");
        assert_eq!(attempt.stdout.len(), 100 << 10);
        assert_eq!(attempt.stdout, &all.as_bytes()[..100 << 10]);
        let (marker, before) = attempt.logs().split_last().map(|(m, b)| (*m, b.to_vec())).unwrap();
        assert_eq!(marker["truncated_at"], 100 << 10, "the last log event says so");
        assert!(before.iter().all(|log| log.get("truncated_at").is_none()), "and no other");
        assert!(attempt.logs().iter().all(|log| data(log).len() <= 64 << 10));
        let tail = &attempt.result["stdout"];
        assert_eq!((&tail["total_bytes"], &tail["truncated"]), (&json!(all.len()), &json!(true)));
        assert_eq!(data(tail), &all.as_bytes()[all.len() - TAIL..]);

        let attempt =
            site.broker.run("box", Job::shell("head -c 65536 /dev/zero | tr '\\0' x")).await.succeeded();
        assert_eq!(attempt.result["stdout"]["truncated"], false, "exactly as much as is shown");
        assert_eq!(data(&attempt.result["stdout"]), vec![b'x'; TAIL]);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn bytes_that_are_no_text_come_as_base64() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1").ready().await;
        let job = Job::new(json!({"args": ["probe", "emit", "70000", ",", "err", "text\u{0}é"]}));
        // (an argument can't hold NUL, so that one is refused)
        assert_eq!(site.broker.run("box", job).await.status(), "rejected");
        let job = Job::new(json!({"args": ["probe", "emit", "70000", ",", "err", "text é"]}));
        let attempt = site.broker.run("box", job).await.succeeded();
        let want: Vec<u8> = (0..70_000u32).map(|i| ((i % 65536) % 251) as u8).collect();
        assert_eq!(attempt.stdout, want);
        assert!(attempt.logs().iter().any(|log| log.get("base64").is_some()));
        assert_eq!(attempt.stderr, "text é\n".as_bytes());
        assert!(attempt.result["stdout"].get("base64").is_some());
        assert_eq!(data(&attempt.result["stdout"]), &want[want.len() - TAIL..]);
        assert_eq!(attempt.result["stderr"]["text"], "text é\n");
        assert!(worker.stop().await.success());
    });
}

#[test]
fn stdin_and_arguments() {
    run(async |site: &Site| {
        let worker = site
            .worker()
            .pool("box", "idle = 2\nconcurrency = 2\nentrypoint = [\"probe\"]\nargs = [\"out\", \"default\"]")
            .ready()
            .await;
        let run = async |body: Value| {
            let attempt = site.broker.run("box", Job::new(body)).await.succeeded();
            String::from_utf8(data(&attempt.result["stdout"])).unwrap()
        };
        assert_eq!(run(json!({})).await, "default\n");
        assert_eq!(
            run(json!({"args": ["args", "a b", "", "é\n'\"$(x)"]})).await,
            "[a b]\n[]\n[é\n'\"$(x)]\n"
        );
        assert_eq!(run(json!({"args": ["cat"], "stdin": "line\nno newline"})).await, "line\nno newline");
        assert_eq!(run(json!({"args": ["cat"], "stdin": ""})).await, "");
        assert_eq!(run(json!({"args": ["cat"]})).await, "", "without stdin it is /dev/null");

        let big = "0123456789abcdef\n".repeat(100_000);
        let attempt =
            site.broker.run("box", Job::new(json!({"args": ["cat"], "stdin": big}))).await.succeeded();
        assert!(attempt.stdout == big.as_bytes(), "1.7 MB through stdin and back");
        // A job that doesn't read it all.
        let attempt = site.broker.run("box", Job::new(json!({"args": ["out", "done"], "stdin": big}))).await;
        assert_eq!(attempt.succeeded().stdout, b"done\n");
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_timeout_is_the_stop_signal_then_a_grace_then_the_end() {
    run(async |site: &Site| {
        let image = Image::build(&format!("FROM {BUSYBOX}\nSTOPSIGNAL SIGUSR1\n"));
        let keys = format!("image = \"{}\"\nidle = 3\nconcurrency = 3\nstop_grace = \"5s\"", image.name());
        let worker = site.worker().pool("box", &keys).full().await;
        let job = |script: &str| Job::new(json!({"args": ["sh", "-c", script], "timeout": "2s"}));
        let obeys =
            job("trap 'echo USR1; exit 3' USR1; trap 'echo TERM; exit 4' TERM; sleep 1000 & echo up; wait");
        let ignores = job("trap '' USR1 TERM; echo up; while :; do sleep 0.05; done");
        let in_time = Job::new(json!({"args": ["sh", "-c", "sleep 0.1; echo done"], "timeout": "10s"}));
        let obeys = site.broker.submit("box", obeys).await;
        let ignores = site.broker.submit("box", ignores).await;
        let in_time = site.broker.submit("box", in_time).await;

        let obeyed = site.broker.finished(&obeys).await;
        assert_eq!(obeyed.status(), "timed_out");
        assert_eq!(obeyed.result["exit_code"], 3, "it could still say how it ended: {:#}", obeyed.result);
        assert_eq!(obeyed.stdout, b"up\nUSR1\n", "the image's signal, not another");
        assert_eq!(obeyed.result["error"]["kind"], "timeout");
        is_between(&obeyed.result["timings_ms"]["run"], 2000.0, f64::INFINITY);
        let killed = site.broker.finished(&ignores).await;
        assert_eq!(killed.status(), "timed_out");
        assert_eq!(killed.result["signal"], 9, "{:#}", killed.result);
        assert_eq!(killed.result["oom_killed"], false);
        assert!(killed.result["error"]["message"].as_str().unwrap().contains("2s"), "{:#}", killed.result);
        is_between(&killed.result["timings_ms"]["run"], 7000.0, f64::INFINITY);
        site.broker.finished(&in_time).await.succeeded();
        assert!(worker.stop().await.success());
        assert_eq!(
            site.broker.ready(&site.broker.pool_queue("box")).await,
            0,
            "a timeout is no reason to retry"
        );
    });
}

#[test]
fn out_of_memory_is_told_apart() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 3\nconcurrency = 3\nmemory = \"16MiB\"").ready().await;
        let oom = Job::new(json!({"args": ["probe", "memory", "100000000"]}));
        let oom = site.broker.submit("box", oom).await;
        let child = Job::shell("probe memory 100000000; echo \"child $?\"; exit 0");
        let child = site.broker.submit("box", child).await;
        let killed = site.broker.submit("box", Job::shell("kill -9 $$")).await;

        let oom = site.broker.finished(&oom).await;
        assert_eq!((oom.status(), &oom.result["signal"]), ("failed", &json!(9)), "{:#}", oom.result);
        assert_eq!(oom.result["oom_killed"], true);
        assert_eq!(oom.result["error"]["kind"], "out_of_memory");
        let child = site.broker.finished(&child).await.succeeded();
        assert_eq!(child.stdout, b"child 137\n");
        assert_eq!(child.result["oom_killed"], true, "it happened, and was not the end");
        assert_eq!(child.result.get("error"), None);
        let killed = site.broker.finished(&killed).await;
        assert_eq!((killed.status(), &killed.result["signal"]), ("failed", &json!(9)));
        assert_eq!(killed.result["oom_killed"], false, "{:#}", killed.result);
        assert_eq!(killed.result.get("error"), None);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn what_can_t_be_executed_is_126_or_127() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 2\nconcurrency = 2").ready().await;
        for (args, code, kind, word) in [
            (json!(["nope", "x"]), 127, "not_found", "\"nope\""),
            (json!(["/no/such"]), 127, "not_found", "\"/no/such\""),
            (json!(["/etc/passwd"]), 126, "not_executable", "\"/etc/passwd\""),
            (json!(["/etc"]), 126, "not_executable", "\"/etc\""),
        ] {
            let attempt = site.broker.run("box", Job::new(json!({"args": args}))).await;
            let result = &attempt.result;
            assert_eq!((attempt.status(), &result["exit_code"]), ("failed", &json!(code)), "{result:#}");
            assert_eq!(result["error"]["kind"], kind);
            assert!(result["error"]["message"].as_str().unwrap().contains(word), "{result:#}");
            assert_eq!(attempt.replies.len(), 1, "it never started");
            assert_eq!(result["timings_ms"].get("startup"), None);
        }
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&site.broker.dead()).await, 0, "that is the job's affair");
    });
}

#[test]
fn a_bad_message_is_rejected_with_the_field_and_kept() {
    run(async |site: &Site| {
        let pool = "idle = 1\ntimeout = { default = \"1m\", max = \"2m\" }\nargs = [\"true\"]";
        let worker = site.worker().set("max_message = \"4KiB\"").pool("box", pool).ready().await;
        let deep = format!("{{\"metadata\": {{\"a\": {}1{}}}}}", "[".repeat(500), "]".repeat(500));
        let latin1 = [&b"{\"stdin\": \""[..], b"\xe9t\xe9", b"\"}"].concat();
        let cases: Vec<(&str, Job)> = vec![
            ("line 1", Job::raw("{\"env\": ")),
            ("not a JSON object", Job::raw("[]")),
            ("empty", Job::raw("")),
            ("not one JSON object", Job::raw("{} {}")),
            ("enviroment", Job::new(json!({"enviroment": {"A": "1"}}))),
            ("args", Job::new(json!({"args": "sh"}))),
            ("env", Job::new(json!({"env": {"PORT": 80}}))),
            ("env", Job::raw("{\"env\": {\"A\": \"1\", \"A\": \"2\"}}")),
            ("env", Job::new(json!({"env": {"A=B": "x"}}))),
            ("stdin", Job::new(json!({"stdin": ["x"]}))),
            ("logs", Job::new(json!({"logs": "loud"}))),
            ("secrets", Job::new(json!({"secrets": ["NOT_THERE"]}))),
            ("metadata", Job::new(json!({"metadata": "text"}))),
            ("timeout", Job::new(json!({"timeout": "soon"}))),
            ("timeout", Job::new(json!({"timeout": "3m"}))),
            ("content_type", Job::new(json!({})).content_type("application/xml")),
            ("4096", Job::new(json!({"stdin": "x".repeat(5000)}))),
            ("UTF-8", Job::raw(latin1)),
            ("recursion", Job::raw(deep)),
        ];
        let count = cases.len();
        for (word, job) in cases {
            let job = site.broker.submit("box", job).await;
            let rejected = site.broker.finished(&job).await;
            let about = format!("{}: {:#}", String::from_utf8_lossy(&job.body), rejected.result);
            assert_eq!(rejected.status(), "rejected", "{about}");
            assert_eq!(rejected.replies.len(), 1, "{about}");
            let error = &rejected.result["error"];
            let message = error["message"].as_str().unwrap();
            assert_eq!(error["kind"], "invalid_job", "{about}");
            assert!(message.contains(word), "'{word}' is not named: {about}");
            assert_eq!(
                (rejected.result.get("lease"), rejected.result.get("container")),
                (None, None),
                "{about}"
            );
            dead_letter(site, &job, "invalid_job", message).await;
        }

        // Not a queue of ours: nobody is answered there.
        for queue in ["jobs.box", "dead"] {
            let ours = format!("{}.{queue}", site.name);
            let job = Job::new(json!({})).reply_to(&ours);
            site.broker.publish("box", &job).await;
            let reply = site.broker.take(&site.broker.results()).await;
            assert_eq!(
                (reply.body["job_id"].as_str(), &reply.body["status"]),
                (Some(job.id.as_str()), &json!("rejected"))
            );
            let message = reply.body["error"]["message"].as_str().unwrap();
            assert!(message.contains("reply_to") && message.contains(&ours), "{message}");
            dead_letter(site, &job, "invalid_job", message).await;
        }

        // And a good one still works.
        site.broker.run("box", Job::new(json!({"timeout": "2m"}))).await.succeeded();
        site.broker
            .run("box", Job::new(json!({})).content_type("application/json; charset=utf-8"))
            .await
            .succeeded();
        let metrics = worker.metrics().await;
        let rejected = metrics.get("prewarm_jobs_total", &[("pool", "box"), ("status", "rejected")]);
        assert_eq!(rejected, (count + 2) as f64);
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&site.broker.pool_queue("box")).await, 0, "all were acknowledged");
        assert_eq!(site.broker.ready(&site.broker.dead()).await, 0, "and kept once each");
    });
}

/// The next dead letter is this job, untouched, with the reason.
async fn dead_letter(site: &Site, job: &Job, kind: &str, reason: &str) {
    let dead = site.broker.take(&site.broker.dead()).await;
    assert_eq!(dead.bytes, job.body);
    assert_eq!(dead.properties.message_id(), job.properties.message_id());
    assert_eq!(dead.properties.correlation_id(), job.properties.correlation_id());
    assert_eq!(dead.properties.reply_to(), job.properties.reply_to());
    assert_eq!(dead.header("x-prewarm-kind").as_deref(), Some(kind));
    assert_eq!(dead.header("x-prewarm-reason").as_deref(), Some(reason));
    assert_eq!(dead.header("x-prewarm-pool").as_deref(), Some("box"));
}

#[test]
fn a_result_that_has_nowhere_to_go_is_kept() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 2").ready().await;
        let nowhere = Job::shell("echo to nobody");
        site.broker.publish("box", &nowhere).await;
        let kept = site.broker.take(&site.broker.results()).await;
        let attempt = Attempt::check(&nowhere, vec![kept]).succeeded();
        assert_eq!(attempt.result["stdout"]["text"], "to nobody\n");
        assert_eq!(
            worker.metrics().await.get("prewarm_replies_unroutable_total", &[]),
            0.0,
            "none was asked for"
        );

        let gone = Job::shell("echo to the gone").reply_to("no.such.queue");
        site.broker.publish("box", &gone).await;
        let kept = site.broker.take(&site.broker.results()).await;
        assert_eq!(
            (kept.body["job_id"].as_str(), &kept.body["status"]),
            (Some(gone.id.as_str()), &json!("succeeded"))
        );
        assert_eq!(kept.body["stdout"]["text"], "to the gone\n");
        assert_eq!(kept.properties.correlation_id(), gone.properties.correlation_id());
        eventually("it is counted", async || {
            let metrics = worker.metrics().await;
            (metrics.get("prewarm_replies_unroutable_total", &[]) == 1.0).then_some(())
        })
        .await;
        // The publishing channel is none the worse for it.
        site.broker.run("box", Job::shell("exit 0")).await.succeeded();
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&site.broker.pool_queue("box")).await, 0);
        assert_eq!(site.broker.ready(&site.broker.results()).await, 0, "once each");
    });
}

#[test]
fn direct_reply_to_works() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1").ready().await;
        let job = Job::shell("echo direct").reply_to(DIRECT);
        site.broker.publish("box", &job).await;
        let attempt = site.broker.finished(&job).await.succeeded();
        assert_eq!(attempt.stdout, b"direct\n");
        assert_eq!(worker.metrics().await.get("prewarm_replies_unroutable_total", &[]), 0.0);
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&site.broker.results()).await, 0, "and only there");
    });
}

#[test]
fn no_secret_reaches_the_logs_or_the_engine() {
    run(async |site: &Site| {
        let gate = Gate::new(site);
        // `trace` has all that `debug` has.
        let setup = site.worker().env("PREWARM_LOG", "trace");
        let worker = setup.pool("box", &format!("idle = 1\nconcurrency = 1\n{}", gate.mount())).ready().await;
        let secret = format!("s3cret-{}", uuid::Uuid::now_v7().simple());
        let body = json!({
            "env": {"TOKEN": secret, "OTHER": format!("x{secret}")}, "secrets": ["TOKEN"], "stdin": secret,
            "args": ["sh", "-c", format!("echo up; {}; test \"$OTHER\" = \"x$TOKEN\" && cat", Gate::WAIT), secret],
        });
        let job = site.broker.submit("box", Job::new(body).reply_to(&site.broker.reply_queue)).await;
        let started = site.broker.started(&job).await;
        site.broker.printed(&job, "up").await;
        let container = started["container"].as_str().unwrap();
        let inspected = docker_ok(["inspect", container]);
        assert!(inspected.contains(container) && !inspected.contains(&secret), "{inspected}");
        gate.open();
        let attempt = site.broker.finished(&job).await.succeeded();
        assert_eq!(attempt.stdout, b"up\n***", "printed, it is masked");
        assert!(!format!("{:?}", attempt.replies).contains(&secret));

        // Messages that go wrong: refused, unroutable (lapin logs those with their bodies), lost.
        let bad = json!({"env": {"TOKEN": secret, "N": 7}, "metadata": {"s": secret}});
        assert_eq!(site.broker.run("box", Job::new(bad)).await.status(), "rejected");
        let bad = json!({"env": {"TOKEN": {"nested": secret}}});
        assert_eq!(site.broker.run("box", Job::new(bad)).await.status(), "rejected");
        let gone = json!({"env": {"TOKEN": secret}, "args": ["sh", "-c", "echo $TOKEN"]});
        site.broker.publish("box", &Job::new(gone).reply_to("no.such.queue")).await;
        site.broker.take(&site.broker.results()).await;
        let missing = json!({"env": {"TOKEN": secret}, "args": ["no-such-program", secret]});
        site.broker.run("box", Job::new(missing)).await;

        let log = worker.log();
        let (_, metrics) = worker.get("/metrics").await.unwrap();
        let (_, status) = worker.get("/status").await.unwrap();
        assert!(log.contains(&job.id), "the job is there: {log}");
        for (what, text) in [("log", &log), ("/metrics", &metrics), ("/status", &status)] {
            let at = text.lines().find(|line| line.contains(&secret));
            assert_eq!(at, None, "the secret is in {what}");
        }
        assert!(worker.stop().await.success());
    });
}

#[test]
fn idle_containers_that_die_are_replaced_and_cost_no_job() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 3\nconcurrency = 2").full().await;
        for verb in [&["rm", "-f"][..], &["kill"]] {
            let before: Vec<String> = containers(&worker.name).into_iter().map(|c| c.id).collect();
            assert_eq!(before.len(), 3);
            docker_ok(verb.iter().copied().chain(before.iter().map(String::as_str)));
            // Nobody waits for the pool to notice.
            let job = site.broker.run("box", Job::shell("echo fine")).await.succeeded();
            assert_eq!(job.result["attempt"], 1);
            assert!(!before.contains(&job.result["container"].as_str().unwrap().to_owned()), "{verb:?}");
            worker.until_full().await;
            let after = containers(&worker.name);
            assert!(after.len() == 3 && after.iter().all(|c| !before.contains(&c.id)), "{verb:?}: {after:?}");
        }
        let metrics = worker.metrics().await;
        let died = metrics.get("prewarm_containers_retired_total", &[("pool", "box"), ("reason", "died")]);
        assert_eq!(died, 6.0);

        // The same while jobs come in. A kill may hit a container that has just got its job: then that job
        // is run again, and says so.
        let mut jobs = Vec::new();
        for n in 0..16 {
            jobs.push(site.broker.submit("box", Job::shell(&format!("echo {n}"))).await);
        }
        for _ in 0..4 {
            let status = eventually("an idle container", async || {
                let pool = worker.pool("box").await;
                (pool["idle"].as_u64() > Some(0) || pool["leased"] == 0).then_some(pool)
            });
            status.await;
            if let Some(victim) = containers(&worker.name).first() {
                // Gone by itself in between, perhaps.
                let _ = support::docker::docker(["kill", &victim.id]).output();
            }
        }
        for (n, job) in jobs.iter().enumerate() {
            let replies = site.broker.until(job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
            let last = replies.last().unwrap();
            assert_eq!(
                (&last.body["status"], &last.body["stdout"]["text"]),
                (&json!("succeeded"), &json!(format!("{n}\n")))
            );
        }
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_job_whose_container_is_lost_is_tried_again_and_shows_it() {
    run(async |site: &Site| {
        let gate = Gate::new(site);
        let worker = site
            .worker()
            .set("retries = 2")
            .pool("box", &format!("idle = 2\n{}", gate.mount()))
            .ready()
            .await;
        // The first time it runs until it is killed.
        let script = "mkdir /gate/first 2>/dev/null && echo up && sleep 1000; echo up; echo done";
        let job = Job::new(json!({"args": ["sh", "-c", script], "metadata": {"k": 1}}));
        let job = site.broker.submit("box", job.header("traceparent", "00-1-2-01")).await;
        site.broker.printed(&job, "up").await;
        let first = site.broker.started(&job).await;
        docker_ok(["kill", first["container"].as_str().unwrap()]);
        let all = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
        let (one, two): (Vec<_>, Vec<_>) = all.into_iter().partition(|r| r.body["attempt"] == 1);
        assert!(
            one.iter().all(|r| r.kind == STARTED || r.kind == LOG),
            "no result of an attempt that will be repeated"
        );
        let second = Attempt::check(&job, two).succeeded();
        assert_eq!(second.result["attempt"], 2);
        assert_eq!(second.result["metadata"], json!({"k": 1}));
        assert_eq!(second.replies[0].header("traceparent").as_deref(), Some("00-1-2-01"));
        assert_eq!(second.stdout, b"up\ndone\n");
        assert_ne!(second.started()["container"], first["container"]);

        // The last attempt's trouble is told.
        let job = site.broker.submit("box", Job::shell("echo up; sleep 1000")).await;
        for attempt in [1, 2] {
            let up = |r: &support::broker::Reply| r.kind == LOG && r.body["attempt"] == attempt;
            let replies = site.broker.until(&job, |replies| replies.iter().any(up)).await;
            let started = replies.iter().find(|r| r.kind == STARTED && r.body["attempt"] == attempt).unwrap();
            docker_ok(["kill", started.body["container"].as_str().unwrap()]);
        }
        let replies = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
        let result = &replies.last().unwrap().body;
        assert_eq!((&result["status"], &result["attempt"]), (&json!("error"), &json!(2)), "{result:#}");
        assert_eq!(result["error"]["kind"], "container_lost");
        let reason = result["error"]["message"].as_str().unwrap();
        dead_letter(site, &job, "container_lost", reason).await;
        let metrics = worker.metrics().await;
        assert_eq!(metrics.get("prewarm_jobs_total", &[("pool", "box"), ("status", "error")]), 1.0);
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&site.broker.pool_queue("box")).await, 0);
    });
}

#[test]
fn sigterm_drains() {
    run(async |site: &Site| {
        let proxy = EngineProxy::new(&site.dir);
        let gate = Gate::new(site);
        let worker = site
            .worker()
            .env("DOCKER_HOST", &proxy.host)
            .pool("box", &format!("idle = 1\nconcurrency = 2\n{}", gate.mount()))
            .pool("other", "idle = 2")
            .full()
            .await;
        let running =
            site.broker.submit("box", Job::shell(&format!("echo up; {}; echo done", Gate::WAIT))).await;
        site.broker.printed(&running, "up").await;
        worker.until_one(async |pool| pool["idle"] == 1 && pool["starting"] == 0).await;
        // The last container is used up, and no further one can be had: the next job waits in its seat.
        proxy.hold();
        site.broker.run("box", Job::shell("true")).await.succeeded();
        let queue = site.broker.pool_queue("box");
        let waiting = site.broker.submit("box", Job::shell("echo at last")).await;
        eventually("it waits", async || (worker.pool("box").await["waiting"] == 1).then_some(())).await;
        assert_eq!(worker.metrics().await.get("prewarm_draining", &[]), 0.0);
        assert_eq!(site.broker.ready(&queue).await, 0);

        signal("TERM", worker.pid());
        eventually("what was not begun goes back", async || {
            (site.broker.ready(&queue).await == 1).then_some(())
        })
        .await;
        if let Some((code, body)) = worker.get("/readyz").await {
            assert!(code == 503 && body == "draining\n", "{code} {body}");
        }
        // Nobody leases the idle ones any more: they make room for whoever comes instead.
        eventually("idle ones go at once", async || {
            let metrics = worker.metrics().await;
            let idle = metrics.get("prewarm_pool_containers", &[("pool", "other"), ("state", "idle")]);
            let able = metrics.get("prewarm_pool_able", &[("pool", "other")]);
            (idle + able == 0.0 && metrics.get("prewarm_draining", &[]) == 1.0).then_some(())
        })
        .await;
        // What runs may finish.
        gate.open();
        assert_eq!(site.broker.finished(&running).await.succeeded().stdout, b"up\ndone\n");
        proxy.release();
        let mut worker = worker;
        let status = worker.ended().await;
        assert_eq!(status.code(), Some(0), "{}", worker.log());
        assert_eq!(containers(&worker.name), [], "nothing is left the moment it has ended");
        assert!(site.broker.so_far(&waiting).is_empty());

        // Another worker does it.
        let second = site.worker().pool("box", "idle = 1").ready().await;
        let attempt = site.broker.finished(&waiting).await.succeeded();
        assert_eq!(attempt.stdout, b"at last\n");
        assert!(second.stop().await.success());
    });
}

#[test]
fn a_second_sigterm_forces() {
    run(async |site: &Site| {
        let mut worker = site.worker().pool("box", "idle = 2").ready().await;
        let job =
            Job::new(json!({"args": ["sh", "-c", "trap '' TERM; echo up; sleep 1000 & wait; sleep 1000"]}));
        let job = site.broker.submit("box", job).await;
        site.broker.printed(&job, "up").await;
        signal("TERM", worker.pid());
        eventually("it drains", async || worker.get("/readyz").await.filter(|(_, b)| b.contains("draining")))
            .await;
        let begun = std::time::Instant::now();
        signal("TERM", worker.pid());
        let status = worker.ended().await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(status.code().is_some_and(|code| code != 0), "{status:?}");
        // One that was created and not yet started is left to the sweep; none may run.
        let left = eventually("no container that was started is left", async || {
            let left = containers(&worker.name);
            left.iter().all(|c| c.state == "created").then_some(left)
        })
        .await;
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
        for container in left {
            // The engine may be at it already.
            let _ = docker(["rm", "-f", "-v", &container.id]).output();
        }
        eventually("nothing is left", async || containers(&worker.name).is_empty().then_some(())).await;
        let queue = site.broker.pool_queue("box");
        eventually("the job is back", async || (site.broker.ready(&queue).await == 1).then_some(())).await;
    });
}

#[test]
fn the_drain_has_an_end() {
    run(async |site: &Site| {
        let keys = "idle = 1\nstop_grace = \"300ms\"";
        let mut worker = site.worker().set("drain_timeout = \"300ms\"").pool("box", keys).ready().await;
        let job =
            site.broker.submit("box", Job::shell("trap '' TERM; echo up; while :; do sleep 0.1; done")).await;
        site.broker.printed(&job, "up").await;
        signal("TERM", worker.pid());
        assert_eq!(worker.ended().await.code(), Some(0));
        assert_eq!(containers(&worker.name), []);
        // Retried elsewhere, in a second.
        let queue = site.broker.pool_queue("box");
        eventually("the job is to be tried again", async || {
            (site.broker.ready(&queue).await == 1).then_some(())
        })
        .await;
        assert!(site.broker.so_far(&job).iter().all(|r| r.kind != RESULT));
    });
}

#[test]
fn two_workers_share_a_queue() {
    run(async |site: &Site| {
        let keys = "idle = 2\nconcurrency = 1";
        let (one, two) =
            (site.worker().pool("box", keys).full().await, site.worker().pool("box", keys).full().await);
        let mut jobs = Vec::new();
        for _ in 0..12 {
            jobs.push(site.broker.submit("box", Job::shell("sleep 0.2")).await);
        }
        let mut by: BTreeMap<String, u32> = BTreeMap::new();
        for job in &jobs {
            let attempt = site.broker.finished(job).await.succeeded();
            assert_eq!(attempt.result["attempt"], 1);
            *by.entry(attempt.result["worker"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        assert!(by.len() == 2 && by.values().all(|n| *n >= 3), "both take their share: {by:?}");
        assert!(by.contains_key(&one.name) && by.contains_key(&two.name));
        assert!(one.stop().await.success());
        // What one leaves the other takes; it was not disturbed.
        eventually("the other has its own, and no more", async || {
            (containers(&two.name).len() == 2).then_some(())
        })
        .await;
        site.broker.run("box", Job::shell("true")).await.succeeded();
        assert!(two.stop().await.success());
    });
}

#[test]
fn health_readiness_and_status() {
    run(async |site: &Site| {
        let worker = site
            .worker()
            .pool("box", "idle = 1")
            .pool("broken", "image = \"prewarm-test/no-such-image\"\npull = \"never\"\nidle = 1")
            .start()
            .await;
        eventually("the good pool is ready", async || {
            (worker.pool("box").await["able"] == true).then_some(())
        })
        .await;
        let (code, why) = eventually("the reason is known", async || {
            worker
                .get("/readyz")
                .await
                .filter(|(_, why)| why.contains("no-such-image") && !why.contains("broker"))
        })
        .await;
        assert_eq!(code, 503);
        assert!(why.contains("pool broken"), "{why}");
        assert!(!why.contains("pool box"), "{why}");
        assert_eq!(worker.get("/healthz").await.unwrap().0, 200, "alive all the same");
        assert_eq!(worker.get("/nothing").await.unwrap().0, 404);

        // The good pool's jobs run; the broken one's stay where other workers can have them.
        let lost = site.broker.submit("broken", Job::shell("true")).await;
        let job = site.broker.submit("box", Job::shell("echo up; sleep 1")).await;
        let started = site.broker.started(&job).await;
        let status = worker.status().await;
        assert_eq!((&status["worker"], &status["ready"]), (&json!(worker.name), &json!(false)));
        assert_eq!(status["broker_connected"], true);
        assert!(status["not_ready_because"][0].as_str().unwrap().contains("pool broken"), "{status:#}");
        let jobs = status["jobs"].as_array().unwrap();
        assert_eq!(jobs.len(), 1, "{status:#}");
        assert_eq!(
            (&jobs[0]["job_id"], &jobs[0]["pool"], &jobs[0]["attempt"]),
            (&json!(job.id), &json!("box"), &json!(1))
        );
        assert_eq!(jobs[0]["container"], started["container"]);
        let pools = status["pools"].as_array().unwrap();
        let pool = |name: &str| pools.iter().find(|p| p["pool"] == name).unwrap();
        assert_eq!((&pool("box")["leased"], &pool("box")["image"]), (&json!(1), &json!(BUSYBOX)));
        assert_eq!(pool("broken")["able"], false);
        assert!(pool("broken")["last_failure"].as_str().unwrap().contains("no-such-image"));
        site.broker.finished(&job).await.succeeded();
        assert_eq!(site.broker.ready(&site.broker.pool_queue("broken")).await, 1);
        assert!(site.broker.so_far(&lost).is_empty());
        assert!(worker.stop().await.success());

        // No broker: not ready, with the reason, and it waits for one.
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://guest:hunter2@{}/%2f", nobody.local_addr().unwrap());
        drop(nobody);
        let worker = site.worker().pool("box", "idle = 1").start_with(&url).await;
        eventually("the pool is ready", async || (worker.pool("box").await["able"] == true).then_some(()))
            .await;
        let (code, why) = worker.get("/readyz").await.unwrap();
        assert!(code == 503 && why.contains("broker"), "{code} {why}");
        assert_eq!(worker.metrics().await.get("prewarm_broker_connected", &[]), 0.0);
        assert!(!worker.log().contains("hunter2"), "a password is in the log");
        assert!(worker.stop().await.success());
    });
}

/// DESIGN section 7: every name, every value of every closed enum, before anything has happened.
#[test]
fn every_metric_exists_at_zero_from_the_start() {
    run(async |site: &Site| {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://guest:guest@{}/%2f", nobody.local_addr().unwrap());
        drop(nobody);
        let setup = site.worker().pool("box", "image = \"prewarm-test/no-such-image\"\npull = \"never\"");
        let worker: Worker = setup
            .pool("other", "image = \"prewarm-test/no-such-image\"\npull = \"never\"")
            .start_with(&url)
            .await;
        let metrics = worker.metrics().await;
        for pool in ["box", "other"].map(|p| ("pool", p)) {
            let each = |name: &str, label: &str, values: &[&str]| {
                for value in values {
                    assert_eq!(metrics.get(name, &[pool, (label, value)]), 0.0, "{name} {value}");
                }
            };
            each("prewarm_pool_leases_total", "result", &["hit", "miss"]);
            each("prewarm_startup_seconds_count", "lease", &["hit", "miss"]);
            let statuses = ["succeeded", "failed", "timed_out", "cancelled", "rejected", "error", "expired"];
            each("prewarm_jobs_total", "status", &statuses);
            each("prewarm_pool_containers", "state", &["idle", "leased"]);
            for state in ["starting", "removing"] {
                metrics.get("prewarm_pool_containers", &[pool, ("state", state)]);
            }
            let reasons = ["used", "died", "doubt", "shrunk", "age", "rolled", "drained"];
            each("prewarm_containers_retired_total", "reason", &reasons);
            metrics.get("prewarm_containers_retired_total", &[pool, ("reason", "failed")]);
            each("prewarm_deliveries_total", "redelivered", &["true", "false"]);
            each("prewarm_output_bytes_total", "stream", &["stdout", "stderr"]);
            for name in ["lease_wait_seconds_count", "queue_wait_seconds_count", "run_seconds_count"] {
                assert_eq!(metrics.get(&format!("prewarm_{name}"), &[pool]), 0.0, "{name}");
            }
            let kinds = ["invalid_job", "no_container", "container_lost", "worker_stopped", "delivery_limit"];
            each("prewarm_dead_letters_total", "kind", &kinds);
            for name in ["jobs_running", "jobs_retried_total", "pool_waiting", "pool_able"] {
                assert_eq!(metrics.get(&format!("prewarm_{name}"), &[pool]), 0.0, "{name}");
            }
            assert_eq!(metrics.get("prewarm_warmup_seconds_count", &[pool]), 0.0);
            assert!(metrics.get("prewarm_pool_target", &[pool]) > 0.0);
        }
        for op in ["create", "attach", "start", "remove", "list", "inspect", "pull", "info", "install_init"] {
            metrics.get("prewarm_engine_request_seconds_count", &[("op", op)]);
            metrics.get("prewarm_engine_errors_total", &[("op", op)]);
        }
        assert_eq!(metrics.get("prewarm_broker_connected", &[]), 0.0);
        assert_eq!(metrics.get("prewarm_broker_reconnects_total", &[]), 0.0);
        assert_eq!(metrics.get("prewarm_publish_confirm_seconds_count", &[]), 0.0);
        assert_eq!(metrics.get("prewarm_replies_unroutable_total", &[]), 0.0);
        assert_eq!(metrics.get("prewarm_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
            assert!(metrics.find(name, &[]).is_some(), "{name}");
        }
        let ours =
            metrics.names().filter(|name| !name.starts_with("prewarm_") && !name.starts_with("process_"));
        assert_eq!(ours.collect::<Vec<_>>(), [""; 0], "everything has the prefix");
        let (_, text) = worker.get("/metrics").await.unwrap();
        assert!(
            text.contains("# HELP prewarm_startup_seconds ")
                && text.contains("# TYPE prewarm_startup_seconds histogram")
        );
        assert!(worker.stop().await.success());
    });
}

/// Whatever integer type a client writes its header with, and whatever it calls itself.
#[test]
fn an_earlier_attempt_counts() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1").ready().await;
        let mut job = Job::shell("true");
        let mut headers = lapin::types::FieldTable::default();
        headers.insert("x-prewarm-attempts".into(), AMQPValue::LongInt(2));
        job.properties = job.properties.with_headers(headers);
        let attempt = site.broker.run("box", job).await.succeeded();
        assert_eq!(attempt.result["attempt"], 3);
        assert!(worker.stop().await.success());
    });
}
