//! The engine over Docker's API, by bollard.
//!
//! bollard's own timeout ends with the response's headers, so each request here has one of its own around all
//! of it. It makes a new connection for each request; the attached stream is one of them.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bollard::Docker as Client;
use bollard::container::LogOutput;
use bollard::errors::Error as ClientError;
use bollard::models::{ContainerCreateBody, EventMessage, HostConfig, Mount, MountType, MountVolumeOptions};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    DownloadFromContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, UploadToContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use prometheus::{HistogramVec, IntCounterVec};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::shortcut::Shortcut;
use super::{
    Attached, ContainerId, ContainerSpec, Engine, EngineError, EngineInfo, Fault, INIT_DIR, INIT_PATH,
    INSTANCE_LABEL, Image, Listed, Op, Stop, Stops, convert, reach,
};
use crate::config::{EngineConfig, Pull};
use crate::init;
use crate::metrics::{BUCKETS, Metrics};

/// How often a removal is asked for that somebody else was at, and did not end.
const REMOVALS: usize = 3;
/// Label of the volume that holds init, and of the container that fills it.
const INIT_LABEL: &str = "prewarm.init";
/// How long another worker's filling of the init volume is waited for before its container is taken
/// for abandoned. Filling takes about 0.1 s; one that is disturbed by this is tried again.
const FILL_PATIENCE: Duration = Duration::from_secs(10);
/// How far back events are asked for.
const EVENTS_OVERLAP: Duration = Duration::from_secs(5);
/// How long a pull may take.
const PULL_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Docker, or what answers as it does.
pub struct Docker {
    client: Client,
    host: String,
    timeout: Duration,
    seconds: HistogramVec,
    errors: IntCounterVec,
    shortcut: Option<Shortcut>,
    /// Held while this worker fills the volume of init.
    filling: Mutex<()>,
}

impl Docker {
    /// Prepares to talk to the engine; [`Engine::info`] tells whether it is there.
    ///
    /// # Errors
    /// [`Fault::Unreachable`] if the address can't be one.
    pub fn new(config: &EngineConfig, metrics: &Metrics) -> Result<Docker, EngineError> {
        let (client, host) = reach::client(config)?;
        let seconds = metrics.histograms(
            "engine_request_seconds",
            "Duration of requests to the engine.",
            &["op"],
            &BUCKETS,
        );
        let errors = metrics.counters("engine_errors_total", "Requests to the engine that failed.", &["op"]);
        for op in Op::ALL {
            seconds.with_label_values(&[op.as_str()]);
            errors.with_label_values(&[op.as_str()]);
        }
        let (timeout, shortcut, filling) = (config.timeout, None, Mutex::new(()));
        Ok(Docker { client, host, timeout, seconds, errors, shortcut, filling })
    }

    /// Lets inits come to a socket of the worker's at this path, if the engine may be on this host. It works without.
    #[must_use]
    pub fn with_shortcut(mut self, path: Option<&Path>) -> Docker {
        let path = path.filter(|_| self.host.starts_with("unix://"));
        self.shortcut = path.and_then(|path| match Shortcut::open(path) {
            Ok(shortcut) => Some(shortcut),
            Err(error) => {
                let path = path.display();
                tracing::info!(%path, %error, "containers are spoken to by way of the engine alone");
                None
            }
        });
        self
    }

