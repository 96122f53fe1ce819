//! What operators see: that dashboards, rules, metrics and what is written of them agree, and that a real Prometheus gets from real
//! workers and a real broker what they ask for.

#[path = "../support/mod.rs"]
mod support;

mod dashboards;
mod exposition;
mod live;
mod prometheus;
mod promql;
mod reference;
mod rules;

use std::fs;
use std::path::{Path, PathBuf};

/// What RabbitMQ gives at `/metrics/detailed` for the families that `prometheus.yml` asks for; [`live`] finds them there. All gauges.
const RABBITMQ: [&str; 4] = [
    "rabbitmq_detailed_queue_consumers",
    "rabbitmq_detailed_queue_messages",
    "rabbitmq_detailed_queue_messages_ready",
    "rabbitmq_detailed_queue_messages_unacked",
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}
