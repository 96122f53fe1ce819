//! Lets others look on at a running job: what it prints is copied to a queue of theirs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Worker;
use crate::broker::{Message, Properties, Publisher, Target};
use crate::contract::control::{Sight, WATCHING, Watch, Watching};
use crate::contract::topology::{LOG, RESULT};
use crate::onlookers::{Copies, Onlooker};

/// Most onlookers of a worker at once. Each may hold about 1 MiB.
const ONLOOKERS: usize = 16;

/// How often one is told that the job is still there while it prints nothing: so both sides notice if the other has gone.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// Room for onlookers.
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ONLOOKERS))
}

impl Worker {
    /// Begins to copy a job's output to where the request says. If it can't, that is the answer; else the copies have it
    /// in front of them.
    pub(super) fn look_on(&self, watch: Watch, request: &Properties) -> Option<Watching> {
        let queue = request.reply_to.clone().filter(|queue| self.may_reply_to(queue))?;
        let mut told =
            Watching { job_id: watch.job_id, worker: self.config.name.clone(), sight: Sight::Full };
        let Ok(permit) = self.room_for_onlookers.clone().try_acquire_owned() else { return Some(told) };
        let (onlooker, copies) = Onlooker::new();
        told.sight = self.running.look_on(&told.job_id, onlooker);
        if told.sight != Sight::InHand {
            return Some(told);
        }
        tracing::info!(id = told.job_id, queue, "somebody looks on");
        let publisher = self.broker.publisher();
        let way = Way { publisher, queue, correlation_id: request.correlation_id.clone(), _permit: permit };
        tokio::spawn(way.copy(copies, told));
        None
    }
}

/// The way to an onlooker.
struct Way {
    publisher: Box<dyn Publisher>,
    queue: String,
    correlation_id: Option<String>,
    _permit: OwnedSemaphorePermit,
}

impl Way {
    /// Sends all there is to an onlooker, until it or the job has gone.
    async fn copy(mut self, mut copies: Copies, mut told: Watching) {
        if !self.tell(&told).await {
            return;
        }
        loop {
            let there = match timeout(SIGN_OF_LIFE, copies.events.recv()).await {
                Ok(Some(event)) => self.send(LOG, event.body.clone()).await,
                Ok(None) => break,
                Err(_) => self.tell(&told).await,
            };
            if !there {
                return;
            }
        }
        match copies.result.await {
            Ok(result) => self.send(RESULT, result).await,
            Err(_) => {
                told.sight = Sight::Moved;
                self.tell(&told).await
            }
        };
    }

    async fn tell(&mut self, what: &impl Serialize) -> bool {
        // Our own types: no way to fail.
        self.send(WATCHING, serde_json::to_vec(what).unwrap_or_default().into()).await
    }

    /// False if the queue is gone, or hasn't taken anything for `broker.reply_patience`.
    async fn send(&mut self, kind: &str, body: Bytes) -> bool {
        let properties = Properties {
            correlation_id: self.correlation_id.clone(),
            content_type: Some("application/json".into()),
            kind: Some(kind.into()),
            timestamp: Some(SystemTime::now()),
            ..Properties::default()
        };
        let message = Message { target: Target::Queue(self.queue.clone()), body, properties };
        self.publisher.send_confirmed(message).await.has_reached(&self.queue)
    }
}
