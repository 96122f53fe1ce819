//! What a pool does without a job asking: it notices what was stopped behind its back, replaces what is old or of yesterday's
//! image, grows and shrinks, and keeps pools out of each other's way.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use prewarm::attempt::Controls;
use prewarm::config::{IdleConfig, PoolConfig};
use prewarm::contract::PoolName;
use prewarm::contract::event::LeaseKind;
use prewarm::engine::{ContainerId, Op};
use prewarm::metrics::Metrics;
use prewarm::pool::planner::{Host, Reason};
use prewarm::pool::{Owner, PoolStatus, Pools};

use crate::fake::{Fake, Fate, Init};
use crate::{MINUTE, close, idle, name, run, start, start_all, until};

fn config(min: usize, max: usize) -> PoolConfig {
    let mut config = PoolConfig::of_image("image");
    config.idle = IdleConfig { min, max, ..config.idle };
    config
}

async fn of(pools: &Pools, name: &PoolName) -> PoolStatus {
    pools.status().await.into_iter().find(|s| s.pool == *name).unwrap()
}

async fn job(pools: &Pools, pool: &PoolName) -> LeaseKind {
    let lease = pools.lease(pool, 10 * MINUTE).await.unwrap();
    let kind = lease.kind;
    assert!(run(lease, &Controls::default()).await.0.is_ok());
    kind
}

