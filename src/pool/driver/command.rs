//! What the driver is told, and by whom.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::PoolConfig;
use crate::contract::event::LeaseKind;
use crate::engine::{ContainerId, EngineError, Stop};
use crate::pool::recipe::{Prepared, Recipe};
use crate::pool::slots::{PoolIndex, Reason, SlotId, WaiterId};
use crate::pool::{Lease, PoolStatus};

/// What the driver is told.
pub(in crate::pool) enum Command {
    /// Somebody wants a container.
    Lease { pool: PoolIndex, waiter: WaiterId, reply: oneshot::Sender<Lease> },
    /// Whoever waited has gone, served or not.
    Leave(PoolIndex, WaiterId),
    /// A container is ready; `handoff` is the way to the task that holds it.
    Ready {
        slot: SlotId,
        container: ContainerId,
        handoff: oneshot::Sender<Grant>,
        recipe: Arc<Recipe>,
        image: String,
        /// From creation to ready.
        warmup: Duration,
        /// How long this creation took one of those that may be under way at once.
        kept_busy: Duration,
    },
    /// A container that was away with a job, for so long, is ready again.
    Returned { slot: SlotId, handoff: oneshot::Sender<Grant>, away: Duration },
    /// A container could not be made ready; it may exist.
    Failed { slot: SlotId, container: Option<ContainerId>, error: String },
    /// An idle container ended, perhaps after it was granted and before it was handed over.
    Died { slot: SlotId, grant: Option<Grant> },
    /// A recipe has been prepared, or could not be.
    Prepared { pool: PoolIndex, recipe: Arc<Recipe>, outcome: Result<Prepared, EngineError> },
    /// The engine says of an idle container that it doesn't run.
    Stopped(ContainerId, Stop),
    /// Nobody answers where the engine was.
    EngineIsAway(EngineError),
    /// The engine answers again.
    EngineIsBack,
    /// Somebody wants to know which containers there should be.
    Known(oneshot::Sender<Known>),
    /// A lease ended.
    Released(SlotId, Reason),
    /// A container is gone.
    Gone(SlotId),
    /// This is what the image of this name is now.
    Image { pool: PoolIndex, name: String, id: String },
    /// A pool is configured otherwise.
    Reload(PoolIndex, Arc<PoolConfig>),
    /// Somebody wants to know how the pools are.
    Status(oneshot::Sender<Vec<PoolStatus>>),
    /// Retire everything, and answer when nothing is left.
    Drain(oneshot::Sender<Leftovers>),
}

/// Whether the engine may have containers that the pools don't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Leftovers {
    /// All that was asked for was heard of.
    None,
    /// A request failed that may have been carried out all the same.
    Possible,
}

/// Which containers there should be.
#[derive(Debug, Default)]
pub(in crate::pool) struct Known {
    /// Idle ones.
    pub idle: Vec<ContainerId>,
    /// All whose ids are known.
    pub held: Vec<ContainerId>,
    /// The names of those that are being created.
    pub names: HashSet<String>,
}

/// To whom an idle container is handed over.
pub(in crate::pool) struct Grant {
    pub waiter: WaiterId,
    pub reply: oneshot::Sender<Lease>,
    pub kind: LeaseKind,
}
