//! What must hold when the broker, or the way to it, fails.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lapin::options::{BasicPublishOptions, ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use prewarm::broker::{Broker, BrokerError, Message, Routed, Settle, Target};
use prewarm::config::{BrokerConfig, TopologyMode};
use prewarm::contract::topology::RETRY_DELAYS;
use tokio::time::timeout;

use crate::setup::{
    DEADLINE, Needs, Setup, close, confirmed, cut_off, eventually, message, next, probe, run, send,
    until_connected, until_disconnected,
};
use crate::support::broker::rabbitmqctl;

#[test]
fn after_a_cut_deliveries_come_again_and_old_receipts_are_stale() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (proxy, config) = setup.proxy().await;
        let broker = setup.broker_with(&config).await;
        let mut consumer = broker.consumer(&setup.pool);
        setup.publish_job("job").await;
        let before = next(&mut consumer).await;
        for _ in 0..3 {
            cut_off(&broker, || proxy.cut()).await;
            let after = next(&mut consumer).await;
            assert!(after.redelivered);
            assert_eq!(after.body, Bytes::from("job"));
            until_connected(&broker).await;
            drop(after);
        }
        let error = before.receipt.settle(Settle::Ack).await.unwrap_err();
        assert!(matches!(error, BrokerError::Stale(_)), "{error}");
        next(&mut consumer).await.receipt.settle(Settle::Ack).await.unwrap();
        close(&broker).await;
        assert_eq!(setup.ready(&setup.names.pool_queue(&setup.pool)).await, 0);
    });
}

#[test]
fn what_was_unconfirmed_is_sent_again_in_order() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (proxy, config) = setup.proxy().await;
        let broker = setup.broker_with(&config).await;
        let replies = setup.reply_queue(FieldTable::default()).await;
        let mut publisher = broker.publisher();
        let mut numbered = (0..500).map(|n| message(&replies, n.to_string()));
        for _ in 0..5 {
            for message in numbered.by_ref().take(79) {
                send(&mut publisher, message).await;
            }
            // With an empty window to start from, these fit, and are on their way when the cut comes.
            assert_eq!(confirmed(&mut publisher, numbered.next().unwrap()).await, Routed::Yes);
            proxy.freeze();
            for message in numbered.by_ref().take(20) {
                send(&mut publisher, message).await;
            }
            proxy.cut();
            proxy.thaw();
        }
        assert_eq!(confirmed(&mut publisher, message(&replies, "end")).await, Routed::Yes);
        let mut expected = 0;
        loop {
            let body = setup.take(&replies).await;
            if body == "end" {
                break;
            }
            let n: usize = body.parse().unwrap();
            assert!(n <= expected, "{n} came before {expected}");
            expected = expected.max(n + 1);
        }
        assert_eq!(expected, 500, "none is missing");
        close(&broker).await;
    });
}

#[test]
fn a_confirmed_result_survives_a_cut_while_it_is_waited_for() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (proxy, config) = setup.proxy().await;
        let broker = setup.broker_with(&config).await;
        let replies = setup.reply_queue(FieldTable::default()).await;
        let mut publisher = broker.publisher();
        assert_eq!(confirmed(&mut publisher, message(&replies, "warm up")).await, Routed::Yes);
        proxy.freeze();
        let (routed, ()) = tokio::join!(confirmed(&mut publisher, message(&replies, "result")), async {
            proxy.cut();
            proxy.thaw();
        });
        assert_eq!(routed, Routed::Yes);
        assert_eq!(setup.take(&replies).await, "warm up");
        assert_eq!(setup.take(&replies).await, "result");
        close(&broker).await;
    });
}

