//! Files that come with a job: put in place by the process that is about to be its entrypoint.
//!
//! That process has the job's user, root directory, capabilities and seccomp filter already, and of all descriptors nothing but the
//! job's own pipes is reachable by a path. So wherever a path leads, by whatever links of the image's, it is somewhere where
//! the job itself could write a moment later; there is no other power here that a link could borrow. Files are made anew,
//! never written into: what is there under the name is removed first, a link itself and not what it points to. So no pipe, device or foreign file is ever opened.

use core::ffi::CStr;

use crate::glob::PATH_MAX;
use crate::parcel::FileHead;
use crate::sys::{self, Errno, Fd, Mapping};
use crate::wire::{CHUNK_MAX, Failed, Step};

/// Takes `count` files from the job's stdin, of which the rest is left for the entrypoint.
pub fn receive(count: u32, stdin: &Fd) -> Result<(), Failed> {
    let memory = |errno: Errno| Failed { step: Step::Memory, errno: errno.0, item: 0 };
    let mut chunk = Mapping::new(CHUNK_MAX).map_err(memory)?;
    let mut path = Mapping::new(PATH_MAX).map_err(memory)?;
    for item in 0..count {
        let at = |step| move |errno: Errno| Failed { step, errno: errno.0, item };
        let mut head = [0; FileHead::LEN];
        read_all(stdin, &mut head).map_err(at(Step::Protocol))?;
        let head = FileHead::decode(head).ok_or(Errno(0)).map_err(at(Step::Protocol))?;
        let end = usize::from(head.path);
        read_all(stdin, &mut path[..end]).map_err(at(Step::Protocol))?;
        path[end] = 0;
        let (parent, name) = enter(&mut path[..=end]).map_err(at(Step::Directory))?;
        let file = make(parent.as_ref(), name).map_err(at(Step::File))?;
        let mut left = head.size as usize;
        while left > 0 {
            let piece = &mut chunk[..left.min(CHUNK_MAX)];
            let n = sys::read(stdin, piece).map_err(at(Step::Protocol))?;
            if n == 0 {
                return Err(at(Step::Protocol)(Errno(0)));
            }
            sys::write_all(&file, &piece[..n]).map_err(at(Step::File))?;
            left -= n;
        }
        // At the end, since it may take away the right to write.
        sys::set_mode(&file, head.mode.into()).map_err(at(Step::File))?;
    }
    Ok(())
}

/// Opens the directory of a file, and makes those that are missing on the way. None: the working directory. `path` ends
/// with a NUL. The file's own name comes back.
fn enter(path: &mut [u8]) -> sys::Result<(Option<Fd>, &CStr)> {
    let mut directory = None;
    let mut rest = path;
    if rest.first() == Some(&b'/') {
        directory = Some(sys::enter_directory(None, c"/")?);
        rest = &mut rest[1..];
    }
    while let Some(end) = rest.iter().position(|b| *b == b'/') {
        rest[end] = 0;
        let (component, tail) = rest.split_at_mut(end + 1);
        let name = CStr::from_bytes_with_nul(component).map_err(|_| Errno::NOENT)?;
        directory = Some(match sys::enter_directory(directory.as_ref(), name) {
            Err(Errno::NOENT) => {
                match sys::make_directory_in(directory.as_ref(), name, 0o777) {
                    // A link that leads nowhere, or somebody was faster.
                    Err(Errno::EXIST) => {}
                    other => other?,
                }
                sys::enter_directory(directory.as_ref(), name)?
            }
            other => other?,
        });
        rest = tail;
    }
    let name = CStr::from_bytes_with_nul(rest).map_err(|_| Errno::NOENT)?;
    Ok((directory, name))
}

fn make(directory: Option<&Fd>, name: &CStr) -> sys::Result<Fd> {
    match sys::remove_in(directory, name) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    sys::create_in(directory, name)
}

fn read_all(fd: &Fd, into: &mut [u8]) -> sys::Result<()> {
    let mut at = 0;
    while at < into.len() {
        match sys::read(fd, &mut into[at..])? {
            0 => return Err(Errno(0)),
            n => at += n,
        }
    }
    Ok(())
}
