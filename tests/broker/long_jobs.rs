//! Jobs that are held for longer than the broker would wait by default.

use std::fs;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use prewarm::broker::topology::Argument;
use prewarm::broker::{Broker, Settle};
use tokio::time::timeout;

use crate::setup::{DEADLINE, Needs, Setup, close, next, probe, run, run_at, until_connected};
use crate::support::own_broker::{self, OwnBroker};

/// What an operator, or an older prewarm, may have declared the pool's queue with.
async fn declare_pool_queue(setup: &Setup, consumer_timeout: Option<i64>) {
    let name = setup.names.pool_queue(&setup.pool);
    let topology = setup.topology();
    let queue = topology.queues.iter().find(|queue| queue.name == name).unwrap();
    let mut arguments = FieldTable::default();
    for (name, value) in queue.arguments.iter().filter(|(name, _)| *name != "x-consumer-timeout") {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(i64::from(*number)),
        };
        arguments.insert((*name).into(), value);
    }
    if let Some(milliseconds) = consumer_timeout {
        arguments.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(milliseconds));
    }
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    setup.admin.queue_declare(name.into(), durable, arguments).await.unwrap();
}

#[test]
fn a_queue_that_was_declared_otherwise_is_taken_as_it_is() {
    for theirs in [None, Some(3_600_000)] {
        run(Needs::OwnNames, async |setup: &Setup| {
            declare_pool_queue(setup, theirs).await;
            let report = probe(&setup.config, &setup.pool).await.unwrap();
            assert!(report.is_usable(), "{report:?}");
            let broker = setup.broker().await;
            // It has its binding, too.
            setup.publish_job("job").await;
            next(&mut broker.consumer(&setup.pool)).await.receipt.settle(Settle::Ack).await.unwrap();
            close(&broker).await;
        });
    }
}

/// From 3.12 on by the queue's argument; from 4.3 on by the consumer's, whatever the queue says.
/// Debian's unstable release may be in any state on any day, so its 4.3 is tried in the long form only.
#[test]
fn newer_brokers_wait_for_long_jobs() {
    let long = std::env::var("PREWARM_TEST_CHAOS").is_ok_and(|form| form == "long");
    let suites = [("trixie", None), ("sid", Some(1000))];
    for (suite, theirs) in suites.into_iter().take(if long { 2 } else { 1 }) {
        let root = own_broker::root(suite);
        let mut server = OwnBroker::prepare(Some(&root), |dir| {
            // Otherwise it looks once a minute.
            fs::write(dir.join("advanced.config"), "[{rabbit, [{channel_tick_interval, 1000}]}].\n").unwrap();
            "consumer_timeout = 2000".to_owned()
        });
        server.up();
        run_at(server.url(), Needs::OwnNames, async |setup: &Setup| {
            if theirs.is_some() {
                declare_pool_queue(setup, theirs).await;
            }
            let broker = setup.start(&setup.config);
            until_connected(&broker).await;
            let mut consumer = broker.consumer(&setup.pool);
            setup.publish_job("long").await;
            let held = next(&mut consumer).await;
            for _ in 0..2 {
                until_another_consumer_is_too_slow(setup).await;
            }
            held.receipt.settle(Settle::Ack).await.unwrap();
            close(&broker).await;
            assert_eq!(
                setup.ready(&setup.names.pool_queue(&setup.pool)).await,
                0,
                "{suite}: it was not given out again"
            );
        });
    }
}

/// Takes a message as a client does that asks for nothing, and holds it until the broker has enough of that.
async fn until_another_consumer_is_too_slow(setup: &Setup) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let queue = setup.reply_queue(arguments).await;
    let connection = Connection::connect(setup.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
    let options = BasicConsumeOptions::default();
    let mut consumer = channel
        .basic_consume(queue.as_str().into(), "slow".into(), options, FieldTable::default())
        .await
        .unwrap();
    let publish = BasicPublishOptions::default();
    setup
        .admin
        .basic_publish("".into(), queue.as_str().into(), publish, b"x", BasicProperties::default())
        .await
        .unwrap();
    let first = timeout(DEADLINE, consumer.next()).await.unwrap();
    assert!(matches!(first, Some(Ok(_))));
    // The channel's end, or the consumer's.
    let end = timeout(DEADLINE, consumer.next()).await.expect("the broker waits for two seconds");
    assert!(!matches!(end, Some(Ok(_))));
    drop(first);
    setup.admin.queue_purge(queue.into(), QueuePurgeOptions::default()).await.unwrap();
    connection.close(200, "OK".into()).await.unwrap();
}
