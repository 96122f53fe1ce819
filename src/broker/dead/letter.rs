//! Pure: what a dead letter says of itself, and what a job keeps of it when it is sent again.
//!
//! Dead letters come two ways. A worker writes its reason into headers of ours. The broker, at the pool queue's delivery
//! limit, knows no reasons: it leaves an `x-death` table for each queue and reason, the newest first. Whatever a
//! worker publishes has no `x-death`, so where the newest one is of a pool's queue, it is newer than any header of ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Map, Value, json};

use crate::broker::amqp::link::short;
use crate::broker::amqp::properties;
use crate::broker::death::Death;
use crate::contract::PoolName;
use crate::contract::event::timestamp;
use crate::contract::topology::{
    ATTEMPTS_HEADER, DELIVERY_COUNT_HEADER, DIED_AT_HEADER, FAILURES_HEADER, KIND_HEADER, Names, POOL_HEADER,
    REASON_HEADER, TROUBLES_HEADER,
};

/// The kind of what has neither headers of ours nor an `x-death`.
pub const UNKNOWN: &str = "unknown";

/// What is known of one dead letter, without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The job's id, if the publisher gave one.
    pub id: Option<String>,
    /// The pool that it was for.
    pub pool: Option<PoolName>,
    /// Why: `error.kind` of a worker's result, or the broker's word (`delivery_limit`, `rejected`, `expired`).
    pub kind: String,
    /// Why, in words.
    pub reason: String,
    /// Attempts that were made; not known of what the broker dead-lettered.
    pub attempts: Option<u32>,
    /// When it was given up.
    pub died: Option<SystemTime>,
    /// How often it was looked at and put back here.
    pub looked_at: u32,
    /// Bytes of its body.
    pub bytes: usize,
}

impl Letter {
    /// Reads a dead letter's properties. `limit` is the pool queues' delivery limit, for the words.
    pub(super) fn read(raw: &BasicProperties, bytes: usize, names: &Names, limit: u32) -> Letter {
        let ours = properties::decode(raw);
        let header =
            |name: &str| ours.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        // That no worker could answer for it is not what it died of.
        let died = names.died();
        let death = Death::all(raw).find(|death| death.queue != died);
        let by_broker =
            death.as_ref().filter(|death| death.pool(names).is_some() || header(REASON_HEADER).is_none());
        let letter = Letter {
            id: ours.message_id.clone().filter(|id| !id.is_empty()),
            pool: None,
            kind: UNKNOWN.to_owned(),
            reason: "it has no reason: neither a worker nor the broker put it here".to_owned(),
            attempts: None,
            died: None,
            looked_at: ours.delivery_count,
            bytes,
        };
        match (by_broker, header(REASON_HEADER)) {
            (Some(death), _) => Letter {
                pool: death.pool(names),
                kind: death.reason.to_owned(),
                reason: death.words(Some(limit)),
                died: death.at,
                ..letter
            },
            (None, Some(reason)) => Letter {
                pool: header(POOL_HEADER).and_then(|pool| PoolName::new(pool).ok()),
                kind: header(KIND_HEADER).unwrap_or(UNKNOWN).to_owned(),
                reason: reason.to_owned(),
                attempts: Some(ours.attempts),
                died: header(DIED_AT_HEADER).and_then(|at| humantime::parse_rfc3339(at).ok()),
                ..letter
            },
            (None, None) => letter,
        }
    }
}

