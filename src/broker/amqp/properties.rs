//! Between lapin's properties and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::link::short;
use crate::broker::Properties;
use crate::broker::death::Death;
use crate::contract::topology::{
    ATTEMPTS_HEADER, DELIVERY_COUNT_HEADER, FAILURES_HEADER, TRACEPARENT_HEADER, TROUBLES_HEADER,
};

/// W3C's has 55 characters, and later versions may have some more. It comes back in the header of every reply, which has to
/// fit into one frame.
const TRACEPARENT_MAX: usize = 256;

/// AMQP's delivery mode 2.
const PERSISTENT: u8 = 2;

/// What we read of a delivery's properties. Never fails: what is of another type than it should be counts as absent.
pub(crate) fn decode(raw: &BasicProperties) -> Properties {
    let text = |field: &Option<ShortString>| field.as_ref().map(ToString::to_string);
    let mut ours = Properties {
        message_id: text(raw.message_id()),
        correlation_id: text(raw.correlation_id()),
        reply_to: text(raw.reply_to()),
        content_type: text(raw.content_type()),
        content_encoding: text(raw.content_encoding()),
        kind: text(raw.kind()),
        // Publishers choose the timestamp, up to what doesn't fit a SystemTime.
        timestamp: raw.timestamp().and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at))),
        priority: *raw.priority(),
        death: Death::all(raw).next(),
        ..Properties::default()
    };
    for (name, value) in raw.headers().iter().flat_map(FieldTable::inner) {
        match name.as_str() {
            ATTEMPTS_HEADER => ours.attempts = count(value),
            TROUBLES_HEADER => ours.troubles = count(value),
            FAILURES_HEADER => ours.failures = count(value),
            DELIVERY_COUNT_HEADER => ours.delivery_count = count(value),
            TRACEPARENT_HEADER => {
                ours.traceparent = string(value).filter(|text| text.len() <= TRACEPARENT_MAX)
            }
            name => ours.headers.extend(string(value).map(|value| (name.to_owned(), value))),
        }
    }
    ours
}

/// What we send. A delivery count is the broker's to set, and so is a death: they aren't sent.
pub(crate) fn encode(ours: &Properties) -> BasicProperties {
    let mut headers = FieldTable::default();
    let mut header = |name: &str, value: &str| {
        headers.insert(short(name), AMQPValue::LongString(value.into()));
    };
    for (name, value) in &ours.headers {
        header(name, value);
    }
    if let Some(traceparent) = &ours.traceparent {
        header(TRACEPARENT_HEADER, traceparent);
    }
    for (name, count) in
        [(ATTEMPTS_HEADER, ours.attempts), (TROUBLES_HEADER, ours.troubles), (FAILURES_HEADER, ours.failures)]
    {
        if count > 0 {
            headers.insert(short(name), AMQPValue::LongLongInt(i64::from(count)));
        }
    }

    let mut raw = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if !headers.inner().is_empty() {
        raw = raw.with_headers(headers);
    }
    if let Some(id) = &ours.message_id {
        raw = raw.with_message_id(short(id));
    }
    if let Some(id) = &ours.correlation_id {
        raw = raw.with_correlation_id(short(id));
    }
    if let Some(queue) = &ours.reply_to {
        raw = raw.with_reply_to(short(queue));
    }
    if let Some(content_type) = &ours.content_type {
        raw = raw.with_content_type(short(content_type));
    }
    if let Some(encoding) = &ours.content_encoding {
        raw = raw.with_content_encoding(short(encoding));
    }
    if let Some(kind) = &ours.kind {
        raw = raw.with_type(short(kind));
    }
    if let Some(sent) = ours.timestamp.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()) {
        raw = raw.with_timestamp(sent.as_secs());
    }
    if let Some(priority) = ours.priority {
        raw = raw.with_priority(priority);
    }
    raw
}

fn string(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// A count, in whichever of AMQP's integer types the client at the other end chose. Anything else is 0.
fn count(value: &AMQPValue) -> u32 {
    let wide = match *value {
        AMQPValue::ShortShortInt(n) => i64::from(n),
        AMQPValue::ShortShortUInt(n) => i64::from(n),
        AMQPValue::ShortInt(n) => i64::from(n),
        AMQPValue::ShortUInt(n) => i64::from(n),
        AMQPValue::LongInt(n) => i64::from(n),
        AMQPValue::LongUInt(n) => i64::from(n),
        AMQPValue::LongLongInt(n) => n,
        _ => 0,
    };
    u32::try_from(wide.max(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_arrives() {
        let sent = Properties {
            message_id: Some("id".into()),
            correlation_id: Some("corr".into()),
            reply_to: Some("replies".into()),
            content_type: Some("application/json".into()),
            content_encoding: Some("identity".into()),
            kind: Some("prewarm.result.v1".into()),
            timestamp: Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            priority: Some(5),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            attempts: 3,
            troubles: 2,
            failures: 1,
            delivery_count: 0,
            death: None,
            headers: vec![("x-prewarm-pool".into(), "build".into()), ("x-prewarm-reason".into(), "é".into())],
        };
        let raw = encode(&sent);
        assert_eq!(*raw.delivery_mode(), Some(PERSISTENT));
        assert_eq!(decode(&raw), sent);
        assert_eq!(decode(&encode(&Properties::default())), Properties::default());
    }

    #[test]
    fn counts_of_any_width_are_read_and_garbage_is_0() {
        for (value, expected) in [
            (AMQPValue::ShortShortInt(7), 7),
            (AMQPValue::ShortShortUInt(7), 7),
            (AMQPValue::ShortInt(7), 7),
            (AMQPValue::ShortUInt(7), 7),
            (AMQPValue::LongInt(7), 7),
            (AMQPValue::LongUInt(7), 7),
            (AMQPValue::LongLongInt(7), 7),
            (AMQPValue::LongLongInt(i64::MAX), u32::MAX),
            (AMQPValue::LongLongInt(-1), 0),
            (AMQPValue::LongString("7".into()), 0),
            (AMQPValue::Boolean(true), 0),
            (AMQPValue::Void, 0),
        ] {
            let mut headers = FieldTable::default();
            headers.insert(short(ATTEMPTS_HEADER), value.clone());
            headers.insert(short(DELIVERY_COUNT_HEADER), value.clone());
            let ours = decode(&BasicProperties::default().with_headers(headers));
            assert_eq!((ours.attempts, ours.delivery_count), (expected, expected), "{value:?}");
        }
    }

    #[test]
    fn strange_properties_are_absent_not_fatal() {
        let mut headers = FieldTable::default();
        headers.insert(short(TRACEPARENT_HEADER), AMQPValue::LongLongInt(1));
        headers.insert(short("x-binary"), AMQPValue::LongString(vec![0xff, 0xfe].into()));
        headers.insert(short("x-table"), AMQPValue::FieldTable(FieldTable::default()));
        let ours = decode(&BasicProperties::default().with_headers(headers).with_timestamp(u64::MAX));
        assert_eq!(ours, Properties::default());
    }

    #[test]
    fn what_doesnt_fit_a_short_string_is_cut_between_characters() {
        assert_eq!(short(&"é".repeat(200)).as_str().len(), 254);
        assert_eq!(short("fits").as_str(), "fits");
    }
}
