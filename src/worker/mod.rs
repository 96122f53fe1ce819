//! The story: one delivery from receipt to settlement.
//!
//! ```text
//! Delivery ─► decode ─► lease ─► START ─► output ─► EXITED ─► release ─► result, confirmed ─► ack
//!                │ rejected   │ none          │ lost                        ▲
//!                └────────────┴───────────────┴── disposition ──────────────┘
//! ```
//!
//! A container that is lost when it was told to start the job may have begun it. Then the delivery goes back as another attempt, at
//! once; nothing runs twice under one number.
//!
//! A delivery that comes back while its job is in hand, or just over, is no second job: `claims.rs`. Neither is a job that is
//! published again: `remembered.rs`. Requests to all
//! workers, such as to cancel a job, come another way: `control.rs`; those who look on at a job: `onlooking.rs`.
//!
//! A pool with `concurrency = 4` has four seats. A seat has a channel of its own on either connection
//! and one job at a time, so the number of seats is the only limit on intake there has to be. `case.rs` is what a
//! seat does with one delivery; `ending.rs` how it ends for publisher and broker.

mod case;
mod claims;
mod control;
mod died;
mod ending;
mod metrics;
mod onlooking;
mod remembered;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use wildmatch::WildMatch;

use self::case::Case;
use self::claims::{Claimed, Claims, Unheard};
use self::metrics::WorkerMetrics;
use self::remembered::Remembered;
use crate::broker::{Broker, Settle};
use crate::config::WorkerConfig;
use crate::contract::PoolName;
use crate::contract::topology::Names;
use crate::failures::Failures;
use crate::metrics::Metrics;
use crate::pool::Pools;
use crate::running::Running;
use crate::secrets::PoolSecrets;

/// What all seats share.
pub struct Worker {
    config: WorkerConfig,
    retry_delays: Vec<Duration>,
    names: Names,
    pools: Pools,
    broker: Arc<dyn Broker>,
    running: Running,
    secrets: PoolSecrets,
    claims: Claims,
    remembered: Remembered,
    failures: Failures,
    room_for_onlookers: Arc<Semaphore>,
    metrics: WorkerMetrics,
}

/// When a seat is to stop.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Take no more deliveries; finish what runs.
    pub drain: CancellationToken,
    /// Stop what runs.
    pub stop: CancellationToken,
}

impl Worker {
    /// A worker over these pools and this broker.
    #[expect(clippy::too_many_arguments, reason = "what all seats share, each of another kind")]
    pub fn new(
        config: WorkerConfig,
        retry_delays: Vec<Duration>,
        names: Names,
        pools: Pools,
        broker: Arc<dyn Broker>,
        running: Running,
        secrets: PoolSecrets,
        metrics: &Metrics,
    ) -> Worker {
        let metrics = WorkerMetrics::new(metrics, pools.names());
        let (claims, failures) = (Claims::default(), Failures::default());
        let remembered = Remembered::new(config.remember);
        let room_for_onlookers = onlooking::room();
        Worker {
            config,
            retry_delays,
            names,
            pools,
            broker,
            running,
            secrets,
            claims,
            remembered,
            failures,
            room_for_onlookers,
            metrics,
        }
    }

    /// The last attempts that ended badly.
    pub fn failures(&self) -> Failures {
        self.failures.clone()
    }

    /// Whether anything may be sent to this queue.
    fn may_reply_to(&self, queue: &str) -> bool {
        // The control exchange's answers go to direct reply-to queues too.
        let allowed = |pattern: &String| WildMatch::new(pattern).matches(queue);
        self.names.may_reply_to(queue) && self.config.reply_to.iter().any(allowed)
    }

    /// Takes deliveries of one pool, one at a time, until told to drain.
    pub async fn seat(&self, pool: &PoolName, shutdown: &Shutdown) {
        // The pools were made from the same configuration as the seats.
        let Ok(mut able) = self.pools.able(pool) else { return };
        let mut consumer = self.broker.consumer(pool);
        let mut publisher = self.broker.publisher();
        let mut last = None;
        loop {
            // A worker that can't run this pool's jobs leaves them to others.
            if !*able.borrow_and_update() {
                let lost = last.as_ref().is_some_and(Unheard::is_lost);
                let heard = consumer.pause().await && !lost;
                match last.take() {
                    Some(unheard) if heard => unheard.settled(),
                    Some(unheard) => unheard.heard(),
                    None => {}
                }
                tokio::select! {
                    () = shutdown.drain.cancelled() => break,
                    changed = able.wait_for(|able| *able) => if changed.is_err() { break },
                }
            }
            let delivery = tokio::select! {
                biased;
                () = shutdown.drain.cancelled() => break,
                changed = able.changed() => if changed.is_ok() { continue } else { break },
                delivery = consumer.next() => delivery,
                () = Unheard::watch(&mut last) => continue,
            };
            if let Some(unheard) = last.take() {
                Unheard::heard(unheard);
            }
            let metrics = self.metrics.of(pool);
            metrics.deliveries(delivery.redelivered).inc();
            let (claim, incoming) = match self.claims.claim(pool, delivery).await {
                Claimed::Job(claim, incoming) => (claim, incoming),
                Claimed::Over(claim) => {
                    metrics.adopted.inc();
                    tracing::info!(%pool, "a delivery came back whose job is over: acknowledged");
                    match claim.settle(Settle::Ack).await {
                        Ok(unheard) => last = Some(unheard),
                        Err(error) => tracing::warn!(%pool, "not settled: {error}"),
                    }
                    continue;
                }
                Claimed::InHand(adopted) => {
                    metrics.adopted.inc();
                    tracing::info!(%pool, "a delivery came back whose job still runs here: adopted");
                    adopted.settled().await;
                    continue;
                }
            };
            // As it is now: it may have been configured otherwise since the last job.
            let Ok(config) = self.pools.config(pool) else { break };
            let case = Case::new(self, pool, &config, &incoming);
            let span = tracing::info_span!("job", id = %case.id, pool = %pool, attempt = case.attempt);
            last = case.handle(*incoming, claim, &mut *publisher, shutdown).instrument(span).await;
        }
        consumer.pause().await;
    }
}
