//! What a publisher is told of one attempt: `started`, `log`, `result`, numbered, in order, on one channel.

use std::time::{Instant, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::attempt::Happening;
use crate::broker::{Message, Properties, Publisher, Routed, Target};
use crate::contract::event::{self, Data, Envelope, LeaseKind, Log, Started};
use crate::contract::topology::{self, Names};
use crate::output::{Output, Piece};

/// RabbitMQ's direct reply-to: a name that is no queue. Up to 4.1 the broker returns every mandatory
/// message to it, delivered or not; so whether it was routed can't be told.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The replies of one attempt.
pub struct Replies<'a> {
    publisher: &'a mut dyn Publisher,
    names: &'a Names,
    job_id: String,
    attempt: u32,
    metadata: Option<Map<String, Value>>,
    reply_to: Option<String>,
    correlation_id: Option<String>,
    traceparent: Option<String>,
    seq: u64,
}

/// Where a result went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// To the reply queue.
    ToPublisher,
    /// There is no reply queue: to the queue of results.
    ToResults,
    /// The reply queue is gone: to the queue of results.
    Unroutable,
}

impl<'a> Replies<'a> {
    /// Replies to the message with these properties. A `reply_to` that isn't allowed has been refused before.
    pub fn new(
        publisher: &'a mut dyn Publisher,
        names: &'a Names,
        job_id: String,
        attempt: u32,
        properties: &Properties,
    ) -> Replies<'a> {
        let reply_to = properties.reply_to.clone().filter(|q| !q.is_empty() && names.may_reply_to(q));
        Replies {
            publisher,
            names,
            job_id,
            attempt,
            metadata: None,
            reply_to,
            correlation_id: properties.correlation_id.clone(),
            traceparent: properties.traceparent.clone(),
            seq: 0,
        }
    }

    /// The metadata that comes back on every reply from now on.
    pub fn set_metadata(&mut self, metadata: Option<Map<String, Value>>) {
        self.metadata = metadata;
    }

    /// The next reply's envelope.
    pub fn envelope(&mut self) -> Envelope {
        let seq = self.seq;
        self.seq += 1;
        Envelope {
            job_id: self.job_id.clone(),
            attempt: self.attempt,
            seq,
            time: event::timestamp(SystemTime::now()),
            metadata: self.metadata.clone(),
        }
    }

    fn message(&self, queue: &str, kind: &str, reply: &impl Serialize) -> Message {
        Message {
            target: Target::Queue(queue.to_owned()),
            // Our own types: strings for keys, no way to fail.
            body: Bytes::from(serde_json::to_vec(reply).unwrap_or_default()),
            properties: Properties {
                message_id: Some(format!("{}/{}/{}", self.job_id, self.attempt, self.seq.saturating_sub(1))),
                correlation_id: self.correlation_id.clone(),
                content_type: Some("application/json".into()),
                kind: Some(kind.into()),
                traceparent: self.traceparent.clone(),
                timestamp: Some(SystemTime::now()),
                ..Properties::default()
            },
        }
    }

    /// Publishes what happens until the attempt is over; gives all its output, and when it started, if it did.
    pub async fn follow(
        &mut self,
        mut output: Output,
        facts: StartFacts<'_>,
        mut happenings: mpsc::Receiver<Happening>,
    ) -> (Output, Option<Instant>) {
        let mut started = None;
        loop {
            let happening = match output.due() {
                None => happenings.recv().await,
                Some(due) => match tokio::time::timeout_at(due.into(), happenings.recv()).await {
                    Ok(happening) => happening,
                    Err(_) => {
                        let piece = output.flush(Instant::now());
                        self.logs(piece).await;
                        continue;
                    }
                },
            };
            match happening {
                Some(Happening::Started(at)) => {
                    started = Some(at);
                    self.started(&facts, at).await;
                }
                Some(Happening::Output(stream, bytes)) => {
                    let pieces = output.push(stream, &bytes, Instant::now());
                    self.logs(pieces).await;
                }
                None => break,
            }
        }
        let pieces = output.finish(Instant::now());
        self.logs(pieces).await;
        (output, started)
    }

    async fn started(&mut self, facts: &StartFacts<'_>, at: Instant) {
        let Some(queue) = self.reply_to.clone() else { return };
        let reply = Started {
            envelope: self.envelope(),
            pool: facts.pool.to_owned(),
            worker: facts.worker.to_owned(),
            lease: facts.lease,
            startup_ms: event::millis(at.saturating_duration_since(facts.received)),
            container: facts.container.clone(),
        };
        let message = self.message(&queue, topology::STARTED, &reply);
        self.publisher.send(message).await;
    }

    async fn logs(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        let Some(queue) = self.reply_to.clone() else { return };
        for piece in pieces {
            let reply = Log {
                envelope: self.envelope(),
                stream: piece.stream,
                offset: piece.offset,
                data: Data::from(piece.bytes),
                truncated_at: piece.truncated_at,
            };
            let message = self.message(&queue, topology::LOG, &reply);
            self.publisher.send(message).await;
        }
    }

    /// Publishes the result, and returns when the broker has confirmed it and all before it.
    pub async fn result(&mut self, result: &event::JobResult) -> Delivered {
        let mut unroutable = false;
        if let Some(queue) = self.reply_to.clone() {
            let message = self.message(&queue, topology::RESULT, result);
            let routed = self.publisher.send_confirmed(message).await;
            if routed == Routed::Yes || queue.starts_with(DIRECT_REPLY_TO) {
                return Delivered::ToPublisher;
            }
            unroutable = true;
        }
        let results = self.names.results();
        let message = self.message(&results, topology::RESULT, result);
        while self.publisher.send_confirmed(message.clone()).await == Routed::No {
            tracing::error!(
                queue = results,
                "the queue of results is gone; declare it, or restart a worker that does"
            );
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        }
        if unroutable { Delivered::Unroutable } else { Delivered::ToResults }
    }
}

/// What `started` tells beside the time.
pub struct StartFacts<'a> {
    /// The pool.
    pub pool: &'a str,
    /// The worker's name.
    pub worker: &'a str,
    /// Hit or miss.
    pub lease: LeaseKind,
    /// When the delivery came.
    pub received: Instant,
    /// The container's id.
    pub container: String,
}
