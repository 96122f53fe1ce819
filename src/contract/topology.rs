//! The names of exchanges, queues, headers and message types (contract v1).

use std::time::Duration;

use super::PoolName;

/// Header in which a retried job carries the number of attempts that came before. A header of our own,
/// since RabbitMQ 4.0 ignores the `x-death` of a republished message.
pub const ATTEMPTS_HEADER: &str = "x-prewarm-attempts";
/// Header in which a retried job carries how many of its attempts met trouble of ours.
pub const TROUBLES_HEADER: &str = "x-prewarm-troubles";
/// Header in which a retried job carries how many of its attempts it failed by itself.
pub const FAILURES_HEADER: &str = "x-prewarm-failures";
/// Header of a quorum queue: how often the message was given out and came back.
pub const DELIVERY_COUNT_HEADER: &str = "x-delivery-count";
/// Header of a dead-lettered job: why, in words.
pub const REASON_HEADER: &str = "x-prewarm-reason";
/// Header of a dead-lettered job: why, as the closed enum of the result's `error.kind`.
pub const KIND_HEADER: &str = "x-prewarm-kind";
/// Header of a dead-lettered job: its pool.
pub const POOL_HEADER: &str = "x-prewarm-pool";
/// Header of a dead-lettered job: when the worker gave it up, RFC 3339 in UTC.
pub const DIED_AT_HEADER: &str = "x-prewarm-died-at";
/// W3C trace context, carried through to the job and its replies.
pub const TRACEPARENT_HEADER: &str = "traceparent";

/// AMQP `type` of a reply: the job's entrypoint is executing.
pub const STARTED: &str = "prewarm.started.v1";
/// AMQP `type` of a reply: a piece of output.
pub const LOG: &str = "prewarm.log.v1";
/// AMQP `type` of a reply: how the attempt ended; exactly one per attempt, the last.
pub const RESULT: &str = "prewarm.result.v1";
/// AMQP `type` of a reply: a piece of an artifact that is too large for the result.
pub const ARTIFACT: &str = "prewarm.artifact.v1";

/// RabbitMQ's direct reply-to: a name that is no queue. Up to 4.1 the broker returns every mandatory
/// message to it, delivered or not; so whether it was routed can't be told.
pub const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// How long a job that failed through our fault waits before its next attempts, unless `broker.retry_delays` says
/// otherwise.
pub const RETRY_DELAYS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(300)];

/// Every name, under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Names that start with `prefix` (`prewarm` by default).
    pub fn new(prefix: impl Into<String>) -> Names {
        Names { prefix: prefix.into() }
    }

    /// Direct exchange that jobs are published to; the routing key is the pool.
    pub fn jobs(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    /// The queue of one pool's jobs.
    pub fn pool_queue(&self, pool: &PoolName) -> String {
        format!("{}.jobs.{pool}", self.prefix)
    }

    /// The pool whose jobs a queue holds; none if it is no pool's.
    pub fn pool_of(&self, queue: &str) -> Option<PoolName> {
        let rest = queue.strip_prefix(&self.prefix)?.strip_prefix(".jobs.")?;
        PoolName::new(rest).ok()
    }

    /// The queue for what can't be processed.
    pub fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// The queue for what the broker gives up, if workers are to answer for it.
    pub fn died(&self) -> String {
        format!("{}.died", self.prefix)
    }

    /// The queue for results without a reply queue, or whose reply queue is gone.
    pub fn results(&self) -> String {
        format!("{}.results", self.prefix)
    }

    /// Fanout exchange for cancellations.
    pub fn control(&self) -> String {
        format!("{}.control", self.prefix)
    }

    /// Fanout exchange, and the queue bound to it, in which a job waits `delay` before it returns to its
    /// pool's queue. An exchange per delay keeps the routing key, which is the pool.
    pub fn retry(&self, delay: Duration) -> String {
        format!("{}.retry.{}ms", self.prefix, delay.as_millis())
    }

    /// Whether a reply may go to the queue `reply_to`: not to one of ours, where it would be taken for a
    /// job or fill the queue of dead letters.
    pub fn may_reply_to(&self, reply_to: &str) -> bool {
        let ours = reply_to.strip_prefix(&self.prefix).is_some_and(|rest| {
            rest.strip_prefix('.').is_some_and(|rest| {
                ["jobs", "dead", "died", "retry", "control"].iter().any(|family| {
                    rest.strip_prefix(family).is_some_and(|tail| tail.is_empty() || tail.starts_with('.'))
                })
            })
        });
        !ours && reply_to.len() <= 255
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_take_the_prefix() {
        let n = Names::new("acme.ci");
        let pool = PoolName::new("build").unwrap();
        assert_eq!(n.jobs(), "acme.ci.jobs");
        assert_eq!(n.pool_queue(&pool), "acme.ci.jobs.build");
        assert_eq!(n.pool_of("acme.ci.jobs.build"), Some(pool));
        for other in ["acme.ci.jobs", "acme.ci.jobs.", "acme.jobs.build", "acme.ci.dead"] {
            assert_eq!(n.pool_of(other), None, "{other}");
        }
        assert_eq!(n.dead(), "acme.ci.dead");
        assert_eq!(n.results(), "acme.ci.results");
        assert_eq!(n.control(), "acme.ci.control");
        assert_eq!(n.retry(RETRY_DELAYS[1]), "acme.ci.retry.10000ms");
    }

    #[test]
    fn replies_never_go_to_our_own_queues() {
        let n = Names::new("prewarm");
        for ours in [
            "prewarm.jobs.build",
            "prewarm.jobs",
            "prewarm.dead",
            "prewarm.died",
            "prewarm.retry.1000ms",
            "prewarm.control",
        ] {
            assert!(!n.may_reply_to(ours), "{ours}");
        }
        for theirs in
            ["replies", "prewarm.results", "prewarm.jobstatus", "amq.rabbitmq.reply-to.g1.x", "other.dead"]
        {
            assert!(n.may_reply_to(theirs), "{theirs}");
        }
        assert!(!n.may_reply_to(&"x".repeat(256)));
    }
}
