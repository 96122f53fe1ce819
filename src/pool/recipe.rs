//! What all containers of a pool are made from: its configuration, the image as it is now, and where init is.

use std::path::Path;
use std::sync::Arc;

use super::Owner;
use super::slots::SlotId;
use crate::config::{Isolation, PoolConfig, Pull};
use crate::contract::PoolName;
use crate::engine::link::{Setup, SetupFrame};
use crate::engine::{
    CONFIG_LABEL, ContainerSpec, Engine, EngineError, Fault, Image, Op, POOL_LABEL, convert,
};
use crate::seccomp;
use sha2::{Digest, Sha256};

/// What containers are made from. It never changes; another image or configuration is another recipe.
pub(super) struct Recipe {
    pub engine: Arc<dyn Engine>,
    pub owner: Owner,
    pub pool: PoolName,
    pub config: Arc<PoolConfig>,
}

/// What the engine has to have before the first container: looked at once, and again after a failure.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub image: Arc<Image>,
    init_volume: String,
    /// What init is told before it is ready, if anything.
    pub setup: Option<Arc<SetupFrame>>,
}

/// The AppArmor profile that Docker runs containers under where there is AppArmor.
const APPARMOR_PROFILE: &str = "docker-default";

impl Recipe {
    /// The same with another configuration.
    pub fn with(&self, config: Arc<PoolConfig>) -> Recipe {
        let (engine, owner, pool) = (Arc::clone(&self.engine), self.owner.clone(), self.pool.clone());
        Recipe { engine, owner, pool, config }
    }

    /// Sees to it that the engine has all that containers need. `pull`: the configuration's, or less if it has been pulled
    /// before.
    pub async fn prepare(&self, pull: Pull) -> Result<Prepared, EngineError> {
        let engine = self.engine.info().await?;
        let image = self.engine.image(&self.config.image, pull).await?;
        let init_volume = self.engine.install_init(&image, &self.owner.labels()).await?;
        let setup = match self.config.isolation {
            Isolation::Container => None,
            Isolation::Namespace => {
                let profile = if engine.apparmor { APPARMOR_PROFILE } else { "" };
                let program = self.filter(&engine.architecture)?;
                Some(Arc::new(self.setup(&image, &program, profile)))
            }
        };
        Ok(Prepared { image: Arc::new(image), init_volume, setup })
    }

    /// What the kernel is to let jobs call. Without it there are none.
    fn filter(&self, architecture: &str) -> Result<Vec<u8>, EngineError> {
        let program =
            seccomp::job_filter(convert::architecture(architecture), convert::capabilities(&self.config));
        program.ok_or_else(|| EngineError {
            op: Op::Info,
            subject: format!("for isolation namespace of pool {}", self.pool),
            fault: Fault::Architecture { engine: architecture.into(), worker: std::env::consts::ARCH.into() },
        })
    }

    /// What init has to know to make worlds for jobs.
    fn setup(&self, image: &Image, program: &[u8], profile: &str) -> SetupFrame {
        let capabilities = convert::capabilities(&self.config);
        let kept: Vec<&str> = self.config.mounts.iter().map(|mount| mount.target.as_str()).collect();
        SetupFrame::new(&Setup {
            capabilities: capabilities.bits(),
            scratch: self.config.scratch,
            user: self.user(image),
            profile,
            kept: &kept,
            program,
        })
    }

    /// Who jobs are, as in Docker's `USER`.
    pub fn user<'a>(&'a self, image: &'a Image) -> &'a str {
        self.config.user.as_deref().unwrap_or(&image.user)
    }

    /// The name of a slot's container. It never comes twice, as a slot's number doesn't in one life of a worker: a create
    /// that failed may have left its name behind.
    pub fn container_name(&self, slot: SlotId) -> String {
        let instance: String = self.owner.instance.chars().filter(char::is_ascii_hexdigit).skip(12).collect();
        format!("prewarm-{}-{instance}-{}", self.pool, slot.serial())
    }

    /// A slot's container; `socket`: where the worker's socket is, if it is to be mounted.
    pub fn spec(&self, slot: SlotId, prepared: &Prepared, socket: Option<&Path>) -> ContainerSpec {
        ContainerSpec {
            name: self.container_name(slot),
            image: prepared.image.id.clone(),
            init_volume: prepared.init_volume.clone(),
            labels: {
                let mut labels = self.owner.labels();
                labels.insert(POOL_LABEL.into(), self.pool.to_string());
                labels.insert(CONFIG_LABEL.into(), digest(&self.config, prepared));
                labels
            },
            pool: Arc::clone(&self.config),
            socket: socket.map(Path::to_owned),
        }
    }
}

/// Of everything that makes a pool's containers interchangeable.
fn digest(config: &PoolConfig, prepared: &Prepared) -> String {
    let all = format!("{:?}\0{}\0{}", config.container(), prepared.image.id, prepared.init_volume);
    Sha256::digest(all.as_bytes()).iter().take(6).map(|b| format!("{b:02x}")).collect()
}
