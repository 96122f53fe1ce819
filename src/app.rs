//! Wiring, and the order of shutdown; nothing else is decided here.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::broker::amqp::{Amqp, BrokerMetrics};
use crate::config::{Config, Expired, Faults, Loaded, reload};
use crate::contract::PoolName;
use crate::contract::topology::Names;
use crate::engine::docker::Docker;
use crate::http::history::History;
use crate::http::{self, View};
use crate::metrics::Metrics;
use crate::pool::planner::Host;
use crate::pool::presence::{self, Presence};
use crate::pool::sweep::{self, Sweep};
use crate::pool::{Owner, Pools};
use crate::running::Running;
use crate::secrets::PoolSecrets;
use crate::service;
use crate::status;
use crate::worker::{Shutdown, Worker};

/// How long after the last job must have ended its result and acknowledgement are waited for. Longer than the broker's
/// restart; what isn't acknowledged then is given out again.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
/// How long requests to the HTTP port may go on at the end.
const HTTP_PATIENCE: Duration = Duration::from_secs(2);
/// How long the removal of all containers may take at the end. What is left then ends by itself, since its stream does.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(20);

/// Runs a worker until it is told to stop. `reload` reads the configuration again, at SIGHUP.
///
/// # Errors
/// What keeps it from starting. Broker and engine may come later; they are waited for.
pub async fn serve(config: Config, reload: impl Fn() -> Result<Loaded, Faults>) -> anyhow::Result<()> {
    let metrics = Metrics::new();
    let names = Names::new(&config.broker.prefix);
    let listener = http::bind(config.http.listen).await?;
    let mut signals = Signals::new().context("installing signal handlers")?;
    tracing::info!(
        worker = config.worker.name,
        version = env!("CARGO_PKG_VERSION"),
        pools = config.pools.len(),
        broker = config.broker.addresses(),
        listen = %config.http.listen,
        "starting"
    );

    let secrets = PoolSecrets::of_pools(&config.pools).context("secrets_from")?;
    let engine = Docker::new(&config.engine, &metrics)?;
    let name = &config.worker.name;
    let owner = Owner::new(name);
    let presence_dir = config.worker.runtime_dir.clone().or_else(presence::default_dir);
    let presence = announce(presence_dir.as_deref(), &owner);
    let socket = presence.as_ref().map(Presence::socket);
    let engine = Arc::new(engine.with_shortcut(socket.as_deref()));
    let host = Host::from(&config.engine);
    let image_check = config.engine.image_check;
    let pools = Pools::start(engine.clone(), &owner, &config.pools, host, image_check, &metrics);
    let sweep = Sweep::new(owner, presence_dir);
    let sweeper = tokio::spawn(sweep::run(engine, sweep, sweep::interval(config.engine.timeout)));
    let broker =
        Arc::new(Amqp::new(&config.broker, name, config.pools.keys(), BrokerMetrics::new(&metrics))?);
    let draining = metrics
        .gauge("draining", "1 from when the worker is told to stop: its jobs may go on, it takes no more.");
    let running = Running::new(config.worker.cancel_memory);
    let shutdown = Shutdown::default();
    let drain_timeout = config.worker.drain_timeout;
    let worker = Arc::new(Worker::new(
        config.worker.clone(),
        config.broker.retry_delays.clone(),
        names,
        pools.clone(),
        broker.clone(),
        running.clone(),
        secrets.clone(),
        &metrics,
    ));
    let status = status::View {
        worker: name.clone(),
        pools: pools.clone(),
        host,
        running,
        failures: worker.failures(),
        broker: broker.connected(),
        drain: shutdown.drain.clone(),
        started: Instant::now(),
    };
    let http_stop = CancellationToken::new();
    let page = config.http.page.then(History::default);
    let view = View { metrics: metrics.clone(), status: status.clone(), page };
    let port = tokio::spawn(http::serve(listener, view, http_stop.clone()));
    let seats = TaskTracker::new();
    for (pool, settings) in &config.pools {
        for _ in 0..settings.concurrency {
            let (worker, pool, shutdown) = (Arc::clone(&worker), pool.clone(), shutdown.clone());
            seats.spawn(async move { worker.seat(&pool, &shutdown).await });
        }
    }
    if config.broker.expired == Expired::Answer {
        let (worker, shutdown) = (Arc::clone(&worker), shutdown.clone());
        seats.spawn(async move { worker.bury(&shutdown).await });
    }
    seats.close();
    let obeying = {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move { worker.obey(&status).await })
    };

    let secrets_watch = tokio::spawn(secrets.clone().watch());
    let watchdog = tokio::spawn(service::feed_watchdog());
    service::ready();
    let longest_grace = config.pools.values().map(|pool| pool.stop_grace).max().unwrap_or_default();
    let told = signals.until_stop(config, &pools, &secrets, reload).await;
    tracing::info!(
        signal = told,
        "draining: running jobs may go on for {drain_timeout:?}; a second signal forces"
    );
    // Intake first, and the idle containers, which nobody takes any more; then what runs; then what carries the news.
    shutdown.drain.cancel();
    draining.set(1);
    let patience = tokio::spawn(service::draining());
    let closing = tokio::spawn(async move { pools.close().await });
    let orderly = async {
        if tokio::time::timeout(drain_timeout, seats.wait()).await.is_err() {
            tracing::warn!("drain_timeout is over: stopping what still runs; other workers will retry it");
            shutdown.stop.cancel();
            if tokio::time::timeout(longest_grace + SETTLE_PATIENCE, seats.wait()).await.is_err() {
                tracing::warn!("the broker can't be told how some jobs ended; it will give them out again");
            }
        }
        sweeper.abort();
        let closed = tokio::time::timeout(REMOVAL_PATIENCE, closing).await;
        let cleared = closed.is_ok_and(|closed| closed.unwrap_or(false));
        if !cleared {
            tracing::warn!("not all containers could be removed in time; they end by themselves");
        }
        obeying.abort();
        broker.close().await;
        http_stop.cancel();
        // Somebody may keep a connection open and say nothing.
        let _ = tokio::time::timeout(HTTP_PATIENCE, port).await;
        cleared
    };
    let ended = tokio::select! {
        cleared = orderly => {
            // What is left else, is a dead worker's: others may sweep it.
            if let Some(presence) = presence.filter(|_| cleared) {
                presence.leave();
            }
            tracing::info!("stopped");
            Ok(())
        }
        told = signals.stop() => {
            tracing::warn!(signal = told, "forced to stop; running jobs are lost here and will be delivered again");
            // Containers end with their streams, and the broker takes back, once, what is not acknowledged. If everything were
            // dropped in order instead, deliveries would be handed back one by one, and some of them to this worker.
            std::process::exit(1)
        }
    };
    patience.abort();
    watchdog.abort();
    secrets_watch.abort();
    ended
}

