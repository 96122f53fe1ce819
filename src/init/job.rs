//! One job: its process, its pipes, its end.

use crate::artifacts::Wanted;
use crate::child::Surroundings;
use crate::input::Input;
use crate::output::Output;
use crate::sandbox::{Sandbox, World};
use crate::sys::{self, Environment, Errno, Fd, Fork, Pid, Poll, Reaped, Status, To};
use crate::wire::{CHUNK_MAX, End, Exited, Failed, Kind, StartHead, Step};
use crate::{Quit, child, slot};

/// How long processes that were sent SIGKILL may take to be gone. Where init may not kill everything (it isn't root
/// and the job ran a set-user-id program), it is likely that one never got the signal.
const PATIENCE_MS: u64 = 100;

/// The same where nothing can refuse the signal, only take its time: freeing gigabytes, or waiting for a disk.
const LONG_PATIENCE_MS: u64 = 10_000;

/// Whom init can kill when a job is over.
#[derive(Clone, Copy)]
pub struct Reach {
    everyone: bool,
    patience_ms: u64,
}

impl Reach {
    pub fn of_this_process() -> Reach {
        let everyone = sys::is_first_process();
        let sure = everyone && sys::may_kill_anyone();
        Reach { everyone, patience_ms: if sure { LONG_PATIENCE_MS } else { PATIENCE_MS } }
    }
}

/// Whether there is more to do for a job.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Underway,
    /// Nothing of it is left but the artifacts that are wanted.
    Drained,
    Over,
}

/// Where a job is: see the diagram in `main.rs`.
#[derive(Clone, Copy)]
enum Phase {
    /// The entrypoint is alive: not executed as long as there is a `report`, then running.
    Running,
    /// It ended, and what it left is being killed.
    Killing { end: End, deadline_ms: u64 },
    /// Nothing runs any more; the pipes may still hold output.
    Draining { end: End },
    /// A process of ours reads its artifacts.
    Collecting { end: End },
}

/// The job's stdin.
enum Stdin {
    /// `/dev/null`: no frames for it.
    None,
    Open(Fd),
    /// STDIN_EOF came; the pipe is closed once the chunk is in it.
    Ending(Fd),
    /// The job closed its end: what comes is dropped, and acknowledged, as if it had been read.
    Broken,
    /// STDIN_EOF is done: no more frames for it.
    Ended,
}

/// One of the job's output streams.
struct Stream {
    kind: Kind,
    pipe: Option<Fd>,
    /// While draining: how many bytes are left of those that the pipe held when the last process had ended. Somebody
    /// else may have the pipe open and go on writing, which is no longer the job's output.
    left: usize,
}

impl Stream {
    /// Reads once into `output`, which must have room, and notices the end.
    fn pump(&mut self, output: &mut Output, limit: usize) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        match output.fill(self.kind, pipe, limit) {
            Ok(n) if n > 0 => n,
            Err(Errno::AGAIN) => 0,
            _ => {
                self.pipe = None;
                0
            }
        }
    }

    /// Moves what is left into `output`. Whether that was all.
    fn drain(&mut self, output: &mut Output) -> Result<bool, Quit> {
        while self.left > 0 {
            if !output.has_room() {
                output.flush()?;
            }
            if !output.has_room() {
                return Ok(false);
            }
            match self.pump(output, self.left) {
                0 => self.left = 0,
                n => self.left -= n,
            }
        }
        Ok(true)
    }
}

/// Init's ends of a job's pipes: none of them ever blocks.
pub struct Pipes {
    pub report: Fd,
    pub stdin: Fd,
    pub stdout: Fd,
    pub stderr: Fd,
    held: Option<[Fd; 2]>,
}

impl Pipes {
    /// Keeps the job's own ends of its output open, too. That a job closes them says nothing that init has to wake for: the
    /// end of all its processes is heard of by SIGCHLD, and the pipes then hold what they hold.
    pub fn hold(&mut self, ends: child::Ends) {
        self.held = Some([ends.stdout, ends.stderr]);
    }
}

