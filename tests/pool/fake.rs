//! A scripted engine: containers are tasks that speak init's protocol, and any request can be made to fail or hang.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use prewarm::config::{Isolation, Pull};
use prewarm::engine::{
    Attached, ContainerId, ContainerSpec, ContainerState, Engine, EngineError, EngineInfo, Fault, Image,
    Listed, Op, Stop, Stops,
};
use prewarm::init::wire::{self, Doubt, End, Exited, HEADER, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::AbortHandle;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is done.
    Done,
    /// It is refused, and not done.
    Refused,
    /// It is done, and the answer is an error all the same.
    DoneButFailed,
    /// No answer ever comes.
    Never,
    /// It is done after a while.
    Slow,
    /// No answer in time; it was not done.
    TimedOut,
    /// No answer in time; it was done all the same.
    DoneButTimedOut,
}

/// How long [`Fate::Slow`] takes.
pub const SLOW: Duration = Duration::from_secs(5);
/// After this a request has timed out.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// How a container's init behaves once it is started. With isolation `namespace` it waits for SETUP first, and is ready again
/// after each job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// READY; each START is answered with STARTED, its own name on stdout, EXITED 0.
    Obliging,
    /// READY; a START is answered with STARTED, and no signal but SIGKILL ends the job.
    Stubborn,
    /// READY; a START is answered with STARTED; nothing ends the job.
    Deaf,
    /// As `Obliging`, but takes each piece of what the job brings in 40 s, and begins after that.
    Unhurried,
    /// READY; a START is answered with STARTED and output without end, until SIGKILL.
    Talkative,
    /// As `Obliging`, but one of the job's processes was killed for memory.
    ShortOfMemory,
    /// As `Obliging`, but not fit for another job.
    Doubting,
    /// As `Obliging`, but says nothing after its first job.
    Forgetful,
    /// As `Obliging`, but is ready again a minute after each job.
    Tidying,
    /// READY; ends as soon as it reads a START.
    DiesAtStart,
    /// READY; ends a moment later.
    DiesIdle,
    /// Ends instead of saying READY.
    DiesBeforeReady,
    /// Says nothing.
    Mute,
}

#[derive(Default)]
struct World {
    containers: BTreeMap<ContainerId, Container>,
    next: u64,
    fates: HashMap<Op, VecDeque<Fate>>,
    requests: Vec<Op>,
    most: usize,
    image: Option<String>,
    start_takes: Duration,
    pulls: HashMap<String, Duration>,
    inits: HashMap<String, Init>,
    created: Vec<String>,
}

struct Container {
    name: String,
    labels: BTreeMap<String, String>,
    image: String,
    state: ContainerState,
    init: Init,
    isolation: Isolation,
    stdio: Option<(DuplexStream, DuplexStream)>,
    task: Option<AbortHandle>,
}

/// The scripted engine.
#[derive(Clone)]
pub struct Fake {
    world: Arc<Mutex<World>>,
    init: Arc<Mutex<Init>>,
    changed: Arc<Notify>,
    hold: watch::Sender<bool>,
    /// Containers that stop running; `None` where the engine's events are lost.
    stops: broadcast::Sender<Option<(ContainerId, Stop)>>,
}

