//! A fleet in simulated time: workers that compete for the jobs of one pool, with nothing between them but the broker.
//!
//! ```text
//!  arrivals ──► queue ──► the seat that is free longest ──► lease ──► run ──► settle ──► the seat is free
//!                 │                                          slots, planner: the worker's own
//!            autoscaler ──► workers come after a delay, and drain
//! ```
//!
//! What decides in a worker is what decides in a real one: [`pool::slots`](crate::pool::slots) which container goes where,
//! [`pool::planner`](crate::pool::planner) how many are to be idle. Here are the things around them that take time, the broker's
//! way of giving out jobs, and an autoscaler as KEDA and Kubernetes have it ([`autoscaler`]). [`needs`] says what all that
//! asks of the broker.
//!
//! Nothing fails here: what faults do is tried on real ones (`tests/chaos`). Containers take as long to make whatever else
//! the host does; who wants that in it gives the time that was measured under load.

mod arrivals;
pub mod autoscaler;
mod chance;
pub mod needs;
mod record;
mod sim;
mod worker;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::config::PoolConfig;
use crate::pool::planner::Host;

pub use arrivals::{Arrivals, Random};
pub use autoscaler::Autoscaler;
pub use chance::{Chance, Times};
pub use record::{Outcome, Quantiles};
pub use sim::simulate;

/// What is simulated.
pub struct Setup {
    /// The pool, the same on all workers.
    pub pool: PoolConfig,
    /// Each worker's host.
    pub host: Host,
    /// How many workers there are.
    pub workers: Workers,
    /// How long things take.
    pub pace: Pace,
    /// A worker that drains stops what still runs after so long; another runs it again.
    pub drain_timeout: Duration,
    /// So many hours of all workers together are simulated at most: each computes its target twice a second, whether jobs come or not.
    pub worker_hours: f64,
    /// What happens before this time, in seconds, isn't counted: pools learn.
    pub skip: f64,
    /// The same seed gives the same outcome.
    pub seed: u64,
}

/// How many workers there are.
#[derive(Clone, Copy, Debug)]
pub enum Workers {
    /// So many, from the beginning to the end.
    Fixed(usize),
    /// As many as an autoscaler says; its least are there at the beginning.
    Scaled(Autoscaler),
}

impl Workers {
    /// Those that are there at the beginning.
    pub fn first(&self) -> usize {
        match self {
            Workers::Fixed(n) => *n,
            Workers::Scaled(autoscaler) => autoscaler.min,
        }
    }
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From the creation of a container to READY.
    pub warm: Times,
    /// From its last use until it is gone.
    pub removal: Duration,
    /// From START to the entrypoint executing.
    pub start: Duration,
    /// A job's run.
    pub run: Times,
    /// From the end of a run until the broker has the acknowledgement and its next job is here.
    pub settle: Duration,
    /// With isolation `namespace`: from the end of a run until the next job's world is made.
    pub renewal: Duration,
}

impl Pace {
    /// What containers and jobs take, and for the rest what was measured on two cores.
    pub fn new(warm: Times, run: Times) -> Pace {
        Pace {
            warm,
            run,
            removal: Duration::from_millis(100),
            start: Duration::from_millis(1),
            settle: Duration::from_millis(3),
            renewal: Duration::from_millis(2),
        }
    }
}
