//! `prewarm submit`: what goes in, what comes out, and how it ends.

use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::broker::{Job, RESULT};
use crate::support::docker::{self, BUSYBOX, docker};
use crate::support::worker::{Site, Worker, eventually, run, signal};
use crate::{LIMIT, call, command, ended, start};

/// Prints bytes of all kinds to both streams, as many as its number says, and ends with it.
const SCRIPT: &str = r#"i=$1
yes "line $i" | head -c $((i * 997)); printf "\\$(printf %03o $((i % 256)))\\377\\000"
yes "err $i" | head -c $((i * 61)) >&2
exit $((i % 256))"#;

/// What the script prints and ends with.
fn expected(i: usize) -> (Option<i32>, Vec<u8>, Vec<u8>) {
    let yes = |text: String, len: usize| text.bytes().cycle().take(len).collect::<Vec<u8>>();
    let mut out = yes(format!("line {i}\n"), i * 997);
    out.extend([u8::try_from(i % 256).unwrap(), 0xff, 0]);
    (Some(i32::try_from(i % 256).unwrap()), out, yes(format!("err {i}\n"), i * 61))
}

/// The last of a hundred waits for as many containers.
const ALL_OF_THEM: Duration = Duration::from_secs(300);

/// A hundred processes on two cores that others use too: none of them is gone because it isn't heard of for a while.
const PATIENT: [(&str, &str); 2] = [("PREWARM_BROKER_HEARTBEAT", "2m"), ("PREWARM_BROKER_TIMEOUT", "2m")];

#[test]
fn a_hundred_at_once_give_the_bytes_and_exit_codes_of_docker_run() {
    run(async |site: &Site| {
        let mut workers: Vec<Worker> = Vec::new();
        for _ in 0..3 {
            workers.push(
                site.worker().pool("box", "idle = { min = 2, max = 3 }\nconcurrency = 3").ready().await,
            );
        }
        let followers: Vec<_> = (1..=100)
            .map(|i: usize| {
                let number = i.to_string();
                let args = ["submit", "box", "--follow", "--", "sh", "-c", SCRIPT, "sh", &number];
                let mut command = command(&workers[i % 3], &args);
                command.envs(PATIENT);
                thread::spawn(move || docker::run(&mut command, None, ALL_OF_THEM))
            })
            .collect();
        for (i, follower) in (1..).zip(followers) {
            let done = follower.join().unwrap();
            let (code, out, err) = expected(i);
            assert_eq!(done.code, code, "job {i}: {}", done.stderr);
            assert!(done.stdout.bytes == out && done.stderr.bytes == err, "job {i}: {done:?}");
        }
        for i in [1, 42, 100] {
            let run = ["run", "--rm", BUSYBOX, "sh", "-c", SCRIPT, "sh", &i.to_string()];
            let done = docker::run(&mut docker(run), None, LIMIT);
            assert_eq!((done.code, done.stdout.bytes, done.stderr.bytes), expected(i), "docker run, {i}");
        }
        for worker in workers {
            assert!(worker.stop().await.success());
        }
    });
}

#[test]
fn variables_and_stdin_come_from_files() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let [env, input] = ["job.env", "input"].map(|name| site.dir.join(name).display().to_string());
        std::fs::write(&env, "# comment\nA=from file\nB=\"quoted\" \nFROM_HERE\n").unwrap();
        std::fs::write(&input, "höre\n").unwrap();
        let args = ["submit", "box", "-f", "--env-file", &env, "-e", "A=given", "--stdin", &input];
        let script = ["--", "sh", "-c", "cat; echo \"$A|$B|$FROM_HERE\""];
        let mut command = command(&worker, &[&args[..], &script].concat());
        let done = docker::run(command.env("FROM_HERE", "here"), None, LIMIT);
        assert_eq!(done.stdout.to_string(), "höre\ngiven|\"quoted\" |here\n", "{}", done.stderr);
        // A bad file is told by name and line, without what stands there.
        std::fs::write(&env, "A=1\nB C=s3cret\n").unwrap();
        let done = call(&worker, &args);
        let said = done.stderr.to_string();
        assert!(done.code == Some(1) && said.contains(&env) && said.contains("line 2"), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
        let done = call(&worker, &["submit", "box", "--stdin", "/nonexistent"]);
        assert!(done.code == Some(1) && done.stderr.to_string().contains("--stdin /nonexistent"), "{done:?}");
        assert!(worker.stop().await.success());
    });
}

