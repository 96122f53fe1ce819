//! Isolation `namespace`: containers that serve many jobs, one after the other.

use std::time::Duration;

use prewarm::attempt::Controls;
use prewarm::config::{IdleConfig, Isolation, PoolConfig};
use prewarm::contract::event::LeaseKind;
use prewarm::engine::{ContainerId, Op};
use prewarm::metrics::Metrics;
use prewarm::pool::Pools;

use crate::fake::{Fake, Init};
use crate::{MINUTE, close, idle, name, run, start, start_all, until};

fn config(idle: usize, concurrency: usize) -> PoolConfig {
    let mut config = PoolConfig::of_image("image");
    config.idle = IdleConfig { min: idle, max: idle, ..config.idle };
    config.isolation = Isolation::Namespace;
    config.concurrency = concurrency;
    config
}

/// Runs a job, and tells in which container, and whether that was there at once.
async fn job(pools: &Pools) -> (ContainerId, LeaseKind) {
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    let (container, kind) = (lease.container().clone(), lease.kind);
    let (ended, printed) = run(lease, &Controls::default()).await;
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!(printed, container.as_str().as_bytes());
    (container, kind)
}

#[tokio::test(start_paused = true)]
async fn a_container_is_idle_again_after_its_job() {
    let fake = Fake::new();
    let pools = start(&fake, config(1, 1));
    idle(&pools, 1).await;
    let only = fake.containers().remove(0);
    for _ in 0..50 {
        idle(&pools, 1).await;
        assert_eq!(job(&pools).await, (only.clone(), LeaseKind::Hit));
    }
    assert_eq!(fake.asked(Op::Create), 1);
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_fit_for_another_job_is_replaced() {
    for (init, patience) in [
        (Init::Doubting, Duration::from_secs(1)),
        (Init::ShortOfMemory, Duration::from_secs(1)),
        (Init::Forgetful, Duration::from_secs(121)),
    ] {
        let fake = Fake::new();
        fake.behave(init);
        let pools = start(&fake, config(1, 1));
        idle(&pools, 1).await;
        let (first, _) = job(&pools).await;
        let begun = tokio::time::Instant::now();
        tokio::time::sleep(patience - Duration::from_secs(1)).await;
        until(&pools, "replaced", |s| s.idle == 1 && !fake.containers().contains(&first)).await;
        assert!(begun.elapsed() <= patience, "{init:?}: {:?}", begun.elapsed());
        assert_ne!(job(&pools).await.0, first);
        close(&pools, &fake).await;
    }
}

/// What a job left in many files takes the kernel long.
#[tokio::test(start_paused = true)]
async fn who_is_ready_again_after_a_while_is_waited_for() {
    let fake = Fake::new();
    fake.behave(Init::Tidying);
    let metrics = Metrics::new();
    let pools = start_all(&fake, [(name(), config(1, 1))].into(), &metrics);
    idle(&pools, 1).await;
    job(&pools).await;
    let leased = async || pools.status().await[0].leased;
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(leased().await, 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(leased().await, 0);
    assert!(!metrics.render().contains("reason=\"doubt\"} 1"), "{}", metrics.render());
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn after_its_last_job_a_container_is_replaced() {
    let fake = Fake::new();
    let pools = start(&fake, PoolConfig { max_jobs: 3, ..config(1, 1) });
    let mut served = Vec::new();
    for _ in 0..9 {
        idle(&pools, 1).await;
        served.push(job(&pools).await.0);
    }
    let runs: Vec<usize> = served.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
    assert_eq!(runs, [3, 3, 3]);
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_dropped_brings_nothing_back() {
    let fake = Fake::new();
    let pools = start(&fake, config(1, 1));
    idle(&pools, 1).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    let dropped = lease.container().clone();
    drop(lease);
    until(&pools, "replaced", |s| s.idle == 1 && !fake.containers().contains(&dropped)).await;
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_moment_takes_what_comes_back() {
    let fake = Fake::new();
    let pools = start(&fake, config(1, 2));
    idle(&pools, 1).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    let only = lease.container().clone();
    let (next, _) = tokio::join!(job(&pools), async {
        tokio::time::sleep(Duration::from_millis(40)).await;
        run(lease, &Controls::default()).await
    });
    assert_eq!(next, (only, LeaseKind::Miss));
    assert_eq!(fake.asked(Op::Create), 1);
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn for_whoever_waits_longer_one_is_created() {
    let fake = Fake::new();
    let pools = start(&fake, config(1, 2));
    idle(&pools, 1).await;
    let long = pools.lease(&name(), MINUTE).await.unwrap();
    let begun = tokio::time::Instant::now();
    let (second, kind) = job(&pools).await;
    assert_eq!(kind, LeaseKind::Miss);
    assert_ne!(second, *long.container());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(fake.asked(Op::Create), 2);
    // The first comes back too: one more is idle than wanted.
    assert!(run(long, &Controls::default()).await.0.is_ok());
    idle(&pools, 1).await;
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_while_the_pools_close_is_removed() {
    let fake = Fake::new();
    let pools = start(&fake, config(1, 1));
    idle(&pools, 1).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    let controls = Controls::default();
    let (_, ended) = tokio::join!(close(&pools, &fake), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        run(lease, &controls).await
    });
    assert!(ended.0.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_of_yesterdays_image_is_replaced() {
    let fake = Fake::new();
    let pools = start(&fake, config(1, 1));
    idle(&pools, 1).await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    let old = lease.container().clone();
    fake.set_image("sha256:new");
    pools.check_images();
    until(&pools, "the new one", |s| s.idle == 1).await;
    assert!(run(lease, &Controls::default()).await.0.is_ok());
    until(&pools, "replaced", |s| s.idle == 1 && !fake.containers().contains(&old)).await;
    assert_eq!(fake.images(), ["sha256:new"]);
    close(&pools, &fake).await;
}
