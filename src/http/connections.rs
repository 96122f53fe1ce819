//! Who is connected to the port: not too many at once, and no connection for long. Who keeps on connecting can hold up others
//! all the same: the port is for a network of one's own.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long to wait after a refused accept: there are no descriptors left, and those that are open end soon.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// At once; further ones wait in the system's queue.
    pub connections: usize,
    /// From accepting one until it has said what it wants. Short: those who say nothing, of whom there may be many, are to be gone
    /// before a probe gives up.
    pub question: Duration,
    /// From accepting one until its answer is sent.
    pub all: Duration,
}

/// A scrape, a probe and a browser each take milliseconds.
pub(super) const LIMITS: Limits =
    Limits { connections: 256, question: Duration::from_secs(2), all: Duration::from_secs(30) };

/// Answers requests until `stop`, then those that have begun.
///
/// A connection is for one request: one that is kept open would need a second bound for the time between two requests, and who
/// scrapes every 15 s saves nothing by it.
pub(super) async fn serve(listener: TcpListener, routes: Router, limits: Limits, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(limits.question);
    let open = TaskTracker::new();
    while let Some(Some((stream, place))) = stop.run_until_cancelled(next(&listener, &room)).await {
        let connection =
            http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes.clone()));
        open.spawn(async move {
            let _place = place;
            match tokio::time::timeout(limits.all, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("a connection to the HTTP port ended early: {error}"),
                Err(_) => tracing::debug!("a connection to the HTTP port took too long: closed"),
            }
        });
    }
    drop(listener);
    open.close();
    open.wait().await;
}

/// The next connection, and its place among those that there may be.
async fn next(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    // Never closed.
    let place = Arc::clone(room).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some((stream, place)),
            Err(error) => {
                // The caller's fault, not ours: the next one may be waiting.
                let theirs =
                    [ErrorKind::ConnectionRefused, ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset];
                if !theirs.contains(&error.kind()) {
                    tracing::warn!(
                        "the HTTP port can't accept a connection, trying again in {ACCEPT_AGAIN:?}: {error}"
                    );
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn port(limits: Limits, stop: &CancellationToken) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // More than fits into the buffers of both ends.
        let routes =
            Router::new().route("/", get(async || "yes")).route("/all", get(async || "x".repeat(64 << 20)));
        tokio::spawn(serve(listener, routes, limits, stop.clone()));
        address
    }

    async fn ask(address: std::net::SocketAddr, what: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(what.as_bytes()).await.unwrap();
        stream
    }

    async fn rest(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        // One that was closed with something unread is reset.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// An honest one is answered when this one, which takes the only place, is given up; after `least`.
    async fn holds_up(limits: Limits, what: &str, least: Duration) {
        let stop = CancellationToken::new();
        let address = port(limits, &stop).await;
        let begun = Instant::now();
        let bad = ask(address, what).await;
        let answer = tokio::time::timeout(PATIENCE, rest(ask(address, GET).await)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nyes"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
        let got = rest(bad).await;
        assert!(got.len() < 64 << 20 && !got.ends_with("yes"));
        stop.cancel();
    }

    #[tokio::test]
    async fn who_says_nothing_is_gone_soon() {
        let question = Duration::from_millis(200);
        let limits = Limits { connections: 1, question, all: 2 * PATIENCE };
        holds_up(limits, "", question).await;
        holds_up(limits, "GET / HT", question).await;
    }

    #[tokio::test]
    async fn who_takes_no_answer_is_given_up() {
        let all = Duration::from_millis(300);
        holds_up(
            Limits { connections: 1, question: 2 * PATIENCE, all },
            "GET /all HTTP/1.1\r\nHost: x\r\n\r\n",
            all,
        )
        .await;
    }

    #[tokio::test]
    async fn what_has_begun_is_answered_after_the_stop() {
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = CancellationToken::new();
        let (asked_now, stopped) = (asked.clone(), stop.clone());
        let answer = async move || {
            asked_now.cancel();
            stopped.cancelled().await;
            "at last"
        };
        let limits = Limits { connections: 1, question: PATIENCE, all: PATIENCE };
        let routes = Router::new().route("/", get(answer));
        let served = tokio::spawn(serve(listener, routes, limits, stop.clone()));
        let request = ask(address, GET).await;
        asked.cancelled().await;
        stop.cancel();
        assert!(rest(request).await.ends_with("at last"));
        tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }
}
