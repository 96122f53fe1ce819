//! Descriptors, and files by their paths.

use core::ffi::CStr;

use super::{
    CHDIR, CLOSE, CLOSE_RANGE, DUP3, Errno, FACCESSAT, FCHDIR, FCHMOD, FCHOWN, FCHOWNAT, FCNTL, GETCWD,
    IOCTL, MKDIRAT, MKNODAT, NEWFSTATAT, OPENAT, PIPE2, PREAD64, READ, Result, SYMLINKAT, UNLINKAT,
    UTIMENSAT, WRITE, call,
};

pub(super) const O_NONBLOCK: usize = 0o4000;
pub(super) const O_CLOEXEC: usize = 0o2_000_000;
const AT_FDCWD: usize = -100_isize as usize;

/// An open file descriptor, closed when dropped.
pub struct Fd(pub(super) i32);

impl Fd {
    /// One of the descriptors that the process was started with.
    pub const fn inherited(n: i32) -> Fd {
        Fd(n)
    }

    pub(super) const fn raw(&self) -> usize {
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

pub(super) fn again(mut f: impl FnMut() -> Result<usize>) -> Result<usize> {
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

/// Makes this descriptor mean what another does, for reading and writing that never block.
pub fn become_other(fd: &Fd, other: &Fd) -> Result<()> {
    set_nonblocking(other)?;
    // SAFETY: who owns `fd` goes on to, and nobody owns what it meant.
    unsafe { call(DUP3, [other.raw(), fd.raw(), O_CLOEXEC]) }.map(drop)
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

/// To a directory that is open, whatever its name is now.
pub fn change_directory(directory: &Fd) -> Result<()> {
    // SAFETY: no memory is touched.
    unsafe { call(FCHDIR, [directory.raw()]) }.map(drop)
}

pub fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: the kernel only reads.
    unsafe { call(CHDIR, [path.as_ptr() as usize]) }.map(drop)
}