impl Fake {
    pub fn new() -> Fake {
        Fake {
            world: Arc::default(),
            init: Arc::new(Mutex::new(Init::Obliging)),
            changed: Arc::default(),
            hold: watch::Sender::new(false),
            stops: broadcast::Sender::new(1000),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// How containers that are created from now on behave.
    pub fn behave(&self, init: Init) {
        *self.init.lock().unwrap() = init;
    }

    /// How containers of one image behave.
    pub fn behave_for(&self, image: &str, init: Init) {
        self.world().inits.insert(image.into(), init);
    }

    /// How many containers of an image were created.
    pub fn created_of(&self, image: &str) -> usize {
        self.world().created.iter().filter(|i| *i == image).count()
    }

    /// What happens to the next requests of this kind, one after the other.
    pub fn script(&self, op: Op, fates: impl IntoIterator<Item = Fate>) {
        self.world().fates.entry(op).or_default().extend(fates);
    }

    /// How long it takes to get an image for the first time.
    pub fn pull_takes(&self, image: &str, time: Duration) {
        self.world().pulls.insert(image.into(), time);
    }

    /// How long starting a container takes.
    pub fn start_takes(&self, time: Duration) {
        self.world().start_takes = time;
    }

    /// From now on every request is done.
    pub fn forgive(&self) {
        self.world().fates.clear();
    }

    /// Holds back every start from now on, or lets them all go.
    pub fn hold_starts(&self, hold: bool) {
        self.hold.send_replace(hold);
    }

    /// How often this was asked.
    pub fn asked(&self, op: Op) -> usize {
        self.world().requests.iter().filter(|o| **o == op).count()
    }

    /// Every container that exists now.
    pub fn containers(&self) -> Vec<ContainerId> {
        self.world().containers.keys().cloned().collect()
    }

    /// The most that ever existed at once.
    pub fn most(&self) -> usize {
        self.world().most
    }

    /// What the image is from now on.
    pub fn set_image(&self, id: &str) {
        self.world().image = Some(id.into());
    }

    /// Of which image each container is.
    pub fn images(&self) -> Vec<String> {
        self.world().containers.values().map(|c| c.image.clone()).collect()
    }

    /// Freezes a container, as `docker pause` does. Its stream says nothing of it; the event does, unless it is lost.
    pub fn pause(&self, id: &ContainerId, told: bool) {
        if let Some(container) = self.world().containers.get_mut(id) {
            container.state = ContainerState::Paused;
        }
        if told {
            let _ = self.stops.send(Some((id.clone(), Stop::Paused)));
        }
    }

    /// Ends the streams of events.
    pub fn lose_events(&self) {
        let _ = self.stops.send(None);
    }

    /// Ends a container's init, as `docker kill` would.
    pub fn kill(&self, id: &ContainerId) {
        if let Some(task) = self.world().containers.get(id).and_then(|c| c.task.clone()) {
            task.abort();
        }
    }

    /// Puts a container there that no worker of this test made.
    pub fn leave_behind(&self, labels: &[(&str, &str)], state: ContainerState) -> ContainerId {
        let mut world = self.world();
        world.next += 1;
        let id = ContainerId::new(&format!("left-{}", world.next));
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let left = Container {
            name: String::new(),
            labels,
            image: String::new(),
            state,
            init: Init::Mute,
            isolation: Isolation::Container,
            stdio: None,
            task: None,
        };
        world.containers.insert(id.clone(), left);
        id
    }

    /// Waits until this many containers exist.
    pub async fn until_containers(&self, n: usize) {
        loop {
            let changed = self.changed.notified();
            if self.world().containers.len() == n {
                return;
            }
            changed.await;
        }
    }

    async fn fate(&self, op: Op) -> Result<Fate, EngineError> {
        let fate = {
            let mut world = self.world();
            world.requests.push(op);
            world.fates.get_mut(&op).and_then(VecDeque::pop_front).unwrap_or(Fate::Done)
        };
        match fate {
            Fate::Never => std::future::pending().await,
            Fate::Refused => Err(failed(op, Fault::Refused("as scripted".into()))),
            Fate::TimedOut => {
                tokio::time::sleep(TIMEOUT).await;
                Err(failed(op, Fault::Timeout(TIMEOUT)))
            }
            Fate::Slow => {
                tokio::time::sleep(SLOW).await;
                Ok(fate)
            }
            Fate::Done | Fate::DoneButFailed | Fate::DoneButTimedOut => Ok(fate),
        }
    }
}

fn failed(op: Op, fault: Fault) -> EngineError {
    EngineError { op, subject: "fake".into(), fault }
}

async fn answer<T>(fate: Fate, op: Op, value: T) -> Result<T, EngineError> {
    match fate {
        Fate::DoneButFailed => Err(failed(op, Fault::Refused("as scripted".into()))),
        Fate::DoneButTimedOut => {
            tokio::time::sleep(TIMEOUT).await;
            Err(failed(op, Fault::Timeout(TIMEOUT)))
        }
        _ => Ok(value),
    }
}

#[async_trait]
impl Engine for Fake {
    async fn info(&self) -> Result<EngineInfo, EngineError> {
        let fate = self.fate(Op::Info).await?;
        let info = EngineInfo {
            version: "fake".into(),
            architecture: "x86_64".into(),
            cpus: 2,
            memory: 1 << 30,
            apparmor: false,
        };
        answer(fate, Op::Info, info).await
    }

    async fn image(&self, name: &str, _: Pull) -> Result<Image, EngineError> {
        let fate = self.fate(Op::Inspect).await?;
        let takes = self.world().pulls.remove(name).unwrap_or_default();
        tokio::time::sleep(takes).await;
        // One image is all images, unless a test tells them apart.
        let id = match name {
            "image" => self.world().image.clone().unwrap_or_else(|| "sha256:fake".into()),
            name => format!("sha256:{name}"),
        };
        answer(fate, Op::Inspect, Image { name: name.into(), id, ..Image::default() }).await
    }

    async fn install_init(&self, _: &Image, _: &BTreeMap<String, String>) -> Result<String, EngineError> {
        let fate = self.fate(Op::InstallInit).await?;
        answer(fate, Op::InstallInit, "prewarm-init-fake".into()).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, EngineError> {
        let fate = self.fate(Op::Create).await?;
        let id = {
            let mut world = self.world();
            world.next += 1;
            let id = ContainerId::new(&format!("container-{}", world.next));
            let made = Container {
                name: spec.name.clone(),
                labels: spec.labels.clone(),
                image: spec.image.clone(),
                state: ContainerState::Created,
                init: *world.inits.get(&spec.image).unwrap_or(&self.init.lock().unwrap()),
                isolation: spec.pool.isolation,
                stdio: None,
                task: None,
            };
            world.containers.insert(id.clone(), made);
            world.created.push(spec.image.clone());
            world.most = world.most.max(world.containers.len());
            id
        };
        self.changed.notify_waiters();
        answer(fate, Op::Create, id).await
    }

    async fn attach(&self, id: &ContainerId) -> Result<Attached, EngineError> {
        let fate = self.fate(Op::Attach).await?;
        let (input, stdin) = tokio::io::duplex(1 << 20);
        let (stdout, output) = tokio::io::duplex(1 << 20);
        self.world().containers.get_mut(id).unwrap().stdio = Some((stdin, stdout));
        let output = stream::unfold(output, |mut output| async move {
            let mut buffer = vec![0; 4096];
            match output.read(&mut buffer).await {
                Ok(0) | Err(_) => None,
                Ok(n) => Some((Ok(Bytes::copy_from_slice(&buffer[..n])), output)),
            }
        });
        answer(fate, Op::Attach, Attached { input: Box::pin(input), output: Box::pin(output) }).await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), EngineError> {
        let fate = self.fate(Op::Start).await?;
        let takes = self.world().start_takes;
        tokio::time::sleep(takes).await;
        let _ = self.hold.subscribe().wait_for(|held| !*held).await;
        {
            let mut world = self.world();
            let container = world.containers.get_mut(id).unwrap();
            let (stdin, stdout) = container.stdio.take().unwrap();
            container.state = ContainerState::Running;
            let init = run_init(container.init, container.isolation, id.clone(), stdin, stdout);
            container.task = Some(tokio::spawn(init).abort_handle());
        }
        answer(fate, Op::Start, ()).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), EngineError> {
        let fate = self.fate(Op::Remove).await?;
        if let Some(task) = self.world().containers.remove(id).and_then(|c| c.task) {
            task.abort();
        }
        self.changed.notify_waiters();
        answer(fate, Op::Remove, ()).await
    }

    async fn list(&self, label: &str, value: Option<&str>) -> Result<Vec<Listed>, EngineError> {
        let fate = self.fate(Op::List).await?;
        let listed = {
            let world = self.world();
            let carries = |c: &Container| c.labels.get(label).is_some_and(|v| value.is_none_or(|w| v == w));
            let listed = world.containers.iter().filter(|(_, c)| carries(c)).map(|(id, c)| Listed {
                id: id.clone(),
                name: c.name.clone(),
                labels: c.labels.clone(),
                state: c.state,
                created: 0,
            });
            listed.collect()
        };
        answer(fate, Op::List, listed).await
    }

    async fn stops(&self, _: &str, _: &str) -> Result<Stops, EngineError> {
        let fate = self.fate(Op::Events).await?;
        let stops = stream::unfold(self.stops.subscribe(), |mut stops| async move {
            Some((stops.recv().await.ok()?.ok_or_else(EngineError::events_ended), stops))
        });
        let stops: Stops = Box::pin(stops);
        answer(fate, Op::Events, stops).await
    }
}

async fn run_init(
    init: Init,
    isolation: Isolation,
    id: ContainerId,
    mut stdin: DuplexStream,
    mut stdout: DuplexStream,
) -> Option<()> {
    match init {
        Init::DiesBeforeReady => return None,
        Init::Mute => std::future::pending().await,
        _ => {}
    }
    if isolation == Isolation::Namespace {
        assert_eq!(receive(&mut stdin).await?.0, Kind::Setup);
    }
    send(&mut stdout, Kind::Ready, &wire::VERSION.to_le_bytes()).await?;
    if init == Init::DiesIdle {
        tokio::time::sleep(Duration::from_millis(300)).await;
        return None;
    }
    loop {
        let (kind, payload) = receive(&mut stdin).await?;
        match (kind, init) {
            (Kind::Start, Init::DiesAtStart) => return None,
            (
                Kind::Start,
                Init::Obliging | Init::ShortOfMemory | Init::Doubting | Init::Forgetful | Init::Tidying,
            ) => {
                send(&mut stdout, Kind::Started, &[]).await?;
                send(&mut stdout, Kind::Stdout, id.as_str().as_bytes()).await?;
                exited(&mut stdout, End::Code(0), u32::from(init == Init::ShortOfMemory)).await?;
                match (isolation, init) {
                    (Isolation::Container, _) | (_, Init::Forgetful) => {}
                    (_, Init::Doubting) => {
                        send(&mut stdout, Kind::Doubt, &[Doubt::Mounts as u8]).await?;
                        return None;
                    }
                    _ => {
                        if init == Init::Tidying {
                            tokio::time::sleep(Duration::from_secs(60)).await;
                        }
                        send(&mut stdout, Kind::Ready, &wire::VERSION.to_le_bytes()).await?;
                    }
                }
            }
            (Kind::Start, Init::Unhurried) => {}
            (Kind::Stdin, Init::Unhurried) => {
                tokio::time::sleep(Duration::from_secs(40)).await;
                send(&mut stdout, Kind::StdinTaken, &[]).await?;
            }
            (Kind::StdinEof, Init::Unhurried) => {
                send(&mut stdout, Kind::Started, &[]).await?;
                exited(&mut stdout, End::Code(0), 0).await?;
            }
            (Kind::Start, Init::Talkative) => {
                send(&mut stdout, Kind::Started, &[]).await?;
                let signals = async {
                    while receive(&mut stdin).await?.1 != [9, 0, 0, 0] {}
                    Some(())
                };
                let talk = async {
                    loop {
                        send(&mut stdout, Kind::Stdout, &[b'x'; 1000]).await?;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                let killed = tokio::select! {
                    killed = signals => killed,
                    gone = talk => gone,
                };
                killed?;
                exited(&mut stdout, End::Signal(9), 0).await?;
            }
            (Kind::Start, _) => send(&mut stdout, Kind::Started, &[]).await?,
            (Kind::Signal, Init::Stubborn) if payload[0] == 9 => {
                exited(&mut stdout, End::Signal(9), 0).await?
            }
            _ => {}
        }
    }
}

async fn receive(stdin: &mut DuplexStream) -> Option<(Kind, Vec<u8>)> {
    let mut header = [0; HEADER];
    stdin.read_exact(&mut header).await.ok()?;
    let (kind, len) = wire::parse_header(header).unwrap();
    let mut payload = vec![0; len];
    stdin.read_exact(&mut payload).await.ok()?;
    Some((kind, payload))
}

async fn send(stdout: &mut DuplexStream, kind: Kind, payload: &[u8]) -> Option<()> {
    stdout.write_all(&wire::header(kind, payload.len())).await.ok()?;
    stdout.write_all(payload).await.ok()
}

async fn exited(stdout: &mut DuplexStream, end: End, oom_kills: u32) -> Option<()> {
    let exited = Exited { end, left_behind: false, interfered: false, oom_kills, cpu_us: 0, max_rss: 0 };
    send(stdout, Kind::Exited, &exited.encode()).await
}
