//! Sockets: to the worker, and for a descriptor on its way from one process to another, and into another's mounts.

use core::ffi::CStr;

use super::files::{Fd, O_CLOEXEC, again};
use super::{CONNECT, Errno, RECVMSG, Result, SENDMSG, SETNS, SOCKET, SOCKETPAIR, call};

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;

/// `struct msghdr` of 64-bit kernels.
#[repr(C)]
struct Message {
    name: usize,
    name_len: u32,
    pieces: *const Piece,
    piece_count: usize,
    control: *mut Control,
    control_len: usize,
    flags: i32,
}

/// `struct iovec`
#[repr(C)]
struct Piece {
    at: *mut u8,
    len: usize,
}

/// `struct cmsghdr` and one descriptor, padded to a multiple of 8 bytes as `CMSG_SPACE` is.
#[repr(C)]
struct Control {
    len: usize,
    level: i32,
    kind: i32,
    fd: i32,
    padding: i32,
}

/// `CMSG_LEN` of one descriptor.
const CONTROL_LEN: usize = 20;

const AF_UNIX: usize = 1;
const SOCK_STREAM: usize = 1;

/// Connects to the socket at a short path.
pub fn connect(path: &CStr) -> Result<Fd> {
    /// struct sockaddr_un
    #[repr(C)]
    struct Address {
        family: u16,
        path: [u8; 108],
    }
    let mut address = Address { family: AF_UNIX as u16, path: [0; 108] };
    let path = path.to_bytes();
    address.path.get_mut(..path.len()).ok_or(Errno::NAME_TOO_LONG)?.copy_from_slice(path);
    // SAFETY: no memory involved.
    let socket = Fd(unsafe { call(SOCKET, [AF_UNIX, SOCK_STREAM | O_CLOEXEC, 0]) }? as i32);
    let (at, length) = (&raw const address as usize, size_of::<Address>());
    // SAFETY: the kernel only reads.
    again(|| unsafe { call(CONNECT, [socket.raw(), at, length]) })?;
    Ok(socket)
}

/// Two sockets, each the other's end, both blocking. In the place of a pipe where descriptors go through.
pub fn socket_pair() -> Result<(Fd, Fd)> {
    let mut ends = [0_i32; 2];
    // SAFETY: the kernel writes two ints.
    unsafe { call(SOCKETPAIR, [AF_UNIX, SOCK_STREAM | O_CLOEXEC, 0, ends.as_mut_ptr() as usize]) }?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

/// Sends a descriptor, and one byte with it, since it can't go alone.
pub fn send_descriptor(through: &Fd, fd: &Fd) -> Result<()> {
    const MSG_NOSIGNAL: usize = 0x4000;
    let mut byte = 0_u8;
    let mut control = Control { len: CONTROL_LEN, level: SOL_SOCKET, kind: SCM_RIGHTS, fd: fd.0, padding: 0 };
    let piece = Piece { at: &raw mut byte, len: 1 };
    let message = message(&piece, &mut control);
    // SAFETY: the kernel only reads, and all that the message points to outlives the call.
    again(|| unsafe { call(SENDMSG, [through.raw(), &raw const message as usize, MSG_NOSIGNAL]) }).map(drop)
}

/// Takes a descriptor that has been sent; EAGAIN if none has.
pub fn receive_descriptor(through: &Fd) -> Result<Fd> {
    const MSG_DONTWAIT: usize = 0x40;
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    let mut byte = 0_u8;
    let mut control = Control { len: 0, level: 0, kind: 0, fd: -1, padding: 0 };
    let piece = Piece { at: &raw mut byte, len: 1 };
    let mut message = message(&piece, &mut control);
    let flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
    // SAFETY: the kernel writes one byte, the control message and the header, all ours and of that size.
    let n = again(|| unsafe { call(RECVMSG, [through.raw(), &raw mut message as usize, flags]) })?;
    let given = message.control_len >= CONTROL_LEN;
    if n == 1 && given && (control.level, control.kind) == (SOL_SOCKET, SCM_RIGHTS) && control.fd >= 0 {
        Ok(Fd(control.fd))
    } else {
        Err(Errno::AGAIN)
    }
}

fn message(piece: &Piece, control: &mut Control) -> Message {
    Message {
        name: 0,
        name_len: 0,
        pieces: piece,
        piece_count: 1,
        control,
        control_len: size_of::<Control>(),
        flags: 0,
    }
}

/// The mounts that a process of its own namespace sees; open, they outlive it.
pub const OWN_MOUNTS: &CStr = c"/proc/self/ns/mnt";

/// Sees these mounts from now on, from their root.
pub fn enter_mounts(mounts: &Fd) -> Result<()> {
    const NEW_MOUNTS: usize = 0x0002_0000;
    // SAFETY: no memory involved.
    unsafe { call(SETNS, [mounts.raw(), NEW_MOUNTS]) }.map(drop)
}
