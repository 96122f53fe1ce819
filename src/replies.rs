//! What a publisher is told of one attempt: `started`, `log`, `result`, numbered, in order, on one channel.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::artifacts::{self, Collected, Collector, Events};
use crate::attempt::Happening;
use crate::broker::{Message, Properties, Publisher, Routed, Target};
use crate::contract::artifact::ArtifactPiece;
use crate::contract::event::{self, Data, Envelope, LeaseKind, Log, Started, Stream};
use crate::contract::topology::{self, Names};
use crate::onlookers::Onlookers;
use crate::output::{Output, Piece};

/// Between attempts at what somebody has to mend.
const PAUSE: Duration = Duration::from_secs(5);

/// The replies of one attempt.
pub struct Replies<'a> {
    publisher: &'a mut dyn Publisher,
    /// Where results go that have no reply queue.
    results: String,
    job_id: String,
    attempt: u32,
    metadata: Option<Map<String, Value>>,
    reply_to: Option<String>,
    correlation_id: Option<String>,
    traceparent: Option<String>,
    seq: u64,
    skipped: u64,
    onlookers: Onlookers,
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
    /// The reply queue doesn't take it: to the queue of results.
    Refused,
}

impl<'a> Replies<'a> {
    /// Replies to the message with these properties, if `allowed`: its `reply_to` may be one that nothing must be sent to.
    pub fn new(
        publisher: &'a mut dyn Publisher,
        names: &Names,
        job_id: String,
        attempt: u32,
        properties: &Properties,
        allowed: bool,
    ) -> Replies<'a> {
        // What the job before didn't get.
        publisher.dropped();
        Replies {
            publisher,
            results: names.results(),
            job_id,
            attempt,
            metadata: None,
            reply_to: properties.reply_to.clone().filter(|queue| allowed && !queue.is_empty()),
            correlation_id: properties.correlation_id.clone(),
            traceparent: properties.traceparent.clone(),
            seq: 0,
            skipped: 0,
            onlookers: Onlookers::default(),
        }
    }

    /// The metadata that comes back on every reply from now on.
    pub fn set_metadata(&mut self, metadata: Option<Map<String, Value>>) {
        self.metadata = metadata;
    }

    /// Who looks on from now on.
    pub fn watched_by(&mut self, onlookers: Onlookers) {
        self.onlookers = onlookers;
    }

    /// The next reply's envelope.
    pub fn envelope(&mut self) -> Envelope {
        let seq = self.seq;
        self.seq += 1;
        self.numbered(seq)
    }

    fn numbered(&self, seq: u64) -> Envelope {
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

    /// Where events go.
    pub fn events(&self) -> Events {
        if self.reply_to.is_some() { Events::Sent } else { Events::Nowhere }
    }

    /// Publishes what happens until the attempt is over; gives all its output, when it started, if it did, and its
    /// artifacts, if there is who collects them. Once it is told to `hurry` it waits for nothing: what can't be sent at once
    /// is dropped, and counted.
    pub async fn follow(
        &mut self,
        (mut output, mut collector): (Output, Option<Collector>),
        facts: StartFacts<'_>,
        mut happenings: mpsc::Receiver<Happening>,
        hurry: &CancellationToken,
    ) -> Followed {
        let mut started = None;
        loop {
            let due = output.due();
            let happening = tokio::select! {
                biased;
                // First: a job that prints all the time would keep it waiting.
                mut onlooker = self.onlookers.next() => {
                    for piece in Stream::ALL.into_iter().filter_map(|stream| output.recent(stream)) {
                        onlooker.show(self.numbered(0), &piece);
                    }
                    self.onlookers.add(onlooker);
                    continue;
                }
                happening = happenings.recv() => happening,
                () = flush_at(due) => {
                    let piece = output.flush(Instant::now());
                    self.logs(piece, hurry).await;
                    continue;
                }
                // What waits for its confirm, or for the broker to come back.
                () = self.publisher.drive(), if !self.publisher.is_idle() => continue,
            };
            match happening {
                Some(Happening::Started(at)) => {
                    started = Some(at);
                    self.started(&facts, at, hurry).await;
                }
                Some(Happening::Output(stream, bytes)) => {
                    let pieces = output.push(stream, &bytes, Instant::now());
                    self.logs(pieces, hurry).await;
                }
                Some(Happening::Artifact(bytes)) => {
                    // The job is over: nothing is printed any more.
                    let pieces = output.finish(Instant::now());
                    self.logs(pieces, hurry).await;
                    let pieces =
                        collector.as_mut().map(|collector| collector.push(&bytes)).unwrap_or_default();
                    self.artifacts(pieces).await;
                }
                None => break,
            }
        }
        let pieces = output.finish(Instant::now());
        self.logs(pieces, hurry).await;
        Followed { output, started, collected: collector.map(Collector::finish) }
    }

    /// Not dropped to hurry, as output may be: the result says that they were sent. The time for all of them is bounded.
    async fn artifacts(&mut self, pieces: Vec<artifacts::Piece>) {
        let Some(queue) = self.reply_to.clone() else { return };
        for piece in pieces {
            let reply = ArtifactPiece {
                envelope: self.envelope(),
                path: piece.path,
                size: piece.size,
                offset: piece.offset,
                data: Data::from(piece.bytes),
            };
            let message = self.message(&queue, topology::ARTIFACT, &reply);
            self.publisher.send(message).await;
        }
    }

    async fn started(&mut self, facts: &StartFacts<'_>, at: Instant, hurry: &CancellationToken) {
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
        self.send(message, hurry).await;
    }

    async fn logs(&mut self, pieces: impl IntoIterator<Item = Piece>, hurry: &CancellationToken) {
        for piece in pieces {
            if !self.onlookers.is_empty() {
                let now = self.numbered(0);
                self.onlookers.show(&piece, || now.clone());
            }
            let Some(queue) = self.reply_to.clone() else { continue };
            let reply = Log {
                envelope: self.envelope(),
                stream: piece.stream,
                offset: piece.offset,
                data: Data::from(piece.bytes),
                truncated_at: piece.truncated_at,
            };
            let message = self.message(&queue, topology::LOG, &reply);
            self.send(message, hurry).await;
        }
    }

    async fn send(&mut self, message: Message, hurry: &CancellationToken) {
        tokio::select! {
            biased;
            () = self.publisher.send(message) => {}
            () = hurry.cancelled() => self.skipped += 1,
        }
    }

    /// How many events of this attempt have been dropped so far.
    pub fn dropped(&mut self) -> u64 {
        self.skipped += self.publisher.dropped();
        self.skipped
    }

    /// As [`Replies::result`], but a reply queue that refuses isn't waited for: others may have to wait behind it.
    pub async fn result_at_once(&mut self, result: &event::JobResult) -> Delivered {
        let astray = self.message(&self.results, topology::RESULT, result);
        let Some(queue) = self.reply_to.clone() else {
            publish_surely(self.publisher, astray).await;
            return Delivered::ToResults;
        };
        let message = Message { target: Target::Queue(queue.clone()), ..astray.clone() };
        let delivered = match self.publisher.offer(message).await {
            routed if routed.has_reached(&queue) => return Delivered::ToPublisher,
            Routed::Refused => Delivered::Refused,
            Routed::Yes | Routed::No => Delivered::Unroutable,
        };
        publish_surely(self.publisher, astray).await;
        delivered
    }

    /// Publishes the result, and returns when the broker has confirmed it and all before it.
    pub async fn result(&mut self, result: &event::JobResult) -> Delivered {
        self.onlookers.end(result);
        let astray = self.message(&self.results, topology::RESULT, result);
        let Some(queue) = self.reply_to.clone() else {
            publish_surely(self.publisher, astray).await;
            return Delivered::ToResults;
        };
        let message = Message { target: Target::Queue(queue.clone()), ..astray.clone() };
        loop {
            match self.publisher.send_confirmed(message.clone()).await {
                routed if routed.has_reached(&queue) => return Delivered::ToPublisher,
                Routed::Refused => {}
                Routed::Yes | Routed::No => {
                    publish_surely(self.publisher, astray).await;
                    return Delivered::Unroutable;
                }
            }
            // Is it that queue, or the broker, which has no majority of its nodes say? That passes.
            match self.publisher.offer(astray.clone()).await {
                Routed::Yes => return Delivered::Refused,
                Routed::Refused => {
                    tracing::warn!(
                        "neither the reply queue nor {} takes messages; trying again",
                        self.results
                    );
                }
                Routed::No => {
                    tracing::error!(
                        "the reply queue takes no messages, and {} is gone; trying again",
                        self.results
                    );
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Publishes to one of our own queues, for as long as it takes.
pub async fn publish_surely(publisher: &mut dyn Publisher, message: Message) {
    loop {
        let why = match publisher.send_confirmed(message.clone()).await {
            Routed::Yes => return,
            Routed::No => "is gone; declare it, or restart a worker that does",
            Routed::Refused => "takes no messages; is it full, or has it no majority of its nodes?",
        };
        tracing::error!("{:?} {why}; trying again", message.target);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn flush_at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// What became of an attempt, as its publisher sees it.
#[derive(Debug)]
pub struct Followed {
    /// All that it printed.
    pub output: Output,
    /// When it started, if it did.
    pub started: Option<Instant>,
    /// Its artifacts, if any were wanted.
    pub collected: Option<Collected>,
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use async_trait::async_trait;

    use super::*;
    use crate::contract::PoolName;
    use crate::contract::event::{JobResult, Status};

    /// Answers as it is told, and remembers what it was asked.
    struct Script {
        answers: VecDeque<Routed>,
        asked: Vec<(String, &'static str)>,
    }

    impl Script {
        fn answer(&mut self, message: Message, how: &'static str) -> Routed {
            let Target::Queue(queue) = message.target else { panic!("{:?}", message.target) };
            self.asked.push((queue, how));
            self.answers.pop_front().expect("asked too often")
        }
    }

    #[async_trait]
    impl Publisher for Script {
        async fn send(&mut self, _: Message) {}

        async fn drive(&mut self) {}

        fn is_idle(&self) -> bool {
            true
        }

        async fn send_confirmed(&mut self, message: Message) -> Routed {
            self.answer(message, "surely")
        }

        async fn offer(&mut self, message: Message) -> Routed {
            self.answer(message, "once")
        }

        fn dropped(&mut self) -> u64 {
            0
        }
    }

    async fn deliver(reply_to: Option<&str>, answers: &[Routed]) -> (Delivered, Vec<(String, &'static str)>) {
        let mut script = Script { answers: answers.iter().copied().collect(), asked: Vec::new() };
        let properties = Properties { reply_to: reply_to.map(str::to_owned), ..Properties::default() };
        let mut replies = Replies::new(&mut script, &Names::new("p"), "job".to_owned(), 1, &properties, true);
        let result = JobResult {
            exit_code: Some(0),
            ..JobResult::bare(replies.envelope(), Status::Succeeded, &PoolName::new("box").unwrap(), "w")
        };
        let delivered = replies.result(&result).await;
        assert!(script.answers.is_empty(), "{:?}", script.answers);
        (delivered, script.asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_goes_astray_only_if_its_own_queue_is_the_one_that_is_in_the_way() {
        use Routed::{No, Refused, Yes};
        let theirs = || ("theirs".to_owned(), "surely");
        let ours = |how| ("p.results".to_owned(), how);
        let to = Some("theirs");
        assert_eq!(deliver(to, &[Yes]).await, (Delivered::ToPublisher, vec![theirs()]));
        assert_eq!(deliver(None, &[Yes]).await, (Delivered::ToResults, vec![ours("surely")]));
        let gone = vec![theirs(), ours("surely"), ours("surely")];
        assert_eq!(deliver(to, &[No, Refused, Yes]).await, (Delivered::Unroutable, gone));
        let full = vec![theirs(), ours("once")];
        assert_eq!(deliver(to, &[Refused, Yes]).await, (Delivered::Refused, full.clone()));
        // The broker has no majority, and then has one again.
        let outage = [full.clone(), full, vec![theirs()]].concat();
        let begun = tokio::time::Instant::now();
        assert_eq!(
            deliver(to, &[Refused, Refused, Refused, No, Yes]).await,
            (Delivered::ToPublisher, outage)
        );
        // Whatever broker.reply_patience is, it isn't asked without a pause.
        assert_eq!(begun.elapsed(), 2 * PAUSE);
    }
}
