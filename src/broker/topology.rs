//! The exchanges and queues that prewarm needs, as data; and how to declare or check them.
//!
//! ```text
//! publishers ──► P.jobs (direct) ──key <pool>──► P.jobs.<pool> ──► workers
//!                   ▲                                 │ delivery limit reached
//!                   │ after the delay, key kept       ▼
//! workers ──► P.retry.<delay> (fanout → queue)      P.dead          P.results       P.control (fanout)
//! ```
//!
//! With `broker.expired = "answer"` what a pool's queue gives up goes to P.died instead, which workers empty: they answer for it, and
//! put into P.dead what belongs there.
//!
//! All queues are quorum queues: what was confirmed survives the loss of a node. Where messages leave a queue
//! by dead-lettering it is `at-least-once`, which demands `overflow = reject-publish`: the source keeps a message
//! until the target has confirmed it. So a retry whose pool queue was deleted waits for it, and isn't lost.
//!
//! Delays are one queue each, since a message only expires at its queue's head. Their exchange is a
//! fanout, so that the routing key, which is the pool, survives until the message is dead-lettered to `P.jobs`.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ErrorKind, ExchangeKind};

use super::BrokerError;
use super::ack_timeout::ACK_TIMEOUT;
use super::amqp::link::{Fault, Link, short};
use crate::config::{BrokerConfig, Expired, TopologyMode};
use crate::contract::PoolName;
use crate::contract::topology::Names;

/// RabbitMQ 4.0 drops a message of a quorum queue after 20 returns unless told otherwise, and 3.x doesn't take
/// "never" for an answer. Looking at a dead letter and putting it back must not use it up.
const PRACTICALLY_NEVER: u32 = 1_000_000_000;

/// How often a message that the broker gave up is given to a worker to be answered. Few: what is longer than a frame costs each its
/// connection, and that counts against the jobs which run there.
const ANSWERS_TRIED: u32 = 5;

/// The argument that says where a queue's dead letters go.
const DEAD_LETTER_KEY: &str = "x-dead-letter-routing-key";

/// The argument that says how long a delivery may be held, of a queue and of a consumer.
const CONSUMER_TIMEOUT: &str = "x-consumer-timeout";

/// What a consumer of a pool's queue asks for. From RabbitMQ 4.3 on it goes over what the queue has; older ones ignore it.
pub(super) fn consumer_arguments() -> FieldTable {
    table(&[(CONSUMER_TIMEOUT, ack_timeout())])
}

fn ack_timeout() -> Argument {
    Argument::Number(u32::try_from(ACK_TIMEOUT.as_millis()).unwrap_or(u32::MAX))
}

/// Everything that must exist at the broker before a worker can work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The exchanges, all durable.
    pub exchanges: Vec<Exchange>,
    /// The queues, all durable, with their bindings.
    pub queues: Vec<Queue>,
}

/// A durable exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// How it routes.
    pub routing: Routing,
}

/// How an exchange routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// By equal routing key.
    Direct,
    /// To everything bound.
    Fanout,
}

/// A durable queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its `x-…` arguments. They can't be changed once it exists.
    pub arguments: Vec<(&'static str, Argument)>,
    /// The exchange and routing key that feed it; the default exchange always does.
    pub binding: Option<(String, String)>,
}

/// The value of a queue's argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A string.
    Text(String),
    /// A number that isn't negative.
    Number(u32),
}

impl From<&str> for Argument {
    fn from(text: &str) -> Argument {
        Argument::Text(text.to_owned())
    }
}

impl From<u32> for Argument {
    fn from(number: u32) -> Argument {
        Argument::Number(number)
    }
}

