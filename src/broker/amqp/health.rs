//! Whether jobs can be taken and results delivered, for `/readyz` and for the metrics.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::metrics::{BUCKETS, Metrics};
use prometheus::{Histogram, IntCounter, IntGauge};
use tokio::sync::watch;

/// The broker's metrics.
#[derive(Clone, Debug)]
pub struct BrokerMetrics {
    /// `prewarm_broker_connected`
    pub connected: IntGauge,
    /// `prewarm_broker_reconnects_total`
    pub reconnects: IntCounter,
    /// `prewarm_publish_confirm_seconds`
    pub confirm: Histogram,
}

impl BrokerMetrics {
    /// Makes the metrics.
    pub fn new(metrics: &Metrics) -> BrokerMetrics {
        BrokerMetrics {
            connected: metrics.gauge(
                "broker_connected",
                "1 while both broker connections are up and not blocked, and exchanges and queues are as needed.",
            ),
            reconnects: metrics.counter("broker_reconnects_total", "Broker connections lost, to be made again."),
            confirm: metrics.histogram(
                "publish_confirm_seconds",
                "From publishing a result (or another message that is waited for) to the broker's confirm.",
                &BUCKETS,
            ),
        }
    }
}

/// What has to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// The connection that consumes.
    Consume,
    /// The connection that publishes; exchanges and queues were declared on it.
    Publish,
    /// One consumer: its queue may be missing while the connections are fine.
    Consumer(u64),
    /// One publisher: it may not be allowed to publish, or one of our own queues is gone or full.
    Publisher(u64),
}

/// Gathers what works, and tells when everything does.
pub(super) struct Health {
    missing: Mutex<HashSet<Part>>,
    connected: watch::Sender<bool>,
    metrics: BrokerMetrics,
}

impl Health {
    pub(super) fn new(metrics: BrokerMetrics) -> Health {
        metrics.connected.set(0);
        Health {
            missing: Mutex::new(HashSet::from([Part::Consume, Part::Publish])),
            connected: watch::Sender::new(false),
            metrics,
        }
    }

    pub(super) fn set(&self, part: Part, works: bool) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if works {
            missing.remove(&part);
        } else {
            missing.insert(part);
        }
        // Under the lock, so that the last change is also the last one told.
        let all = missing.is_empty();
        self.metrics.connected.set(i64::from(all));
        self.connected.send_if_modified(|connected| std::mem::replace(connected, all) != all);
    }

    pub(super) fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    pub(super) fn reconnecting(&self) {
        self.metrics.reconnects.inc();
    }

    pub(super) fn confirmed(&self, within: std::time::Duration) {
        self.metrics.confirm.observe(within.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connected_only_while_everything_works() {
        let metrics = BrokerMetrics::new(&Metrics::new());
        let health = Health::new(metrics.clone());
        let connected = health.connected();
        let expect = |expected: bool| {
            assert_eq!(*connected.borrow(), expected);
            assert_eq!(metrics.connected.get(), i64::from(expected));
        };
        expect(false);
        health.set(Part::Consume, true);
        expect(false);
        health.set(Part::Publish, true);
        expect(true);
        health.set(Part::Consumer(1), false);
        expect(false);
        health.set(Part::Consumer(1), true);
        expect(true);
        health.set(Part::Publish, false);
        expect(false);
    }
}
