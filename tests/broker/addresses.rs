//! Several addresses in `broker.url`.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lapin::types::FieldTable;
use prewarm::broker::amqp;
use prewarm::broker::client::Client;
use prewarm::broker::{Broker, Routed, Settle};
use prewarm::config::BrokerConfig;

use crate::setup::{
    Needs, Setup, close, confirmed, cut_off, message, next, run, shared, until_connected, until_disconnected,
};
use crate::support::worker::{self, Site, eventually, prewarm};

/// An address where nobody listens.
fn nobody() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("amqp://guest:s3cret@127.0.0.1:{port}/%2f")
}

#[test]
fn when_one_node_goes_the_next_is_taken() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (first, by_first) = setup.proxy().await;
        let (second, by_second) = setup.proxy().await;
        let urls = vec![nobody(), by_first.urls[0].clone(), by_second.urls[0].clone()];
        let broker = setup.broker_with(&BrokerConfig { urls, ..setup.config.clone() }).await;
        let mut consumer = broker.consumer(&setup.pool);
        setup.publish_job("one").await;
        let one = next(&mut consumer).await;
        cut_off(&broker, || drop(first)).await;
        until_connected(&broker).await;
        assert!(one.receipt.settle(Settle::Ack).await.is_err(), "it came by the first");
        let again = next(&mut consumer).await;
        assert!(again.redelivered);
        assert_eq!(again.body, Bytes::from("one"));
        again.receipt.settle(Settle::Ack).await.unwrap();
        drop(second);
        until_disconnected(&broker).await;
        close(&broker).await;
    });
}

#[test]
fn the_next_address_is_tried_at_once_and_the_last_good_one_first() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = format!("amqp://guest:guest@{}/%2f", silent.local_addr().unwrap());
        let (proxy, good) = setup.proxy().await;
        // Each further round would add to a growing pause.
        let mut urls: Vec<String> = (0..20).map(|_| nobody()).collect();
        urls.push(silent);
        urls.push(good.urls[0].clone());
        let patience = Duration::from_secs(3);
        let begun = Instant::now();
        let config = BrokerConfig { urls, timeout: patience, ..setup.config.clone() };
        let broker = setup.broker_with(&config).await;
        let took = begun.elapsed();
        assert!(
            took >= patience && took < 2 * patience,
            "{took:?}: all in one round, the silent one included"
        );

        cut_off(&broker, || proxy.cut()).await;
        let begun = Instant::now();
        until_connected(&broker).await;
        assert!(begun.elapsed() < patience, "the silent one would have taken {patience:?}");
        close(&broker).await;
    });
}

/// Class and method of AMQP's `basic.consume` and `basic.publish`.
const CONSUME: &[u8] = &[0, 60, 0, 20];
const PUBLISH: &[u8] = &[0, 60, 0, 40];

/// As one that has lost the others of its cluster: it lets in, answers, and does nothing that needs them.
#[test]
fn a_node_that_lets_in_and_does_not_serve_is_left() {
    run(Needs::OwnNames, async |setup: &Setup| {
        for what in [CONSUME, PUBLISH] {
            let (bad, by_bad) = setup.proxy().await;
            let (_good, by_good) = setup.proxy().await;
            let urls = vec![by_bad.urls[0].clone(), by_good.urls[0].clone()];
            let config = BrokerConfig { urls, timeout: Duration::from_millis(500), ..setup.config.clone() };
            let broker = setup.broker_with(&config).await;
            bad.tamper(Some((what, b"")));
            let replies = setup.reply_queue(FieldTable::default()).await;
            let mut publisher = broker.publisher();
            assert_eq!(confirmed(&mut publisher, message(&replies, "result")).await, Routed::Yes);
            assert_eq!(setup.take(&replies).await, "result");
            let mut consumer = broker.consumer(&setup.pool);
            setup.publish_job("job").await;
            next(&mut consumer).await.receipt.settle(Settle::Ack).await.unwrap();
            close(&broker).await;
        }
    });
}

#[test]
fn every_address_is_looked_at_and_named_without_its_password() {
    run(Needs::OwnNames, async |setup: &Setup| {
        let (one, other) = (nobody(), nobody());
        let urls = vec![one.clone(), setup.url().to_owned(), other.clone()];
        let config = BrokerConfig { urls, ..setup.config.clone() };
        let reports = amqp::probe(&config, [&setup.pool]).await;
        let usable: Vec<bool> = reports.iter().map(|r| r.as_ref().is_ok_and(|r| r.is_usable())).collect();
        assert_eq!(usable, [false, true, false]);
        Client::connect(&config, "prewarm test").await.unwrap().close().await;

        let config = BrokerConfig { urls: vec![one.clone(), other.clone()], ..config };
        let text = Client::connect(&config, "prewarm test").await.err().expect("nobody there").to_string();
        for url in [one, other] {
            let shown = url.replace("guest:s3cret@", "");
            assert!(text.contains(&shown), "{text}");
        }
        assert!(!text.contains("s3cret"), "{text}");
    });
}

#[test]
fn an_outage_names_all_addresses() {
    let _shared = shared();
    worker::run(async |site: &Site| {
        let urls = [nobody(), nobody()];
        let shown = urls.clone().map(|url| url.replace("guest:s3cret@", ""));
        let worker = site.worker().pool("build", "").start_with(&urls.join(",")).await;
        eventually("the outage is told", async || worker.log().contains("no connection").then_some(())).await;
        let mut check = prewarm();
        let checked = check.arg("--config").arg(&worker.config).arg("check").output().unwrap();
        let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
        let log = worker.log();
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains("no connection")).collect();
        for shown in shown {
            assert!(warnings.iter().all(|line| line.contains(&shown)), "{warnings:?}");
            assert!(checked.contains(&format!("broker {shown}: connection refused")), "{checked}");
        }
        assert!(!log.contains("s3cret") && !checked.contains("s3cret"), "{log}\n{checked}");
        assert!(warnings.len() < 5, "once for each line, not for each attempt: {warnings:?}");
        worker.until_full().await;
        assert!(worker.stop().await.success());
    });
}
