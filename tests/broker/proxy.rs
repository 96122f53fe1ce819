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
}

impl Proxy {
    pub async fn to(upstream: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let frozen = watch::Sender::new(false);
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let end = CancellationToken::new();
        let accept = {
            let (frozen, cut) = (frozen.subscribe(), cut.clone());
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let Ok(server) = TcpStream::connect(&upstream).await else { continue };
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let cut = cut.lock().unwrap().clone();
                    tokio::spawn(cut.clone().run_until_cancelled_owned(pump(
                        from_client,
                        to_server,
                        frozen.clone(),
                    )));
                    tokio::spawn(cut.run_until_cancelled_owned(pump(from_server, to_client, frozen.clone())));
                }
            }
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(accept));
        Proxy { address, frozen, cut, end }
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

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut frozen: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
