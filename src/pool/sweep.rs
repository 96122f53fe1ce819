//! Finds containers that no worker holds any more, and removes them.
//!
//! Running containers are never swept: each has an init that ends by itself when its worker's stream does, so
//! one that runs has its worker. What is left to find are containers that ended without the engine removing them (it was
//! restarted, say), and such as were created by a worker that died before it could start them. Those are
//! told from ones that are just being started by being seen twice, a whole interval apart; so no clocks are
//! compared, and workers that share a host, even a name, can't sweep each other's.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{ContainerId, ContainerState, Engine, EngineError, WORKER_LABEL};

/// Least time between two sweeps.
const INTERVAL: Duration = Duration::from_secs(120);

/// Time between two sweeps where a request to the engine may take `request`: longer than the three that make and start
/// a container, so that what is seen twice isn't being started.
pub fn interval(request: Duration) -> Duration {
    INTERVAL.max(request.saturating_mul(4))
}

/// What the last sweep saw of containers that were created and not started.
#[derive(Debug, Default)]
pub struct Sweep {
    created: HashSet<ContainerId>,
}

impl Sweep {
    /// Looks once, and gives how many containers it removed.
    ///
    /// # Errors
    /// If the engine gives no list. What could not be removed is found again next time.
    pub async fn once(&mut self, engine: &dyn Engine, worker: &str) -> Result<usize, EngineError> {
        let mut removed = 0;
        let mut created = HashSet::new();
        for found in engine.list(WORKER_LABEL, Some(worker)).await? {
            let abandoned = match found.state {
                ContainerState::Running => false,
                ContainerState::Ended => true,
                ContainerState::Created => self.created.contains(&found.id),
            };
            if abandoned {
                match engine.remove(&found.id).await {
                    Ok(()) => removed += 1,
                    // One that can't be removed must not keep the others.
                    Err(error) => tracing::warn!(container = %found.id, "not swept: {error}"),
                }
            } else if found.state == ContainerState::Created {
                created.insert(found.id);
            }
        }
        self.created = created;
        Ok(removed)
    }
}

/// Sweeps at once and then at intervals, for ever.
pub async fn run(engine: Arc<dyn Engine>, worker: String, every: Duration) {
    let mut sweep = Sweep::default();
    let mut interval = tokio::time::interval(every);
    loop {
        interval.tick().await;
        match sweep.once(&*engine, &worker).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "swept containers that a worker had left behind"),
            Err(error) => tracing::debug!("sweep failed, next one in {every:?}: {error}"),
        }
    }
}
