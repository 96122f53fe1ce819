//! The broker seam on a real RabbitMQ: `PREWARM_BROKER_URL` says where.
//!
//! The test that raises a memory alarm needs `PREWARM_TEST_RABBITMQCTL` besides, a command that works as `rabbitmqctl`
//! does for that broker. Each test has names of its own and deletes what it declared.

mod addresses;
mod certificates;
mod long_jobs;
mod outages;
mod proxy;
mod setup;
#[path = "../support/mod.rs"]
mod support;
mod tls;

use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use prewarm::broker::client::Client;
use prewarm::broker::{Broker, BrokerError, Message, Properties, Routed, Settle, Target};
use prewarm::config::{BrokerConfig, TopologyMode};
use prewarm::contract::PoolName;
use prewarm::contract::topology::RETRY_DELAYS;
use setup::{
    DEADLINE, Needs, Setup, close, confirmed, cut_off, eventually, message, next, probe, run, send,
    until_connected,
};
use tokio::time::timeout;

#[test]
fn a_message_goes_round_with_all_its_properties() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let queue = setup.names.pool_queue(&setup.pool);
        let sent = Properties {
            message_id: Some("id".into()),
            correlation_id: Some("corr".into()),
            reply_to: Some("replies".into()),
            content_type: Some("application/json".into()),
            content_encoding: Some("identity".into()),
            kind: Some("kind".into()),
            timestamp: Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            priority: Some(3),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            attempts: 2,
            troubles: 1,
            failures: 1,
            delivery_count: 0,
            death: None,
            headers: vec![("x-one".into(), "1".into()), ("x-two".into(), "zwei".into())],
        };
        let job = Message { properties: sent.clone(), ..message(&queue, "{}") };
        assert_eq!(confirmed(&mut broker.publisher(), job).await, Routed::Yes);

        let mut consumer = broker.consumer(&setup.pool);
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.properties, sent);
        assert_eq!(delivery.body, Bytes::from("{}"));
        assert!(!delivery.redelivered);
        delivery.receipt.settle(Settle::Ack).await.unwrap();
        close(&broker).await;
        assert_eq!(setup.ready(&queue).await, 0, "the ack counted");
    });
}

#[test]
fn a_dropped_delivery_goes_back_at_once() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        setup.publish_job("job").await;
        let mut first = broker.consumer(&setup.pool);
        let mut second = broker.consumer(&setup.pool);
        let delivery = next(&mut first).await;
        drop(first);
        drop(delivery);
        let delivery = next(&mut second).await;
        assert!(delivery.redelivered);
        let counted = if setup.counts_what_is_handed_back().await { 1 } else { 0 };
        assert_eq!(delivery.properties.delivery_count, counted);
        drop(delivery);
        assert_eq!(next(&mut second).await.properties.message_id.as_deref(), Some("job"));
        close(&broker).await;
    });
}

#[test]
fn a_delivery_can_be_handed_back() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        setup.publish_job("job").await;
        let mut consumer = broker.consumer(&setup.pool);
        next(&mut consumer).await.receipt.settle(Settle::HandBack).await.unwrap();
        let again = next(&mut consumer).await;
        assert!(again.redelivered);
        again.receipt.settle(Settle::Ack).await.unwrap();
        close(&broker).await;
    });
}

#[test]
fn what_may_have_begun_is_counted_by_every_broker() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        setup.publish_job("job").await;
        let mut consumer = broker.consumer(&setup.pool);
        for count in 0..2 {
            let delivery = next(&mut consumer).await;
            assert_eq!((delivery.redelivered, delivery.properties.delivery_count), (count > 0, count));
            delivery.receipt.settle(Settle::Again).await.unwrap();
        }
        next(&mut consumer).await.receipt.settle(Settle::Ack).await.unwrap();
        close(&broker).await;
    });
}

