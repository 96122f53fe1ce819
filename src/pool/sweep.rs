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

/// Time between two sweeps. Longer than any start can take, since the engine's requests are bounded by less.
pub const INTERVAL: Duration = Duration::from_secs(120);

/// What the last sweep saw of containers that were created and not started.
#[derive(Debug, Default)]
pub struct Sweep {
    created: HashSet<ContainerId>,
}

impl Sweep {
    /// Looks once, and gives how many containers it removed.
    ///
    /// # Errors
    /// What the engine said; what was not removed is found again next time.
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
                engine.remove(&found.id).await?;
                removed += 1;
            } else if found.state == ContainerState::Created {
                created.insert(found.id);
            }
        }
        self.created = created;
        Ok(removed)
    }
}

/// Sweeps at once and then at intervals, for ever.
pub async fn run(engine: Arc<dyn Engine>, worker: String) {
    let mut sweep = Sweep::default();
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        match sweep.once(&*engine, &worker).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "swept containers that a worker had left behind"),
            Err(error) => tracing::debug!("sweep failed, next one in {INTERVAL:?}: {error}"),
        }
    }
}
