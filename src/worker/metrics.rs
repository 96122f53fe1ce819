//! The worker's metrics, each series looked up once.

use std::collections::BTreeMap;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::contract::PoolName;
use crate::contract::event::{ErrorKind, LeaseKind, Status, Stream};
use crate::metrics::{BUCKETS, Metrics, RUN_BUCKETS};

/// The worker's metrics.
pub(super) struct WorkerMetrics {
    pub(super) pools: BTreeMap<PoolName, PoolSeries>,
    pub(super) unroutable: IntCounter,
    pub(super) refused: IntCounter,
    pub(super) dropped: IntCounter,
}

/// One pool's series, looked up once.
pub(super) struct PoolSeries {
    pub(super) startup: [Histogram; 2],
    pub(super) queue_wait: Histogram,
    pub(super) run: Histogram,
    pub(super) jobs: [IntCounter; 7],
    pub(super) running: IntGauge,
    pub(super) deliveries: [IntCounter; 2],
    pub(super) adopted: IntCounter,
    pub(super) repeated: IntCounter,
    pub(super) retried: IntCounter,
    dead: [IntCounter; ErrorKind::OF_DEAD_LETTERS.len()],
    pub(super) output: [IntCounter; 2],
}

impl WorkerMetrics {
    pub(super) fn new<'a>(metrics: &Metrics, pools: impl Iterator<Item = &'a PoolName>) -> WorkerMetrics {
        let startup: HistogramVec = metrics.histograms(
            "startup_seconds",
            "From the delivery to the entrypoint executing.",
            &["pool", "lease"],
            &BUCKETS,
        );
        let queue_wait: HistogramVec = metrics.histograms(
            "queue_wait_seconds",
            "From the publisher's timestamp (whole seconds) to the delivery.",
            &["pool"],
            &RUN_BUCKETS,
        );
        let run: HistogramVec = metrics.histograms(
            "run_seconds",
            "From the entrypoint executing to its end.",
            &["pool"],
            &RUN_BUCKETS,
        );
        let jobs: IntCounterVec =
            metrics.counters("jobs_total", "Jobs that got their result, by its status.", &["pool", "status"]);
        let retried: IntCounterVec = metrics.counters(
            "jobs_retried_total",
            "Attempts after which the job is tried again: trouble was ours, or it failed and asked for it.",
            &["pool"],
        );
        let dead: IntCounterVec = metrics.counters(
            "dead_letters_total",
            "Messages that the worker put into the queue of dead letters; what the broker puts there itself isn't counted.",
            &["pool", "kind"],
        );
        let running: IntGaugeVec =
            metrics.gauges("jobs_running", "Jobs that have or wait for a container.", &["pool"]);
        let deliveries: IntCounterVec =
            metrics.counters("deliveries_total", "Deliveries received.", &["pool", "redelivered"]);
        let adopted: IntCounterVec = metrics.counters(
            "deliveries_adopted_total",
            "Deliveries that came back while their job was in hand or just over, and caused no second run.",
            &["pool"],
        );
        let repeated: IntCounterVec = metrics.counters(
            "jobs_repeated_total",
            "Jobs that were published again, and answered with the result that they had.",
            &["pool"],
        );
        let output: IntCounterVec =
            metrics.counters("output_bytes_total", "Bytes that jobs printed.", &["pool", "stream"]);
        let series = |pool: &PoolName| {
            let p = pool.as_str();
            let series = PoolSeries {
                startup: LeaseKind::ALL.map(|k| startup.with_label_values(&[p, k.as_str()])),
                queue_wait: queue_wait.with_label_values(&[p]),
                run: run.with_label_values(&[p]),
                jobs: Status::ALL.map(|s| jobs.with_label_values(&[p, s.as_str()])),
                running: running.with_label_values(&[p]),
                deliveries: ["false", "true"].map(|r| deliveries.with_label_values(&[p, r])),
                adopted: adopted.with_label_values(&[p]),
                repeated: repeated.with_label_values(&[p]),
                retried: retried.with_label_values(&[p]),
                dead: ErrorKind::OF_DEAD_LETTERS.map(|kind| dead.with_label_values(&[p, kind.as_str()])),
                output: Stream::ALL.map(|s| output.with_label_values(&[p, s.as_str()])),
            };
            (pool.clone(), series)
        };
        WorkerMetrics {
            pools: pools.map(series).collect(),
            unroutable: metrics.counter("replies_unroutable_total", "Results whose reply queue was gone."),
            refused: metrics.counter(
                "replies_refused_total",
                "Results that the reply queue did not take (it is full, say), and that went to the queue of results.",
            ),
            dropped: metrics.counter(
                "replies_dropped_total",
                "Started and log events dropped because they could not be delivered for broker.reply_patience.",
            ),
        }
    }

    /// Pools are known from the start; the seats are made from the same configuration.
    pub(super) fn of(&self, pool: &PoolName) -> &PoolSeries {
        &self.pools[pool]
    }
}

impl PoolSeries {
    pub(super) fn startup(&self, kind: LeaseKind) -> &Histogram {
        &self.startup[kind as usize]
    }

    pub(super) fn jobs(&self, status: Status) -> &IntCounter {
        &self.jobs[status as usize]
    }

    pub(super) fn deliveries(&self, redelivered: bool) -> &IntCounter {
        &self.deliveries[usize::from(redelivered)]
    }

    /// Other kinds make no dead letters.
    pub(super) fn dead_letter(&self, kind: ErrorKind) {
        let of_kind = ErrorKind::OF_DEAD_LETTERS.iter().zip(&self.dead).find(|(k, _)| **k == kind);
        if let Some((_, counter)) = of_kind {
            counter.inc();
        }
    }

    pub(super) fn output(&self, stream: Stream) -> &IntCounter {
        &self.output[stream as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_are_counted_by_kind_from_zero() {
        let registry = Metrics::new();
        let pool: PoolName = "box".parse().unwrap();
        let metrics = WorkerMetrics::new(&registry, std::iter::once(&pool));
        let line =
            |kind: &str, n: u32| format!("prewarm_dead_letters_total{{kind=\"{kind}\",pool=\"box\"}} {n}\n");
        for kind in ["invalid_job", "no_container", "container_lost", "worker_stopped", "delivery_limit"] {
            assert!(registry.render().contains(&line(kind, 0)), "{}", registry.render());
        }
        metrics.of(&pool).dead_letter(ErrorKind::NoContainer);
        // A job's own affair.
        metrics.of(&pool).dead_letter(ErrorKind::Timeout);
        let text = registry.render();
        assert!(text.contains(&line("no_container", 1)) && !text.contains("timeout"), "{text}");
    }
}
