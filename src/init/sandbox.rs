//! Isolation `namespace`: a world of its own for each job, made before the job comes.
//!
//! ```text
//!   SETUP ─► ground, once ─► fork into new namespaces ─► overlay, mounts, pivot ─► user, filter ─► staged ··· START ─► execve
//!                                   ▲                                                                            │
//!                                   └──────── as it was? ◄── everything in the namespace is dead ◄── the job ends ─┘
//! ```
//!
//! The ground is what all jobs have in common: a layer over the container's root with what the engine mounted as single
//! files, and without our own directory. A job's root is an overlay of a fresh tmpfs over that. The process that will
//! become the job makes its world by itself, gives up all power over it, and waits for its START; so a START costs no more
//! than without a world of its own. When it ends, the kernel kills what is left in its PID namespace before anybody hears of
//! the end. Init holds the mounts until the worker has been told, since to take them apart is most of what an exit costs; when
//! it lets go of them, the kernel drops the overlay with all that is in it.

use core::ffi::CStr;

use crate::child::{self, Ends, Surroundings};
use crate::glob::PATH_MAX;
use crate::home;
use crate::job::{Pipes, pipes};
use crate::mounts::{self, Fate, Table};
use crate::sys::isolate::{self, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY};
use crate::sys::{self, Attributes, Environment, Errno, Fd, Fork, Mapping, Pid};
use crate::user::{self, User};
use crate::wire::{Doubt, Failed, START_MAX, SetupHead, StartHead, Step};

// Where init's volume is mounted, since that is a place that every container has. It is hidden from here on; init runs
// already. The names show in the table of mounts of each job.
const STORE: &CStr = c"/.prewarm";
const BASE: &CStr = c"/.prewarm/base";
const WORK: &CStr = c"/.prewarm/work";
const ROOT: &CStr = c"/.prewarm/world";
const HIDDEN: &CStr = c"/.prewarm/world/.prewarm";
const JOB: &CStr = c"/.prewarm/job";
const UPPER: &CStr = c"/.prewarm/job/upper";
const GROUND: &CStr = c"lowerdir=/,upperdir=/.prewarm/base,workdir=/.prewarm/work";
const LAYERS: &CStr = c"lowerdir=/.prewarm/base:/,upperdir=/.prewarm/job/upper,workdir=/.prewarm/job/work";
const LAYERS_READ_ONLY: &CStr = c"lowerdir=/.prewarm/base:/";

/// The devices that Docker gives every container: name, major, minor.
const DEVICES: [(&CStr, u32, u32); 6] = [
    (c"dev/null", 1, 3),
    (c"dev/zero", 1, 5),
    (c"dev/full", 1, 7),
    (c"dev/random", 1, 8),
    (c"dev/urandom", 1, 9),
    (c"dev/tty", 5, 0),
];
const LINKS: [(&CStr, &CStr); 5] = [
    (c"dev/fd", c"/proc/self/fd"),
    (c"dev/stdin", c"/proc/self/fd/0"),
    (c"dev/stdout", c"/proc/self/fd/1"),
    (c"dev/stderr", c"/proc/self/fd/2"),
    (c"dev/ptmx", c"pts/ptmx"),
];

/// What a staged process says when its world is made.
const STAGED: u8 = 1;

/// What all jobs of this container have in common.
pub struct Sandbox {
    table: Table,
    user: User,
    /// `HOME=` and that user's home directory. What a job does to `/etc/passwd` is gone before the next one.
    home: &'static CStr,
    capabilities: u64,
    profile: &'static CStr,
    program: &'static [u8],
    directory: &'static CStr,
    /// Options of the tmpfs that takes what a job writes.
    scratch: Scratch,
    root: Attributes,
    mounts: Fd,
    descriptors: usize,
}

/// The process that will become the next job.
pub struct Staged {
    pid: Pid,
    pub pipes: Pipes,
    /// A socket: the length of its START goes there, its world comes back when it is made.
    go: Fd,
    world: Option<World>,
}

/// The memory of a START that has been executed.
pub struct Spent {
    pub memory: Mapping,
    pub length: usize,
}

/// So much of such memory is wiped and used again; what held more is given back, so that one large START is not paid for
/// for ever.
const REUSED_MAX: usize = 64 << 10;

/// What it said.
pub enum News {
    None,
    Waiting,
    Failed(Failed),
    Dead,
}

fn at(step: Step) -> impl Fn(Errno) -> Failed {
    move |errno| Failed::at(step, errno.0)
}

