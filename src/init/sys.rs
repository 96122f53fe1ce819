//! The kernel, as init sees it: system calls, memory, process entry. With what is in `sys/`, the only code that is
//! `unsafe`.
//!
//! There is no libc here, on purpose: init runs in images that have none, and its private memory is what
//! an idle container costs. What is exported is safe to call: file descriptors are owned, mappings
//! are slices, and pointers that the kernel merely reads can make it answer EFAULT but not break us.

mod files;
pub mod isolate;
mod memory;
mod pass;
mod processes;
mod tree;
mod wait;

use core::arch::{asm, global_asm};
use core::ffi::CStr;

pub use files::*;
pub use memory::{Mapping, keep};
pub use pass::*;
pub use processes::*;
pub use tree::*;
pub use wait::*;

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
    pub const EXIST: Errno = Errno(17);
    pub const NOTDIR: Errno = Errno(20);
    pub const NAME_TOO_LONG: Errno = Errno(36);
    pub const LOOP: Errno = Errno(40);
}

pub type Result<T> = core::result::Result<T, Errno>;

/// Numbers of the system calls: name, x86_64, aarch64 (the latter has no calls older than the `…at` family).
macro_rules! numbers {
    ($($name:ident $x86_64:literal $aarch64:literal)*) => {$(
        const $name: usize = if cfg!(target_arch = "x86_64") { $x86_64 } else { $aarch64 };
    )*};
}
numbers! {
    READ 0 63             WRITE 1 64            CLOSE 3 57            MMAP 9 222
    MUNMAP 11 215         RT_SIGACTION 13 134   RT_SIGPROCMASK 14 135 IOCTL 16 29
    PREAD64 17 67         GETPID 39 172         SENDMSG 46 211        RECVMSG 47 212
    SOCKET 41 198         CONNECT 42 203        SOCKETPAIR 53 199     CLONE 56 220          EXECVE 59 221
    WAIT4 61 260          KILL 62 129           FCNTL 72 25           GETCWD 79 17
    CHDIR 80 49           FCHDIR 81 50          FCHMOD 91 52          FCHOWN 93 55          UMASK 95 166
    GETUID 102 174        SETSID 112 157        SETGROUPS 116 159     SETRESUID 117 147
    SETRESGID 119 149     CAPGET 125 90         CAPSET 126 91         FSTATFS 138 44
    PIVOT_ROOT 155 41     GETDENTS64 217 61     SETNS 308 268
    PRCTL 157 167         MOUNT 165 40          UMOUNT2 166 39        CLOCK_GETTIME 228 113
    EXIT_GROUP 231 94     OPENAT 257 56         MKDIRAT 258 34        MKNODAT 259 33
    FCHOWNAT 260 54       NEWFSTATAT 262 79     UNLINKAT 263 35       SYMLINKAT 266 36
    FACCESSAT 269 48      PPOLL 271 73          UTIMENSAT 280 88      SIGNALFD4 289 74
    DUP3 292 24           PIPE2 293 59          SECCOMP 317 277       CLOSE_RANGE 436 436
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
