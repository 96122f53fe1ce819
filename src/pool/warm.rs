//! One container's way: created, attached, started, ready, then idle until it is handed over or dies. With isolation
//! `namespace` it comes back from its job, and is idle again once init says so.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::driver::{Command, Grant};
use super::recipe::{Prepared, Recipe};
use super::slots::{Reason, SlotId};
use super::{Lease, Ticket};
use crate::config::Isolation;
use crate::engine::link::{Frame, Link, LinkError};
use crate::engine::shortcut::{Shortcut, Visit};
use crate::engine::{ContainerId, EngineError};
use crate::init::wire::{Failed, Step};

/// How long a started container may take to say READY. It needs milliseconds.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long after a job until its container is READY for the next: the kernel takes the job's world apart meanwhile, which is a
/// second for a hundred thousand files, and for fewer where the pool leaves little of a processor.
const RENEWED_TIMEOUT: Duration = Duration::from_secs(120);

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
    /// It can't make a world for a job of this user.
    #[error("container {0}: {reason}", reason = unable(.1, .2))]
    Unable(ContainerId, Failed, String),
    /// It said something else first.
    #[error("container {0}: its init said {1:?} where READY was due")]
    Unexpected(ContainerId, Frame),
    /// It said nothing.
    #[error("container {0} was started but said nothing within {READY_TIMEOUT:?}")]
    Silent(ContainerId),
}

/// Why init can't make a world for a job, and what may help.
fn unable(failed: &Failed, user: &str) -> String {
    const ENOENT: i32 = 2;
    if failed.step == Step::User && failed.errno == ENOENT {
        return format!(
            "the image's /etc/passwd or /etc/group doesn't have '{user}': correct the pool's `user`, or the image's USER"
        );
    }
    let os = std::io::Error::from_raw_os_error(failed.errno);
    format!(
        "init can't isolate jobs by namespaces here, at step {:?}: {os}; does the engine's runtime, kernel or storage driver \
         forbid it? isolation = \"container\" needs none of it",
        failed.step
    )
}

/// Makes a slot's container ready, beginning `after` a moment, then keeps it until it has served, dies, or is no longer
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
    let mut jobs_left = match recipe.config.isolation {
        Isolation::Container => 1,
        Isolation::Namespace => recipe.config.max_jobs,
    };
    loop {
        let Some(Grant { reply, kind, .. }) = granted_alive(&mut link, granted, slot, &commands).await else {
            return;
        };
        jobs_left -= 1;
        let begun = Instant::now();
        let (back, returned) = oneshot::channel();
        let lease = Lease {
            link,
            image: Arc::clone(&prepared.image),
            config: Arc::clone(&recipe.config),
            kind,
            waited: Duration::ZERO,
            ticket: Ticket { slot: Some(slot), reason: Reason::Doubt, commands: commands.clone() },
            back: (jobs_left > 0).then_some(back),
        };
        // Nobody there any more: the lease comes back and is dropped, which retires the container.
        if reply.send(lease).is_err() {
            return;
        }
        // Not given back: its ticket has told the driver.
        let Ok(returned) = returned.await else { return };
        link = returned;
        match tokio::time::timeout(RENEWED_TIMEOUT, link.recv()).await {
            Ok(Ok(Frame::Ready)) => {}
            said => {
                tracing::warn!(container = %link.container(), ?said, "not to be trusted with another job");
                let _ = commands.send(Command::Released(slot, Reason::Doubt));
                return;
            }
        }
        let handoff;
        (handoff, granted) = oneshot::channel();
        if commands.send(Command::Returned { slot, handoff, away: begun.elapsed() }).is_err() {
            return;
        }
    }
}

/// Waits for whom the idle container is handed over to; none if it died, or is to be removed.
async fn granted_alive(
    link: &mut Link,
    mut granted: oneshot::Receiver<Grant>,
    slot: SlotId,
    commands: &mpsc::UnboundedSender<Command>,
) -> Option<Grant> {
    // What the stream says comes first: a container that has died is not to be handed over.
    tokio::select! {
        biased;
        said = link.recv() => {
            tracing::debug!(container = %link.container(), ?said, "an idle container ended");
            // Granted in this very moment: whoever waits gets another.
            granted.close();
            let _ = commands.send(Command::Died { slot, grant: granted.try_recv().ok() });
            None
        }
        // The driver has dropped its end: the container is to be removed.
        grant = &mut granted => grant.ok(),
    }
}

async fn warm_up(
    recipe: &Recipe,
    slot: SlotId,
    prepared: &Prepared,
    container: &mut Option<ContainerId>,
) -> Result<Link, WarmError> {
    let (id, visit) = create(recipe, slot, prepared).await?;
    *container = Some(id.clone());
    let stream = recipe.engine.attach(&id).await?;
    let mut link = Link::new(id.clone(), stream);
    if let Err(error) = recipe.engine.start(&id).await {
        // Some engines find out only here that they can't mount the socket. The next container goes without.
        if let Some(visit) = &visit {
            visit.prevented(&error);
        }
        return Err(error.into());
    }
    if let Some(setup) = &prepared.setup {
        link.send(&setup.with(visit.as_ref().map(Visit::token))).await?;
    }
    match tokio::time::timeout(READY_TIMEOUT, first_word(&mut link, visit)).await {
        Ok(Ok(Frame::Ready)) => Ok(link),
        Ok(Ok(Frame::Failed(failed))) => {
            Err(WarmError::Unable(id, failed, recipe.user(&prepared.image).to_owned()))
        }
        Ok(Ok(other)) => Err(WarmError::Unexpected(id, other)),
        Ok(Err(e)) => Err(e.into()),
        Err(_) => Err(WarmError::Silent(id)),
    }
}

/// Creates a slot's container; and awaits its init at the worker's socket, where that can be.
async fn create(
    recipe: &Recipe,
    slot: SlotId,
    prepared: &Prepared,
) -> Result<(ContainerId, Option<Visit>), EngineError> {
    // Only an init that serves many jobs can take the mount away again; for a single one it would hardly pay.
    let shortcut = recipe.engine.shortcut().filter(|_| prepared.setup.is_some());
    if let Some(visit) = shortcut.and_then(Shortcut::expect) {
        match recipe.engine.create(&recipe.spec(slot, prepared, Some(visit.path()))).await {
            Ok(id) => return Ok((id, Some(visit))),
            Err(error) if visit.prevented(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((recipe.engine.create(&recipe.spec(slot, prepared, None)).await?, None))
}

/// What init says first, wherever it says it.
async fn first_word(link: &mut Link, visit: Option<Visit>) -> Result<Frame, LinkError> {
    if let Some(mut visit) = visit {
        tokio::select! {
            stream = visit.stream() => link.take(stream),
            word = link.recv() => {
                if let Ok(Frame::Ready) = &word {
                    visit.in_vain("it is mounted, and init can't connect to it");
                }
                return word;
            }
        }
    }
    link.recv().await
}
