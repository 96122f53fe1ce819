//! One execution of a job in a leased container: START, output, stdin, the deadline, EXITED.
//!
//! ```text
//!   START ──► (STARTED) ──► running ──────────────► EXITED
//!                 │            │ timeout, stop         ▲
//!              FAILED          ▼        stop_grace     │
//!                          STOPSIGNAL ───────────► SIGKILL
//! ```
//!
//! If artifacts are wanted, ENDED comes before EXITED, and what is between them has a time of its own. How the job ended is
//! known then, and stays so whatever becomes of the artifacts.
//!
//! Knows no broker: what happens goes into a channel, whose capacity is the back-pressure. When the channel is full the
//! container's stream is not read, so the job's pipes fill; deadlines are kept all the same. A job that has ended may still
//! seem to run then, with its EXITED behind the output that nobody takes: so at a deadline the follower is asked to hurry
//! first.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::contract::content::File;
use crate::contract::event::Stream;
use crate::engine::link::{self, Frame, Link, LinkError};
use crate::init::wire::{CHUNK_MAX, Exited, Failed, Step};
use crate::pool::Lease;

const SIGKILL: u8 = 9;

/// How long a killed job's EXITED is waited for. It does not come if nobody takes the job's last output.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long init may take from START to STARTED, or for a piece of what comes before it. It takes a millisecond, if container and
/// engine are not stopped.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Room for output between a container and its replies: 16 frames, 1 MiB.
pub const CHANNEL: usize = 16;

/// What happens in an attempt, as it happens.
#[derive(Debug)]
pub enum Happening {
    /// The entrypoint is executing since then.
    Started(std::time::Instant),
    /// It printed.
    Output(Stream, Bytes),
    /// It is over, and a piece of the stream of its artifacts came.
    Artifact(Bytes),
}

/// How long the follower may take to make room when it was asked to hurry.
const HURRY: Duration = Duration::from_secs(2);

/// What an attempt and the rest of the worker tell each other while it runs.
#[derive(Clone, Debug, Default)]
pub struct Controls {
    /// To the attempt: the worker can't wait for it.
    pub stop: CancellationToken,
    /// To the attempt: nobody wants the job any more.
    pub cancel: CancellationToken,
    /// From the attempt, to who follows it: take what happens without waiting for anything.
    pub hurry: CancellationToken,
}

/// What to execute, and for how long at most.
#[derive(Debug)]
pub struct Plan {
    /// The START frame.
    pub start: Vec<u8>,
    /// What is put in place before.
    pub files: Vec<File>,
    /// What the job reads from stdin, if it has one.
    pub stdin: Option<Bytes>,
    /// From the entrypoint executing to the stop signal.
    pub timeout: Duration,
    /// The image's STOPSIGNAL.
    pub stop_signal: u8,
    /// From the stop signal to SIGKILL.
    pub stop_grace: Duration,
    /// How long collecting artifacts may take.
    pub collect: Duration,
}

/// Why a job was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It ran longer than it may.
    Timeout,
    /// It was cancelled.
    Cancelled,
    /// The worker can't wait for it.
    Worker,
}

/// An attempt whose entrypoint was executed, and is over.
#[derive(Debug)]
pub struct Ended {
    /// How it ended; `None` if it was killed, and its container removed before that could be learned.
    pub exited: Option<Exited>,
    /// Whether, and why, it was stopped.
    pub stopped: Option<Stopped>,
    /// How long it ran.
    pub ran: Duration,
}

