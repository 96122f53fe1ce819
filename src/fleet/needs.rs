//! What a fleet asks of the broker, counted from what workers declare, open and send.

use serde::Serialize;

use crate::broker::topology::Topology;
use crate::contract::PoolName;
use crate::contract::topology::{Names, RETRY_DELAYS};

/// RabbitMQ's `channel_max` unless configured otherwise: channels of one connection.
pub const CHANNEL_MAX: usize = 2047;

/// What a fleet asks of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Needs {
    /// Quorum queues: one for jobs, one for each retry delay, for dead letters, for results that nobody takes.
    pub quorum_queues: usize,
    /// Exclusive queues: one for each worker, for what is told to all.
    pub control_queues: usize,
    /// Two for each worker: one that consumes, one that publishes.
    pub connections: usize,
    /// Two for each seat, one on either connection, and one for each worker's control queue.
    pub channels: usize,
    /// The most on one connection.
    pub channels_of_a_connection: usize,
    /// One for each seat, and one for each control queue.
    pub consumers: usize,
    /// Jobs in a second that are published, confirmed, delivered and acknowledged, all through the pool's one queue.
    pub jobs_per_second: f64,
    /// Messages in a second that workers publish, each with a confirm: `started`, `result`, and pieces of output.
    pub replies_per_second: f64,
    /// Confirms in a second, of jobs and of replies.
    pub confirms_per_second: f64,
    /// Deliveries in a second, of jobs to workers and of replies to publishers; each with its acknowledgement.
    pub deliveries_per_second: f64,
    /// Messages for each job: itself and its replies.
    pub messages_per_job: f64,
}

impl Needs {
    /// Of so many workers with so many seats each and so many jobs a second in all, each of which prints so many pieces of output.
    pub fn of(workers: usize, seats: usize, jobs_per_second: f64, pieces: f64) -> Needs {
        let names = Names::new("");
        let pool = PoolName::new("pool").ok();
        let topology = Topology::new(&names, pool.iter(), 0, &RETRY_DELAYS);
        let replies = jobs_per_second * (2.0 + pieces);
        Needs {
            quorum_queues: topology.queues.len(),
            control_queues: workers,
            connections: 2 * workers,
            channels: workers * (2 * seats + 1),
            channels_of_a_connection: seats + 1,
            consumers: workers * (seats + 1),
            jobs_per_second,
            replies_per_second: replies,
            confirms_per_second: jobs_per_second + replies,
            deliveries_per_second: jobs_per_second + replies,
            messages_per_job: 3.0 + pieces,
        }
    }
}
