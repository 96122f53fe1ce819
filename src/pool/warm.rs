//! One container's way: created, attached, started, ready, then idle until it is handed over or dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::driver::{Command, Grant};
use super::slots::{Reason, SlotId};
use super::{Lease, Ticket};
use crate::config::PoolConfig;
use crate::contract::PoolName;
use crate::engine::link::{Frame, Link, LinkError};
use crate::engine::{
    CONFIG_LABEL, ContainerId, ContainerSpec, Engine, EngineError, Image, POOL_LABEL, WORKER_LABEL,
};

/// How long a started container may take to say READY. It needs milliseconds.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a container did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The engine said no.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its stream ended before READY.
    #[error(
        "{0} before it was ready; does the image's user, runtime or security option keep init from running?"
    )]
    Link(#[from] LinkError),
    /// It said something else first.
    #[error("container {0}: its init said {1:?} where READY was due")]
    Unexpected(ContainerId, Frame),
    /// It said nothing.
    #[error("container {0} was started but said nothing within {READY_TIMEOUT:?}")]
    Silent(ContainerId),
}

/// What all containers of a pool are made from.
pub(super) struct Recipe {
    pub engine: Arc<dyn Engine>,
    pub worker: String,
    pub pool: PoolName,
    pub config: Arc<PoolConfig>,
    prepared: Mutex<Option<Prepared>>,
}

/// What the engine has to have before the first container: looked at once, and again after a failure.
#[derive(Clone)]
struct Prepared {
    image: Arc<Image>,
    init_volume: String,
}

impl Recipe {
    pub fn new(engine: Arc<dyn Engine>, worker: String, pool: PoolName, config: Arc<PoolConfig>) -> Recipe {
        Recipe { engine, worker, pool, config, prepared: Mutex::new(None) }
    }

    async fn prepare(&self) -> Result<Prepared, EngineError> {
        let mut prepared = self.prepared.lock().await;
        if let Some(ready) = &*prepared {
            return Ok(ready.clone());
        }
        self.engine.info().await?;
        let image = self.engine.image(&self.config.image, self.config.pull).await?;
        let init_volume = self.engine.install_init(&image).await?;
        let made = Prepared { image: Arc::new(image), init_volume };
        *prepared = Some(made.clone());
        Ok(made)
    }

    fn spec(&self, prepared: &Prepared) -> ContainerSpec {
        // Derived from nothing that could come twice: a create that failed may have left its name behind.
        let unique = uuid::Uuid::now_v7().simple().to_string();
        ContainerSpec {
            name: format!("prewarm-{}-{}", self.pool, &unique[12..]),
            image: prepared.image.id.clone(),
            init_volume: prepared.init_volume.clone(),
            labels: BTreeMap::from([
                (WORKER_LABEL.into(), self.worker.clone()),
                (POOL_LABEL.into(), self.pool.to_string()),
                (CONFIG_LABEL.into(), digest(&self.config, prepared)),
            ]),
            pool: Arc::clone(&self.config),
        }
    }
}

/// Of everything that makes a pool's containers interchangeable.
fn digest(config: &PoolConfig, prepared: &Prepared) -> String {
    let all = format!("{config:?}\0{}\0{}", prepared.image.id, prepared.init_volume);
    Sha256::digest(all.as_bytes()).iter().take(6).map(|b| format!("{b:02x}")).collect()
}

/// Makes a slot's container ready, beginning `after` a moment, then keeps it until it is handed over, dies, or is no longer
/// wanted.
pub(super) async fn keep(
    recipe: Arc<Recipe>,
    slot: SlotId,
    commands: mpsc::UnboundedSender<Command>,
    after: Duration,
) {
    tokio::time::sleep(after).await;
    let begun = Instant::now();
    let mut container = None;
    let (mut link, image) = match warm_up(&recipe, &mut container).await {
        Ok(warm) => warm,
        Err(error) => {
            // The image or the init volume may be what is missing: look again before the next one.
            *recipe.prepared.lock().await = None;
            let _ = commands.send(Command::Failed { slot, container, error: error.to_string() });
            return;
        }
    };
    let (handoff, mut granted) = oneshot::channel();
    let ready = Command::Ready { slot, container: link.container().clone(), handoff, after: begun.elapsed() };
    if commands.send(ready).is_err() {
        return;
    }
    // What the stream says comes first: a container that has died is not to be handed over.
    tokio::select! {
        biased;
        said = link.recv() => {
            tracing::debug!(container = %link.container(), ?said, "an idle container ended");
            // Granted in this very moment: whoever waits gets another.
            granted.close();
            let _ = commands.send(Command::Died { slot, grant: granted.try_recv().ok() });
        }
        grant = &mut granted => {
            // The driver has dropped its end: the container is to be removed.
            let Ok(Grant { reply, kind, .. }) = grant else { return };
            let ticket = Ticket { slot, reason: Reason::Doubt, commands };
            let lease = Lease { link, image, kind, waited: Duration::ZERO, ticket };
            // Nobody there any more: the lease comes back and is dropped, which retires the container.
            let _ = reply.send(lease);
        }
    }
}

async fn warm_up(
    recipe: &Recipe,
    container: &mut Option<ContainerId>,
) -> Result<(Link, Arc<Image>), WarmError> {
    let prepared = recipe.prepare().await?;
    let id = recipe.engine.create(&recipe.spec(&prepared)).await?;
    *container = Some(id.clone());
    let stream = recipe.engine.attach(&id).await?;
    let mut link = Link::new(id.clone(), stream);
    recipe.engine.start(&id).await?;
    match tokio::time::timeout(READY_TIMEOUT, link.recv()).await {
        Ok(Ok(Frame::Ready)) => Ok((link, prepared.image)),
        Ok(Ok(other)) => Err(WarmError::Unexpected(id, other)),
        Ok(Err(e)) => Err(e.into()),
        Err(_) => Err(WarmError::Silent(id)),
    }
}
