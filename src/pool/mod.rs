//! The warm pools: containers that have everything done except the last step.
//!
//! [`slots`] is the pure state machine, with the diagram; [`driver`] the one task that acts on it; [`warm`]
//! one container's way from creation to the hand-over; [`sweep`] finds what no worker holds any more. What the rest of
//! the program sees is here: [`Pools`], from which a [`Lease`] is taken.
//!
//! A lease touches no engine and no disk: a message to the driver, one to the container's own task, and the stream
//! to init changes hands.

pub mod demand;
pub mod driver;
mod metrics;
pub mod planner;
pub mod sizing;
pub mod slots;
pub mod sweep;
pub mod warm;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::PoolConfig;
use crate::contract::PoolName;
use crate::contract::event::LeaseKind;
use crate::engine::link::Link;
use crate::engine::{ContainerId, Image};
use driver::Command;
use metrics::PoolSeries;
use slots::{PoolIndex, Reason, SlotId, WaiterId};

/// The way to the pools; cheap to clone.
#[derive(Clone)]
pub struct Pools {
    entries: Arc<BTreeMap<PoolName, Entry>>,
    commands: mpsc::UnboundedSender<Command>,
    waiters: Arc<AtomicU64>,
}

struct Entry {
    index: PoolIndex,
    config: Arc<PoolConfig>,
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

/// The right to run one job in one container. Dropped, the container is retired.
pub struct Lease {
    /// The stream to the container's init.
    pub link: Link,
    /// The image that the container was made from.
    pub image: Arc<Image>,
    /// Whether the container was there at once.
    pub kind: LeaseKind,
    /// How long the lease was waited for.
    pub waited: Duration,
    ticket: Ticket,
}

impl Lease {
    /// The container.
    pub fn container(&self) -> &ContainerId {
        self.link.container()
    }

    /// Says that the container served its job to the end. Otherwise a dropped lease is taken for a doubtful one. Either
    /// way the container is retired: it serves once.
    pub fn served(&mut self) {
        self.ticket.reason = Reason::Used;
    }
}

/// Tells the driver that the lease ended, when it is dropped.
pub(crate) struct Ticket {
    slot: SlotId,
    reason: Reason,
    commands: mpsc::UnboundedSender<Command>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A driver that is gone has removed its containers already.
        let _ = self.commands.send(Command::Released(self.slot, self.reason));
    }
}

impl Pools {
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

    /// Follows whether a pool's containers can be started: `false` from a failure to the next success, and before
    /// the first one.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`]
    pub fn able(&self, pool: &PoolName) -> Result<watch::Receiver<bool>, LeaseError> {
        Ok(self.entry(pool)?.able.clone())
    }

    /// A pool's configuration.
    ///
    /// # Errors
    /// [`LeaseError::Unknown`]
    pub fn config(&self, pool: &PoolName) -> Result<&Arc<PoolConfig>, LeaseError> {
        Ok(&self.entry(pool)?.config)
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
    /// every one is gone; the caller bounds the time.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        let _ = self.commands.send(Command::Drain(reply));
        let _ = closed.await;
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

/// A pool as `/status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct PoolStatus {
    /// Its name.
    pub pool: PoolName,
    /// Its image.
    pub image: String,
    /// Whether its containers can be started, as far as is known.
    pub able: bool,
    /// Idle containers wanted.
    pub target: usize,
    /// Containers being made ready.
    pub starting: usize,
    /// Containers that wait for a job.
    pub idle: usize,
    /// Containers that run a job.
    pub leased: usize,
    /// Containers being removed.
    pub removing: usize,
    /// Jobs that wait for a container.
    pub waiting: usize,
    /// What the last creation failed with, if none has succeeded since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}
