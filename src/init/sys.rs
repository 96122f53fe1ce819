//! The kernel, as init sees it: system calls, memory, process entry. The only file with `unsafe` code.
//!
//! There is no libc here, on purpose: init runs in images that have none, and its private memory is what
//! an idle container costs. What this file exports is safe to call: file descriptors are owned, mappings
//! are slices, and pointers that the kernel merely reads can make it answer EFAULT but not break us.

pub mod isolate;

use core::arch::{asm, global_asm};
use core::ffi::CStr;
use core::ops::{Deref, DerefMut};

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("init speaks to the Linux kernel on x86_64 and aarch64 only");

// ---- Entry ------------------------------------------------------------------------------------------

// The kernel enters with the stack pointer at argc and nothing else promised; the ABI wants the stack
// aligned to 16 bytes, and the outermost frame marked.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    ".type _start, @function",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {entry}",
    "ud2",
    entry = sym entry,
);
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    ".type _start, %function",
    "_start:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x0, sp",
    "and sp, x0, #0xfffffffffffffff0",
    "bl {entry}",
    "brk #1",
    entry = sym entry,
);

/// Continues from `_start`: `stack` is argc, then argv, NULL, the environment, NULL.
extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: the kernel laid the stack out like this (fs/binfmt_elf.c, create_elf_tables) and nobody
    // writes to it.
    let environment = Environment(unsafe { stack.add(*stack + 2).cast() });
    // SAFETY: as above.
    let arguments = Environment(unsafe { stack.add(1).cast() });
    crate::main(arguments, environment)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    complain(b"prewarm-init: panic in ");
    if let Some(at) = info.location() {
        complain(at.file().as_bytes());
        let mut digits = [b':', b'0', b'0', b'0', b'0', b'\n'];
        let mut line = at.line();
        for d in digits[1..5].iter_mut().rev() {
            *d = b'0' + (line % 10) as u8;
            line /= 10;
        }
        complain(&digits);
    }
    exit(125)
}

/// Core was compiled for unwinding and refers to this symbol; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    exit(125)
}

/// Writes to stderr as far as it takes it; for last words.
pub fn complain(words: &[u8]) {
    let stderr = core::mem::ManuallyDrop::new(Fd(2));
    let _ = write(&stderr, words);
}

/// The environment, or the arguments, that init itself was given; they stay where the kernel put them.
#[derive(Clone, Copy)]
pub struct Environment(*const *const core::ffi::c_char);

impl Environment {
    /// Its entries, in order.
    pub fn iter<'a>(self) -> impl Iterator<Item = &'a CStr> {
        let mut at = self.0;
        core::iter::from_fn(move || {
            // SAFETY: a NULL-terminated vector of C strings that live as long as the process; `at` stays
            // on the terminator once it got there.
            unsafe {
                if (*at).is_null() {
                    return None;
                }
                let entry = CStr::from_ptr(*at);
                at = at.add(1);
                Some(entry)
            }
        })
    }
}

// ---- System calls -----------------------------------------------------------------------------------

/// An error number of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    pub const NOENT: Errno = Errno(2);
    pub const SRCH: Errno = Errno(3);
    pub const INTR: Errno = Errno(4);
    pub const TOO_BIG: Errno = Errno(7);
    pub const NOEXEC: Errno = Errno(8);
    pub const AGAIN: Errno = Errno(11);
    pub const ACCES: Errno = Errno(13);
    pub const NOTDIR: Errno = Errno(20);
}

pub type Result<T> = core::result::Result<T, Errno>;

