//! Compares what is idle with what the engine says. A container's own stream tells when it ends; this finds what the
//! stream doesn't tell: that it was paused, or that it has gone with an engine that is back, or on another
//! host whose end of the connection never said so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::oneshot;

use super::driver::Command;
use super::slots::SlotId;
use super::{Owner, Pools};
use crate::engine::{ContainerId, ContainerState, Engine, EngineError, INSTANCE_LABEL};
use crate::retry::Backoff;

/// How often all is compared, though no event said that there is reason to.
const COMPARE_EVERY: Duration = Duration::from_secs(30);

/// Follows the engine's events until the pools are closed. Whenever they were lost, all is compared.
pub(super) async fn watch(pools: Pools, engine: Arc<dyn Engine>, owner: Owner) {
    let mut backoff = Backoff::default();
    while !pools.commands.is_closed() {
        let lost = tokio::select! {
            () = pools.commands.closed() => return,
            lost = follow(&pools, &*engine, &owner, &mut backoff) => lost,
        };
        let delay = backoff.next();
        tracing::debug!("the engine's events were lost, listening again in {delay:?}: {lost}");
        tokio::time::sleep(delay).await;
    }
}

/// Listens, then compares, in this order: what happens in between is told by an event.
async fn follow(pools: &Pools, engine: &dyn Engine, owner: &Owner, backoff: &mut Backoff) -> EngineError {
    let mut stops = match engine.stops(INSTANCE_LABEL, &owner.instance).await {
        Ok(stops) => stops,
        Err(error) => return error,
    };
    let mut every = tokio::time::interval(COMPARE_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => match compare(pools, engine, owner).await {
                Ok(()) => backoff.reset(),
                Err(error) => return error,
            },
            stop = stops.next() => match stop {
                Some(Ok(container)) => doubt(pools, &container).await,
                Some(Err(error)) => return error,
                None => return EngineError::events_ended(),
            },
        }
    }
}

/// Doubts every idle container that the engine doesn't call running.
async fn compare(pools: &Pools, engine: &dyn Engine, owner: &Owner) -> Result<(), EngineError> {
    // First what is idle, then the list: what becomes idle in between isn't judged by it.
    let idle = idle(pools).await;
    let listed = engine.list(INSTANCE_LABEL, Some(&owner.instance)).await?;
    let states: HashMap<&ContainerId, ContainerState> = listed.iter().map(|l| (&l.id, l.state)).collect();
    for (slot, container) in idle {
        let state = states.get(&container);
        if state != Some(&ContainerState::Running) {
            tracing::info!(%container, ?state, "an idle container doesn't run: it is replaced");
            let _ = pools.commands.send(Command::Doubted(slot));
        }
    }
    Ok(())
}

async fn doubt(pools: &Pools, container: &ContainerId) {
    if let Some((slot, _)) = idle(pools).await.into_iter().find(|(_, id)| id == container) {
        tracing::info!(%container, "an idle container was stopped from outside: it is replaced");
        let _ = pools.commands.send(Command::Doubted(slot));
    }
}

async fn idle(pools: &Pools) -> Vec<(SlotId, ContainerId)> {
    let (reply, idle) = oneshot::channel();
    let _ = pools.commands.send(Command::Idle(reply));
    idle.await.unwrap_or_default()
}
