//! Jobs without end through one worker, its containers kept: whatever each of them leaves in worker, init, engine or kernel
//! adds up here. A program of its own, since it counts what the whole machine has.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prewarm::broker::client::{Client, Replies};
use prewarm::config;
use prewarm::contract::PoolName;
use prewarm::contract::topology::RESULT;
use serde_json::{Value, json};
use support::docker::docker_ok;
use support::worker::{Site, Worker, eventually, run};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// How many jobs. `PREWARM_TEST_MANY=100000` is what the goal is stated for.
fn jobs() -> usize {
    std::env::var("PREWARM_TEST_MANY").ok().map_or(3000, |n| n.parse().expect("a number of jobs"))
}

const CONTAINERS: usize = 4;

/// What is held at one moment, by whom. Memory in KiB.
type Held = BTreeMap<&'static str, u64>;

/// How much more of each may be held after any number of jobs than after the first few. Allocators and garbage collectors
/// don't give back at once; descriptors, mounts and groups are counted exactly.
const SLACK: [(&str, u64); 13] = [
    ("worker: memory", 8 << 10),
    ("worker: descriptors", 0),
    // Those that read files come and go.
    ("worker: threads", 3),
    ("inits: memory of their own", 64),
    ("inits: descriptors", 0),
    ("inits: mounts", 0),
    ("engine: memory", 24 << 10),
    ("engine: descriptors", 0),
    ("shims: memory", 16 << 10),
    ("shims: descriptors", 0),
    ("host: mounts", 0),
    ("host: control groups", 0),
    ("host: memory of tmpfs", 16 << 10),
];