/// Numbers of the system calls: name, x86_64, aarch64 (the latter has no calls older than the `…at` family).
macro_rules! numbers {
    ($($name:ident $x86_64:literal $aarch64:literal)*) => {$(
        const $name: usize = if cfg!(target_arch = "x86_64") { $x86_64 } else { $aarch64 };
    )*};
}
numbers! {
    READ 0 63            WRITE 1 64           CLOSE 3 57           MMAP 9 222
    MUNMAP 11 215        RT_SIGACTION 13 134  RT_SIGPROCMASK 14 135
    IOCTL 16 29          PREAD64 17 67        GETPID 39 172        CLONE 56 220
    EXECVE 59 221        WAIT4 61 260         KILL 62 129          FCNTL 72 25
    GETCWD 79 17         CHDIR 80 49          FCHMOD 91 52         FCHOWN 93 55
    UMASK 95 166        
GETUID 102 174       SETSID 112 157       SETGROUPS 116 159    SETRESUID 117 147
    SETRESGID 119 149    CAPGET 125 90        CAPSET 126 91        PIVOT_ROOT 155 41
    PRCTL 157 167        MOUNT 165 40         UMOUNT2 166 39       CLOCK_GETTIME 228 113
    EXIT_GROUP 231 94    OPENAT 257 56        MKDIRAT 258 34       MKNODAT 259 33
    FCHOWNAT 260 54      NEWFSTATAT 262 79    UNLINKAT 263 35      SYMLINKAT 266 36
    FACCESSAT 269 48     PPOLL 271 73         UTIMENSAT 280 88     SIGNALFD4 289 74
    DUP3 292 24          PIPE2 293 59         SECCOMP 317 277      CLOSE_RANGE 436 436
}

/// Makes system call `n`. Arguments past the call's own are ignored by the kernel.
///
/// # Safety
/// As the call itself: whatever the kernel is told to write to must be writable and of that size.
unsafe fn call<const N: usize>(n: usize, args: [usize; N]) -> Result<usize> {
    let mut a = [0; 6];
    a[..N].copy_from_slice(&args);
    let ret: isize;
    // SAFETY: the kernel preserves every register but those named here.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") n => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc #0",
            in("x8") n,
            inlateout("x0") a[0] => ret,
            in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
            options(nostack),
        );
    }
    if (-4095..0).contains(&ret) { Err(Errno(-ret as i32)) } else { Ok(ret as usize) }
}

// ---- Files ------------------------------------------------------------------------------------------

const O_NONBLOCK: usize = 0o4000;
const O_CLOEXEC: usize = 0o2_000_000;
const AT_FDCWD: usize = -100_isize as usize;

/// An open file descriptor, closed when dropped.
pub struct Fd(i32);

impl Fd {
    /// One of the descriptors that the process was started with.
    pub const fn inherited(n: i32) -> Fd {
        Fd(n)
    }

    const fn raw(&self) -> usize {
        self.0 as usize
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: closes a descriptor that nobody else owns.
        let _ = unsafe { call(CLOSE, [self.raw()]) };
    }
}

pub fn read(fd: &Fd, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes into `into` alone.
    again(|| unsafe { call(READ, [fd.raw(), into.as_mut_ptr() as usize, into.len()]) })
}

/// Reads from the file's beginning, wherever its offset is.
pub fn read_from_start(fd: &Fd, into: &mut [u8]) -> Result<usize> {
    // SAFETY: as in `read`.
    again(|| unsafe { call(PREAD64, [fd.raw(), into.as_mut_ptr() as usize, into.len(), 0]) })
}

pub fn write(fd: &Fd, from: &[u8]) -> Result<usize> {
    // SAFETY: the kernel only reads.
    again(|| unsafe { call(WRITE, [fd.raw(), from.as_ptr() as usize, from.len()]) })
}