#[test]
fn a_silent_peer_is_noticed_after_two_heartbeats() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (proxy, config) = setup.proxy().await;
        let config = BrokerConfig { heartbeat: Duration::from_secs(1), ..config };
        let broker = setup.broker_with(&config).await;
        let mut consumer = broker.consumer(&setup.pool);
        setup.publish_job("job").await;
        next(&mut consumer).await.receipt.settle(Settle::Ack).await.unwrap();
        proxy.freeze();
        let since = Instant::now();
        until_disconnected(&broker).await;
        // lapin looks every half heartbeat, and the broker's last sign may be that old: three seconds at most, on a
        // machine that isn't busy. With the heartbeat of ten seconds that is the default it would be ten at least.
        let took = since.elapsed();
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(8), "{took:?}");
        proxy.cut();
        proxy.thaw();
        setup.publish_job("another").await;
        assert_eq!(next(&mut consumer).await.body, Bytes::from("another"));
        until_connected(&broker).await;
        close(&broker).await;
    });
}

#[test]
fn a_frozen_broker_holds_at_most_the_window_and_gets_all_of_it_later() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (proxy, config) = setup.proxy().await;
        // Far longer than the freeze; and closing, which may take all of it, has to be over before the deadline.
        let config = BrokerConfig { timeout: DEADLINE / 2, ..config };
        let broker = setup.broker_with(&config).await;
        let replies = setup.reply_queue(FieldTable::default()).await;
        let small = Bytes::from_static(b"small");
        let large = Bytes::from(vec![b'x'; 100 * 1024]);
        let huge = Bytes::from(vec![b'x'; 3 * 1024 * 1024]);
        for (body, fit) in [(small, 64), (large, 10), (huge, 1)] {
            let mut publisher = broker.publisher();
            assert_eq!(confirmed(&mut publisher, message(&replies, "warm up")).await, Routed::Yes);
            proxy.freeze();
            for _ in 0..fit {
                send(&mut publisher, message(&replies, body.clone())).await;
            }
            let one_more = publisher.send(message(&replies, body.clone()));
            timeout(Duration::from_millis(200), one_more).await.expect_err("the window is full");
            proxy.thaw();
            // The one more was given up before it was taken.
            assert_eq!(confirmed(&mut publisher, message(&replies, "end")).await, Routed::Yes);
            setup.until_ready(&replies, fit + 2).await;
            setup
                .admin
                .queue_purge(replies.as_str().into(), lapin::options::QueuePurgeOptions::default())
                .await
                .unwrap();
        }
        close(&broker).await;
    });
}

#[test]
fn a_missing_confirm_is_not_waited_for_for_ever() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (proxy, config) = setup.proxy().await;
        let config = BrokerConfig { timeout: Duration::from_millis(500), ..config };
        let broker = setup.broker_with(&config).await;
        let replies = setup.reply_queue(FieldTable::default()).await;
        let mut publisher = broker.publisher();
        assert_eq!(confirmed(&mut publisher, message(&replies, "warm up")).await, Routed::Yes);
        proxy.freeze();
        let (routed, ()) = tokio::join!(confirmed(&mut publisher, message(&replies, "result")), async {
            // Longer than the timeout, shorter than two heartbeats.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            proxy.thaw();
        });
        assert_eq!(routed, Routed::Yes);
        assert_eq!(setup.take(&replies).await, "warm up");
        // The first one's confirm may have been missing for too long as well.
        let next = loop {
            let body = setup.take(&replies).await;
            if body != "warm up" {
                break body;
            }
        };
        assert_eq!(next, "result");
        close(&broker).await;
    });
}

#[test]
fn a_queue_that_is_deleted_is_declared_again() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let mut consumer = broker.consumer(&setup.pool);
        setup.publish_job("one").await;
        next(&mut consumer).await.receipt.settle(Settle::Ack).await.unwrap();
        let queue = setup.names.pool_queue(&setup.pool);
        setup.delete_queue(&queue).await;
        let (delivery, ()) = tokio::join!(next(&mut consumer), async {
            // Not routable, and so lost, until the queue is there and bound.
            until_connected(&broker).await;
            let mut publisher = broker.publisher();
            eventually("the queue is back", async || {
                confirmed(&mut publisher, message(&queue, "two")).await == Routed::Yes
            })
            .await;
        });
        assert_eq!(delivery.body, Bytes::from("two"));
        delivery.receipt.settle(Settle::Ack).await.unwrap();
        setup.publish_job("three").await;
        assert_eq!(next(&mut consumer).await.body, Bytes::from("three"), "the binding is back too");
        close(&broker).await;
    });
}

