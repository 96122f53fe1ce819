//! What is large: outputs, messages, queues. None of it may grow the worker.

use std::sync::Mutex;
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions, QueuePurgeOptions};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use crate::books::{Expect, Tally};
use crate::publisher::{Job, connect};
use crate::run::{Run, declare, until};
use crate::support::broker::{LOG, RESULT, data};
use crate::support::worker::Worker;

/// DESIGN section 8.4.
const MEMORY_MAX: usize = 64 << 20;

/// What the big job has printed, once it is known. A judge has no other way to it.
static PRINTED: Mutex<u64> = Mutex::new(0);

/// A job prints more than fits anywhere, all of it goes to a reply queue that nobody reads, and the worker stays small.
pub async fn output_that_nobody_reads(run: Run<'_>) -> Tally {
    let bytes: u64 = run.scale.choose(128 << 20, 1 << 30);
    *PRINTED.lock().unwrap() = bytes;
    run.keys("logs_limit = \"2GiB\"");
    let worker = run.worker().await;
    let unread = format!("{}.unread", run.site.name);
    declare(&run.ground.urls[0], &unread, "classic").await;
    let script = format!("yes 0123456789 | head -c {bytes}");
    let job = Job {
        id: run.next_id(),
        body: json!({"args": ["sh", "-c", script], "timeout": "10m"}),
        expect: Expect::Judged(|result| {
            let right = result["status"] == "succeeded"
                && result["exit_code"] == 0
                && result["stdout"]["total_bytes"] == *PRINTED.lock().unwrap();
            if right { Ok(()) } else { Err("should have succeeded with all of its output".into()) }
        }),
        reply_to: unread.clone(),
    };
    let most = run
        .under_load(async {
            run.publisher().publish("box", &job).await;
            let done = worker_is_done(&worker, &job.id);
            let most = watched(&worker, done).await;
            run.over();
            run.results(2).await;
            most
        })
        .await;
    println!("the worker's memory was at most {} MiB", most >> 20);
    assert!(most < MEMORY_MAX, "the worker grew to {} MiB", most >> 20);
    read_all(&run, &unread, bytes).await;
    run.settle(vec![worker]).await;
    run.close().await
}

/// Reads what nobody had read: no byte is missing, and the result is the last.
async fn read_all(run: &Run<'_>, queue: &str, bytes: u64) {
    let connection = connect(&run.ground.urls[0]).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let (mut offset, mut digest, mut last) = (0, Sha256::new(), String::new());
    while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
        last = message.properties.kind().as_ref().map(ToString::to_string).unwrap_or_default();
        let body: Value = serde_json::from_slice(&message.data).unwrap();
        if last == LOG {
            assert!(body["truncated_at"].is_null(), "{}", body["truncated_at"]);
            let piece = data(&body);
            // A piece that came twice, since its confirm was lost, is the same.
            let from = body["offset"].as_u64().unwrap();
            assert!(from <= offset, "{} bytes are missing at {offset}", from - offset);
            if from == offset {
                offset += piece.len() as u64;
                digest.update(&piece);
            }
        }
        if last == RESULT {
            run.books().reply(RESULT, message.data.clone());
        }
        message.ack(BasicAckOptions::default()).await.unwrap();
    }
    assert_eq!((offset, last.as_str()), (bytes, RESULT));
    let mut wanted = Sha256::new();
    let line = b"0123456789\n".repeat(1 << 16);
    let mut left = usize::try_from(bytes).unwrap();
    while left > 0 {
        let some = left.min(line.len());
        wanted.update(&line[..some]);
        left -= some;
    }
    assert_eq!(digest.finalize(), wanted.finalize(), "the bytes are others");
    _ = connection.close(200, "OK".into()).await;
}

/// Messages that are about as large as the largest that a broker takes by default.
pub async fn large_messages(run: Run<'_>) -> Tally {
    let worker = run.worker().await;
    let stdin: String = "0123456789abcdef".repeat(15 << 16);
    let special = |n: usize| {
        (n % 10 == 3).then(|| Job {
            id: run.next_id(),
            body: json!({"args": ["sha256sum"], "stdin": stdin}),
            expect: Expect::Judged(|result| {
                let sum: String = Sha256::digest("0123456789abcdef".repeat(15 << 16))
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                let printed = String::from_utf8_lossy(&data(&result["stdout"])).into_owned();
                if printed.starts_with(&sum) { Ok(()) } else { Err(format!("should have printed {sum}")) }
            }),
            reply_to: run.replies(),
        })
    };
    run.load(special, run.results(run.scale.jobs / 2)).await;
    run.settle(vec![worker]).await;
    let tally = run.close().await;
    assert_eq!(tally.duplicates(), 0, "{:?}", tally.duplicated);
    tally
}

/// So many jobs wait that they would show in the worker's memory if it held them.
pub async fn long_queue(run: Run<'_>) -> Tally {
    let worker = run.worker().await;
    let jobs = (0..run.scale.choose(5_000, 100_000)).map(|_| Job {
        id: run.next_id(),
        body: json!({"args": ["true"], "logs": "off"}),
        expect: Expect::Judged(|result| match result["status"] == "succeeded" {
            true => Ok(()),
            false => Err("should have succeeded".into()),
        }),
        reply_to: run.replies(),
    });
    let jobs: Vec<Job> = jobs.collect();
    // It runs jobs from the first on.
    run.publisher().publish_all("box", &jobs).await;
    let before = memory(&worker);
    let most = watched(&worker, sleep(run.scale.lasting(8, 120))).await;
    println!("the worker's memory: {} KiB at first, at most {} KiB", before >> 10, most >> 10);
    assert!(most < MEMORY_MAX && most < before + (8 << 20), "from {before} to {most}");
    let connection = connect(&run.ground.urls[0]).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = format!("{}.jobs.box", run.site.name);
    let purged = channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.unwrap();
    until("the rest has run", async || run.books().open().len() <= purged as usize).await;
    let lost = run.books().open().len();
    assert_eq!(lost, purged as usize, "what was purged is all that has no result");
    run.books().forget_open();
    _ = connection.close(200, "OK".into()).await;
    run.settle(vec![worker]).await;
    run.close().await
}

/// Waits until a job that was taken is over.
async fn worker_is_done(worker: &Worker, id: &str) {
    let has = async || {
        let status = worker.status().await;
        status["jobs"].as_array().unwrap().iter().any(|job| job["job_id"] == *id)
    };
    until("the big job is taken", has).await;
    while has().await {
        sleep(Duration::from_millis(100)).await;
    }
}

/// The most memory that a worker has until something is over.
async fn watched(worker: &Worker, until: impl Future<Output = ()>) -> usize {
    let mut most = 0;
    let mut over = std::pin::pin!(until);
    loop {
        most = most.max(memory(worker));
        tokio::select! {
            () = &mut over => return most,
            () = sleep(Duration::from_millis(50)) => {}
        }
    }
}

/// The worker's resident memory, in bytes.
fn memory(worker: &Worker) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}