impl Sandbox {
    /// Lays the ground. The payload of SETUP must be one.
    pub fn new(setup: Mapping) -> Result<Sandbox, Failed> {
        let ground = at(Step::Ground);
        let Ok((head, strings, program)) = SetupHead::decode(setup.leak()) else {
            return Err(ground(Errno(0)));
        };
        let mut strings =
            strings.split_inclusive(|b| *b == 0).filter_map(|s| CStr::from_bytes_with_nul(s).ok());
        let (user, profile) = (strings.next().unwrap_or_default(), strings.next().unwrap_or_default());
        let kept = |on: &CStr| strings.clone().any(|kept| kept == on);
        let buffer = Mapping::new(PATH_MAX).map_err(&ground)?.leak();
        let directory = sys::working_directory(buffer).map_err(&ground)?;
        let table = Table::read(kept).map_err(&ground)?;
        let root = sys::attributes(c"/").map_err(&ground)?;
        let user = user::find(user.to_bytes())?;
        let home = home::entry(user.uid as usize).map_err(&ground)?;
        lay_ground(&table, &root).map_err(&ground)?;
        let scratch = Scratch::of(head.scratch);
        let mounts = mounts::open().map_err(&ground)?;
        let descriptors = sys::next_descriptor().map_err(&ground)?;
        let capabilities = head.capabilities;
        // For all that will be forked, and needed by none: init executes nothing. What it may do itself stays.
        isolate::bound_capabilities(capabilities).map_err(at(Step::Credentials))?;
        Ok(Sandbox {
            table,
            user,
            home,
            capabilities,
            profile,
            program,
            directory,
            scratch,
            root,
            mounts,
            descriptors,
        })
    }

    /// Whether everything is as it was before the last job.
    pub fn is_as_it_was(&self) -> Result<(), Doubt> {
        if isolate::mounts_changed(&self.mounts) {
            return Err(Doubt::Mounts);
        }
        if sys::next_descriptor() != Ok(self.descriptors) {
            return Err(Doubt::Descriptors);
        }
        if sys::is_anybody_else_here() { Err(Doubt::Processes) } else { Ok(()) }
    }

    /// Forks the process that will become the next job. Its START goes into the memory that comes with it.
    pub fn stage(&self, environment: Environment, spent: Option<Spent>) -> Result<(Staged, Mapping), Failed> {
        let start = match spent {
            Some(Spent { mut memory, length }) if length <= REUSED_MAX => {
                memory[..length].fill(0);
                memory
            }
            _ => Mapping::shared(START_MAX).map_err(at(Step::Memory))?,
        };
        let (mut ours, ends) = pipes()?;
        let (go, go_end) = sys::socket_pair().map_err(at(Step::Pipe))?;
        match isolate::fork_isolated().map_err(at(Step::Namespaces))? {
            Fork::Parent(pid) => {
                ours.hold(ends);
                Ok((Staged { pid, pipes: ours, go: go_end, world: None }, start))
            }
            Fork::Child => {
                // Or it would wait for itself.
                drop((ours, go_end));
                self.become_job(&start, &ends, &go, environment)
            }
        }
    }

    fn become_job(&self, start: &Mapping, ends: &Ends, go: &Fd, environment: Environment) -> ! {
        if let Err(failed) = self.settle(ends, go) {
            child::give_up(ends, failed);
        }
        let mut length = [0; 4];
        if sys::write(&ends.report, &[STAGED]) != Ok(1) || sys::read(go, &mut length) != Ok(4) {
            // Nobody wants it any more.
            sys::exit(125);
        }
        let payload = &start[..(u32::from_le_bytes(length) as usize).min(START_MAX)];
        match StartHead::decode(payload) {
            Ok((head, strings)) => {
                let around = Surroundings { inherited: environment, home: Some(self.home) };
                child::become_entrypoint(head, strings, around, ends)
            }
            // Init has looked at it before.
            Err(_) => child::give_up(ends, at(Step::Protocol)(Errno(0))),
        }
    }