fn again(mut f: impl FnMut() -> Result<usize>) -> Result<usize> {
    loop {
        match f() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens for reading.
pub fn open(path: &CStr) -> Result<Fd> {
    open_as(path, 0)
}

/// Opens for reading and writing.
pub fn open_both_ways(path: &CStr) -> Result<Fd> {
    const O_RDWR: usize = 2;
    open_as(path, O_RDWR)
}

fn open_as(path: &CStr, flags: usize) -> Result<Fd> {
    // SAFETY: the kernel only reads.
    unsafe { call(OPENAT, [AT_FDCWD, path.as_ptr() as usize, flags | O_CLOEXEC, 0]) }.map(|n| Fd(n as i32))
}

/// A pipe of the default capacity, both ends blocking: (read end, write end).
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [0_i32; 2];
    // SAFETY: the kernel writes two ints.
    unsafe { call(PIPE2, [ends.as_mut_ptr() as usize, O_CLOEXEC]) }?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

/// Makes reads and writes on this end never block. (The flag is the open file's, so a pipe's other end,
/// which the job has, keeps blocking.)
pub fn set_nonblocking(fd: &Fd) -> Result<()> {
    const F_SETFL: usize = 4;
    // SAFETY: no memory involved.
    unsafe { call(FCNTL, [fd.raw(), F_SETFL, O_NONBLOCK]) }.map(drop)
}

/// Whether there is a descriptor of this number.
pub fn is_open(n: i32) -> bool {
    const F_GETFD: usize = 1;
    // SAFETY: no memory involved.
    unsafe { call(FCNTL, [n as usize, F_GETFD]) }.is_ok()
}

/// How many bytes a pipe holds.
pub fn buffered(fd: &Fd) -> usize {
    const FIONREAD: usize = 0x541B;
    let mut n = 0_i32;
    // SAFETY: the kernel writes one int.
    let _ = unsafe { call(IOCTL, [fd.raw(), FIONREAD, &raw mut n as usize]) };
    n.max(0) as usize
}

/// Makes descriptor `to` mean what `from` does; `to` stays open across `execve`.
pub fn place(from: &Fd, to: i32) -> Result<()> {
    // SAFETY: callers place over 0, 1 and 2 alone, which no `Fd` that is still used owns.
    unsafe { call(DUP3, [from.raw(), to as usize, 0]) }.map(drop)
}

/// Marks every descriptor from 3 on to be closed by `execve`. Kernels before 5.11 can't; there, the flag
/// that each was opened with has to do.
pub fn close_the_rest_on_exec() {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: no memory involved, nothing is closed yet.
    let _ = unsafe { call(CLOSE_RANGE, [3, u32::MAX as usize, CLOSE_RANGE_CLOEXEC]) };
}

/// The type and permission bits of the file at `path`, symbolic links followed.
pub fn mode(path: &CStr) -> Result<u32> {
    Ok(attributes(path)?.mode)
}

/// What a file is like, but for its content.
#[derive(Clone, Copy)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// When it was last changed: seconds and nanoseconds.
    modified: [u64; 2],
}

/// Of the file at `path`, symbolic links followed.
pub fn attributes(path: &CStr) -> Result<Attributes> {
    // struct stat is 144 bytes on x86_64 and 128 on aarch64. In asm/stat.h st_mode comes after st_nlink, in
    // asm-generic/stat.h before it; both have st_mtime at 88.
    const MODE: usize = if cfg!(target_arch = "x86_64") { 24 } else { 16 };
    const OWNER: usize = if cfg!(target_arch = "x86_64") { 28 } else { 24 };
    const MODIFIED: usize = 88;
    let mut stat = [0_u64; 32];
    // SAFETY: the kernel writes a struct stat, which is smaller.
    unsafe { call(NEWFSTATAT, [AT_FDCWD, path.as_ptr() as usize, stat.as_mut_ptr() as usize, 0]) }?;
    let word = |at: usize| (stat[at / 8] >> (at % 8 * 8)) as u32;
    Ok(Attributes {
        mode: word(MODE),
        uid: word(OWNER),
        gid: word(OWNER + 4),
        modified: [stat[MODIFIED / 8], stat[MODIFIED / 8 + 1]],
    })
}

/// Gives the file at `path` this owner and this time of its last change.
pub fn set_owner_and_time(path: &CStr, like: &Attributes) -> Result<()> {
    let at = path.as_ptr() as usize;
    if (like.uid, like.gid) != (0, 0) {
        // SAFETY: the kernel only reads.
        unsafe { call(FCHOWNAT, [AT_FDCWD, at, like.uid as usize, like.gid as usize, 0]) }?;
    }
    // Accessed, modified.
    let times = [like.modified, like.modified];
    // SAFETY: the kernel only reads two timespecs.
    unsafe { call(UTIMENSAT, [AT_FDCWD, at, times.as_ptr() as usize, 0]) }.map(drop)
}

pub fn set_mode(fd: &Fd, mode: u32) -> Result<()> {
    // SAFETY: no memory involved.
    unsafe { call(FCHMOD, [fd.raw(), mode as usize]) }.map(drop)
}

/// Gives an open file another user; its group stays.
pub fn give(fd: &Fd, uid: u32) -> Result<()> {
    let same_group = u32::MAX as usize;
    // SAFETY: no memory involved.
    unsafe { call(FCHOWN, [fd.raw(), uid as usize, same_group]) }.map(drop)
}

/// The working directory's path, in `buffer`.
pub fn working_directory(buffer: &mut [u8]) -> Result<&CStr> {
    // SAFETY: the kernel writes at most as much as fits, a NUL included.
    let n = unsafe { call(GETCWD, [buffer.as_mut_ptr() as usize, buffer.len()]) }?;
    CStr::from_bytes_with_nul(&buffer[..n]).map_err(|_| Errno::NOENT)
}

/// Creates a file for writing, or empties it.
pub fn create(path: &CStr) -> Result<Fd> {
    const O_WRONLY_CREAT_TRUNC: usize = 0o1 | 0o100 | 0o1000;
    open_as(path, O_WRONLY_CREAT_TRUNC)
}

pub fn make_directory(path: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the kernel only reads.
    unsafe { call(MKDIRAT, [AT_FDCWD, path.as_ptr() as usize, mode as usize]) }.map(drop)
}

/// Makes a character device's node.
pub fn make_device(path: &CStr, mode: u32, major: u32, minor: u32) -> Result<()> {
    const S_IFCHR: u32 = 0o020_000;
    // As the kernel packs them (include/linux/kdev_t.h, new_encode_dev); these numbers are all small.
    let device = (major << 8 | minor) as usize;
    // SAFETY: the kernel only reads.
    unsafe { call(MKNODAT, [AT_FDCWD, path.as_ptr() as usize, (S_IFCHR | mode) as usize, device]) }.map(drop)
}

pub fn make_symlink(target: &CStr, path: &CStr) -> Result<()> {
    // SAFETY: the kernel only reads.
    unsafe { call(SYMLINKAT, [target.as_ptr() as usize, AT_FDCWD, path.as_ptr() as usize]) }.map(drop)
}

pub fn remove_directory(path: &CStr) -> Result<()> {
    const AT_REMOVEDIR: usize = 0x200;
    // SAFETY: the kernel only reads.
    unsafe { call(UNLINKAT, [AT_FDCWD, path.as_ptr() as usize, AT_REMOVEDIR]) }.map(drop)
}

/// The number that the next descriptor would get: the lowest that is free.
pub fn next_descriptor() -> Result<usize> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    // SAFETY: no memory involved.
    let n = unsafe { call(FCNTL, [0, F_DUPFD_CLOEXEC, 0]) }?;
    drop(Fd(n as i32));
    Ok(n)
}

