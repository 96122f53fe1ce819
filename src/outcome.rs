//! Pure: what an attempt came to, what the publisher is told of it, and what becomes of the delivery. Every error that a
//! job can meet ends here.

use std::time::Duration;

use crate::attempt::{AttemptError, Ended, Stopped};
use crate::contract::brief;
use crate::contract::event::{Error, ErrorKind, Status};
use crate::contract::job::Rejection;
use crate::contract::topology::RETRY_DELAYS;
use crate::init::wire::{End, Exited, Failed, Step};
use crate::pool::LeaseError;
use crate::redact::Secrets;

const SIGKILL: u8 = 9;
const ENOENT: i32 = 2;
const EIO: i32 = 5;
const E2BIG: i32 = 7;
const ENOEXEC: i32 = 8;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The job had its run, well or badly: that is its own affair.
    Ran(Verdict),
    /// The message is at fault.
    Rejected(Rejection),
    /// We are.
    Trouble(Error),
    /// We are: its container was lost when it was told to start the job. Idle containers may die at any moment, this one in that of its
    /// lease; or it was cut off, and has begun.
    PerhapsBegun(Error),
    /// The worker is stopping, and the job has not begun.
    NotBegun,
    /// Somebody cancelled the job before it had begun.
    Cancelled,
}

/// How a job's run is judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// For the result.
    pub status: Status,
    /// How the entrypoint ended, if that is known.
    pub end: Option<End>,
    /// What init counted, if it could.
    pub exited: Option<Exited>,
    /// Whether the kernel killed one of the job's processes for memory.
    pub oom_killed: bool,
    /// What to say beside the exit code.
    pub error: Option<Error>,
}

/// What becomes of the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Result, then ack.
    Done,
    /// Result, a copy with the reason in the queue of dead letters, then ack.
    DeadLetter,
    /// A copy to the delay queue that says what was met so far, then ack.
    Retry(Duration, Met),
    /// A copy to the delay queue as it is, for a job that isn't to begin now, then ack. No attempt.
    Later(Duration, Met),
    /// Back to the queue as it is.
    HandBack,
    /// Back to the queue, as an attempt.
    Again,
}

/// How many attempts ended badly so far. Deliveries that were handed back or lost with their channel are none of these, though
/// each makes the attempt's number grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Trouble was ours.
    pub troubles: u32,
    /// The job failed by itself.
    pub failures: u32,
}

/// How often a message must not have been given out before, for a job whose container was lost early to be handed back at once.
const FRESH_CONTAINERS: u32 = 2;

/// How often a job may be tried.
#[derive(Clone, Copy, Debug)]
pub struct Tries<'a> {
    /// Attempts in all, when the trouble is ours.
    pub ours: u32,
    /// Attempts in all, when the job itself fails.
    pub own: u32,
    /// How long the job waits in between; the last one stands for all that follow.
    pub delays: &'a [Duration],
}

/// What becomes of a delivery with this outcome, when earlier attempts have met that much, and the message was given out so often before.
pub fn disposition(outcome: &Outcome, met: Met, given_out: u32, tries: Tries<'_>) -> Disposition {
    let retry = |now: Met| {
        let step = met.troubles.saturating_add(met.failures) as usize;
        Disposition::Retry(*tries.delays.get(step).or(tries.delays.last()).unwrap_or(&RETRY_DELAYS[0]), now)
    };
    let failed = Met { failures: met.failures.saturating_add(1), ..met };
    let troubled = Met { troubles: met.troubles.saturating_add(1), ..met };
    match outcome {
        Outcome::Ran(verdict) if verdict.status.is_failure() && failed.failures < tries.own => retry(failed),
        Outcome::Ran(_) | Outcome::Cancelled => Disposition::Done,
        Outcome::Rejected(_) => Disposition::DeadLetter,
        Outcome::NotBegun => Disposition::HandBack,
        Outcome::PerhapsBegun(_) if given_out < FRESH_CONTAINERS => Disposition::Again,
        Outcome::Trouble(_) | Outcome::PerhapsBegun(_) if troubled.troubles < tries.ours => retry(troubled),
        Outcome::Trouble(_) | Outcome::PerhapsBegun(_) => Disposition::DeadLetter,
    }
}

