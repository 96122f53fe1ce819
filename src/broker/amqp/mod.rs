//! [`Broker`] over RabbitMQ.
//!
//! ```text
//!  Amqp ─┬─ line "consume" ── link ─┬─ channel ── AmqpConsumer (a seat's)
//!        │                          ├─ …
//!        │                          └─ channel ── AmqpControl
//!        ├─ line "publish" ── link ─┬─ channel ── AmqpPublisher (a seat's)
//!        │   declares the topology  └─ …
//!        └─ health: /readyz and metrics
//! ```
//!
//! Two connections, because under a memory or disk alarm the broker stops reading from connections that publish: on
//! a connection of its own, acknowledgements still go through. A `line` keeps a connection up and makes it again;
//! a `link` is one such connection; consumers and publishers take a channel of the current link whenever
//! theirs is gone. All waiting for the broker is bounded by `broker.timeout`, and all trying again is not.

pub(crate) mod address;
mod consumer;
mod control;
mod explain;
mod health;
mod line;
pub(crate) mod link;
mod probe;
pub(crate) mod properties;
mod publisher;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{Level, Metadata};

pub use address::redacted;
pub use health::BrokerMetrics;
pub use probe::{ProbeReport, Server, probe};

use self::address::Addresses;
use self::consumer::AmqpConsumer;
use self::control::AmqpControl;
use self::health::{Health, Part};
use self::line::{Line, LineConfig, Prepare};
use self::link::Link;
use self::publisher::AmqpPublisher;
use super::topology::Topology;
use super::{Broker, BrokerError, Consumer, Control, Publisher};
use crate::config::{BrokerConfig, TopologyMode};
use crate::contract::PoolName;
use crate::contract::topology::Names;
use crate::retry::Backoff;

/// Between attempts on a connection that is up: they cost little, and every one that is too late costs its job.
fn channel_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// Whether a log record may be written: false for those of lapin's that show messages or credentials. It
/// logs each returned message with its body as a warning, and every frame when tracing.
///
/// The subscriber must ask this whatever the log level: no secret of a message may get into a log.
#[must_use]
pub fn may_log(metadata: &Metadata<'_>) -> bool {
    let of_lapin = metadata.target().split("::").next().is_some_and(|krate| krate == "lapin");
    !of_lapin || (*metadata.level() < Level::TRACE && metadata.target() != "lapin::returned_messages")
}

/// RabbitMQ, over two connections that are kept up.
pub struct Amqp {
    shared: Arc<Shared>,
    closing: CancellationToken,
    lines: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

/// What consumers and publishers need.
struct Shared {
    names: Names,
    worker: String,
    topology: Arc<Topology>,
    mode: TopologyMode,
    /// `broker.reply_patience`
    patience: Duration,
    consume: Line,
    publish: Line,
    health: Arc<Health>,
    /// Held while exchanges and queues are declared again: RabbitMQ answers who declares the same queue at the same moment by ending the
    /// connection. True while there is something left to be declared.
    repair_due: Mutex<bool>,
}

impl Amqp {
    /// Starts connecting, and keeps connected until [`Broker::close`]. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// If a URL is none. That the broker can't be reached is no error: it may come.
    pub fn new<'a>(
        config: &BrokerConfig,
        worker: &str,
        pools: impl IntoIterator<Item = &'a PoolName>,
        metrics: BrokerMetrics,
    ) -> Result<Amqp, BrokerError> {
        let addresses = Addresses::of(config)?;
        let names = Names::new(&config.prefix);
        let topology = Arc::new(Topology::of(config, &names, pools));
        let health = Arc::new(Health::new(metrics));
        let closing = CancellationToken::new();
        let start = |part, role, prepare| {
            let config = LineConfig {
                addresses: match part {
                    Part::Publish => addresses.for_sending(),
                    _ => addresses.clone(),
                },
                name: format!("prewarm {worker} ({role})"),
                timeout: config.timeout,
                part,
                prepare,
            };
            line::start(config, health.clone(), closing.clone())
        };
        let (consume, consuming) = start(Part::Consume, "consume", Prepare::Nothing);
        let declare = Prepare::Topology(topology.clone(), config.topology);
        let (publish, publishing) = start(Part::Publish, "publish", declare);
        let shared = Shared {
            names,
            worker: worker.to_owned(),
            topology,
            mode: config.topology,
            patience: config.reply_patience,
            consume,
            publish,
            health,
            repair_due: Mutex::new(false),
        };
        Ok(Amqp {
            shared: Arc::new(shared),
            closing,
            lines: std::sync::Mutex::new(vec![consuming, publishing]),
        })
    }

    /// Whether jobs can be taken and results delivered: both connections up, neither blocked, and every
    /// exchange and queue as needed.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.shared.health.connected()
    }
}

#[async_trait]
impl Broker for Amqp {
    fn consumer(&self, pool: &PoolName) -> Box<dyn Consumer> {
        Box::new(AmqpConsumer::new(self.shared.clone(), self.shared.names.pool_queue(pool)))
    }

    fn died(&self) -> Box<dyn Consumer> {
        Box::new(AmqpConsumer::new(self.shared.clone(), self.shared.names.died()))
    }

    fn publisher(&self) -> Box<dyn Publisher> {
        Box::new(AmqpPublisher::new(self.shared.clone()))
    }

    fn control(&self) -> Box<dyn Control> {
        Box::new(AmqpControl::new(self.shared.clone()))
    }

    async fn close(&self) {
        self.closing.cancel();
        let lines = std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner));
        for line in lines {
            // An error would be a panic there, which has been reported.
            _ = line.await;
        }
    }
}

impl Drop for Amqp {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Shared {
    /// Declares again what somebody deleted while we were connected. In mode `check` that is for somebody else to do.
    async fn repair(&self, link: &Link) {
        if self.mode == TopologyMode::Declare {
            let mut due = self.repair_due.lock().await;
            *due = true;
            self.declare_again(link, &mut due).await;
        }
    }

    /// Finishes what was broken off; false if that can't be done now. It may have left a queue without its binding: consuming from that one
    /// works, and nothing comes.
    async fn is_repaired(&self, link: &Link) -> bool {
        let mut due = self.repair_due.lock().await;
        if *due {
            self.declare_again(link, &mut due).await;
        }
        !*due
    }

    async fn declare_again(&self, link: &Link, due: &mut bool) {
        match self.topology.ensure(link, self.mode).await {
            Ok(()) => *due = false,
            Err(error) => {
                tracing::warn!(%error, "exchanges or queues were deleted and can't be declared again");
            }
        }
    }
}
