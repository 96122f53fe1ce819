//! The last attempts of this worker that ended badly, for `/status`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;

use crate::contract::event::{ErrorKind, Status, timestamp};
use crate::contract::{PoolName, brief};

/// How many are kept, at some hundred bytes each.
const KEPT: usize = 50;
/// Most characters of a message.
const MESSAGE_MAX: usize = 400;

/// The last of them; cheap to clone. The lock is held for an insertion or a copy, never across an await.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    last: Arc<Mutex<VecDeque<Failure>>>,
}

/// One attempt that ended badly. Holds nothing of what the job was given, and nothing that it printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The job's id.
    pub job_id: String,
    /// Its pool.
    pub pool: PoolName,
    /// Which attempt.
    pub attempt: u32,
    /// How it ended.
    pub status: Status,
    /// What kind of error it was, if it was more than an exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<ErrorKind>,
    /// The same in words.
    pub message: String,
    /// Whether another attempt follows.
    pub retried: bool,
    /// When it was known, RFC 3339 in UTC.
    pub time: String,
}

impl Failure {
    /// One that is known now.
    pub fn new(job_id: &str, pool: &PoolName, attempt: u32, status: Status, message: &str) -> Failure {
        Failure {
            job_id: job_id.to_owned(),
            pool: pool.clone(),
            attempt,
            status,
            kind: None,
            message: brief(message, MESSAGE_MAX).into_owned(),
            retried: false,
            time: timestamp(SystemTime::now()),
        }
    }
}

impl Failures {
    /// Takes one; the oldest makes room.
    pub fn push(&self, failure: Failure) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(failure);
    }

    /// All that are kept, the latest first.
    pub fn list(&self) -> Vec<Failure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_kept_and_no_more() {
        let failures = Failures::default();
        let pool = PoolName::new("p").unwrap();
        for n in 0..=KEPT {
            let message = "é".repeat(1000);
            failures.push(Failure::new(&n.to_string(), &pool, 1, Status::Failed, &message));
        }
        let list = failures.list();
        assert_eq!((list.len(), list[0].job_id.as_str()), (KEPT, "50"));
        assert_eq!(list[KEPT - 1].job_id, "1");
        assert_eq!(list[0].message.chars().count(), MESSAGE_MAX + 1);
    }
}
