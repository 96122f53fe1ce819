//! Without the feature.

use std::time::Instant;

use crate::contract::event::Status;

/// Sends nothing.
pub struct Exporter;

impl Exporter {
    /// Says so if it is wanted.
    ///
    /// # Errors
    /// None.
    pub fn start(_worker: &str) -> Result<Exporter, String> {
        if super::is_wanted() {
            tracing::info!(
                "{} is set, but this prewarm was built without the feature 'otel'",
                super::ENDPOINTS[0]
            );
        }
        Ok(Exporter)
    }

    /// Does nothing.
    pub fn stop(self) {}
}

/// No trace.
pub struct Trace;

impl Trace {
    /// None.
    pub fn begin(_: Option<&str>, _: Instant, _: &str, _: &str, _: u32) -> Trace {
        Trace
    }

    /// None.
    pub fn traceparent(&self) -> Option<String> {
        None
    }

    /// Does nothing.
    pub fn step(&self, _: &'static str, _: Instant, _: Instant) {}

    /// Does nothing.
    pub fn outcome(&self, _: Status) {}
}
