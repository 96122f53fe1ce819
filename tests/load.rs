//! The pools under load, on the real engine: jobs that come at random, as fast as a share of what this engine can
//! churn. A program of its own, and one test at a time, so that nothing of ours disturbs what is measured.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prewarm::config::{EngineConfig, PoolConfig, Pull};
use prewarm::engine::docker::Docker;
use prewarm::engine::{ContainerSpec, Engine};
use prewarm::metrics::Metrics;
use serde_json::{Value, json};
use support::broker::{Attempt, Job};
use support::docker::BUSYBOX;
use support::worker::{Site, Worker, eventually, run, signal};

/// One after the other, whatever the test runner thinks.
static QUIET: Mutex<()> = Mutex::new(());

/// Creations at once: the default.
const CREATIONS: usize = 3;

/// How long a phase of the load lasts, in seconds. Longer ones tell more: three minutes is what the goal is stated for.
fn seconds() -> u64 {
    std::env::var("PREWARM_TEST_LOAD_SECONDS").ok().map_or(45, |s| s.parse().expect("whole seconds"))
}

/// Containers per second that the engine creates, starts and removes, with nobody in between.
async fn churn() -> f64 {
    let engine = Arc::new(Docker::new(&EngineConfig::default(), &Metrics::new()).unwrap());
    let image = engine.image(BUSYBOX, Pull::Never).await.unwrap();
    let init_volume = engine.install_init(&image, &[].into()).await.unwrap();
    let mut pool = PoolConfig::of_image(BUSYBOX);
    pool.network = Some("none".into());
    let pool = Arc::new(pool);
    let (begun, made) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let creators = (0..CREATIONS).map(|_| {
        let (engine, made) = (Arc::clone(&engine), Arc::clone(&made));
        let (image, init_volume, pool) = (image.id.clone(), init_volume.clone(), Arc::clone(&pool));
        tokio::spawn(async move {
            while begun.elapsed() < Duration::from_secs(8) {
                let name = format!("prewarm-churn-{}", uuid::Uuid::now_v7());
                let spec = ContainerSpec {
                    name,
                    image: image.clone(),
                    init_volume: init_volume.clone(),
                    labels: [].into(),
                    pool: Arc::clone(&pool),
                    socket: None,
                };
                let id = engine.create(&spec).await.unwrap();
                let stream = engine.attach(&id).await.unwrap();
                engine.start(&id).await.unwrap();
                drop(stream);
                engine.remove(&id).await.unwrap();
                made.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for creator in creators.collect::<Vec<_>>() {
        creator.await.unwrap();
    }
    made.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

/// What became of one phase's jobs.
#[derive(Default)]
struct Phase {
    jobs: usize,
    hits: usize,
    /// Milliseconds from the delivery to the entrypoint executing, of hits.
    startups: Vec<f64>,
    idle: Vec<f64>,
}

impl Phase {
    fn of(attempts: &[Attempt]) -> Phase {
        let hits = attempts.iter().filter(|a| a.result["lease"] == "hit").count();
        let of_hits = attempts.iter().filter(|a| a.result["lease"] == "hit");
        let startups = of_hits.map(|a| a.result["timings_ms"]["startup"].as_f64().unwrap()).collect();
        Phase { jobs: attempts.len(), hits, startups, idle: Vec::new() }
    }

    /// These jobs come on top.
    fn add(&mut self, more: Phase) {
        self.jobs += more.jobs;
        self.hits += more.hits;
        self.startups.extend(more.startups);
    }

    fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.jobs as f64
    }

    /// Whether so many misses can be told from what a goal allows: chance gives more than three standard deviations above
    /// it once in a thousand runs.
    fn meets(&self, goal: f64) -> bool {
        let allowed = (1.0 - goal) * self.jobs as f64;
        (self.jobs - self.hits) as f64 <= allowed + 3.0 * allowed.sqrt()
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.startups.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len()) - 1]
    }

    fn show(&self, what: &str) {
        let idle = self.idle.iter().sum::<f64>() / self.idle.len().max(1) as f64;
        println!(
            "{what}: {} of {} hit ({:.2} %), their start-up p50 {:.2}, p95 {:.2}, p99 {:.2} ms; {idle:.1} idle on average",
            self.hits,
            self.jobs,
            self.hit_rate() * 100.0,
            self.quantile(0.5),
            self.quantile(0.95),
            self.quantile(0.99),
        );
    }
}

/// What a phase looks like from within: a line for each of these.
const WINDOW: Duration = Duration::from_secs(15);

/// How the pool stood at the end of each window, and how its jobs fared.
fn show_windows(attempts: &[Attempt], windows: &[(usize, Duration, Value)]) {
    let mut from = 0;
    for (to, at, pool) in windows {
        let of = Phase::of(&attempts[from..*to]);
        let s = &pool["sizing"];
        println!(
            "  {:4.0} s: {:3} jobs, {:5.1} % hit; idle {} of {} ({}), starting {}, leased {}, removing {}, waiting {}; rate {:.2}, warm {:.3} s, creators {:.2}",
            at.as_secs_f64(),
            of.jobs,
            of.hit_rate() * 100.0,
            pool["idle"],
            pool["target"],
            s["reason"],
            pool["starting"],
            pool["leased"],
            pool["removing"],
            pool["waiting"],
            s["rate"].as_f64().unwrap(),
            s["warm_seconds"].as_f64().unwrap(),
            s["creators"].as_f64().unwrap(),
        );
        from = *to;
    }
}

/// Jobs that come at random at this rate, for so long; every one must succeed.
async fn poisson(site: &Site, worker: &Worker, pool: &str, rate: f64, time: Duration) -> Phase {
    let (begun, mut next) = (Instant::now(), 0.0);
    let mut jobs = Vec::new();
    let mut idle = Vec::new();
    let mut windows = Vec::new();
    loop {
        next += -(1.0 - rand::random::<f64>()).ln() / rate;
        let at = Duration::from_secs_f64(next);
        if at > time {
            break;
        }
        tokio::time::sleep(at.saturating_sub(begun.elapsed())).await;
        jobs.push(site.broker.submit(pool, Job::new(json!({"args": ["true"], "logs": "off"}))).await);
        if jobs.len() % 8 == 0 {
            let status = worker.pool(pool).await;
            idle.push(status["idle"].as_f64().unwrap());
            if at >= WINDOW * (windows.len() as u32 + 1) {
                windows.push((jobs.len(), at, status));
            }
        }
    }
    let mut attempts = Vec::new();
    for job in &jobs {
        attempts.push(site.broker.finished(job).await.succeeded());
    }
    show_windows(&attempts, &windows);
    Phase { idle, ..Phase::of(&attempts) }
}

#[test]
fn random_jobs_hit_at_half_of_what_the_engine_can_do_and_a_step_is_followed() {
    let _alone = QUIET.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(async |site: &Site| {
        let most = churn().await;
        println!("this engine churns {most:.1} containers a second");
        let keys = "idle = { min = 2, max = 60 }\nconcurrency = 8";
        let worker = site.worker().pool("box", keys).full().await;
        let time = Duration::from_secs(seconds());
        // The pool learns; what is measured comes after.
        let most = hits_at_half(site, &worker, most, (Duration::from_secs(60), time)).await;
        println!("{:#}", worker.pool("box").await["sizing"]);

        let step = poisson(site, &worker, "box", most * 0.9, time).await;
        step.show("90 %");
        println!("{:#}", worker.pool("box").await["sizing"]);
        hits_at_half(site, &worker, most, (Duration::from_secs(20), time / 2)).await;
        assert!(worker.stop().await.success());
    });
}

/// Jobs at half of what the engine can churn: 99 of 100 hit, once they have come for a while. If they don't, the engine may have
/// become slower since it was measured, as engines on machines with neighbours do: then again, at half of what it can do now.
/// Gives what it could do when they did.
async fn hits_at_half(
    site: &Site,
    worker: &Worker,
    mut most: f64,
    (before, time): (Duration, Duration),
) -> f64 {
    const TRIES: usize = 3;
    for _ in 0..TRIES {
        let learning = poisson(site, worker, "box", most / 2.0, before).await;
        learning.show(&format!("50 %, the first {before:?}"));
        let half = poisson(site, worker, "box", most / 2.0, time).await;
        half.show("50 %, after that");
        if half.meets(0.99) {
            return most;
        }
        most = churn().await;
        println!("this engine churns {most:.1} containers a second now");
    }
    panic!("too many misses, {TRIES} times");
}

/// A pool whose image is broken costs another's jobs nothing.
#[test]
fn a_broken_pool_leaves_another_s_start_up_alone() {
    let _alone = QUIET.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(async |site: &Site| {
        let good = "idle = 10\nconcurrency = 4";
        let bad = "idle = 10\nconcurrency = 4\nuser = \"nobody-by-this-name\"";
        let (mut all_alone, mut all_beside) = (Phase::default(), Phase::default());
        for round in 0..6 {
            // At half of what the engine makes, so that misses come of the other pool and not of too many jobs.
            let rate = churn().await / 2.0;
            let time = Duration::from_secs_f64(100.0 / rate);
            let worker = site.worker().pool("box", good).full().await;
            let alone = poisson(site, &worker, "box", rate, time).await;
            assert!(worker.stop().await.success());
            let worker = site.worker().pool("box", good).pool("broken", bad).start().await;
            worker.until_one(async |p| p["idle"] == 10).await;
            // Not the first few tries, which follow each other within seconds: what goes on for as long as nobody mends it.
            let tries = async || {
                worker
                    .metrics()
                    .await
                    .get("prewarm_containers_retired_total", &[("pool", "broken"), ("reason", "failed")])
            };
            eventually("it has failed a few times", async || (tries().await >= 7.0).then_some(())).await;
            let beside = poisson(site, &worker, "box", rate, time).await;
            let broken = worker.pool("broken").await;
            assert_eq!((&broken["able"], &broken["idle"]), (&json!(false), &json!(0)), "{broken}");
            assert!(worker.stop().await.success());
            alone.show(&format!("round {round}: alone"));
            beside.show(&format!("round {round}: beside a broken pool"));
            // One job in a hundred decides: what comes together over the rounds says more than any of them.
            all_alone.add(alone);
            all_beside.add(beside);
            let ratio = all_beside.quantile(0.99) / all_alone.quantile(0.99);
            println!("p99 beside a broken pool, to alone: {ratio:.2}");
            if ratio <= 1.5 && hits_as_often(&all_beside, &all_alone) {
                return;
            }
        }
        // Three or four jobs of all these decide their p99, and each may have met a refill of its own pool. If it is not they
        // but the broken pool that makes the difference, others are slowed as well.
        let ratio = all_beside.quantile(0.9) / all_alone.quantile(0.9);
        assert!(ratio <= 1.5, "a broken pool slows another's jobs: p90 {ratio:.2} times");
        assert!(hits_as_often(&all_beside, &all_alone), "{} {}", all_beside.hit_rate(), all_alone.hit_rate());
    });
}

fn hits_as_often(beside: &Phase, alone: &Phase) -> bool {
    beside.hit_rate() >= alone.hit_rate() - 0.05
}

/// By one worker that is told by SIGHUP to keep more and more idle.
#[test]
fn a_lease_costs_the_same_and_memory_is_small_with_200_idle() {
    let _alone = QUIET.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(async |site: &Site| {
        let keys = |idle: usize| format!("idle = {idle}\nconcurrency = 1\nnetwork = \"host\"");
        let worker = site.worker().pool("box", &keys(10)).full().await;
        let mut report = String::new();
        let mut leases = Vec::new();
        let mut memory = Vec::new();
        for idle in [10, 50, 200] {
            let text = fs::read_to_string(&worker.config).unwrap();
            let old = text.lines().find(|line| line.starts_with("idle")).unwrap();
            fs::write(&worker.config, text.replace(old, &format!("idle = {idle}"))).unwrap();
            signal("HUP", worker.pid());
            until_idle(&worker, idle).await;
            worker.until_full().await;
            let mut waits = Vec::new();
            for _ in 0..20 {
                let attempt = site.broker.run("box", Job::new(json!({"args": ["true"]}))).await.succeeded();
                waits.push(attempt.result["timings_ms"]["lease"].as_f64().unwrap());
                worker.until_full().await;
            }
            waits.sort_by(f64::total_cmp);
            leases.push(waits[10]);
            memory.push(rss(worker.pid()));
            let _ = writeln!(
                report,
                "{idle} idle: lease p50 {:.3} ms, worker {} KiB",
                waits[10],
                rss(worker.pid())
            );
        }
        let each = (memory[2] as f64 - memory[0] as f64) / 190.0;
        println!("{report}{each:.0} KiB for each idle container");
        assert!(each < 150.0, "{each}");
        assert!(leases[2] < leases[0] * 2.0 + 0.1, "{leases:?}");
        assert!(worker.stop().await.success());
    });
}

/// Waits until so many are idle, for as long as there are more and more of them.
async fn until_idle(worker: &Worker, wanted: usize) {
    let mut now = 0;
    while now < wanted as u64 {
        now = eventually("more are idle", async || {
            let idle = worker.pool("box").await["idle"].as_u64()?;
            (idle > now).then_some(idle)
        })
        .await;
    }
}

/// Resident memory of a process, in KiB.
fn rss(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
