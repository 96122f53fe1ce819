//! A TCP proxy between a worker and its broker, which freezes connections, cuts them, or holds back what the worker says on
//! the one that consumes: its acknowledgements.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::worker::DEADLINE;

/// What goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// All but what workers say on connections that consume.
    NoAcks,
    Nothing,
}

pub struct Proxy {
    /// The broker's URL, by way of here.
    pub url: String,
    gate: watch::Sender<Gate>,
    /// How often something was held back of what a worker says on a connection that consumes.
    held: watch::Sender<usize>,
    /// Cancelled to cut the connections there are; a new one is for those to come.
    cut: Arc<Mutex<CancellationToken>>,
    end: CancellationToken,
}

impl Proxy {
    /// Each new connection goes to the first of these brokers that takes it.
    pub async fn before(urls: &[String]) -> Proxy {
        let upstreams: Vec<String> = urls.iter().map(|url| place(url).to_owned()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = urls[0].replacen(&upstreams[0], &listener.local_addr().unwrap().to_string(), 1);
        let gate = watch::Sender::new(Gate::Open);
        let held = watch::Sender::new(0);
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let end = CancellationToken::new();
        let accept = {
            let (gate, held, cut) = (gate.subscribe(), held.clone(), Arc::clone(&cut));
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let cut = cut.lock().unwrap().clone();
                    let way = Way { gate: gate.clone(), held: held.clone(), cut: cut.clone() };
                    tokio::spawn(cut.run_until_cancelled_owned(pass(client, upstreams.clone(), way)));
                }
            }
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(accept));
        Proxy { url, gate, held, cut, end }
    }

    /// Ends all connections there are, with what was held back of them. New ones are welcome.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    /// Passes on nothing more, in either direction, while all connections stay open.
    pub fn freeze(&self) {
        self.gate.send_replace(Gate::Nothing);
    }

    /// Holds back what workers say on connections that consume, until there is an acknowledgement among it; all else goes on.
    pub async fn hold_acks(&self) {
        let mut held = self.held.subscribe();
        let before = *held.borrow();
        self.gate.send_replace(Gate::NoAcks);
        let more = held.wait_for(|held| *held > before);
        timeout(DEADLINE, more).await.expect("no acknowledgement came").unwrap();
    }

    /// Goes on where it stopped.
    pub fn open(&self) {
        self.gate.send_replace(Gate::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.cancel();
        self.cut();
    }
}

/// The host and port of a URL.
fn place(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    authority.rsplit_once('@').map_or(authority, |(_, place)| place)
}

/// What a connection is subject to.
#[derive(Clone)]
struct Way {
    gate: watch::Receiver<Gate>,
    held: watch::Sender<usize>,
    cut: CancellationToken,
}

impl Way {
    /// Waits until the gate lets this pass; or not at all, if the connection has been cut.
    async fn opened(&mut self, passes: impl FnMut(&Gate) -> bool) -> bool {
        // Cut and opened at once, what was held back must not slip through: whoever sees the gate open sees the cut too.
        self.gate.wait_for(passes).await.is_ok() && !self.cut.is_cancelled()
    }
}

async fn pass(client: TcpStream, upstreams: Vec<String>, way: Way) {
    for upstream in upstreams {
        if let Ok(server) = TcpStream::connect(&upstream).await {
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // Either direction's end is the connection's.
            tokio::select! {
                () = up(from_client, to_server, way.clone()) => {}
                () = down(from_server, to_client, way) => {}
            }
            return;
        }
    }
}

/// The first byte of a frame that carries a method (AMQP 0-9-1, 2.3.5), such as an acknowledgement; a heartbeat's is 8.
const METHOD: u8 = 1;

async fn up(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: Way) {
    let mut buffer = vec![0; 64 * 1024];
    let mut consumes = false;
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        // The connection's name, in the first thing that the worker says.
        consumes |= buffer[..n].windows(9).any(|window| window == b"(consume)");
        if consumes && buffer[0] == METHOD && *way.gate.borrow() == Gate::NoAcks {
            way.held.send_modify(|held| *held += 1);
        }
        let passes = |gate: &Gate| *gate == Gate::Open || (*gate == Gate::NoAcks && !consumes);
        if !way.opened(passes).await || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn down(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: Way) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let passes = |gate: &Gate| *gate != Gate::Nothing;
        if !way.opened(passes).await || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
