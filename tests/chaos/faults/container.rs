//! What happens to containers, and to jobs in them.

use std::time::Duration;

use serde_json::json;

use crate::books::{Expect, Tally};
use crate::publisher::Job;
use crate::run::Run;
use crate::support::docker::{docker, run as run_command};
use crate::support::engine;
use crate::support::worker::Worker;

/// Each fifth job takes more memory than it may: its own failure, which is not tried again.
pub async fn out_of_memory(run: Run<'_>) -> Tally {
    run.keys("memory = \"16MiB\"");
    let worker = run.worker().await;
    let special = |n: usize| {
        (n % 5 == 4).then(|| Job {
            id: run.next_id(),
            body: json!({"args": ["probe", "memory", "100000000"]}),
            expect: Expect::Judged(|result| {
                let oom = result["status"] == "failed"
                    && result["oom_killed"] == true
                    && result["attempt"] == 1
                    && result["error"]["kind"] == "out_of_memory";
                if oom { Ok(()) } else { Err("should have failed for memory, once".into()) }
            }),
            reply_to: run.replies(),
        })
    };
    run.load(special, run.results(run.scale.jobs / 2)).await;
    run.settle(vec![worker]).await;
    let tally = run.close().await;
    assert_eq!(tally.duplicates(), 0, "nothing is tried again: {:?}", tally.duplicated);
    assert!(tally.failed >= 4);
    tally
}

/// Somebody lays hands on containers with `docker kill` and `docker stop`, leased and idle ones.
pub async fn killed_from_outside(run: Run<'_>) -> Tally {
    laid_hands_on(run, async |run, leased| {
        let verbs: [&[&str]; 3] = [&["kill"], &["stop", "-t", "1"], &["kill", "--signal", "TERM"]];
        aside(&[verbs[run.any_of(3)], &[leased]].concat()).await;
    })
    .await
}

/// Init is killed from the host: the container ends with it.
pub async fn init_killed(run: Run<'_>) -> Tally {
    laid_hands_on(run, async |_, leased| {
        let pid = aside(&["inspect", "--format", "{{.State.Pid}}", leased]).await;
        // It may have ended by itself: then there is nothing to kill.
        if let Some(pid) = pid.trim().parse::<u32>().ok().filter(|pid| *pid > 1) {
            let kill = format!("kill -KILL {pid}");
            _ = std::process::Command::new("sh").args(["-c", &kill]).status();
        }
    })
    .await
}

async fn laid_hands_on(run: Run<'_>, hand: impl AsyncFn(&Run<'_>, &str)) -> Tally {
    let worker = run.worker().await;
    let before = died(&worker).await;
    run.under_load(async {
        for _ in 0..run.scale.times * 2 {
            let leased = run.mid_job(&worker).await;
            hand(&run, &leased[run.any_of(leased.len())]).await;
            let all = engine::running(&worker.name);
            if !all.is_empty() {
                hand(&run, &all[run.any_of(all.len())]).await;
            }
            run.over();
        }
    })
    .await;
    assert!(died(&worker).await > before, "no container died");
    run.settle(vec![worker]).await;
    run.close().await
}

/// Containers that ended though nobody had told them to.
async fn died(worker: &Worker) -> f64 {
    let metrics = worker.metrics().await;
    let of = |reason| metrics.get("prewarm_containers_retired_total", &[("pool", "box"), ("reason", reason)]);
    of("died") + of("doubt") + of("failed")
}

/// `docker`, while jobs keep coming; it may be refused, since containers come and go.
async fn aside(args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let command = move || run_command(&mut docker(args), None, Duration::from_secs(60)).stdout.to_string();
    tokio::task::spawn_blocking(command).await.unwrap()
}
