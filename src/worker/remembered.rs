//! The jobs that ran to an end here a moment ago, for publishers that publish one again.
//!
//! Who gets no confirm from the broker publishes again, and then both may be there: two messages, with the same id. The second one
//! isn't run, but answered with the first one's result.
//!
//! ```text
//!             first message                ran to its end            `worker.remember` later, or more than fit
//!  unknown ─────────────────► running ─────────────────────► over ──────────────────────────────────► unknown
//!     ▲                          │                            │
//!     └── no result: handed back,┘   a second message waits   └── a second message: answered with the result
//!         retried, cancelled, trouble    for the end
//! ```
//!
//! That is another thing than one message that is given out twice (`claims.rs`), which is known by its properties and has its
//! place in the broker's books. Here messages are the same job if pool, id and body are the same. Another body under a
//! used id is another job. What ran badly is over too; what was cancelled, or met trouble of ours, isn't.
//!
//! Nothing of this is written down, and no other worker knows of it: it spares most second runs, and promises none.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::contract::PoolName;
use crate::contract::artifact::{Artifact, Missed, MissedArtifact};
use crate::contract::event::{Data, JobResult, Tail};

/// Most bytes of results that are remembered. Small ones take about [`SMALL`].
const BYTES_MAX: usize = 4 << 20;

/// What a result without output takes, about.
const SMALL: usize = 1024;

/// A job, as far as it is told from others: a keyed hash, of which nobody can make two alike.
type Key = u64;

/// All that is remembered; cheap to clone. The lock is held for a look-up or a change, never across an await.
#[derive(Clone)]
pub(super) struct Remembered {
    shared: Arc<Shared>,
}

struct Shared {
    window: Duration,
    hasher: RandomState,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    jobs: HashMap<Key, State>,
    /// Those that are over, the oldest first.
    over: VecDeque<(Key, Instant, usize)>,
    bytes: usize,
}

enum State {
    Running(CancellationToken),
    Over(Arc<JobResult>),
}

/// What is known of a job.
pub(super) enum Known {
    /// Nothing: it is to be run.
    New(Run),
    /// It runs here; the end is near when that is cancelled.
    Running(CancellationToken),
    /// It was run, with this result.
    Over(Arc<JobResult>),
}

/// A job that runs. Dropped, it is as if it had not been here.
pub(super) struct Run {
    remembered: Remembered,
    /// None if it isn't to be remembered.
    key: Option<Key>,
}

impl Remembered {
    /// Nothing yet. Of no effect if `window` is 0.
    pub(super) fn new(window: Duration) -> Remembered {
        let shared = Shared { window, hasher: RandomState::new(), book: Mutex::default() };
        Remembered { shared: Arc::new(shared) }
    }

    /// Enters a job, and says what is known of it. One without an id is always new.
    pub(super) fn enter(&self, pool: &PoolName, message_id: Option<&str>, body: &[u8]) -> Known {
        let Some(id) = message_id.filter(|id| !id.is_empty() && !self.shared.window.is_zero()) else {
            return Known::New(Run { remembered: self.clone(), key: None });
        };
        let key = self.identify(pool, id, body);
        let mut book = self.book();
        book.forget(Instant::now(), self.shared.window, BYTES_MAX);
        match book.jobs.get(&key) {
            Some(State::Running(over)) => Known::Running(over.clone()),
            Some(State::Over(result)) => Known::Over(result.clone()),
            None => {
                book.jobs.insert(key, State::Running(CancellationToken::new()));
                Known::New(Run { remembered: self.clone(), key: Some(key) })
            }
        }
    }

