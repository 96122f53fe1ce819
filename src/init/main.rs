//! `prewarm-init`, the first process of a warm container.
//!
//! It waits on the container's attached stream, or at the worker's socket, until the worker sends a START frame, executes the image's
//! own entrypoint, carries its output back, and cleans up after it. `wire.rs` defines the frames.
//!
//! ```text
//!            START                exec'd                entrypoint ended          nobody left       drained
//!   idle ────────────▶ launching ────────▶ running ────────────────────▶ killing ───────────▶ draining ───▶ idle
//!  (READY once)                   STARTED            kill(-1, SIGKILL)                              EXITED | FAILED
//! ```
//!
//! If the job's artifacts are wanted, another state lies before EXITED: ENDED ─▶ collecting, in which a child of its own reads
//! them (`artifacts.rs`).
//!
//! One thread, one loop around `ppoll`. While there is a job nothing but that poll ever waits: every descriptor is
//! nonblocking, so a worker that reads slowly stops init from reading the job's output (the job then sees a full pipe, as it
//! would under `docker run`), but not from obeying SIGNAL, taking stdin, reaping, or noticing that the worker is gone.
//!
//! How it ends:
//! - stdin ends, or stdout has no reader, or both are the worker's socket and that is closed: the worker is gone. Exit 0, and since this is the first process of
//!   its PID namespace, the kernel kills whatever is left in it. This is the container's dead man's switch.
//! - a frame that is none, or that has no place: FAILED with [`Step::Protocol`] if there is room, exit 125.
//! - SIGTERM, SIGINT, SIGQUIT or SIGHUP while idle (`docker stop`): exit 0; an idle container has done nothing wrong.
//!   While a job runs, signals go to its entrypoint instead, and EXITED tells if one came from outside the container.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod artifacts;
mod child;
mod files;
#[allow(dead_code, reason = "the worker's half of it")]
mod glob;
mod home;
mod input;
mod job;
mod mounts;
mod output;
#[allow(dead_code, reason = "the worker's half of it")]
mod parcel;
mod sandbox;
#[allow(unsafe_code, reason = "system calls")]
mod sys;
mod user;
#[allow(dead_code, reason = "the worker's half of it")]
mod wire;

use core::convert::Infallible;

use artifacts::Wanted;
use input::{Command, Input};
use job::{Job, Progress};
use output::Output;
use sandbox::{News, Sandbox, Spent, Staged, World};
use sys::{Environment, Errno, Fd, Poll};
use wire::{Doubt, Failed, Kind, SetupHead, StartHead, Step};

