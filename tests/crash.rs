//! `kill -9` of the worker: what it held ends by itself, its jobs go to others, and what the engine left behind is
//! swept.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use prewarm::config::EngineConfig;
use prewarm::engine::Engine;
use prewarm::engine::docker::Docker;
use prewarm::metrics::Metrics;
use prewarm::pool::Owner;
use prewarm::pool::sweep::Sweep;
use serde_json::json;
use support::broker::{Attempt, Job, RESULT, Reply, STARTED};
use support::docker::{BUSYBOX, Image, docker, docker_ok};
use support::engine::{Container, containers, running};
use support::worker::{DEADLINE, Site, Worker, eventually, prewarm, processes_with, run};

/// A worker killed with -9 leaves nothing running for longer than 2 s; or than its engine takes to make a few
/// containers, where that is slow: it carries out what it was asked before, and has to see a dozen end.
async fn gone_within(worker: &Worker) -> Duration {
    Duration::from_secs(2).max(4 * worker.warmup("box").await)
}

fn engine() -> Docker {
    let config = EngineConfig { timeout: DEADLINE, ..EngineConfig::default() };
    Docker::new(&config, &Metrics::new()).unwrap()
}

/// Anonymous volumes of containers.
fn volumes_of(containers: &[String]) -> Vec<String> {
    let format = "{{range .Mounts}}{{if eq .Type \"volume\"}}{{.Name}}\n{{end}}{{end}}";
    let args = ["inspect", "--format", format].into_iter().chain(containers.iter().map(String::as_str));
    // Some may be gone in between.
    let printed = String::from_utf8(docker(args).output().unwrap().stdout).unwrap();
    printed.lines().filter(|v| !v.is_empty() && !v.starts_with("prewarm-init-")).map(str::to_owned).collect()
}

/// Removes what a worker that died had created and not started: two looks of the sweep, as the next worker
/// of that name does it at an interval.
async fn sweep(worker: &str) -> usize {
    let (engine, mut sweep) = (engine(), Sweep::new(Owner::new(worker), None));
    sweep.once(&engine).await.unwrap() + sweep.once(&engine).await.unwrap()
}

/// What is left of a worker's containers once the engine has removed those that ended: what was created and not yet started.
async fn left_as_created(worker: &str) -> Vec<Container> {
    eventually("containers that ended are removed by the engine", async || {
        let left = containers(worker);
        left.iter().all(|c| c.state == "created").then_some(left)
    })
    .await
}

/// An argument that tells a job's processes apart from everything else on this machine.
fn mark() -> String {
    format!("7{}", uuid::Uuid::now_v7().as_u128() % 1_000_000_007)
}

