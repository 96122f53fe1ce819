//! One execution of a job in a leased container: START, output, stdin, the deadline, EXITED.
//!
//! ```text
//!   START ──► (STARTED) ──► running ──────────────► EXITED
//!                 │            │ timeout, stop         ▲
//!              FAILED          ▼        stop_grace     │
//!                          STOPSIGNAL ───────────► SIGKILL
//! ```
//!
//! Knows no broker: what happens goes into a channel, whose capacity is the back-pressure. When the channel is full the
//! container's stream is not read, so the job's pipes fill; deadlines are kept all the same. A job that has ended may still
//! seem to run then, with its EXITED behind the output that nobody takes: so at a deadline the follower is asked to hurry
//! first.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::contract::event::Stream;
use crate::engine::link::{Frame, Link, LinkError};
use crate::init::wire::{CHUNK_MAX, Exited, Failed};
use crate::pool::Lease;

const SIGKILL: u8 = 9;

/// How long a killed job's EXITED is waited for. It does not come if nobody takes the job's last output.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long init may take from START to STARTED. It takes a millisecond, if container and engine are not stopped.
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
    /// What the job reads from stdin, if it has one.
    pub stdin: Option<Bytes>,
    /// From the entrypoint executing to the stop signal.
    pub timeout: Duration,
    /// The image's STOPSIGNAL.
    pub stop_signal: u8,
    /// From the stop signal to SIGKILL.
    pub stop_grace: Duration,
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
    let mut feed = Feed { rest: plan.stdin };
    feed.next(link).await.map_err(AttemptError::LostEarly)?;
    let mut course = Course {
        begun: Instant::now(),
        plan_timeout: plan.timeout,
        started: None,
        stopped: None,
        next: None,
        killed: false,
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
                (Ok(Frame::StdinTaken), _) => feed.next(link).await.map_err(|e| course.lost(e))?,
                (Ok(Frame::Exited(exited)), Some(started)) => {
                    lease.ended(&exited);
                    return Ok(Ended { exited: Some(exited), stopped: course.stopped, ran: started.elapsed() });
                }
                (Ok(Frame::Failed(failed)), None) => {
                    lease.not_executed();
                    return Err(AttemptError::Failed(failed));
                }
                (Ok(_), _) => return Err(course.lost(LinkError::Closed(lease.container().clone()))),
                (Err(e), _) => return Err(course.lost(e)),
            },
            why = told(controls), if course.stopped.is_none() => {
                course.stop(why, plan.stop_grace);
                link.signal(plan.stop_signal).await.map_err(|e| course.lost(e))?;
            }
            () = until(course.deadline()) => {
                if course.started.is_none() && course.stopped.is_none() {
                    return Err(AttemptError::LostEarly(LinkError::Closed(lease.container().clone())));
                }
                if course.killed {
                    let ran = course.started.map(|s| s.elapsed()).unwrap_or_default();
                    return Ok(Ended { exited: None, stopped: course.stopped, ran });
                }
                if !have_room && !controls.hurry.is_cancelled() {
                    controls.hurry.cancel();
                    course.next = Some(Instant::now() + HURRY);
                    continue;
                }
                let signal = if course.stopped.is_none() {
                    course.stop(Stopped::Timeout, plan.stop_grace);
                    plan.stop_signal
                } else {
                    course.killed = true;
                    course.next = Some(Instant::now() + KILL_PATIENCE);
                    SIGKILL
                };
                link.signal(signal).await.map_err(|e| course.lost(e))?;
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

    fn lost(&self, error: LinkError) -> AttemptError {
        if self.started.is_some() { AttemptError::Lost(error) } else { AttemptError::LostEarly(error) }
    }
}

/// The job's stdin, piece by piece.
struct Feed {
    /// What init has not been given; `None`: its end has been said, or there never was one.
    rest: Option<Bytes>,
}

impl Feed {
    async fn next(&mut self, link: &mut Link) -> Result<(), LinkError> {
        match &mut self.rest {
            None => Ok(()),
            Some(rest) if rest.is_empty() => {
                self.rest = None;
                link.stdin_eof().await
            }
            Some(rest) => {
                let piece = rest.split_to(rest.len().min(CHUNK_MAX));
                link.stdin(&piece).await
            }
        }
    }
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