    /// In the new process: makes its world and becomes who it is to be.
    fn settle(&self, ends: &Ends, go: &Fd) -> Result<(), Failed> {
        sys::set_umask(0);
        self.make_root().map_err(at(Step::Overlay))?;
        self.mount_all()?;
        isolate::pivot_here().and_then(|()| isolate::detach(c".")).map_err(at(Step::Pivot))?;
        sys::set_umask(0o022);
        // As the runtime does it: as root first, since the user may not be let in everywhere.
        let enter = || {
            sys::chdir(self.directory).map_err(at(Step::Chdir))?;
            hand_over_world(go).map_err(at(Step::Namespaces))
        };
        let entered = enter();
        self.confine().map_err(at(Step::AppArmor))?;
        for pipe in [&ends.stdin, &ends.stdout, &ends.stderr] {
            // So that a program can open /dev/stdout again.
            sys::give(pipe, self.user.uid).map_err(at(Step::Pipe))?;
        }
        // Before the power to do so is gone. It lets through what follows.
        if !self.program.is_empty() {
            isolate::filter_calls(self.program).map_err(at(Step::Seccomp))?;
        }
        self.become_user().map_err(at(Step::Credentials))?;
        if entered == Err(at(Step::Chdir)(Errno::ACCES)) { enter() } else { entered }?;
        child::stand_alone(ends)
    }

    /// In a process of init's own: sees what the job whose world this is saw, as its user and from where it began. Not from
    /// what is called so now: as root that would be wherever a link leads that the job has put there.
    pub fn enter(&self, world: &World) -> sys::Result<()> {
        sys::enter_mounts(&world.mounts)?;
        let enter = || sys::change_directory(&world.directory);
        let entered = enter();
        self.become_user()?;
        if entered == Err(Errno::ACCES) { enter() } else { entered }
    }

    fn make_root(&self) -> sys::Result<()> {
        let volumes = || self.table.iter().filter(|mount| mount.fate == Fate::Volume);
        let (read_only, flags) = (self.table.is_read_only(), self.table.root_flags);
        if read_only && volumes().next().is_none() {
            isolate::mount(c"overlay", ROOT, c"overlay", flags, LAYERS_READ_ONLY)?;
            return sys::chdir(ROOT);
        }
        isolate::mount(c"tmpfs", JOB, c"tmpfs", 0, self.scratch.options())?;
        // What the topmost directory is like is what the root is like.
        sys::make_directory(UPPER, self.root.mode & 0o7777)?;
        sys::set_owner_and_time(UPPER, &self.root)?;
        sys::make_directory(c"/.prewarm/job/work", 0o700)?;
        isolate::mount(c"overlay", ROOT, c"overlay", flags & !MS_RDONLY, LAYERS)?;
        sys::chdir(ROOT)?;
        if !read_only {
            return Ok(());
        }
        for volume in volumes() {
            match isolate::mount_again(volume.here()) {
                // Whatever it is, the image doesn't have it.
                Err(Errno::NOENT) => {}
                other => other?,
            }
        }
        isolate::make_read_only(c".", flags)
    }

    fn mount_all(&self) -> Result<(), Failed> {
        for mount in self.table.iter() {
            let here = mount.here();
            let put = || match mount.fate {
                Fate::Fresh => isolate::mount(mount.source, here, mount.kind, mount.flags, mount.options),
                Fate::Moved => isolate::move_mount(mount.on, here),
                Fate::Carried | Fate::Copied | Fate::Volume => Ok(()),
            };
            match put() {
                // Below another fresh one.
                Err(Errno::NOENT) => sys::make_directory(here, 0o755).and_then(|()| put()),
                other => other,
            }
            .map_err(at(Step::Mounts))?;
            if here == c"dev" && mount.fate == Fate::Fresh {
                fill_dev().map_err(at(Step::Devices))?;
            }
        }
        Ok(())
    }

    /// What is executed from here on runs under the profile, where there is one.
    fn confine(&self) -> sys::Result<()> {
        if self.profile.is_empty() {
            return Ok(());
        }
        let file = sys::open_both_ways(c"/proc/self/attr/apparmor/exec")
            .or_else(|_| sys::open_both_ways(c"/proc/self/attr/exec"))?;
        let mut text = [0; 256];
        let parts: [&[u8]; 2] = [b"exec ", self.profile.to_bytes()];
        let written = child::concat(&mut text, parts).ok_or(Errno::TOO_BIG)?;
        sys::write(&file, written).map(drop)
    }

    fn become_user(&self) -> sys::Result<()> {
        let User { uid, gid, .. } = self.user;
        isolate::become_user(uid, gid, self.user.groups())?;
        // Only root has any of its own: for others the kernel takes them away at execve.
        isolate::set_capabilities(if uid == 0 { self.capabilities } else { 0 })
    }
}

/// What init holds of a job's world. As long as it does the kernel takes none of that apart when the job's processes are gone:
/// the word of a job's end isn't kept waiting, and its artifacts are still there.
pub struct World {
    mounts: Fd,
    /// Where the job begins, unless its START names another directory.
    directory: Fd,
}

impl World {
    fn receive(through: &Fd) -> sys::Result<World> {
        let mounts = sys::receive_descriptor(through)?;
        Ok(World { mounts, directory: sys::receive_descriptor(through)? })
    }
}