#[test]
fn jobs_without_end_leave_nothing_in_worker_init_engine_or_kernel() {
    run(async |site: &Site| {
        let keys = format!(
            "isolation = \"namespace\"\nidle = {CONTAINERS}\nconcurrency = {CONTAINERS}\nmax_jobs = 100000000"
        );
        // So that a moment's load makes no further container: those that are there are to serve all.
        let bound = format!("[engine]\ncontainers = {CONTAINERS}\n");
        let worker = site.worker().pool("box", &keys).section(&bound).full().await;
        let pool = PoolName::new("box").unwrap();
        let broker =
            config::load_broker(Some(&worker.config), []).unwrap_or_else(|faults| panic!("{faults}"));
        let client = Client::connect(&broker, "prewarm test").await.unwrap();
        let (sender, mut replies) = client.split();
        let engine = engine_pid().await;
        let containers = containers(&worker);

        // Some that are over at once, some that leave files, processes, memory and mounts of their own behind.
        let plain = json!({"args": ["true"], "env": {"N": "1"}, "logs": "off"});
        let dirty = "echo x >/etc/left; mkdir -p /var/left/behind; head -c 100000 /dev/zero >/dev/shm/left; \
                     mkfifo /fifo; sleep 1000 & exec 7<>/fifo; sleep 1000 </fifo & echo done";
        let dirty = json!({"args": ["sh", "-c", dirty]});
        let bodies = [plain.clone(), plain.clone(), plain, dirty].map(|body| body.to_string());

        let total = jobs();
        let first = (total / 10).max(500);
        let room = Arc::new(Semaphore::new(CONTAINERS));
        let mut before = Held::new();
        let begun = Instant::now();
        for (from, to) in [(0, first), (first, total)] {
            let publish = async {
                for n in from..to {
                    room.acquire().await.unwrap().forget();
                    let id = format!("{}-{n}", site.name);
                    let body = bodies[n % bodies.len()].clone().into();
                    sender.submit(&pool, &id, body, None).await.unwrap();
                }
            };
            let take = async {
                for _ in from..to {
                    succeeded(&mut replies).await;
                    room.add_permits(1);
                }
            };
            tokio::join!(publish, take);
            println!("{to} jobs, {:.1} s", begun.elapsed().as_secs_f64());
            worker.until_one(async |pool| pool["idle"] == CONTAINERS).await;
            let held = held(&worker, engine, &containers);
            println!("after {to} jobs: {held:#?}");
            if from == 0 {
                before = held;
            } else {
                eventually("nothing more is held than after the first jobs", async || {
                    let more = more(&before, &self::held(&worker, engine, &containers));
                    if !more.is_empty() {
                        println!("for now: {more:?}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    more.is_empty().then_some(())
                })
                .await;
            }
        }
        let pool = worker.pool("box").await;
        assert_eq!(pool["containers"].as_array().map(Vec::len), Some(CONTAINERS), "{pool:#}");
        assert_eq!(self::containers(&worker), containers, "the same ones all the time");
        sender.close().await;
        assert!(worker.stop().await.success());
    });
}

async fn succeeded(replies: &mut Replies) {
    loop {
        let reply = replies.next().await.unwrap();
        if reply.properties.kind.as_deref() == Some(RESULT) {
            let result: Value = serde_json::from_slice(&reply.body).unwrap();
            assert_eq!(result["status"], "succeeded", "{result:#}");
            return;
        }
    }
}

/// What has grown by more than it may.
fn more(before: &Held, now: &Held) -> Vec<(&'static str, u64, u64)> {
    let grown = |(what, slack): &(&'static str, u64)| now[what] > before[what] + slack;
    SLACK.iter().filter(|row| grown(row)).map(|(what, _)| (*what, before[what], now[what])).collect()
}

/// The processes of the worker's containers, as the host sees them.
fn containers(worker: &Worker) -> Vec<u32> {
    let label = format!("label=prewarm.worker={}", worker.name);
    let ids = docker_ok(["ps", "-q", "--filter", &label]);
    let format = ["inspect", "--format", "{{.State.Pid}}"];
    let pids = docker_ok(format.into_iter().chain(ids.split_whitespace()));
    let mut pids: Vec<u32> = pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    pids.sort_unstable();
    pids
}

/// Who listens at the engine's socket.
async fn engine_pid() -> u32 {
    let host = support::docker::variable("DOCKER_HOST");
    let path = host.strip_prefix("unix://").expect("the tests' engine listens at a socket");
    let stream = UnixStream::connect(path).await.unwrap();
    stream.peer_cred().unwrap().pid().unwrap() as u32
}

fn held(worker: &Worker, engine: u32, inits: &[u32]) -> Held {
    let shims: Vec<u32> = inits.iter().map(|pid| number(*pid, "status", "PPid:") as u32).collect();
    let sum = |pids: &[u32], of: &dyn Fn(u32) -> u64| pids.iter().map(|pid| of(*pid)).sum();
    let resident = |pid| number(pid, "status", "VmRSS:");
    let own = |pid| number(pid, "smaps_rollup", "Private_Dirty:");
    let descriptors = |pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    let mounts = |pid| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines().count() as u64;
    let this = std::process::id();
    Held::from([
        ("worker: memory", resident(worker.pid())),
        ("worker: descriptors", descriptors(worker.pid())),
        ("worker: threads", number(worker.pid(), "status", "Threads:")),
        ("inits: memory of their own", sum(inits, &own)),
        ("inits: descriptors", sum(inits, &descriptors)),
        ("inits: mounts", sum(inits, &mounts)),
        ("engine: memory", resident(engine)),
        ("engine: descriptors", descriptors(engine)),
        ("shims: memory", sum(&shims, &resident)),
        ("shims: descriptors", sum(&shims, &descriptors)),
        ("host: mounts", mounts(this)),
        ("host: control groups", control_groups()),
        ("host: memory of tmpfs", tmpfs()),
    ])
}

/// The number behind `name` in a file of `/proc/PID`.
fn number(pid: u32, file: &str, name: &str) -> u64 {
    find(&format!("/proc/{pid}/{file}"), name)
}

fn find(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{path}: {name}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What all tmpfs of this machine hold: a root that was not dropped would be in it.
fn tmpfs() -> u64 {
    find("/proc/meminfo", "Shmem:")
}

/// Of every controller, as the kernel counts them.
fn control_groups() -> u64 {
    let text = fs::read_to_string("/proc/cgroups").unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()).sum()
}
