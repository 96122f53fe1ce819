//! The jobs that this worker has in hand, for `/status`; and which ones are cancelled.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::contract::PoolName;
use crate::contract::control::{Found, Sight};
use crate::onlookers::{COMING, Onlooker, Onlookers};

/// Most ids of cancelled jobs that are remembered; the oldest are forgotten first.
const CANCELLED_MAX: usize = 100_000;

/// All jobs in hand; cheap to clone. The lock is held for an insertion, a removal or a copy, never across
/// an await.
#[derive(Clone, Debug)]
pub struct Running {
    jobs: Arc<Mutex<Jobs>>,
}

#[derive(Debug)]
struct Jobs {
    next: u64,
    by_entry: BTreeMap<u64, Entry>,
    cancelled: Cancelled,
}

#[derive(Debug)]
struct Entry {
    job: RunningJob,
    since: Instant,
    cancel: CancellationToken,
    onlookers: mpsc::Sender<Onlooker>,
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
    jobs: Running,
    /// Cancelled when the job is.
    pub cancel: CancellationToken,
    onlookers: Option<mpsc::Receiver<Onlooker>>,
}

impl Running {
    /// None yet. Jobs that are cancelled before they come are cancelled when they do, for as long as `remembered`.
    pub fn new(remembered: Duration) -> Running {
        let cancelled = Cancelled { remembered, order: VecDeque::new(), ids: HashSet::new() };
        Running { jobs: Arc::new(Mutex::new(Jobs { next: 0, by_entry: BTreeMap::new(), cancelled })) }
    }

    /// Lists a job from now on.
    pub fn enter(&self, job_id: &str, pool: &PoolName, attempt: u32) -> Listed {
        let job =
            RunningJob { job_id: job_id.into(), pool: pool.clone(), attempt, seconds: 0, container: None };
        let cancel = CancellationToken::new();
        let (onlookers, coming) = mpsc::channel(COMING);
        let mut jobs = self.lock();
        if jobs.cancelled.contains(job_id, Instant::now()) {
            cancel.cancel();
        }
        let entry = jobs.next;
        jobs.next += 1;
        jobs.by_entry.insert(entry, Entry { job, since: Instant::now(), cancel: cancel.clone(), onlookers });
        drop(jobs);
        Listed { entry, jobs: self.clone(), cancel, onlookers: Some(coming) }
    }

    /// Cancels a job: now if it is here, and else when it comes.
    pub fn cancel(&self, job_id: &str) -> Found {
        let mut jobs = self.lock();
        jobs.cancelled.insert(job_id, Instant::now());
        let mut found = Found::NotHere;
        for entry in jobs.by_entry.values().filter(|entry| entry.job.job_id == job_id) {
            entry.cancel.cancel();
            found = Found::InHand;
        }
        found
    }

    /// Sends somebody who wants to look on to the job's latest attempt here.
    pub fn look_on(&self, job_id: &str, onlooker: Onlooker) -> Sight {
        let jobs = self.lock();
        match jobs.by_entry.values().rfind(|entry| entry.job.job_id == job_id) {
            Some(entry) if entry.onlookers.try_send(onlooker).is_ok() => Sight::InHand,
            Some(_) => Sight::Full,
            None => Sight::NotHere,
        }
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> Vec<RunningJob> {
        let now =
            |entry: &Entry| RunningJob { seconds: entry.since.elapsed().as_secs(), ..entry.job.clone() };
        self.lock().by_entry.values().map(now).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    /// Those who come to look on, from now on; to be asked for once.
    pub fn onlookers(&mut self) -> Onlookers {
        self.onlookers.take().map(Onlookers::from).unwrap_or_default()
    }

    /// The job has a container.
    pub fn set_container(&self, container: &str) {
        if let Some(entry) = self.jobs.lock().by_entry.get_mut(&self.entry) {
            entry.job.container = Some(container.into());
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.jobs.lock().by_entry.remove(&self.entry);
    }
}

/// Ids of cancelled jobs, in the order of their cancellation.
#[derive(Debug)]
struct Cancelled {
    remembered: Duration,
    order: VecDeque<(Instant, String)>,
    ids: HashSet<String>,
}

impl Cancelled {
    fn insert(&mut self, id: &str, now: Instant) {
        self.forget(now);
        if self.ids.insert(id.to_owned()) {
            self.order.push_back((now, id.to_owned()));
        }
        if self.order.len() > CANCELLED_MAX
            && let Some((_, id)) = self.order.pop_front()
        {
            self.ids.remove(&id);
        }
    }

    fn contains(&mut self, id: &str, now: Instant) -> bool {
        self.forget(now);
        self.ids.contains(id)
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, _)) = self.order.front()
            && now.saturating_duration_since(*at) >= self.remembered
        {
            if let Some((_, id)) = self.order.pop_front() {
                self.ids.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolName {
        PoolName::new("p").unwrap()
    }

    #[test]
    fn a_job_is_cancelled_wherever_it_is() {
        let running = Running::new(Duration::from_secs(60));
        let [first, again] = [running.enter("a", &pool(), 1), running.enter("a", &pool(), 2)];
        let other = running.enter("b", &pool(), 1);
        assert_eq!(running.cancel("a"), Found::InHand);
        assert!(first.cancel.is_cancelled() && again.cancel.is_cancelled() && !other.cancel.is_cancelled());
        assert_eq!(running.cancel("later"), Found::NotHere);
        assert!(running.enter("later", &pool(), 1).cancel.is_cancelled(), "when it comes");
        drop((first, again));
        assert_eq!(running.list().len(), 1);
    }

    #[test]
    fn cancellations_are_forgotten_after_a_time_and_bounded_in_number() {
        let start = Instant::now();
        let minute = Duration::from_secs(60);
        let mut cancelled = Cancelled { remembered: minute, order: VecDeque::new(), ids: HashSet::new() };
        cancelled.insert("a", start);
        assert!(cancelled.contains("a", start + minute / 2));
        assert!(!cancelled.contains("a", start + minute));
        for n in 0..=CANCELLED_MAX {
            cancelled.insert(&n.to_string(), start + minute);
        }
        assert_eq!((cancelled.ids.len(), cancelled.order.len()), (CANCELLED_MAX, CANCELLED_MAX));
        assert!(!cancelled.contains("0", start + minute) && cancelled.contains("1", start + minute));
    }
}
