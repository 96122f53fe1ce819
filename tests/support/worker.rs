//! The built binary, run as an operator runs it: `prewarm serve` with a configuration file, told apart from all others by
//! a broker prefix and a worker name of its own.
//!
//! [`run`] gives a test its [`Site`], and afterwards sees to it that nothing is left: no process, no container,
//! no queue. That is asserted of every test.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::broker::{self, Broker};
use super::{docker, engine};

/// How long anything that must happen may take. Far more than it does take.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// One test's corner of broker and engine.
pub struct Site {
    pub broker: Broker,
    /// The broker's prefix, and what all names of workers start with.
    pub name: String,
    /// Files of this test.
    pub dir: PathBuf,
    workers: Mutex<Vec<String>>,
    pools: Mutex<Vec<String>>,
    logs: Mutex<Vec<PathBuf>>,
}

/// Runs a test in a corner of its own, and cleans up whether it passes or not.
pub fn run(test: impl AsyncFnOnce(&Site)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let site = Site::new().await;
        let result = AssertUnwindSafe(test(&site)).catch_unwind().await;
        if result.is_err() {
            site.show_logs();
        }
        let left = site.clean_up().await;
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
        assert!(left.is_empty(), "left behind: {left:?}");
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

impl Site {
    async fn new() -> Site {
        let unique = uuid::Uuid::now_v7().simple().to_string();
        let name = format!("test-{}", &unique[16..]);
        let dir = std::env::temp_dir().join(format!("prewarm-{name}"));
        fs::create_dir_all(&dir).unwrap();
        let broker = Broker::connect(&name).await;
        Site { broker, name, dir, workers: Mutex::default(), pools: Mutex::default(), logs: Mutex::default() }
    }

    /// A worker of this test, to be configured.
    pub fn worker(&self) -> Setup<'_> {
        let mut workers = self.workers.lock().unwrap();
        let name = format!("{}-{}", self.name, workers.len() + 1);
        workers.push(name.clone());
        Setup {
            site: self,
            name,
            pools: Vec::new(),
            sections: String::new(),
            settings: String::new(),
            env: Vec::new(),
        }
    }

    fn show_logs(&self) {
        for log in self.logs.lock().unwrap().iter() {
            let text = fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            println!("--- {} (the last of {} lines)", log.display(), lines.len());
            lines[lines.len().saturating_sub(60)..].iter().for_each(|line| println!("{line}"));
        }
    }

    /// What should not have been there.
    async fn clean_up(self) -> Vec<String> {
        let mut left = Vec::new();
        for log in self.logs.into_inner().unwrap() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            left.extend(text.lines().filter(|line| line.contains("panicked at")).map(str::to_owned));
        }
        for worker in self.workers.into_inner().unwrap() {
            let mut containers = engine::containers(&worker);
            // Many take the engine a while; as long as they get fewer they are on their way out.
            let mut fewer = Instant::now();
            while !containers.is_empty() && fewer.elapsed() < Duration::from_secs(30) {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let left = engine::containers(&worker);
                if left.len() < containers.len() {
                    fewer = Instant::now();
                }
                containers = left;
            }
            for container in containers {
                left.push(format!("container {container:?}"));
                let _ = docker::docker(["rm", "-f", "-v", &container.id]).output();
            }
        }
        left.extend(self.broker.faults());
        let pools = self.pools.into_inner().unwrap();
        self.broker.delete_all(pools.iter().map(String::as_str)).await;
        self.broker.close().await;
        let _ = fs::remove_dir_all(&self.dir);
        left
    }
}

/// Status and body of what an HTTP server answers; none while nobody listens.
pub async fn http_get(server: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Waits for something that nothing announces.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `prewarm` in an environment without settings of somebody else's.
pub fn prewarm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prewarm"));
    let theirs = |name: &str| name.starts_with("PREWARM_") && !name.starts_with("PREWARM_TEST_");
    for (name, _) in std::env::vars().filter(|(name, _)| theirs(name)) {
        command.env_remove(name);
    }
    command
}

/// Sends a signal to a process that the test started.
pub fn signal(name: &str, pid: u32) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap();
    assert!(sent.success(), "kill -{name} {pid}");
}

/// A worker that has not been started.
pub struct Setup<'a> {
    site: &'a Site,
    pub name: String,
    pools: Vec<String>,
    sections: String,
    settings: String,
    env: Vec<(String, String)>,
}

