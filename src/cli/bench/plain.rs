//! Docker's own ways, through its API: a container for each job as `docker run --rm` makes it, and `docker exec` in
//! one that is up. The pools need neither, so neither is in the engine's seam.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bollard::Docker as Client;
use bollard::container::LogOutput;
use bollard::errors::Error as ClientError;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::{Stream, StreamExt};
use tokio::task::JoinError;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::Job;
use super::measure::Sample;
use super::ways::{LONGEST_JOB, Runner};
use crate::config::PoolConfig;
use crate::engine::docker::Docker;
use crate::engine::link::{Frame, Link};
use crate::engine::{
    ContainerId, ContainerSpec, Engine, EngineError, INIT_DIR, INSTANCE_LABEL, Image, WORKER_LABEL, convert,
};
use crate::launch;
use crate::pool::Owner;

/// Label that only containers of these two ways have.
const BENCH_LABEL: &str = "prewarm.bench";
/// How often an exec that has ended is asked for its exit code, should the engine not know it at once.
const LOOK: Duration = Duration::from_millis(1);
/// How long the container for execs may take to be up.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// How often what is left is looked for at the end, until nothing is.
const CLEARINGS: u32 = 6;

/// What both ways have in common, and the way of `docker run`.
pub struct Plain {
    client: Client,
    engine: Arc<Docker>,
    owner: Owner,
    image: Image,
    pool: Arc<PoolConfig>,
    job: Job,
    /// Creations under way. Whoever asked for one may have gone away; the container comes to be all the same.
    creations: TaskTracker,
}

impl Plain {
    /// With the same options as the pool's containers have. `owner` is nobody else's: at the end whatever bears its label is
    /// removed.
    ///
    /// # Errors
    /// If the engine's address can't be one.
    pub fn new(
        engine: Arc<Docker>,
        owner: Owner,
        image: Image,
        pool: PoolConfig,
        job: Job,
    ) -> Result<Plain, String> {
        let client = Client::connect_with_host(engine.host()).map_err(|e| e.to_string())?;
        let (pool, creations) = (Arc::new(pool), TaskTracker::new());
        Ok(Plain { client, engine, owner, image, pool, job, creations })
    }

    fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (WORKER_LABEL.into(), self.owner.worker.clone()),
            (INSTANCE_LABEL.into(), self.owner.instance.clone()),
            (BENCH_LABEL.into(), env!("CARGO_PKG_VERSION").into()),
        ])
    }

    fn spec(&self, init_volume: String) -> ContainerSpec {
        ContainerSpec {
            name: format!("prewarm-bench-{}", uuid::Uuid::now_v7().simple()),
            image: self.image.id.clone(),
            init_volume,
            labels: self.labels(),
            pool: Arc::clone(&self.pool),
            socket: None,
        }
    }

    /// As `docker run --rm` has it: the pool's options, but none of what init needs.
    fn body(&self) -> (String, ContainerCreateBody) {
        let spec = self.spec("none".into());
        let mut body = convert::create_body(&spec);
        body.entrypoint = self.pool.entrypoint.clone();
        body.cmd = self.job.args.clone().or_else(|| self.pool.args.clone());
        let env = self.pool.env.iter().chain(&self.job.env.0);
        body.env = Some(env.map(|(name, value)| format!("{name}={value}")).collect());
        (body.open_stdin, body.stdin_once, body.attach_stdin) = (None, None, None);
        body.healthcheck = None;
        if let Some(host) = &mut body.host_config {
            host.log_config = None;
            host.mounts
                .iter_mut()
                .for_each(|mounts| mounts.retain(|m| m.target.as_deref() != Some(INIT_DIR)));
        }
        (spec.name, body)
    }

    async fn run(&self) -> Result<Sample, ClientError> {
        let (name, body) = self.body();
        let begun = Instant::now();
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let client = self.client.clone();
        let made = self.creations.spawn(async move { client.create_container(Some(options), body).await });
        let id = joined(made.await)??.id;
        let options = AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
        let output = self.client.attach_container(&id, Some(options)).await?.output;
        // As Docker's own command line: asked before the start, which takes longer than these requests do to arrive.
        let exit = self.wait(&id, "next-exit");
        let removed = self.wait(&id, "removed");
        let (first, ()) = tokio::try_join!(
            async { Ok(first_of(output, begun).await) },
            self.client.start_container(&id, None)
        )?;
        let (gone, _) = joined(removed.await)??;
        // Nothing comes of it any more if the container was gone before it was asked.
        let known = tokio::time::timeout(Duration::from_secs(1), exit).await;
        let (exited, code) = known.map_or(Ok(Ok((gone, None))), joined).flatten()?;
        Ok(Sample {
            first_output: first,
            exit: Some(exited.saturating_duration_since(begun)),
            removed: Some(gone.saturating_duration_since(begun)),
            succeeded: code == Some(0),
            ..Sample::default()
        })
    }

    /// Waits for a container; gives when, and its exit code if that could be learned.
    fn wait(
        &self,
        id: &str,
        condition: &str,
    ) -> AbortOnDropHandle<Result<(Instant, Option<i64>), ClientError>> {
        let options = WaitContainerOptionsBuilder::default().condition(condition).build();
        let mut answer = Box::pin(self.client.wait_container(id, Some(options)));
        AbortOnDropHandle::new(tokio::spawn(async move {
            let answer = answer.next().await;
            let now = Instant::now();
            match answer {
                Some(Ok(ended)) => Ok((now, Some(ended.status_code))),
                // bollard's word for any code but 0.
                Some(Err(ClientError::DockerContainerWaitError { code, .. })) => Ok((now, Some(code))),
                None | Some(Err(ClientError::DockerResponseServerError { status_code: 404, .. })) => {
                    Ok((now, None))
                }
                Some(Err(error)) => Err(error),
            }
        }))
    }

    /// Removes whatever is left of these ways. False if something may be left all the same.
    pub async fn clear(&self) -> bool {
        self.creations.close();
        self.creations.wait().await;
        for round in 0..CLEARINGS {
            match self.engine.list(INSTANCE_LABEL, Some(&self.owner.instance)).await {
                Ok(left) if left.is_empty() => return true,
                Ok(left) => {
                    for container in left {
                        let _ = self.engine.remove(&container.id).await;
                    }
                }
                Err(error) => tracing::debug!("not looked for leftovers: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100) * (round + 1)).await;
        }
        false
    }
}

/// A task's end that isn't the request's own is an error of the same kind.
fn joined<T>(ended: Result<T, JoinError>) -> Result<T, ClientError> {
    ended.map_err(|error| ClientError::IOError { err: std::io::Error::other(error) })
}

/// Reads all of it; gives when the first of it came.
async fn first_of(
    mut output: Pin<Box<dyn Stream<Item = Result<LogOutput, ClientError>> + Send>>,
    begun: Instant,
) -> Option<Duration> {
    let mut first = None;
    while let Some(Ok(_)) = output.next().await {
        first.get_or_insert_with(|| begun.elapsed());
    }
    first
}

async fn bounded(job: impl Future<Output = Result<Sample, ClientError>>) -> Result<Sample, String> {
    match tokio::time::timeout(LONGEST_JOB, job).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the job was not over after {LONGEST_JOB:?}; this is for short ones")),
    }
}

