//! One fault's run: jobs keep coming while a fault is injected, and afterwards all is accounted for.

pub mod ending;

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::time::sleep;

use crate::books::{Books, Expect};
use crate::ground::Ground;
use crate::publisher::{Job, Publisher, connect};
use crate::reader::{Holds, Reader};
use crate::scale::{self, Scale};
use crate::support::worker::{Setup, Site, Worker};

/// What all jobs but special ones run: `sh -c SCRIPT sh ID SECONDS CODE`. What it writes down is there whatever becomes of the
/// worker, the broker and the engine.
const SCRIPT: &str = "t=$(cat /proc/sys/kernel/random/uuid); echo \"$1 $t begin\" >>/marks/runs; echo \"$1 $t\"; \
                      sleep $2; echo \"$1 $t end\" >>/marks/runs; exit $3";

/// Jobs that come after the fault is over.
const TAIL: usize = 8;

/// A job that lost its container twice waits 11 s; connections that were refused for long are tried again after up to 45 s.
const SETTLING: Duration = Duration::from_secs(120);

pub struct Run<'a> {
    pub site: &'a Site,
    pub ground: &'a Ground<'a>,
    pub scale: Scale,
    pub books: Arc<Mutex<Books>>,
    fault: String,
    begun: Instant,
    rng: RefCell<StdRng>,
    /// Jobs so far.
    jobs: Cell<usize>,
    /// Whether jobs keep coming.
    flowing: Cell<bool>,
    /// Whether one is on its way to the broker.
    publishing: Cell<bool>,
    workers: RefCell<Vec<String>>,
    marks: PathBuf,
    _reader: Reader,
    /// Keys of the pool besides the usual.
    keys: RefCell<String>,
    pace: Cell<Duration>,
    /// Where workers find the broker, if not where the publisher does.
    pub way: RefCell<Option<String>>,
    env: RefCell<Vec<(&'static str, &'static str)>>,
}

impl<'a> Run<'a> {
    pub async fn new(site: &'a Site, ground: &'a Ground<'a>, fault: &str, scale: Scale) -> Run<'a> {
        let marks = site.dir.join("marks");
        fs::create_dir(&marks).unwrap();
        fs::set_permissions(&marks, fs::Permissions::from_mode(0o777)).unwrap();
        let books = Arc::new(Mutex::new(Books::default()));
        let prefix = &site.name;
        declare(&ground.urls[0], &format!("{prefix}.replies"), "quorum").await;
        let queues = [
            (format!("{prefix}.replies"), Holds::Replies),
            (format!("{prefix}.results"), Holds::Results),
            (format!("{prefix}.dead"), Holds::DeadLetters),
        ];
        let reader = Reader::start(&ground.urls, &queues, &books);
        Run {
            site,
            ground,
            scale,
            books,
            fault: fault.to_owned(),
            begun: Instant::now(),
            rng: RefCell::new(StdRng::seed_from_u64(scale.seed)),
            jobs: Cell::new(0),
            flowing: Cell::new(true),
            publishing: Cell::new(false),
            workers: RefCell::default(),
            marks,
            _reader: reader,
            keys: RefCell::default(),
            pace: Cell::new(Duration::from_millis(250)),
            way: RefCell::default(),
            env: RefCell::default(),
        }
    }

    pub fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    // ---- Workers ----------------------------------------------------------------------------------------

    /// More keys for the pool.
    pub fn keys(&self, keys: &str) {
        *self.keys.borrow_mut() += &format!("{keys}\n");
    }

    /// A variable for all workers.
    pub fn env(&self, name: &'static str, value: &'static str) {
        self.env.borrow_mut().push((name, value));
    }

    fn setup(&self) -> Setup<'_> {
        let mut keys = self.keys.borrow().clone();
        for (key, value) in [("idle", "4"), ("concurrency", "4"), ("network", self.ground.network)] {
            if !keys.lines().any(|line| line.starts_with(key)) {
                keys += &format!("{key} = {value}\n");
            }
        }
        keys += &format!("mounts = [{{ source = {:?}, target = \"/marks\" }}]\n", self.marks);
        let mut setup = self.site.worker().pool("box", &keys);
        if let Some(host) = &self.ground.engine_host {
            setup = setup.env("DOCKER_HOST", host);
        }
        if scale::logs().is_some() {
            setup = setup.env("PREWARM_LOG", "debug");
        }
        self.env.borrow().iter().fold(setup, |setup, (name, value)| setup.env(name, value))
    }

    async fn start(&self, setup: Setup<'_>) -> Worker {
        let way = self.way.borrow().clone().unwrap_or_else(|| self.ground.urls[0].clone());
        self.workers.borrow_mut().push(setup.name.clone());
        setup.start_with(&way).await
    }

    /// A worker that can take jobs.
    pub async fn worker(&self) -> Worker {
        let worker = self.start(self.setup()).await;
        worker.until_ready().await;
        worker
    }

