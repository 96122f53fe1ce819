//! Ctrl-C, where there is something to be put in order first.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// As a shell has it for a command that SIGINT ended.
pub(super) const INTERRUPTED: u8 = 130;

/// Cancelled by the first SIGINT or SIGTERM. The second ends the process at once, whatever it is doing.
///
/// # Errors
/// If the system doesn't let signals be handled.
pub(super) fn first() -> io::Result<CancellationToken> {
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let asked = CancellationToken::new();
    let told = asked.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            if told.is_cancelled() {
                std::process::exit(INTERRUPTED.into());
            }
            told.cancel();
        }
    });
    Ok(asked)
}