/// When a container of a worker that was killed at `begun` was last seen running. Looks on past the time that is allowed:
/// the engine carries out what it was asked before, so one may still come up.
async fn last_seen_running(worker: &str, begun: Instant, allowed: Duration) -> Duration {
    let mut last = Duration::ZERO;
    while begun.elapsed() < allowed + Duration::from_millis(500) {
        if !running(worker).is_empty() {
            last = begun.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    last
}

/// With idle, leased and starting containers; the leased one with a tree of processes, some of which don't want to go.
#[test]
fn nothing_runs_two_seconds_after_kill_9() {
    run(async |site: &Site| {
        let image = Image::build(&format!("FROM {BUSYBOX}\nVOLUME /data /more\n"));
        let keys = format!("image = \"{}\"\nidle = 12\nconcurrency = 1", image.name());
        let mut worker = site.worker().pool("box", &keys).ready().await;
        let mark = mark();
        let script = format!(
            "echo precious >/data/file; trap '' TERM HUP INT; (setsid sh -c 'trap \"\" TERM; sleep {mark} & sleep {mark}' &); \
             sleep {mark} & echo up; sleep {mark}"
        );
        let job = Job::new(json!({"args": ["sh", "-c", script], "timeout": "10m", "metadata": {"m": 1}}));
        let job = site.broker.submit("box", job).await;
        site.broker.printed(&job, "up").await;
        let first = site.broker.started(&job).await;
        assert_eq!(first["attempt"], 1);

        worker.until_one(async |p| p["idle"].as_u64() >= Some(3) && p["leased"] == 1).await;
        let volumes = volumes_of(&containers(&worker.name).into_iter().map(|c| c.id).collect::<Vec<_>>());
        assert!(volumes.len() >= 8, "two for each container: {volumes:?}");
        // A remote engine's processes can't be seen from here.
        let local = !processes_with(&mark).is_empty();
        assert!(!local || processes_with(&mark).len() >= 4, "{:?}", processes_with(&mark));
        let before = running(&worker.name);
        assert!(before.len() >= 4, "{before:?}");
        // One more that is on its way: a container is being started, or will be within the engine's next breath.
        worker.until_one(async |p| p["starting"].as_u64() > Some(0)).await;
        let at = worker.pool("box").await;

        let allowed = gone_within(&worker).await;

        let begun = Instant::now();
        worker.kill();
        let gone_after = last_seen_running(&worker.name, begun, allowed).await;
        println!(
            "kill -9 with {} idle, {} leased, {} starting: the last was seen running after {gone_after:?} of {allowed:?}",
            at["idle"], at["leased"], at["starting"]
        );
        assert!(gone_after < allowed, "{gone_after:?}");
        if local {
            assert_eq!(processes_with(&mark), [""; 0], "the job's processes are gone with it");
        }

        // The job is run again, and shows it.
        let second = site.worker().pool("box", &keys.replace("idle = 12", "idle = 1")).ready().await;
        let is_again = |r: &Reply| r.kind == STARTED && r.body["attempt"] == 2;
        site.broker.until(&job, |replies| replies.iter().any(is_again)).await;
        let cancel =
            prewarm().arg("--config").arg(&second.config).args(["cancel", &job.id]).output().unwrap();
        assert!(cancel.status.success(), "{cancel:?}");
        let replies = site.broker.until(&job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
        let (one, two): (Vec<_>, Vec<_>) = replies.into_iter().partition(|r| r.body["attempt"] == 1);
        assert!(one.iter().all(|r| r.kind != RESULT));
        assert_eq!(two[0].kind, STARTED);
        let again = Attempt::check(&job, two);
        assert_eq!((&again.result["attempt"], &again.result["worker"]), (&json!(2), &json!(second.name)));
        assert_eq!((again.status(), &again.result["metadata"]), ("cancelled", &json!({"m": 1})));
        let metrics = second.metrics().await;
        assert_eq!(metrics.get("prewarm_deliveries_total", &[("pool", "box"), ("redelivered", "true")]), 1.0);
        assert!(second.stop().await.success());
        if std::path::Path::new("/proc/self/cmdline").exists() {
            eventually("no process of the job is left", async || {
                processes_with(&mark).is_empty().then_some(())
            })
            .await;
        }

        // What is left is what was created and not yet started: that is the sweep's.
        let ended = left_as_created(&worker.name).await;
        let more_volumes = volumes_of(&ended.iter().map(|c| c.id.clone()).collect::<Vec<_>>());
        assert_eq!(sweep(&worker.name).await, ended.len());
        assert_eq!(containers(&worker.name), []);
        let existing = docker_ok(["volume", "ls", "-q"]);
        let left: Vec<_> =
            volumes.iter().chain(&more_volumes).filter(|v| existing.contains(v.as_str())).collect();
        assert!(left.is_empty(), "volumes left behind: {left:?}");
    });
}

/// Nor where a container serves many jobs: what ends there is the worker's socket.
#[test]
fn nothing_of_many_jobs_runs_two_seconds_after_kill_9() {
    run(async |site: &Site| {
        let keys = "idle = 4\nconcurrency = 1\nisolation = \"namespace\"";
        let mut worker = site.worker().pool("box", keys).full().await;
        let mark = mark();
        let script = format!("trap '' TERM HUP INT; (setsid sleep {mark} &); echo up; sleep {mark}");
        let job = Job::new(json!({"args": ["sh", "-c", script], "timeout": "10m"}));
        let job = site.broker.submit("box", job).await;
        site.broker.printed(&job, "up").await;
        let local = !processes_with(&mark).is_empty();
        assert!(!local || processes_with(&mark).len() >= 2, "{:?}", processes_with(&mark));
        assert!(running(&worker.name).len() >= 4);
        let allowed = gone_within(&worker).await;

        let begun = Instant::now();
        worker.kill();
        let gone_after = last_seen_running(&worker.name, begun, allowed).await;
        assert!(gone_after < allowed, "{gone_after:?} of {allowed:?}");
        assert_eq!(processes_with(&mark), [""; 0], "the job's processes are gone with it");
        let ended = left_as_created(&worker.name).await;
        assert_eq!(sweep(&worker.name).await, ended.len());
    });
}

/// Killed at any moment of its start, a worker leaves nothing that runs.
#[test]
fn killed_while_it_starts() {
    run(async |site: &Site| {
        let whole = site.worker().pool("box", "idle = 4").full().await;
        let allowed = gone_within(&whole).await;
        assert!(whole.stop().await.success());
        // So many milliseconds after the first such request was answered. (Not earlier: a worker that is killed while
        // it fills the volume of init keeps others from starting for half a minute.)
        let moments =
            [("create", 0), ("create", 60), ("attach", 0), ("attach", 80), ("attach", 160), ("start", 0)];
        for (op, later) in moments {
            let mut worker = site.worker().pool("box", "idle = 4").start().await;
            eventually(op, async || {
                let answered =
                    worker.metrics().await.get("prewarm_engine_request_seconds_count", &[("op", op)]);
                (answered > 0.0).then_some(())
            })
            .await;
            tokio::time::sleep(Duration::from_millis(later)).await;
            worker.kill();
            let last = last_seen_running(&worker.name, Instant::now(), allowed).await;
            let left = left_as_created(&worker.name).await;
            println!(
                "killed {later} ms after '{op}': last seen running after {last:?}; {} left as created",
                left.len()
            );
            assert!(last < allowed, "{last:?} of {allowed:?}");
            assert_eq!(sweep(&worker.name).await, left.len());
        }
    });
}

/// The sweep's rule, on real containers in every state.
#[test]
fn the_sweep_takes_what_nobody_holds() {
    run(async |site: &Site| {
        let mine = site.worker().name;
        let other = site.worker().name;
        let make = |verb: &[&str], worker: &str, command: &[&str]| {
            let label = format!("prewarm.worker={worker}");
            let options = ["--label", &label, "--network", "none", BUSYBOX];
            docker_ok(verb.iter().chain(&options).chain(command).copied()).trim_end().to_owned()
        };
        let created = make(&["create"], &mine, &["true"]);
        let ended = make(&["run", "-d"], &mine, &["true"]);
        let runs = make(&["run", "-d"], &mine, &["sleep", "1000"]);
        let others = [make(&["create"], &other, &["true"]), make(&["run", "-d"], &other, &["true"])];
        eventually("it ended", async || containers(&mine).iter().any(|c| c.state == "exited").then_some(()))
            .await;
        let ids = |worker: &str| {
            let mut ids: Vec<String> = containers(worker).into_iter().map(|c| c.id).collect();
            ids.sort();
            ids
        };
        let sorted = |mut ids: Vec<String>| {
            ids.sort();
            ids
        };
        let engine: Arc<dyn Engine> = Arc::new(engine());
        let mut sweep = Sweep::new(Owner::new(&mine), None);
        assert_eq!(sweep.once(&*engine).await.unwrap(), 1);
        assert_eq!(ids(&mine), sorted(vec![created.clone(), runs.clone()]), "{ended} had ended");
        let young = make(&["create"], &mine, &["true"]);
        assert_eq!(sweep.once(&*engine).await.unwrap(), 1);
        assert_eq!(
            ids(&mine),
            sorted(vec![young.clone(), runs.clone()]),
            "one that was just created may be being started"
        );
        assert_eq!(sweep.once(&*engine).await.unwrap(), 1);
        assert_eq!(sweep.once(&*engine).await.unwrap(), 0);
        assert_eq!(ids(&mine), std::slice::from_ref(&runs), "one that runs is held by somebody");
        assert_eq!(ids(&other), sorted(others.to_vec()), "another worker's are another worker's");
        docker_ok(["rm", "-f", &runs, &others[0], &others[1]]);
    });
}

#[test]
fn a_worker_that_comes_back_sweeps_at_once() {
    run(async |site: &Site| {
        let mut worker = site.worker().pool("box", "idle = 1").full().await;
        let name = worker.name.clone();
        worker.kill();
        let label = format!("prewarm.worker={name}");
        let left = docker_ok(["run", "-d", "--label", &label, "--network", "none", BUSYBOX, "true"]);
        eventually("it ended", async || containers(&name).iter().any(|c| c.state == "exited").then_some(()))
            .await;
        let worker = site.worker().named(&name).pool("box", "idle = 1").full().await;
        eventually("the leftover is gone", async || {
            containers(&name).iter().all(|c| c.id != left.trim_end()).then_some(())
        })
        .await;
        assert_eq!(containers(&name).len(), 1, "and its own is not");
        site.broker.run("box", Job::shell("true")).await.succeeded();
        assert!(worker.stop().await.success());
    });
}