/// As a reply queue that is full, and our own that isn't; then as a broker that takes nothing at all.
#[test]
fn an_offer_is_refused_at_once() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let narrow = setup.reply_queue(arguments).await;
        let wide = setup.reply_queue(FieldTable::default()).await;
        let mut publisher = broker.publisher();
        let begun = Instant::now();
        assert_eq!(publisher.offer(message(&wide, "first")).await, Routed::Yes);
        assert_eq!(publisher.offer(message(&narrow, "fits")).await, Routed::Yes);
        assert_eq!(publisher.offer(message(&narrow, "doesn't")).await, Routed::Refused);
        assert_eq!(publisher.offer(message(&format!("{narrow}-none"), "lost")).await, Routed::No);
        assert!(begun.elapsed() < setup.config.reply_patience / 2, "{:?}", begun.elapsed());
        let (routed, taken) = tokio::join!(confirmed(&mut publisher, message(&narrow, "waits")), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            setup.take(&narrow).await
        });
        assert_eq!((routed, taken.as_str()), (Routed::Yes, "fits"), "whatever else is tried again as before");
        close(&broker).await;
    });
}

#[test]
fn a_seat_holds_one_delivery_at_a_time() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let (mut first, mut second) = (broker.consumer(&setup.pool), broker.consumer(&setup.pool));
        setup.publish_job("one").await;
        let one = next(&mut first).await;
        setup.publish_job("two").await;
        setup.publish_job("three").await;
        let two = next(&mut second).await;
        assert_eq!(two.body, Bytes::from("two"), "left for the seat that is free");
        setup.until_ready(&setup.names.pool_queue(&setup.pool), 1).await;
        one.receipt.settle(Settle::Ack).await.unwrap();
        let three = next(&mut first).await;
        assert_eq!(three.body, Bytes::from("three"));
        close(&broker).await;
    });
}

#[test]
fn pausing_hands_back_and_makes_receipts_stale() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        setup.publish_job("job").await;
        let (mut first, mut second) = (broker.consumer(&setup.pool), broker.consumer(&setup.pool));
        let held = next(&mut first).await;
        timeout(DEADLINE, first.pause()).await.unwrap();
        assert_eq!(next(&mut second).await.body, Bytes::from("job"));
        let error = held.receipt.settle(Settle::Ack).await.unwrap_err();
        assert!(matches!(error, BrokerError::Stale(_)), "{error}");
        // A second pause has nothing to do, and `next` begins anew.
        timeout(DEADLINE, first.pause()).await.unwrap();
        timeout(DEADLINE, second.pause()).await.unwrap();
        assert_eq!(next(&mut first).await.body, Bytes::from("job"));
        close(&broker).await;
    });
}

#[test]
fn waiting_for_a_delivery_can_be_given_up_at_any_time() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let mut consumer = broker.consumer(&setup.pool);
        for n in 0..50 {
            let body = format!("job {n}");
            let (delivery, ()) = tokio::join!(
                async {
                    loop {
                        if let Ok(delivery) = timeout(Duration::from_micros(200), consumer.next()).await {
                            break delivery;
                        }
                    }
                },
                setup.publish_job(&body)
            );
            assert_eq!(delivery.body, Bytes::from(body));
            delivery.receipt.settle(Settle::Ack).await.unwrap();
        }
        close(&broker).await;
    });
}

#[test]
fn what_no_queue_takes_is_reported_and_never_confused() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let mut publisher = broker.publisher();
        let replies = setup.reply_queue(FieldTable::default()).await;
        for _ in 0..50 {
            // Confirms of the others come together with this one's, and mustn't take its return.
            for _ in 0..5 {
                send(&mut publisher, message(&replies, "log")).await;
            }
            assert_eq!(confirmed(&mut publisher, message("nowhere", "result")).await, Routed::No);
            send(&mut publisher, message("nowhere", "log")).await;
            assert_eq!(confirmed(&mut publisher, message(&replies, "result")).await, Routed::Yes);
        }
        close(&broker).await;
    });
}

#[test]
fn a_thousand_messages_keep_their_order() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let mut publisher = broker.publisher();
        let replies = setup.reply_queue(FieldTable::default()).await;
        for n in 0..1000 {
            send(&mut publisher, message(&replies, n.to_string())).await;
        }
        assert_eq!(confirmed(&mut publisher, message(&replies, "1000")).await, Routed::Yes);
        for n in 0..=1000 {
            assert_eq!(setup.take(&replies).await, n.to_string());
        }
        close(&broker).await;
    });
}