/// An attempt that went another way.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// Init could not execute the entrypoint, and says why.
    #[error("{0:?}")]
    Failed(Failed),
    /// A file that the job brought could not be put in place.
    #[error("file '{path}': {failed:?}")]
    NotPlaced {
        /// Its path.
        path: String,
        /// What init says.
        failed: Failed,
    },
    /// The container was lost before its entrypoint was known to be executing.
    #[error("before the entrypoint was executing: {0}")]
    LostEarly(#[source] LinkError),
    /// The container was lost while the job ran.
    #[error("while the job ran: {0}")]
    Lost(#[source] LinkError),
}

/// Runs a job in its container. The lease is used up: when this returns the container is on its way out, or back.
///
/// # Errors
/// [`AttemptError`]; whether the job may have done something is in the variant.
pub async fn run(
    mut lease: Lease,
    plan: Plan,
    controls: &Controls,
    happenings: mpsc::Sender<Happening>,
) -> Result<Ended, AttemptError> {
    let link = &mut lease.link;
    link.send(&plan.start).await.map_err(AttemptError::LostEarly)?;
    let mut feed = Feed::new(&plan.files, plan.stdin);
    feed.next(link).await.map_err(AttemptError::LostEarly)?;
    let mut course = Course {
        begun: Instant::now(),
        plan_timeout: plan.timeout,
        started: None,
        stopped: None,
        next: None,
        killed: false,
        ended: None,
    };
    // A slot in the channel is had before a frame is taken from the stream, never after.
    let mut room = None;
    loop {
        let have_room = room.is_some();
        tokio::select! {
            permit = happenings.reserve(), if !have_room => match permit {
                Ok(permit) => room = Some(permit),
                // Nobody follows any more: the job's fate is of no use to anyone.
                Err(_) => return Err(AttemptError::Lost(LinkError::Closed(lease.container().clone()))),
            },
            frame = link.recv(), if have_room => match (frame, course.started) {
                (Ok(Frame::Started), None) => {
                    let now = Instant::now();
                    course.started = Some(now);
                    if let Some(permit) = room.take() {
                        permit.send(Happening::Started(now.into_std()));
                    }
                }
                (Ok(Frame::Output(stream, bytes)), Some(_)) => {
                    if let Some(permit) = room.take() {
                        permit.send(Happening::Output(stream, bytes));
                    }
                }
                (Ok(Frame::StdinTaken), _) => {
                    // Files come before the entrypoint, however long that takes: each piece has its time.
                    course.begun = Instant::now();
                    if let Err(e) = feed.next(link).await {
                        return course.lost(e);
                    }
                }
                (Ok(Frame::Ended(exited)), Some(_)) if course.ended.is_none() => {
                    course.collect(exited, plan.collect);
                    // Nobody waits for them.
                    if matches!(course.stopped, Some(Stopped::Cancelled | Stopped::Worker)) {
                        course.kill();
                        if let Err(e) = link.signal(SIGKILL).await {
                            return course.lost(e);
                        }
                    }
                }
                (Ok(Frame::Artifact(bytes)), Some(_)) if course.ended.is_some() => {
                    if let Some(permit) = room.take() {
                        permit.send(Happening::Artifact(bytes));
                    }
                }
                (Ok(Frame::Exited(exited)), Some(_)) => {
                    lease.ended(&exited);
                    return Ok(course.over(Some(exited)));
                }
                (Ok(Frame::Failed(failed)), None) => {
                    lease.not_executed();
                    return Err(not_begun(failed, plan.files));
                }
                (Ok(_), _) => return course.lost(LinkError::Closed(lease.container().clone())),
                (Err(e), _) => return course.lost(e),
            },
            why = told(controls), if course.can_be_stopped() => {
                let signal = if course.ended.is_some() {
                    course.kill();
                    SIGKILL
                } else {
                    course.stop(why, plan.stop_grace);
                    plan.stop_signal
                };
                if let Err(e) = link.signal(signal).await {
                    return course.lost(e);
                }
            }
            () = until(course.deadline()) => {
                if course.started.is_none() && course.stopped.is_none() {
                    return Err(AttemptError::LostEarly(LinkError::Closed(lease.container().clone())));
                }
                if course.killed {
                    return Ok(course.over(None));
                }
                // Artifacts are not dropped for that: the one that reads them is stopped first.
                let no_room = !have_room && happenings.capacity() == 0;
                if no_room && !controls.hurry.is_cancelled() && course.ended.is_none() {
                    controls.hurry.cancel();
                    course.next = Some(Instant::now() + HURRY);
                    continue;
                }
                let signal = if course.stopped.is_none() && course.ended.is_none() {
                    course.stop(Stopped::Timeout, plan.stop_grace);
                    plan.stop_signal
                } else {
                    course.kill();
                    SIGKILL
                };
                if let Err(e) = link.signal(signal).await {
                    return course.lost(e);
                }
            }
        }
    }
}

/// How far an attempt is.
struct Course {
    begun: Instant,
    plan_timeout: Duration,
    started: Option<Instant>,
    stopped: Option<Stopped>,
    /// When the next step is due, if that isn't the timeout: after a stop signal SIGKILL, after that the end of patience.
    next: Option<Instant>,
    killed: bool,
    /// How the job ended, and when, if its artifacts are being collected.
    ended: Option<(Exited, Instant)>,
}

impl Course {
    fn deadline(&self) -> Option<Instant> {
        self.next.or_else(|| match self.started {
            Some(started) => started.checked_add(self.plan_timeout),
            None => Some(self.begun + START_PATIENCE),
        })
    }

    fn stop(&mut self, why: Stopped, grace: Duration) {
        self.stopped = Some(why);
        self.next = Some(Instant::now() + grace);
    }

    fn can_be_stopped(&self) -> bool {
        if self.ended.is_some() { !self.killed } else { self.stopped.is_none() }
    }

    fn kill(&mut self) {
        self.killed = true;
        self.next = Some(Instant::now() + KILL_PATIENCE);
    }

    fn collect(&mut self, exited: Exited, patience: Duration) {
        let now = Instant::now();
        self.ended = Some((exited, now));
        self.killed = false;
        self.next = Some(now + patience);
    }

    /// The end, as far as it is known.
    fn over(&self, exited: Option<Exited>) -> Ended {
        let end = self.ended.map_or_else(Instant::now, |(_, at)| at);
        let ran = self.started.map(|started| end.saturating_duration_since(started)).unwrap_or_default();
        // What happens to who reads the artifacts is no business of the job's, which was over.
        Ended { exited: self.ended.map(|(ended, _)| ended).or(exited), stopped: self.stopped, ran }
    }

    fn lost(&self, error: LinkError) -> Result<Ended, AttemptError> {
        match (self.ended, self.started) {
            // Only artifacts are.
            (Some(_), _) => {
                tracing::warn!("while artifacts were collected: {error}");
                Ok(self.over(None))
            }
            (None, Some(_)) => Err(AttemptError::Lost(error)),
            (None, None) => Err(AttemptError::LostEarly(error)),
        }
    }
}

/// Why the entrypoint was not executed.
fn not_begun(failed: Failed, files: Vec<File>) -> AttemptError {
    let file = match failed.step {
        Step::Directory | Step::File => files.into_iter().nth(failed.item as usize),
        _ => None,
    };
    match file {
        Some(file) => AttemptError::NotPlaced { path: file.path, failed },
        None => AttemptError::Failed(failed),
    }
}

/// The job's files and after them its stdin, piece by piece.
struct Feed {
    /// What init has not been given; `None`: its end has been said, or there never was anything.
    rest: Option<VecDeque<Bytes>>,
}

impl Feed {
    fn new(files: &[File], stdin: Option<Bytes>) -> Feed {
        if files.is_empty() && stdin.is_none() {
            return Feed { rest: None };
        }
        let mut rest = VecDeque::with_capacity(2 * files.len() + 1);
        for File { path, content, mode } in files {
            rest.push_back(link::file_head(path, *mode, content.0.len()).into());
            rest.push_back(content.0.clone());
        }
        rest.extend(stdin);
        Feed { rest: Some(rest) }
    }

    async fn next(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let Some(rest) = &mut self.rest else { return Ok(()) };
        let piece = next_piece(rest);
        if piece.is_empty() {
            self.rest = None;
            return link.stdin_eof().await;
        }
        link.stdin(&piece).await
    }
}

/// As much as a frame holds; nothing at the end.
fn next_piece(rest: &mut VecDeque<Bytes>) -> Bytes {
    let mut gathered = BytesMut::new();
    while let Some(front) = rest.front_mut() {
        let part = front.split_to(front.len().min(CHUNK_MAX - gathered.len()));
        if front.is_empty() {
            rest.pop_front();
        }
        if gathered.is_empty() && (part.len() == CHUNK_MAX || rest.is_empty()) {
            return part;
        }
        gathered.extend_from_slice(&part);
        if gathered.len() == CHUNK_MAX {
            break;
        }
    }
    gathered.freeze()
}

/// Waits until the job is to end before its time.
async fn told(controls: &Controls) -> Stopped {
    tokio::select! {
        biased;
        () = controls.cancel.cancelled() => Stopped::Cancelled,
        () = controls.stop.cancelled() => Stopped::Worker,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
