//! Secrets that a pool gives its jobs (`secrets_from`): a directory of files, as Docker and Kubernetes mount secrets. A
//! file's name is a variable, its content the value.
//!
//! They are read on the worker's side, when it starts, every [`INTERVAL`] and at SIGHUP, and swapped as a whole: a job has all of
//! one reading. No job waits for a disk. What can't be read leaves the last good reading in force, and is logged.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::PoolConfig;
use crate::contract::PoolName;
use crate::contract::job::{Env, SECRETS_MAX};

/// How often the directories are read.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Largest value in bytes: the kernel takes no longer string (`MAX_ARG_STRLEN`), and the name has to fit as well.
const VALUE_MAX: u64 = 100 * 1024;

/// Where Kubernetes keeps the files of one generation: a link, which it replaces at once, to a directory. What is beside it
/// are links into it.
const GENERATION: &str = "..data";

/// Why a directory gives no secrets. Shows nothing of any content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct SecretFault {
    /// The directory, or the file in it.
    pub path: PathBuf,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl SecretFault {
    fn of(path: &Path, message: impl Into<String>) -> SecretFault {
        SecretFault { path: path.into(), message: message.into() }
    }
}

/// What a directory has, by name. Hidden files are left out. Of each value one line end at its end is, as a shell's `$(cat FILE)` does it and
/// as editors and `echo` leave it.
///
/// # Errors
/// The first file that can't be a variable.
pub fn read(directory: &Path) -> Result<Env, SecretFault> {
    // A generation that is replaced meanwhile is gone at once; then there is a new one.
    read_once(directory).or_else(|_| read_once(directory))
}

fn read_once(directory: &Path) -> Result<Env, SecretFault> {
    let cant = |path: &Path| {
        let path = path.to_owned();
        move |e: std::io::Error| SecretFault { path, message: format!("can't be read: {e}") }
    };
    let generation = match fs::canonicalize(directory.join(GENERATION)) {
        Ok(generation) => generation,
        Err(e) if e.kind() == ErrorKind::NotFound => directory.to_owned(),
        Err(e) => return Err(cant(directory)(e)),
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(&generation).map_err(cant(directory))? {
        let entry = entry.map_err(cant(directory))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            files.push(entry.path());
        }
    }
    if files.len() > SECRETS_MAX {
        return Err(SecretFault::of(directory, format!("{} files; the most is {SECRETS_MAX}", files.len())));
    }
    files.sort_unstable();
    files.iter().map(|path| variable(path)).collect::<Result<_, _>>().map(Env)
}

fn variable(path: &Path) -> Result<(String, String), SecretFault> {
    let fault = |message: &str| SecretFault::of(path, message);
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.contains('='));
    let name = name.ok_or_else(|| fault("its name can't be a variable's: it has '=', or isn't UTF-8"))?;
    // Links are followed: that is how Kubernetes shows its files.
    let status = fs::metadata(path).map_err(|e| fault(&format!("can't be read: {e}")))?;
    if !status.is_file() {
        return Err(fault("is no file: a variable's value is a file's content"));
    }
    if status.len() > VALUE_MAX {
        return Err(fault(&format!("has {} bytes; the most for a variable is {VALUE_MAX}", status.len())));
    }
    let content = fs::read(path).map_err(|e| fault(&format!("can't be read: {e}")))?;
    let mut value = String::from_utf8(content).map_err(|_| fault("is not UTF-8, as a variable must be"))?;
    if value.contains('\0') {
        return Err(fault("has a NUL character, which an environment can't hold"));
    }
    if value.ends_with('\n') {
        value.pop();
        if value.ends_with('\r') {
            value.pop();
        }
    }
    Ok((name.to_owned(), value))
}

/// The secrets of all pools, as they are now. Cheap to clone. The lock is held for a look or a swap, never across an await.
#[derive(Clone, Debug, Default)]
pub struct PoolSecrets {
    current: Arc<RwLock<BTreeMap<PoolName, Entry>>>,
    look: Arc<Notify>,
}

#[derive(Clone, Debug)]
struct Entry {
    directory: PathBuf,
    values: Arc<Env>,
    /// Whether the last reading failed.
    failing: bool,
}

impl PoolSecrets {
    /// Reads what these pools name.
    ///
    /// # Errors
    /// The first directory that can't be used.
    pub fn of_pools(pools: &BTreeMap<PoolName, PoolConfig>) -> Result<PoolSecrets, SecretFault> {
        let mut entries = BTreeMap::new();
        for (name, pool) in pools {
            if let Some(directory) = &pool.secrets_from {
                let values = Arc::new(read(directory)?);
                entries.insert(name.clone(), Entry { directory: directory.clone(), values, failing: false });
            }
        }
        Ok(PoolSecrets { current: Arc::new(RwLock::new(entries)), look: Arc::default() })
    }

