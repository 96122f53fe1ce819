//! Configuration: typed sections, parsed once, all faults reported together.
//!
//! A value comes from the built-in default, over it the TOML file, over it a variable: `PREWARM_BROKER_URL`
//! for `url` in `[broker]`, `PREWARM_POOL_BUILD_IDLE_MIN` for `idle.min` in `[pool.build]`. The types here
//! hold only what is valid; [`load()`] is the one way to get them.
//!
//! Durations are written with a unit (`"90s"`, `"1h 30m"`), sizes as a number of bytes or with one
//! (`"512MiB"`; as in Docker `m`, `MB` and `MiB` are the same).
//!
//! `load.rs` finds the file, `reader.rs` walks it and collects the faults, `values.rs` has the readers of
//! plain values, `sections.rs` and `pool.rs` say which keys there are.

mod address;
mod fault;
mod field;
mod image;
mod isolation;
pub mod load;
mod pool;
mod reader;
pub mod reload;
mod sections;
mod security;
mod source;
mod storage;
mod suggest;
mod tls;
mod values;
mod variables;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::contract::PoolName;

pub use fault::{Fault, Faults, Place, Position};
pub use image::check as check_image;
pub use load::{Loaded, environment, load, load_broker, load_engine, parse};
pub use tls::{Identity, TlsConfig, TlsFault};

/// Everything that the operator configures.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[broker]`
    pub broker: BrokerConfig,
    /// `[engine]`
    pub engine: EngineConfig,
    /// `[http]`
    pub http: HttpConfig,
    /// `[worker]`
    pub worker: WorkerConfig,
    /// `[pool.NAME]`, at least one.
    pub pools: BTreeMap<PoolName, PoolConfig>,
}

/// `[broker]`: where jobs come from.
#[derive(Clone, PartialEq)]
pub struct BrokerConfig {
    /// `url`: `amqp://` or `amqps://`; default `amqp://guest:guest@127.0.0.1:5672/%2f`. An array, or several with commas
    /// between them, are the nodes of one cluster, tried in turn; each with its own user, password and vhost. At least one.
    /// No password ever appears in a log: use [`BrokerConfig::addresses`].
    pub urls: Vec<String>,
    /// `tls`: for `amqps://`.
    pub tls: TlsConfig,
    /// `prefix` of all exchanges and queues: the characters of a pool's name; default `prewarm`.
    pub prefix: String,
    /// `topology`: whether to declare exchanges and queues or only to check that they exist;
    /// default `declare`.
    pub topology: TopologyMode,
    /// `heartbeat`: a silent peer is noticed after two of them. 1s to 5m; default 10s.
    pub heartbeat: Duration,
    /// `timeout` of connecting and of every request: 1s to 10m; default 10s.
    pub timeout: Duration,
    /// `delivery_limit` of the pools' queues: a message given out more often than this without being settled is
    /// dead-lettered. Default 20.
    pub delivery_limit: u32,
    /// `reply_patience`: how long a job's output waits for a broker that takes no messages, or a reply queue that is
    /// full, before log events are dropped (and counted); the result then goes to the queue of results. 0s to 1h; default 30s.
    pub reply_patience: Duration,
    /// `retry_delays`: how long a job waits before its second, third, … attempt when the trouble is ours; the last one
    /// stands for all that follow. 1 to 10, each longer than the one before, 10ms to 1d; default 1s, 10s, 1m, 5m.
    pub retry_delays: Vec<Duration>,
    /// `expired`: what becomes of jobs whose publisher's `expiration` is over before they began, and of those that reach the
    /// delivery limit: `dead` (default) or `answer`. An argument of the pools' queues: to change it they have to be declared anew.
    pub expired: Expired,
}

/// What becomes of jobs that the broker gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// `dead`: they are dead letters. Their publishers are not told.
    Dead,
    /// `answer`: a worker tells their publishers. Those that reached the delivery limit are dead letters all the same.
    Answer,
}

impl BrokerConfig {
    /// The broker's URLs without user and password, for people.
    pub fn addresses(&self) -> String {
        let shown: Vec<String> = self.urls.iter().map(|url| address::without_user(url)).collect();
        shown.join(", ")
    }
}