/// Whether this process may execute the file at `path`.
pub fn may_execute(path: &CStr) -> Result<()> {
    const X_OK: usize = 1;
    // SAFETY: the kernel only reads.
    unsafe { call(FACCESSAT, [AT_FDCWD, path.as_ptr() as usize, X_OK]) }.map(drop)
}

pub fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: the kernel only reads.
    unsafe { call(CHDIR, [path.as_ptr() as usize]) }.map(drop)
}

// ---- Poll -------------------------------------------------------------------------------------------

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

// ---- Signals ----------------------------------------------------------------------------------------

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
    /// Its sender isn't in this PID namespace, which the kernel shows as process 0: an engine that stops the
    /// container, or somebody on the host.
    pub from_outside: bool,
}

/// The next signal, if one has arrived.
pub fn next_signal(signals: &Fd) -> Option<Signal> {
    // struct signalfd_siginfo: the number at 0, the sender's process id at 12.
    let mut info = [0_u8; 128];
    let word = |info: &[u8; 128], at: usize| {
        i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]])
    };
    match read(signals, &mut info) {
        Ok(128) => Some(Signal { number: word(&info, 0), from_outside: word(&info, 12) == 0 }),
        _ => None,
    }
}

// ---- Processes --------------------------------------------------------------------------------------

/// A process id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pid(i32);

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

// ---- Memory -----------------------------------------------------------------------------------------