/// Class and method of AMQP's `queue.bind`.
const BIND: &[u8] = &[0, 50, 0, 20];

/// The queue is there again, and could be consumed from; but nothing would ever come to it.
#[test]
fn what_is_declared_again_by_halves_is_finished_later() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (proxy, config) = setup.proxy().await;
        let config = BrokerConfig { timeout: Duration::from_millis(500), ..config };
        let broker = setup.broker_with(&config).await;
        let mut consumer = broker.consumer(&setup.pool);
        setup.publish_job("one").await;
        next(&mut consumer).await.receipt.settle(Settle::Ack).await.unwrap();
        let queue = setup.names.pool_queue(&setup.pool);
        proxy.tamper(Some((BIND, b"")));
        setup.delete_queue(&queue).await;
        let (delivery, ()) = tokio::join!(next(&mut consumer), async {
            until_disconnected(&broker).await;
            // Its binding was waited for in vain by now.
            tokio::time::sleep(3 * config.timeout).await;
            proxy.tamper(None);
            until_connected(&broker).await;
            setup.publish_job("two").await;
        });
        assert_eq!(delivery.body, Bytes::from("two"));
        delivery.receipt.settle(Settle::Ack).await.unwrap();
        close(&broker).await;
    });
}

#[test]
fn an_exchange_that_is_deleted_is_declared_again() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let mut publisher = broker.publisher();
        let delay = RETRY_DELAYS[0];
        let exchange = setup.names.retry(delay);
        setup.admin.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
        let retry = Message { target: Target::Retry(delay, setup.pool.clone()), ..message("", "job") };
        send(&mut publisher, retry.clone()).await;
        assert_eq!(confirmed(&mut publisher, retry).await, Routed::Yes);
        let mut consumer = broker.consumer(&setup.pool);
        for _ in 0..2 {
            next(&mut consumer).await.receipt.settle(Settle::Ack).await.unwrap();
        }
        close(&broker).await;
    });
}

/// lapin takes what isn't UTF-8 in a message's id for a broken stream and gives up the whole connection, so
/// this is the one poison that concerns other seats too. The delivery limit ends it.
#[test]
fn a_message_that_breaks_the_connection_is_dead_lettered_at_the_limit() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let config = BrokerConfig { delivery_limit: 2, ..setup.config.clone() };
        let broker = setup.broker_with(&config).await;
        let (proxy, poisoner) = setup.proxy().await;
        proxy.tamper(Some((b"poisonous id", b"poisonous \xff\xfe")));
        let poisoner = Connection::connect(&poisoner.urls[0], ConnectionProperties::default()).await.unwrap();
        let channel = poisoner.create_channel().await.unwrap();
        channel
            .basic_publish(
                setup.names.jobs().into(),
                setup.pool.as_str().into(),
                BasicPublishOptions::default(),
                b"poison",
                BasicProperties::default().with_message_id("poisonous id".into()),
            )
            .await
            .unwrap();
        setup.until_ready(&setup.names.pool_queue(&setup.pool), 1).await;
        let mut consumer = broker.consumer(&setup.pool);
        let (delivery, ()) = tokio::join!(next(&mut consumer), async {
            setup.until_ready(&setup.names.dead(), 1).await;
            setup.publish_job("sound").await;
        });
        assert_eq!(delivery.body, Bytes::from("sound"));
        delivery.receipt.settle(Settle::Ack).await.unwrap();
        close(&broker).await;
    });
}

