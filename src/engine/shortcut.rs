//! A way from a container's init to the worker that doesn't lead through the engine, where both are on one host.
//!
//! ```text
//!   worker ═══════════════ this socket ═══════════════ init        frames, once init has come
//!      └──── engine ──── its shim ──── stdin, stdout ────┘         held open: the engine's own word on the container's end
//! ```
//!
//! On the attached stream each frame passes through two more processes, which is a tenth of all that a short job costs a busy
//! host, its publisher and broker included (README, 'Many jobs in one container'). So a container that serves many jobs finds
//! the worker's socket mounted beside init; SETUP tells it a token, with which it comes. It then takes the mount away, before
//! any job has a world: no job ever sees it. Whoever can't be come to, since the engine is on another host, say, or the worker
//! in a container of its own, is spoken to as before.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::{EngineError, Fault, SHORTCUT_PATH};
use crate::init::wire::TOKEN;

/// Who comes says at once which container it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pause after a failed accept(2): without descriptors the next would fail at once, too.
const PAUSE: Duration = Duration::from_secs(1);

type Token = [u8; TOKEN];

/// The worker's socket. Dropped, it is gone, and what came through it stays.
#[derive(Debug)]
pub struct Shortcut {
    door: Arc<Door>,
    listening: AbortHandle,
}

/// What those who wait for an init have of the socket.
#[derive(Debug)]
struct Door {
    path: PathBuf,
    /// False once it is known that no init comes there.
    usable: AtomicBool,
    awaited: Mutex<HashMap<Token, oneshot::Sender<UnixStream>>>,
}

impl Shortcut {
    /// Listens at a path where nothing is yet. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// As the system gives it.
    pub fn open(path: &Path) -> io::Result<Shortcut> {
        let listener = UnixListener::bind(path)?;
        // Init is root on this host, or can't come.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let (path, usable, awaited) = (path.to_owned(), AtomicBool::new(true), Mutex::default());
        let door = Arc::new(Door { path, usable, awaited });
        let listening = tokio::spawn(listen(listener, door.clone())).abort_handle();
        Ok(Shortcut { door, listening })
    }

    /// Awaits one init; none if it is known that none comes.
    pub fn expect(&self) -> Option<Visit> {
        if !self.door.usable.load(Ordering::Relaxed) {
            return None;
        }
        let token = Token::from(rand::random::<u128>().to_le_bytes());
        let (sender, stream) = oneshot::channel();
        self.door.awaited().insert(token, sender);
        Some(Visit { token, stream, door: self.door.clone() })
    }
}

impl Drop for Shortcut {
    fn drop(&mut self) {
        self.listening.abort();
        _ = std::fs::remove_file(&self.door.path);
    }
}

impl Door {
    fn awaited(&self) -> MutexGuard<'_, HashMap<Token, oneshot::Sender<UnixStream>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An init that is to come. Dropped, it is not awaited any more.
#[derive(Debug)]
pub struct Visit {
    token: Token,
    stream: oneshot::Receiver<UnixStream>,
    door: Arc<Door>,
}

impl Visit {
    /// By what it is known.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Where it finds the socket on this host.
    pub fn path(&self) -> &Path {
        &self.door.path
    }