impl fmt::Debug for BrokerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By pattern, so that a new field can't be forgotten here.
        let BrokerConfig {
            urls: _,
            tls,
            prefix,
            topology,
            heartbeat,
            timeout,
            delivery_limit,
            reply_patience,
            retry_delays,
            expired,
        } = self;
        f.debug_struct("BrokerConfig")
            .field("addresses", &self.addresses())
            .field("tls", tls)
            .field("prefix", prefix)
            .field("topology", topology)
            .field("heartbeat", heartbeat)
            .field("timeout", timeout)
            .field("delivery_limit", delivery_limit)
            .field("reply_patience", reply_patience)
            .field("retry_delays", retry_delays)
            .field("expired", expired)
            .finish()
    }
}

/// Who makes the exchanges and queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopologyMode {
    /// `declare`: the worker does; they must not exist with other arguments.
    Declare,
    /// `check`: somebody else did; the worker only looks whether they exist.
    Check,
}

/// `[engine]`: where containers run.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// `host`: `unix://…`, `tcp://…`, `http://…`, `https://…`; none: what `DOCKER_HOST` says, or Docker's
    /// default socket.
    pub host: Option<String>,
    /// `timeout` of every request: 1s to 1h; default 1m.
    pub timeout: Duration,
    /// `creations`: containers being created at once on this host, over all pools. More than 2 to 4
    /// makes dockerd slower, not faster, on 2 cores. 1 to 64; default 3.
    pub creations: usize,
    /// `containers`: most containers in all states, over all pools. 1 to 100000; default: no limit beside the pools' own.
    pub containers: Option<usize>,
    /// `memory`: most memory of all containers together, each counted with its pool's `memory`, idle ones too, since
    /// each may be running a job in the next moment. Default: no limit.
    pub memory: Option<u64>,
    /// `image_check`: how often it is looked whether a pool's image is another now under its name; idle
    /// containers are then replaced one by one. 1s to 1d; default 1m. Nothing is pulled for it.
    pub image_check: Duration,
}

impl Default for EngineConfig {
    /// What an empty section says.
    fn default() -> EngineConfig {
        EngineConfig {
            host: None,
            timeout: Duration::from_secs(60),
            creations: 3,
            containers: None,
            memory: None,
            image_check: Duration::from_secs(60),
        }
    }
}

/// `[http]`: metrics, health, and a page to look at.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConfig {
    /// `listen` address, an IP address and a port; default `127.0.0.1:9464`.
    pub listen: SocketAddr,
    /// `page`: whether `/` shows the worker to people; default true.
    pub page: bool,
}

/// `[worker]`: this worker as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerConfig {
    /// `name` in replies and container labels; the characters of a pool's name; default the host's name.
    pub name: String,
    /// `drain_timeout`: how long running jobs may go on after SIGTERM; default 1h.
    pub drain_timeout: Duration,
    /// `retries`: attempts of a job in all when the trouble is ours: 1 to 20; default 4.
    pub retries: u32,
    /// `lease_timeout`: how long a delivery waits for a container before it is handed back; default 2m.
    pub lease_timeout: Duration,
    /// `max_message`: largest job message in bytes; above it the job is rejected. 1KiB to 512MiB; default
    /// 16MiB.
    pub max_message: u64,
    /// `runtime_dir`: where a file says that this worker is alive, for others on this host that look for what dead ones left; and
    /// the socket is by which containers of isolation `namespace` are spoken to.
    /// A local file system: locks tell the living from the dead. Default: `/run/prewarm`, or `prewarm` in `$XDG_RUNTIME_DIR` for who may not write there.
    pub runtime_dir: Option<PathBuf>,
    /// `reply_to`: which queues jobs may have replies sent to; in each, `*` stands for any characters and `?` for one.
    /// Our own queues are always refused. Default `["*"]`.
    pub reply_to: Vec<String>,
    /// `remember`: how long a job that ran to its end here is remembered: one with the same id and body is answered with its result
    /// and not run. 0s (never) to 1d; default 1m.
    pub remember: Duration,
    /// `cancel_memory`: how long the id of a cancelled job that hasn't come is remembered: 0s to 365d; default 1d.
    pub cancel_memory: Duration,
}

