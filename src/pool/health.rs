//! Compares the pools with what the engine says. A container's own stream tells when it ends; this finds what the
//! stream doesn't tell: one that was paused, one that has gone with an engine that is back or on another
//! host whose end of the connection never said so, one that a request left behind whose answer never came.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Pools;
use super::driver::{Command, Known};
use crate::engine::{ContainerState, Engine, EngineError, Fault, INSTANCE_LABEL, Listed, POOL_LABEL, Stop};
use crate::retry::Backoff;

/// How often all is compared, though no event said that there is reason to.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
/// How often what is left is looked for at the end, until nothing is.
const CLEARINGS: u32 = 6;
/// Most time between two attempts to hear of an engine that is away: it costs one connection.
const LISTEN_EVERY: Duration = Duration::from_secs(2);
/// Least time between two attempts to listen to one that answers, and ends or refuses the stream.
const REFUSED_EVERY: Duration = Duration::from_secs(5);

/// Follows the engine's events until the pools are closed. Whenever they were lost, all is compared.
pub(super) async fn watch(pools: Pools) {
    let mut backoff = Backoff::new(Duration::from_millis(100), LISTEN_EVERY);
    let mut away = false;
    loop {
        let begun = Instant::now();
        let lost = tokio::select! {
            () = pools.commands.closed() => return,
            lost = follow(&pools, &mut away) => lost,
        };
        // An engine that refuses its events, but nothing else, is not to be asked for them all the time.
        let lasted = begun.elapsed() >= COMPARE_EVERY;
        if lasted {
            backoff.reset();
        }
        if matches!(lost.fault, Fault::Unreachable { .. }) && !std::mem::replace(&mut away, true) {
            let _ = pools.commands.send(Command::EngineIsAway(lost.clone()));
        }
        let delay = if away || lasted { backoff.next() } else { backoff.next().max(REFUSED_EVERY) };
        tracing::debug!("the engine's events were lost, listening again in {delay:?}: {lost}");
        tokio::time::sleep(delay).await;
    }
}

/// Listens and compares. `away`: nobody answered last time.
async fn follow(pools: &Pools, away: &mut bool) -> EngineError {
    let mut stops = match pools.engine.stops(INSTANCE_LABEL, &pools.owner.instance).await {
        Ok(stops) => stops,
        Err(error) => return error,
    };
    let mut every = tokio::time::interval(COMPARE_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => {
                if let Err(error) = compare(pools).await {
                    return error;
                }
                if std::mem::take(away) {
                    let _ = pools.commands.send(Command::EngineIsBack);
                }
            }
            stop = stops.next() => match stop {
                Some(Ok((container, stop))) => {
                    let _ = pools.commands.send(Command::Stopped(container, stop));
                }
                Some(Err(error)) => return error,
                None => return EngineError::events_ended(),
            },
        }
    }
}

/// Replaces every idle container that the engine doesn't call running, and removes what the pools don't know.
async fn compare(pools: &Pools) -> Result<(), EngineError> {
    // What is idle first, then the list: what becomes idle in between isn't judged by it.
    let Some(before) = known(pools).await else { return Ok(()) };
    let listed = list(pools).await?;
    let states: HashMap<_, _> = listed.iter().map(|l| (&l.id, l.state)).collect();
    for container in before.idle {
        let stop = match states.get(&container) {
            Some(ContainerState::Running) => continue,
            Some(ContainerState::Paused) => Stop::Paused,
            _ => Stop::Ended,
        };
        let _ = pools.commands.send(Command::Stopped(container, stop));
    }
    // What is known last: what was begun before the list is known by now, or has failed, or is being removed.
    if let Some(now) = known(pools).await {
        // Others, without a pool, are being used to fill the volume of init.
        let of_pools = listed.iter().filter(|left| left.labels.contains_key(POOL_LABEL));
        remove_unknown(&*pools.engine, of_pools, &now).await;
    }
    Ok(())
}

/// Removes all that is left of this worker, when its pools are closed. Whether that is known to have worked.
pub(super) async fn clear(pools: &Pools) -> bool {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    for _ in 0..CLEARINGS {
        match list(pools).await {
            Ok(listed) if listed.is_empty() => return true,
            Ok(listed) => remove_unknown(&*pools.engine, listed.iter(), &Known::default()).await,
            Err(error) => tracing::debug!("not looked for leftovers: {error}"),
        }
        tokio::time::sleep(backoff.next()).await;
    }
    false
}

async fn remove_unknown(engine: &dyn Engine, listed: impl Iterator<Item = &Listed>, known: &Known) {
    let held: HashSet<_> = known.held.iter().collect();
    for left in listed {
        // A request failed for us, and was carried out all the same.
        if !held.contains(&left.id) && !known.names.contains(&left.name) {
            match engine.remove(&left.id).await {
                Ok(()) => {
                    tracing::debug!(container = %left.id, state = ?left.state, "removed one that nobody knew");
                }
                Err(error) => tracing::warn!("not removed, though nobody knows it: {error}"),
            }
        }
    }
}

async fn list(pools: &Pools) -> Result<Vec<Listed>, EngineError> {
    pools.engine.list(INSTANCE_LABEL, Some(&pools.owner.instance)).await
}

/// None when the pools are closed.
async fn known(pools: &Pools) -> Option<Known> {
    let (reply, known) = oneshot::channel();
    pools.commands.send(Command::Known(reply)).ok()?;
    known.await.ok()
}