impl Outcome {
    /// Judges an attempt. `executable` is the argument vector's first; `timeout` what the job was allowed.
    pub fn of(attempt: Result<Ended, AttemptError>, executable: &str, timeout: Duration) -> Outcome {
        match attempt {
            Ok(Ended { stopped: Some(Stopped::Worker), exited, .. }) if !finished_anyway(exited) => {
                trouble(ErrorKind::WorkerStopped, "the worker was stopped before the job ended".into())
            }
            Ok(Ended { stopped: None, exited: Some(exited), .. })
                if exited.interfered && exited.end != End::Code(0) =>
            {
                let message =
                    "the container was stopped from outside, by its engine or by hand, while the job ran";
                trouble(ErrorKind::ContainerLost, message.into())
            }
            Ok(ended) => Outcome::Ran(verdict(&ended, timeout)),
            Err(AttemptError::Failed(failed)) => not_executed(failed, executable),
            Err(AttemptError::NotPlaced { path, failed }) => not_placed(&path, failed),
            // It may have been executing all the same: init's word of it may be what was lost.
            Err(lost @ AttemptError::LostEarly(_)) => {
                let message = format!("the container was lost {lost}");
                Outcome::PerhapsBegun(Error { kind: ErrorKind::ContainerLost, message })
            }
            Err(lost @ AttemptError::Lost(_)) => {
                trouble(ErrorKind::ContainerLost, format!("the container was lost {lost}"))
            }
        }
    }

    /// The same, without these in its words.
    #[must_use]
    pub fn masked(mut self, secrets: &Secrets) -> Outcome {
        match &mut self {
            Outcome::Ran(Verdict { error: Some(error), .. })
            | Outcome::Trouble(error)
            | Outcome::PerhapsBegun(error) => error.message = secrets.mask(&error.message),
            Outcome::Rejected(rejection) => rejection.message = secrets.mask(&rejection.message),
            Outcome::Ran(_) | Outcome::NotBegun | Outcome::Cancelled => {}
        }
        self
    }

    /// A job that got no container.
    pub fn no_container(error: &LeaseError) -> Outcome {
        match error {
            // Nothing failed: the worker drains, or the host is full and others may have room. No attempt was made.
            LeaseError::Closed | LeaseError::Timeout { cause: None, .. } => Outcome::NotBegun,
            LeaseError::Unknown(_) | LeaseError::Timeout { .. } => {
                trouble(ErrorKind::NoContainer, error.to_string())
            }
        }
    }
}

/// What the result of a cancelled job says.
pub fn cancelled() -> Error {
    Error { kind: ErrorKind::Cancelled, message: "the job was cancelled".into() }
}

fn trouble(kind: ErrorKind, message: String) -> Outcome {
    Outcome::Trouble(Error { kind, message })
}

/// A job that took the stop signal for what it is and still exited with 0 has done its work.
fn finished_anyway(exited: Option<Exited>) -> bool {
    exited.is_some_and(|e| e.end == End::Code(0))
}

fn verdict(ended: &Ended, timeout: Duration) -> Verdict {
    let end = ended.exited.map(|e| e.end);
    let oom_killed = ended.exited.is_some_and(|e| e.oom_kills > 0);
    let (status, error) = match (ended.stopped, end) {
        (Some(Stopped::Timeout), _) => {
            let message =
                format!("the job was stopped after its timeout of {}", humantime::format_duration(timeout));
            (Status::TimedOut, Some(Error { kind: ErrorKind::Timeout, message }))
        }
        (Some(Stopped::Cancelled), _) => (Status::Cancelled, Some(cancelled())),
        (_, Some(End::Code(0))) => (Status::Succeeded, None),
        // The kernel kills by SIGKILL; a shell passes on its child's as 128 + 9.
        (_, Some(End::Signal(SIGKILL) | End::Code(137))) if oom_killed => {
            let message = "the container reached its memory limit and the kernel killed the job; raise the pool's `memory`";
            (Status::Failed, Some(Error { kind: ErrorKind::OutOfMemory, message: message.into() }))
        }
        _ => (Status::Failed, None),
    };
    Verdict { status, end, exited: ended.exited, oom_killed, error }
}

