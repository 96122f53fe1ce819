//! What all containers of a pool are made from: its configuration, the image as it is now, and where init is.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::Owner;
use super::slots::SlotId;
use crate::config::PoolConfig;
use crate::contract::PoolName;
use crate::engine::{
    CONFIG_LABEL, ContainerSpec, Engine, EngineError, INSTANCE_LABEL, Image, POOL_LABEL, WORKER_LABEL,
};

/// What containers are made from. It never changes; another image or configuration is another recipe.
pub(super) struct Recipe {
    pub engine: Arc<dyn Engine>,
    pub owner: Owner,
    pub pool: PoolName,
    pub config: Arc<PoolConfig>,
    prepared: Arc<Mutex<Option<Prepared>>>,
}

/// What the engine has to have before the first container: looked at once, and again after a failure.
#[derive(Clone)]
pub(super) struct Prepared {
    pub image: Arc<Image>,
    init_volume: String,
}

impl Recipe {
    pub fn new(engine: Arc<dyn Engine>, owner: Owner, pool: PoolName, config: Arc<PoolConfig>) -> Recipe {
        Recipe { engine, owner, pool, config, prepared: Arc::default() }
    }

    /// For other containers than before: another configuration, or another image under the same name.
    pub fn renewed(&self, config: Arc<PoolConfig>) -> Recipe {
        Recipe::new(Arc::clone(&self.engine), self.owner.clone(), self.pool.clone(), config)
    }

    /// For the same containers, with a configuration that differs in other things.
    pub fn same(&self, config: Arc<PoolConfig>) -> Recipe {
        Recipe { prepared: Arc::clone(&self.prepared), ..self.renewed(config) }
    }

    /// Sees to it that the engine has all that containers need, if that isn't known.
    pub async fn prepare(&self) -> Result<Prepared, EngineError> {
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

    /// A creation failed: image or init volume may be what is missing.
    pub async fn look_again(&self) {
        *self.prepared.lock().await = None;
    }

    /// The name of a slot's container. It never comes twice, as a slot's number doesn't in one life of a worker: a create
    /// that failed may have left its name behind.
    pub fn container_name(&self, slot: SlotId) -> String {
        let instance: String = self.owner.instance.chars().filter(char::is_ascii_hexdigit).skip(12).collect();
        format!("prewarm-{}-{instance}-{}", self.pool, slot.serial())
    }

    /// A slot's container.
    pub fn spec(&self, slot: SlotId, prepared: &Prepared) -> ContainerSpec {
        ContainerSpec {
            name: self.container_name(slot),
            image: prepared.image.id.clone(),
            init_volume: prepared.init_volume.clone(),
            labels: BTreeMap::from([
                (WORKER_LABEL.into(), self.owner.worker.clone()),
                (INSTANCE_LABEL.into(), self.owner.instance.clone()),
                (POOL_LABEL.into(), self.pool.to_string()),
                (CONFIG_LABEL.into(), digest(&self.config, prepared)),
            ]),
            pool: Arc::clone(&self.config),
        }
    }
}

/// Of everything that makes a pool's containers interchangeable.
fn digest(config: &PoolConfig, prepared: &Prepared) -> String {
    let all = format!("{:?}\0{}\0{}", config.container(), prepared.image.id, prepared.init_volume);
    Sha256::digest(all.as_bytes()).iter().take(6).map(|b| format!("{b:02x}")).collect()
}
