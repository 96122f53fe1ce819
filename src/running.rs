//! The jobs that this worker has in hand, for `/status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::contract::PoolName;

/// All jobs in hand; cheap to clone. The lock is held for an insertion, a removal or a copy, never across
/// an await.
#[derive(Clone, Debug, Default)]
pub struct Running {
    jobs: Arc<Mutex<Jobs>>,
}

#[derive(Debug, Default)]
struct Jobs {
    next: u64,
    by_entry: BTreeMap<u64, (RunningJob, Instant)>,
}

/// A job as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningJob {
    /// Its id.
    pub job_id: String,
    /// Its pool.
    pub pool: PoolName,
    /// Which attempt.
    pub attempt: u32,
    /// Since when it is here, in seconds.
    pub seconds: u64,
    /// Its container, once it has one.
    pub container: Option<String>,
}

/// A job's entry; dropped, the job is no longer listed.
#[derive(Debug)]
pub struct Listed {
    entry: u64,
    jobs: Arc<Mutex<Jobs>>,
}

impl Running {
    /// Lists a job from now on.
    pub fn enter(&self, job_id: &str, pool: &PoolName, attempt: u32) -> Listed {
        let job =
            RunningJob { job_id: job_id.into(), pool: pool.clone(), attempt, seconds: 0, container: None };
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = jobs.next;
        jobs.next += 1;
        jobs.by_entry.insert(entry, (job, Instant::now()));
        Listed { entry, jobs: Arc::clone(&self.jobs) }
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> Vec<RunningJob> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let now = |(job, since): &(RunningJob, Instant)| RunningJob {
            seconds: since.elapsed().as_secs(),
            ..job.clone()
        };
        jobs.by_entry.values().map(now).collect()
    }
}

impl Listed {
    /// The job has a container.
    pub fn set_container(&self, container: &str) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((job, _)) = jobs.by_entry.get_mut(&self.entry) {
            job.container = Some(container.into());
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).by_entry.remove(&self.entry);
    }
}
