//! The image's `/etc/passwd` and `/etc/group`, and the home directory of a job's user.
//!
//! A container without HOME, or with an empty one, gets it from the runtime, which reads the image's `/etc/passwd` when the
//! container starts. Init's own environment has that value, unless the image has set HOME; a job that empties it is why this
//! is here, and a job whose user is another than init's own.

use core::ffi::CStr;

use crate::sys::{self, Fd, Mapping};

/// So much of a file is read. Who has more users than fit doesn't have them in an image.
const TEXT_MAX: usize = 1 << 20;

const NAME: &[u8] = b"HOME=";

/// `HOME=` and the directory of this user; `/` if the file doesn't have the user.
pub fn entry(user: usize) -> sys::Result<&'static CStr> {
    let text = Text::of(c"/etc/passwd")?;
    let home = find(text.bytes(), user).unwrap_or(b"/");
    // One byte more, which stays zero.
    let entry = Mapping::new(NAME.len() + home.len() + 1)?.leak();
    entry[..NAME.len()].copy_from_slice(NAME);
    entry[NAME.len()..NAME.len() + home.len()].copy_from_slice(home);
    Ok(CStr::from_bytes_until_nul(entry).unwrap_or(c"HOME="))
}

/// What a file says; nothing if there is none.
pub struct Text {
    memory: Mapping,
    len: usize,
}

impl Text {
    pub fn of(path: &CStr) -> sys::Result<Text> {
        let mut memory = Mapping::new(TEXT_MAX)?;
        let len = sys::open(path).map_or(0, |file| read_all(&file, &mut memory));
        Ok(Text { memory, len })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.len]
    }

    /// The memory itself, which ends with at least one zero unless the file was too long.
    pub fn leak(self) -> &'static mut [u8] {
        let len = self.len;
        &mut self.memory.leak()[..len]
    }
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
    let line = lines(passwd).find(|line| field(line, 2).map_or(0, number) == user)?;
    Some(field(line, 5).unwrap_or_default())
}

/// The lines that say something.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

pub fn field(line: &[u8], n: usize) -> Option<&[u8]> {
    line.split(|b| *b == b':').nth(n)
}

pub fn number(text: &[u8]) -> usize {
    let digit = |b: &u8| b.is_ascii_digit().then(|| usize::from(b - b'0'));
    text.iter().try_fold(0_usize, |n, b| n.checked_mul(10)?.checked_add(digit(b)?)).unwrap_or(0)
}