#[tokio::test(start_paused = true)]
async fn a_paused_container_is_replaced_before_anyone_leases_it() {
    for told in [true, false] {
        let fake = Fake::new();
        let pools = start(&fake, config(2, 2));
        idle(&pools, 2).await;
        let victim = fake.containers().remove(0);
        fake.pause(&victim, told);
        let begun = tokio::time::Instant::now();
        until(&pools, "replaced", |s| s.idle == 2 && !fake.containers().contains(&victim)).await;
        // Without the event the comparison finds it.
        let within = if told { Duration::from_secs(1) } else { Duration::from_secs(31) };
        assert!(begun.elapsed() <= within, "{:?}", begun.elapsed());
        close(&pools, &fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn when_events_were_lost_all_is_compared() {
    let fake = Fake::new();
    let pools = start(&fake, config(3, 3));
    idle(&pools, 3).await;
    let victim = fake.containers().remove(1);
    fake.pause(&victim, false);
    let before = fake.asked(Op::List);
    fake.lose_events();
    until(&pools, "replaced", |s| s.idle == 3 && !fake.containers().contains(&victim)).await;
    assert!(fake.asked(Op::Events) >= 2 && fake.asked(Op::List) > before);
    close(&pools, &fake).await;
}

/// The image is another now, under the same name: idle containers are replaced one by one, jobs go on hitting.
#[tokio::test(start_paused = true)]
async fn another_image_rolls_the_pool_over_without_a_dip() {
    let fake = Fake::new();
    let pools = start(&fake, config(4, 4));
    idle(&pools, 4).await;
    let running = pools.lease(&name(), MINUTE).await.unwrap();
    idle(&pools, 4).await;
    fake.set_image("sha256:new");
    let old = || fake.images().into_iter().filter(|image| image != "sha256:new").count();
    for _ in 0..1000 {
        assert_eq!(job(&pools, &name()).await, LeaseKind::Hit);
        until(&pools, "refilled", |s| {
            assert!(s.idle >= 3, "a dip: {s:?}");
            s.idle >= 4
        })
        .await;
        if old() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(old(), 1, "only what runs");
    assert_eq!(running.image.id, "sha256:fake", "what runs finishes as it began");
    drop(running);
    idle(&pools, 4).await;
    let status = pools.status().await.remove(0);
    assert_eq!((status.image_id.as_deref(), status.stale), (Some("sha256:new"), 0));
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_is_taken_over() {
    let fake = Fake::new();
    let pools = start(&fake, config(2, 2));
    idle(&pools, 2).await;
    let before: HashSet<ContainerId> = fake.containers().into_iter().collect();
    // Sizes and timeouts make no other container.
    let mut new = config(3, 3);
    new.timeout.default = Duration::from_secs(7);
    pools.reload(&name(), new.clone()).unwrap();
    idle(&pools, 3).await;
    assert!(before.is_subset(&fake.containers().into_iter().collect()));
    assert_eq!(pools.config(&name()).unwrap().timeout.default.as_secs(), 7);
    // The environment does.
    new.env = vec![("A".into(), "1".into())];
    pools.reload(&name(), new.clone()).unwrap();
    until(&pools, "replaced", |s| {
        s.idle == 3
            && s.stale == 0
            && s.removing == 0
            && before.is_disjoint(&fake.containers().into_iter().collect())
    })
    .await;
    let lease = pools.lease(&name(), MINUTE).await.unwrap();
    assert_eq!(lease.config.env, new.env);
    drop(lease);
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_replaced_without_a_dip() {
    let fake = Fake::new();
    let mut config = config(3, 3);
    config.idle.max_age = Some(10 * MINUTE);
    let pools = start(&fake, config);
    idle(&pools, 3).await;
    let first: HashSet<ContainerId> = fake.containers().into_iter().collect();
    tokio::time::sleep(9 * MINUTE).await;
    assert_eq!(fake.containers().into_iter().collect::<HashSet<_>>(), first);
    tokio::time::sleep(2 * MINUTE).await;
    until(&pools, "replaced", |s| {
        assert!(s.idle >= 3, "a dip");
        s.idle == 3 && s.removing == 0 && first.is_disjoint(&fake.containers().into_iter().collect())
    })
    .await;
    close(&pools, &fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_grows_with_its_jobs_and_shrinks_slowly_and_a_rare_one_to_nothing() {
    let fake = Fake::new();
    fake.start_takes(Duration::from_millis(200));
    let mut rare = config(0, 20);
    rare.idle.ttl = Some(30 * MINUTE);
    let pools = start(&fake, rare);
    tokio::time::sleep(MINUTE).await;
    assert_eq!((fake.containers().len(), fake.asked(Op::Create)), (0, 1), "one, to see that it can be made");
    assert!(*pools.able(&name()).unwrap().borrow());
    assert_eq!(job(&pools, &name()).await, LeaseKind::Miss);
    until(&pools, "kept", |s| s.idle == 1 && s.sizing.reason == Reason::Demand).await;
    // Bursts of six.
    for _ in 0..60 {
        let p = name();
        let burst = (0..6).map(|_| job(&pools, &p));
        futures_util::future::join_all(burst).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let grown = of(&pools, &name()).await;
    assert!(grown.target >= 6, "{grown:?}");
    tokio::time::sleep(MINUTE / 3).await;
    assert_eq!(of(&pools, &name()).await.target, grown.target, "not yet");
    tokio::time::sleep(20 * MINUTE).await;
    assert_eq!(of(&pools, &name()).await.idle, 1);
    tokio::time::sleep(30 * MINUTE).await;
    let cold = of(&pools, &name()).await;
    assert_eq!((cold.idle, cold.sizing.reason), (0, Reason::Ttl));
    close(&pools, &fake).await;
}

/// One pool's image is broken in each way; the other's jobs hit all the time.
#[tokio::test(start_paused = true)]
async fn a_broken_pool_does_not_disturb_another() {
    for init in [Init::DiesBeforeReady, Init::Mute] {
        let fake = Fake::new();
        let broken = PoolName::new("broken").unwrap();
        let mut bad = config(4, 4);
        bad.image = "bad".into();
        fake.behave_for("sha256:bad", init);
        let configs = BTreeMap::from([(broken.clone(), bad), (name(), config(3, 3))]);
        let pools = start_all(&fake, configs, &Metrics::new());
        until_named(&pools, &name(), |s| s.idle == 3).await;
        for _ in 0..300 {
            assert_eq!(job(&pools, &name()).await, LeaseKind::Hit, "{init:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(!*pools.able(&broken).unwrap().borrow());
        assert!(*pools.able(&name()).unwrap().borrow());
        let tries = fake.created_of("sha256:bad");
        assert!((5..60).contains(&tries), "{tries} tries in five minutes");
        close(&pools, &fake).await;
    }
}

async fn until_named(pools: &Pools, name: &PoolName, reached: impl Fn(&PoolStatus) -> bool) {
    for _ in 0..100_000 {
        if reached(&of(pools, name).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("not reached: {:?}", pools.status().await);
}

/// A job that waits gets the place of an idle container of another pool, if the host has no other.
#[tokio::test(start_paused = true)]
async fn a_job_that_waits_comes_before_anything_idle() {
    let fake = Fake::new();
    let other = PoolName::new("other").unwrap();
    let configs = BTreeMap::from([(name(), config(0, 3)), (other.clone(), config(0, 3))]);
    let host = Host { creators: 3, containers: Some(1), memory: None };
    let metrics = Metrics::new();
    let pools =
        Pools::start(std::sync::Arc::new(fake.clone()), &Owner::new("w"), &configs, host, MINUTE, &metrics);
    job(&pools, &name()).await;
    until_named(&pools, &name(), |s| s.idle == 1).await;
    let lease = pools.lease(&other, MINUTE).await.unwrap();
    assert_eq!(of(&pools, &name()).await.idle, 0);
    assert!(metrics.render().contains("prewarm_containers_retired_total{pool=\"p\",reason=\"budget\"} 1"));
    drop(lease);
    for _ in 0..20 {
        job(&pools, &other).await;
        job(&pools, &name()).await;
        assert!(fake.containers().len() <= 1);
    }
    assert_eq!(fake.most(), 1);
    close(&pools, &fake).await;
}

/// A pull may take half an hour: no creator waits for it.
#[tokio::test(start_paused = true)]
async fn a_pool_whose_image_is_being_pulled_holds_up_no_other() {
    let fake = Fake::new();
    let slow = PoolName::new("a-slow-one").unwrap();
    let mut pulled = config(4, 4);
    pulled.image = "slow".into();
    fake.pull_takes("slow", 30 * MINUTE);
    let configs = BTreeMap::from([(slow.clone(), pulled), (name(), config(2, 2))]);
    let pools = start_all(&fake, configs, &Metrics::new());
    until_named(&pools, &name(), |s| s.idle == 2).await;
    for _ in 0..60 {
        assert_eq!(job(&pools, &name()).await, LeaseKind::Hit);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(of(&pools, &slow).await.starting, 0);
    tokio::time::sleep(30 * MINUTE).await;
    assert_eq!(of(&pools, &slow).await.idle, 4);
    close(&pools, &fake).await;
}

/// An image whose init becomes ready and then ends is no better than one that never does.
#[tokio::test(start_paused = true)]
async fn containers_that_end_right_after_they_are_ready_are_no_hot_loop() {
    let fake = Fake::new();
    fake.behave(Init::DiesIdle);
    let pools = start(&fake, config(3, 3));
    tokio::time::sleep(10 * MINUTE).await;
    let tries = fake.asked(Op::Create);
    assert!((10..80).contains(&tries), "{tries} tries in ten minutes");
    let status = of(&pools, &name()).await;
    assert!(status.last_failure.is_some_and(|f| f.contains("after it was ready")));
    fake.behave(Init::Obliging);
    idle(&pools, 3).await;
    close(&pools, &fake).await;
}

/// An engine that refuses its events, and nothing else, is no reason to ask it all the time, nor to retry what failed.
#[tokio::test(start_paused = true)]
async fn refused_events_are_no_hot_loop() {
    let fake = Fake::new();
    fake.script(Op::Events, std::iter::repeat_n(Fate::Refused, 10_000));
    fake.behave(Init::DiesBeforeReady);
    let pools = start(&fake, config(1, 1));
    tokio::time::sleep(10 * MINUTE).await;
    assert!(fake.asked(Op::Events) < 150, "{} in ten minutes", fake.asked(Op::Events));
    assert!(fake.asked(Op::Create) < 60, "{} in ten minutes", fake.asked(Op::Create));
    close(&pools, &fake).await;
}

/// A full host is no failure: nothing was tried, so whoever waited in vain is told apart.
#[tokio::test(start_paused = true)]
async fn a_pool_that_others_shut_out_takes_no_jobs_until_there_is_room() {
    let fake = Fake::new();
    let other = PoolName::new("other").unwrap();
    let configs = BTreeMap::from([(name(), config(0, 3)), (other.clone(), config(0, 3))]);
    let host = Host { creators: 3, containers: Some(2), memory: None };
    let pools = Pools::start(
        std::sync::Arc::new(fake.clone()),
        &Owner::new("w"),
        &configs,
        host,
        MINUTE,
        &Metrics::new(),
    );
    let held = [pools.lease(&other, MINUTE).await.unwrap(), pools.lease(&other, MINUTE).await.unwrap()];
    let mut able = pools.able(&name()).unwrap();
    able.wait_for(|able| !*able).await.unwrap();
    assert!(of(&pools, &name()).await.able, "it is not broken");
    let error = pools.lease(&name(), MINUTE).await.err().unwrap();
    assert!(matches!(error, prewarm::pool::LeaseError::Timeout { cause: None, .. }), "{error}");
    drop(held);
    able.wait_for(|able| *able).await.unwrap();
    job(&pools, &name()).await;
    close(&pools, &fake).await;
}

/// Filling the volume of init takes a container, which whoever made it removes.
#[tokio::test(start_paused = true)]
async fn what_is_being_prepared_when_the_pools_close_is_waited_for_but_not_for_ever() {
    for (fate, took) in [(Fate::Slow, 4), (Fate::Never, 10)] {
        let fake = Fake::new();
        fake.script(Op::InstallInit, [fate]);
        let pools = start(&fake, config(1, 1));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = tokio::time::Instant::now();
        close(&pools, &fake).await;
        assert_eq!(begun.elapsed().as_secs(), took, "{fate:?}");
    }
}