/// lapin would keep a thread and a socket for each attempt at a peer that accepts and says nothing.
#[test]
fn attempts_at_a_silent_peer_leave_nothing_behind() {
    run(Needs::WholeBroker, async |setup: &Setup| {
        let threads = || {
            std::fs::read_dir("/proc/self/task")
                .unwrap()
                .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
                .filter(|name| name.starts_with("lapin-io-loop"))
                .count()
        };
        eventually("only this test is connected", async || threads() == 1).await;
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for scheme in ["amqp", "amqps"] {
            let urls = vec![format!("{scheme}://{}", silent.local_addr().unwrap())];
            let config = BrokerConfig { urls, timeout: Duration::from_millis(100), ..setup.config.clone() };
            for _ in 0..5 {
                probe(&config, &setup.pool).await.unwrap_err();
            }
        }
        eventually("no thread is left", async || threads() == 1).await;
    });
}

#[test]
fn without_its_queue_a_worker_is_not_ready() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let declaring = setup.broker().await;
        close(&declaring).await;
        let config = BrokerConfig { topology: TopologyMode::Check, ..setup.config.clone() };
        let broker = setup.broker_with(&config).await;
        let mut consumer = broker.consumer(&setup.pool);
        setup.publish_job("one").await;
        next(&mut consumer).await.receipt.settle(Settle::Ack).await.unwrap();
        let queue = setup.names.pool_queue(&setup.pool);
        setup.delete_queue(&queue).await;
        let (delivery, ()) = tokio::join!(next(&mut consumer), async {
            until_disconnected(&broker).await;
            let durable = QueueDeclareOptions { durable: true, ..Default::default() };
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            setup.admin.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
            assert_eq!(confirmed(&mut broker.publisher(), message(&queue, "two")).await, Routed::Yes);
        });
        assert_eq!(delivery.body, Bytes::from("two"));
        until_connected(&broker).await;
        close(&broker).await;
    });
}

#[test]
fn a_memory_alarm_stops_publishing_but_not_acknowledging_and_doubles_nothing() {
    run(Needs::WholeBroker, async |setup: &Setup| {
        let watermark = async |value: &'static str| {
            let ctl = move || rabbitmqctl(&["set_vm_memory_high_watermark", value]);
            tokio::task::spawn_blocking(ctl).await.unwrap();
        };
        // Within it the broker says that it blocks, and afterwards confirms, while `rabbitmqctl` uses all of a small
        // machine.
        let config = BrokerConfig { timeout: Duration::from_secs(2), ..setup.config.clone() };
        let broker = setup.broker_with(&config).await;
        let replies = setup.reply_queue(FieldTable::default()).await;
        let mut publisher = broker.publisher();
        let mut consumer = broker.consumer(&setup.pool);
        setup.publish_job("job").await;
        let delivery = next(&mut consumer).await;
        watermark("0.000001").await;
        // The first publish after the alarm is the one that has the connection blocked.
        let result = async {
            for n in 0..10 {
                send(&mut publisher, message(&replies, n.to_string())).await;
            }
            confirmed(&mut publisher, message(&replies, "result")).await
        };
        let (routed, ()) = tokio::join!(result, async {
            until_disconnected(&broker).await;
            delivery.receipt.settle(Settle::Ack).await.unwrap();
            // Several times the timeout.
            tokio::time::sleep(4 * config.timeout).await;
            watermark("0.4").await;
        });
        assert_eq!(routed, Routed::Yes);
        for n in 0..10 {
            assert_eq!(setup.take(&replies).await, n.to_string());
        }
        assert_eq!(setup.take(&replies).await, "result");
        assert_eq!(setup.ready(&replies).await, 0, "nothing was sent twice");
        until_connected(&broker).await;
        close(&broker).await;
        assert_eq!(setup.ready(&setup.names.pool_queue(&setup.pool)).await, 0, "the ack went through");
    });
}
