//! Jobs that the broker gave up before a worker could answer for them, with `broker.expired = "answer"`.
//!
//! ```text
//!  P.jobs.<pool> ──expired────────────────► P.died ──► a worker ──► result `expired`, ack
//!                └─given out too often────►                     └─► result `error`, copy to P.dead, ack
//! ```
//!
//! Whatever comes here is answered by whichever worker has it first, of that pool or not: nothing is run.

use std::time::{Instant, SystemTime};

use super::{Shutdown, Worker};
use crate::broker::death::{DELIVERY_LIMIT, Death, EXPIRED};
use crate::broker::{Delivery, Message, Properties, Publisher, Settle, Target};
use crate::contract::PoolName;
use crate::contract::event::{Error, ErrorKind, JobResult, Status, Timings, millis, timestamp};
use crate::contract::job;
use crate::contract::topology::{DIED_AT_HEADER, KIND_HEADER, POOL_HEADER, REASON_HEADER};
use crate::failures::Failure;
use crate::replies::{Replies, publish_surely};

impl Worker {
    /// Answers for what the broker gave up, until told to drain.
    pub async fn bury(&self, shutdown: &Shutdown) {
        let mut consumer = self.broker.died();
        let mut publisher = self.broker.publisher();
        loop {
            let delivery = tokio::select! {
                biased;
                () = shutdown.drain.cancelled() => break,
                delivery = consumer.next() => delivery,
            };
            self.bury_one(delivery, &mut *publisher).await;
        }
        consumer.pause().await;
    }

    async fn bury_one(&self, delivery: Delivery, publisher: &mut dyn Publisher) {
        let Delivery { body, properties, receipt, received, .. } = delivery;
        let death = properties.death.clone();
        let pool = death.as_ref().and_then(|death| death.pool(&self.names));
        let known = pool.as_ref().zip(death.as_ref()).and_then(|(pool, death)| Some((pool, judge(death)?)));
        if let Some((pool, (status, kind))) = known {
            let words = death.as_ref().map(|death| death.words(None)).unwrap_or_default();
            self.answer_for(
                pool,
                status,
                Error { kind, message: words },
                &body,
                &properties,
                received,
                publisher,
            )
            .await;
        }
        if known.is_none_or(|(_, (status, _))| status != Status::Expired) {
            let copy = Message {
                target: Target::Queue(self.names.dead()),
                body,
                properties: with_reason(properties, death.as_ref(), pool.as_ref()),
            };
            publish_surely(publisher, copy).await;
            if let Some((pool, (_, kind))) = known
                && let Some(series) = self.metrics.pools.get(pool)
            {
                series.dead_letter(kind);
            }
        }
        if let Err(error) = receipt.settle(Settle::Ack).await {
            tracing::warn!("not settled: {error}");
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that a result is made of")]
    async fn answer_for(
        &self,
        pool: &PoolName,
        status: Status,
        error: Error,
        body: &[u8],
        properties: &Properties,
        received: Instant,
        publisher: &mut dyn Publisher,
    ) {
        // Those without an id never had one in any reply.
        let id = properties.message_id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        let attempt = properties.attempt();
        tracing::info!(id, %pool, kind = error.kind.as_str(), "the broker gave it up: {}", error.message);
        self.failures.push(Failure {
            kind: Some(error.kind),
            ..Failure::new(&id, pool, attempt, status, &error.message)
        });
        // Another worker's pool has its series there.
        if let Some(series) = self.metrics.pools.get(pool) {
            series.jobs(status).inc();
        }
        let allowed = properties.reply_to.as_deref().is_none_or(|queue| self.may_reply_to(queue));
        let mut replies = Replies::new(publisher, &self.names, id, attempt, properties, allowed);
        replies.set_metadata(job::decode(body).ok().and_then(|job| job.metadata));
        let result = JobResult {
            error: Some(error),
            timings_ms: Timings {
                queued: properties.age().map(millis),
                total: millis(received.elapsed()),
                ..Timings::default()
            },
            ..JobResult::bare(replies.envelope(), status, pool, &self.config.name)
        };
        // Where it went doesn't matter: there is no more to be done for it.
        let _ = replies.result_at_once(&result).await;
    }
}

/// What a publisher is told; nothing of what others than prewarm did to the message.
fn judge(death: &Death) -> Option<(Status, ErrorKind)> {
    match death.reason.as_str() {
        EXPIRED => Some((Status::Expired, ErrorKind::Expired)),
        DELIVERY_LIMIT => Some((Status::Error, ErrorKind::DeliveryLimit)),
        _ => None,
    }
}

/// As a worker's own dead letters have it: a message that is published has no `x-death`.
fn with_reason(mut properties: Properties, death: Option<&Death>, pool: Option<&PoolName>) -> Properties {
    properties.bound_headers();
    if let Some(death) = death {
        properties.set_header(REASON_HEADER, death.words(None));
        properties.set_header(KIND_HEADER, death.reason.clone());
        properties.set_header(DIED_AT_HEADER, timestamp(death.at.unwrap_or_else(SystemTime::now)));
    }
    if let Some(pool) = pool {
        properties.set_header(POOL_HEADER, pool.to_string());
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_says_what_the_broker_said() {
        let death = Death {
            queue: "p.jobs.build".into(),
            reason: DELIVERY_LIMIT.into(),
            at: Some(SystemTime::UNIX_EPOCH),
        };
        let old = Properties { headers: vec![(KIND_HEADER.into(), "old".into())], ..Properties::default() };
        let new = with_reason(old, Some(&death), PoolName::new("build").ok().as_ref());
        let header = |name: &str| {
            new.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(header(KIND_HEADER), ["delivery_limit"]);
        assert_eq!(header(POOL_HEADER), ["build"]);
        assert_eq!(header(DIED_AT_HEADER), ["1970-01-01T00:00:00Z"]);
        assert!(header(REASON_HEADER)[0].contains("did it kill its workers?"));
        // What wouldn't fit into a frame would cost the connection, again and again.
        let long = Properties { headers: vec![("long".into(), "x".repeat(40_000))], ..Properties::default() };
        let kept = with_reason(long, Some(&death), None).headers;
        assert!(kept.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() < 1000, "{kept:?}");
        assert_eq!(judge(&Death { reason: "rejected".into(), ..death }), None);
    }
}
