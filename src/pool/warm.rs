//! One container's way: created, attached, started, ready, then idle until it is handed over or dies.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::driver::{Command, Grant};
use super::recipe::{Prepared, Recipe};
use super::slots::{Reason, SlotId};
use super::{Lease, Ticket};
use crate::engine::link::{Frame, Link, LinkError};
use crate::engine::{ContainerId, EngineError};

/// How long a started container may take to say READY. It needs milliseconds.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a container did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The engine said no.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its stream ended before READY.
    #[error(
        "{0} before it was ready; does the image's user, runtime or security option keep init from running?"
    )]
    Link(#[from] LinkError),
    /// It said something else first.
    #[error("container {0}: its init said {1:?} where READY was due")]
    Unexpected(ContainerId, Frame),
    /// It said nothing.
    #[error("container {0} was started but said nothing within {READY_TIMEOUT:?}")]
    Silent(ContainerId),
}

/// Makes a slot's container ready, beginning `after` a moment, then keeps it until it is handed over, dies, or is no longer
/// wanted.
pub(super) async fn keep(
    recipe: Arc<Recipe>,
    prepared: Prepared,
    slot: SlotId,
    commands: mpsc::UnboundedSender<Command>,
    after: Duration,
) {
    tokio::time::sleep(after).await;
    let mut container = None;
    let begun = Instant::now();
    let mut link = match warm_up(&recipe, slot, &prepared, &mut container).await {
        Ok(link) => link,
        Err(error) => {
            let _ = commands.send(Command::Failed { slot, container, error: error.to_string() });
            return;
        }
    };
    let took = begun.elapsed();
    let (handoff, mut granted) = oneshot::channel();
    let ready = Command::Ready {
        slot,
        container: link.container().clone(),
        handoff,
        recipe: Arc::clone(&recipe),
        image: prepared.image.id.clone(),
        warmup: took,
        kept_busy: after + took,
    };
    if commands.send(ready).is_err() {
        return;
    }
    // What the stream says comes first: a container that has died is not to be handed over.
    tokio::select! {
        biased;
        said = link.recv() => {
            tracing::debug!(container = %link.container(), ?said, "an idle container ended");
            // Granted in this very moment: whoever waits gets another.
            granted.close();
            let _ = commands.send(Command::Died { slot, grant: granted.try_recv().ok() });
        }
        grant = &mut granted => {
            // The driver has dropped its end: the container is to be removed.
            let Ok(Grant { reply, kind, .. }) = grant else { return };
            let ticket = Ticket { slot, reason: Reason::Doubt, commands };
            let config = Arc::clone(&recipe.config);
            let lease = Lease { link, image: prepared.image, config, kind, waited: Duration::ZERO, ticket };
            // Nobody there any more: the lease comes back and is dropped, which retires the container.
            let _ = reply.send(lease);
        }
    }
}

async fn warm_up(
    recipe: &Recipe,
    slot: SlotId,
    prepared: &Prepared,
    container: &mut Option<ContainerId>,
) -> Result<Link, WarmError> {
    let id = recipe.engine.create(&recipe.spec(slot, prepared)).await?;
    *container = Some(id.clone());
    let stream = recipe.engine.attach(&id).await?;
    let mut link = Link::new(id.clone(), stream);
    recipe.engine.start(&id).await?;
    match tokio::time::timeout(READY_TIMEOUT, link.recv()).await {
        Ok(Ok(Frame::Ready)) => Ok(link),
        Ok(Ok(other)) => Err(WarmError::Unexpected(id, other)),
        Ok(Err(e)) => Err(e.into()),
        Err(_) => Err(WarmError::Silent(id)),
    }
}
