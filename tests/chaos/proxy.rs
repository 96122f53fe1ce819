//! A TCP proxy between a worker and its broker, which freezes connections, cuts them, or holds back what the worker says on
//! the one that consumes: its acknowledgements.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let end = CancellationToken::new();
        let accept = {
            let (gate, cut) = (gate.subscribe(), Arc::clone(&cut));
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let cut = cut.lock().unwrap().clone();
                    let pass = pass(client, upstreams.clone(), gate.clone());
                    tokio::spawn(cut.run_until_cancelled_owned(pass));
                }
            }
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(accept));
        Proxy { url, gate, cut, end }
    }

    /// Ends all connections there are, with what was held back of them. New ones are welcome.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    /// Passes on nothing more, in either direction, while all connections stay open.
    pub fn freeze(&self) {
        self.gate.send_replace(Gate::Nothing);
    }

    /// Holds back what workers say on connections that consume; all else goes on.
    pub fn hold_acks(&self) {
        self.gate.send_replace(Gate::NoAcks);
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

async fn pass(client: TcpStream, upstreams: Vec<String>, gate: watch::Receiver<Gate>) {
    for upstream in upstreams {
        if let Ok(server) = TcpStream::connect(&upstream).await {
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // Either direction's end is the connection's.
            tokio::select! {
                () = up(from_client, to_server, gate.clone()) => {}
                () = down(from_server, to_client, gate) => {}
            }
            return;
        }
    }
}

async fn up(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut gate: watch::Receiver<Gate>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut consumes = false;
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        // The connection's name, in the first thing that the worker says.
        consumes |= buffer[..n].windows(9).any(|window| window == b"(consume)");
        let passes = |gate: &Gate| *gate == Gate::Open || (*gate == Gate::NoAcks && !consumes);
        if gate.wait_for(passes).await.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn down(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut gate: watch::Receiver<Gate>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let passes = |gate: &Gate| *gate != Gate::Nothing;
        if gate.wait_for(passes).await.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
