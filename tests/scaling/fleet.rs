//! 1, 2, 4 workers, each on an engine of its own; then two of them go under load.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use prewarm::fleet::needs::Needs;
use serde_json::json;

use crate::alone;
use crate::simulated::{Figures, Measured, Sent, Warmups};
use crate::support::broker::{Job, RESULT, Reply, STARTED, rabbitmqctl};
use crate::support::docker::BUSYBOX;
use crate::support::own_engine::OwnEngine;
use crate::support::worker::{Site, Worker, eventually, run, signal};

/// A container for each job. One idle: there are misses to be foretold.
const ONCE: &str = "idle = 1\nconcurrency = 3";
const ONCE_OPTIONS: &str = "--idle-min 1 --idle-max 1 --concurrency 3";
/// Containers that serve many. Jobs here are `sleep` as process 1, which takes no notice of SIGTERM.
const MANY: &str = "idle = 8\nconcurrency = 8\nisolation = \"namespace\"\nstop_grace = \"100ms\"";
const MANY_OPTIONS: &str = "--idle-min 8 --idle-max 8 --concurrency 8 --isolation namespace";
/// How many jobs at random each worker has on average: a share of what its engine can make, for so long. All engines share
/// this machine's cores, and with four of them it makes little more than one alone: so a fifth at most, or these jobs are about
/// the machine.
struct Pace {
    /// Jobs in a second for each worker.
    rate: f64,
    seconds: f64,
}

impl Pace {
    /// `warm` is how long a container takes with nothing else going on.
    fn of(warm: Duration) -> Pace {
        const USUAL: f64 = 0.5;
        let seconds =
            std::env::var("PREWARM_TEST_SCALING_SECONDS").ok().map_or(16.0, |s| s.parse().expect("seconds"));
        let rate = USUAL.min(0.2 / warm.as_secs_f64());
        // As many jobs on a slow machine.
        Pace { rate, seconds: seconds * USUAL / rate }
    }
}

/// Engines for all workers but the first, which has the shared one.
fn engines(n: usize) -> Vec<OwnEngine> {
    let starting: Vec<_> = (0..n).map(|_| thread::spawn(|| OwnEngine::start(&[BUSYBOX]))).collect();
    starting.into_iter().map(|engine| engine.join().unwrap()).collect()
}

async fn worker(site: &Site, engines: &[OwnEngine], n: usize, set: &str) -> Worker {
    let setup = site.worker().pool("once", ONCE).pool("many", MANY).set(set);
    let setup = match n.checked_sub(1) {
        None => setup,
        Some(own) => setup.env("DOCKER_HOST", &engines[own].host()),
    };
    setup.full().await
}

fn sleeps(seconds: f64) -> Job {
    Job::new(json!({"args": ["sleep", seconds.to_string()], "logs": "off"}))
}

/// Waits until no job runs and no container is on its way. More may be idle than is wanted: a pool whose containers serve
/// many keeps those that were leased of late.
async fn until_quiet(workers: &[Worker]) {
    for worker in workers {
        eventually("all pools are quiet", async || {
            let status = worker.status().await;
            let mut pools = status["pools"].as_array().unwrap().iter();
            let moving = ["starting", "leased", "removing", "waiting"];
            let quiet = pools.all(|pool| {
                pool["idle"].as_u64() >= pool["target"].as_u64()
                    && moving.iter().all(|state| pool[state] == 0)
            });
            quiet.then_some(())
        })
        .await;
    }
}

/// More jobs than seats, all at once.
async fn saturated(site: &Site, workers: &[Worker]) -> (Measured, Figures) {
    until_quiet(workers).await;
    let mut sent = Vec::new();
    for _ in 0..40 * workers.len() {
        sent.push(Sent::submit(site, "many", sleeps(1.0)).await);
    }
    let measured = Measured::of(site, &sent).await;
    // None is made: they serve many.
    let warm = Warmups::so_far(workers, "many").await.since(Warmups::default());
    let simulated = measured.simulate(site, workers.len(), warm, MANY_OPTIONS);
    (measured, simulated)
}

