//! The engine, seen from beside the worker; and a proxy in between that sees each request and can hold new ones back.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::docker::docker_ok;

/// A container as `docker ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    /// `created`, `running`, `exited`, …
    pub state: String,
}

/// A worker's containers, in every state.
pub fn containers(worker: &str) -> Vec<Container> {
    listed(&[], &["--filter", &format!("label=prewarm.worker={worker}")])
}

/// The containers of an engine, in every state.
pub(super) fn listed(engine: &[&str], filter: &[&str]) -> Vec<Container> {
    let ps = ["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.State}}"];
    let lines = docker_ok(engine.iter().chain(&ps).chain(filter));
    let container = |line: &str| {
        let (id, state) = line.split_once(' ').unwrap();
        Container { id: id.to_owned(), state: state.to_owned() }
    };
    lines.lines().map(container).collect()
}

pub fn running(worker: &str) -> Vec<String> {
    containers(worker).into_iter().filter(|c| c.state == "running").map(|c| c.id).collect()
}

/// A request that came to the proxy.
#[derive(Clone, Debug)]
pub struct Request {
    pub at: Instant,
    /// `POST /containers/create?name=…`
    pub line: String,
}

/// Stands between a worker and the engine. Streams that exist are never touched.
pub struct EngineProxy {
    /// As in `DOCKER_HOST`.
    pub host: String,
    seen: Arc<Mutex<Vec<Request>>>,
    /// Bytes that the engine said.
    heard: Arc<AtomicU64>,
    open: watch::Sender<bool>,
    end: CancellationToken,
}

impl EngineProxy {
    pub fn new(dir: &Path) -> EngineProxy {
        let path: PathBuf = dir.join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::new(AtomicU64::new(0));
        let open = watch::Sender::new(true);
        let end = CancellationToken::new();
        let accept = {
            let (seen, heard) = (Arc::clone(&seen), Arc::clone(&heard));
            let (open, end) = (open.subscribe(), end.clone());
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let pass = pass(client, Arc::clone(&seen), Arc::clone(&heard), open.clone());
                    tokio::spawn(end.clone().run_until_cancelled_owned(pass));
                }
            }
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(accept));
        EngineProxy { host: format!("unix://{}", path.display()), seen, heard, open, end }
    }

    /// From now on requests are seen, and not passed on.
    pub fn hold(&self) {
        self.open.send_replace(false);
    }

    /// Passes on what was held, and all that comes.
    pub fn release(&self) {
        self.open.send_replace(true);
    }

    /// The requests since this was asked last.
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// How many bytes the engine has said to the worker.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

impl Drop for EngineProxy {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection of its own to the engine.
pub async fn upstream() -> std::io::Result<Box<dyn Duplex>> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
    match host.split_once("://") {
        Some(("unix", path)) => Ok(Box::new(UnixStream::connect(path).await?)),
        Some((_, address)) => Ok(Box::new(TcpStream::connect(address).await?)),
        None => panic!("DOCKER_HOST '{host}'"),
    }
}

async fn pass(
    client: UnixStream,
    seen: Arc<Mutex<Vec<Request>>>,
    heard: Arc<AtomicU64>,
    mut open: watch::Receiver<bool>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let Ok(server) = upstream().await else { return };
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let up = async move {
        let mut buffer = vec![0; 64 * 1024];
        let mut hijacked = false;
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            if let Some(line) = request_line(&buffer[..n]).filter(|_| !hijacked) {
                hijacked = line.contains("/attach");
                seen.lock().unwrap().push(Request { at: Instant::now(), line });
                if open.wait_for(|open| *open).await.is_err() {
                    return;
                }
            }
            if to_server.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
        let _ = to_server.shutdown().await;
    };
    let down = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
            heard.fetch_add(n as u64, Ordering::Relaxed);
            if to_client.write_all(&buffer[..n]).await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
}

/// The beginning of a request, if that is what these bytes are.
fn request_line(bytes: &[u8]) -> Option<String> {
    let line = bytes.split(|b| *b == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_suffix(" HTTP/1.1")?;
    ["GET /", "HEAD /", "POST /", "PUT /", "DELETE /"]
        .iter()
        .any(|m| line.starts_with(m))
        .then(|| line.to_owned())
}
