//! Files by their names in a directory that is open; `None` stands for the working directory.

use core::ffi::CStr;

use super::files::{Fd, O_CLOEXEC, O_NONBLOCK, again, write};
use super::{FSTATFS, GETDENTS64, MKDIRAT, NEWFSTATAT, OPENAT, Result, UNLINKAT, call};

const AT_FDCWD: usize = -100_isize as usize;
const O_NOCTTY: usize = 0o400;
const O_PATH: usize = 0o10_000_000;
// The two that architectures number differently (asm/fcntl.h of arm64, asm-generic/fcntl.h).
const O_DIRECTORY: usize = if cfg!(target_arch = "x86_64") { 0o200_000 } else { 0o40_000 };
const O_NOFOLLOW: usize = if cfg!(target_arch = "x86_64") { 0o400_000 } else { 0o100_000 };

const fn at(directory: Option<&Fd>) -> usize {
    match directory {
        Some(fd) => fd.raw(),
        None => AT_FDCWD,
    }
}

fn open(directory: Option<&Fd>, name: &CStr, flags: usize, mode: usize) -> Result<Fd> {
    // SAFETY: the kernel only reads.
    again(|| unsafe { call(OPENAT, [at(directory), name.as_ptr() as usize, flags | O_CLOEXEC, mode]) })
        .map(|n| Fd(n as i32))
}

/// Opens a directory to go on from, symbolic links followed.
pub fn enter_directory(directory: Option<&Fd>, path: &CStr) -> Result<Fd> {
    open(directory, path, O_PATH | O_DIRECTORY, 0)
}

/// Opens a directory to be listed, symbolic links followed.
pub fn open_directory(directory: Option<&Fd>, path: &CStr) -> Result<Fd> {
    open(directory, path, O_DIRECTORY, 0)
}

/// Opens a directory to be listed that must not be a symbolic link.
pub fn open_real_directory(directory: Option<&Fd>, name: &CStr) -> Result<Fd> {
    open(directory, name, O_DIRECTORY | O_NOFOLLOW, 0)
}

/// Opens for reading what must not be a symbolic link. It never waits, as it would for a pipe's other end.
pub fn open_real_file(directory: Option<&Fd>, name: &CStr) -> Result<Fd> {
    open(directory, name, O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0)
}

pub fn make_directory_in(directory: Option<&Fd>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the kernel only reads.
    unsafe { call(MKDIRAT, [at(directory), name.as_ptr() as usize, mode as usize]) }.map(drop)
}

/// Removes a name that is no directory's.
pub fn remove_in(directory: Option<&Fd>, name: &CStr) -> Result<()> {
    // SAFETY: the kernel only reads.
    unsafe { call(UNLINKAT, [at(directory), name.as_ptr() as usize, 0]) }.map(drop)
}

/// Makes a file that isn't there yet, for writing, which nobody else may open so far.
pub fn create_in(directory: Option<&Fd>, name: &CStr) -> Result<Fd> {
    const O_WRONLY_CREAT_EXCL: usize = 0o1 | 0o100 | 0o200;
    open(directory, name, O_WRONLY_CREAT_EXCL | O_NOFOLLOW, 0o600)
}

pub fn write_all(fd: &Fd, mut from: &[u8]) -> Result<()> {
    while !from.is_empty() {
        let n = write(fd, from)?;
        from = &from[n..];
    }
    Ok(())
}

/// What is under a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    File,
    Directory,
    Link,
    /// A pipe, a device, a socket.
    Other,
}

/// What a file is, its permission bits, and how many bytes it has.
#[derive(Clone, Copy)]
pub struct Found {
    pub what: What,
    pub mode: u16,
    pub size: u64,
}

/// Of what is under this name; a symbolic link is one.
pub fn status_in(directory: Option<&Fd>, name: &CStr) -> Result<Found> {
    const AT_SYMLINK_NOFOLLOW: usize = 0x100;
    status(at(directory), name, AT_SYMLINK_NOFOLLOW)
}

/// Of an open file.
pub fn status_of(file: &Fd) -> Result<Found> {
    const AT_EMPTY_PATH: usize = 0x1000;
    status(file.raw(), c"", AT_EMPTY_PATH)
}

fn status(directory: usize, name: &CStr, flags: usize) -> Result<Found> {
    // See `attributes`; st_size is at 48 in both.
    const MODE: usize = if cfg!(target_arch = "x86_64") { 24 } else { 16 };
    const SIZE: usize = 48;
    let mut stat = [0_u64; 32];
    // SAFETY: the kernel writes a struct stat, which is smaller.
    unsafe { call(NEWFSTATAT, [directory, name.as_ptr() as usize, stat.as_mut_ptr() as usize, flags]) }?;
    let mode = stat[MODE / 8] as u32;
    let what = match mode & 0o170_000 {
        0o100_000 => What::File,
        0o040_000 => What::Directory,
        0o120_000 => What::Link,
        _ => What::Other,
    };
    Ok(Found { what, mode: (mode & 0o777) as u16, size: stat[SIZE / 8] })
}

/// Whether an open file is the kernel's own, of `/proc` or `/sys`: such a file has no size, and says another thing each time.
pub fn is_the_kernels(file: &Fd) -> bool {
    const PROC: u64 = 0x9fa0;
    const SYS: u64 = 0x6265_6572;
    let mut statfs = [0_u64; 32];
    // SAFETY: the kernel writes a struct statfs, which is smaller and begins with the type, a long.
    let known = unsafe { call(FSTATFS, [file.raw(), statfs.as_mut_ptr() as usize]) };
    known.is_err() || matches!(statfs[0], PROC | SYS)
}

/// Reads entries of a directory, as [`Entries`] takes them apart; 0 at the end.
pub fn list(directory: &Fd, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes into `into` alone.
    unsafe { call(GETDENTS64, [directory.raw(), into.as_mut_ptr() as usize, into.len()]) }
}

/// The names in what [`list`] read, `.` and `..` left out.
pub struct Entries<'a>(pub &'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = &'a CStr;

    fn next(&mut self) -> Option<&'a CStr> {
        // struct linux_dirent64: inode and offset, 8 bytes each, the entry's length, 2, its type, 1, its name.
        const LENGTH: usize = 16;
        const NAME: usize = 19;
        loop {
            let length = usize::from(u16::from_ne_bytes([*self.0.get(LENGTH)?, *self.0.get(LENGTH + 1)?]));
            let name = CStr::from_bytes_until_nul(self.0.get(NAME..length)?).ok()?;
            self.0 = &self.0[length..];
            if name != c"." && name != c".." {
                return Some(name);
            }
        }
    }
}