/// In the process that will become the job, where it will begin.
fn hand_over_world(to: &Fd) -> sys::Result<()> {
    let (mounts, directory) = (sys::open(sys::OWN_MOUNTS)?, sys::enter_directory(None, c".")?);
    sys::send_descriptor(to, &mounts)?;
    sys::send_descriptor(to, &directory)
}

impl Staged {
    /// What its report says, if it says something.
    pub fn hear(&mut self) -> News {
        let mut said = [0; Failed::LEN];
        match sys::read(&self.pipes.report, &mut said) {
            Err(Errno::AGAIN) => News::None,
            Ok(1) if said[0] == STAGED && self.world.is_none() => {
                self.world = World::receive(&self.go).ok();
                if self.is_waiting() { News::Waiting } else { News::Dead }
            }
            Ok(Failed::LEN) => Failed::decode(&said).map_or(News::Dead, News::Failed),
            _ => News::Dead,
        }
    }

    /// Whether its world is made, and it waits for its START.
    pub fn is_waiting(&self) -> bool {
        self.world.is_some()
    }

    /// Its START is there, and so long: it becomes the job. Gives what init keeps for that.
    pub fn go(self, length: usize) -> sys::Result<(Pid, Pipes, World)> {
        let world = self.world.ok_or(Errno::AGAIN)?;
        sys::write(&self.go, &(length as u32).to_le_bytes())?;
        Ok((self.pid, self.pipes, world))
    }
}

/// Makes the layer that lies between the container's root and what a job writes. The kernel does it, through an overlay of
/// its own, so that what it copies stays as it is in all respects.
fn lay_ground(table: &Table, root: &Attributes) -> sys::Result<()> {
    isolate::unshare_propagation()?;
    for mount in table.iter().filter(|mount| mount.sealed) {
        isolate::make_read_only(mount.on, mount.flags)?;
    }
    isolate::mount(c"tmpfs", STORE, c"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, c"size=4m,mode=700")?;
    for directory in [BASE, WORK, ROOT, JOB] {
        sys::make_directory(directory, 0o755)?;
    }
    sys::set_owner_and_time(BASE, root)?;
    isolate::mount(c"overlay", ROOT, c"overlay", 0, GROUND)?;
    for file in table.iter().filter(|mount| mount.fate == Fate::Copied) {
        copy(file.on)?;
    }
    // The mount point of init's volume, which the image doesn't have.
    sys::remove_directory(HIDDEN)?;
    sys::set_owner_and_time(ROOT, root)?;
    isolate::detach(ROOT)
}

/// Copies a file to the same place below [`ROOT`].
fn copy(path: &CStr) -> sys::Result<()> {
    let mut name = [0; 64];
    let parts: [&[u8]; 2] = [ROOT.to_bytes(), path.to_bytes_with_nul()];
    let name = child::concat(&mut name, parts).ok_or(Errno::TOO_BIG)?;
    let target = CStr::from_bytes_with_nul(name).map_err(|_| Errno::TOO_BIG)?;
    let (from, to) = (sys::open(path)?, sys::create(target)?);
    let mut piece = [0; 4096];
    loop {
        let n = sys::read(&from, &mut piece)?;
        if n == 0 {
            break;
        }
        sys::write(&to, &piece[..n])?;
    }
    let like = sys::attributes(path)?;
    sys::set_mode(&to, like.mode & 0o7777)?;
    sys::set_owner_and_time(target, &like)
}

fn fill_dev() -> sys::Result<()> {
    for (path, major, minor) in DEVICES {
        sys::make_device(path, 0o666, major, minor)?;
    }
    for (path, target) in LINKS {
        sys::make_symlink(target, path)?;
    }
    if sys::mode(c"/proc/kcore").is_ok() {
        sys::make_symlink(c"/proc/kcore", c"dev/core")?;
    }
    Ok(())
}

/// `mode=700,size=N`: nobody but the kernel looks into it.
struct Scratch([u8; 40]);

impl Scratch {
    fn of(mut bytes: u64) -> Scratch {
        let mut text = [0; 40];
        text[..14].copy_from_slice(b"mode=700,size=");
        let mut digits = [0; 20];
        let mut first = digits.len();
        while bytes > 0 || first == digits.len() {
            first -= 1;
            digits[first] = b'0' + (bytes % 10) as u8;
            bytes /= 10;
        }
        text[14..14 + digits.len() - first].copy_from_slice(&digits[first..]);
        Scratch(text)
    }

    fn options(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}
