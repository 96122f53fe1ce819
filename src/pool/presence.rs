//! A file that says that a worker is alive: it is locked as long as its process lives, however that ends. Others on the
//! same host can so tell a dead worker's containers from a living one's, at once.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Owner;

const SUFFIX: &str = ".alive";
/// What is beside it, for its containers.
const SOCKET: &str = "socket";

/// Where presence files are, for all workers of this host that may write there.
pub fn default_dir() -> Option<PathBuf> {
    let system = Path::new("/run/prewarm");
    let users = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("prewarm"));
    std::iter::once(system.to_owned()).chain(users).find(|dir| {
        let probe = dir.join(format!("{}.probe", std::process::id()));
        let writable = fs::create_dir_all(dir).and_then(|()| File::create(&probe)).is_ok();
        let _ = fs::remove_file(probe);
        writable
    })
}

/// This worker's own file. It is found to be a dead worker's from when this is dropped, however that comes about.
#[derive(Debug)]
pub struct Presence {
    path: PathBuf,
    /// The lock lasts as long as this is open.
    _file: File,
}

impl Presence {
    /// Says that this worker is alive.
    ///
    /// # Errors
    /// As the system gives it, with the path.
    pub fn announce(dir: &Path, owner: &Owner) -> io::Result<Presence> {
        let path = path(dir, &owner.instance);
        let about = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        fs::create_dir_all(dir).map_err(about)?;
        // Locked before it has its name: nobody finds it unlocked.
        let unnamed = path.with_extension("new");
        let mut file = File::create(&unnamed).map_err(about)?;
        file.try_lock().map_err(|e| about(e.into()))?;
        writeln!(file, "worker {}, process {}", owner.worker, std::process::id()).map_err(about)?;
        fs::rename(&unnamed, &path).map_err(about)?;
        Ok(Presence { path, _file: file })
    }
}

impl Presence {
    /// Where the inits of this worker's containers can come to it; what is left there goes with the file.
    pub fn socket(&self) -> PathBuf {
        self.path.with_extension(SOCKET)
    }

    /// Ends in order: nothing of this worker is left.
    pub fn leave(self) {
        remove(&self.path);
    }
}

/// What is known of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Its process lives.
    Alive,
    /// Its process ended, and not in order.
    Dead,
    /// It lives on another host, or keeps its file elsewhere, or ended in order.
    Unknown,
}

/// Looks whether a worker lives.
pub fn look(dir: &Path, instance: &str) -> Life {
    // A label's value, which anybody could have written: no other file is touched for it.
    if uuid::Uuid::parse_str(instance).is_err() {
        return Life::Unknown;
    }
    let Ok(file) = File::open(path(dir, instance)) else { return Life::Unknown };
    match file.try_lock_shared() {
        Ok(()) => Life::Dead,
        Err(TryLockError::WouldBlock) => Life::Alive,
        Err(TryLockError::Error(_)) => Life::Unknown,
    }
}

/// The instances of all dead workers whose files are still there.
pub fn dead(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let instances = names.filter_map(|name| Some(name.to_str()?.strip_suffix(SUFFIX)?.to_owned()));
    instances.filter(|instance| look(dir, instance) == Life::Dead).collect()
}

/// Forgets a dead worker of which nothing is left.
pub fn forget(dir: &Path, instance: &str) {
    if look(dir, instance) == Life::Dead {
        remove(&path(dir, instance));
    }
}

/// Removes a worker's file, and before it what is only found by it.
fn remove(path: &Path) {
    let _ = fs::remove_file(path.with_extension(SOCKET));
    let _ = fs::remove_file(path);
}

fn path(dir: &Path, instance: &str) -> PathBuf {
    dir.join(format!("{instance}{SUFFIX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_alive_while_its_file_is_locked() {
        let dir = std::env::temp_dir().join(format!("prewarm-presence-{}", uuid::Uuid::now_v7()));
        let owner = Owner::new("w");
        assert_eq!(look(&dir, &owner.instance), Life::Unknown);
        let presence = Presence::announce(&dir, &owner).unwrap();
        assert_eq!(look(&dir, &owner.instance), Life::Alive);
        // As when its process dies: the lock goes, the files stay.
        let socket = presence.socket();
        File::create(&socket).unwrap();
        drop(presence);
        assert_eq!(look(&dir, &owner.instance), Life::Dead);
        assert_eq!(dead(&dir), BTreeSet::from([owner.instance.clone()]));
        forget(&dir, &owner.instance);
        assert_eq!(look(&dir, &owner.instance), Life::Unknown);
        assert!(!socket.exists());

        let other = Owner::new("w");
        Presence::announce(&dir, &other).unwrap().leave();
        assert_eq!(look(&dir, &other.instance), Life::Unknown, "ended in order");
        assert_eq!(look(&dir, "../../etc/passwd"), Life::Unknown);
        fs::remove_dir(&dir).unwrap();
    }
}
