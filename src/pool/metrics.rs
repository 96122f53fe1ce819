//! The pools' metrics, each series looked up once: the driver touches them with every lease.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::slots::{Reason, State};
use crate::contract::PoolName;
use crate::contract::event::LeaseKind;
use crate::metrics::{BUCKETS, Metrics};

/// The families.
pub(super) struct PoolMetrics {
    leases: IntCounterVec,
    wait: HistogramVec,
    containers: IntGaugeVec,
    target: IntGaugeVec,
    waiting: IntGaugeVec,
    able: IntGaugeVec,
    warmup: HistogramVec,
    retired: IntCounterVec,
}

/// One pool's series.
#[derive(Clone)]
pub(super) struct PoolSeries {
    leases: [IntCounter; 2],
    pub wait: Histogram,
    containers: [IntGauge; 4],
    pub target: IntGauge,
    pub waiting: IntGauge,
    pub able: IntGauge,
    pub warmup: Histogram,
    retired: [IntCounter; Reason::ALL.len()],
}

impl PoolMetrics {
    pub fn new(metrics: &Metrics) -> PoolMetrics {
        PoolMetrics {
            leases: metrics.counters(
                "pool_leases_total",
                "Containers leased to jobs: at once (hit), or after a wait (miss).",
                &["pool", "result"],
            ),
            wait: metrics.histograms(
                "lease_wait_seconds",
                "From asking for a container to having it, of hits and misses.",
                &["pool"],
                &BUCKETS,
            ),
            containers: metrics.gauges("pool_containers", "Containers by state.", &["pool", "state"]),
            target: metrics.gauges("pool_target", "Idle containers wanted.", &["pool"]),
            waiting: metrics.gauges("pool_waiting", "Jobs that wait for a container.", &["pool"]),
            able: metrics.gauges(
                "pool_able",
                "1 while containers can be made, as far as is known, or one is idle; 0 until the first has become ready, while \
                 the breaker is open, and while the worker drains: it takes no jobs of the pool.",
                &["pool"],
            ),
            warmup: metrics.histograms(
                "warmup_seconds",
                "From a container's creation to its being ready.",
                &["pool"],
                &BUCKETS,
            ),
            retired: metrics.counters(
                "containers_retired_total",
                "Containers that were given up, by why.",
                &["pool", "reason"],
            ),
        }
    }

    /// One pool's series, all at zero.
    pub fn of(&self, pool: &PoolName) -> PoolSeries {
        let pool = pool.as_str();
        PoolSeries {
            leases: LeaseKind::ALL.map(|k| self.leases.with_label_values(&[pool, k.as_str()])),
            wait: self.wait.with_label_values(&[pool]),
            containers: State::ALL.map(|s| self.containers.with_label_values(&[pool, s.as_str()])),
            target: self.target.with_label_values(&[pool]),
            waiting: self.waiting.with_label_values(&[pool]),
            able: self.able.with_label_values(&[pool]),
            warmup: self.warmup.with_label_values(&[pool]),
            retired: Reason::ALL.map(|r| self.retired.with_label_values(&[pool, r.as_str()])),
        }
    }
}

impl PoolSeries {
    pub fn leases(&self, kind: LeaseKind) -> &IntCounter {
        &self.leases[kind as usize]
    }

    pub fn containers(&self, state: State) -> &IntGauge {
        &self.containers[state as usize]
    }

    pub fn retired(&self, reason: Reason) -> &IntCounter {
        &self.retired[reason as usize]
    }
}