    /// A worker of that name, come back.
    pub async fn again(&self, name: &str) -> Worker {
        let worker = self.start(self.setup().named(name)).await;
        worker.until_ready().await;
        worker
    }

    // ---- Jobs -------------------------------------------------------------------------------------------

    /// How often jobs come.
    pub fn pace(&self, pace: Duration) {
        self.pace.set(pace);
    }

    pub fn next_id(&self) -> String {
        self.jobs.set(self.jobs.get() + 1);
        let fault = self.fault.split_whitespace().next().unwrap_or_default();
        format!("chaos-{}-{fault}-{}", self.scale.seed, self.jobs.get())
    }

    fn job(&self) -> Job {
        let mut rng = self.rng.borrow_mut();
        let seconds = match rng.random_range(0..100) {
            0..70 => rng.random_range(0.05..0.5),
            70..95 => rng.random_range(0.5..1.5),
            _ => 3.0,
        };
        let code = if rng.random_bool(0.15) { rng.random_range(1..=100) } else { 0 };
        drop(rng);
        self.marked(seconds, code)
    }

    /// A job that runs so long and exits with this.
    pub fn marked(&self, seconds: f64, code: u8) -> Job {
        let id = self.next_id();
        let args = json!(["sh", "-c", SCRIPT, "sh", id, format!("{seconds:.2}"), code.to_string()]);
        let body = json!({"args": args, "timeout": "2m"});
        Job { id, body, expect: Expect::Marked(code), reply_to: self.replies() }
    }

    pub fn replies(&self) -> String {
        format!("{}.replies", self.site.name)
    }

    pub fn publisher(&self) -> Publisher<'_> {
        Publisher::new(&self.ground.urls, &self.site.name, &self.books)
    }

    /// Lets jobs come while a fault is injected, and some more afterwards. `special` is asked for each job first.
    pub async fn load<T>(&self, special: impl Fn(usize) -> Option<Job>, fault: impl Future<Output = T>) -> T {
        let over = Cell::new(false);
        let injected = async {
            let done = fault.await;
            over.set(true);
            done
        };
        let jobs = async {
            let mut publisher = self.publisher();
            let mut tail = 0;
            while tail < TAIL || self.jobs.get() < self.scale.jobs {
                if self.flowing.get() {
                    let job = special(self.jobs.get()).unwrap_or_else(|| self.job());
                    self.publishing.set(true);
                    publisher.publish("box", &job).await;
                    self.publishing.set(false);
                    tail += usize::from(over.get());
                }
                sleep(self.pace.get()).await;
            }
        };
        tokio::join!(injected, jobs).0
    }

    /// As [`Run::load`], with ordinary jobs only.
    pub async fn under_load<T>(&self, fault: impl Future<Output = T>) -> T {
        self.load(|_| None, fault).await
    }

    /// Lets no more jobs come, and waits until the broker has all that there are.
    pub async fn pause(&self) {
        self.flowing.set(false);
        until("no job is being published", async || !self.publishing.get()).await;
    }

    /// Jobs come again.
    pub fn resume(&self) {
        self.flowing.set(true);
    }

    // ---- Moments ----------------------------------------------------------------------------------------

    /// A random moment within the next so many milliseconds.
    pub async fn sometime(&self, within: u64) {
        let ms = self.rng.borrow_mut().random_range(0..=within);
        sleep(Duration::from_millis(ms)).await;
    }

    /// One of so many.
    pub fn any_of(&self, count: usize) -> usize {
        self.rng.borrow_mut().random_range(0..count)
    }

    /// Waits for so many more results.
    pub async fn results(&self, more: usize) {
        let wanted = self.books().results() + more;
        until(&format!("{more} more results"), async || self.books().results() >= wanted).await;
    }

    /// Waits until a worker has jobs in hand whose containers are known; gives these, and a random moment more.
    pub async fn mid_job(&self, worker: &Worker) -> Vec<String> {
        self.results(2).await;
        self.sometime(600).await;
        let mut containers = Vec::new();
        until("a job runs", async || {
            let status = worker.status().await;
            let jobs = status["jobs"].as_array().unwrap();
            containers = jobs.iter().filter_map(|job| job["container"].as_str().map(str::to_owned)).collect();
            !containers.is_empty()
        })
        .await;
        containers
    }

    /// From now on the next result may come.
    pub fn over(&self) {
        self.books().fault_is_over();
    }

    /// Waits until the worker says that it can't work: it must not look ready while it can't.
    pub async fn until_unready(&self, worker: &Worker, within: Duration) {
        let begun = Instant::now();
        while worker.get("/readyz").await.is_some_and(|(code, _)| code == 200) {
            assert!(begun.elapsed() < within, "{}: still ready after {within:?}", self.fault);
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Declares a durable queue of a publisher's.
pub async fn declare(url: &str, queue: &str, kind: &str) {
    let connection = connect(url).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    channel.queue_declare(queue.into(), durable, arguments).await.unwrap();
    _ = connection.close(200, "OK".into()).await;
}

/// Waits for something that nothing announces, longer than an outage may last.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < SETTLING, "never: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
