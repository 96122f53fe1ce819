//! What the service manager is told: systemd's notify protocol (`sd_notify(3)`), which Kubernetes and a shell don't
//! have, and then nothing is said.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// How much more time is asked for, again and again, while jobs are waited for.
const EXTENSION: Duration = Duration::from_secs(30);

/// The worker is up. Broker and engine may still be away: a unit is not "starting" for as long as they are.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; to be followed by [`ready`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!("service manager: {error}"),
    }
}

/// The worker drains. For as long as this is polled the manager is asked for patience, so that its `TimeoutStopSec`
/// need not know of `worker.drain_timeout`.
pub async fn draining() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining: running jobs may finish")]);
    let mut ticks = interval(EXTENSION / 2);
    loop {
        ticks.tick().await;
        let micros = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::ExtendTimeoutUsec(micros)]);
    }
}

/// Tells the manager's watchdog, if there is one, that the worker's runtime gets on with its work.
pub async fn feed_watchdog() {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = interval(within / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("service manager: {error}");
    }
}
