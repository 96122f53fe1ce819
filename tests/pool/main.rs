//! Pools, leases and attempts over a scripted engine, for what the real one can't be brought to do on demand. Time
//! is paused: it goes on only when everybody waits, so nothing here depends on the machine.

mod again;
mod fake;
mod matrix;
mod upkeep;

use std::collections::{BTreeMap, HashSet};
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{Fake, Fate, Init};
use prewarm::attempt::{self, AttemptError, Controls, Ended, Happening, Plan, Stopped};
use prewarm::config::{IdleConfig, PoolConfig};
use prewarm::contract::PoolName;
use prewarm::contract::content::{Content, File};
use prewarm::contract::event::LeaseKind;
use prewarm::engine::link::{self, Beside, Stdin};
use prewarm::engine::{ContainerState, Engine, Op, WORKER_LABEL};
use prewarm::init::wire::End;
use prewarm::metrics::Metrics;
use prewarm::pool::planner::Host;
use prewarm::pool::sweep::Sweep;
use prewarm::pool::{Lease, LeaseError, Owner, PoolStatus, Pools};
use tokio::sync::mpsc;

const MINUTE: Duration = Duration::from_secs(60);

fn name() -> PoolName {
    PoolName::new("p").unwrap()
}

fn pools(fake: &Fake, idle: usize, concurrency: usize) -> Pools {
    let mut config = PoolConfig::of_image("image");
    config.idle = IdleConfig { min: idle, max: idle, ..config.idle };
    config.concurrency = concurrency;
    start(fake, config)
}

fn start(fake: &Fake, config: PoolConfig) -> Pools {
    start_all(fake, [(name(), config)].into(), &Metrics::new())
}

fn start_all(fake: &Fake, configs: BTreeMap<PoolName, PoolConfig>, metrics: &Metrics) -> Pools {
    let host = Host { creators: 3, containers: None, memory: None };
    Pools::start(Arc::new(fake.clone()), &Owner::new("w"), &configs, host, MINUTE, metrics)
}