impl Topology {
    /// What workers of these pools need.
    pub fn new<'a>(
        names: &Names,
        pools: impl IntoIterator<Item = &'a PoolName>,
        delivery_limit: u32,
        retry_delays: &[Duration],
    ) -> Topology {
        let mut exchanges = vec![
            Exchange { name: names.jobs(), routing: Routing::Direct },
            Exchange { name: names.control(), routing: Routing::Fanout },
        ];
        let keep = || vec![("x-queue-type", "quorum".into()), ("x-delivery-limit", PRACTICALLY_NEVER.into())];
        let mut queues = vec![
            Queue { name: names.dead(), arguments: keep(), binding: None },
            Queue { name: names.results(), arguments: keep(), binding: None },
        ];
        queues.extend(pools.into_iter().map(|pool| pool_queue(names, pool, delivery_limit)));
        for &delay in retry_delays {
            exchanges.push(Exchange { name: names.retry(delay), routing: Routing::Fanout });
            queues.push(delay_queue(names, delay));
        }
        Topology { exchanges, queues }
    }

    /// What workers of these pools need with this configuration.
    pub fn of<'a>(
        config: &BrokerConfig,
        names: &Names,
        pools: impl IntoIterator<Item = &'a PoolName>,
    ) -> Topology {
        let topology = Topology::new(names, pools, config.delivery_limit, &config.retry_delays);
        match config.expired {
            Expired::Dead => topology,
            Expired::Answer => topology.answering(names),
        }
    }

    /// With what the broker gives up in a queue that workers answer for, in place of the dead letters' queue.
    #[must_use]
    pub fn answering(mut self, names: &Names) -> Topology {
        let died = names.died();
        for queue in &mut self.queues {
            for (name, value) in &mut queue.arguments {
                if *name == DEAD_LETTER_KEY {
                    *value = died.as_str().into();
                }
            }
        }
        // What no worker can answer for, since it is too long to be read, say, is a dead letter after all.
        let arguments = to_dead_letters(names, ANSWERS_TRIED);
        self.queues.push(Queue { name: died, arguments, binding: None });
        self
    }

    /// Declares or checks everything on `link`.
    ///
    /// # Errors
    /// [`BrokerError::Topology`] names all that is wrong, and what to do; other errors if the broker can't be asked.
    pub(super) async fn ensure(&self, link: &Link, mode: TopologyMode) -> Result<(), BrokerError> {
        let findings = self.survey(link, mode, Missing::Declare).await?;
        let wrong: Vec<String> = findings
            .into_iter()
            .filter_map(|finding| match (finding.state, mode) {
                (State::Conflict(why), _) => Some(why),
                (State::Missing, TopologyMode::Check) => Some(format!(
                    "{} doesn't exist: declare it, or set broker.topology = \"declare\" to have the worker do it",
                    finding.what
                )),
                (State::Missing | State::Present, _) => None,
            })
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(BrokerError::Topology(wrong.join("; "))) }
    }

    /// Looks at each exchange and queue in turn.
    pub(super) async fn survey(
        &self,
        link: &Link,
        mode: TopologyMode,
        missing: Missing,
    ) -> Result<Vec<Finding>, BrokerError> {
        let mut probe = Probe { link, channel: None, missing };
        let mut findings = Vec::new();
        for exchange in &self.exchanges {
            let state = probe.examine(mode, Item::Exchange(exchange)).await?;
            findings.push(Finding { what: format!("exchange '{}'", exchange.name), state });
        }
        for queue in &self.queues {
            let state = probe.examine(mode, Item::Queue(queue)).await?;
            findings.push(Finding { what: format!("queue '{}'", queue.name), state });
        }
        probe.finish().await;
        Ok(findings)
    }
}

fn pool_queue(names: &Names, pool: &PoolName, delivery_limit: u32) -> Queue {
    let mut arguments = to_dead_letters(names, delivery_limit);
    arguments.push((CONSUMER_TIMEOUT, ack_timeout()));
    Queue { name: names.pool_queue(pool), arguments, binding: Some((names.jobs(), pool.as_str().to_owned())) }
}

/// Of a queue whose messages become dead letters when they are given out more often than this.
fn to_dead_letters(names: &Names, delivery_limit: u32) -> Vec<(&'static str, Argument)> {
    vec![
        ("x-queue-type", "quorum".into()),
        ("x-dead-letter-exchange", "".into()),
        (DEAD_LETTER_KEY, names.dead().as_str().into()),
        ("x-dead-letter-strategy", "at-least-once".into()),
        ("x-overflow", "reject-publish".into()),
        ("x-delivery-limit", delivery_limit.into()),
    ]
}

fn delay_queue(names: &Names, delay: Duration) -> Queue {
    let ttl = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
    Queue {
        name: names.retry(delay),
        arguments: vec![
            ("x-queue-type", "quorum".into()),
            ("x-message-ttl", ttl.into()),
            ("x-dead-letter-exchange", names.jobs().as_str().into()),
            ("x-dead-letter-strategy", "at-least-once".into()),
            ("x-overflow", "reject-publish".into()),
        ],
        binding: Some((names.retry(delay), String::new())),
    }
}

/// Whether a survey changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Declare what isn't there, if the mode allows it.
    Declare,
    /// Only look.
    Report,
}

