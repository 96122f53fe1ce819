//! Pure: Docker's default seccomp profile, as a filter for one job and as a profile for a container that serves many.
//!
//! In isolation `namespace` the container needs more than its jobs may have: [`container_profile`] is what the engine
//! is given for it. Init then gives each job the pool's [`Capabilities`] and the [`job_filter`] that goes with them, so
//! that a job may call what it may call under `docker run` with the same `cap_add` and `cap_drop`.
//!
//! # Which profile
//!
//! Docker's changes from release to release. Jobs get what all from 20.10.24 to 28.5.2 allow, whatever engine they run
//! on; where releases differ, the stricter:
//!
//! | system calls | allowed by Docker | here |
//! | --- | --- | --- |
//! | `io_uring_setup`, `_enter`, `_register` | 20.10 to 24 | EPERM |
//! | `socket(AF_VSOCK)` | 20.10 | EPERM |
//! | `socket(AF_ALG)` | before 29.4.2, which refuses it for a fault in the kernel | EPERM |
//! | `process_vm_readv`, `process_vm_writev` | since 23; in 20.10 with SYS_PTRACE | with SYS_PTRACE |
//! | `name_to_handle_at` | since 24; before with SYS_ADMIN | with SYS_ADMIN |
//! | `pkey_alloc`, `pkey_free`, `pkey_mprotect` | since 23 | EPERM |
//! | `clock_settime64` of 32-bit programs | since 23, with SYS_TIME | EPERM |
//! | `uretprobe` | since 28.5 | EPERM |
//! | whatever is newer than `futex_waitv` | since 25 or 28.5, some | ENOSYS |
//! | x32, an ABI of few kernels | if the kernel has it | ENOSYS |
//!
//! Two things are left out: Docker allows `ptrace` on kernels from 4.8 on, and older ones can't run this isolation;
//! and libseccomp compares all 64 bits of `socket`'s family, of which the kernel takes 32. As in Docker, 32-bit x86
//! programs get around the families through `socketcall`, whose arguments no filter can see.
//!
//! Calls with numbers above the profile's last get ENOSYS, not EPERM, as from runc (`libcontainer/seccomp/patchbpf`):
//! they are newer than the profile, and C libraries fall back. (In the ABI of 32-bit ARM the last is `set_tls`, far
//! above the others: there they get EPERM, as in Docker.)

mod bpf;
mod capabilities;
mod container;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use capabilities::Capabilities;
pub use container::{NEEDS_OF_INIT, container_profile};

use bpf::Interval;
use table::{Abi, ENOSYS, EPERM, Verdict};

/// The filter of a job with these capabilities, for `seccomp(SECCOMP_SET_MODE_FILTER)`: `struct sock_filter`s, of 8
/// bytes each. `None` for architectures other than `x86_64` and `aarch64`.
///
/// 32-bit programs are served as well, by the same rules for their own numbers.
///
/// Every job installs it. On a 2-core x86_64 machine with Linux 6.18 that takes 61 µs (201 instructions), where a
/// filter that compares number after number, as the crate seccompiler makes it, takes 640 µs (1477 instructions, for 64-bit
/// programs alone). Of it 11 µs are the price of any filter, some 30 the kernel's compiler, the rest its cache.
pub fn job_filter(architecture: &str, caps: Capabilities) -> Option<Vec<u8>> {
    let abis = Abi::of(architecture)?;
    Some(bpf::assemble(&abis.map(|abi| (abi, intervals(abi, caps)))))
}

/// Every number's verdict, neighbours with the same taken together.
fn intervals(abi: Abi, caps: Capabilities) -> Vec<Interval> {
    let verdicts: BTreeMap<u32, Verdict> =
        table::syscalls().filter_map(|call| Some((call.number(abi)?, call.rule.verdict(caps)?))).collect();
    let mut intervals: Vec<Interval> = Vec::new();
    let mut from = |start: u32, verdict: Verdict| {
        if intervals.last().is_none_or(|last| last.verdict != verdict) {
            intervals.push(Interval { start, verdict });
        }
    };
    let mut next = 0;
    for (number, verdict) in verdicts {
        if number > next {
            from(next, Verdict::Fail(EPERM));
        }
        from(number, verdict);
        next = number + 1;
    }
    from(next, Verdict::Fail(ENOSYS));
    intervals
}
