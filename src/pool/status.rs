//! The pools as `/status` shows them.

use serde::Serialize;

use super::planner::Sizing;
use super::slots::State;
use crate::contract::PoolName;
use crate::engine::ContainerId;

/// A pool.
#[derive(Clone, Debug, Serialize)]
pub struct PoolStatus {
    /// Its name.
    pub pool: PoolName,
    /// Its image.
    pub image: String,
    /// What that is, in the containers that are made now; none before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// Whether its containers can be started, as far as is known; false while the worker drains.
    pub able: bool,
    /// Fewest idle containers.
    pub idle_min: usize,
    /// Most idle containers.
    pub idle_max: usize,
    /// What each may take, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Idle containers wanted.
    pub target: usize,
    /// How the target came about.
    pub sizing: Sizing,
    /// Containers being made ready.
    pub starting: usize,
    /// Containers that wait for a job.
    pub idle: usize,
    /// Of these, such as are to be replaced: too old, or of an image or configuration that is no longer the pool's.
    pub stale: usize,
    /// Containers that run a job.
    pub leased: usize,
    /// Containers being removed.
    pub removing: usize,
    /// Jobs that wait for a container.
    pub waiting: usize,
    /// What the last creation failed with, if none has succeeded since; while the engine is away, how that shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// Its containers, the oldest first; such as are just being created have no id yet.
    pub containers: Vec<ContainerStatus>,
}

/// A container.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerStatus {
    /// Its whole id.
    pub id: String,
    /// Its state.
    pub state: &'static str,
}

impl ContainerStatus {
    pub(super) fn new(id: &ContainerId, state: State) -> ContainerStatus {
        ContainerStatus { id: id.as_str().into(), state: state.as_str() }
    }
}