/// Whether a header tells how the message died, how often it was given out, or where else it went when it was published.
fn is_of_death(name: &str) -> bool {
    matches!(
        name,
        REASON_HEADER
            | KIND_HEADER
            | POOL_HEADER
            | DIED_AT_HEADER
            | ATTEMPTS_HEADER
            | TROUBLES_HEADER
            | FAILURES_HEADER
            | DELIVERY_COUNT_HEADER
    ) || matches!(name, "x-death" | "CC" | "BCC")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// The properties with which a dead letter becomes a job again: the publisher's, all of them but one.
pub(super) fn as_new(raw: &BasicProperties) -> BasicProperties {
    // The broker takes a user id only from that user.
    let mut new = BasicProperties::default().with_delivery_mode(2);
    macro_rules! keep {
        ($($field:ident $with:ident),*) => { $(if let Some(value) = raw.$field() { new = new.$with(value.clone()); })* };
    }
    keep!(
        message_id with_message_id, correlation_id with_correlation_id, reply_to with_reply_to,
        content_type with_content_type, content_encoding with_content_encoding, kind with_type,
        timestamp with_timestamp, priority with_priority, expiration with_expiration, app_id with_app_id
    );
    let mut headers = FieldTable::default();
    for (name, value) in raw.headers().iter().flat_map(FieldTable::inner) {
        if !is_of_death(name.as_str()) {
            headers.insert(short(name.as_str()), value.clone());
        }
    }
    if headers.inner().is_empty() { new } else { new.with_headers(headers) }
}

/// All properties and headers, for people.
pub(super) fn all(raw: &BasicProperties) -> Map<String, Value> {
    let mut all = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            all.insert(name.to_owned(), value);
        }
    };
    let words = |text: &Option<lapin::types::ShortString>| text.as_ref().map(|text| json!(text.as_str()));
    put("message_id", words(raw.message_id()));
    put("correlation_id", words(raw.correlation_id()));
    put("reply_to", words(raw.reply_to()));
    put("content_type", words(raw.content_type()));
    put("content_encoding", words(raw.content_encoding()));
    put("type", words(raw.kind()));
    put("timestamp", raw.timestamp().map(moment));
    put("priority", raw.priority().map(Value::from));
    put("expiration", words(raw.expiration()));
    put("app_id", words(raw.app_id()));
    put("user_id", words(raw.user_id()));
    put("headers", raw.headers().as_ref().map(table));
    all
}

fn table(table: &FieldTable) -> Value {
    table.inner().iter().map(|(name, value)| (name.to_string(), plain(value))).collect::<Map<_, _>>().into()
}

fn moment(seconds: u64) -> Value {
    match UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).map(timestamp) {
        Some(text) if !text.is_empty() => text.into(),
        _ => seconds.into(),
    }
}

