//! Wiring, and the order of shutdown; nothing else is decided here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::broker::amqp::{Amqp, BrokerMetrics};
use crate::config::Config;
use crate::contract::topology::Names;
use crate::engine::docker::Docker;
use crate::http::{self, View};
use crate::metrics::Metrics;
use crate::pool::{driver, sweep};
use crate::running::Running;
use crate::worker::{Shutdown, Worker};

/// How long the removal of all containers may take at the end. What is left then ends by itself, since its stream does.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(20);

/// Runs a worker until it is told to stop.
///
/// # Errors
/// What keeps it from starting. Broker and engine may come later; they are waited for.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let metrics = Metrics::new();
    let names = Names::new(&config.broker.prefix);
    let listener = http::bind(config.http.listen).await?;
    let mut signals = Signals::new().context("installing signal handlers")?;
    tracing::info!(
        worker = config.worker.name,
        version = env!("CARGO_PKG_VERSION"),
        pools = config.pools.len(),
        broker = config.broker.address(),
        listen = %config.http.listen,
        "starting"
    );

    let engine = Arc::new(Docker::new(&config.engine, &metrics)?);
    let name = &config.worker.name;
    let pools = driver::start(engine.clone(), name, &config.pools, config.engine.creations, &metrics);
    let sweeper = tokio::spawn(sweep::run(engine, name.clone(), sweep::interval(config.engine.timeout)));
    let broker =
        Arc::new(Amqp::new(&config.broker, name, config.pools.keys(), BrokerMetrics::new(&metrics))?);
    let running = Running::default();
    let shutdown = Shutdown::default();
    let view = View {
        worker: name.clone(),
        metrics: metrics.clone(),
        pools: pools.clone(),
        running: running.clone(),
        broker: broker.connected(),
        drain: shutdown.drain.clone(),
        started: Instant::now(),
    };
    let http_stop = CancellationToken::new();
    let port = tokio::spawn(http::serve(listener, view, http_stop.clone()));

    let drain_timeout = config.worker.drain_timeout;
    let worker =
        Arc::new(Worker::new(config.worker, names, pools.clone(), broker.clone(), running, &metrics));
    let seats = TaskTracker::new();
    for (pool, settings) in &config.pools {
        for _ in 0..settings.concurrency {
            let (worker, pool, shutdown) = (Arc::clone(&worker), pool.clone(), shutdown.clone());
            seats.spawn(async move { worker.seat(&pool, &shutdown).await });
        }
    }
    seats.close();

    let told = signals.recv().await;
    tracing::info!(
        signal = told,
        "draining: running jobs may go on for {drain_timeout:?}; a second signal forces"
    );
    // Intake first; then what runs; then the containers; then what carries the news.
    shutdown.drain.cancel();
    let orderly = async {
        if tokio::time::timeout(drain_timeout, seats.wait()).await.is_err() {
            tracing::warn!("drain_timeout is over: stopping what still runs; other workers will retry it");
            shutdown.stop.cancel();
            seats.wait().await;
        }
        sweeper.abort();
        if tokio::time::timeout(REMOVAL_PATIENCE, pools.close()).await.is_err() {
            tracing::warn!("not all containers could be removed in time; they end by themselves");
        }
        broker.close().await;
        http_stop.cancel();
        let _ = port.await;
    };
    tokio::select! {
        () = orderly => {
            tracing::info!("stopped");
            Ok(())
        }
        told = signals.recv() => {
            // Containers end with their streams; the broker takes back what is not acknowledged.
            tracing::warn!(signal = told, "forced to stop; running jobs are lost here and will be delivered again");
            anyhow::bail!("forced to stop by a second signal")
        }
    }
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