/// Jobs that come at random, at a rate for each worker.
async fn random(site: &Site, workers: &[Worker], pace: &Pace) -> (Measured, Figures) {
    until_quiet(workers).await;
    let before = Warmups::so_far(workers, "once").await;
    let (begun, mut next, mut sent) = (Instant::now(), 0.0, Vec::new());
    loop {
        next += -(1.0 - rand::random::<f64>()).ln() / (pace.rate * workers.len() as f64);
        if next > pace.seconds {
            break;
        }
        tokio::time::sleep(Duration::from_secs_f64(next).saturating_sub(begun.elapsed())).await;
        sent.push(Sent::submit(site, "once", sleeps(0.7)).await);
    }
    let measured = Measured::of(site, &sent).await;
    until_quiet(workers).await;
    let warm = Warmups::so_far(workers, "once").await.since(before);
    println!("  a container took {:?}", warm);
    let simulated = measured.simulate(site, workers.len(), warm, ONCE_OPTIONS);
    (measured, simulated)
}

#[test]
fn four_workers_run_four_times_as_much_as_simulated_and_two_may_go() {
    let _alone = alone();
    let engines = engines(3);
    run(async |site: &Site| {
        let mut workers: Vec<Worker> = Vec::new();
        let (mut throughputs, mut simulated_ones) = (Vec::new(), Vec::new());
        let (mut jobs, mut hits, mut foretold) = (0.0, 0.0, 0.0);
        let mut waits = Vec::new();
        let mut pace = None;
        for n in [1, 2, 4] {
            while workers.len() < n {
                // The last to come is a hasty one, see below.
                let set = if workers.len() == 3 { "drain_timeout = \"1s\"" } else { "" };
                workers.push(worker(site, &engines, workers.len(), set).await);
            }
            let (measured, simulated) = saturated(site, &workers).await;
            measured.show(&format!("{n} workers, all they can"), &simulated);
            let found = measured.figures.throughput;
            assert!((simulated.throughput / found - 1.0).abs() < 0.15, "{n} workers: {found}");
            let (real, said) = (measured.figures.wait_p50, simulated.wait_p50);
            assert!((said - real).abs() < 0.15 * real + 0.1, "{n} workers: p50 {real} {said}");
            let (real, said) = (measured.figures.wait_p95, simulated.wait_p95);
            assert!((said - real).abs() < 0.15 * real + 0.1, "{n} workers: p95 {real} {said}");
            throughputs.push(found);
            simulated_ones.push(simulated.throughput);

            if pace.is_none() {
                let warm = Warmups::so_far(&workers, "once").await.since(Warmups::default());
                pace = Some(Pace::of(warm));
            }
            let (measured, simulated) = random(site, &workers, pace.as_ref().unwrap()).await;
            measured.show(&format!("{n} workers, at random"), &simulated);
            let n = measured.figures.jobs as f64;
            jobs += n;
            hits += n * measured.figures.hits;
            foretold += n * simulated.hits;
            waits.extend(measured.waits);
        }
        // There were seats enough. One worker's few jobs alone would say that their slowest was unlucky.
        waits.sort_by(f64::total_cmp);
        let p95 = waits[waits.len() * 95 / 100];
        assert!(p95 < 0.5, "{p95} {waits:?}");
        let (hits, foretold) = (hits / jobs, foretold / jobs);
        println!("{jobs} jobs at random: {:.1} % hits, {:.1} % simulated", 100.0 * hits, 100.0 * foretold);
        // Which of so few jobs came just after another is the same in both; how long each container took isn't.
        let by_chance = 3.0 * (foretold * (1.0 - foretold) / jobs).sqrt();
        assert!((hits - foretold).abs() < 0.05_f64.max(by_chance), "{hits} {foretold}");
        // What a job of one second costs beside its sleep is this machine's affair, which the simulation is told.
        for (real, said) in throughputs.iter().zip(&simulated_ones) {
            let (real, said) = (real / throughputs[0], said / simulated_ones[0]);
            assert!(real > 0.9 * said, "{throughputs:?} {simulated_ones:?}");
        }

        connections_are_as_counted(&workers).await;
        scaled_in(site, workers).await;
        for engine in &engines {
            eventually("nothing is left on its engine", async || {
                engine.containers().is_empty().then_some(())
            })
            .await;
        }
    });
}

