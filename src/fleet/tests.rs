//! The simulation against theory: where a formula is known, it is what comes out.

use super::*;
use crate::config::Isolation;
use crate::pool::REFILL_GRACE;
use crate::pool::sizing::Load;

fn fleet(workers: usize, concurrency: usize, idle: usize, warm: Times, run: Times) -> Setup {
    let mut pool = PoolConfig::of_image("");
    pool.concurrency = concurrency;
    (pool.idle.min, pool.idle.max) = (idle, idle);
    Setup {
        pool,
        host: Host { creators: 64, containers: None, memory: None },
        workers: Workers::Fixed(workers),
        pace: Pace {
            removal: Duration::ZERO,
            start: Duration::ZERO,
            settle: Duration::ZERO,
            renewal: Duration::ZERO,
            ..Pace::new(warm, run)
        },
        drain_timeout: Duration::from_secs(3600),
        worker_hours: 1e6,
        skip: 0.0,
        seed: 1,
    }
}

fn simulate(setup: &Setup, arrivals: &Arrivals) -> Outcome {
    super::simulate(setup, arrivals).expect("it ends")
}

/// One worker has an hour's job at a time, and there are a hundred: it would take four days, and not only as long as jobs come.
#[test]
fn it_takes_no_more_of_the_workers_time_than_it_may() {
    let long = Times::Constant(3600.0);
    let setup = fleet(1, 1, 1, Times::Constant(0.2), long);
    let all_at_once = Arrivals::Listed(vec![0.0; 100]);
    assert_eq!(simulate(&setup, &all_at_once).finished, 100);
    assert!(super::simulate(&Setup { worker_hours: 99.0, ..setup }, &all_at_once).is_none());
}

fn steady(rate: f64, time: f64) -> Arrivals {
    Arrivals::Random(Random::steady(rate, 1.0).until(time))
}

/// The share of jobs that wait in M/M/c.
fn erlang_c(offered: f64, servers: usize) -> f64 {
    let blocked = (1..=servers).fold(1.0, |b, n| offered * b / (n as f64 + offered * b));
    let n = servers as f64;
    n * blocked / (n - offered * (1.0 - blocked))
}

/// Seats of all workers are the servers of one queue, whoever has them. Containers are never short.
#[test]
fn the_queue_is_erlang_s() {
    const RUN: f64 = 0.01;
    for (workers, concurrency, busy) in [(1, 1, 0.7), (1, 8, 6.4), (4, 2, 6.4), (5, 4, 17.0)] {
        let (seats, rate) = (workers * concurrency, busy / RUN);
        let mut setup =
            fleet(workers, concurrency, 2 * concurrency, Times::Constant(0.1), Times::Exponential(RUN));
        setup.pool.isolation = Isolation::Namespace;
        setup.skip = 10.0;
        let out = simulate(&setup, &steady(rate, 400_000.0 / rate));
        assert!(out.hit_rate() > Some(0.9999), "{:?}", out.hit_rate());
        // Those that wait do so for an exponential time.
        let (waits, mean) = (erlang_c(busy, seats), RUN / (seats as f64 - busy));
        for share in [0.9, 0.95, 0.99] {
            let computed = (mean * (waits / (1.0 - share)).ln()).max(0.0);
            let found = out.queue_wait.at(share);
            println!(
                "{seats} seats, {busy} busy: {:.0} % wait less than {:.2} ms computed, {:.2} ms simulated",
                100.0 * share,
                1000.0 * computed,
                1000.0 * found
            );
            assert!((found - computed).abs() < 0.06 * computed + 1e-4, "{computed} {found}");
        }
    }
}

/// One worker: what `prewarm plan` says.
#[test]
fn hits_are_those_of_the_plan() {
    for (rate, creators, size) in [(5.0, 64, 3), (5.0, 3, 3), (8.0, 3, 4), (20.0, 64, 7)] {
        let mut setup = fleet(1, 1000, size, Times::Exponential(0.25), Times::Constant(1.0));
        setup.host.creators = creators;
        // A refill holds back for a moment first.
        let warm = 0.25 + REFILL_GRACE.as_secs_f64();
        let load =
            Load { rate, warm, alone: warm, variation: 1.0, dispersion: 1.0, creators: creators as f64 };
        let computed = load.misses(size)[size];
        let out = simulate(&setup, &steady(rate, 40_000.0 / rate));
        let found = 1.0 - out.hit_rate().unwrap();
        println!(
            "{rate}/s, {creators} creators, {size} idle: {:.2} % miss computed, {:.2} % simulated",
            100.0 * computed,
            100.0 * found
        );
        assert!((found / computed - 1.0).abs() < 0.08, "{computed} {found}");
    }
}

/// The broker serves seats in turn, so each worker's jobs come more evenly than at random, and miss less often.
#[test]
fn many_workers_hit_more_often_than_one_with_its_share() {
    let warm = Times::Constant(0.25);
    let one = simulate(&fleet(1, 8, 2, warm, Times::Constant(0.1)), &steady(2.0, 1500.0)).hit_rate().unwrap();
    let ten =
        simulate(&fleet(10, 8, 2, warm, Times::Constant(0.1)), &steady(20.0, 1500.0)).hit_rate().unwrap();
    assert!(ten > one + 0.01, "{one} {ten}");
}

