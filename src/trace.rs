//! Spans of each job for a collector of traces, with the cargo feature `otel`; without it nothing is done here.
//!
//! ```text
//!  the message's traceparent ──► job ─┬─ received   delivery to asking for a container
//!                                     ├─ lease      until there is one
//!                                     ├─ start      START to the entrypoint executing
//!                                     ├─ run        until its end
//!                                     └─ publish    the result, until it is confirmed
//! ```
//!
//! They are made when they are over, from times that are taken anyhow: a job doesn't wait for them, and what a collector can't take is
//! dropped. They have nothing to do with the log and its filter. What they say of a job is its id, pool, attempt and
//! status.

#[cfg(not(feature = "otel"))]
mod none;
#[cfg(feature = "otel")]
mod otlp;

#[cfg(not(feature = "otel"))]
pub use none::{Exporter, Trace};
#[cfg(feature = "otel")]
pub use otlp::{Exporter, Trace};

/// Variables of OpenTelemetry's that say where the collector is, as <http://127.0.0.1:4318>. Without either nothing is exported.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

fn is_wanted() -> bool {
    ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}