/// What RabbitMQ lists is what `prewarm simulate` names.
async fn connections_are_as_counted(workers: &[Worker]) {
    let listed = rabbitmqctl(&["list_connections", "client_properties", "channels", "--no-table-headers"]);
    let of_ours = |line: &&str| workers.iter().any(|w| line.contains(&format!("prewarm {} (", w.name)));
    let channels: Vec<usize> = listed
        .lines()
        .filter(of_ours)
        .map(|line| line.split_whitespace().last().unwrap().parse().unwrap())
        .collect();
    // 3 and 8 seats.
    let needs = Needs::of(workers.len(), 11, 0.0, 0.0);
    println!("{} connections with {} channels; {needs:?}", channels.len(), channels.iter().sum::<usize>());
    assert_eq!(channels.len(), needs.connections, "{listed}");
    assert_eq!(channels.iter().max(), Some(&needs.channels_of_a_connection));
    assert!(channels.iter().sum::<usize>() <= needs.channels);
}

/// Two of four are told to go while jobs come: one lets its jobs end, the other has no patience. The books balance.
async fn scaled_in(site: &Site, mut workers: Vec<Worker>) {
    let hasty = workers.pop().unwrap();
    let patient = workers.pop().unwrap();
    let mut jobs = Vec::new();
    for n in 0..120 {
        // Longer than the hasty one waits: what it has just taken can't end there.
        jobs.push(Sent::submit(site, "many", sleeps(if n % 4 == 0 { 8.0 } else { 0.5 })).await.job);
        if n == 59 {
            signal("TERM", patient.pid());
            signal("TERM", hasty.pid());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let (patient_name, hasty_name) = (patient.name.clone(), hasty.name.clone());
    for mut worker in [patient, hasty] {
        assert!(worker.ended().await.success());
    }
    let mut by: BTreeMap<String, usize> = BTreeMap::new();
    let (mut again, mut taken_over) = (0, 0);
    for job in &jobs {
        let is_result = |r: &Reply| r.kind == RESULT;
        let replies = site.broker.until(job, |replies| replies.iter().any(is_result)).await;
        let result = &replies.iter().find(|r| is_result(r)).unwrap().body;
        assert_eq!(result["status"], "succeeded", "{result:#}");
        *by.entry(result["worker"].as_str().unwrap().to_owned()).or_default() += 1;
        // Each attempt that began says so, under its own number.
        let begun: Vec<&Reply> = replies.iter().filter(|r| r.kind == STARTED).collect();
        let attempts: BTreeSet<u64> = begun.iter().map(|r| r.body["attempt"].as_u64().unwrap()).collect();
        assert_eq!(attempts.len(), begun.len(), "two runs under one number: {replies:#?}");
        let last = result["attempt"].as_u64().unwrap();
        assert_eq!(Some(&last), attempts.last());
        again += usize::from(last > 1);
        for earlier in begun.iter().filter(|r| r.body["attempt"].as_u64() != Some(last)) {
            assert_eq!(earlier.body["worker"], hasty_name.as_str(), "only it stops what runs");
            taken_over += 1;
        }
    }
    println!(
        "{} jobs while two of four workers went: {again} given out again, {taken_over} of them begun before; {by:?}",
        jobs.len()
    );
    assert!(by.len() >= 2 && by.contains_key(&patient_name), "{by:?}");
    // The others were handed back before they began: the broker counts those too.
    assert!((1..=again).contains(&taken_over), "{again} {taken_over}");
    // Nothing more comes, and nothing waits: exactly one result each.
    until_quiet(&workers).await;
    let results = |job| site.broker.so_far(job).iter().filter(|r| r.kind == RESULT).count();
    assert!(jobs.iter().all(|job| results(job) == 1));
    assert_eq!(site.broker.ready(&site.broker.pool_queue("many")).await, 0);
    assert_eq!(site.broker.ready(&site.broker.dead()).await, 0);
    for worker in workers {
        assert!(worker.stop().await.success());
    }
}
