//! The HTTP port: `/` for people, `/metrics`, `/healthz`, `/readyz`, `/status`. Reads, never changes anything.

mod chart;
mod connections;
pub mod history;
mod page;
mod words;

use std::net::SocketAddr;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::status;
use history::History;

/// What the port shows.
#[derive(Clone)]
pub struct View {
    /// All metrics.
    pub metrics: Metrics,
    /// The worker.
    pub status: status::View,
    /// What the page shows of the last minutes; none: there is no page.
    pub page: Option<History>,
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

/// Answers requests until `stop`, within bounds for their number and time.
pub async fn serve(listener: TcpListener, view: View, stop: CancellationToken) {
    if let Some(history) = view.page.clone() {
        let metrics = view.metrics.clone();
        let follow = async move { history.follow(&metrics).await };
        tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
    }
    let routes = Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .with_state(view);
    connections::serve(listener, routes, connections::LIMITS, stop).await;
}

async fn page(State(view): State<View>) -> Response {
    let Some(history) = view.page else {
        let why = "There is no page here: the configuration says [http] page = false. /status has the same as JSON.\n";
        return (StatusCode::NOT_FOUND, why).into_response();
    };
    let status = view.status.status().await;
    let body = page::render(&status, &history.until_now(&view.metrics), SystemTime::now());
    (page::headers(), body).into_response()
}

async fn metrics(State(view): State<View>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], view.metrics.render())
        .into_response()
}

async fn ready(State(view): State<View>) -> Response {
    let found = view.status.obstacles().await;
    if found.is_empty() {
        (StatusCode::OK, "ready\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, found.join("\n") + "\n").into_response()
    }
}

async fn status(State(view): State<View>) -> Response {
    // Our own types: no way to fail.
    let body = serde_json::to_string_pretty(&view.status.status().await).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
