//! System calls with which init gives a job a world of its own: namespaces, mounts, credentials, seccomp.

use core::ffi::CStr;

use super::{
    CAPSET, Fd, Fork, MOUNT, PIVOT_ROOT, PRCTL, Result, SECCOMP, SETGROUPS, SETRESGID, SETRESUID, UMOUNT2,
    call, clone,
};

pub const MS_RDONLY: usize = 1;
pub const MS_NOSUID: usize = 2;
pub const MS_NODEV: usize = 4;
pub const MS_NOEXEC: usize = 8;
pub const MS_NOATIME: usize = 1 << 10;
pub const MS_NODIRATIME: usize = 1 << 11;
pub const MS_RELATIME: usize = 1 << 21;
pub const MS_STRICTATIME: usize = 1 << 24;

/// Forks a process that is the first of a PID namespace, with mounts, IPC objects and a host name of its own.
pub fn fork_isolated() -> Result<Fork> {
    const NEW_MOUNTS: usize = 0x0002_0000;
    const NEW_HOST_NAME: usize = 0x0400_0000;
    const NEW_IPC: usize = 0x0800_0000;
    const NEW_PIDS: usize = 0x2000_0000;
    clone(NEW_MOUNTS | NEW_HOST_NAME | NEW_IPC | NEW_PIDS)
}

/// Mounts a new file system of `kind`, with these options of its own. `source` is what the table of mounts shows.
pub fn mount(source: &CStr, on: &CStr, kind: &CStr, flags: usize, options: &CStr) -> Result<()> {
    let [source, on, kind, options] = [source, on, kind, options].map(|text| text.as_ptr() as usize);
    // SAFETY: the kernel only reads.
    unsafe { call(MOUNT, [source, on, kind, flags, options]) }.map(drop)
}

/// Makes a mount of its own of what is at `path`, and puts it there.
pub fn mount_again(path: &CStr) -> Result<()> {
    const MS_BIND: usize = 1 << 12;
    let path = path.as_ptr() as usize;
    // SAFETY: the kernel only reads.
    unsafe { call(MOUNT, [path, path, 0, MS_BIND, 0]) }.map(drop)
}

/// Moves a mount, with all that is mounted below it.
pub fn move_mount(from: &CStr, to: &CStr) -> Result<()> {
    const MS_MOVE: usize = 1 << 13;
    // SAFETY: the kernel only reads.
    unsafe { call(MOUNT, [from.as_ptr() as usize, to.as_ptr() as usize, 0, MS_MOVE, 0]) }.map(drop)
}

/// Makes a mount read-only whose flags are these; its file system is what it was.
pub fn make_read_only(on: &CStr, flags: usize) -> Result<()> {
    const MS_REMOUNT: usize = 1 << 5;
    const MS_BIND: usize = 1 << 12;
    let (none, on) = (c"none".as_ptr() as usize, on.as_ptr() as usize);
    // SAFETY: the kernel only reads.
    unsafe { call(MOUNT, [none, on, 0, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, 0]) }.map(drop)
}

/// What is mounted or unmounted from now on by this process is so nowhere else, and the other way round.
pub fn unshare_propagation() -> Result<()> {
    const MS_REC: usize = 1 << 14;
    const MS_PRIVATE: usize = 1 << 18;
    let (none, root) = (c"none".as_ptr() as usize, c"/".as_ptr() as usize);
    // SAFETY: the kernel only reads.
    unsafe { call(MOUNT, [none, root, 0, MS_REC | MS_PRIVATE, 0]) }.map(drop)
}

/// Takes a mount away at once, and its file system as soon as nobody uses it.
pub fn detach(path: &CStr) -> Result<()> {
    const MNT_DETACH: usize = 2;
    // SAFETY: the kernel only reads.
    unsafe { call(UMOUNT2, [path.as_ptr() as usize, MNT_DETACH]) }.map(drop)
}

/// Makes the working directory, which is a mount, the root; the old root is then mounted over it.
pub fn pivot_here() -> Result<()> {
    let here = c".".as_ptr() as usize;
    // SAFETY: the kernel only reads.
    unsafe { call(PIVOT_ROOT, [here, here]) }.map(drop)
}

/// Becomes this user with these groups (`gid_t`s one after the other), and no other.
pub fn become_user(uid: u32, gid: u32, groups: &[u8]) -> Result<()> {
    let (uid, gid) = (uid as usize, gid as usize);
    // SAFETY: the kernel only reads as many ids.
    unsafe { call(SETGROUPS, [groups.len() / size_of::<u32>(), groups.as_ptr() as usize]) }?;
    // SAFETY: no memory involved.
    unsafe { call(SETRESGID, [gid, gid, gid]) }?;
    // SAFETY: no memory involved.
    unsafe { call(SETRESUID, [uid, uid, uid]) }.map(drop)
}

/// Gives up, for good, every capability that isn't in `kept`.
pub fn bound_capabilities(kept: u64) -> Result<()> {
    const PR_CAPBSET_READ: usize = 23;
    const PR_CAPBSET_DROP: usize = 24;
    for n in (0..64).filter(|n| kept & (1 << n) == 0) {
        // SAFETY: no memory involved. The kernel doesn't know numbers past its last.
        match unsafe { call(PRCTL, [PR_CAPBSET_READ, n, 0, 0, 0]) } {
            Ok(0) => {}
            // SAFETY: as above.
            Ok(_) => _ = unsafe { call(PRCTL, [PR_CAPBSET_DROP, n, 0, 0, 0]) }?,
            Err(_) => break,
        }
    }
    Ok(())
}

/// Has exactly these capabilities, and passes none on by inheritance.
pub fn set_capabilities(own: u64) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let (low, high) = (own as u32, (own >> 32) as u32);
    // Effective, permitted, inheritable; for capabilities 0–31, then 32–63.
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: the kernel only reads, as it knows the version.
    unsafe { call(CAPSET, [header.as_ptr() as usize, sets.as_ptr() as usize]) }.map(drop)
}

/// Filters the system calls of this process, from now on and for good, by a program of the kernel's classic BPF.
pub fn filter_calls(program: &[u8]) -> Result<()> {
    /// struct sock_fprog
    #[repr(C)]
    struct Program {
        len: u16,
        at: *const u8,
    }
    const SET_MODE_FILTER: usize = 1;
    const INSTRUCTION: usize = 8;
    let filter = Program { len: (program.len() / INSTRUCTION) as u16, at: program.as_ptr() };
    // SAFETY: the kernel reads `len` instructions, which are there, and checks them.
    unsafe { call(SECCOMP, [SET_MODE_FILTER, 0, &raw const filter as usize]) }.map(drop)
}

/// Whether the table of mounts, open as `mounts`, has changed since this was last asked.
pub fn mounts_changed(mounts: &Fd) -> bool {
    let mut set = [super::Poll::on(mounts, super::POLLPRI)];
    // At rest it is readable; a change is POLLERR and POLLPRI.
    super::poll(&mut set, Some(0)).is_err() || set[0].broken()
}
