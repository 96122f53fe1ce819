//! The ways to run a job that are compared, and what each is measured from and to.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use super::measure::Sample;
use crate::config::{Isolation, PoolConfig};

/// A way to run a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// What `docker run --rm` does, through the API
    Run,
    /// What `docker exec` does in a container that is up, through the API
    Exec,
    /// A warm pool, one container for each job
    Container,
    /// A warm pool whose containers serve many jobs, each in namespaces of its own
    Namespace,
    /// A job published to a running worker's pool
    Broker,
    /// The same command on this host, without any container: the floor
    Fork,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The entrypoint is executing.
    Executing,
    /// Its first byte is here.
    FirstOutput,
    /// Its exit code is known.
    Exit,
    /// Its container is gone.
    Removed,
}

impl Step {
    /// In the order in which they come.
    pub const ALL: [Step; 4] = [Step::Executing, Step::FirstOutput, Step::Exit, Step::Removed];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Step::Executing => "executing",
            Step::FirstOutput => "first output",
            Step::Exit => "exit known",
            Step::Removed => "removed",
        }
    }
}

impl Way {
    /// In the order in which they are shown.
    pub const ALL: [Way; 6] = [Way::Run, Way::Exec, Way::Container, Way::Namespace, Way::Broker, Way::Fork];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Way::Run => "docker run",
            Way::Exec => "docker exec",
            Way::Container => "prewarm container",
            Way::Namespace => "prewarm namespace",
            Way::Broker => "prewarm, by broker",
            Way::Fork => "fork+exec",
        }
    }

    /// Jobs for latency, unless the user says how many: fewer where each costs a container.
    pub const fn usual_jobs(self) -> u32 {
        match self {
            Way::Run | Way::Exec | Way::Container => 50,
            Way::Namespace | Way::Broker | Way::Fork => 200,
        }
    }

    /// Whether it is ours.
    pub const fn is_prewarm(self) -> bool {
        matches!(self, Way::Container | Way::Namespace | Way::Broker)
    }

    /// When its clock starts.
    pub const fn from(self) -> &'static str {
        match self {
            Way::Run => "the create request is begun",
            Way::Exec => "the request for an exec is begun, in a container that is up",
            Way::Container | Way::Namespace => "START is sent to an idle container",
            Way::Broker => "the job is given to the broker",
            Way::Fork => "fork",
        }
    }

    /// What a step is for it; none where it can't be seen.
    pub const fn to(self, step: Step) -> Option<&'static str> {
        match (self, step) {
            (Way::Run, Step::FirstOutput) => {
                Some("first byte on the attached stream (executing can't be seen)")
            }
            (Way::Run, Step::Exit) => Some("the wait request gives the exit code"),
            (Way::Run, Step::Removed) => Some("the engine says that the container is removed (--rm)"),
            (Way::Exec, Step::FirstOutput) => {
                Some("first byte on the exec's stream (executing can't be seen)")
            }
            (Way::Exec, Step::Exit) => Some("its stream has ended and inspect gives the exit code"),
            (Way::Container | Way::Namespace, Step::Executing) => Some("STARTED frame received"),
            (Way::Container | Way::Namespace, Step::FirstOutput) => Some("first output frame received"),
            (Way::Container | Way::Namespace, Step::Exit) => Some("EXITED frame received"),
            (Way::Broker, Step::Executing) => Some("`started` received"),
            (Way::Broker, Step::FirstOutput) => {
                Some("first `log` received (sent when 100 ms old, or when the job ends)")
            }
            (Way::Broker, Step::Exit) => Some("`result` received"),
            (Way::Fork, Step::Executing) => Some("spawn has returned, which is after execve"),
            (Way::Fork, Step::FirstOutput) => Some("first byte on its pipe"),
            (Way::Fork, Step::Exit) => Some("waited for"),
            (Way::Run | Way::Exec, Step::Executing)
            | (Way::Exec | Way::Container | Way::Namespace | Way::Broker | Way::Fork, Step::Removed) => None,
        }
    }

    /// The pool that this way takes its containers from, given the one to be measured; none if it takes them from none.
    pub fn pool(self, measured: &PoolConfig) -> Option<PoolConfig> {
        let isolation = match self {
            Way::Container => Isolation::Container,
            Way::Namespace => Isolation::Namespace,
            Way::Run | Way::Exec | Way::Broker | Way::Fork => return None,
        };
        Some(PoolConfig { isolation, ..measured.clone() })
    }
}

/// How many containers a pool keeps idle while it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Always so many.
    Fixed(usize),
    /// As its jobs ask for, within the pool's own bounds.
    Adaptive,
}

/// Runs jobs in one way.
#[async_trait]
pub trait Runner: Send + Sync {
    /// Runs one job, from its beginning to its end.
    async fn one(&self) -> Result<Sample, String>;

    /// Waits until nothing is going on of jobs before, so that the next one is measured alone.
    async fn settle(&self) -> Result<(), String> {
        Ok(())
    }

    /// Waits until all that jobs before have used up is there again, and paid for: until then they count as going on.
    async fn restore(&self) -> Result<(), String> {
        self.settle().await
    }

    /// Says how many containers to keep, where there is such a thing.
    fn keep(&self, _idle: Idle) {}

    /// How many containers are idle, where there is such a thing.
    async fn idle(&self) -> Option<usize> {
        None
    }

    /// What is to be known beside the figures.
    fn note(&self) -> Option<String> {
        None
    }
}

/// The longest that a job may take: this is for short commands.
pub const LONGEST_JOB: Duration = Duration::from_secs(300);