#[test]
fn a_refused_message_is_tried_again_until_it_is_taken() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let mut publisher = broker.publisher();
        let mut full = FieldTable::default();
        full.insert("x-max-length".into(), AMQPValue::LongInt(1));
        full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let replies = setup.reply_queue(full).await;
        assert_eq!(confirmed(&mut publisher, message(&replies, "one")).await, Routed::Yes);
        let second = confirmed(&mut publisher, message(&replies, "two"));
        let make_room = async {
            setup.until_ready(&replies, 1).await;
            assert_eq!(setup.take(&replies).await, "one");
        };
        let (routed, ()) = tokio::join!(second, make_room);
        assert_eq!(routed, Routed::Yes);
        assert_eq!(setup.take(&replies).await, "two");
        setup.admin.queue_purge(replies.into(), QueuePurgeOptions::default()).await.unwrap();
        close(&broker).await;
    });
}

#[test]
fn a_retry_comes_back_to_its_pool_after_the_delay() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        let retry = Message {
            target: Target::Retry(RETRY_DELAYS[0], setup.pool.clone()),
            properties: Properties { attempts: 1, ..Properties::default() },
            ..message("", "job")
        };
        let sent = Instant::now();
        assert_eq!(confirmed(&mut broker.publisher(), retry).await, Routed::Yes);
        let delivery = next(&mut broker.consumer(&setup.pool)).await;
        assert!(sent.elapsed() >= RETRY_DELAYS[0], "{:?}", sent.elapsed());
        assert_eq!((delivery.body, delivery.properties.attempts), (Bytes::from("job"), 1));
        delivery.receipt.settle(Settle::Ack).await.unwrap();
        close(&broker).await;
    });
}

#[test]
fn at_the_delivery_limit_a_message_is_dead_lettered() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (proxy, config) = setup.proxy().await;
        let config = BrokerConfig { delivery_limit: 2, ..config };
        let broker = setup.broker_with(&config).await;
        setup.publish_job("poison").await;
        let mut consumer = broker.consumer(&setup.pool);
        for _ in 0..3 {
            let held = next(&mut consumer).await;
            // As when it takes the worker along: what is only handed back doesn't count from RabbitMQ 4.3 on.
            cut_off(&broker, || proxy.cut()).await;
            // Of two connections the other may have been noticed: handed back on this one it would come, and be lost, once more.
            eventually("it is lost with its connection", async || held.origin.is_lost()).await;
            drop(held);
        }
        assert_eq!(setup.take(&setup.names.dead()).await, "poison");
        close(&broker).await;
    });
}

#[test]
fn closing_gives_back_what_is_unsettled() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let broker = setup.broker().await;
        setup.publish_job("job").await;
        let mut consumer = broker.consumer(&setup.pool);
        let delivery = next(&mut consumer).await;
        close(&broker).await;
        setup.until_ready(&setup.names.pool_queue(&setup.pool), 1).await;
        assert!(delivery.receipt.settle(Settle::Ack).await.is_err());
        assert!(!*broker.connected().borrow());
    });
}

#[test]
fn a_queue_with_other_settings_is_explained_and_recovered_from() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let queue = setup.names.pool_queue(&setup.pool);
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        setup.admin.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();

        let report = probe(&setup.config, &setup.pool).await.unwrap();
        assert!(!report.is_usable());
        assert_eq!(report.conflicts.len(), 1, "{report:?}");
        for part in
            [queue.as_str(), "PRECONDITION_FAILED", "inequivalent arg", "delete it", "topology = \"check\""]
        {
            assert!(report.conflicts[0].contains(part), "{part}: {}", report.conflicts[0]);
        }
        // It is enough for `check`, which takes it as it is.
        let check = BrokerConfig { topology: TopologyMode::Check, ..setup.config.clone() };
        let report = probe(&check, &setup.pool).await.unwrap();
        assert!(
            report.conflicts.is_empty() && !report.missing.is_empty() && !report.is_usable(),
            "{report:?}"
        );

        let broker = setup.start(&setup.config);
        assert!(!*broker.connected().borrow());
        setup.delete_queue(&queue).await;
        until_connected(&broker).await;
        let report = probe(&setup.config, &setup.pool).await.unwrap();
        assert!(report.is_usable() && report.missing.is_empty(), "{report:?}");
        assert!(probe(&check, &setup.pool).await.unwrap().is_usable());
        close(&broker).await;
    });
}