/// Both sides of a job's pipes. Those who need no stdin don't use it.
pub fn pipes() -> Result<(Pipes, child::Ends), Failed> {
    let make = || {
        let (report, report_end) = sys::pipe()?;
        let (stdin_end, stdin) = sys::pipe()?;
        let (stdout, stdout_end) = sys::pipe()?;
        let (stderr, stderr_end) = sys::pipe()?;
        let ours = Pipes { report, stdin, stdout, stderr, held: None };
        for fd in [&ours.report, &ours.stdin, &ours.stdout, &ours.stderr] {
            sys::set_nonblocking(fd)?;
        }
        let ends =
            child::Ends { stdin: stdin_end, stdout: stdout_end, stderr: stderr_end, report: report_end };
        Ok((ours, ends))
    };
    make().map_err(|errno: Errno| Failed::at(Step::Pipe, errno.0))
}

/// A job, from its fork to its EXITED.
pub struct Job {
    entrypoint: Pid,
    phase: Phase,
    /// Closed by the entrypoint's `execve`, or brings the reason why that did not happen.
    report: Option<Fd>,
    failed: Option<Failed>,
    stdin: Stdin,
    stdout: Stream,
    stderr: Stream,
    /// What is wanted of its files, until that is being collected.
    pub wanted: Option<Wanted>,
    /// The process that reads them, until it is reaped.
    reader: Option<Pid>,
    artifacts: Stream,
    pub oom_kills: u32,
    left_behind: bool,
    /// Whether somebody outside the container sent a signal that was not the worker's.
    pub interfered: bool,
    /// Sums and maxima over the children that were reaped, which include what their own children used.
    cpu_us: u64,
    max_rss_kib: u64,
    /// Its world, if it has one of its own.
    pub world: Option<World>,
    _held: Option<[Fd; 2]>,
}

impl Job {
    /// Forks the process that will execute the entrypoint.
    pub fn launch(head: StartHead, strings: &[u8], environment: Environment) -> Result<Job, Failed> {
        let (mut ours, ends) = pipes()?;
        match sys::fork().map_err(|errno| Failed::at(Step::Fork, errno.0))? {
            Fork::Child => {
                if let Err(failed) = child::stand_alone(&ends) {
                    child::give_up(&ends, failed);
                }
                let around = Surroundings { inherited: environment, home: None };
                child::become_entrypoint(head, strings, around, &ends)
            }
            Fork::Parent(pid) => {
                ours.hold(ends);
                Ok(Job::begun(pid, ours, head.stdin || head.files > 0, None))
            }
        }
    }

    /// The job that the process `entrypoint` is about to execute.
    pub fn begun(entrypoint: Pid, ours: Pipes, stdin: bool, world: Option<World>) -> Job {
        Job {
            entrypoint,
            phase: Phase::Running,
            report: Some(ours.report),
            failed: None,
            stdin: if stdin { Stdin::Open(ours.stdin) } else { Stdin::None },
            stdout: Stream { kind: Kind::Stdout, pipe: Some(ours.stdout), left: 0 },
            stderr: Stream { kind: Kind::Stderr, pipe: Some(ours.stderr), left: 0 },
            wanted: None,
            reader: None,
            artifacts: Stream { kind: Kind::Artifact, pipe: None, left: 0 },
            oom_kills: 0,
            left_behind: false,
            interfered: false,
            cpu_us: 0,
            max_rss_kib: 0,
            world,
            _held: ours.held,
        }
    }

    /// What to wait for on the job's behalf, and how long at most (in milliseconds).
    pub fn interest(&self, set: &mut [Poll; slot::COUNT], input: &Input, output: &Output) -> Option<u64> {
        if let Phase::Killing { deadline_ms, .. } = self.phase {
            return Some(deadline_ms.saturating_sub(sys::now_ms()));
        }
        if let Phase::Draining { .. } = self.phase {
            // The worker may have taken everything since draining stopped for want of room. Then nothing will happen
            // any more that ends the wait.
            return output.has_room().then_some(0);
        }
        let on = |fd: Option<&Fd>, events| fd.map_or(Poll::NONE, |fd| Poll::on(fd, events));
        if let Phase::Collecting { .. } = self.phase {
            if output.has_room() {
                set[slot::ARTIFACTS] = on(self.artifacts.pipe.as_ref(), sys::POLLIN);
            }
            return self.is_collected().then_some(0);
        }
        set[slot::REPORT] = on(self.report.as_ref(), sys::POLLIN);
        // A pipe that we can do nothing about must not be in the set: a hang-up is reported always, at once.
        if let (Stdin::Open(fd) | Stdin::Ending(fd), Some(_)) = (&self.stdin, input.chunk()) {
            set[slot::STDIN] = Poll::on(fd, sys::POLLOUT);
        }
        if self.report.is_none() && output.has_room() {
            set[slot::STDOUT] = on(self.stdout.pipe.as_ref(), sys::POLLIN);
            set[slot::STDERR] = on(self.stderr.pipe.as_ref(), sys::POLLIN);
        }
        None
    }