    /// Waits until it has come. Cancel safe.
    pub async fn stream(&mut self) -> UnixStream {
        match (&mut self.stream).await {
            Ok(stream) => stream,
            // Nobody listens any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether the socket is the reason of an engine's error: it isn't on the engine's host, or can't be mounted. Then no other init is
    /// awaited there.
    pub fn prevented(&self, error: &EngineError) -> bool {
        let (Fault::Refused(reason) | Fault::NotFound(reason)) = &error.fault else { return false };
        let prevented = reason.contains(&*self.path().to_string_lossy()) || reason.contains(SHORTCUT_PATH);
        if prevented {
            self.in_vain(reason);
        }
        prevented
    }

    /// It can't come, and no other init can.
    pub fn in_vain(&self, reason: &str) {
        if self.door.usable.swap(false, Ordering::Relaxed) {
            let path = self.path().display();
            tracing::info!(%path, reason, "containers are spoken to by way of the engine alone, not by the worker's socket");
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.door.awaited().remove(&self.token);
    }
}

async fn listen(listener: UnixListener, door: Arc<Door>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => _ = tokio::spawn(admit(stream, door.clone())),
            Err(error) => {
                tracing::warn!(%error, "the worker's socket can't let in a container's init, which waits for it");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn admit(mut stream: UnixStream, door: Arc<Door>) {
    let mut token = [0; TOKEN];
    if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, stream.read_exact(&mut token)).await
        && let Some(visit) = door.awaited().remove(&token)
    {
        // Who awaited it may have given up; then it ends with the stream.
        _ = visit.send(stream);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::engine::Op;

    fn path() -> PathBuf {
        std::env::temp_dir().join(format!("prewarm-shortcut-{}", uuid::Uuid::now_v7()))
    }

    #[tokio::test]
    async fn each_init_comes_to_whom_awaits_it() {
        let path = path();
        let shortcut = Shortcut::open(&path).unwrap();
        let (mut one, mut other) = (shortcut.expect().unwrap(), shortcut.expect().unwrap());
        for (visit, says) in [(&other, b"other"), (&one, b"one's")] {
            let mut init = UnixStream::connect(&path).await.unwrap();
            init.write_all(visit.token()).await.unwrap();
            init.write_all(says).await.unwrap();
        }
        for (visit, says) in [(&mut one, b"one's"), (&mut other, b"other")] {
            let mut said = [0; 5];
            visit.stream().await.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, says);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_else_is_let_in() {
        let path = path();
        let shortcut = Shortcut::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (visit, gone) = (shortcut.expect().unwrap(), *shortcut.expect().unwrap().token());
        let mut silent = UnixStream::connect(&path).await.unwrap();
        for token in [gone, [0; TOKEN], visit.token().map(|byte| !byte)] {
            let mut stranger = UnixStream::connect(&path).await.unwrap();
            stranger.write_all(&token).await.unwrap();
            assert_eq!(stranger.read(&mut [0]).await.unwrap(), 0, "it is hung up on");
        }
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "so is who says nothing");
        // Who was awaited can come all the same, and only once.
        for let_in in [true, false] {
            let mut init = UnixStream::connect(&path).await.unwrap();
            init.write_all(visit.token()).await.unwrap();
            let hung_up = tokio::time::timeout(PATIENCE * 2, init.read(&mut [0])).await.is_ok();
            assert_eq!(hung_up, !let_in);
        }
    }

    #[tokio::test]
    async fn an_engine_that_cannot_mount_it_is_not_asked_again() {
        let path = path();
        let shortcut = Shortcut::open(&path).unwrap();
        let visit = shortcut.expect().unwrap();
        let error = |fault| EngineError { op: Op::Create, subject: "c".into(), fault };
        let refused = |reason: String| error(Fault::Refused(reason));
        for other in [refused("no space left".into()), error(Fault::Timeout(PATIENCE))] {
            assert!(!visit.prevented(&other));
            assert!(shortcut.expect().is_some());
        }
        let missing = refused(format!("bind source path does not exist: {}", path.display()));
        for _ in 0..2 {
            assert!(visit.prevented(&missing));
            assert!(shortcut.expect().is_none());
        }
        assert!(visit.prevented(&refused("mounting to rootfs at /.prewarm/shortcut: not permitted".into())));
    }

    #[tokio::test]
    async fn nothing_is_left_of_it() {
        let path = path();
        let shortcut = Shortcut::open(&path).unwrap();
        assert!(Shortcut::open(&path).is_err(), "it is taken");
        let visit = shortcut.expect().unwrap();
        assert_eq!(visit.path(), path);
        assert_eq!(shortcut.door.awaited().len(), 1);
        drop(visit);
        assert_eq!(shortcut.door.awaited().len(), 0);
        drop(shortcut);
        assert!(!path.exists());
    }
}
