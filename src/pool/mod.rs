//! The warm pools: containers that have everything done except the last step.
//!
//! [`slots`] is the pure state machine, with the diagram; [`planner`] says, as purely, how many are to be idle, from
//! [`demand`] by the formula of [`sizing`]; `driver` is the one task that acts on both; `warm` one container's way from
//! creation to the hand-over, made by the pool's `recipe`. `health` compares with what the engine says, `images` looks
//! whether an image is another now, and [`sweep`] finds what no worker holds any more. What the rest of the program sees
//! is here: [`Pools`], from which a [`Lease`] is taken.
//!
//! A lease touches no engine and no disk: a message to the driver, one to the container's own task, and the stream
//! to init changes hands.

pub mod demand;
mod driver;
mod health;
mod images;
mod metrics;
pub mod planner;
pub mod presence;
mod recipe;
pub mod sizing;
pub mod slots;
mod status;
pub mod sweep;
mod warm;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::config::PoolConfig;
use crate::contract::PoolName;
use crate::contract::event::LeaseKind;
use crate::engine::link::Link;
use crate::engine::{ContainerId, Engine, INSTANCE_LABEL, Image, WORKER_LABEL};
use crate::init::wire::Exited;
use crate::metrics::Metrics;
use crate::retry::Backoff;
use driver::{Command, Driver, Leftovers, Managed};
pub(crate) use driver::{PLAN_EVERY, REFILL_GRACE, bounds, limits};
use metrics::{PoolMetrics, PoolSeries};
use planner::{Host, Planner};
use recipe::Recipe;
use slots::{PoolIndex, Reason, SlotId, Slots, WaiterId};
pub use status::{ContainerStatus, PoolStatus};

/// Whose containers these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The worker's name; another life of it has the same.
    pub worker: String,
    /// This very process.
    pub instance: String,
}

impl Owner {
    /// A new life of a worker.
    pub fn new(worker: &str) -> Owner {
        Owner { worker: worker.into(), instance: uuid::Uuid::now_v7().to_string() }
    }

    /// What its containers bear.
    fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (WORKER_LABEL.into(), self.worker.clone()),
            (INSTANCE_LABEL.into(), self.instance.clone()),
        ])
    }
}

/// The way to the pools; cheap to clone.
#[derive(Clone)]
pub struct Pools {
    entries: Arc<BTreeMap<PoolName, Entry>>,
    commands: mpsc::UnboundedSender<Command>,
    waiters: Arc<AtomicU64>,
    look_at_images: Arc<Notify>,
    engine: Arc<dyn Engine>,
    owner: Owner,
}

struct Entry {
    index: PoolIndex,
    config: watch::Receiver<Arc<PoolConfig>>,
    able: watch::Receiver<bool>,
    series: PoolSeries,
}

/// Why no container was leased.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// No such pool is configured here.
    #[error("pool {0} is not configured on this worker")]
    Unknown(PoolName),
    /// None became ready in time.
    #[error("no container of pool {pool} became ready within {within:?}{}", .cause.as_ref().map(|c| format!("; the last failure: {c}")).unwrap_or_default())]
    Timeout {
        /// The pool.
        pool: PoolName,
        /// How long it was waited for.
        within: Duration,
        /// What the last creation in this pool failed with, if it did.
        cause: Option<String>,
    },
    /// The pools are shutting down.
    #[error("the worker is shutting down")]
    Closed,
}

/// The right to run one job in one container. Dropped, the container is retired; only [`Lease::ended`] and
/// [`Lease::not_executed`] may bring it back.
pub struct Lease {
    /// The stream to the container's init.
    pub link: Link,
    /// The image that the container was made from.
    pub image: Arc<Image>,
    /// The configuration that it was made from; the pool's may be another by now.
    pub config: Arc<PoolConfig>,
    /// Whether the container was there at once.
    pub kind: LeaseKind,
    /// How long the lease was waited for.
    pub waited: Duration,
    ticket: Ticket,
    /// The way back to the task that keeps the container, if it may serve again.
    back: Option<oneshot::Sender<Link>>,
}

impl Lease {
    /// The container.
    pub fn container(&self) -> &ContainerId {
        self.link.container()
    }

    /// Says that the container served its job to the end. Otherwise a dropped lease is taken for a doubtful one. It
    /// serves again if its pool isolates jobs by namespaces and nothing speaks against it.
    pub fn ended(mut self, exited: &Exited) {
        if exited.left_behind {
            return;
        }
        // Who was short of memory may have left init short of it too.
        if exited.oom_kills > 0 {
            self.back = None;
        }
        self.give_back();
    }

    /// Says that there was no job after all: its entrypoint can't be executed.
    pub fn not_executed(self) {
        self.give_back();
    }

    fn give_back(self) {
        let Lease { link, mut ticket, back, .. } = self;
        ticket.reason = Reason::Used;
        if let Some(back) = back
            && back.send(link).is_ok()
        {
            ticket.slot = None;
        }
    }
}

/// Tells the driver that the lease ended, when it is dropped, unless the container came back.
pub(crate) struct Ticket {
    slot: Option<SlotId>,
    reason: Reason,
    commands: mpsc::UnboundedSender<Command>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            // A driver that is gone has removed its containers already.
            let _ = self.commands.send(Command::Released(slot, self.reason));
        }
    }
}

