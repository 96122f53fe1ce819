//! More workers, fewer workers, and two on one engine: real ones, each on an engine of its own, over one broker. What
//! `prewarm simulate` says of the same jobs is compared with what they did.
//!
//! Engines and workers share this machine's cores, so jobs sleep: what scales is how many run at once.
//! `PREWARM_TEST_SCALING_SECONDS` lets each stretch of random jobs last longer than the 16 s of the short form.

mod command;
mod fleet;
mod neighbours;
mod simulated;

#[path = "../support/mod.rs"]
mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test after the other, whatever the test runner thinks: they measure.
fn alone() -> MutexGuard<'static, ()> {
    static QUIET: Mutex<()> = Mutex::new(());
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}