    /// Where the engine is.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Makes one request: bounded in time, measured, its error told apart.
    async fn ask<T>(
        &self,
        op: Op,
        subject: &str,
        timeout: Duration,
        request: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, EngineError> {
        let begun = Instant::now();
        let answer = match tokio::time::timeout(timeout, request).await {
            Ok(answer) => answer.map_err(|e| fault(&self.host, self.timeout, e)),
            Err(_) => Err(Fault::Timeout(timeout)),
        };
        self.seconds.with_label_values(&[op.as_str()]).observe(begun.elapsed().as_secs_f64());
        answer.map_err(|fault| {
            self.errors.with_label_values(&[op.as_str()]).inc();
            EngineError { op, subject: subject.into(), fault }
        })
    }

    async fn inspect(&self, name: &str) -> Result<Image, EngineError> {
        let found = self.ask(Op::Inspect, name, self.timeout, self.client.inspect_image(name)).await?;
        Ok(convert::image(name, found))
    }

    async fn pull(&self, name: &str) -> Result<(), EngineError> {
        // Without a tag the API pulls every tag of the repository.
        let tagged = name.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
        let from = if tagged { name.to_owned() } else { format!("{name}:latest") };
        let options = CreateImageOptionsBuilder::default().from_image(&from).build();
        let progress = self.client.create_image(Some(options), None, None);
        self.ask(Op::Pull, name, PULL_TIMEOUT, progress.try_for_each(|_| async { Ok(()) })).await
    }

    /// Compares what the volume holds with our init, and writes it if it differs.
    async fn fill(&self, helper: &ContainerId) -> Result<(), EngineError> {
        let options = DownloadFromContainerOptionsBuilder::default().path(INIT_PATH).build();
        let read = self.client.download_from_container(helper.as_str(), Some(options));
        let found = self
            .ask(
                Op::InstallInit,
                INIT_PATH,
                self.timeout,
                read.try_fold(Vec::new(), |mut all, part| async move {
                    all.extend_from_slice(&part);
                    Ok(all)
                }),
            )
            .await;
        match found {
            Ok(archive) if holds_init(&archive) => return Ok(()),
            Ok(_) | Err(EngineError { fault: Fault::NotFound(_), .. }) => {}
            Err(e) => return Err(e),
        }
        let options = UploadToContainerOptionsBuilder::default().path(INIT_DIR).build();
        let body = bollard::body_full(Bytes::from(init_archive()));
        let write = self.client.upload_to_container(helper.as_str(), Some(options), body);
        self.ask(Op::InstallInit, INIT_PATH, self.timeout, write).await
    }

    /// The helper for this volume that bears this worker's own labels, if the engine has one.
    async fn own_helper(
        &self,
        volume: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Option<ContainerId>, EngineError> {
        let Some(instance) = labels.get(INSTANCE_LABEL) else { return Ok(None) };
        let of_volume = |found: &Listed| found.labels.get(INIT_LABEL).is_some_and(|v| v == volume);
        let own = self.list(INSTANCE_LABEL, Some(instance)).await?;
        Ok(own.into_iter().find(of_volume).map(|found| found.id))
    }

    async fn create_named(
        &self,
        name: &str,
        op: Op,
        body: ContainerCreateBody,
    ) -> Result<ContainerId, EngineError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let made =
            self.ask(op, name, self.timeout, self.client.create_container(Some(options), body)).await?;
        Ok(ContainerId::new(&made.id))
    }
}

#[async_trait]
impl Engine for Docker {
    async fn info(&self) -> Result<EngineInfo, EngineError> {
        let info = self.ask(Op::Info, "", self.timeout, self.client.info()).await?;
        let engine = info.architecture.unwrap_or_default();
        let ours = std::env::consts::ARCH;
        if convert::architecture(&engine) != ours {
            return Err(EngineError {
                op: Op::Info,
                subject: self.host.clone(),
                fault: Fault::Architecture { engine, worker: ours.into() },
            });
        }
        Ok(EngineInfo {
            version: info.server_version.unwrap_or_default(),
            architecture: engine,
            cpus: info.ncpu.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            memory: info.mem_total.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            apparmor: info
                .security_options
                .unwrap_or_default()
                .iter()
                .any(|o| o.starts_with("name=apparmor")),
        })
    }

    async fn image(&self, name: &str, pull: Pull) -> Result<Image, EngineError> {
        if pull != Pull::Always {
            match self.inspect(name).await {
                Err(EngineError { fault: Fault::NotFound(_), .. }) if pull == Pull::Missing => {}
                answer => return answer,
            }
        }
        self.pull(name).await?;
        self.inspect(name).await
    }