/// Why init ends.
pub enum Quit {
    /// Nobody is left to talk to.
    WorkerGone,
    /// The worker sent what is no frame, or has no place here.
    Protocol,
    /// A signal asked an idle init to end.
    Asked,
    /// No other job should run here.
    Doubt(Doubt),
    /// There can be no job here, and why.
    Unable(Failed),
    /// The kernel refused something that only a broken container refuses.
    Kernel(&'static str),
}

/// The indexes of the poll set.
mod slot {
    pub const COMMANDS: usize = 0;
    pub const OUTPUT: usize = 1;
    pub const SIGNALS: usize = 2;
    pub const REPORT: usize = 3;
    pub const STDIN: usize = 4;
    pub const STDOUT: usize = 5;
    pub const STDERR: usize = 6;
    pub const ARTIFACTS: usize = 7;
    pub const COUNT: usize = 8;
}

fn main(arguments: Environment, environment: Environment) -> ! {
    let isolation = match arguments.iter().nth(1) {
        Some(name) if name == wire::NAMESPACE => Isolation::Expected,
        _ => Isolation::Container,
    };
    let code = match Init::new(environment, isolation).and_then(|mut init| {
        let Err(why) = init.serve();
        init.last_words(&why);
        Err(why)
    }) {
        Ok(()) | Err(Quit::WorkerGone | Quit::Asked | Quit::Doubt(_)) => 0,
        Err(Quit::Protocol | Quit::Unable(_)) => 125,
        Err(Quit::Kernel(what)) => {
            sys::complain(b"prewarm-init: the kernel refused ");
            sys::complain(what.as_bytes());
            sys::complain(b"\n");
            125
        }
    };
    sys::exit(code)
}

/// So many signals, and so many children, are attended to before it is looked again what else there is: a job can send, and leave
/// behind, more of either than can be coped with, and must not keep init from hearing that the worker is gone.
const AT_A_TIME: usize = 64;

/// So many seconds at least, and times that the worker takes something, are spent on last words.
const LAST_WORDS_PATIENCE: u32 = 30;

/// How jobs are kept apart from what comes after them.
enum Isolation {
    /// By their container: there is one job.
    Container,
    /// By namespaces; SETUP has not come yet.
    Expected,
    /// By namespaces.
    Namespace {
        sandbox: &'static Sandbox,
        staged: Option<Staged>,
        spent: Option<Spent>,
        /// That of the last job, until the worker has been told everything of that.
        ended: Option<World>,
    },
}

struct Init {
    environment: Environment,
    isolation: Isolation,
    signals: Fd,
    input: Input,
    output: Output,
    oom: OomCounter,
    kill: job::Reach,
    job: Option<Job>,
    /// There may be children to reap, of which no signal will tell again.
    unreaped: bool,
}

impl Init {
    fn new(environment: Environment, isolation: Isolation) -> Result<Init, Quit> {
        // Before anything is opened: a free 0, 1 or 2 would be taken by one of our own descriptors.
        if !(0..3).all(sys::is_open) {
            return Err(Quit::Kernel("stdin, stdout or stderr"));
        }
        // What jobs inherit is put right here, once, so that a START doesn't pay for it. A blocked signal is
        // queued even if a first process has no handler for it (kernel/signal.c, sig_ignored), so nothing is lost.
        sys::block_signals(sys::Mask::All);
        sys::default_signals();
        sys::set_umask(0o022);
        sys::adopt_orphans();
        sys::hide();
        let refused = |what| move |_: Errno| Quit::Kernel(what);
        let commands = Fd::inherited(0);
        let stream = Fd::inherited(1);
        sys::set_nonblocking(&commands).map_err(refused("nonblocking stdin"))?;
        sys::set_nonblocking(&stream).map_err(refused("nonblocking stdout"))?;
        Ok(Init {
            environment,
            isolation,
            signals: sys::signals().map_err(refused("signalfd"))?,
            input: Input::new(commands).map_err(refused("memory for input"))?,
            output: Output::new(stream).map_err(refused("memory for output"))?,
            oom: OomCounter::open(),
            kill: job::Reach::of_this_process(),
            job: None,
            unreaped: false,
        })
    }