/// Most characters of a name in an error: it may be as long as START takes, and is in the result, its copies and what is
/// remembered.
const NAME_MAX: usize = 400;

fn not_executed(failed: Failed, executable: &str) -> Outcome {
    let slash = executable.contains('/');
    let executable = brief(executable, NAME_MAX);
    let (code, kind, message) = match (failed.step, failed.errno) {
        (Step::Lookup | Step::Exec, ENOENT) if slash => {
            (127, ErrorKind::NotFound, format!("exec: \"{executable}\": no such file or directory"))
        }
        (Step::Lookup | Step::Exec, ENOENT) => {
            (127, ErrorKind::NotFound, format!("exec: \"{executable}\": executable file not found in $PATH"))
        }
        (Step::Lookup | Step::Exec, EACCES) => {
            (126, ErrorKind::NotExecutable, format!("exec: \"{executable}\": permission denied"))
        }
        (Step::Exec, ENOEXEC) => {
            (126, ErrorKind::NotExecutable, format!("exec: \"{executable}\": exec format error"))
        }
        (Step::Exec, E2BIG) => (
            126,
            ErrorKind::NotExecutable,
            format!("exec: \"{executable}\": arguments and environment are too long"),
        ),
        (Step::Lookup | Step::Exec, errno) => {
            let os = std::io::Error::from_raw_os_error(errno);
            (126, ErrorKind::NotExecutable, format!("exec: \"{executable}\": {os}"))
        }
        (step, errno) => {
            let os = std::io::Error::from_raw_os_error(errno);
            return trouble(
                ErrorKind::NoContainer,
                format!("init could not start the job at step {step:?}: {os}"),
            );
        }
    };
    Outcome::Ran(Verdict {
        status: Status::Failed,
        end: Some(End::Code(code)),
        exited: None,
        oom_killed: false,
        error: Some(Error { kind, message }),
    })
}

