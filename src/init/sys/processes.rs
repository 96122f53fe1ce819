//! Processes: made, signalled, reaped, replaced.

use core::ffi::CStr;

use super::files::again;
use super::memory::Mapping;
use super::{
    CAPGET, CLONE, EXECVE, EXIT_GROUP, Errno, GETPID, GETUID, KILL, PRCTL, Result, SETSID, UMASK, WAIT4, call,
};

/// A process id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pid(pub(super) i32);

/// Whom a signal goes to.
#[derive(Clone, Copy)]
pub enum To {
    Process(Pid),
    Group(Pid),
    /// Every process of the PID namespace but its first and the caller.
    Everyone,
}

pub fn kill(to: To, signal: i32) {
    let to = match to {
        To::Process(p) => p.0,
        To::Group(p) => -p.0,
        To::Everyone => -1,
    };
    // SAFETY: no memory involved.
    let _ = unsafe { call(KILL, [to as usize, signal as usize]) };
}

/// Whether there is any process but this one, which is the first, in the PID namespace or in one below it.
pub fn is_anybody_else_here() -> bool {
    let everyone = -1_isize as usize;
    // SAFETY: no memory involved; signal 0 is none.
    let answer = unsafe { call(KILL, [everyone, 0]) };
    answer != Err(Errno::SRCH)
}

/// Whether this process is the first of its PID namespace, whose end is the end of all others in it.
pub fn is_first_process() -> bool {
    // SAFETY: no memory involved.
    let pid = unsafe { call(GETPID, []) };
    pid == Ok(1)
}

/// The user that this process runs as.
pub fn user() -> usize {
    // SAFETY: no memory involved.
    unsafe { call(GETUID, []) }.unwrap_or(0)
}

/// Whether this process may send signals to any process of its container.
pub fn may_kill_anyone() -> bool {
    const CAP_KILL: u32 = 5;
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    // Effective, permitted, inheritable; for capabilities 0–31, then 32–63.
    let mut sets = [0_u32; 6];
    // SAFETY: the kernel writes six words, and reads the header, which it rewrites only if it doesn't
    // know the version (it has been known since 2.6.26).
    let known = unsafe { call(CAPGET, [header.as_ptr() as usize, sets.as_mut_ptr() as usize]) };
    known.is_ok() && sets[0] & (1 << CAP_KILL) != 0
}

/// Makes orphans of this process's descendants its children, as they are anyway for a first process.
pub fn adopt_orphans() {
    const PR_SET_CHILD_SUBREAPER: usize = 36;
    // SAFETY: no memory involved.
    let _ = unsafe { call(PRCTL, [PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0]) };
}

/// Keeps other processes of the same user from this one's memory and descriptors. `execve` takes it back.
pub fn hide() {
    const PR_SET_DUMPABLE: usize = 4;
    // SAFETY: no memory involved.
    let _ = unsafe { call(PRCTL, [PR_SET_DUMPABLE, 0, 0, 0, 0]) };
}

pub fn set_umask(mask: u32) {
    // SAFETY: no memory involved.
    let _ = unsafe { call(UMASK, [mask as usize]) };
}

/// The two sides of a fork.
pub enum Fork {
    Child,
    Parent(Pid),
}

pub fn fork() -> Result<Fork> {
    clone(0)
}

/// Forks into namespaces `new`.
pub(super) fn clone(new: usize) -> Result<Fork> {
    const SIGCHLD: usize = 17;
    // SAFETY: without CLONE_VM the child is a copy; there is one thread, so nothing is cut in the middle.
    // With all arguments zero it doesn't matter that the two architectures order them differently.
    let pid = unsafe { call(CLONE, [new | SIGCHLD, 0, 0, 0, 0]) }?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(Pid(pid as i32)) })
}

pub fn new_session() -> Result<()> {
    // SAFETY: no memory involved.
    unsafe { call(SETSID, []) }.map(drop)
}

pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: does not return.
        let _ = unsafe { call(EXIT_GROUP, [code as usize]) };
    }
}

/// How a process ended.
#[derive(Clone, Copy)]
pub enum Status {
    Code(u8),
    Signal(u8),
}

/// A child that ended, and what it and the children that it waited for used.
pub struct Reaped {
    pub pid: Pid,
    pub status: Status,
    pub cpu_us: u64,
    pub max_rss_kib: u64,
}

/// Reaps one ended child; `None` if all that there are still run, ECHILD if there are none.
pub fn reap() -> Result<Option<Reaped>> {
    const ANY: usize = -1_isize as usize;
    const WNOHANG: usize = 1;
    let mut status = 0_u32;
    // struct rusage: user sec and usec, system sec and usec, maximum resident set (KiB), 13 others.
    let mut usage = [0_u64; 18];
    let pid = again(|| {
        // SAFETY: the kernel writes one int and one struct rusage.
        unsafe { call(WAIT4, [ANY, &raw mut status as usize, WNOHANG, usage.as_mut_ptr() as usize]) }
    })?;
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(Reaped {
        pid: Pid(pid as i32),
        status: match status & 0x7f {
            0 => Status::Code((status >> 8) as u8),
            n => Status::Signal(n as u8),
        },
        cpu_us: (usage[0] + usage[2]) * 1_000_000 + usage[1] + usage[3],
        max_rss_kib: usage[4],
    }))
}

/// A string as `execve` takes it in a vector; `None` ends the vector. (A reference is never null, so an
/// `Option` of one is a nullable pointer, guaranteed.)
pub type Arg<'a> = Option<&'a u8>;

/// The pointer of a string.
pub fn arg(s: &CStr) -> Arg<'_> {
    s.to_bytes_with_nul().first()
}

/// A vector of `n` empty arguments, for a process that will soon be another: it is never freed.
pub fn args<'a>(n: usize) -> Result<&'a mut [Arg<'a>]> {
    let bytes = n.checked_mul(size_of::<Arg<'_>>()).ok_or(Errno(12))?;
    let mut map = core::mem::ManuallyDrop::new(Mapping::new(bytes)?);
    // SAFETY: the mapping is ours alone, aligned to a page, as long as wanted, and zero, which is `None`.
    Ok(unsafe { core::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), n) })
}

/// Becomes the program at `path`; returns only if that failed.
pub fn execve(path: &CStr, argv: &[Arg<'_>], envp: &[Arg<'_>]) -> Errno {
    assert!(argv.last() == Some(&None) && envp.last() == Some(&None));
    // SAFETY: the kernel only reads: strings that outlive the borrow, up to each vector's `None`.
    let failed =
        unsafe { call(EXECVE, [path.as_ptr() as usize, argv.as_ptr() as usize, envp.as_ptr() as usize]) };
    failed.err().unwrap_or(Errno(0))
}