/// What a survey found about one exchange or queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// `queue 'x'`, `exchange 'x'`.
    pub(super) what: String,
    pub(super) state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Present,
    Missing,
    /// There, but not as needed: the sentence for the operator.
    Conflict(String),
}

#[derive(Clone, Copy)]
enum Item<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
}

#[derive(Clone, Copy)]
enum How {
    /// Only whether it is there.
    Passive,
    /// That it is there, with our arguments and its binding.
    Active,
    /// That it is there, whatever its arguments, with its binding.
    Existing,
}

fn is_about_ack_timeout(fault: &Fault) -> bool {
    fault.reply_code() == Some(406) && fault.to_string().contains(CONSUMER_TIMEOUT)
}

/// Asks the broker; a refusal closes the channel (AMQP has no softer way to say no), so it opens another.
struct Probe<'a> {
    link: &'a Link,
    channel: Option<Channel>,
    missing: Missing,
}

impl Probe<'_> {
    async fn examine(&mut self, mode: TopologyMode, item: Item<'_>) -> Result<State, BrokerError> {
        // In the common case, `declare` at work, the active declaration says it all in one round trip.
        if mode == TopologyMode::Check || self.missing == Missing::Report {
            match self.declare(item, How::Passive).await {
                Ok(()) => {}
                Err(fault) if fault.reply_code() == Some(404) => return Ok(State::Missing),
                Err(fault) => return self.refused(item, &fault),
            }
            if mode == TopologyMode::Check {
                return Ok(State::Present);
            }
        }
        // A passive declaration compares names only; an active one of what exists compares everything.
        match self.declare(item, How::Active).await {
            Ok(()) => Ok(State::Present),
            Err(fault) if is_about_ack_timeout(&fault) => self.examine_but_ack_timeout(item).await,
            Err(fault) => self.refused(item, &fault),
        }
    }

    /// From 4.3 on the broker compares this argument, which older ones ignore in what exists. There the consumer's own goes
    /// over it, so a queue that has none, or another, is as good: it may be from an older prewarm, or an operator's.
    async fn examine_but_ack_timeout(&mut self, item: Item<'_>) -> Result<State, BrokerError> {
        let Item::Queue(queue) = item else { return Ok(State::Present) };
        let without = queue.arguments.iter().filter(|(name, _)| *name != CONSUMER_TIMEOUT).cloned().collect();
        let without = Queue { arguments: without, ..queue.clone() };
        let mut declared = self.declare(Item::Queue(&without), How::Active).await;
        if declared.as_ref().is_err_and(is_about_ack_timeout) {
            // It has another one, which we can't name.
            declared = self.declare(item, How::Existing).await;
        }
        match declared {
            Ok(()) => Ok(State::Present),
            Err(fault) => self.refused(item, &fault),
        }
    }

    fn refused(&self, item: Item<'_>, fault: &Fault) -> Result<State, BrokerError> {
        let (kind, name) = match item {
            Item::Exchange(exchange) => ("exchange", &exchange.name),
            Item::Queue(queue) => ("queue", &queue.name),
        };
        match fault.reply_code() {
            Some(406) => Ok(State::Conflict(format!(
                "{kind} '{name}' exists with other settings: {fault}; delete it once it is empty so that it is \
                 declared anew, or set broker.topology = \"check\" to take it as it is"
            ))),
            Some(403) => Ok(State::Conflict(format!(
                "{kind} '{name}': {fault}; give the user the permissions configure, write and read on names that \
                 start with the prefix (and, for replies and cancellations, write on 'amq.default' and all three on 'amq.gen-.*'), or have somebody else declare it and set broker.topology = \"check\""
            ))),
            Some(405) => Ok(State::Conflict(format!(
                "{kind} '{name}' is in exclusive use by another connection: {fault}"
            ))),
            _ => Err(self.link.broker_error("declaring exchanges and queues", fault)),
        }
    }

    async fn declare(&mut self, item: Item<'_>, how: How) -> Result<(), Fault> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.link.channel().await?,
        };
        let passive = matches!(how, How::Passive | How::Existing);
        match item {
            Item::Exchange(exchange) => {
                let kind = match exchange.routing {
                    Routing::Direct => ExchangeKind::Direct,
                    Routing::Fanout => ExchangeKind::Fanout,
                };
                let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
                let declare =
                    channel.exchange_declare(short(&exchange.name), kind, options, FieldTable::default());
                self.link.ask("declaring an exchange", declare).await?;
            }
            Item::Queue(queue) => {
                let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
                let declare = channel.queue_declare(short(&queue.name), options, table(&queue.arguments));
                self.link.ask("declaring a queue", declare).await?;
                if let (How::Active | How::Existing, Missing::Declare, Some((exchange, key))) =
                    (how, self.missing, &queue.binding)
                {
                    let bind = channel.queue_bind(
                        short(&queue.name),
                        short(exchange),
                        short(key),
                        QueueBindOptions::default(),
                        FieldTable::default(),
                    );
                    self.link.ask("binding a queue", bind).await?;
                }
            }
        }
        // Only now: one that was refused is closed.
        self.channel = Some(channel);
        Ok(())
    }

    async fn finish(self) {
        if let Some(channel) = self.channel {
            self.link.close_channel(&channel).await;
        }
    }
}

