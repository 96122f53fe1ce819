//! Ctrl-C, where there is something to be put in order first.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// As a shell has it for a command that SIGINT ended.
pub(super) const INTERRUPTED: u8 = 130;

/// How long what was left at the second signal may take to clean up after itself.
const CLEANING: Duration = Duration::from_secs(1);

/// Does `work`, whose token the first SIGINT or SIGTERM cancels: it is to cancel `what` and go on to the end. The second one
/// drops it as it stands and ends the process with [`INTERRUPTED`]; without the drop if that isn't possible within a second,
/// whatever it is doing.
pub(super) async fn interruptible<E>(
    what: &str,
    work: impl AsyncFnOnce(&CancellationToken) -> Result<u8, E>,
) -> Result<u8, E> {
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let signals = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    match signals {
        Err(error) => eprintln!("prewarm: Ctrl-C will not cancel {what}: {error}"),
        Ok((mut int, mut term)) => {
            let told = [first.clone(), second.clone()];
            tokio::spawn(async move {
                for told in told {
                    tokio::select! {
                        _ = int.recv() => {}
                        _ = term.recv() => {}
                    }
                    told.cancel();
                }
                tokio::time::sleep(CLEANING).await;
                std::process::exit(INTERRUPTED.into());
            });
        }
    }
    let done = tokio::select! {
        done = work(&first) => Some(done),
        () = second.cancelled() => None,
    };
    // The runtime isn't waited for: it may have a look-up of a name in hand, which nothing interrupts.
    done.unwrap_or_else(|| std::process::exit(INTERRUPTED.into()))
}