#[async_trait]
impl Runner for Plain {
    async fn one(&self) -> Result<Sample, String> {
        bounded(self.run()).await
    }
}

/// The way of `docker exec`: a container that is up, since its init waits for a START that never comes.
pub struct Exec {
    plain: Arc<Plain>,
    container: ContainerId,
    argv: Vec<String>,
    /// Dropped, it ends the container.
    _link: tokio::sync::Mutex<Link>,
}

impl Exec {
    /// Has the container brought up.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn new(plain: Arc<Plain>) -> Result<Exec, String> {
        let argv = launch::argv(&plain.image, &plain.pool, plain.job.args.as_deref());
        let argv = argv.map_err(|e| e.to_string())?;
        let up = {
            let plain = Arc::clone(&plain);
            async move {
                let engine = &plain.engine;
                let init_volume = engine.install_init(&plain.image, &plain.labels()).await?;
                let container = engine.create(&plain.spec(init_volume)).await?;
                let stream = engine.attach(&container).await?;
                engine.start(&container).await?;
                Ok::<_, EngineError>(Link::new(container, stream))
            }
        };
        let up = plain.creations.spawn(up).await.map_err(|e| e.to_string())?;
        let mut link = up.map_err(|e| e.to_string())?;
        match tokio::time::timeout(READY_PATIENCE, link.recv()).await {
            Ok(Ok(Frame::Ready)) => {}
            Ok(Ok(other)) => return Err(format!("its init said {other:?} where READY was due")),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("its init said nothing within {READY_PATIENCE:?}")),
        }
        let container = link.container().clone();
        Ok(Exec { container, argv, _link: tokio::sync::Mutex::new(link), plain })
    }

    async fn exec(&self) -> Result<Sample, ClientError> {
        let client = &self.plain.client;
        let env = self.plain.job.env.0.iter().map(|(name, value)| format!("{name}={value}"));
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(env.collect()),
            cmd: Some(self.argv.clone()),
            ..Default::default()
        };
        let begun = Instant::now();
        let id = client.create_exec(self.container.as_str(), options).await?.id;
        let first_output = match client.start_exec(&id, None).await? {
            StartExecResults::Attached { output, .. } => first_of(output, begun).await,
            StartExecResults::Detached => None,
        };
        let code = loop {
            let found = client.inspect_exec(&id).await?;
            if found.running != Some(true) {
                break found.exit_code;
            }
            tokio::time::sleep(LOOK).await;
        };
        let exit = Some(begun.elapsed());
        Ok(Sample { first_output, exit, succeeded: code == Some(0), ..Sample::default() })
    }
}

#[async_trait]
impl Runner for Exec {
    async fn one(&self) -> Result<Sample, String> {
        bounded(self.exec()).await
    }
}