#[test]
fn a_probe_says_what_is_missing_and_changes_nothing() {
    run(Needs::OwnNames, async |setup: &Setup| {
        for _ in 0..2 {
            let report = probe(&setup.config, &setup.pool).await.unwrap();
            let topology = setup.topology();
            assert_eq!(report.missing.len(), topology.queues.len() + topology.exchanges.len(), "{report:?}");
            assert!(
                report.present.is_empty() && report.conflicts.is_empty() && report.is_usable(),
                "{report:?}"
            );
            let server = report.server.unwrap();
            assert_eq!(server.product, "RabbitMQ");
            assert!(server.version.starts_with(|c: char| c.is_ascii_digit()), "{server:?}");
        }
    });
}

#[test]
fn connecting_fails_with_a_reason_and_a_remedy() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rude = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rude_port = rude.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                _ = rude.accept().await;
            }
        });
        let uri: lapin::uri::AMQPUri = setup.url().parse().unwrap();
        let authority = format!("{}:{}", uri.authority.host, uri.authority.port);
        let silent_port = silent.local_addr().unwrap().port();
        let cases = [
            (format!("amqp://guest:s3cret@{authority}/%2f"), "ACCESS_REFUSED", "password"),
            (format!("amqp://guest:guest@{authority}/no-such"), "no-such", "%2f"),
            ("amqp://guest:s3cret@127.0.0.1:1/%2f".to_owned(), "connection refused", "port"),
            ("amqp://guest:s3cret@no-such-host.invalid/%2f".to_owned(), "lookup", "lookup"),
            (format!("amqp://guest:s3cret@127.0.0.1:{silent_port}/%2f"), "no AMQP answer", "port"),
            (format!("amqp://guest:s3cret@127.0.0.1:{rude_port}/%2f"), "closed during the handshake", "TLS"),
            (format!("amqps://guest:s3cret@{authority}/%2f"), "speaks no TLS", "5671"),
            ("http://guest:s3cret@localhost/".to_owned(), "not a broker URL", "amqp://"),
        ];
        for (url, reason, remedy) in cases {
            // One says nothing until the time is up; the others may be slow to answer.
            let seconds = if reason == "no AMQP answer" { 1 } else { 10 };
            let config = BrokerConfig {
                urls: vec![url.clone()],
                timeout: Duration::from_secs(seconds),
                ..setup.config.clone()
            };
            let error = probe(&config, &setup.pool).await.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, BrokerError::Connect { .. }), "{url}: {error:?}");
            assert!(text.contains(reason) && text.contains(remedy), "{url}: {text}");
            assert!(!text.contains("s3cret"), "{text}");
        }
    });
}

#[test]
fn a_client_submits_and_reads_replies() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let connect = async || Client::connect(&setup.config, "prewarm test").await.unwrap();
        let mut client = connect().await;
        // No worker has been there yet: not even the exchange exists.
        let error = client.submit(&setup.pool, "early", "{}".into(), None).await.unwrap_err();
        assert!(matches!(error, BrokerError::Unroutable { .. }), "{error}");

        let broker = setup.broker().await;
        let mut client = connect().await;
        let other = PoolName::new("other").unwrap();
        let error = client.submit(&other, "id", "{}".into(), None).await.unwrap_err();
        assert!(error.to_string().contains("no queue for pool 'other'"), "{error}");
        client.submit(&setup.pool, "id", "{}".into(), Some("trace")).await.unwrap();

        let job = next(&mut broker.consumer(&setup.pool)).await;
        assert_eq!(job.properties.message_id.as_deref(), Some("id"));
        assert_eq!(job.properties.traceparent.as_deref(), Some("trace"));
        let reply_to = job.properties.reply_to.clone().unwrap();
        assert_eq!(reply_to, client.reply_queue());
        let mut reply = message(&reply_to, "done");
        reply.properties.kind = Some("prewarm.result.v1".into());
        reply.properties.correlation_id = job.properties.correlation_id.clone();
        let mut publisher = broker.publisher();
        assert_eq!(confirmed(&mut publisher, reply.clone()).await, Routed::Yes);
        job.receipt.settle(Settle::Ack).await.unwrap();

        let got = timeout(DEADLINE, client.next_reply()).await.unwrap().unwrap();
        assert_eq!((got.body, got.properties), (Bytes::from("done"), reply.properties.clone()));
        timeout(DEADLINE, client.close()).await.unwrap();
        assert_eq!(
            confirmed(&mut publisher, reply).await,
            Routed::No,
            "the reply queue went with the client"
        );
        close(&broker).await;
    });
}