/// A header's value in JSON; what is no text comes as base64.
fn plain(value: &AMQPValue) -> Value {
    let bytes =
        |bytes: &[u8]| std::str::from_utf8(bytes).map_or_else(|_| BASE64.encode(bytes).into(), Value::from);
    match value {
        AMQPValue::Boolean(flag) => (*flag).into(),
        AMQPValue::ShortShortInt(n) => (*n).into(),
        AMQPValue::ShortShortUInt(n) => (*n).into(),
        AMQPValue::ShortInt(n) => (*n).into(),
        AMQPValue::ShortUInt(n) => (*n).into(),
        AMQPValue::LongInt(n) => (*n).into(),
        AMQPValue::LongUInt(n) => (*n).into(),
        AMQPValue::LongLongInt(n) => (*n).into(),
        AMQPValue::Float(x) => (*x).into(),
        AMQPValue::Double(x) => (*x).into(),
        AMQPValue::DecimalValue(decimal) => format!("{decimal:?}").into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => bytes(text.as_bytes()),
        AMQPValue::ByteArray(array) => bytes(array.as_slice()),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(plain).collect(),
        AMQPValue::Timestamp(at) => moment(*at),
        AMQPValue::FieldTable(inner) => table(inner),
        AMQPValue::Void => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn headers(entries: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert(short(name), value.clone());
        }
        table
    }

    fn deaths(entries: &[(&str, &str)]) -> AMQPValue {
        let of = |(queue, reason): &(&str, &str)| {
            let time = AMQPValue::Timestamp(1_700_000_000);
            let entry = [("queue", string(queue)), ("reason", string(reason)), ("time", time)];
            AMQPValue::FieldTable(headers(&entry))
        };
        AMQPValue::FieldArray(entries.iter().map(of).collect::<Vec<_>>().into())
    }

    fn read(table: FieldTable) -> Letter {
        let raw = BasicProperties::default().with_message_id("id".into()).with_headers(table);
        Letter::read(&raw, 3, &Names::new("p"), 20)
    }

    fn by_worker() -> Vec<(&'static str, AMQPValue)> {
        vec![
            (REASON_HEADER, string("why")),
            (KIND_HEADER, string("invalid_job")),
            (POOL_HEADER, string("build")),
            (DIED_AT_HEADER, string("2023-11-14T22:13:20.5Z")),
            (ATTEMPTS_HEADER, AMQPValue::LongLongInt(4)),
        ]
    }

    #[test]
    fn a_workers_headers_tell_the_story() {
        let letter = read(headers(&by_worker()));
        assert_eq!((letter.id.as_deref(), letter.bytes), (Some("id"), 3));
        assert_eq!(letter.pool, PoolName::new("build").ok());
        assert_eq!((letter.kind.as_str(), letter.reason.as_str()), ("invalid_job", "why"));
        assert_eq!(letter.attempts, Some(4));
        assert_eq!(letter.died, Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_500)));
    }

    #[test]
    fn the_brokers_own_tell_the_queue_and_its_word() {
        let letter = read(headers(&[
            ("x-death", deaths(&[("p.jobs.build", "delivery_limit"), ("p.retry.1000ms", "expired")])),
            ("x-first-death-queue", string("p.retry.1000ms")),
        ]));
        assert_eq!(letter.pool, PoolName::new("build").ok(), "not the queue of its first death");
        assert_eq!(letter.kind, "delivery_limit");
        assert!(letter.reason.contains("broker.delivery_limit (20)"), "{}", letter.reason);
        assert!(letter.reason.contains("did it kill its workers?"), "{}", letter.reason);
        assert_eq!(letter.attempts, None);
        assert_eq!(letter.died, Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    }

    #[test]
    fn of_both_the_newer_counts() {
        let mut both = by_worker();
        both.push(("x-death", deaths(&[("p.died", "delivery_limit"), ("p.jobs.build", "expired")])));
        let unanswered = read(headers(&both));
        assert_eq!(
            (unanswered.kind.as_str(), unanswered.pool.as_ref().map(PoolName::as_str)),
            ("expired", Some("build"))
        );
        both.pop();
        both.push(("x-death", deaths(&[("p.jobs.build", "delivery_limit")])));
        assert_eq!(read(headers(&both)).kind, "delivery_limit", "a worker's copy has no x-death");
        // Moved about by a policy of somebody's: that is not what it died of.
        both.pop();
        both.push(("x-death", deaths(&[("parked", "expired")])));
        assert_eq!(read(headers(&both)).kind, "invalid_job");
    }

    #[test]
    fn strangers_and_garbage_are_unknown_not_fatal() {
        for table in [
            FieldTable::default(),
            headers(&[("x-death", string("?"))]),
            headers(&[("x-death", AMQPValue::FieldArray(vec![AMQPValue::Void].into()))]),
            headers(&[(REASON_HEADER, AMQPValue::LongLongInt(1))]),
        ] {
            let letter = read(table);
            assert_eq!((letter.kind.as_str(), letter.pool, letter.died), (UNKNOWN, None, None));
        }
        let strange = headers(&[(REASON_HEADER, string("why")), (POOL_HEADER, string("no pool"))]);
        assert_eq!(read(strange).pool, None);
    }

    #[test]
    fn sent_again_only_what_its_publisher_said_is_left() {
        let mut table = by_worker();
        let theirs = [
            ("traceparent", string("00-1-2-01")),
            ("x-theirs", AMQPValue::FieldArray(vec![AMQPValue::LongInt(7), AMQPValue::Void].into())),
        ];
        table.extend(theirs.clone());
        table.push(("x-death", deaths(&[("p.jobs.build", "delivery_limit")])));
        for name in ["x-first-death-queue", "x-last-death-reason", DELIVERY_COUNT_HEADER] {
            table.push((name, string("x")));
        }
        let theirs_alone = BasicProperties::default()
            .with_message_id("id".into())
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_type("t".into())
            .with_timestamp(7)
            .with_priority(3)
            .with_expiration("60000".into())
            .with_app_id("a".into())
            .with_delivery_mode(2);
        let dead = theirs_alone.clone().with_user_id("alice".into()).with_delivery_mode(1);
        assert_eq!(
            as_new(&dead.clone().with_headers(headers(&table))),
            theirs_alone.clone().with_headers(headers(&theirs))
        );
        assert_eq!(as_new(&dead.with_headers(headers(&by_worker()))), theirs_alone);
    }

    #[test]
    fn all_of_it_can_be_shown() {
        let raw = BasicProperties::default()
            .with_message_id("id".into())
            .with_timestamp(u64::MAX)
            .with_headers(headers(&[
                ("a", AMQPValue::LongString(vec![0xff].into())),
                ("b", deaths(&[("q", "r")])),
                ("c", AMQPValue::Double(f64::NAN)),
            ]));
        let shown = Value::from(all(&raw));
        assert_eq!(shown["message_id"], "id");
        assert_eq!(shown["timestamp"], u64::MAX);
        assert_eq!(shown["headers"]["a"], "/w==");
        assert_eq!(shown["headers"]["b"][0]["time"], "2023-11-14T22:13:20Z");
        assert_eq!(shown["headers"]["c"], Value::Null);
    }
}
