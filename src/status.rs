//! What a worker tells of itself: over HTTP as `/status`, and on the control exchange to who asks all workers.

use std::time::Instant;

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failures::{Failure, Failures};
use crate::pool::planner::Host;
use crate::pool::{PoolStatus, Pools};
use crate::running::{Running, RunningJob};

/// Where it is looked up.
#[derive(Clone)]
pub struct View {
    /// The worker's name.
    pub worker: String,
    /// The pools.
    pub pools: Pools,
    /// What they share.
    pub host: Host,
    /// Jobs in hand.
    pub running: Running,
    /// What ended badly.
    pub failures: Failures,
    /// Whether the broker is connected.
    pub broker: watch::Receiver<bool>,
    /// Cancelled when the worker takes no more jobs.
    pub drain: CancellationToken,
    /// When the worker started.
    pub started: Instant,
}

/// All of it.
#[derive(Serialize)]
pub struct Status {
    /// The worker's name.
    pub worker: String,
    /// The version of its program.
    pub version: &'static str,
    /// Since it started.
    pub uptime_seconds: u64,
    /// Whether it can take and run jobs.
    pub ready: bool,
    /// Whether it was told to stop: its jobs go on, it takes no more.
    pub draining: bool,
    /// Why not.
    pub not_ready_because: Vec<String>,
    /// Whether it has a connection to the broker.
    pub broker_connected: bool,
    /// What the pools share.
    pub host: Host,
    /// Its pools.
    pub pools: Vec<PoolStatus>,
    /// The jobs in hand, the oldest first.
    pub jobs: Vec<RunningJob>,
    /// What ended badly, the latest first.
    pub failures: Vec<Failure>,
}

impl View {
    /// As it is now.
    pub async fn status(&self) -> Status {
        let pools = self.pools.status().await;
        let found = self.obstacles_of(&pools);
        Status {
            worker: self.worker.clone(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: found.is_empty(),
            draining: self.drain.is_cancelled(),
            not_ready_because: found,
            broker_connected: *self.broker.borrow(),
            host: self.host,
            pools,
            jobs: self.running.list(),
            failures: self.failures.list(),
        }
    }

    /// Why the worker can't take and run jobs now; empty if it can.
    pub async fn obstacles(&self) -> Vec<String> {
        self.obstacles_of(&self.pools.status().await)
    }

    fn obstacles_of(&self, pools: &[PoolStatus]) -> Vec<String> {
        let mut found = Vec::new();
        if self.drain.is_cancelled() {
            found.push("draining".into());
        }
        if !*self.broker.borrow() {
            found.push("broker: not connected".into());
        }
        if pools.is_empty() {
            found.push("pools: closed".into());
        }
        for pool in pools.iter().filter(|p| !p.able && !self.drain.is_cancelled()) {
            let why = pool.last_failure.as_deref().unwrap_or("no container has become ready yet");
            found.push(format!("pool {}: {why}", pool.pool));
        }
        found
    }
}