impl Pools {
    /// Starts the pools: their first containers are being created when this returns. Must be called in a runtime.
    pub fn start(
        engine: Arc<dyn Engine>,
        owner: &Owner,
        configs: &BTreeMap<PoolName, PoolConfig>,
        host: Host,
        image_check: Duration,
        metrics: &Metrics,
    ) -> Pools {
        let (commands, inbox) = mpsc::unbounded_channel();
        let metrics = PoolMetrics::new(metrics);
        let mut managed = Vec::new();
        let mut entries = BTreeMap::new();
        for (index, (name, config)) in configs.iter().enumerate() {
            let config = Arc::new(config.clone());
            let (able, able_now) = watch::channel(false);
            let (configured, config_now) = watch::channel(Arc::clone(&config));
            let series = metrics.of(name);
            entries.insert(
                name.clone(),
                Entry { index: PoolIndex(index), config: config_now, able: able_now, series: series.clone() },
            );
            managed.push(Managed {
                recipe: Arc::new(Recipe {
                    engine: Arc::clone(&engine),
                    owner: owner.clone(),
                    pool: name.clone(),
                    config,
                }),
                prepared: None,
                preparing: None,
                pulled: false,
                backoff: Backoff::default(),
                mistrusted: None,
                able,
                config: configured,
                last_failure: None,
                image: None,
                complained: false,
                series,
            });
        }
        let bounds: Vec<_> = configs.values().map(driver::bounds).collect();
        let limits: Vec<_> = configs.values().map(driver::limits).collect();
        let slots = Slots::new(&bounds, host.into());
        let planner = Planner::new(host, &limits, driver::now(), rand::random);
        tokio::spawn(Driver::new(slots, planner, managed, commands.clone()).run(inbox));
        let pools = Pools {
            entries: Arc::new(entries),
            commands,
            waiters: Arc::new(AtomicU64::new(0)),
            look_at_images: Arc::default(),
            engine,
            owner: owner.clone(),
        };
        tokio::spawn(health::watch(pools.clone()));
        tokio::spawn(images::watch(pools.clone(), image_check));
        pools
    }

    /// Waits for a container of a pool, at most `within`.
    ///
    /// Cancel safe: a caller that goes away is not served, and a container that was already on its way is retired.
    ///
    /// # Errors
    /// [`LeaseError`]
    pub async fn lease(&self, pool: &PoolName, within: Duration) -> Result<Lease, LeaseError> {
        let entry = self.entry(pool)?;
        let begun = Instant::now();
        let waiter = WaiterId(self.waiters.fetch_add(1, Ordering::Relaxed));
        let (reply, granted) = oneshot::channel();
        let command = Command::Lease { pool: entry.index, waiter, reply };
        self.commands.send(command).map_err(|_| LeaseError::Closed)?;
        // From here on a caller that goes away must leave the line.
        let _leave = Leave { pool: entry.index, waiter, commands: &self.commands };
        match tokio::time::timeout(within, granted).await {
            Ok(Ok(mut lease)) => {
                lease.waited = begun.elapsed();
                entry.series.wait.observe(lease.waited.as_secs_f64());
                entry.series.leases(lease.kind).inc();
                Ok(lease)
            }
            Ok(Err(_)) => Err(LeaseError::Closed),
            Err(_) => {
                let cause =
                    self.status().await.into_iter().find(|s| s.pool == *pool).and_then(|s| s.last_failure);
                Err(LeaseError::Timeout { pool: pool.clone(), within, cause })
            }
        }
    }

    /// Follows whether a pool's containers can be started: `false` from a failure to the next success, before
    /// the first one, and while the pools are closed.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`]
    pub fn able(&self, pool: &PoolName) -> Result<watch::Receiver<bool>, LeaseError> {
        Ok(self.entry(pool)?.able.clone())
    }

    /// A pool's configuration as it is now.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`]
    pub fn config(&self, pool: &PoolName) -> Result<Arc<PoolConfig>, LeaseError> {
        Ok(Arc::clone(&self.entry(pool)?.config.borrow()))
    }

    /// Configures a pool otherwise. Idle containers are replaced one by one if the new configuration makes other ones;
    /// running jobs finish as they began.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`]
    pub fn reload(&self, pool: &PoolName, config: PoolConfig) -> Result<(), LeaseError> {
        let index = self.entry(pool)?.index;
        self.commands.send(Command::Reload(index, Arc::new(config))).map_err(|_| LeaseError::Closed)
    }

    /// Looks whether a pool's image is another now, and pulls it first where the pool always pulls.
    pub fn check_images(&self) {
        self.look_at_images.notify_one();
    }

    /// The names of all pools.
    pub fn names(&self) -> impl Iterator<Item = &PoolName> {
        self.entries.keys()
    }

    /// How the pools are now; empty when they have been closed.
    pub async fn status(&self) -> Vec<PoolStatus> {
        let (reply, status) = oneshot::channel();
        let _ = self.commands.send(Command::Status(reply));
        status.await.unwrap_or_default()
    }

    /// Retires all containers: idle ones at once, leased ones when they are released. Returns when
    /// every one is gone; the caller bounds the time. False if one may be left that only a sweep can find.
    pub async fn close(&self) -> bool {
        let (reply, closed) = oneshot::channel();
        let _ = self.commands.send(Command::Drain(reply));
        match closed.await {
            Ok(Leftovers::Possible) => health::clear(self).await,
            // Most often there is nothing to look for.
            Ok(Leftovers::None) | Err(_) => true,
        }
    }

    fn entry(&self, pool: &PoolName) -> Result<&Entry, LeaseError> {
        self.entries.get(pool).ok_or_else(|| LeaseError::Unknown(pool.clone()))
    }
}

struct Leave<'a> {
    pool: PoolIndex,
    waiter: WaiterId,
    commands: &'a mpsc::UnboundedSender<Command>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Leave(self.pool, self.waiter));
    }
}
