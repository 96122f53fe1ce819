//! One pool, as the driver sees it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{Isolation, PoolConfig};
use crate::pool::metrics::PoolSeries;
use crate::pool::planner::{self, Limits};
use crate::pool::recipe::{Prepared, Recipe};
use crate::pool::slots::{Bounds, Serves};
use crate::retry::Backoff;

/// One pool, as the driver sees it.
pub(in crate::pool) struct Managed {
    pub recipe: Arc<Recipe>,
    /// None while the engine may lack what the recipe needs.
    pub prepared: Option<Prepared>,
    /// The task that sees to that.
    pub preparing: Option<Preparing>,
    /// Whether this recipe's image has been pulled as its configuration says.
    pub pulled: bool,
    pub backoff: Backoff,
    /// When a container last ended soon after it was ready.
    pub mistrusted: Option<Instant>,
    pub able: watch::Sender<bool>,
    pub config: watch::Sender<Arc<PoolConfig>>,
    pub last_failure: Option<String>,
    /// The image of the containers that are made now.
    pub image: Option<String>,
    /// Whether it has been said that the goal is out of reach.
    pub complained: bool,
    pub series: PoolSeries,
}

/// What a pool may have, from its configuration.
pub(crate) fn bounds(config: &PoolConfig) -> Bounds {
    Bounds {
        slots: config.idle.max + config.concurrency,
        reserved: config.idle.min,
        memory: config.memory.unwrap_or(0),
        max_age: config.idle.max_age,
        serves: serves(config),
    }
}

/// What the planner may plan with, from a pool's configuration.
pub(crate) fn limits(config: &PoolConfig) -> Limits {
    Limits {
        min: config.idle.min,
        max: config.idle.max,
        hit_target: config.idle.hit_target,
        ttl: config.idle.ttl,
        memory: config.memory.unwrap_or(0),
        serves: serves(config),
    }
}

fn serves(config: &PoolConfig) -> Serves {
    match config.isolation {
        Isolation::Container => Serves::One,
        Isolation::Namespace => Serves::Many,
    }
}

impl Managed {
    /// Says once that the goal can't be reached, and what would help.
    pub(super) fn complain(&mut self, sizing: planner::Sizing) {
        let needed = sizing.rate * sizing.warm_seconds;
        let (pool, goal) = (&self.recipe.pool, sizing.hit_target);
        match sizing.reason {
            planner::Reason::Unreachable if !self.complained => tracing::warn!(
                %pool, rate = sizing.rate, warm_seconds = sizing.warm_seconds, creators = sizing.creators,
                "jobs come faster than containers can be made: no number of idle ones reaches hit_target = {goal}. It takes \
                 more than {needed:.1} creations at once; what helps: another worker on another host, engine.creations if \
                 its host has idle cores, containers that start faster (network = \"none\" or \"host\")"
            ),
            planner::Reason::Max if !self.complained => tracing::warn!(
                %pool, rate = sizing.rate, expected_hit_rate = sizing.expected_hit_rate,
                "idle.max = {} is not enough for hit_target = {goal}: raise it, or take the misses", sizing.target
            ),
            planner::Reason::Unreachable | planner::Reason::Max => {}
            // Not at the edge, or it would be said again and again.
            _ => {
                self.complained &=
                    needed > 0.8 * sizing.creators || sizing.target * 5 > self.recipe.config.idle.max * 4
            }
        }
        self.complained |= matches!(sizing.reason, planner::Reason::Unreachable | planner::Reason::Max);
    }
}

/// What sees to it that the engine has what a pool's containers need.
pub(in crate::pool) struct Preparing {
    pub task: AbortOnDropHandle<()>,
    /// When it begins.
    pub at: Instant,
}
