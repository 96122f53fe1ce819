//! The container's table of mounts, and what becomes of each of them in the world of a job.
//!
//! Engines and their versions differ in what they mount, mask and make read-only. So nothing of it is written down here: what
//! the engine gave the container is what a job gets, moved or made anew.

use core::ffi::CStr;

use crate::home::Text;
use crate::sys::isolate::{
    MS_NOATIME, MS_NODEV, MS_NODIRATIME, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_RELATIME, MS_STRICTATIME,
};
use crate::sys::{self, Errno, Fd};

/// The table as the kernel shows it (proc_pid_mountinfo(5)).
const TABLE: &CStr = c"/proc/self/mountinfo";

/// Most mounts that are kept in mind. Docker's own are about forty.
const MOUNTS_MAX: usize = 128;

/// Where init's volume is.
const OWN: &[u8] = b"/.prewarm";

/// Files that the engine mounts over the image's, for each container its own. Jobs may write to them, so each gets a copy.
const ENGINE_FILES: [&[u8]; 3] = [b"/etc/hosts", b"/etc/hostname", b"/etc/resolv.conf"];

/// What becomes of a mount.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// A new one of its kind for each job.
    Fresh,
    /// The job sees this one.
    Moved,
    /// The job sees it with the one that it is below.
    Carried,
    /// The job has a copy of this file in its root file system.
    Copied,
    /// An anonymous volume, with a root that is read-only: the job has what the image has there, and may write to it.
    Volume,
}

/// One mount that a job's world has something of.
#[derive(Clone, Copy)]
pub struct Mount {
    /// Where, from the root.
    pub on: &'static CStr,
    pub fate: Fate,
    pub source: &'static CStr,
    pub kind: &'static CStr,
    pub flags: usize,
    /// The file system's own options.
    pub options: &'static CStr,
    /// Jobs see this one, each after the other, and it isn't the pool's wish that they can change it. Engines leave some of
    /// those writable that mask others: what one job made of their modes or owners the next one would find.
    pub sealed: bool,
}

impl Mount {
    /// Where, from a root that is the working directory.
    pub fn here(&self) -> &'static CStr {
        CStr::from_bytes_with_nul(&self.on.to_bytes_with_nul()[1..]).unwrap_or(self.on)
    }

    fn is_below(&self, other: &Mount) -> bool {
        self.on.to_bytes().strip_prefix(other.on.to_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
    }
}

/// The mounts in the order in which they were made: what is below another comes after it.
pub struct Table {
    list: [Option<Mount>; MOUNTS_MAX],
    /// How the root is mounted.
    pub root_flags: usize,
}

impl Table {
    /// Reads it. `kept` tells which mount points the pool wants jobs to see as they are.
    pub fn read(kept: impl Fn(&CStr) -> bool) -> sys::Result<Table> {
        let mut rest = Text::of(TABLE)?.leak();
        let mut table = Table { list: [None; MOUNTS_MAX], root_flags: 0 };
        let mut count = 0;
        while let Some(line) = Line::take(&mut rest) {
            if line.on == c"/" {
                table.root_flags = flags(line.mount_options);
                continue;
            }
            let Some(mount) = table.judge(&line, &kept) else { continue };
            *table.list.get_mut(count).ok_or(Errno::TOO_BIG)? = Some(mount);
            count += 1;
        }
        if count == 0 { Err(Errno::NOENT) } else { Ok(table) }
    }