#[test]
fn a_container_that_serves_many_is_missed_only_if_all_are_away() {
    let mut setup = fleet(1, 8, 8, Times::Constant(0.25), Times::Constant(0.5));
    setup.pool.isolation = Isolation::Namespace;
    setup.pace.renewal = Duration::from_millis(1);
    let out = simulate(&setup, &steady(8.0, 600.0));
    assert!(out.hit_rate().unwrap() > 0.99, "{:?}", out.hit_rate());
    // None is made for a job.
    assert!(out.starting_seconds < 0.25 * 20.0, "{}", out.starting_seconds);
    setup.pool.isolation = Isolation::Container;
    let each = simulate(&setup, &steady(8.0, 600.0));
    assert!(each.starting_seconds > 0.2 * 8.0 * 600.0, "{}", each.starting_seconds);
}

#[test]
fn throughput_is_what_the_seats_can_do_and_doubles_with_the_workers() {
    let all_at_once = Arrivals::Listed(vec![0.0; 2000]);
    let run = |workers| {
        let mut setup = fleet(workers, 4, 4, Times::Constant(0.1), Times::Constant(1.0));
        setup.pace.settle = Duration::from_millis(3);
        simulate(&setup, &all_at_once).throughput()
    };
    let found = [1, 2, 4].map(run);
    for (found, workers) in found.into_iter().zip([1.0, 2.0, 4.0]) {
        assert!((found / (workers * 4.0 / 1.003) - 1.0).abs() < 0.02, "{workers}: {found}");
    }
}

#[test]
fn the_same_seed_gives_the_same_and_another_something_else() {
    let mut setup = fleet(3, 4, 2, Times::Exponential(0.25), Times::Exponential(1.0));
    let run = |setup: &Setup| {
        let out = simulate(setup, &steady(9.0, 300.0));
        (out.jobs, out.hits, out.seconds.to_bits(), out.idle_seconds.to_bits())
    };
    let first = run(&setup);
    assert_eq!(run(&setup), first);
    setup.seed = 2;
    assert_ne!(run(&setup), first);
}

fn scaled(autoscaler: Autoscaler) -> Setup {
    let mut setup = fleet(0, 4, 4, Times::Constant(0.25), Times::Exponential(2.0));
    setup.workers = Workers::Scaled(autoscaler);
    setup
}

/// One job a second, then twenty for five minutes, then one again.
fn crowd() -> Arrivals {
    let rate = |t: f64| if (100.0..400.0).contains(&t) { 20.0 } else { 1.0 };
    Arrivals::Random(Random::new(1.0, 20.0, rate).until(1100.0))
}

#[test]
fn an_autoscaler_brings_workers_and_lets_them_go_and_nothing_is_lost() {
    let out = simulate(&scaled(Autoscaler::new(1, 50, 3.0)), &crowd());
    assert_eq!((out.lost(), out.attempts, out.queue_wait.count()), (0, out.finished, out.leases));
    assert!(out.most_workers > 10 && out.workers_stopped > 8, "{} {}", out.most_workers, out.workers_stopped);
    // Its workers come after it looked, took their time, and at most doubled every 15 s.
    assert!(out.queue_wait.longest() > 30.0, "{}", out.queue_wait.longest());
    let fixed = simulate(
        &Setup { workers: Workers::Fixed(out.most_workers), ..scaled(Autoscaler::new(1, 1, 1.0)) },
        &crowd(),
    );
    assert!(fixed.queue_wait.longest() < 5.0, "{}", fixed.queue_wait.longest());
    assert!(
        out.worker_seconds < 0.7 * fixed.worker_seconds,
        "{} {}",
        out.worker_seconds,
        fixed.worker_seconds
    );
}

#[test]
fn a_drain_that_is_too_short_runs_jobs_again_and_loses_none() {
    let patient = Autoscaler { stabilization: Duration::from_secs(30), ..Autoscaler::new(1, 50, 3.0) };
    let mut setup = scaled(patient);
    setup.pace.run = Times::Exponential(20.0);
    let rate = |t: f64| if t < 300.0 { 3.0 } else { 0.2 };
    let arrivals = || Arrivals::Random(Random::new(1.0, 3.0, rate).until(1200.0));
    let out = simulate(&setup, &arrivals());
    assert_eq!((out.lost(), out.attempts - out.finished), (0, 0));
    assert!(out.workers_stopped > 5, "{}", out.workers_stopped);
    setup.drain_timeout = Duration::from_secs(5);
    let hasty = simulate(&setup, &arrivals());
    assert_eq!(hasty.lost(), 0);
    assert!(hasty.attempts > hasty.finished + 5, "{} {}", hasty.attempts, hasty.finished);
}

#[test]
fn from_none_it_comes_back() {
    let rare = Arrivals::Listed(vec![0.0, 1000.0, 1000.5, 3000.0]);
    let out = simulate(&scaled(Autoscaler::new(0, 3, 4.0)), &rare);
    assert_eq!((out.finished, out.lost()), (4, 0));
    // At the next poll, and 30 s to start.
    assert!((30.0..62.0).contains(&out.queue_wait.longest()), "{}", out.queue_wait.longest());
    assert!(out.workers_stopped >= 2, "{}", out.workers_stopped);
}

#[test]
fn what_the_broker_has_to_bear_is_counted() {
    let needs = needs::Needs::of(1000, 12, 10_000.0, 0.0);
    assert_eq!((needs.quorum_queues, needs.control_queues, needs.connections), (7, 1000, 2000));
    assert_eq!((needs.channels, needs.channels_of_a_connection, needs.consumers), (25_000, 13, 13_000));
    assert_eq!((needs.messages_per_job, needs.confirms_per_second), (3.0, 30_000.0));
}