/// Says on this host that the worker is alive. It works without: what it leaves if it dies is then found later.
fn announce(dir: Option<&Path>, owner: &Owner) -> Option<Presence> {
    let announced = dir.map(|dir| Presence::announce(dir, owner));
    match announced {
        Some(Ok(presence)) => Some(presence),
        Some(Err(error)) => {
            tracing::warn!("worker.runtime_dir: {error}; what this worker leaves if it dies is found later");
            None
        }
        None => None,
    }
}

/// Takes over what has changed in the configuration; all of it or nothing.
fn take_over(config: &mut Config, pools: &Pools, secrets: &PoolSecrets, read: Result<Loaded, Faults>) {
    let new = match read {
        Ok(loaded) => loaded.config,
        Err(faults) => return tracing::error!("SIGHUP: nothing is taken over: {faults}"),
    };
    match reload::changes(config, &new) {
        Ok(changed) => {
            let names: Vec<&str> = changed.keys().map(PoolName::as_str).collect();
            tracing::info!(pools = names.join(", "), "SIGHUP: the configuration was read again");
            for (name, pool) in &changed {
                // Only pools that were there before.
                let _ = pools.reload(name, pool.clone());
            }
            pools.check_images();
            secrets.take_over(&new.pools);
            *config = new;
        }
        Err(keys) => tracing::error!(
            "SIGHUP: nothing is taken over, since these need a restart: {}; change them back, or restart the worker",
            keys.join(", ")
        ),
    }
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Takes over new configurations until told to stop.
    async fn until_stop(
        &mut self,
        mut config: Config,
        pools: &Pools,
        secrets: &PoolSecrets,
        reload: impl Fn() -> Result<Loaded, Faults>,
    ) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.int.recv() => return "SIGINT",
                _ = self.hup.recv() => {
                    service::reloading();
                    take_over(&mut config, pools, secrets, reload());
                    service::ready();
                }
            }
        }
    }

    async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