    /// Those that jobs have something of.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.list.iter().flatten()
    }

    pub fn is_read_only(&self) -> bool {
        self.root_flags & MS_RDONLY != 0
    }

    /// What becomes of one, given those before it; `None`: jobs have nothing of it, or have it with the one that it is below.
    fn judge(&self, line: &Line, kept: &impl Fn(&CStr) -> bool) -> Option<Mount> {
        let options = line.options.to_bytes_with_nul();
        // After `rw` or `ro`, which is said by a flag; and what SELinux adds, which isn't an option.
        let own = options.get(3..).unwrap_or(b"\0");
        let own = own.strip_prefix(b"seclabel,").unwrap_or(own);
        let own = if own == b"seclabel\0" { b"\0" } else { own };
        let read_only = if options.starts_with(b"ro") { MS_RDONLY } else { 0 };
        let mount = |fate| Mount {
            on: line.on,
            fate,
            source: line.source,
            kind: line.kind,
            flags: flags(line.mount_options) | read_only,
            options: CStr::from_bytes_with_nul(own).unwrap_or_default(),
            sealed: false,
        };
        let moved = mount(Fate::Moved);
        let writable = moved.flags & MS_RDONLY == 0;
        if let Some(above) = self.iter().find(|other| other.fate == Fate::Moved && moved.is_below(other)) {
            // What is below one that the pool wants to be written to is as it is.
            let sealed = writable && (above.sealed || above.flags & MS_RDONLY != 0);
            return sealed.then_some(Mount { fate: Fate::Carried, sealed, ..moved });
        }
        let sealed = Mount { sealed: writable, ..moved };
        let on = line.on.to_bytes();
        let whole = line.root == c"/";
        Some(match line.kind.to_bytes() {
            _ if kept(line.on) => moved,
            _ if ENGINE_FILES.contains(&on) => mount(Fate::Copied),
            b"proc" if on == b"/proc" => mount(Fate::Fresh),
            // What is masked or read-only in one `/proc` is so in another: the same in every PID namespace.
            _ if on.starts_with(b"/proc/") || on == b"/sys" => sealed,
            b"tmpfs" | b"devpts" | b"mqueue" if whole => mount(Fate::Fresh),
            // Ours. Or an anonymous volume, where a job has what the image has there.
            _ if on == OWN || !self.is_read_only() => return None,
            _ => mount(Fate::Volume),
        })
    }
}

/// What the kernel says of one mount.
struct Line {
    /// Which part of the file system.
    root: &'static CStr,
    on: &'static CStr,
    mount_options: &'static CStr,
    kind: &'static CStr,
    source: &'static CStr,
    options: &'static CStr,
}

impl Line {
    fn take(rest: &mut &'static mut [u8]) -> Option<Line> {
        for _ in ["id", "parent", "device"] {
            word(rest)?;
        }
        let (root, on, mount_options) = (word(rest)?, word(rest)?, word(rest)?);
        // Any number of optional fields, then a dash.
        while word(rest)? != c"-" {}
        Some(Line { root, on, mount_options, kind: word(rest)?, source: word(rest)?, options: word(rest)? })
    }
}

/// The next word, with its end marked by a NUL where the blank or the line's end was.
fn word(rest: &mut &'static mut [u8]) -> Option<&'static CStr> {
    let all = core::mem::take(rest);
    let end = all.iter().position(|b| matches!(b, b' ' | b'\n'))?;
    let (word, tail) = all.split_at_mut(end + 1);
    *rest = tail;
    word[end] = 0;
    unescape(word);
    CStr::from_bytes_until_nul(word).ok()
}

/// The kernel writes blanks, tabs, line ends and backslashes as `\` and three octal digits.
fn unescape(text: &mut [u8]) {
    let (mut from, mut to) = (0, 0);
    while from < text.len() {
        let code = match text.get(from..from + 4) {
            Some([b'\\', digits @ ..]) if digits.iter().all(|d| (b'0'..=b'7').contains(d)) => {
                Some(digits.iter().fold(0_u8, |n, d| n << 3 | (d - b'0')))
            }
            _ => None,
        };
        text[to] = code.unwrap_or(text[from]);
        from += if code.is_some() { 4 } else { 1 };
        to += 1;
    }
}

fn flags(options: &CStr) -> usize {
    let words = || options.to_bytes().split(|b| *b == b',');
    let named = words().fold(0, |flags, word| {
        flags
            | match word {
                b"ro" => MS_RDONLY,
                b"nosuid" => MS_NOSUID,
                b"nodev" => MS_NODEV,
                b"noexec" => MS_NOEXEC,
                b"noatime" => MS_NOATIME,
                b"nodiratime" => MS_NODIRATIME,
                b"relatime" => MS_RELATIME,
                _ => 0,
            }
    });
    // The kernel's default is relatime; it shows nothing where each access is noted.
    if named & (MS_RELATIME | MS_NOATIME) == 0 { named | MS_STRICTATIME } else { named }
}

/// The table, open: it can be asked whether it has changed.
pub fn open() -> sys::Result<Fd> {
    sys::open(TABLE)
}
