//! The seam to the container engine: what a pool needs of it, and nothing of how it is done.
//!
//! [`docker`] is the real one, over Docker's API (Podman answers the same). Pure translation is in [`convert`];
//! [`link`] is the worker's end of the stream that leads to a container's init.

pub mod convert;
pub mod docker;
pub mod link;
mod reach;
pub mod shortcut;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use tokio::io::AsyncWrite;

use self::shortcut::Shortcut;
use crate::config::{PoolConfig, Pull};

/// Label with the worker that a container belongs to.
pub const WORKER_LABEL: &str = "prewarm.worker";
/// Label with the very process of that worker: another life of the worker has another.
pub const INSTANCE_LABEL: &str = "prewarm.instance";
/// Label with the container's pool.
pub const POOL_LABEL: &str = "prewarm.pool";
/// Label with the digest of all that makes a pool's containers interchangeable.
pub const CONFIG_LABEL: &str = "prewarm.config";

/// Where init is in every container.
pub const INIT_DIR: &str = "/.prewarm";
/// Init's executable.
pub const INIT_PATH: &str = "/.prewarm/init";
/// Where the worker's socket is mounted; see [`shortcut`], and [`crate::init::wire::SHORTCUT`].
pub const SHORTCUT_PATH: &str = "/.prewarm/shortcut";

/// What prewarm asks of an engine. Every request is bounded in time by the implementation.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// What the engine is; also the check that it answers.
    async fn info(&self) -> Result<EngineInfo, EngineError>;

    /// The image, pulled first if `pull` says so.
    async fn image(&self, name: &str, pull: Pull) -> Result<Image, EngineError>;

    /// Makes sure that init is in its volume on the engine's host, and gives the volume's name. `image`
    /// is any image that the engine has: filling a volume takes a container, which is never started, and bears `labels`.
    async fn install_init(
        &self,
        image: &Image,
        labels: &BTreeMap<String, String>,
    ) -> Result<String, EngineError>;

    /// Creates a container. If the call fails or is cancelled, the container may exist all the same: the sweep
    /// finds it by its labels.
    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, EngineError>;

    /// Attaches to a created container's stdin, stdout and stderr. Before `start`, so that nothing is missed.
    async fn attach(&self, id: &ContainerId) -> Result<Attached, EngineError>;

    /// Starts a created container.
    async fn start(&self, id: &ContainerId) -> Result<(), EngineError>;

    /// Removes a container, whatever its state, with its anonymous volumes. Returns when it is really gone;
    /// a container that doesn't exist is gone.
    async fn remove(&self, id: &ContainerId) -> Result<(), EngineError>;

    /// Containers that carry this label (with this value, if one is given), in every state.
    async fn list(&self, label: &str, value: Option<&str>) -> Result<Vec<Listed>, EngineError>;

    /// The socket by which inits on this host can come to the worker, if there is one.
    fn shortcut(&self) -> Option<&Shortcut> {
        None
    }

    /// Follows, from now on, which containers with this label and value stop running: they ended, or were paused. The
    /// stream doesn't reconnect: when it ends something may have been missed.
    async fn stops(&self, label: &str, value: &str) -> Result<Stops, EngineError>;
}

/// Containers that stopped running, as they do.
pub type Stops = Pin<Box<dyn Stream<Item = Result<(ContainerId, Stop), EngineError>> + Send>>;

/// How a container stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It ended.
    Ended,
    /// It was paused.
    Paused,
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// For example `Docker 20.10.24`.
    pub version: String,
    /// The host's architecture as the engine names it, for example `x86_64`.
    pub architecture: String,
    /// Logical CPUs.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Whether it confines containers with AppArmor.
    pub apparmor: bool,
}

/// A container's id, as the engine gave it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(Arc<str>);