fn table(arguments: &[(&'static str, Argument)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(i64::from(*number)),
        };
        table.insert(short(name), value);
    }
    table
}

/// The AMQP reply code of an error that the broker sent.
pub(super) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.kind().get_id()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::topology::RETRY_DELAYS;

    fn topology() -> Topology {
        let pools = [PoolName::new("build").unwrap(), PoolName::new("test").unwrap()];
        Topology::new(&Names::new("p"), &pools, 7, &RETRY_DELAYS)
    }

    #[test]
    fn every_queue_is_a_quorum_queue() {
        for queue in topology().queues {
            assert!(queue.arguments.contains(&("x-queue-type", "quorum".into())), "{}", queue.name);
        }
    }

    #[test]
    fn dead_lettering_is_never_lossy() {
        for queue in topology().queues {
            let has = |name: &str| queue.arguments.iter().any(|(argument, _)| *argument == name);
            if has("x-dead-letter-exchange") {
                for needed in [("x-dead-letter-strategy", "at-least-once"), ("x-overflow", "reject-publish")]
                {
                    assert!(queue.arguments.contains(&(needed.0, needed.1.into())), "{}", queue.name);
                }
            }
        }
    }

    #[test]
    fn bindings_lead_to_declared_exchanges() {
        let topology = topology();
        for queue in &topology.queues {
            if let Some((exchange, _)) = &queue.binding {
                assert!(topology.exchanges.iter().any(|e| e.name == *exchange), "{exchange}");
            }
        }
        assert_eq!(topology.exchanges.len(), 2 + RETRY_DELAYS.len());
        assert_eq!(topology.queues.len(), 2 + 2 + RETRY_DELAYS.len());
    }

    #[test]
    fn what_workers_answer_for_has_a_queue_of_its_own() {
        let topology = topology().answering(&Names::new("p"));
        let to = |name: &str| {
            topology
                .queues
                .iter()
                .filter(|queue| queue.arguments.contains(&(DEAD_LETTER_KEY, name.into())))
                .count()
        };
        assert_eq!((to("p.died"), to("p.dead")), (2, 1));
        let died = topology.queues.iter().find(|queue| queue.name == "p.died").unwrap();
        assert!(died.arguments.contains(&(DEAD_LETTER_KEY, "p.dead".into())) && died.binding.is_none());
        assert!(died.arguments.contains(&("x-delivery-limit", ANSWERS_TRIED.into())));
    }

    #[test]
    fn each_configured_delay_has_its_queue_and_no_other() {
        let delays = [Duration::from_millis(10), Duration::from_secs(24 * 3600)];
        let topology = Topology::new(&Names::new("p"), [], 7, &delays);
        let of = |name: &str| topology.queues.iter().find(|queue| queue.name == name).unwrap();
        for (name, ttl) in [("p.retry.10ms", 10), ("p.retry.86400000ms", 86_400_000)] {
            assert!(of(name).arguments.contains(&("x-message-ttl", ttl.into())), "{name}");
            assert_eq!(of(name).binding, Some((name.to_owned(), String::new())));
        }
        assert_eq!(topology.queues.iter().filter(|queue| queue.name.starts_with("p.retry.")).count(), 2);
    }

    #[test]
    fn a_pool_queue_has_the_configured_limit_and_the_pool_as_key() {
        let topology = topology();
        let queue = topology.queues.iter().find(|queue| queue.name == "p.jobs.build").unwrap();
        assert!(queue.arguments.contains(&("x-delivery-limit", 7.into())));
        assert!(queue.arguments.contains(&("x-consumer-timeout", 2_073_600_000.into())));
        assert_eq!(queue.binding, Some(("p.jobs".into(), "build".into())));
    }
}