/// Anonymous memory: zero, and costing nothing until it is written to.
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    pub fn new(len: usize) -> Result<Mapping> {
        const MAP_PRIVATE: usize = 0x02;
        Mapping::of(len, MAP_PRIVATE)
    }

    /// Memory that a child which is forked from now on has in common with this process.
    pub fn shared(len: usize) -> Result<Mapping> {
        const MAP_SHARED: usize = 0x01;
        Mapping::of(len, MAP_SHARED)
    }

    fn of(len: usize, sharing: usize) -> Result<Mapping> {
        const PROT_READ_WRITE: usize = 1 | 2;
        const MAP_ANONYMOUS: usize = 0x20;
        let no_file = -1_isize as usize;
        // SAFETY: a new mapping, at an address of the kernel's choice. It refuses a length of 0.
        let at = unsafe { call(MMAP, [0, len.max(1), PROT_READ_WRITE, MAP_ANONYMOUS | sharing, no_file, 0]) }?;
        Ok(Mapping { at: at as *mut u8, len })
    }

    /// Keeps it for as long as the process lives.
    pub fn leak(self) -> &'static mut [u8] {
        let mut kept = core::mem::ManuallyDrop::new(self);
        // SAFETY: ours alone, as in `deref_mut`, and never unmapped from here on.
        unsafe { core::slice::from_raw_parts_mut(kept.as_mut_ptr(), kept.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing borrows from it any more.
        let _ = unsafe { call(MUNMAP, [self.at as usize, self.len.max(1)]) };
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped, initialized by the kernel, of this length.
        unsafe { core::slice::from_raw_parts(self.at, self.len) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

/// What the compiler calls for copies and comparisons, as libc would provide it. In assembler, or with
/// volatile reads, where it might otherwise recognize the loop and replace it with a call to itself.
mod mem {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
        // SAFETY: the caller promises `n` bytes at both, not overlapping. The direction flag is clear, by the ABI.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                "2:",
                "subs {n}, {n}, #16",
                "b.lo 3f",
                "ldp {a}, {b}, [{from}], #16",
                "stp {a}, {b}, [{to}], #16",
                "b 2b",
                "3:",
                "adds {n}, {n}, #16",
                "b.eq 5f",
                "4:",
                "ldrb {a:w}, [{from}], #1",
                "strb {a:w}, [{to}], #1",
                "subs {n}, {n}, #1",
                "b.ne 4b",
                "5:",
                n = inout(reg) n => _, to = inout(reg) to => _, from = inout(reg) from => _,
                a = out(reg) _, b = out(reg) _,
                options(nostack),
            );
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
        // Copying forwards is wrong only if the destination begins inside the source.
        if (to as usize).wrapping_sub(from as usize) >= n {
            // SAFETY: the caller promises `n` bytes at both; a forward copy byte by byte, or of 16 bytes
            // read before they are written, is right for a destination that lies lower.
            return unsafe { memcpy(to, from, n) };
        }
        // SAFETY: as above; from the last byte down, and the direction flag is clear again afterwards.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "std", "rep movsb", "cld",
                inout("rcx") n => _,
                inout("rdi") to.wrapping_add(n).wrapping_sub(1) => _,
                inout("rsi") from.wrapping_add(n).wrapping_sub(1) => _,
                options(nostack),
            );
        }
        // SAFETY: as above; `n` is not 0 here.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                "2:",
                "ldrb {a:w}, [{from}, #-1]!",
                "strb {a:w}, [{to}, #-1]!",
                "subs {n}, {n}, #1",
                "b.ne 2b",
                n = inout(reg) n => _,
                to = inout(reg) to.wrapping_add(n) => _,
                from = inout(reg) from.wrapping_add(n) => _,
                a = out(reg) _,
                options(nostack),
            );
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
        // SAFETY: the caller promises `n` writable bytes.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "rep stosb",
                inout("rcx") n => _, inout("rdi") to => _, in("al") byte as u8,
                options(nostack, preserves_flags),
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                "cbz {n}, 3f",
                "2:",
                "strb {byte:w}, [{to}], #1",
                "subs {n}, {n}, #1",
                "b.ne 2b",
                "3:",
                n = inout(reg) n => _, to = inout(reg) to => _, byte = in(reg) byte,
                options(nostack),
            );
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        for i in 0..n {
            // SAFETY: the caller promises `n` readable bytes at both.
            let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
            if x != y {
                return i32::from(x) - i32::from(y);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        // SAFETY: the same promise.
        unsafe { memcmp(a, b, n) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn strlen(s: *const u8) -> usize {
        let mut n = 0;
        // SAFETY: the caller promises a NUL at the end.
        while unsafe { s.add(n).read_volatile() } != 0 {
            n += 1;
        }
        n
    }
}