    /// Learns whether the entrypoint was executed.
    pub fn hear(&mut self, ready: &[Poll; slot::COUNT], output: &mut Output) -> Result<(), Quit> {
        if ready[slot::REPORT].ready() { self.read_report(output) } else { Ok(()) }
    }

    fn read_report(&mut self, output: &mut Output) -> Result<(), Quit> {
        let Some(report) = &self.report else { return Ok(()) };
        let mut payload = [0; Failed::LEN];
        match sys::read(report, &mut payload) {
            Err(Errno::AGAIN) => return Ok(()),
            Ok(Failed::LEN) => {
                self.failed = Some(Failed::decode(&payload).unwrap_or(Failed::at(Step::Fork, 0)));
            }
            // The end: `execve` closed it. (Or the process was killed before; then its end says so.)
            _ => output.control(Kind::Started, &[])?,
        }
        self.report = None;
        Ok(())
    }

    /// Moves bytes, and the job from one phase to the next.
    pub fn proceed(
        &mut self,
        ready: &[Poll; slot::COUNT],
        input: &mut Input,
        output: &mut Output,
    ) -> Result<Progress, Quit> {
        if let Phase::Killing { end, deadline_ms } = self.phase
            && sys::now_ms() >= deadline_ms
        {
            self.left_behind = true;
            self.begin_draining(end);
        }
        match self.phase {
            Phase::Running => {
                if ready[slot::STDIN].ready() {
                    self.feed(input, output)?;
                }
                for (at, stream) in [(slot::STDOUT, &mut self.stdout), (slot::STDERR, &mut self.stderr)] {
                    if ready[at].ready() && output.has_room() {
                        stream.pump(output, CHUNK_MAX);
                    }
                }
                Ok(Progress::Underway)
            }
            Phase::Killing { .. } => Ok(Progress::Underway),
            Phase::Draining { .. } => {
                // Its last act may have been to fail, or to be killed, before we heard.
                self.read_report(output)?;
                let all = self.stdout.drain(output)? && self.stderr.drain(output)?;
                let wanted = self.wanted.is_some() && self.failed.is_none();
                Ok(match (all, wanted) {
                    (false, _) => Progress::Underway,
                    (true, true) => Progress::Drained,
                    (true, false) => Progress::Over,
                })
            }
            Phase::Collecting { .. } => {
                if ready[slot::ARTIFACTS].ready() && output.has_room() {
                    self.artifacts.pump(output, CHUNK_MAX);
                }
                Ok(if self.is_collected() { Progress::Over } else { Progress::Underway })
            }
        }
    }

    /// Whether STDIN and STDIN_EOF have a place.
    pub fn takes_stdin(&self) -> bool {
        matches!(self.stdin, Stdin::Open(_) | Stdin::Broken)
    }

    /// Writes of the chunk what the job's pipe takes, and says so when that was the rest.
    pub fn feed(&mut self, input: &mut Input, output: &mut Output) -> Result<(), Quit> {
        while let Some(chunk) = input.chunk() {
            let (Stdin::Open(pipe) | Stdin::Ending(pipe)) = &self.stdin else { return taken(input, output) };
            if chunk.is_empty() {
                taken(input, output)?;
                break;
            }
            match sys::write(pipe, chunk) {
                Ok(n) => input.advance_chunk(n),
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => {
                    self.stdin =
                        if matches!(self.stdin, Stdin::Ending(_)) { Stdin::Ended } else { Stdin::Broken };
                }
            }
        }
        if matches!(self.stdin, Stdin::Ending(_)) {
            self.stdin = Stdin::Ended;
        }
        Ok(())
    }