    async fn install_init(
        &self,
        image: &Image,
        labels: &BTreeMap<String, String>,
    ) -> Result<String, EngineError> {
        let volume = init_volume();
        let name = format!("{volume}-fill");
        let body = ContainerCreateBody {
            image: Some(image.id.clone()),
            entrypoint: Some(vec![INIT_PATH.into()]),
            labels: Some(labels.clone().into_iter().chain([(INIT_LABEL.into(), volume.clone())]).collect()),
            host_config: Some(HostConfig {
                network_mode: Some("none".into()),
                mounts: Some(vec![Mount {
                    typ: Some(MountType::VOLUME),
                    source: Some(volume.clone()),
                    target: Some(INIT_DIR.into()),
                    volume_options: Some(MountVolumeOptions {
                        no_copy: Some(true),
                        labels: Some(HashMap::from([(INIT_LABEL.into(), env!("CARGO_PKG_VERSION").into())])),
                        ..Default::default()
                    }),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        };
        // The helper's fixed name is the lock: of two workers that come at once, one fills the volume
        // and the other then finds it filled. Pools of this worker take turns, so that a helper with our labels, while
        // we have none, is known to be left over: the engine went away while it was made or before it was removed.
        let _turn = self.filling.lock().await;
        let begun = Instant::now();
        let helper = loop {
            match self.create_named(&name, Op::InstallInit, body.clone()).await {
                Ok(id) => break id,
                Err(EngineError { fault: Fault::Refused(m), .. }) if m.contains("already in use") => {
                    tracing::debug!("the volume of init is being filled by somebody else: {m}");
                    if let Some(left) = self.own_helper(&volume, labels).await? {
                        self.remove(&left).await?;
                        continue;
                    }
                    if begun.elapsed() > FILL_PATIENCE {
                        self.remove(&ContainerId::new(&name)).await?;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(e) => return Err(e),
            }
        };
        let filled = self.fill(&helper).await;
        self.remove(&helper).await?;
        filled.map(|()| volume)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, EngineError> {
        self.create_named(&spec.name, Op::Create, convert::create_body(spec)).await
    }

    async fn attach(&self, id: &ContainerId) -> Result<Attached, EngineError> {
        let options = AttachContainerOptionsBuilder::default()
            .stream(true)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .build();
        let streams = self
            .ask(
                Op::Attach,
                &id.to_string(),
                self.timeout,
                self.client.attach_container(id.as_str(), Some(options)),
            )
            .await?;
        let container = id.clone();
        let output = streams.output.filter_map(move |item| {
            let kept = match item {
                Ok(LogOutput::StdOut { message }) => Some(Ok(message)),
                // Init uses stderr for one thing: to say why it can't go on.
                Ok(other) => {
                    tracing::warn!(%container, "init says: {}", String::from_utf8_lossy(other.as_ref()).trim_end());
                    None
                }
                Err(e) => Some(Err(std::io::Error::other(chain(&e)))),
            };
            std::future::ready(kept)
        });
        Ok(Attached { input: streams.input, output: Box::pin(output) })
    }

    async fn start(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.ask(Op::Start, &id.to_string(), self.timeout, self.client.start_container(id.as_str(), None))
            .await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), EngineError> {
        let subject = id.to_string();
        let mut in_progress = None;
        for _ in 0..REMOVALS {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            let removal = self.client.remove_container(id.as_str(), Some(options));
            match self.ask(Op::Remove, &subject, self.timeout, removal).await {
                // AutoRemove may have been faster, or be at it.
                Err(EngineError { fault: Fault::NotFound(_), .. }) => return Ok(()),
                Err(EngineError { op, subject, fault: Fault::Refused(m) })
                    if m.contains("already in progress") =>
                {
                    in_progress = Some(EngineError { op, subject, fault: Fault::Refused(m) });
                }
                other => return other,
            }
            // The end of a removal, whether it succeeded or not: that is seen by asking again.
            let options = WaitContainerOptionsBuilder::default().condition("removed").build();
            let wait =
                self.client.wait_container(id.as_str(), Some(options)).try_for_each(|_| async { Ok(()) });
            match self.ask(Op::Remove, &subject, self.timeout, tolerate_exit_codes(wait)).await {
                Err(EngineError { fault: Fault::NotFound(_), .. }) => return Ok(()),
                other => other?,
            }
        }
        in_progress.map_or(Ok(()), Err)
    }

    fn shortcut(&self) -> Option<&Shortcut> {
        self.shortcut.as_ref()
    }

    async fn list(&self, label: &str, value: Option<&str>) -> Result<Vec<Listed>, EngineError> {
        let filter = value.map_or_else(|| label.to_owned(), |v| format!("{label}={v}"));
        let filters = HashMap::from([("label", vec![filter.as_str()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found =
            self.ask(Op::List, &filter, self.timeout, self.client.list_containers(Some(options))).await?;
        Ok(found.into_iter().filter_map(convert::listed).collect())
    }

    async fn stops(&self, label: &str, value: &str) -> Result<Stops, EngineError> {
        let label = format!("{label}={value}");
        let filters = HashMap::from([
            ("type", vec!["container"]),
            ("event", vec!["die", "pause"]),
            ("label", vec![label.as_str()]),
        ]);
        // Nothing is sent before somebody asks for the first event: what happened since then is asked for too, and some more, as
        // the engine's clock may be another. Hearing of something twice does no harm.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = since.saturating_sub(EVENTS_OVERLAP).as_secs().to_string();
        let options = EventsOptionsBuilder::default().filters(&filters).since(&since).build();
        let (host, timeout) = (self.host.clone(), self.timeout);
        let errors = self.errors.with_label_values(&[Op::Events.as_str()]);
        let stops = self.client.events(Some(options)).filter_map(move |event| {
            let found = match event {
                Ok(event) => stop(event).map(Ok),
                Err(e) => {
                    errors.inc();
                    let fault = fault(&host, timeout, e);
                    Some(Err(EngineError { op: Op::Events, subject: "of containers".into(), fault }))
                }
            };
            std::future::ready(found)
        });
        Ok(Box::pin(stops))
    }
}

fn fault(host: &str, timeout: Duration, error: ClientError) -> Fault {
    match error {
        ClientError::DockerResponseServerError { status_code: 404, message } => Fault::NotFound(message),
        ClientError::DockerResponseServerError { message, .. } => Fault::Refused(message),
        ClientError::DockerStreamError { error } => Fault::Refused(error),
        ClientError::RequestTimeoutError => Fault::Timeout(timeout),
        ClientError::HyperLegacyError { .. }
        | ClientError::HyperResponseError { .. }
        | ClientError::SocketNotFoundError(_)
        | ClientError::IOError { .. } => Fault::Unreachable { host: host.to_owned(), reason: chain(&error) },
        other => Fault::Refused(chain(&other)),
    }
}

/// Which container an event is about, and what happened to it.
fn stop(event: EventMessage) -> Option<(ContainerId, Stop)> {
    let stop = if event.action.as_deref() == Some("pause") { Stop::Paused } else { Stop::Ended };
    Some((ContainerId::new(&event.actor?.id?), stop))
}

/// bollard gives a container's non-zero exit code as an error of the wait.
async fn tolerate_exit_codes(wait: impl Future<Output = Result<(), ClientError>>) -> Result<(), ClientError> {
    match wait.await {
        Err(ClientError::DockerContainerWaitError { .. }) => Ok(()),
        other => other,
    }
}

/// The volume for this very init, and what is beside it: for another build it has another name.
fn init_volume() -> String {
    let digest = Sha256::digest(init_archive());
    let short: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("prewarm-init-{short}")
}

fn init_archive() -> Vec<u8> {
    // What the worker's socket is mounted on, which takes something that is there. Where init is, this is too: it comes first.
    // Every user runs init; nobody writes it.
    archive(&[("shortcut", 0o444, &[]), ("init", 0o555, init::BINARY)])
}

/// Of files with these names, modes and contents.
fn archive(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let written = files.iter().try_for_each(|(name, mode, content)| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        archive.append_data(&mut header, name, *content)
    });
    // Writing to memory has no way to fail.
    written.and_then(|()| archive.into_inner()).unwrap_or_default()
}

fn holds_init(archive: &[u8]) -> bool {
    use std::io::Read;
    let mut archive = tar::Archive::new(archive);
    let first = archive.entries().ok().and_then(|mut entries| entries.next());
    let Some(Ok(mut entry)) = first else { return false };
    let executable = entry.header().mode().is_ok_and(|m| m & 0o555 == 0o555);
    let mut content = Vec::new();
    executable && entry.read_to_end(&mut content).is_ok() && content == init::BINARY
}

/// An error with all that caused it: hyper's own text says only that there was one.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_recognised_and_nothing_else_is() {
        // As the engine gives it of one file.
        let good = archive(&[("init", 0o555, init::BINARY)]);
        assert!(holds_init(&good));
        let mut other = good.clone();
        other[512] ^= 1;
        assert!(!holds_init(&other));
        assert!(!holds_init(&good[..good.len() / 2]));
        assert!(!holds_init(&[]));
    }
}
