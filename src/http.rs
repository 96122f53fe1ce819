//! The HTTP port: `/metrics`, `/healthz`, `/readyz`, `/status`. Reads, never changes anything.

use std::net::SocketAddr;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::pool::planner::Host;
use crate::pool::{PoolStatus, Pools};
use crate::running::{Running, RunningJob};

/// What the port shows.
#[derive(Clone)]
pub struct View {
    /// The worker's name.
    pub worker: String,
    /// All metrics.
    pub metrics: Metrics,
    /// The pools.
    pub pools: Pools,
    /// What they share.
    pub host: Host,
    /// Jobs in hand.
    pub running: Running,
    /// Whether the broker is connected.
    pub broker: watch::Receiver<bool>,
    /// Cancelled when the worker takes no more jobs.
    pub drain: CancellationToken,
    /// When the worker started.
    pub started: Instant,
}

/// Listens; the address is taken from here on.
///
/// # Errors
/// As the system gives it, with the address.
pub async fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|e| {
        std::io::Error::new(
            e.kind(),
            format!("http.listen: {listen}: {e}; is another worker running on this host?"),
        )
    })
}

/// Answers requests until `stop`.
///
/// # Errors
/// As the system gives it.
pub async fn serve(listener: TcpListener, view: View, stop: CancellationToken) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .with_state(view);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(view): State<View>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], view.metrics.render())
        .into_response()
}

/// Why the worker can't take and run jobs now; empty if it can.
fn obstacles(view: &View, pools: &[PoolStatus]) -> Vec<String> {
    let mut found = Vec::new();
    if view.drain.is_cancelled() {
        found.push("draining".into());
    }
    if !*view.broker.borrow() {
        found.push("broker: not connected".into());
    }
    if pools.is_empty() {
        found.push("pools: closed".into());
    }
    for pool in pools.iter().filter(|p| !p.able) {
        let why = pool.last_failure.as_deref().unwrap_or("no container has become ready yet");
        found.push(format!("pool {}: {why}", pool.pool));
    }
    found
}

async fn ready(State(view): State<View>) -> Response {
    let found = obstacles(&view, &view.pools.status().await);
    if found.is_empty() {
        (StatusCode::OK, "ready\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, found.join("\n") + "\n").into_response()
    }
}

#[derive(Serialize)]
struct Status {
    worker: String,
    version: &'static str,
    uptime_seconds: u64,
    ready: bool,
    not_ready_because: Vec<String>,
    broker_connected: bool,
    host: Host,
    pools: Vec<PoolStatus>,
    jobs: Vec<RunningJob>,
}

async fn status(State(view): State<View>) -> Response {
    let pools = view.pools.status().await;
    let found = obstacles(&view, &pools);
    let status = Status {
        worker: view.worker.clone(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: view.started.elapsed().as_secs(),
        ready: found.is_empty(),
        not_ready_because: found,
        broker_connected: *view.broker.borrow(),
        host: view.host,
        pools,
        jobs: view.running.list(),
    };
    // Our own types: no way to fail.
    let body = serde_json::to_string_pretty(&status).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