impl Setup<'_> {
    /// Adds `[pool.NAME]`: busybox without a network, the cheapest there is, unless `keys` say otherwise.
    pub fn pool(mut self, name: &str, keys: &str) -> Self {
        self.sections += &format!("\n[pool.{name}]\n{keys}\n");
        for (key, value) in [("image", "prewarm-test/busybox"), ("network", "none"), ("stop_grace", "1s")] {
            if !keys.lines().any(|line| line.trim_start().starts_with(key)) {
                self.sections += &format!("{key} = \"{value}\"\n");
            }
        }
        self.site.pools.lock().unwrap().push(name.to_owned());
        self.pools.push(name.to_owned());
        self
    }

    /// Adds a line to `[worker]`.
    pub fn set(mut self, line: &str) -> Self {
        self.settings += line;
        self.settings += "\n";
        self
    }

    /// Adds a section.
    pub fn section(mut self, text: &str) -> Self {
        self.sections += text;
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same worker as an earlier one, come back.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Writes the configuration, which commands other than `serve` can use too.
    pub fn write(&self, listen: SocketAddr, broker: &str) -> PathBuf {
        let path = self.site.dir.join(format!("{}.toml", self.name));
        let (prefix, name) = (&self.site.name, &self.name);
        let text = format!(
            "[broker]\nurl = \"{broker}\"\nprefix = \"{prefix}\"\n\n[http]\nlisten = \"{listen}\"\n\n\
             [worker]\nname = \"{name}\"\nruntime_dir = {:?}\n{}\n{}",
            self.site.dir.join("run"),
            self.settings,
            self.sections
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts it, and waits until it says that it can take and run jobs.
    pub async fn ready(self) -> Worker {
        let worker = self.start().await;
        worker.until_ready().await;
        worker
    }

    /// Starts it, and waits until every pool has all the idle containers that it wants.
    pub async fn full(self) -> Worker {
        let worker = self.ready().await;
        worker.until_full().await;
        worker
    }

    /// Starts it, and waits until its HTTP port answers.
    pub async fn start(self) -> Worker {
        self.start_with(&broker::url()).await
    }

    pub async fn start_with(self, broker: &str) -> Worker {
        loop {
            let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let config = self.write(listen, broker);
            let log = self.site.dir.join(format!("{}-{}.log", self.name, listen.port()));
            let mut command = prewarm();
            command.arg("--config").arg(&config).arg("serve").envs(self.env.iter().map(|(n, v)| (n, v)));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
            let child = command.spawn().unwrap();
            self.site.logs.lock().unwrap().push(log.clone());
            let mut worker = Worker { child, name: self.name.clone(), listen, config, log };
            if worker.listens().await {
                return worker;
            }
            // Somebody else took the port in between, which is rare; anything else is not going to get better.
            let said = worker.log();
            assert!(said.contains("http.listen"), "the worker ended: {said}");
        }
    }
}

/// A running worker; killed when dropped.
pub struct Worker {
    child: Child,
    pub name: String,
    pub listen: SocketAddr,
    pub config: PathBuf,
    log: PathBuf,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Worker {
    /// False if it ended instead.
    async fn listens(&mut self) -> bool {
        let begun = Instant::now();
        loop {
            if self.get("/healthz").await.is_some_and(|(code, _)| code == 200) {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(begun.elapsed() < DEADLINE, "no HTTP port: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Status and body; none while nobody listens.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.listen, path).await
    }

    pub async fn status(&self) -> Value {
        let (code, body) = self.get("/status").await.expect("/status");
        assert_eq!(code, 200);
        serde_json::from_str(&body).unwrap()
    }

    /// One pool's part of the status.
    pub async fn pool(&self, name: &str) -> Value {
        let status = self.status().await;
        status["pools"].as_array().unwrap().iter().find(|p| p["pool"] == name).expect("the pool").clone()
    }

    pub async fn metrics(&self) -> Samples {
        let (code, body) = self.get("/metrics").await.expect("/metrics");
        assert_eq!(code, 200);
        Samples::parse(&body)
    }

    /// How long a pool's containers have taken to be ready, in the mean.
    pub async fn warmup(&self, pool: &str) -> Duration {
        let metrics = self.metrics().await;
        let of = |what| metrics.get(&format!("prewarm_warmup_seconds_{what}"), &[("pool", pool)]);
        Duration::from_secs_f64(of("sum") / of("count"))
    }

    pub async fn until_ready(&self) {
        eventually("/readyz answers 200", async || {
            self.get("/readyz").await.filter(|(code, _)| *code == 200)
        })
        .await;
    }

    /// Waits until every pool has as many idle containers as it wants, and none on its way in or out.
    pub async fn until_full(&self) -> Value {
        eventually("all pools are full and quiet", async || {
            let status = self.status().await;
            let full = status["pools"].as_array().unwrap().iter().all(|p| {
                p["idle"] == p["target"] && p["starting"] == 0 && p["leased"] == 0 && p["removing"] == 0
            });
            full.then_some(status)
        })
        .await
    }

    /// Waits until this is so of the worker's first pool.
    pub async fn until_one(&self, is_so: impl AsyncFn(&Value) -> bool) -> Value {
        eventually("the pool is as wanted", async || {
            let status = self.status().await;
            is_so(&status["pools"][0]).await.then(|| status["pools"][0].clone())
        })
        .await
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(mut self) -> ExitStatus {
        signal("TERM", self.pid());
        self.ended().await
    }

    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the worker ends", async || self.child.try_wait().unwrap()).await
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `/metrics` says: series with labels, as text, to values.
pub struct Samples(Vec<(String, f64)>);

impl Samples {
    pub fn parse(text: &str) -> Samples {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        };
        Samples(text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).map(sample).collect())
    }

    /// One series' value, whatever the order of its labels.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matches = |series: &str| {
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let found_labels: Vec<&str> =
                rest.trim_end_matches('}').split(',').filter(|l| !l.is_empty()).collect();
            found == name
                && found_labels.len() == labels.len()
                && labels.iter().all(|(k, v)| found_labels.contains(&format!("{k}=\"{v}\"").as_str()))
        };
        self.0.iter().find(|(series, _)| matches(series)).map(|(_, value)| *value)
    }

    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no series {name} {labels:?}"))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(series, _)| series.split('{').next().unwrap())
    }
}

/// The processes of this machine whose command line has this in it.
pub fn processes_with(text: &str) -> Vec<String> {
    let read = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (is_number(&entry.path()) && line.contains(text))
            .then(|| format!("{} {line}", entry.path().display()))
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(read).collect()
}

fn is_number(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
}