/// `[pool.NAME]`: one set of interchangeable containers. What is `None` is left to the image or the engine,
/// as with `docker run` without that option.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    /// `image`: a name, with tag or digest. The only key without which there is no pool.
    pub image: String,
    /// `pull`: when to get the image: `missing` (default), `always` or `never`.
    pub pull: Pull,
    /// `idle`: bounds of the number of idle containers. `idle = 4` is short for both.
    pub idle: IdleConfig,
    /// `concurrency`: jobs of this pool at once: 1 to 1000; default 4.
    pub concurrency: usize,
    /// `timeout`: how long a job may run. `timeout = "10m"` is short for both.
    pub timeout: TimeoutConfig,
    /// `stop_grace`: between the image's STOPSIGNAL and SIGKILL: 0s to 1h; default 10s.
    pub stop_grace: Duration,
    /// `logs_limit`: bytes of output that are sent as log events for one job; default 10MiB.
    pub logs_limit: u64,
    /// `secrets_from`: a directory whose files are variables of every job, masked wherever they show up.
    pub secrets_from: Option<PathBuf>,
    /// `files` that a job may bring.
    pub files: FilesConfig,
    /// `artifacts` that a job may have returned.
    pub artifacts: ArtifactsConfig,
    /// `entrypoint`, an array, in place of the image's. As with Docker, the image's CMD is then ignored.
    pub entrypoint: Option<Vec<String>>,
    /// `args` in place of the image's CMD.
    pub args: Option<Vec<String>>,
    /// `env` over the image's, in the order of the file. Every value is text.
    pub env: Vec<(String, String)>,
    /// `user`: as in `docker run --user`: `NAME`, `UID` or `UID:GID`.
    pub user: Option<String>,
    /// `workdir`: as in `docker run --workdir`, absolute.
    pub workdir: Option<String>,
    /// `memory` limit in bytes: at least 6MiB.
    pub memory: Option<u64>,
    /// `cpus`, such as `1.5`; here thousandths of a CPU.
    pub cpus_milli: Option<u64>,
    /// `cpu_shares`: relative weight, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// `pids`: most processes and threads.
    pub pids: Option<u64>,
    /// `network`: `bridge`, `none`, `host`, or a network's name. `container:ID` is refused.
    pub network: Option<String>,
    /// `security`: the set that the single keys refine: `docker` (default) or `hardened`.
    pub security: Security,
    /// `cap_add`: capabilities or `ALL`; here in upper case and without `CAP_`.
    pub cap_add: Vec<String>,
    /// `cap_drop`: likewise.
    pub cap_drop: Vec<String>,
    /// `security_opt`: as in `docker run --security-opt`: `no-new-privileges`, `seccomp=FILE` or
    /// `seccomp=unconfined`, `apparmor=PROFILE`, `label=VALUE`. Here as the engine's API wants them: with a
    /// seccomp profile's content in place of the file.
    pub security_opt: Vec<String>,
    /// `runtime`: an OCI runtime that the engine knows.
    pub runtime: Option<String>,
    /// `read_only` root file system; default false.
    pub read_only: bool,
    /// `tmpfs`: mount point to options; an array of mount points is short for no options.
    pub tmpfs: BTreeMap<String, String>,
    /// `mounts`: each `{ source, target, read_only, shared }`.
    pub mounts: Vec<MountConfig>,
    /// `ulimits`: name to limits. `nofile = 1024` is short for both.
    pub ulimits: BTreeMap<String, Ulimit>,
    /// `shm_size` of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// `isolation`: what keeps a job apart from the next one: its `container` (default) or a `namespace`.
    pub isolation: Isolation,
    /// `scratch`: with isolation `namespace`, bytes that a job may write into its root file system. They are memory, and
    /// count against `memory`. Default 1GiB.
    pub scratch: u64,
    /// `max_jobs`: with isolation `namespace`, jobs that a container serves before it is replaced: at least 1; default
    /// 10000.
    pub max_jobs: u64,
}

impl PoolConfig {
    /// What a pool is whose section says nothing but `image`.
    #[must_use]
    pub fn of_image(image: impl Into<String>) -> PoolConfig {
        PoolConfig {
            image: image.into(),
            pull: Pull::Missing,
            idle: IdleConfig { min: 1, max: 4, hit_target: 0.99, ttl: None, max_age: None },
            concurrency: 4,
            timeout: TimeoutConfig {
                default: Duration::from_secs(3600),
                max: Duration::from_secs(24 * 3600),
            },
            stop_grace: Duration::from_secs(10),
            logs_limit: 10 << 20,
            secrets_from: None,
            files: FilesConfig::default(),
            artifacts: ArtifactsConfig::default(),
            entrypoint: None,
            args: None,
            env: Vec::new(),
            user: None,
            workdir: None,
            memory: None,
            cpus_milli: None,
            cpu_shares: None,
            pids: None,
            network: None,
            security: Security::Docker,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            security_opt: Vec::new(),
            runtime: None,
            read_only: false,
            tmpfs: BTreeMap::new(),
            mounts: Vec::new(),
            ulimits: BTreeMap::new(),
            shm_size: None,
            isolation: Isolation::Container,
            scratch: 1 << 30,
            max_jobs: 10_000,
        }
    }
}

