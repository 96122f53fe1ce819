//! Finds containers that no worker holds any more, and removes them.
//!
//! A container that runs has an init that ends by itself when its worker's stream does, so what is left to find is little:
//! containers that ended without the engine removing them (it was restarted, say), such as were created by a
//! worker that died before it could start them, and paused ones, whose init can't notice anything.
//!
//! Whether a worker lives is known of those on the same host, by their [`presence`] file: everything of a dead one goes at once,
//! whatever its name and its containers' states, and nothing of a living one is touched. Where there is no such file, a
//! worker cares for what bears its own name, and takes only what no living worker of that name can have: what ended, and what
//! was created or paused and is seen so twice, a whole interval apart. So no clocks are compared.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Owner;
use super::presence::{self, Life};
use crate::engine::{ContainerId, ContainerState, Engine, EngineError, INSTANCE_LABEL, Listed, WORKER_LABEL};

/// Least time between two sweeps.
const INTERVAL: Duration = Duration::from_secs(120);

/// Time between two sweeps where a request to the engine may take `request`: longer than the three that make and start
/// a container, so that what is seen twice isn't being started.
pub fn interval(request: Duration) -> Duration {
    INTERVAL.max(request.saturating_mul(4))
}

/// One worker's sweep.
#[derive(Debug)]
pub struct Sweep {
    owner: Owner,
    presence: Option<PathBuf>,
    /// What the last sweep saw created or paused, and had no other reason to remove.
    suspects: HashSet<ContainerId>,
    /// Dead workers of which the last sweep found nothing any more.
    gone: BTreeSet<String>,
}

impl Sweep {
    /// Sweeps for this worker; `presence` is where presence files are.
    pub fn new(owner: Owner, presence: Option<PathBuf>) -> Sweep {
        Sweep { owner, presence, suspects: HashSet::new(), gone: BTreeSet::new() }
    }

    /// Looks once, and gives how many containers it removed.
    ///
    /// # Errors
    /// If the engine gives no list. What could not be removed is found again next time.
    pub async fn once(&mut self, engine: &dyn Engine) -> Result<usize, EngineError> {
        let listed = engine.list(WORKER_LABEL, None).await?;
        let mut suspects = HashSet::new();
        let mut gone = self.presence.as_deref().map(presence::dead).unwrap_or_default();
        let mut removed = 0;
        for found in listed {
            let instance = found.labels.get(INSTANCE_LABEL).cloned().unwrap_or_default();
            let life = self.life(&instance);
            gone.remove(&instance);
            let namesake = found.labels.get(WORKER_LABEL) == Some(&self.owner.worker);
            let suspect = matches!(found.state, ContainerState::Created | ContainerState::Paused);
            let abandoned = match (life, found.state) {
                (Life::Dead, _) => true,
                (Life::Alive, _) => false,
                (Life::Unknown, _) if !namesake => false,
                (Life::Unknown, ContainerState::Running) => false,
                (Life::Unknown, ContainerState::Ended) => true,
                // A living worker doesn't take so long.
                (Life::Unknown, ContainerState::Created) => self.suspects.contains(&found.id),
                // Somebody may have paused a job that runs, to look at it.
                (Life::Unknown, ContainerState::Paused) => {
                    instance != self.owner.instance && self.suspects.contains(&found.id)
                }
            };
            if abandoned {
                removed += usize::from(remove(engine, &found, &instance).await);
            } else if suspect {
                suspects.insert(found.id);
            }
        }
        // Twice, since the engine may still carry out what a dead worker had asked for.
        if let Some(dir) = &self.presence {
            self.gone.intersection(&gone).for_each(|instance| presence::forget(dir, instance));
        }
        self.suspects = suspects;
        self.gone = gone;
        Ok(removed)
    }

    fn life(&self, instance: &str) -> Life {
        // Of itself this worker knows that some may have been created without its knowing: a request that failed and was
        // carried out all the same.
        if instance == self.owner.instance {
            return Life::Unknown;
        }
        self.presence.as_deref().map_or(Life::Unknown, |dir| presence::look(dir, instance))
    }
}

async fn remove(engine: &dyn Engine, found: &Listed, instance: &str) -> bool {
    let worker = found.labels.get(WORKER_LABEL).map_or("", String::as_str);
    match engine.remove(&found.id).await {
        Ok(()) => {
            tracing::debug!(container = %found.id, worker, instance, state = ?found.state, "swept");
            true
        }
        // One that can't be removed must not keep the others.
        Err(error) => {
            tracing::warn!(container = %found.id, "not swept: {error}");
            false
        }
    }
}

/// Sweeps at once and then at intervals, for ever.
pub async fn run(engine: Arc<dyn Engine>, mut sweep: Sweep, every: Duration) {
    let mut interval = tokio::time::interval(every);
    loop {
        interval.tick().await;
        match sweep.once(&*engine).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "swept containers that a worker had left behind"),
            Err(error) => tracing::debug!("sweep failed, next one in {every:?}: {error}"),
        }
    }
}
