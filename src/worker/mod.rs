//! The story: one delivery from receipt to settlement.
//!
//! ```text
//! Delivery ─► decode ─► lease ─► START ─► output ─► EXITED ─► release ─► result, confirmed ─► ack
//!                │ rejected   │ none          │ lost                        ▲
//!                └────────────┴───────────────┴── disposition ──────────────┘
//! ```
//!
//! A pool with `concurrency = 4` has four seats. A seat has a channel of its own on either connection
//! and one job at a time, so the number of seats is the only limit on intake there has to be. `case.rs` is what a
//! seat does with one delivery; `ending.rs` how it ends for publisher and broker.

mod case;
mod ending;
mod metrics;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::case::Case;
use self::metrics::WorkerMetrics;
use crate::broker::Broker;
use crate::config::WorkerConfig;
use crate::contract::PoolName;
use crate::contract::topology::Names;
use crate::metrics::Metrics;
use crate::pool::Pools;
use crate::running::Running;

/// What all seats share.
pub struct Worker {
    config: WorkerConfig,
    retry_delays: Vec<Duration>,
    names: Names,
    pools: Pools,
    broker: Arc<dyn Broker>,
    running: Running,
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
    pub fn new(
        config: WorkerConfig,
        retry_delays: Vec<Duration>,
        names: Names,
        pools: Pools,
        broker: Arc<dyn Broker>,
        running: Running,
        metrics: &Metrics,
    ) -> Worker {
        let metrics = WorkerMetrics::new(metrics, pools.names());
        Worker { config, retry_delays, names, pools, broker, running, metrics }
    }

    /// Takes deliveries of one pool, one at a time, until told to drain.
    pub async fn seat(&self, pool: &PoolName, shutdown: &Shutdown) {
        // The pools were made from the same configuration as the seats.
        let Ok(mut able) = self.pools.able(pool) else { return };
        let mut consumer = self.broker.consumer(pool);
        let mut publisher = self.broker.publisher();
        loop {
            // A worker that can't run this pool's jobs leaves them to others.
            if !*able.borrow_and_update() {
                consumer.pause().await;
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
            };
            // As it is now: it may have been configured otherwise since the last job.
            let Ok(config) = self.pools.config(pool) else { break };
            let case = Case::new(self, pool, &config, &delivery);
            let span = tracing::info_span!("job", id = %case.id, pool = %pool, attempt = case.attempt);
            case.handle(delivery, &mut *publisher, shutdown).instrument(span).await;
        }
        consumer.pause().await;
    }
}