    /// Closes the job's stdin once what is pending is in it.
    pub fn end_stdin(&mut self, input: &Input) {
        self.stdin = match core::mem::replace(&mut self.stdin, Stdin::Ended) {
            Stdin::Open(pipe) if input.chunk().is_some() => Stdin::Ending(pipe),
            _ => Stdin::Ended,
        };
    }

    /// Sends the entrypoint a signal, and it alone, as `docker run --init` does.
    pub fn signal(&self, n: i32) {
        if let Phase::Running = self.phase {
            sys::kill(To::Process(self.entrypoint), n);
        }
        if let (Some(reader), sys::SIGKILL) = (self.reader, n) {
            sys::kill(To::Process(reader), n);
        }
    }

    /// Has the artifacts read: in the job's world, if it had one of its own. If that can't be, nothing of them is sent.
    pub fn collect(&mut self, sandbox: Option<&Sandbox>) {
        if let (Some(wanted), Phase::Draining { end }) = (self.wanted.take(), self.phase) {
            self.phase = Phase::Collecting { end };
            if let Ok((reader, pipe)) = wanted.read(sandbox.zip(self.world.as_ref())) {
                self.reader = Some(reader);
                self.artifacts.pipe = Some(pipe);
            }
        }
    }

    fn is_collected(&self) -> bool {
        self.reader.is_none() && self.artifacts.pipe.is_none()
    }

    /// Kills the job's processes.
    pub fn kill(&self, reach: Reach) {
        let whom = if reach.everyone { To::Everyone } else { To::Group(self.entrypoint) };
        sys::kill(whom, sys::SIGKILL);
    }

    /// A child was reaped: the entrypoint, or an orphan of its making.
    pub fn account(&mut self, child: &Reaped, reach: Reach) {
        if self.reader == Some(child.pid) {
            self.reader = None;
            return;
        }
        self.cpu_us += child.cpu_us;
        self.max_rss_kib = self.max_rss_kib.max(child.max_rss_kib);
        if child.pid == self.entrypoint
            && let Phase::Running = self.phase
        {
            let end = match child.status {
                Status::Code(c) => End::Code(c),
                Status::Signal(s) => End::Signal(s),
            };
            self.phase = Phase::Killing { end, deadline_ms: sys::now_ms() + reach.patience_ms };
            // No fork escapes: the kernel walks its list of processes under the lock under which fork adds to it,
            // and fork gives up when its caller has a signal pending (kernel/fork.c, copy_process).
            self.kill(reach);
        }
    }

    /// Nothing more can be reaped now, but there still are children.
    pub fn others_live(&self, reach: Reach) {
        if let Phase::Killing { .. } = self.phase {
            // `docker exec` may have added one.
            self.kill(reach);
        }
    }

    /// There are no children any more.
    pub fn nobody_lives(&mut self) {
        if let Phase::Killing { end, .. } = self.phase {
            self.begin_draining(end);
        }
    }

    fn begin_draining(&mut self, end: End) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.left = stream.pipe.as_ref().map_or(0, sys::buffered);
        }
        self.phase = Phase::Draining { end };
    }

    /// How it went.
    pub fn verdict(mut self, oom_kills: u32) -> Result<Exited, Failed> {
        self.oom_kills += oom_kills;
        self.exited()
    }

    /// How it went, so far.
    pub fn exited(&self) -> Result<Exited, Failed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let end = match self.phase {
            Phase::Killing { end, .. } | Phase::Draining { end } | Phase::Collecting { end } => end,
            Phase::Running => return Err(Failed::at(Step::Fork, 0)),
        };
        Ok(Exited {
            end,
            left_behind: self.left_behind,
            interfered: self.interfered,
            oom_kills: self.oom_kills,
            cpu_us: self.cpu_us,
            max_rss: self.max_rss_kib * 1024,
        })
    }
}

/// The chunk is free for the next STDIN frame, and the worker may know.
fn taken(input: &mut Input, output: &mut Output) -> Result<(), Quit> {
    input.free_chunk();
    output.control(Kind::StdinTaken, &[])
}