impl PoolConfig {
    /// What keeps it from having isolation `namespace`: the key, and why.
    #[must_use]
    pub fn not_for_namespaces(&self) -> Vec<(&'static str, String)> {
        isolation::not_clean(self)
    }

    /// What makes a container of this pool the one that it is: all but what can change without a new container.
    #[must_use]
    pub fn container(&self) -> PoolConfig {
        let plain = PoolConfig::of_image("");
        PoolConfig {
            pull: plain.pull,
            idle: plain.idle,
            concurrency: plain.concurrency,
            timeout: plain.timeout,
            stop_grace: plain.stop_grace,
            logs_limit: plain.logs_limit,
            secrets_from: plain.secrets_from,
            files: plain.files,
            artifacts: plain.artifacts,
            max_jobs: plain.max_jobs,
            ..self.clone()
        }
    }
}

/// `files`: what a job may bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// `max`: how many; 0 to 1000, default 100.
    pub max: usize,
    /// `size`: bytes of all together; default 16MiB.
    pub size: u64,
}

impl Default for FilesConfig {
    fn default() -> FilesConfig {
        FilesConfig { max: 100, size: 16 << 20 }
    }
}

/// `artifacts`: what a job may have returned when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArtifactsConfig {
    /// `max`: how many; 0 to 10000, default 100.
    pub max: usize,
    /// `size`: bytes of all together; default 64MiB.
    pub size: u64,
    /// `inline`: bytes of all that are part of the result, at most 8MiB; default 256KiB. The others come in events of their own.
    pub inline: u64,
    /// `timeout`: how long collecting them may take, after the job's end; 1s to 1h, default 1m.
    pub timeout: Duration,
}

impl Default for ArtifactsConfig {
    fn default() -> ArtifactsConfig {
        ArtifactsConfig { max: 100, size: 64 << 20, inline: 256 << 10, timeout: Duration::from_secs(60) }
    }
}

/// `idle`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IdleConfig {
    /// `min`: default 1.
    pub min: usize,
    /// `max`: 1 to 10000; default 4, or `min` if that is more.
    pub max: usize,
    /// `hit_target`: wanted share of hits, between 0 and 1; default 0.99.
    pub hit_target: f64,
    /// `ttl`: without a job for this long only `min` are kept. 1s to 365d; default: not at all, so that a pool that has
    /// had a job keeps at least one.
    pub ttl: Option<Duration>,
    /// `max_age`: idle containers older than this are replaced. 1s to 365d; default: never.
    pub max_age: Option<Duration>,
}

/// `timeout`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutConfig {
    /// `default` for jobs that name none: 1h, or `max` if that is less.
    pub default: Duration,
    /// `max` that a job may ask for: 24h, or `default` if that is more.
    pub max: Duration,
}

/// `pull`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// `missing`: if the engine doesn't have it.
    Missing,
    /// `always`: at start.
    Always,
    /// `never`: it must be there.
    Never,
}

/// `isolation`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// `container`: one container, one job.
    Container,
    /// `namespace`: one container serves many jobs, each in namespaces and over an overlay of its own.
    Namespace,
}

/// `security`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// `docker`: what `docker run` gives.
    Docker,
    /// `hardened`: no capabilities, `no_new_privs`, 512 pids, no network unless named.
    Hardened,
}

/// One of `mounts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountConfig {
    /// `source`, which must be given: a path on the engine's host (starting with `/`), or a volume's name.
    pub source: String,
    /// `target`, which must be given: an absolute path in the container.
    pub target: String,
    /// `read_only`: default false.
    pub read_only: bool,
    /// `shared`: with isolation `namespace`, what one job writes there is meant for the next ones; default false.
    pub shared: bool,
}

/// One of `ulimits`; -1 is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// `soft`
    pub soft: i64,
    /// `hard`
    pub hard: i64,
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
