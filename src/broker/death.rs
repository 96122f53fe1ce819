//! Why the broker took a message out of a queue: its `x-death` header.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::contract::PoolName;
use crate::contract::topology::Names;

/// RabbitMQ's word for a message whose publisher's `expiration`, or whose queue's time to live, is over.
pub const EXPIRED: &str = "expired";
/// RabbitMQ's word for a message that was given out too often.
pub const DELIVERY_LIMIT: &str = "delivery_limit";

/// How a message left a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// The queue.
    pub queue: String,
    /// The broker's word for why: [`EXPIRED`], [`DELIVERY_LIMIT`], `rejected`, `maxlen`.
    pub reason: String,
    /// When, in whole seconds.
    pub at: Option<SystemTime>,
}

impl Death {
    /// Those that a message tells of, the newest first, as far as they can be read. The broker has an entry for each queue and reason.
    pub(super) fn all(raw: &BasicProperties) -> impl Iterator<Item = Death> {
        let entries = match raw.headers().as_ref().and_then(|headers| headers.inner().get("x-death")) {
            Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
            _ => &[],
        };
        entries.iter().map_while(Death::read)
    }

    fn read(entry: &AMQPValue) -> Option<Death> {
        let AMQPValue::FieldTable(entry) = entry else { return None };
        let at = match entry.inner().get("time") {
            Some(AMQPValue::Timestamp(at)) => UNIX_EPOCH.checked_add(Duration::from_secs(*at)),
            _ => None,
        };
        Some(Death { queue: text(entry, "queue")?, reason: text(entry, "reason")?, at })
    }

    /// The pool that it was for; none if it was in no pool's queue.
    pub fn pool(&self, names: &Names) -> Option<PoolName> {
        names.pool_of(&self.queue)
    }

    /// The same in words. `limit` is the pool queues' delivery limit, if that is known.
    pub fn words(&self, limit: Option<u32>) -> String {
        let queue = &self.queue;
        match self.reason.as_str() {
            DELIVERY_LIMIT => {
                let limit = limit.map_or_else(String::new, |limit| format!(" ({limit})"));
                format!(
                    "given out more often than broker.delivery_limit{limit} without being settled; did it kill its workers?"
                )
            }
            EXPIRED => format!("it waited in '{queue}' for longer than its publisher's expiration"),
            "rejected" => format!("something that is no prewarm rejected it from '{queue}'"),
            other => format!("the broker dead-lettered it from '{queue}': {other}"),
        }
    }
}

fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}
