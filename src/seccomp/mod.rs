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
//! | system calls | allowed by | here |
//! | --- | --- | --- |
//! | `io_uring_setup`, `_enter`, `_register` | 20.10 to 24 | EPERM |
//! | `socket(AF_VSOCK)` | 20.10 | EPERM |
//! | `socket(AF_ALG)` | all up to 29.4.1; refused since, for CVEs | EPERM |
//! | `process_vm_readv`, `process_vm_writev` | 23 and newer; 20.10 with SYS_PTRACE | with SYS_PTRACE |
//! | `name_to_handle_at` | 24 and newer; before with SYS_ADMIN | with SYS_ADMIN |
//! | `pkey_alloc`, `pkey_free`, `pkey_mprotect` | 23 and newer | EPERM |
//! | `clock_settime64` (32-bit) | 23 and newer with SYS_TIME | EPERM |
//! | `set_mempolicy_home_node` and all that is newer (`cachestat`, `fchmodat2`, `futex_wait`, …) | 25 or 28.5 and newer | ENOSYS |
//! | x32, an ABI that few kernels have | all | ENOSYS |
//!
//! `uretprobe` is missing for the same reason (28.5), as are the `lsm_…` calls with SYS_ADMIN. Two things are left out
//! of the rules: Docker's allow `ptrace` on kernels from 4.8 on only, and older ones are too old for this isolation;
//! and `socket` looks at the half of its argument that the kernel looks at. As in Docker, 32-bit x86 programs get
//! around the families through `socketcall`, whose arguments a filter can't see.
//!
//! Calls with numbers above the profile's last get ENOSYS, not EPERM, as from runc (`libcontainer/seccomp/patchbpf`):
//! they are newer than the profile, and C libraries fall back.

mod bpf;
mod capabilities;
mod container;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use capabilities::{Capabilities, NAMES};
pub use container::{NEEDS_OF_INIT, container_profile};

use bpf::Interval;
use table::{Abi, ENOSYS, EPERM, Verdict};

/// The filter of a job with these capabilities, for `seccomp(SECCOMP_SET_MODE_FILTER)`: `struct sock_filter`s, of 8 bytes
/// each. `None` for architectures other than `x86_64` and `aarch64`.
///
/// 32-bit programs are served as well, each by the rules for its own numbers.
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