    /// What a pool's jobs get; empty if it names no directory.
    pub fn of(&self, pool: &PoolName) -> Arc<Env> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.get(pool).map(|entry| Arc::clone(&entry.values)).unwrap_or_default()
    }

    /// Takes over which directories there are now. New ones have been read when the configuration was.
    pub fn take_over(&self, pools: &BTreeMap<PoolName, PoolConfig>) {
        match PoolSecrets::of_pools(pools) {
            Ok(new) => {
                let new = new.current.read().unwrap_or_else(PoisonError::into_inner).clone();
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
            }
            Err(fault) => tracing::error!("secrets_from: {fault}; the last good ones stay in force"),
        }
        self.look.notify_one();
    }

    /// Keeps them up to date.
    pub async fn watch(self) {
        loop {
            let _ = tokio::time::timeout(INTERVAL, self.look.notified()).await;
            let secrets = self.clone();
            // Disks may be slow, or a network's.
            let _ = tokio::task::spawn_blocking(move || secrets.read_again()).await;
        }
    }

    fn read_again(&self) {
        let entries = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        for (pool, entry) in entries {
            let read = read(&entry.directory);
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            // Configured otherwise meanwhile.
            let Some(now) = current.get_mut(&pool).filter(|now| now.directory == entry.directory) else {
                continue;
            };
            match read {
                Ok(values) => {
                    if *now.values != values {
                        tracing::info!(%pool, "secrets_from: {} variables were read again", values.0.len());
                        now.values = Arc::new(values);
                    }
                    now.failing = false;
                }
                Err(fault) => {
                    if !now.failing {
                        tracing::error!(%pool, "secrets_from: {fault}; the last good ones stay in force");
                    }
                    now.failing = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn directory() -> PathBuf {
        let path = std::env::temp_dir().join(format!("prewarm-secrets-{}", uuid::Uuid::now_v7().simple()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn pairs(env: &Env) -> Vec<(&str, &str)> {
        env.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn a_file_is_a_variable() {
        let dir = directory();
        for (name, content) in [("TOKEN", "a\n"), ("KEY", "l1\nl2\r\n"), ("EMPTY", ""), (".hidden", "x")] {
            fs::write(dir.join(name), content).unwrap();
        }
        assert_eq!(pairs(&read(&dir).unwrap()), [("EMPTY", ""), ("KEY", "l1\nl2"), ("TOKEN", "a")]);
        for (name, content, words) in [
            ("A=B", &b"x"[..], "A=B: its name"),
            ("BYTES", b"s3cret\xff", "BYTES: is not UTF-8"),
            ("NUL", b"s3cret\0", "NUL: has a NUL"),
            ("BIG", &[b'x'; 200_000], "BIG: has 200000 bytes"),
        ] {
            fs::write(dir.join(name), content).unwrap();
            let fault = read(&dir).unwrap_err().to_string();
            assert!(fault.contains(words) && !fault.contains("s3cret"), "{fault}");
            fs::remove_file(dir.join(name)).unwrap();
        }
        fs::create_dir(dir.join("DIR")).unwrap();
        assert!(read(&dir).unwrap_err().to_string().contains("DIR: is no file"));
        fs::remove_dir_all(&dir).unwrap();
        assert!(read(&dir).unwrap_err().to_string().contains("can't be read"));
    }

    #[test]
    fn a_generation_of_kubernetes_is_replaced_as_a_whole_and_a_fault_keeps_the_last() {
        let dir = directory();
        let write = |generation: &str, value: &str| {
            fs::create_dir(dir.join(generation)).unwrap();
            for name in ["A", "B"] {
                fs::write(dir.join(generation).join(name), value).unwrap();
            }
            symlink(generation, dir.join("..new")).unwrap();
            fs::rename(dir.join("..new"), dir.join("..data")).unwrap();
        };
        write("..1", "one");
        for name in ["A", "B"] {
            symlink(format!("..data/{name}"), dir.join(name)).unwrap();
        }
        let pool: PoolName = "p".parse().unwrap();
        let config = PoolConfig { secrets_from: Some(dir.clone()), ..PoolConfig::of_image("x") };
        let secrets = PoolSecrets::of_pools(&BTreeMap::from([(pool.clone(), config)])).unwrap();
        assert_eq!(pairs(&secrets.of(&pool)), [("A", "one"), ("B", "one")]);
        write("..2", "two");
        fs::remove_dir_all(dir.join("..1")).unwrap();
        secrets.read_again();
        assert_eq!(pairs(&secrets.of(&pool)), [("A", "two"), ("B", "two")]);
        fs::write(dir.join("..2/A"), b"\xff").unwrap();
        secrets.read_again();
        assert_eq!(pairs(&secrets.of(&pool)), [("A", "two"), ("B", "two")]);
        assert!(!format!("{secrets:?}").contains("two"));
        assert_eq!(secrets.of(&"q".parse().unwrap()).0, []);
        fs::remove_dir_all(&dir).unwrap();
    }
}