async fn until(pools: &Pools, what: &str, reached: impl Fn(&PoolStatus) -> bool) -> PoolStatus {
    for _ in 0..100_000 {
        let status = pools.status().await.remove(0);
        if reached(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("not reached: {what}; {:?}", pools.status().await);
}

async fn idle(pools: &Pools, n: usize) {
    until(pools, "idle", |s| s.idle == n && s.starting == 0 && s.removing == 0).await;
}

async fn close(pools: &Pools, fake: &Fake) {
    tokio::time::timeout(10 * MINUTE, pools.close()).await.expect("the pools close");
    assert_eq!(fake.containers(), [], "nothing is left");
}

fn plan() -> Plan {
    Plan {
        start: link::start_frame(&["x".into()], &[], Stdin::Null, &Beside::default()).unwrap(),
        files: Vec::new(),
        stdin: None,
        timeout: MINUTE,
        stop_signal: 15,
        stop_grace: Duration::from_secs(5),
        collect: Duration::from_secs(5),
    }
}

async fn run(lease: Lease, controls: &Controls) -> (Result<Ended, AttemptError>, Vec<u8>) {
    let (happen, mut happenings) = mpsc::channel(attempt::CHANNEL);
    let follow = async {
        let mut printed = Vec::new();
        while let Some(happening) = happenings.recv().await {
            if let Happening::Output(_, bytes) = happening {
                printed.extend_from_slice(&Bytes::clone(&bytes));
            }
        }
        printed
    };
    tokio::join!(attempt::run(lease, plan(), controls, happen), follow)
}

#[tokio::test(start_paused = true)]
async fn a_container_serves_once_and_is_replaced() {
    let fake = Fake::new();
    let pools = pools(&fake, 2, 1);
    idle(&pools, 2).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    assert_eq!(lease.kind, LeaseKind::Hit);
    let container = lease.container().clone();
    let (ended, printed) = run(lease, &Controls::default()).await;
    assert_eq!(ended.unwrap().exited.unwrap().end, End::Code(0));
    assert_eq!(printed, container.as_str().as_bytes());
    idle(&pools, 2).await;
    assert!(!fake.containers().contains(&container));
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_container_that_dies_is_replaced_before_anyone_leases_it() {
    let fake = Fake::new();
    let pools = pools(&fake, 2, 1);
    idle(&pools, 2).await;
    let victims = fake.containers();
    victims.iter().for_each(|v| fake.kill(v));
    until(&pools, "replaced", |s| s.idle == 2 && s.removing == 0 && fake.containers() != victims).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    assert!(!victims.contains(lease.container()));
    drop(lease);
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_dies_in_the_moment_of_its_lease_costs_the_job_only_time() {
    let fake = Fake::new();
    let pools = pools(&fake, 2, 2);
    idle(&pools, 2).await;
    // Killed and leased at once, before the driver can have heard of it.
    fake.containers().iter().for_each(|v| fake.kill(v));
    let ended = loop {
        let lease = pools.lease(&name(), MINUTE).await.unwrap();
        match run(lease, &Controls::default()).await.0 {
            // What the worker takes another container for.
            Err(AttemptError::LostEarly(_)) => {}
            ended => break ended,
        }
    };
    assert_eq!(ended.unwrap().exited.unwrap().end, End::Code(0));
    idle(&pools, 2).await;
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_lost_before_it_executes_is_told_from_one_lost_later() {
    let fake = Fake::new();
    fake.behave(Init::DiesAtStart);
    let pools = pools(&fake, 1, 1);
    idle(&pools, 1).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    assert!(matches!(run(lease, &Controls::default()).await.0, Err(AttemptError::LostEarly(_))));

    fake.behave(Init::Deaf);
    until(&pools, "replaced", |s| s.idle == 1 && s.leased == 0).await;
    // That one was still of the old kind; the next is not.
    drop(pools.lease(&name(), MINUTE).await.unwrap());
    idle(&pools, 1).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    let container = lease.container().clone();
    let killer = fake.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        killer.kill(&container);
    });
    assert!(matches!(run(lease, &Controls::default()).await.0, Err(AttemptError::Lost(_))));
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_past_its_timeout_is_stopped_then_killed_then_given_up() {
    for (init, ends_after, known) in [(Init::Stubborn, 65, true), (Init::Deaf, 75, false)] {
        let fake = Fake::new();
        fake.behave(init);
        let pools = pools(&fake, 1, 1);
        idle(&pools, 1).await;
        let lease = pools.lease(&name(), MINUTE).await.unwrap();
        let begun = tokio::time::Instant::now();
        let ended = run(lease, &Controls::default()).await.0.unwrap();
        assert_eq!(begun.elapsed().as_secs(), ends_after, "{init:?}");
        assert_eq!(ended.stopped, Some(Stopped::Timeout));
        assert_eq!(ended.exited.map(|e| e.end), known.then_some(End::Signal(9)));
        close(&pools, &fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn deadlines_are_kept_though_nobody_takes_the_output() {
    let fake = Fake::new();
    fake.behave(Init::Stubborn);
    let pools = pools(&fake, 1, 1);
    idle(&pools, 1).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    let (happen, mut happenings) = mpsc::channel(1);
    let controls = Controls::default();
    let attempt = tokio::spawn(async move { attempt::run(lease, plan(), &controls, happen).await });
    // STARTED fills the channel, so EXITED can't be taken from the stream: the attempt ends without it.
    let ended = attempt.await.unwrap().unwrap();
    assert_eq!((ended.stopped, ended.exited), (Some(Stopped::Timeout), None));
    assert!(matches!(happenings.recv().await, Some(Happening::Started(_))));
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn files_may_take_longer_than_a_start() {
    let fake = Fake::new();
    fake.behave(Init::Unhurried);
    let pools = pools(&fake, 1, 1);
    idle(&pools, 1).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    let content = Content(vec![0; 200_000].into());
    let files = vec![File { path: "/f".into(), content, mode: 0o644 }];
    let plan = Plan { files, ..plan() };
    let (happen, _happenings) = mpsc::channel(attempt::CHANNEL);
    let begun = tokio::time::Instant::now();
    let ended = attempt::run(lease, plan, &Controls::default(), happen).await.unwrap();
    assert_eq!((ended.exited.unwrap().end, begun.elapsed().as_secs()), (End::Code(0), 4 * 40));
    close(&pools, &fake).await;
}

/// Only who has no room is to hurry.
#[tokio::test(start_paused = true)]
async fn a_job_that_prints_at_its_deadline_is_stopped_then_and_loses_nothing() {
    for _ in 0..20 {
        let fake = Fake::new();
        fake.behave(Init::Talkative);
        let pools = pools(&fake, 1, 1);
        idle(&pools, 1).await;
        let lease = pools.lease(&name(), MINUTE).await.unwrap();
        let (controls, begun) = (Controls::default(), tokio::time::Instant::now());
        // In a task of its own, as init: whoever is woken first is polled first.
        let attempt = {
            let controls = controls.clone();
            async move { run(lease, &controls).await.0 }
        };
        let ended = tokio::spawn(attempt).await.unwrap().unwrap();
        assert_eq!((ended.stopped, begun.elapsed().as_secs()), (Some(Stopped::Timeout), 65));
        assert!(!controls.hurry.is_cancelled());
        close(&pools, &fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_in_order_and_who_leaves_is_not() {
    let fake = Fake::new();
    let pools = pools(&fake, 0, 3);
    // One shows that the image works; until then one at a time is tried.
    drop(pools.lease(&name(), MINUTE).await.unwrap());
    idle(&pools, 0).await;
    fake.hold_starts(true);
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let p = pools.clone();
        waiting.push(tokio::spawn(async move {
            p.lease(&name(), MINUTE).await.map(|l| (tokio::time::Instant::now(), l))
        }));
        until(&pools, "in line", |s| s.waiting == waiting.len()).await;
    }
    assert_eq!(fake.asked(Op::Create), 1 + 3, "one creation for each, and no more");
    waiting.remove(1).abort();
    until(&pools, "left", |s| s.waiting == 2).await;
    fake.hold_starts(false);
    for lease in waiting {
        assert_eq!(lease.await.unwrap().unwrap().1.kind, LeaseKind::Miss);
    }
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_times_out_says_why() {
    let fake = Fake::new();
    fake.script(Op::Create, [Fate::Refused; 100]);
    let pools = pools(&fake, 1, 1);
    let error = pools.lease(&name(), Duration::from_secs(20)).await.err().unwrap();
    assert!(error.to_string().contains("the last failure: engine: create fake: as scripted"), "{error}");
    let other = PoolName::new("other").unwrap();
    assert_eq!(pools.lease(&other, MINUTE).await.err(), Some(LeaseError::Unknown(other)));
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_image_is_no_hot_loop_and_recovers() {
    let fake = Fake::new();
    fake.behave(Init::DiesBeforeReady);
    let pools = pools(&fake, 4, 1);
    tokio::time::sleep(10 * MINUTE).await;
    let tries = fake.asked(Op::Create);
    assert!((10..60).contains(&tries), "{tries} tries in ten minutes");
    assert!(fake.most() <= 4, "{}", fake.most());
    assert!(!*pools.able(&name()).unwrap().borrow());
    fake.behave(Init::Obliging);
    idle(&pools, 4).await;
    assert!(*pools.able(&name()).unwrap().borrow());
    close(&pools, &fake).await;
}

/// What an alert on an open breaker and a panel of waiting jobs are made of.
#[tokio::test(start_paused = true)]
async fn an_open_breaker_and_who_waits_are_in_the_metrics() {
    let fake = Fake::new();
    fake.behave(Init::DiesBeforeReady);
    let metrics = Metrics::new();
    let pools = start_all(&fake, [(name(), PoolConfig::of_image("image"))].into(), &metrics);
    let shows = |family: &str, value: u32| {
        metrics.render().contains(&format!("\nprewarm_{family}{{pool=\"{}\"}} {value}\n", name()))
    };
    let mended = async {
        until(&pools, "a job waits in vain", |_| shows("pool_waiting", 1) && shows("pool_able", 0)).await;
        fake.behave(Init::Obliging);
    };
    let name = name();
    let (lease, ()) = tokio::join!(pools.lease(&name, 10 * MINUTE), mended);
    assert_eq!(lease.unwrap().kind, LeaseKind::Miss);
    until(&pools, "it was served", |_| shows("pool_waiting", 0) && shows("pool_able", 1)).await;
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_never_says_ready_is_never_leased() {
    let fake = Fake::new();
    fake.behave(Init::Mute);
    let pools = pools(&fake, 1, 1);
    assert!(pools.lease(&name(), Duration::from_secs(25)).await.is_err());
    fake.behave(Init::Obliging);
    assert!(pools.lease(&name(), 10 * MINUTE).await.is_ok());
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_returns_holds_up_one_container_only() {
    let fake = Fake::new();
    // The first shows that the image works; it is the second that hangs.
    fake.script(Op::Create, [Fate::Done, Fate::Never]);
    let pools = pools(&fake, 2, 2);
    until(&pools, "the others", |s| s.idle == 1 && s.starting == 1).await;
    for _ in 0..5 {
        let lease = pools.lease(&name(), MINUTE).await.unwrap();
        assert!(run(lease, &Controls::default()).await.0.is_ok());
    }
}

/// Callers that vanish at every possible moment of a lease.
#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_nothing_behind() {
    let fake = Fake::new();
    let pools = pools(&fake, 1, 2);
    idle(&pools, 1).await;
    for polls in 0..12 {
        let name = name();
        let mut lease = Box::pin(pools.lease(&name, MINUTE));
        for _ in 0..polls {
            if poll_fn(|cx| Poll::Ready(lease.as_mut().poll(cx).is_ready())).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(lease);
        idle(&pools, 1).await;
    }
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn no_container_is_leased_twice() {
    let fake = Fake::new();
    let pools = pools(&fake, 8, 32);
    let mut jobs = Vec::new();
    for _ in 0..32 {
        let pools = pools.clone();
        jobs.push(tokio::spawn(async move {
            let mut served = Vec::new();
            for _ in 0..20 {
                let lease = pools.lease(&name(), 10 * MINUTE).await.unwrap();
                served.push(lease.container().clone());
                run(lease, &Controls::default()).await.0.unwrap();
            }
            served
        }));
    }
    let mut seen = HashSet::new();
    for job in jobs {
        for container in job.await.unwrap() {
            assert!(seen.insert(container), "leased twice");
        }
    }
    assert_eq!(seen.len(), 640);
    assert!(fake.most() <= 40, "{} at once, where 8 idle + 32 running are allowed", fake.most());
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_who_is_leased_and_refuses_the_rest() {
    let fake = Fake::new();
    let pools = pools(&fake, 2, 2);
    idle(&pools, 2).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    let closing = tokio::spawn({
        let pools = pools.clone();
        async move { pools.close().await }
    });
    fake.until_containers(1).await;
    assert!(!closing.is_finished());
    drop(lease);
    closing.await.unwrap();
    assert_eq!(fake.containers(), []);
    assert_eq!(pools.lease(&name(), MINUTE).await.err(), Some(LeaseError::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_takes_what_nobody_holds_and_nothing_else() {
    let fake = Fake::new();
    let ours = [(WORKER_LABEL, "w")];
    let running = fake.leave_behind(&ours, ContainerState::Running);
    let ended = fake.leave_behind(&ours, ContainerState::Ended);
    let created = fake.leave_behind(&ours, ContainerState::Created);
    let others = fake.leave_behind(&[(WORKER_LABEL, "v")], ContainerState::Ended);
    let mut sweep = Sweep::new(Owner::new("w"), None);
    assert_eq!(sweep.once(&fake).await.unwrap(), 1);
    assert!(!fake.containers().contains(&ended));
    let fresh = fake.leave_behind(&ours, ContainerState::Created);
    assert_eq!(sweep.once(&fake).await.unwrap(), 1);
    assert!(!fake.containers().contains(&created), "seen twice");
    let left: HashSet<_> = fake.containers().into_iter().collect();
    assert_eq!(left, HashSet::from([running, others, fresh]));
    assert_eq!(fake.list(WORKER_LABEL, None).await.unwrap().len(), 3);
}

/// On real time: what a lease costs doesn't depend on how many containers are idle. In the best of a few tries, since eight
/// leases are over in less than the machine may be doing something else.
#[tokio::test]
async fn the_cost_of_a_lease_is_flat_from_10_to_500_idle() {
    const TRIES: usize = 5;
    let mut excess = Vec::new();
    for _ in 0..TRIES {
        let (few, many) = (median_lease(10).await, median_lease(500).await);
        println!("a lease with 10 idle: {few:?}; with 500: {many:?}");
        if many < few * 3 + Duration::from_micros(300) {
            return;
        }
        excess.push((few, many));
    }
    panic!("{excess:?}");
}

async fn median_lease(idle_now: usize) -> Duration {
    let fake = Fake::new();
    let pools = pools(&fake, idle_now, 8);
    idle(&pools, idle_now).await;
    fake.hold_starts(true);
    let mut took = Vec::new();
    for _ in 0..8 {
        let begun = Instant::now();
        let lease = pools.lease(&name(), MINUTE).await.unwrap();
        took.push(begun.elapsed());
        drop(lease);
    }
    took.sort();
    fake.hold_starts(false);
    close(&pools, &fake).await;
    took[4]
}
