//! Waiting, time, and signals.

use super::files::{Fd, O_CLOEXEC, O_NONBLOCK, read};
use super::{CLOCK_GETTIME, Errno, PPOLL, RT_SIGACTION, RT_SIGPROCMASK, Result, SIGNALFD4, call};

pub const POLLIN: i16 = 1;
/// What a table of mounts reports when it has changed since it was last asked (fs/proc_namespace.c, mounts_poll).
pub const POLLPRI: i16 = 2;
pub const POLLOUT: i16 = 4;

/// One descriptor to wait for: `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Poll {
    fd: i32,
    events: i16,
    revents: i16,
}

impl Poll {
    /// Waits for nothing: the kernel skips negative descriptors, hang-ups included.
    pub const NONE: Poll = Poll { fd: -1, events: 0, revents: 0 };

    /// Waits for `events` on `fd`, and for errors and hang-ups.
    pub const fn on(fd: &Fd, events: i16) -> Poll {
        Poll { fd: fd.0, events, revents: 0 }
    }

    /// Whether anything at all was reported.
    pub const fn ready(self) -> bool {
        self.revents != 0
    }

    /// Whether something beyond the wanted events was: an error, or the other side hung up.
    pub const fn broken(self) -> bool {
        self.revents & !(POLLIN | POLLOUT) != 0
    }
}

#[repr(C)]
struct Timespec {
    sec: i64,
    nsec: i64,
}

/// Waits until something of `set` is ready or `timeout_ms` passed.
pub fn poll(set: &mut [Poll], timeout_ms: Option<u64>) -> Result<()> {
    let mut t =
        timeout_ms.map(|ms| Timespec { sec: (ms / 1000) as i64, nsec: (ms % 1000 * 1_000_000) as i64 });
    let t = t.as_mut().map_or(0, |t| &raw mut *t as usize);
    // SAFETY: the kernel writes into `set`, and the time that was left into `t`.
    match unsafe { call(PPOLL, [set.as_mut_ptr() as usize, set.len(), t, 0, 0]) } {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Milliseconds on a clock that only goes forward.
pub fn now_ms() -> u64 {
    const CLOCK_MONOTONIC: usize = 1;
    let mut t = Timespec { sec: 0, nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    let _ = unsafe { call(CLOCK_GETTIME, [CLOCK_MONOTONIC, &raw mut t as usize]) };
    t.sec as u64 * 1000 + t.nsec as u64 / 1_000_000
}

pub const SIGHUP: i32 = 1;
pub const SIGINT: i32 = 2;
pub const SIGQUIT: i32 = 3;
pub const SIGKILL: i32 = 9;
pub const SIGPIPE: i32 = 13;
pub const SIGTERM: i32 = 15;
pub const SIGCHLD: i32 = 17;
pub const SIGTSTP: i32 = 20;
pub const SIGTTIN: i32 = 21;
pub const SIGTTOU: i32 = 22;

/// Bytes of the kernel's sigset_t.
const SIGSET: usize = 8;

/// Blocks every signal, or none.
pub fn block_signals(mask: Mask) {
    const SIG_SETMASK: usize = 2;
    let mask: u64 = match mask {
        Mask::All => !0,
        Mask::None => 0,
    };
    // SAFETY: the kernel only reads.
    let _ = unsafe { call(RT_SIGPROCMASK, [SIG_SETMASK, &raw const mask as usize, 0, SIGSET]) };
}

/// Which signals to block.
#[derive(Clone, Copy)]
pub enum Mask {
    All,
    None,
}

/// Gives every signal its default disposition.
pub fn default_signals() {
    // struct sigaction with handler SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0_u64; 4];
    for n in 1..=64 {
        // SAFETY: the kernel only reads; it refuses SIGKILL and SIGSTOP.
        let _ = unsafe { call(RT_SIGACTION, [n, default.as_ptr() as usize, 0, SIGSET]) };
    }
}

/// A descriptor on which blocked signals arrive.
pub fn signals() -> Result<Fd> {
    let all = !0_u64;
    let new = -1_isize as usize;
    // SAFETY: the kernel only reads.
    unsafe { call(SIGNALFD4, [new, &raw const all as usize, SIGSET, O_CLOEXEC | O_NONBLOCK]) }
        .map(|n| Fd(n as i32))
}

/// A signal that has arrived.
pub struct Signal {
    pub number: i32,
    /// Sent by kill(2), and its sender isn't in this PID namespace, which the kernel shows as process 0: an engine that stops the
    /// container, or somebody on the host. By other ways a sender may call itself what it likes (rt_sigqueueinfo(2)), and nobody
    /// may claim `SI_USER`. But a job that has used up all of its user's pending signals can still look so: of the next one the kernel
    /// keeps the number alone (kernel/signal.c, collect_signal).
    pub from_outside: bool,
}

/// The next signal, if one has arrived.
pub fn next_signal(signals: &Fd) -> Option<Signal> {
    const SI_USER: i32 = 0;
    // struct signalfd_siginfo: the number at 0, how it was sent at 8, the sender's process id at 12.
    let mut info = [0_u8; 128];
    let word = |info: &[u8; 128], at: usize| {
        i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]])
    };
    match read(signals, &mut info) {
        Ok(128) => Some(Signal {
            number: word(&info, 0),
            from_outside: word(&info, 8) == SI_USER && word(&info, 12) == 0,
        }),
        _ => None,
    }
}
