//! One fault's run: jobs keep coming while a fault is injected, and afterwards all is accounted for.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::time::sleep;

use crate::books::{Books, Expect, Tally};
use crate::ground::Ground;
use crate::publisher::{Job, Publisher, connect};
use crate::reader::{Holds, Reader};
use crate::report::Row;
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
            (format!("{prefix}.results"), Holds::Replies),
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
                    publisher.publish("box", &job).await;
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

    /// No more jobs come until they flow again.
    pub fn flow(&self, flowing: bool) {
        self.flowing.set(flowing);
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

    // ---- The end ----------------------------------------------------------------------------------------

    /// Waits until every confirmed job has come to something, and nothing is on its way any more; then stops the workers,
    /// which must end well.
    pub async fn settle(&self, workers: Vec<Worker>) {
        let begun = Instant::now();
        let mut probe = Probe::new(self);
        while begun.elapsed() < SETTLING {
            if self.books().open().is_empty() && probe.messages().await == Some(0) && idle(&workers).await {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        for worker in workers {
            let name = worker.name.clone();
            let status = worker.stop().await;
            assert!(status.success(), "{}: {name} stopped with {status}", self.fault);
        }
    }

    /// Closes the books, shows the row, and says what is wrong. `purged` jobs are not asked for.
    pub async fn close(self) -> Tally {
        // What workers left unacknowledged is back in the queues when their connections are closed.
        sleep(Duration::from_millis(500)).await;
        let messages_left = Probe::new(&self).messages_surely().await;
        let containers_left = self.containers_left().await;
        let marks = fs::read_to_string(self.marks.join("runs")).unwrap_or_default();
        let tally = self.books().close(&marks);
        if !tally.lost.is_empty() {
            self.explain(&tally.lost, &marks).await;
        }
        let row = Row {
            fault: self.fault.clone(),
            broker: self.ground.broker.clone(),
            tally: tally.clone(),
            containers_left,
            messages_left,
            took: self.begun.elapsed(),
        };
        row.enter();
        self.delete_queues().await;
        self.keep_logs();
        let mut wrong = Vec::new();
        for (what, ids) in [("lost", &tally.lost), ("unexpected", &tally.unexpected)] {
            if !ids.is_empty() {
                wrong.push(format!("{} {what}: {}", ids.len(), ids[..ids.len().min(5)].join("\n  ")));
            }
        }
        if containers_left > 0 {
            wrong.push(format!("{containers_left} containers are left"));
        }
        if messages_left > 0 {
            wrong.push(format!("{messages_left} messages are left in the queues of jobs"));
        }
        assert!(wrong.is_empty(), "{}: {}", self.fault, wrong.join("\n"));
        tally
    }

    /// Keeps what the workers have logged, if somebody wants to read it.
    fn keep_logs(&self) {
        let Some(dir) = scale::logs() else { return };
        fs::create_dir_all(&dir).unwrap();
        for file in fs::read_dir(&self.site.dir).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "log") {
                let name = format!("{} {}", self.fault, file.file_name().unwrap().to_string_lossy());
                fs::copy(&file, dir.join(name)).unwrap();
            }
        }
    }

    /// What there is to be known of jobs that are lost.
    async fn explain(&self, lost: &[String], marks: &str) {
        for id in lost {
            let of_id: Vec<&str> = marks.lines().filter(|line| line.split(' ').next() == Some(id)).collect();
            println!("{}: lost {id}: {of_id:?}", self.fault);
        }
        let connection = connect(&self.ground.urls[0]).await.unwrap();
        for queue in ["replies", "results", "dead"].map(|name| format!("{}.{name}", self.site.name)) {
            let channel = connection.create_channel().await.unwrap();
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let asked = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await;
            println!("{}: {queue}: {:?} messages", self.fault, asked.map(|queue| queue.message_count()));
        }
    }

    /// Containers that are left after a sweep. What the engine carried out of a killed worker's requests when the next one
    /// had swept already is the next sweep's, two minutes later or when a worker starts.
    async fn containers_left(&self) -> usize {
        let workers = self.workers.borrow().clone();
        let left = self.ground.containers_left(&workers).await;
        if left.is_empty() || left.iter().any(|container| container.state == "running") {
            return left.len();
        }
        println!("{}: for the sweep: {left:?}", self.fault);
        let sweeper = self.again(&workers[0]).await;
        let begun = Instant::now();
        let unswept;
        loop {
            let mut found = self.ground.containers_left(&workers).await;
            found.retain(|container| container.state != "running");
            if found.is_empty() || begun.elapsed() > Duration::from_secs(20) {
                unswept = found.len();
                for container in found {
                    println!("{}: not swept: {}", self.fault, self.ground.refusal(&container));
                }
                break;
            }
        }
        assert!(sweeper.stop().await.success());
        self.ground.containers_left(&workers).await.len().max(unswept)
    }

    fn job_queues(&self) -> Vec<String> {
        let retries = [1000, 10_000, 60_000, 300_000].map(|ms| format!("{}.retry.{ms}ms", self.site.name));
        [format!("{}.jobs.box", self.site.name)].into_iter().chain(retries).collect()
    }

    /// What of the worker's queues the site doesn't know of: those at another broker than the shared one go with it.
    async fn delete_queues(&self) {
        let connection = connect(&self.ground.urls[0]).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let others =
            ["replies", "unread", "dead", "results"].map(|name| format!("{}.{name}", self.site.name));
        for queue in self.job_queues().into_iter().chain(others) {
            _ = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
        }
        _ = connection.close(200, "OK".into()).await;
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

async fn idle(workers: &[Worker]) -> bool {
    for worker in workers {
        if worker.status().await["jobs"].as_array().is_none_or(|jobs| !jobs.is_empty()) {
            return false;
        }
    }
    true
}

/// Counts messages that wait in the queues of jobs and retries.
struct Probe<'a> {
    run: &'a Run<'a>,
    open: Option<(lapin::Connection, lapin::Channel)>,
}

impl<'a> Probe<'a> {
    fn new(run: &'a Run<'a>) -> Probe<'a> {
        Probe { run, open: None }
    }

    /// `None` while the broker can't say.
    async fn messages(&mut self) -> Option<usize> {
        let counted = tokio::time::timeout(Duration::from_secs(5), self.count()).await;
        let counted = counted.ok().and_then(Result::ok);
        if let (None, Some((connection, _))) = (counted, self.open.take_if(|_| counted.is_none())) {
            tokio::spawn(async move { connection.close(200, "OK".into()).await });
        }
        counted
    }

    async fn messages_surely(&mut self) -> usize {
        loop {
            if let Some(messages) = self.messages().await {
                return messages;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn count(&mut self) -> lapin::Result<usize> {
        let (_, channel) = match &mut self.open {
            Some(open) => open,
            none => {
                let connection = connect(&self.run.ground.urls[0]).await?;
                let channel = connection.create_channel().await?;
                none.insert((connection, channel))
            }
        };
        let mut messages = 0;
        for queue in self.run.job_queues() {
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
            messages += declared.message_count() as usize;
        }
        Ok(messages)
    }
}