/// A file that the job brought is not in its place. Most often its user may not put it there, and never will.
fn not_placed(path: &str, failed: Failed) -> Outcome {
    let os = std::io::Error::from_raw_os_error(failed.errno);
    let what = if failed.step == Step::Directory {
        "its directory can't be entered or made"
    } else {
        "it can't be made there"
    };
    let message = format!("'{path}' can't be put in place by the job's user: {what}: {os}");
    match failed.errno {
        EIO | ENOMEM | ENFILE | EMFILE => trouble(ErrorKind::NoContainer, format!("files: {message}")),
        _ => Outcome::Rejected(Rejection::of("files", message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(end: End, oom_kills: u32) -> Exited {
        Exited { end, left_behind: false, interfered: false, oom_kills, cpu_us: 0, max_rss: 0 }
    }

    fn ran(end: End, oom_kills: u32, stopped: Option<Stopped>) -> Outcome {
        let ended = Ended { exited: Some(exited(end, oom_kills)), stopped, ran: Duration::ZERO };
        Outcome::of(Ok(ended), "x", Duration::from_secs(60))
    }

    fn status(outcome: &Outcome) -> (Status, Option<ErrorKind>) {
        let Outcome::Ran(v) = outcome else { panic!("{outcome:?}") };
        (v.status, v.error.as_ref().map(|e| e.kind))
    }

    #[test]
    fn a_jobs_own_end_is_never_our_trouble() {
        assert_eq!(status(&ran(End::Code(0), 0, None)), (Status::Succeeded, None));
        assert_eq!(status(&ran(End::Code(3), 0, None)), (Status::Failed, None));
        assert_eq!(status(&ran(End::Signal(11), 0, None)), (Status::Failed, None));
        assert_eq!(
            status(&ran(End::Code(0), 2, None)),
            (Status::Succeeded, None),
            "a child's OOM need not end the job"
        );
        assert_eq!(status(&ran(End::Signal(9), 1, None)), (Status::Failed, Some(ErrorKind::OutOfMemory)));
        assert_eq!(status(&ran(End::Code(137), 1, None)), (Status::Failed, Some(ErrorKind::OutOfMemory)));
        assert_eq!(status(&ran(End::Signal(9), 0, None)), (Status::Failed, None));
        assert_eq!(
            status(&ran(End::Code(0), 0, Some(Stopped::Timeout))),
            (Status::TimedOut, Some(ErrorKind::Timeout))
        );
        assert!(matches!(ran(End::Signal(15), 0, Some(Stopped::Worker)), Outcome::Trouble(_)));
        assert_eq!(status(&ran(End::Code(0), 0, Some(Stopped::Worker))), (Status::Succeeded, None));
        let cancelled = Some(ErrorKind::Cancelled);
        assert_eq!(
            status(&ran(End::Signal(15), 0, Some(Stopped::Cancelled))),
            (Status::Cancelled, cancelled)
        );
    }

    #[test]
    fn a_job_that_was_stopped_past_us_did_not_fail() {
        let ended = |end, stopped| {
            let exited = Exited { interfered: true, ..exited(end, 0) };
            let ended = Ended { exited: Some(exited), stopped, ran: Duration::ZERO };
            Outcome::of(Ok(ended), "x", Duration::from_secs(60))
        };
        assert!(matches!(ended(End::Signal(15), None), Outcome::Trouble(_)));
        assert!(matches!(ended(End::Code(143), None), Outcome::Trouble(_)));
        assert_eq!(status(&ended(End::Code(0), None)), (Status::Succeeded, None), "it had done its work");
        assert_eq!(status(&ended(End::Signal(9), Some(Stopped::Timeout))).0, Status::TimedOut);
    }

    #[test]
    fn docker_s_exit_codes_for_what_can_t_be_executed() {
        for (step, errno, exe, code, words) in [
            (Step::Lookup, ENOENT, "nope", 127, "\"nope\": executable file not found in $PATH"),
            (Step::Exec, ENOENT, "/nope", 127, "\"/nope\": no such file"),
            (Step::Lookup, EACCES, "/etc/passwd", 126, "\"/etc/passwd\": permission denied"),
            (Step::Exec, ENOEXEC, "/x", 126, "exec format error"),
            (Step::Exec, 26, "/x", 126, "busy"),
        ] {
            let outcome =
                Outcome::of(Err(AttemptError::Failed(Failed::at(step, errno))), exe, Duration::ZERO);
            let Outcome::Ran(v) = outcome else { panic!("{step:?}") };
            assert_eq!((v.status, v.end), (Status::Failed, Some(End::Code(code))));
            assert!(v.error.as_ref().is_some_and(|e| e.message.contains(words)), "{:?}", v.error);
        }
        let fork = AttemptError::Failed(Failed::at(Step::Fork, 11));
        assert!(matches!(Outcome::of(Err(fork), "x", Duration::ZERO), Outcome::Trouble(_)));
    }

    #[test]
    fn a_file_that_has_no_place_is_the_message_s_fault_unless_the_machine_is_short_of_something() {
        let placed = |step, errno| {
            let failed = Failed { step, errno, item: 2 };
            Outcome::of(Err(AttemptError::NotPlaced { path: "/a/b".into(), failed }), "x", Duration::ZERO)
        };
        for (step, errno, words) in [(Step::Directory, 20, "directory"), (Step::File, 30, "Read-only")] {
            let Outcome::Rejected(r) = placed(step, errno) else { panic!("{step:?}") };
            assert!(r.message.contains("/a/b") && r.message.contains(words), "{r}");
            assert_eq!(r.field.as_deref(), Some("files"));
        }
        assert!(matches!(placed(Step::File, ENOMEM), Outcome::Trouble(_)));
    }

    const NEW: Met = Met { troubles: 0, failures: 0 };

    /// The outcomes' dispositions one after the other, until there is no retry.
    fn course(outcome: &Outcome, tries: Tries<'_>) -> Vec<Disposition> {
        let mut met = NEW;
        let mut course = Vec::new();
        loop {
            course.push(disposition(outcome, met, 0, tries));
            match course.last() {
                Some(Disposition::Retry(_, now)) => met = *now,
                _ => return course,
            }
        }
    }

    fn waits(course: &[Disposition]) -> Vec<Duration> {
        let wait = |disposition: &Disposition| match disposition {
            Disposition::Retry(delay, _) => Some(*delay),
            _ => None,
        };
        course.iter().filter_map(wait).collect()
    }

    #[test]
    fn one_disposition_for_each_outcome() {
        let four = Tries { ours: 4, own: 1, delays: &RETRY_DELAYS };
        let ours = Outcome::Trouble(Error { kind: ErrorKind::NoContainer, message: String::new() });
        let settled = |outcome: &Outcome| disposition(outcome, NEW, 0, four);
        assert_eq!(settled(&ran(End::Code(1), 0, None)), Disposition::Done);
        assert_eq!(settled(&Outcome::Rejected(Rejection::of("env", ""))), Disposition::DeadLetter);
        assert_eq!(settled(&Outcome::NotBegun), Disposition::HandBack);
        assert_eq!(settled(&Outcome::Cancelled), Disposition::Done);
        let seven = course(&ours, Tries { ours: 7, ..four });
        assert_eq!(waits(&seven), [1, 10, 60, 300, 300, 300].map(Duration::from_secs));
        assert_eq!(seven.last(), Some(&Disposition::DeadLetter));
        let own = [Duration::from_millis(10), Duration::from_secs(3)];
        let twice = course(&ours, Tries { ours: 4, delays: &own, ..four });
        assert_eq!(waits(&twice), [own[0], own[1], own[1]], "the last one again and again");
        assert_eq!(course(&ours, four).len(), 4, "so many attempts in all");
        assert_eq!(course(&ours, Tries { ours: 1, ..four }), [Disposition::DeadLetter]);
    }

    #[test]
    fn only_what_was_met_counts_and_not_how_often_a_message_was_given_out() {
        let four = Tries { ours: 4, own: 3, delays: &RETRY_DELAYS };
        let ours = Outcome::Trouble(Error { kind: ErrorKind::ContainerLost, message: String::new() });
        let first = Disposition::Retry(RETRY_DELAYS[0], Met { troubles: 1, failures: 0 });
        assert_eq!(disposition(&ours, NEW, 19, four), first, "after a long outage");
        let own = Disposition::Retry(RETRY_DELAYS[0], Met { troubles: 0, failures: 1 });
        assert_eq!(disposition(&ran(End::Code(1), 0, None), NEW, 19, four), own);
        let met = Met { troubles: 3, failures: 1 };
        let both = Disposition::Retry(RETRY_DELAYS[3], Met { troubles: 3, failures: 2 });
        assert_eq!(disposition(&ran(End::Code(1), 0, None), met, 0, four), both, "each has its own bound");
        assert_eq!(disposition(&ours, met, 0, four), Disposition::DeadLetter);
    }

    #[test]
    fn a_job_that_may_have_begun_is_another_attempt() {
        let gone = crate::engine::ContainerId::new("c");
        let lost = AttemptError::LostEarly(crate::engine::link::LinkError::Closed(gone));
        let outcome = Outcome::of(Err(lost), "x", Duration::ZERO);
        let four = Tries { ours: 4, own: 1, delays: &RETRY_DELAYS };
        let after = [0, 1, 2].map(|given_out| disposition(&outcome, NEW, given_out, four));
        let later = Disposition::Retry(RETRY_DELAYS[0], Met { troubles: 1, failures: 0 });
        assert_eq!(after, [Disposition::Again, Disposition::Again, later]);
    }

    #[test]
    fn a_job_s_own_failure_is_retried_if_it_asks_for_that() {
        let tries = Tries { ours: 1, own: 3, delays: &RETRY_DELAYS };
        for failing in [ran(End::Code(1), 0, None), ran(End::Signal(9), 0, Some(Stopped::Timeout))] {
            let course = course(&failing, tries);
            assert_eq!(waits(&course), [RETRY_DELAYS[0], RETRY_DELAYS[1]]);
            assert_eq!(course.last(), Some(&Disposition::Done));
        }
        assert_eq!(course(&ran(End::Code(0), 0, None), tries), [Disposition::Done]);
        assert_eq!(course(&ran(End::Signal(15), 0, Some(Stopped::Cancelled)), tries), [Disposition::Done]);
    }
}
