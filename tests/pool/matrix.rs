//! Every request that a lease, a creation or a removal waits for, with every fate, and everybody who waits going away at
//! every moment: nothing leaks, nothing is counted twice, nobody waits for ever.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use prewarm::attempt::Controls;
use prewarm::config::{IdleConfig, PoolConfig};
use prewarm::engine::{ContainerId, Op};
use prewarm::metrics::Metrics;
use prewarm::pool::{Lease, Pools};

use crate::fake::{Fake, Fate, Init, TIMEOUT};
use crate::{MINUTE, close, idle, name, run, start_all, until};

const FATES: [Fate; 6] =
    [Fate::Done, Fate::Refused, Fate::DoneButFailed, Fate::Slow, Fate::TimedOut, Fate::DoneButTimedOut];

struct Rig {
    fake: Fake,
    pools: Pools,
    metrics: Metrics,
}

impl Rig {
    fn new(fake: Fake) -> Rig {
        let mut config = PoolConfig::of_image("image");
        config.idle = IdleConfig { min: 2, max: 2, ..config.idle };
        config.concurrency = 2;
        let metrics = Metrics::new();
        let pools = start_all(&fake, BTreeMap::from([(name(), config)]), &metrics);
        Rig { fake, pools, metrics }
    }

    /// The sum of a family's series.
    fn sum(&self, family: &str) -> u64 {
        let text = self.metrics.render();
        let values =
            text.lines().filter(|line| line.starts_with(family)).filter_map(|l| l.rsplit(' ').next());
        values.map(|v| v.parse::<f64>().unwrap() as u64).sum()
    }

    /// Full again, with every container accounted for; then closed, with nothing left.
    async fn settles(self, about: &str) {
        idle(&self.pools, 2).await;
        self.fake.forgive();
        let status = self.pools.status().await.remove(0);
        assert_eq!((status.leased, status.waiting), (0, 0), "{about}");
        assert_eq!(status.containers.len(), 2, "{about}");
        // What a failed create made all the same is known by nobody, and found when all is compared.
        let clean = tokio::time::timeout(MINUTE, self.fake.until_containers(2)).await;
        assert!(clean.is_ok(), "{about}: {:?}", self.fake.containers());
        close(&self.pools, &self.fake).await;
        let begun = self.fake.asked(Op::Create);
        let retired = self.sum("prewarm_containers_retired_total");
        // Creations that failed before there was a container are retired too, as `failed`.
        assert!(retired >= begun as u64, "{about}: {retired} retired of {begun}");
    }
}

/// The same request fails in the first creation, and in a later one.
#[tokio::test(start_paused = true)]
async fn every_request_with_every_fate() {
    for op in Op::ALL {
        for fate in FATES {
            let about = format!("{op:?} {fate:?}");
            let fake = Fake::new();
            fake.script(op, [fate, Fate::Done, fate, fate]);
            let rig = Rig::new(fake);
            for _ in 0..5 {
                let lease = rig.pools.lease(&name(), 10 * MINUTE).await.expect(&about);
                assert!(run(lease, &Controls::default()).await.0.is_ok(), "{about}");
            }
            assert_eq!(rig.sum("prewarm_pool_leases_total"), 5, "{about}");
            rig.settles(&about).await;
        }
    }
}

/// Whoever waits goes away: after so many polls, or after so long, while the request that would have served them is in
/// every state.
#[tokio::test(start_paused = true)]
async fn waiters_that_go_away_at_every_moment_of_every_request() {
    let moments = (0..8).map(Moment::Polls).chain([1, 15, 4_000, 5_100, 59_000, 61_000].map(Moment::Millis));
    let moments: Vec<Moment> = moments.collect();
    for op in [Op::Create, Op::Attach, Op::Start, Op::Remove] {
        for fate in FATES {
            for moment in &moments {
                let about = format!("{op:?} {fate:?} {moment:?}");
                let rig = Rig::new(Fake::new());
                idle(&rig.pools, 2).await;
                // Two take what is there; the third waits for what is being made.
                let held = [lease(&rig).await, lease(&rig).await];
                rig.fake.script(op, [fate, fate]);
                leave(&rig.pools, *moment).await;
                drop(held);
                rig.settles(&about).await;
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Moment {
    Polls(u32),
    Millis(u64),
}

async fn lease(rig: &Rig) -> Lease {
    rig.pools.lease(&name(), MINUTE).await.unwrap()
}

/// Waits for a lease, and doesn't wait for its end.
async fn leave(pools: &Pools, moment: Moment) {
    let name = name();
    let mut lease = Box::pin(pools.lease(&name, 10 * MINUTE));
    match moment {
        Moment::Polls(polls) => {
            for _ in 0..polls {
                if poll_fn(|cx| Poll::Ready(lease.as_mut().poll(cx).is_ready())).await {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        Moment::Millis(ms) => {
            let _ = tokio::time::timeout(Duration::from_millis(ms), lease).await;
        }
    }
}

/// The pools are closed while a request is on its way.
#[tokio::test(start_paused = true)]
async fn closing_in_the_middle_of_every_request() {
    for op in [Op::Info, Op::Inspect, Op::InstallInit, Op::Create, Op::Attach, Op::Start, Op::Remove] {
        for fate in FATES {
            let about = format!("{op:?} {fate:?}");
            let fake = Fake::new();
            fake.script(op, [fate; 3]);
            let rig = Rig::new(fake);
            if op == Op::Remove {
                idle(&rig.pools, 2).await;
            } else {
                until(&rig.pools, "it is asked", |_| rig.fake.asked(op) > 0).await;
            }
            tokio::time::timeout(10 * TIMEOUT, rig.pools.close()).await.expect(&about);
            assert_eq!(rig.fake.containers(), [] as [ContainerId; 0], "{about}");
        }
    }
}

/// Inits that end, or say nothing, at every moment of theirs.
#[tokio::test(start_paused = true)]
async fn every_way_for_an_init_to_fail() {
    for init in [Init::DiesBeforeReady, Init::Mute, Init::DiesAtStart, Init::Deaf] {
        let fake = Fake::new();
        fake.behave(init);
        let rig = Rig::new(fake);
        let early = rig.pools.lease(&name(), Duration::from_secs(20)).await;
        if let Ok(lease) = early {
            let _ = run(lease, &Controls::default()).await;
        }
        rig.fake.behave(Init::Obliging);
        // The others of the old kind are used up.
        for _ in 0..3 {
            let lease = rig.pools.lease(&name(), 10 * MINUTE).await.unwrap();
            let _ = run(lease, &Controls::default()).await;
        }
        let lease = rig.pools.lease(&name(), 10 * MINUTE).await.unwrap();
        assert!(run(lease, &Controls::default()).await.0.is_ok(), "{init:?}");
        rig.settles(&format!("{init:?}")).await;
    }
}