impl ContainerId {
    /// Takes an id from the engine.
    pub fn new(id: &str) -> ContainerId {
        ContainerId(id.into())
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The first twelve characters, as `docker ps` shows them.
impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an image says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The name it was asked for by.
    pub name: String,
    /// Its id, `sha256:…`.
    pub id: String,
    /// ENTRYPOINT, empty if it has none.
    pub entrypoint: Vec<String>,
    /// CMD, empty if it has none.
    pub cmd: Vec<String>,
    /// ENV, as `NAME=value`.
    pub env: Vec<String>,
    /// USER; empty: root.
    pub user: String,
    /// STOPSIGNAL, if it has one.
    pub stop_signal: Option<String>,
    /// `amd64`, `arm64`, …; empty if it doesn't say.
    pub architecture: String,
}

/// A container to create.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// A name for people; unique.
    pub name: String,
    /// The image's id: a tag may move between two creations, an id can't.
    pub image: String,
    /// The volume that holds init.
    pub init_volume: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The pool's options.
    pub pool: Arc<PoolConfig>,
    /// Where the worker's socket is on the engine's host, to be mounted beside init.
    pub socket: Option<PathBuf>,
}

/// A container's stdio, held open from before its start to its end. When `input` is dropped the container's
/// stdin ends (`StdinOnce`), which is init's dead man's switch until it speaks to the worker's socket; from then on that is.
pub struct Attached {
    /// The container's stdin.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
    /// What the container writes.
    pub output: Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>,
}

/// A container as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: ContainerId,
    /// Its name, as it was asked for.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its state.
    pub state: ContainerState,
    /// When it was created, in seconds of the engine host's clock since 1970.
    pub created: i64,
}

/// The engine's own states, as far as they matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Created and never started.
    Created,
    /// Running or restarting: its init holds the worker's stream, or is about to notice its end.
    Running,
    /// Frozen: its init can do nothing.
    Paused,
    /// Ended, dead, or being removed.
    Ended,
}

/// What was asked of the engine: the `op` label of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Information and liveness.
    Info,
    /// Inspecting an image.
    Inspect,
    /// Pulling an image.
    Pull,
    /// Putting init into its volume.
    InstallInit,
    /// Creating a container.
    Create,
    /// Attaching to it.
    Attach,
    /// Starting it.
    Start,
    /// Removing it.
    Remove,
    /// Listing containers.
    List,
    /// Following what happens to containers.
    Events,
}

impl Op {
    /// All, for metrics that must exist from the start.
    pub const ALL: [Op; 10] = [
        Op::Info,
        Op::Inspect,
        Op::Pull,
        Op::InstallInit,
        Op::Create,
        Op::Attach,
        Op::Start,
        Op::Remove,
        Op::List,
        Op::Events,
    ];

    /// As in metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Op::Info => "info",
            Op::Inspect => "inspect",
            Op::Pull => "pull",
            Op::InstallInit => "install_init",
            Op::Create => "create",
            Op::Attach => "attach",
            Op::Start => "start",
            Op::Remove => "remove",
            Op::List => "list",
            Op::Events => "events",
        }
    }
}

/// A request that failed: what was asked, of which container or image, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("engine: {} {subject}: {fault}", .op.as_str())]
pub struct EngineError {
    /// What was asked.
    pub op: Op,
    /// Of which container, image or volume.
    pub subject: String,
    /// Why it failed.
    pub fault: Fault,
}

impl EngineError {
    /// The stream of events ended, as it does when the engine stops.
    pub fn events_ended() -> EngineError {
        let fault = Fault::Refused("the stream ended".into());
        EngineError { op: Op::Events, subject: "of containers".into(), fault }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// The engine can't be reached.
    #[error("no engine answers at {host} ({reason}); is it running, and may this user open its socket?")]
    Unreachable {
        /// Where it was looked for.
        host: String,
        /// What the attempt gave.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
    /// There is no such container, image or volume.
    #[error("not found: {0}")]
    NotFound(String),
    /// The engine refused, and gave a reason.
    #[error("{0}")]
    Refused(String),
    /// The engine's architecture isn't the one that this worker's init is built for.
    #[error(
        "the engine's host is {engine}, this worker and its init are {worker}; run a worker built for {engine}"
    )]
    Architecture {
        /// The engine's.
        engine: String,
        /// This program's.
        worker: String,
    },
}
