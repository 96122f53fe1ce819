//! Looks whether a pool's image is another now under its name: somebody pulled or built a newer one.

use std::time::Duration;

use super::Pools;
use super::driver::Command;
use crate::config::Pull;

/// Looks at intervals, which pulls nothing; and when it is asked to, which pulls where the pool says
/// `pull = "always"`. Until the pools are closed.
pub(super) async fn watch(pools: Pools, every: Duration) {
    loop {
        let asked = tokio::select! {
            () = pools.commands.closed() => return,
            () = pools.look_at_images.notified() => true,
            () = tokio::time::sleep(every) => false,
        };
        for entry in pools.entries.values() {
            let (name, pull) = {
                let config = entry.config.borrow();
                (config.image.clone(), if asked { config.pull } else { Pull::Never })
            };
            match pools.engine.image(&name, pull).await {
                Ok(image) => {
                    let _ = pools.commands.send(Command::Image { pool: entry.index, name, id: image.id });
                }
                // Containers that exist don't need it; the next one that is made will say what is wrong.
                Err(error) => tracing::debug!("{error}"),
            }
        }
    }
}
