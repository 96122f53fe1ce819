//! The home directory of a job's user.
//!
//! A container without HOME, or with an empty one, gets it from the runtime, which reads the image's `/etc/passwd`. Init's
//! own environment has that value, unless the image has set HOME; a job that empties it is why this file exists.

use core::ffi::CStr;

use crate::sys::{self, Fd, Mapping};

/// So much of the file is read. Who has more users than fit doesn't have them in an image.
const PASSWD_MAX: usize = 1 << 20;

const NAME: &[u8] = b"HOME=";

/// `HOME=` and the directory of this process's user; `/` if the file doesn't have the user.
pub fn entry() -> sys::Result<&'static CStr> {
    let mut text = Mapping::new(PASSWD_MAX)?;
    let read = sys::open(c"/etc/passwd").map_or(0, |file| read_all(&file, &mut text));
    let home = find(&text[..read], sys::user()).unwrap_or(b"/");
    // One byte more, which stays zero.
    let entry = Mapping::new(NAME.len() + home.len() + 1)?.leak();
    entry[..NAME.len()].copy_from_slice(NAME);
    entry[NAME.len()..NAME.len() + home.len()].copy_from_slice(home);
    Ok(CStr::from_bytes_until_nul(entry).unwrap_or(c"HOME="))
}

fn read_all(file: &Fd, text: &mut [u8]) -> usize {
    let mut at = 0;
    while let Ok(n @ 1..) = sys::read(file, &mut text[at..]) {
        at += n;
    }
    at
}

/// The sixth field of the first line of this user. As runc reads it: a field that is missing is empty, and a number
/// that is none is 0.
fn find(passwd: &[u8], user: usize) -> Option<&[u8]> {
    let mut lines = passwd.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let line = lines.find(|line| field(line, 2).map_or(0, number) == user)?;
    Some(field(line, 5).unwrap_or_default())
}

fn field(line: &[u8], n: usize) -> Option<&[u8]> {
    line.split(|b| *b == b':').nth(n)
}

fn number(text: &[u8]) -> usize {
    let digit = |b: &u8| b.is_ascii_digit().then(|| usize::from(b - b'0'));
    text.iter().try_fold(0_usize, |n, b| n.checked_mul(10)?.checked_add(digit(b)?)).unwrap_or(0)
}