    fn identify(&self, pool: &PoolName, id: &str, body: &[u8]) -> Key {
        self.shared.hasher.hash_one((pool, id, body))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Forgets those that are too old, and the oldest until the others fit.
    fn forget(&mut self, now: Instant, window: Duration, most: usize) {
        while let Some(&(key, at, bytes)) = self.over.front()
            && (now.saturating_duration_since(at) >= window || self.bytes > most)
        {
            self.over.pop_front();
            self.bytes -= bytes;
            self.jobs.remove(&key);
        }
    }
}

impl Run {
    /// It ran to its end, with this result.
    pub(super) fn over(mut self, result: &JobResult) {
        if !is_whole(result) {
            return;
        }
        let Some(key) = self.key.take() else { return };
        let (now, bytes) = (Instant::now(), size(result));
        let mut book = self.remembered.book();
        if let Some(State::Running(over)) = book.jobs.insert(key, State::Over(Arc::new(result.clone()))) {
            over.cancel();
        }
        book.over.push_back((key, now, bytes));
        book.bytes += bytes;
        book.forget(now, self.remembered.shared.window, BYTES_MAX);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(key) = self.key
            && let Some(State::Running(over)) = self.remembered.book().jobs.remove(&key)
        {
            over.cancel();
        }
    }
}

/// Whether it says all that there is to say of the job: artifacts that went before it, in events of their own, can't be told
/// again; and some are missing for reasons that have nothing to do with the job.
fn is_whole(result: &JobResult) -> bool {
    let of_another =
        |missed: &MissedArtifact| matches!(missed.reason, Missed::NoReplyQueue | Missed::Interrupted);
    result.artifacts.iter().flatten().all(|artifact| artifact.events.is_none())
        && !result.artifacts_missed.iter().any(of_another)
}

/// About how much memory a result takes; the parts that a job or a publisher may make large.
fn size(result: &JobResult) -> usize {
    let data = |data: Option<&Data>| match data {
        Some(Data::Text(text) | Data::Base64(text)) => text.len(),
        None => 0,
    };
    let tail = |tail: &Option<Tail>| data(tail.as_ref().map(|tail| &tail.data));
    let artifacts = result.artifacts.iter().flatten();
    let artifacts: usize = artifacts
        .map(|artifact| size_of::<Artifact>() + artifact.path.len() + data(artifact.data.as_ref()))
        .sum();
    let missed = result.artifacts_missed.iter();
    let missed: usize = missed.map(|m| size_of::<MissedArtifact>() + m.path.len() + m.message.len()).sum();
    let metadata = result.envelope.metadata.as_ref().and_then(|m| serde_json::to_vec(m).ok());
    // Each value of a JSON object has a place of its own.
    let metadata = metadata.map_or(0, |json| 8 * json.len());
    let error = result.error.as_ref().map_or(0, |error| error.message.len());
    SMALL + tail(&result.stdout) + tail(&result.stderr) + artifacts + missed + metadata + error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::event::{Envelope, Status};

    const MINUTE: Duration = Duration::from_secs(60);

    fn result(output: usize) -> JobResult {
        let envelope =
            Envelope { job_id: "a".into(), attempt: 1, seq: 3, time: String::new(), metadata: None };
        let tail =
            Tail { data: Data::Text("x".repeat(output)), total_bytes: output as u64, truncated: false };
        JobResult {
            exit_code: Some(0),
            stdout: Some(tail),
            ..JobResult::bare(envelope, Status::Succeeded, &PoolName::new("p").unwrap(), "w")
        }
    }

    fn enter(remembered: &Remembered, id: &str, body: &str) -> Known {
        remembered.enter(&PoolName::new("p").unwrap(), Some(id), body.as_bytes())
    }

    fn run(remembered: &Remembered, id: &str, body: &str) -> Run {
        match enter(remembered, id, body) {
            Known::New(run) => run,
            Known::Running(_) => panic!("taken for one that runs"),
            Known::Over(_) => panic!("taken for one that is over"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_new_then_runs_then_is_over_then_forgotten() {
        let remembered = Remembered::new(MINUTE);
        let first = run(&remembered, "a", "{}");
        let Known::Running(over) = enter(&remembered, "a", "{}") else { panic!() };
        // Another body, another pool, no id: another job.
        drop(run(&remembered, "a", "{ }"));
        let other = remembered.enter(&PoolName::new("q").unwrap(), Some("a"), b"{}");
        assert!(matches!(other, Known::New(_)));
        for none in [None, Some("")] {
            let pool = PoolName::new("p").unwrap();
            assert!(matches!(remembered.enter(&pool, none, b"{}"), Known::New(Run { key: None, .. })));
        }
        assert!(!over.is_cancelled());
        first.over(&result(5));
        assert!(over.is_cancelled());
        let Known::Over(known) = enter(&remembered, "a", "{}") else { panic!() };
        assert_eq!(known.envelope.seq, 3);
        tokio::time::advance(MINUTE).await;
        drop(run(&remembered, "a", "{}"));
    }

    #[test]
    fn one_that_comes_to_nothing_here_was_never_here() {
        let remembered = Remembered::new(MINUTE);
        let first = run(&remembered, "a", "{}");
        let Known::Running(over) = enter(&remembered, "a", "{}") else { panic!() };
        drop(first);
        assert!(over.is_cancelled());
        drop(run(&remembered, "a", "{}"));
        assert!(remembered.book().jobs.is_empty());
        // Switched off.
        let off = Remembered::new(Duration::ZERO);
        run(&off, "a", "{}").over(&result(0));
        drop(run(&off, "a", "{}"));
        assert!(off.book().jobs.is_empty());
    }

    #[test]
    fn a_result_that_does_not_say_all_is_not_told_again() {
        let remembered = Remembered::new(MINUTE);
        let artifact = |events, data: Option<&str>| Artifact {
            path: "out".into(),
            size: 3,
            mode: "0644".into(),
            sha256: String::new(),
            events,
            data: data.map(|text| Data::Text(text.into())),
        };
        let with = |of: Vec<Artifact>| JobResult { artifacts: Some(of), ..result(0) };
        run(&remembered, "a", "{}").over(&with(vec![artifact(None, Some("abc"))]));
        assert!(matches!(enter(&remembered, "a", "{}"), Known::Over(_)));
        run(&remembered, "b", "{}").over(&with(vec![artifact(None, Some("abc")), artifact(Some(2), None)]));
        drop(run(&remembered, "b", "{}"));
        let missed = |reason| JobResult {
            artifacts_missed: vec![MissedArtifact { path: "out".into(), reason, message: String::new() }],
            ..result(0)
        };
        run(&remembered, "c", "{}").over(&missed(Missed::NotFound));
        assert!(matches!(enter(&remembered, "c", "{}"), Known::Over(_)));
        for reason in [Missed::NoReplyQueue, Missed::Interrupted] {
            run(&remembered, "d", "{}").over(&missed(reason));
            drop(run(&remembered, "d", "{}"));
        }
        let large = with(vec![artifact(None, Some(&"x".repeat(1000)))]);
        assert!(size(&large) >= SMALL + 1000);
    }

    #[test]
    fn no_more_is_remembered_than_fits() {
        let remembered = Remembered::new(MINUTE);
        for n in 0..100 {
            run(&remembered, &n.to_string(), "{}").over(&result(64 << 10));
        }
        let book = remembered.book();
        assert!(book.bytes <= BYTES_MAX && book.bytes > BYTES_MAX - (70 << 10), "{}", book.bytes);
        assert_eq!(book.jobs.len(), book.over.len());
        drop(book);
        assert!(matches!(enter(&remembered, "99", "{}"), Known::Over(_)));
        drop(run(&remembered, "0", "{}"));
    }
}
