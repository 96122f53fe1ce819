//! A TCP proxy between a worker and its broker, which can cut and freeze connections.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub struct Proxy {
    pub address: SocketAddr,
    frozen: watch::Sender<bool>,
    /// Cancelled to cut the connections there are; a new one is for those to come.
    cut: Arc<Mutex<CancellationToken>>,
    end: CancellationToken,
    tamper: Tampering,
}

/// What to replace by what, of the same length, on the way to the broker; or by nothing, to pass on nothing of what is read with it.
type Tampering = Arc<Mutex<Option<(&'static [u8], &'static [u8])>>>;

impl Proxy {
    pub async fn to(upstream: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let frozen = watch::Sender::new(false);
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let end = CancellationToken::new();
        let tamper = Tampering::default();
        let accept = {
            let (frozen, cut, tamper) = (frozen.subscribe(), cut.clone(), tamper.clone());
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let Ok(server) = TcpStream::connect(&upstream).await else { continue };
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let cut = cut.lock().unwrap().clone();
                    let out = pump(from_client, to_server, frozen.clone(), tamper.clone());
                    let back = pump(from_server, to_client, frozen.clone(), Tampering::default());
                    tokio::spawn(cut.clone().run_until_cancelled_owned(out));
                    tokio::spawn(cut.run_until_cancelled_owned(back));
                }
            }
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(accept));
        Proxy { address, frozen, cut, end, tamper }
    }

    /// From now on replaces the first by the second, of the same length, in what goes to the broker, or doesn't pass on what the
    /// first is in if the second is empty; or changes nothing.
    pub fn tamper(&self, replace: Option<(&'static [u8], &'static [u8])>) {
        assert!(replace.is_none_or(|(what, with)| with.is_empty() || what.len() == with.len()));
        *self.tamper.lock().unwrap() = replace;
    }

    /// Ends all connections there are. New ones are welcome.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    /// Passes on nothing more, in either direction, while all connections stay open.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Goes on where it was frozen.
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.cancel();
        self.cut();
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut frozen: watch::Receiver<bool>,
    tamper: Tampering,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if let Some((what, with)) = *tamper.lock().unwrap()
            && let Some(at) = buffer[..n].windows(what.len()).position(|window| window == what)
        {
            if with.is_empty() {
                continue;
            }
            buffer[at..at + what.len()].copy_from_slice(with);
        }
        if frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
