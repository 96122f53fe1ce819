//! What is set up for a run, and taken away again however it ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::broker::ByBroker;
use super::host::{self, Host};
use super::parts::Contender;
use super::plain::{Exec, Plain};
use super::report::Engine as About;
use super::warm::Warm;
use super::ways::{Idle, Runner, Way};
use super::{Failure, Job};
use crate::config::{BrokerConfig, EngineConfig, IdleConfig, PoolConfig};
use crate::contract::PoolName;
use crate::engine::docker::Docker;
use crate::engine::{Engine, Fault, Image, Op};
use crate::launch;
use crate::metrics::Metrics;
use crate::pool::planner::Host as Budget;
use crate::pool::presence::{self, Presence};
use crate::pool::{Owner, Pools};

/// How long the removal of all containers may take at the end.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(30);

/// What is to be measured, and on what.
pub struct Subject {
    /// The pool as it is configured, or of defaults for an image.
    pub pool: Option<PoolConfig>,
    /// Its name; that of a worker's pool with a broker.
    pub name: PoolName,
    /// The job, the same in all ways.
    pub job: Job,
    /// The ways.
    pub ways: Vec<Way>,
    /// Most jobs at once.
    pub at_once: usize,
    /// Whose containers they are.
    pub worker: String,
    /// Where containers run.
    pub engine: EngineConfig,
    /// Where the worker's socket is, if not where it is by default.
    pub runtime_dir: Option<PathBuf>,
    /// Where jobs are published.
    pub broker: Option<BrokerConfig>,
}

/// All that must be taken away again. It is filled bit by bit: what fails, or is interrupted, leaves what there was.
#[derive(Default)]
pub struct Bed {
    pools: Option<Pools>,
    plain: Option<Arc<Plain>>,
    broker: Option<Arc<ByBroker>>,
    presence: Option<Presence>,
    /// The ways that can be measured.
    pub contenders: Vec<Contender>,
    /// The engine, if one is asked.
    pub about: Option<About>,
    /// What is executed.
    pub command: Vec<String>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

impl Bed {
    /// Sets up what the subject's ways need.
    ///
    /// # Errors
    /// What keeps a way from being measured, with the kind of fault.
    pub async fn set_up(&mut self, subject: &Subject) -> Result<(), Failure> {
        let by_broker = subject.broker.as_ref().filter(|_| subject.ways.contains(&Way::Broker));
        if let Some(broker) = by_broker {
            let one = ByBroker::connect(broker, &subject.name, &subject.job).await;
            let one = Arc::new(one.map_err(Failure::Broker)?);
            self.broker = Some(Arc::clone(&one));
            self.add(Way::Broker, one);
        }
        self.command = subject.job.args.clone().unwrap_or_default();
        if subject.ways.iter().any(|way| *way != Way::Broker)
            && let Some(pool) = &subject.pool
        {
            self.set_up_engine(subject, pool).await?;
        }
        self.contenders.sort_by_key(|one| one.way);
        Ok(())
    }

    fn add(&mut self, way: Way, runner: Arc<dyn Runner>) {
        self.notes.extend(runner.note());
        self.contenders.push(Contender { way, runner });
    }

    async fn set_up_engine(&mut self, subject: &Subject, pool: &PoolConfig) -> Result<(), Failure> {
        let metrics = Metrics::new();
        let owner = Owner::new(&subject.worker);
        self.presence = subject
            .runtime_dir
            .clone()
            .or_else(presence::default_dir)
            .and_then(|dir| Presence::announce(&dir, &owner).ok());
        let socket = self.presence.as_ref().map(Presence::socket);
        let engine = Arc::new(Docker::new(&subject.engine, &metrics)?.with_shortcut(socket.as_deref()));
        let info = engine.info().await?;
        self.about = Some(About { version: info.version, cpus: info.cpus, memory: info.memory });
        let image = engine.image(&pool.image, pool.pull).await?;
        self.command = launch::argv(&image, pool, subject.job.args.as_deref())
            .map_err(|rejection| Failure::Other(rejection.to_string()))?;
        self.start_pools(subject, pool, &engine, &owner, &metrics);
        for way in &subject.ways {
            match way {
                Way::Run => {
                    let plain = self.plain(subject, pool, &engine, &image)?;
                    self.add(Way::Run, plain);
                }
                Way::Exec => {
                    let plain = self.plain(subject, pool, &engine, &image)?;
                    let exec = Exec::new(plain)
                        .await
                        .map_err(|error| Failure::Engine(format!("docker exec: {error}")))?;
                    self.add(Way::Exec, Arc::new(exec));
                }
                Way::Fork if host::has(&self.command[0]) => {
                    let runner = Host::new(&self.command, &subject.job.env.0);
                    self.add(Way::Fork, Arc::new(runner));
                }
                Way::Fork => self.notes.push(format!(
                    "{} is left out: this host has no {}",
                    Way::Fork.name(),
                    self.command[0].escape_debug()
                )),
                // They are there already.
                Way::Container | Way::Namespace | Way::Broker => {}
            }
        }
        Ok(())
    }