    /// The loop. Returns only to end the process.
    fn serve(&mut self) -> Result<Infallible, Quit> {
        if let Isolation::Container = self.isolation {
            self.say_ready()?;
        }
        loop {
            self.output.flush()?;
            self.renew()?;
            let ready = self.wait()?;
            // First of all: whether exec succeeded, so that STARTED precedes everything else of the job's.
            match &mut self.job {
                Some(job) => job.hear(&ready, &mut self.output)?,
                None if ready[slot::REPORT].ready() => self.hear_staged()?,
                None => {}
            }
            if ready[slot::SIGNALS].ready() {
                self.take_signals()?;
            }
            if self.unreaped {
                self.reap();
            }
            if ready[slot::COMMANDS].ready() {
                self.take_command()?;
            }
            if let Some(job) = &mut self.job {
                match job.proceed(&ready, &mut self.input, &mut self.output)? {
                    Progress::Underway => {}
                    Progress::Drained => self.collect()?,
                    Progress::Over => self.conclude()?,
                }
            }
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) -> Result<[Poll; slot::COUNT], Quit> {
        let mut set = [Poll::NONE; slot::COUNT];
        set[slot::COMMANDS] = Poll::on(self.input.fd(), sys::POLLIN);
        // With nothing to write this still reports that the last reader is gone (POLLERR, of a socket POLLHUP).
        set[slot::OUTPUT] = Poll::on(self.output.fd(), if self.output.is_empty() { 0 } else { sys::POLLOUT });
        set[slot::SIGNALS] = Poll::on(&self.signals, sys::POLLIN);
        if let Isolation::Namespace { staged: Some(staged), .. } = &self.isolation {
            set[slot::REPORT] = Poll::on(&staged.pipes.report, sys::POLLIN);
        }
        let mut timeout = self.job.as_ref().and_then(|job| job.interest(&mut set, &self.input, &self.output));
        if self.unreaped {
            timeout = Some(0);
        }
        sys::poll(&mut set, timeout).map_err(|_| Quit::Kernel("ppoll"))?;
        if set[slot::OUTPUT].broken() {
            return Err(Quit::WorkerGone);
        }
        Ok(set)
    }

    /// The kernel gives out signals by their numbers, not as they came: what wasn't reached may be a SIGCHLD.
    fn take_signals(&mut self) -> Result<(), Quit> {
        use sys::{SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU};
        for _ in 0..AT_A_TIME {
            let Some(signal) = sys::next_signal(&self.signals) else { return Ok(()) };
            match (signal.number, &mut self.job) {
                (SIGCHLD, _) => self.unreaped = true,
                // Our own, from writing to a job that closed its stdin.
                (SIGPIPE, _) => {}
                // There is no terminal: a session leader without one is an orphaned process group, which the
                // kernel doesn't stop (kernel/signal.c, get_signal).
                (SIGTSTP | SIGTTIN | SIGTTOU, _) => {}
                (n, Some(job)) => {
                    job.interfered |= signal.from_outside;
                    job.signal(n);
                }
                (SIGHUP | SIGINT | SIGQUIT | SIGTERM, None) => return Err(Quit::Asked),
                (_, None) => {}
            }
        }
        self.unreaped = true;
        Ok(())
    }

    /// Reaps what has ended: SIGCHLD says once that at least one child has.
    fn reap(&mut self) {
        for _ in 0..AT_A_TIME {
            match (sys::reap(), &mut self.job) {
                (Ok(Some(child)), Some(job)) => {
                    job.account(&child, self.kill);
                    continue;
                }
                // What an earlier job left behind ended at last.
                (Ok(Some(_)), None) => continue,
                (Ok(None), Some(job)) => job.others_live(self.kill),
                (Err(_), Some(job)) => job.nobody_lives(),
                (_, None) => {}
            }
            self.unreaped = false;
            return;
        }
    }

    fn take_command(&mut self) -> Result<(), Quit> {
        let (job, isolation) = (&self.job, &self.isolation);
        let command = self.input.read(|kind, chunk_is_free| match kind {
            Kind::Setup => matches!(isolation, Isolation::Expected),
            Kind::Start => job.is_none() && isolation.takes_start(),
            // For a job that just ended they are stale; for one that has no stdin they are a fault.
            Kind::Stdin => job.as_ref().is_none_or(|j| chunk_is_free && j.takes_stdin()),
            Kind::StdinEof => job.as_ref().is_none_or(Job::takes_stdin),
            Kind::Signal => true,
            _ => false,
        })?;
        match (command, &mut self.job) {
            (None, _) => {}
            (Some(Command::Setup(payload)), _) => self.set_up(payload)?,
            (Some(Command::Start(payload)), _) => self.start(payload)?,
            (Some(Command::Stdin), Some(job)) => job.feed(&mut self.input, &mut self.output)?,
            (Some(Command::Stdin), None) => self.input.free_chunk(),
            (Some(Command::StdinEof), Some(job)) => job.end_stdin(&self.input),
            (Some(Command::Signal(n)), Some(job)) => job.signal(n),
            (Some(Command::StdinEof | Command::Signal(_)), None) => {}
        }
        Ok(())
    }

    fn say_ready(&mut self) -> Result<(), Quit> {
        self.output.control(Kind::Ready, &wire::VERSION.to_le_bytes())
    }

    /// Lays the ground for jobs' worlds, and has the first one made. Not where it is called: what it needs of the stack would
    /// cost every init.
    #[inline(never)]
    fn set_up(&mut self, payload: sys::Mapping) -> Result<(), Quit> {
        let failed = |errno: Errno| Quit::Unable(Failed::at(Step::Memory, errno.0));
        self.take_shortcut(&payload)?;
        let sandbox = sys::keep(Sandbox::new(payload).map_err(Quit::Unable)?).map_err(failed)?;
        self.isolation = Isolation::Namespace { sandbox, staged: None, spent: None, ended: None };
        self.stage()
    }

    /// Speaks to the worker through its socket from now on, if that is there; and sees to it that nobody else does.
    fn take_shortcut(&mut self, setup: &[u8]) -> Result<(), Quit> {
        let Ok((head, ..)) = SetupHead::decode(setup) else { return Ok(()) };
        if let Ok(socket) = sys::connect(wire::SHORTCUT) {
            if sys::write(&socket, &head.token) != Ok(head.token.len()) {
                return Err(Quit::WorkerGone);
            }
            for stream in [self.input.fd(), self.output.fd()] {
                sys::become_other(stream, &socket).map_err(|_| Quit::Kernel("the worker's socket"))?;
            }
        }
        // If it isn't mounted there is nothing to take away.
        _ = sys::isolate::detach(wire::SHORTCUT);
        Ok(())
    }

    /// Has the next job's world made, if jobs have one.
    fn stage(&mut self) -> Result<(), Quit> {
        if let Isolation::Namespace { sandbox, staged, spent, .. } = &mut self.isolation {
            let (next, start) = sandbox.stage(self.environment, spent.take()).map_err(Quit::Unable)?;
            self.input.start_goes_into(start);
            *staged = Some(next);
        }
        Ok(())
    }

    /// The next job's world is made, or never will be.
    fn hear_staged(&mut self) -> Result<(), Quit> {
        let Isolation::Namespace { staged: Some(staged), .. } = &mut self.isolation else { return Ok(()) };
        match staged.hear() {
            News::None => Ok(()),
            News::Waiting => self.say_ready(),
            News::Failed(failed) => Err(Quit::Unable(failed)),
            News::Dead => Err(Quit::Doubt(Doubt::Sandbox)),
        }
    }

    fn start(&mut self, payload: sys::Result<(sys::Mapping, usize)>) -> Result<(), Quit> {
        let mut wanted = None;
        let launched = match &payload {
            Ok((memory, length)) => {
                let decoded = StartHead::decode(&memory[..*length]);
                let (head, strings) = decoded.map_err(|_| Quit::Protocol)?;
                let has_stdin = head.stdin || head.files > 0;
                wanted = (head.wanted > 0).then_some(head);
                match &mut self.isolation {
                    Isolation::Namespace { staged, .. } => {
                        let Some(staged) = staged.take() else { return Err(Quit::Protocol) };
                        let (pid, pipes, world) =
                            staged.go(*length).map_err(|_| Quit::Doubt(Doubt::Sandbox))?;
                        Ok(Job::begun(pid, pipes, has_stdin, Some(world)))
                    }
                    _ => Job::launch(head, strings, self.environment),
                }
            }
            Err(errno) => Err(Failed::at(Step::Memory, errno.0)),
        };
        match launched {
            Ok(mut job) => {
                if let Ok((memory, length)) = payload {
                    match (wanted, &mut self.isolation) {
                        (Some(head), _) => job.wanted = Some(Wanted { head, memory, length }),
                        (None, Isolation::Namespace { spent, .. }) => *spent = Some(Spent { memory, length }),
                        (None, _) => {}
                    }
                }
                self.job = Some(job);
            }
            Err(failed) => self.output.control(Kind::Failed, &failed.encode())?,
        }
        Ok(())
    }

    /// The job's processes are gone, all that they printed is in the buffer, and artifacts are wanted.
    fn collect(&mut self) -> Result<(), Quit> {
        let Some(job) = &mut self.job else { return Ok(()) };
        job.oom_kills += self.oom.advance();
        if let Ok(exited) = job.exited() {
            self.output.control(Kind::Ended, &exited.encode())?;
            // Before the reader is forked: where what the job wrote has used up the container's memory, that can be the end
            // of init.
            self.output.flush()?;
        }
        let sandbox = match &self.isolation {
            Isolation::Namespace { sandbox, .. } => Some(*sandbox),
            _ => None,
        };
        job.collect(sandbox);
        Ok(())
    }

    /// The job is over, its last output is in the buffer: says how it ended. Nothing of it follows.
    fn conclude(&mut self) -> Result<(), Quit> {
        let Some(mut job) = self.job.take() else { return Ok(()) };
        self.input.free_chunk();
        if let Isolation::Namespace { ended, .. } = &mut self.isolation {
            *ended = job.world.take();
        }
        let oom_kills = self.oom.advance();
        match job.verdict(oom_kills) {
            Ok(exited) => self.output.control(Kind::Exited, &exited.encode())?,
            Err(failed) => self.output.control(Kind::Failed, &failed.encode())?,
        }
        Ok(())
    }

    /// Lets go of the last job's world and has the next one made. What is still to be said of that job comes first: the kernel
    /// takes a world apart while init waits, ten microseconds for each file.
    #[inline(never)]
    fn renew(&mut self) -> Result<(), Quit> {
        let Isolation::Namespace { sandbox, ended, .. } = &mut self.isolation else { return Ok(()) };
        if ended.is_none() || !self.output.is_empty() {
            return Ok(());
        }
        *ended = None;
        sandbox.is_as_it_was().map_err(Quit::Doubt)?;
        self.stage()
    }

    /// What can still be done before the process ends.
    fn last_words(&mut self, why: &Quit) {
        let failed = |step: Failed| step.encode();
        let _ = match why {
            Quit::Protocol => self.output.control(Kind::Failed, &failed(Failed::at(Step::Protocol, 0))),
            Quit::Unable(why) => self.output.control(Kind::Failed, &failed(*why)),
            Quit::Doubt(doubt) => self.output.control(Kind::Doubt, &[*doubt as u8]),
            Quit::WorkerGone | Quit::Asked | Quit::Kernel(_) => Ok(()),
        };
        // What tells how the last job ended may be among what waits for a worker that reads slowly.
        let mut patience = LAST_WORDS_PATIENCE;
        while self.output.flush().is_ok() && !self.output.is_empty() && self.job.is_none() && patience > 0 {
            patience -= 1;
            let _ = sys::poll(&mut [Poll::on(self.output.fd(), sys::POLLOUT)], Some(1000));
        }
        // As the first process this is needless: the kernel does it.
        if let Some(job) = &self.job {
            job.kill(self.kill);
        }
    }
}

impl Isolation {
    /// Whether a job could begin now, as far as this is concerned.
    fn takes_start(&self) -> bool {
        match self {
            Isolation::Container => true,
            Isolation::Expected => false,
            Isolation::Namespace { staged, .. } => staged.as_ref().is_some_and(Staged::is_waiting),
        }
    }
}

/// The kernel's count of the processes of this container that it killed for memory.
struct OomCounter {
    file: Option<Fd>,
    seen: u32,
}

impl OomCounter {
    /// Opens the counter, of cgroup v2 or else v1. Both are seen at these paths inside a container, whatever
    /// the container's own group is called.
    fn open() -> OomCounter {
        let v2 = sys::open(c"/sys/fs/cgroup/memory.events");
        let file = v2.or_else(|_| sys::open(c"/sys/fs/cgroup/memory/memory.oom_control")).ok();
        let mut counter = OomCounter { file, seen: 0 };
        counter.advance();
        counter
    }

    /// How many kills there were since it was last asked. It is asked when a job is over, never at a start.
    fn advance(&mut self) -> u32 {
        let before = self.seen;
        let mut text = [0; 512];
        let read = self.file.as_ref().and_then(|f| sys::read_from_start(f, &mut text).ok()).unwrap_or(0);
        self.seen = oom_kills(&text[..read]).unwrap_or(before);
        self.seen.saturating_sub(before)
    }
}

/// The number in the line `oom_kill N`, which both versions of the file have.
fn oom_kills(text: &[u8]) -> Option<u32> {
    let line = text.split(|b| *b == b'\n').find_map(|l| l.strip_prefix(b"oom_kill "))?;
    line.iter().try_fold(0_u32, |n, d| {
        let digit = d.is_ascii_digit().then_some(u32::from(d.wrapping_sub(b'0')))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}
