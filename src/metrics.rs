//! What all components share of Prometheus: buckets, and metrics that exist at zero from the start.
//!
//! Each component makes and owns its metrics on the [`Registry`] that it is handed; only names of
//! the contract appear, and labels are pools and closed enums.

use prometheus::core::Collector;
use prometheus::proto::Metric;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Bounds in seconds for everything from a hit's start to a pull.
pub const BUCKETS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// Bounds in seconds for run times, up to a day.
pub const RUN_BUCKETS: [f64; 18] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 10800.0,
    43200.0, 86400.0,
];

/// Makes metrics and registers them.
///
/// A name that is taken twice, or isn't valid, is a fault of this program found by any test that
/// starts it; so these functions panic rather than burden every caller with it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// An empty registry with `build_info` and the process's own metrics.
    pub fn new() -> Metrics {
        let metrics = Metrics { registry: Registry::new() };
        metrics.register(prometheus::process_collector::ProcessCollector::for_self());
        let info = metrics.gauges("build_info", "Version of the running program; always 1.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics
    }

    /// All metrics in Prometheus's text format.
    pub fn render(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// The series of one metric as they are now; none if there is no such metric.
    pub fn series(&self, name: &str) -> Vec<Series> {
        let name = format!("prewarm_{name}");
        let families = self.registry.gather().into_iter();
        families.filter(|f| f.name() == name).flat_map(|mut f| f.take_metric()).map(Series).collect()
    }

    /// A counter with labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.own(IntCounterVec::new(opts(name, help), labels))
    }

    /// A counter.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.own(IntCounter::with_opts(opts(name, help)))
    }

    /// A gauge with labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.own(IntGaugeVec::new(opts(name, help), labels))
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.own(IntGauge::with_opts(opts(name, help)))
    }

    /// A histogram of seconds with labels.
    pub fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.own(HistogramVec::new(opts, labels))
    }

    /// A histogram of seconds.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Histogram {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.own(prometheus::Histogram::with_opts(opts))
    }

    #[expect(clippy::expect_used, reason = "see the type's documentation")]
    fn own<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("a metric's name and labels are valid");
        self.register(made.clone());
        made
    }

    #[expect(clippy::expect_used, reason = "see the type's documentation")]
    fn register(&self, collector: impl Collector + 'static) {
        self.registry.register(Box::new(collector)).expect("each metric is made once");
    }
}

/// One series of a metric, read once.
pub struct Series(Metric);

impl Series {
    /// A label's value; empty if it has none of that name.
    pub fn label(&self, name: &str) -> String {
        let label = self.0.get_label().iter().find(|label| label.name() == name);
        label.map(|label| label.value().to_owned()).unwrap_or_default()
    }

    /// A counter's value.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters here count whole things"
    )]
    pub fn count(&self) -> u64 {
        self.0.get_counter().get_value() as u64
    }

    /// A histogram's counts: what is at most each bound, and all.
    pub fn cumulative(&self) -> impl Iterator<Item = u64> {
        let histogram = self.0.get_histogram();
        histogram.get_bucket().iter().map(|b| b.cumulative_count()).chain([histogram.get_sample_count()])
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("prewarm_{name}"), help)
}