    /// Docker's own ways; the second one shares what the first one has.
    fn plain(
        &mut self,
        subject: &Subject,
        pool: &PoolConfig,
        engine: &Arc<Docker>,
        image: &Image,
    ) -> Result<Arc<Plain>, Failure> {
        if let Some(plain) = &self.plain {
            return Ok(Arc::clone(plain));
        }
        // Not the pools' owner: what bears their mark and is not theirs, they remove.
        let owner = Owner::new(&subject.worker);
        // Theirs are containers as Docker makes them, whatever the pool's isolation.
        let pool = Way::Container.pool(pool).unwrap_or_else(|| pool.clone());
        let plain = Plain::new(Arc::clone(engine), owner, image.clone(), pool, subject.job.clone());
        let plain = Arc::new(plain.map_err(Failure::Engine)?);
        self.plain = Some(Arc::clone(&plain));
        Ok(plain)
    }

    fn start_pools(
        &mut self,
        subject: &Subject,
        pool: &PoolConfig,
        engine: &Arc<Docker>,
        owner: &Owner,
        metrics: &Metrics,
    ) {
        let mut configs = BTreeMap::new();
        let mut of_ways = Vec::new();
        for way in &subject.ways {
            let Some(config) = way.pool(pool) else { continue };
            let obstacles = if *way == Way::Namespace { pool.not_for_namespaces() } else { Vec::new() };
            if let Some((key, why)) = obstacles.first() {
                self.notes.push(format!("{} is left out: {key}: {}", way.name(), why.escape_debug()));
                continue;
            }
            let name = match way {
                Way::Namespace => format!("{:.52}-namespace", subject.name.as_str()),
                _ => subject.name.to_string(),
            };
            let Ok(name) = PoolName::new(name) else { continue };
            let concurrency = config.concurrency.max(subject.at_once);
            let config = PoolConfig { concurrency, ..config };
            // One, until somebody says otherwise.
            let idle = IdleConfig { min: 1, max: 1, ttl: None, max_age: None, ..config.idle };
            configs.insert(name.clone(), PoolConfig { idle, ..config.clone() });
            of_ways.push((*way, name, config));
        }
        if configs.is_empty() {
            return;
        }
        let budget = Budget::from(&subject.engine);
        let check = subject.engine.image_check;
        let pools = Pools::start(Arc::clone(engine) as _, owner, &configs, budget, check, metrics);
        self.pools = Some(pools.clone());
        for (way, name, config) in of_ways {
            let warm = Warm::new(pools.clone(), name, config, subject.job.clone());
            self.add(way, Arc::new(warm));
        }
    }

    /// Leaves out the way that not every engine can go, if it can't, unless it was asked for by name.
    pub async fn leave_out_impossible(&mut self) {
        let Some(place) = self.contenders.iter().position(|one| one.way == Way::Namespace) else { return };
        let runner = Arc::clone(&self.contenders[place].runner);
        if let Err(why) = runner.settle().await {
            // It isn't to be tried again all the while.
            runner.keep(Idle::Fixed(0));
            self.contenders.remove(place);
            self.notes.push(format!("{} is left out: {}", Way::Namespace.name(), why.escape_debug()));
        }
    }

    /// Takes all of it away; says what may be left.
    pub async fn clear(mut self) -> Vec<&'static str> {
        // With the last of its holders the container for execs ends.
        self.contenders.clear();
        let mut left = Vec::new();
        let pools = async {
            let Some(pools) = &self.pools else { return true };
            tokio::time::timeout(REMOVAL_PATIENCE, pools.close()).await.unwrap_or(false)
        };
        let plain = async {
            let Some(plain) = &self.plain else { return true };
            tokio::time::timeout(REMOVAL_PATIENCE, plain.clear()).await.unwrap_or(false)
        };
        let broker = async {
            let Some(broker) = &self.broker else { return true };
            broker.close().await
        };
        let (pools, plain, broker) = tokio::join!(pools, plain, broker);
        // What is left of the pools' else is a dead worker's, for others to sweep.
        if let Some(presence) = self.presence.filter(|_| pools) {
            presence.leave();
        }
        if !(pools && plain) {
            left.push("a container may be left: docker ps -a --filter label=prewarm.instance");
        }
        if !broker {
            left.push("a job is still under way at the worker: its result will come to the queue of results");
        }
        left
    }
}

impl From<crate::engine::EngineError> for Failure {
    fn from(error: crate::engine::EngineError) -> Failure {
        match (error.op, &error.fault) {
            (Op::Inspect | Op::Pull, Fault::NotFound(_) | Fault::Refused(_)) => {
                Failure::Image(error.to_string())
            }
            _ => Failure::Engine(error.to_string()),
        }
    }
}