#[test]
fn ctrl_c_cancels_and_a_second_one_leaves() {
    run(async |site: &Site| {
        let worker =
            site.worker().pool("box", "idle = 1\nconcurrency = 1\nstop_grace = \"30s\"").ready().await;
        let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done";
        let child = start(&worker, &["submit", "box", "--follow", "--", "sh", "-c", script]);
        let (child, out) = up(child);
        signal("INT", child.id());
        let (code, _, err) = ended(child);
        assert_eq!((code, out()), (Some(7), "bye\n".to_owned()), "{err}");
        assert!(err.contains("cancelling the job; Ctrl-C again leaves it"), "{err}");

        let script = "trap '' TERM; echo up; sleep 60 & wait; sleep 60";
        let child = start(&worker, &["submit", "box", "--follow", "--", "sh", "-c", script]);
        let (child, _) = up(child);
        let (code, err) = interrupted_twice(child);
        assert_eq!(code, Some(130), "{err}");
        // It was cancelled all the same; without its grace this would take half a minute.
        let mut worker = worker;
        signal("TERM", worker.pid());
        signal("TERM", worker.pid());
        worker.ended().await;
    });
}

/// Interrupts a command, and again when it says that it heard of it: signals that wait are one. How it ended, and its stderr.
fn interrupted_twice(mut child: Child) -> (Option<i32>, String) {
    signal("INT", child.id());
    let mut said = Vec::new();
    while !said.ends_with(b"Ctrl-C again leaves it") {
        let mut byte = [0];
        let read = child.stderr.as_mut().unwrap().read_exact(&mut byte);
        read.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&said)));
        said.extend(byte);
    }
    signal("INT", child.id());
    let (code, _, rest) = ended(child);
    (code, String::from_utf8(said).unwrap() + &rest)
}

/// Waits until a job has printed `up`; gives what reads the rest of its stdout.
fn up(mut child: Child) -> (Child, impl FnOnce() -> String) {
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let rest = move || {
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        rest
    };
    (child, rest)
}

#[test]
fn many_can_be_interrupted_and_are_summed_up() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 2").ready().await;
        let child = start(
            &worker,
            &["submit", "box", "--count", "500", "--rate", "20", "-q", "--json", "--", "sleep", "60"],
        );
        eventually("two jobs run", async || {
            (worker.status().await["jobs"].as_array()?.len() == 2).then_some(())
        })
        .await;
        signal("INT", child.id());
        let (code, out, err) = ended(child);
        let summary: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (code, &summary["type"], &summary["succeeded"]),
            (Some(1), &"summary".into(), &0.into()),
            "{err}"
        );
        let jobs = summary["jobs"].as_u64().unwrap();
        assert!((2..500).contains(&jobs), "{summary}");
        assert_eq!(site.broker.ready(&site.broker.pool_queue("box")).await, 0);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn for_machines_there_are_lines_of_json() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let lines = |args: &[&str]| -> Vec<Value> {
            let done = call(&worker, args);
            done.stdout.to_string().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let followed = lines(&["submit", "box", "-f", "--json", "--id", "mine", "--", "echo", "x"]);
        let kinds: Vec<&str> = followed.iter().map(|line| line["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["prewarm.started.v1", "prewarm.log.v1", RESULT]);
        assert!(followed.iter().all(|line| line["job_id"] == "mine"), "{followed:?}");
        let many = lines(&["submit", "box", "--count", "3", "--json", "--", "true"]);
        assert_eq!(many.len(), 4, "{many:?}");
        assert!(
            many[..3]
                .iter()
                .all(|line| line["status"] == "succeeded" && line["publish_to_result_ms"].is_f64())
        );
        let summary = &many[3];
        assert_eq!((&summary["jobs"], &summary["succeeded"]), (&3.into(), &3.into()), "{summary}");
        for figures in ["startup_ms", "publish_to_result_ms"] {
            assert!(summary[figures]["p50"].as_f64().unwrap() <= summary[figures]["p99"].as_f64().unwrap());
        }
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_detached_job_is_answered_elsewhere() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let done = call(&worker, &["submit", "box", "--detach", "--", "echo", "x"]);
        let id = done.ok("submit --detach");
        let result = site.broker.take(&site.broker.results()).await;
        assert_eq!(result.body["job_id"], id.trim());
        let queue = site.broker.reply_queue.clone();
        let done =
            call(&worker, &["submit", "box", "-d", "--reply-to", &queue, "--id", "mine", "--", "echo", "x"]);
        assert_eq!(done.ok("submit --reply-to"), "mine\n");
        let mut job = Job::shell("");
        job.id = "mine".to_owned();
        site.broker.until(&job, |replies| replies.iter().any(|reply| reply.kind == RESULT)).await;
        assert!(worker.stop().await.success());
    });
}

#[test]
fn without_a_worker_a_job_waits_in_its_queue_with_its_priority() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1").ready().await;
        signal("TERM", worker.pid());
        let mut worker = worker;
        worker.ended().await;
        let child = start(&worker, &["submit", "box", "--follow", "--priority", "7"]);
        let queue = site.broker.pool_queue("box");
        eventually("queued", async || (site.broker.ready(&queue).await == 1).then_some(())).await;
        let (code, err) = interrupted_twice(child);
        assert!(code == Some(130) && err.contains("no worker is there to cancel the job"), "{code:?} {err}");
        assert_eq!(*site.broker.take(&queue).await.properties.priority(), Some(7));
    });
}
