//! Artifacts: what is wanted of a job's files when it is over.
//!
//! They are read by a process of their own, which init forks when all processes of the job are dead, and which has the job's user
//! and sees the job's files as the job did: with isolation `namespace` it enters the mounts of the job's world, which outlive
//! it as long as init holds them. So it reaches nothing that the job didn't, by whatever links. It may wait for a disk or for
//! the worker: init goes on with its loop, passes on what comes through the pipe, and can kill it.
//!
//! Links are followed on the way to a file where the pattern names them, and nowhere else; never for a file itself. Only ordinary
//! files are read, and of each no more than it had when it was opened.

use core::ffi::CStr;

use crate::glob::{self, PATH_MAX};
use crate::parcel::{Miss, Record, Tag};
use crate::sandbox::{Sandbox, World};
use crate::sys::{self, Entries, Errno, Fd, Fork, Mapping, Pid, What};
use crate::wire::{CHUNK_MAX, Failed, StartHead, Step};

/// Most directories in each other below the one that a pattern begins in. Each takes a descriptor and memory.
const DEPTH_MAX: usize = 64;

/// Memory for the names of a directory, at a time.
const NAMES: usize = 32 * 1024;

/// Most files whose absence is told, beside one for each pattern, and bytes of their paths.
const MISSES_MAX: u32 = 1000;
const MISSED_BYTES_MAX: usize = 64 << 10;

/// What is wanted.
pub struct Wanted {
    pub head: StartHead,
    /// The START payload, whose last strings are the patterns.
    pub memory: Mapping,
    pub length: usize,
}

impl Wanted {
    /// Forks the process that reads, and gives the end of the pipe from which the stream can be had, which never blocks.
    /// The job's world is where it looks, if the job had one of its own.
    pub fn read(&self, own: Option<(&Sandbox, &World)>) -> Result<(Pid, Fd), Failed> {
        let failed = |errno: Errno| Failed::at(Step::Artifacts, errno.0);
        let (pipe, end) = sys::pipe().map_err(failed)?;
        sys::set_nonblocking(&pipe).map_err(failed)?;
        match sys::fork().map_err(failed)? {
            Fork::Parent(pid) => Ok((pid, pipe)),
            Fork::Child => {
                drop(pipe);
                let entered = own.map_or(Ok(()), |(sandbox, world)| sandbox.enter(world));
                let sent = entered.and_then(|()| self.send_all(end));
                sys::exit(if sent.is_ok() { 0 } else { 125 })
            }
        }
    }

    fn patterns(&self) -> impl Iterator<Item = &CStr> {
        let before = 1 + self.head.argc as usize + self.head.envc as usize;
        // It has been decoded once.
        let strings = self.memory.get(StartHead::LEN..self.length).unwrap_or_default();
        let strings = strings.split_inclusive(|b| *b == 0).skip(before);
        strings.filter_map(|s| CStr::from_bytes_with_nul(s).ok())
    }

    fn send_all(&self, to: Fd) -> sys::Result<()> {
        let mut reader = Reader {
            wanted: self,
            to,
            chunk: Mapping::new(CHUNK_MAX)?,
            path: Mapping::new(PATH_MAX)?,
            end: 0,
            pattern: 0,
            met: false,
            incomplete: 0,
            files_left: self.head.artifacts_max,
            bytes_left: self.head.bytes_max,
            misses_left: MISSES_MAX,
            missed_bytes_left: MISSED_BYTES_MAX,
        };
        for (n, pattern) in self.patterns().enumerate() {
            reader.pattern = n as u32;
            reader.met = false;
            match reader.follow(pattern.to_bytes()) {
                Ok(()) if reader.met => {}
                Ok(()) => reader.missed_pattern(Miss::Nothing, Errno::NOENT)?,
                Err(Stop::Full) => break,
                Err(Stop::Broken(errno)) => return Err(errno),
            }
        }
        reader.record(&Record::plain(Tag::End, reader.pattern, 0), 0)
    }
}

/// Why no more is read.
enum Stop {
    /// There are as many files as there may be.
    Full,
    /// The stream can't be written to.
    Broken(Errno),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Broken(errno)
    }
}

struct Reader<'a> {
    wanted: &'a Wanted,
    to: Fd,
    /// Memory for what is written at once.
    chunk: Mapping,
    /// The path of what is looked at, so long.
    path: Mapping,
    end: usize,
    /// Which pattern is followed, and whether it has led to anything.
    pattern: u32,
    met: bool,
    /// Patterns, by bit, whose way met a link or a refusal: what they stand for may not have been sent.
    incomplete: u64,
    files_left: u32,
    bytes_left: u64,
    misses_left: u32,
    missed_bytes_left: usize,
}

impl Reader<'_> {
    fn follow(&mut self, pattern: &[u8]) -> Result<(), Stop> {
        let (place, wild) = glob::fixed(pattern);
        if !self.set_path(place) {
            return self.missed_pattern(Miss::Refused, Errno::NAME_TOO_LONG).map_err(Stop::from);
        }
        if wild {
            let place = if place.is_empty() { &b"."[..] } else { place };
            let directory = match with_end(place, |place| sys::open_directory(None, place)) {
                Ok(directory) => directory,
                Err(errno) => return self.missed_pattern(why(errno), errno).map_err(Stop::from),
            };
            return self.walk(&directory, Some(pattern), 0);
        }
        let (parent, name) = split(pattern);
        let found = match parent {
            b"" => Ok(None),
            _ => with_end(parent, |parent| sys::enter_directory(None, parent)).map(Some),
        };
        let name = if name.is_empty() { b"." } else { name };
        let looked = found.and_then(|parent| {
            with_end(name, |name| sys::status_in(parent.as_ref(), name)).map(|status| (parent, status.what))
        });
        match looked {
            Ok((parent, What::Directory)) => {
                self.met = true;
                match with_end(name, |name| sys::open_real_directory(parent.as_ref(), name)) {
                    Ok(directory) => self.walk(&directory, None, 0),
                    Err(errno) => self.missed(why(errno), errno),
                }
            }
            Ok((parent, what)) => {
                let mut copy = [0; 256];
                match ended(&mut copy, name) {
                    Ok(name) => self.look_at(parent.as_ref(), name, what),
                    Err(errno) => self.missed(Miss::Refused, errno),
                }
            }
            Err(errno) => self.missed_pattern(why(errno), errno).map_err(Stop::from),
        }
    }

    /// Goes through a directory whose path is `self.path`, for what the pattern matches; everything, without one.
    fn walk(&mut self, directory: &Fd, pattern: Option<&[u8]>, depth: usize) -> Result<(), Stop> {
        let mut names = match Mapping::new(NAMES) {
            Ok(names) => names,
            Err(errno) => return self.missed(Miss::Refused, errno),
        };
        loop {
            let n = match sys::list(directory, &mut names) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                // It is open, and yet there is nothing: it has been removed.
                Err(errno) => return self.missed(why(errno), errno),
            };
            for name in Entries(&names[..n]) {
                let end = self.end;
                if self.push(name.to_bytes()) {
                    self.enter_or_take(directory, name, pattern, depth)?;
                } else {
                    // Told of the directory: there is no room for more.
                    self.missed(Miss::Refused, Errno::NAME_TOO_LONG)?;
                }
                self.end = end;
            }
        }
    }

    fn enter_or_take(
        &mut self,
        directory: &Fd,
        name: &CStr,
        pattern: Option<&[u8]>,
        depth: usize,
    ) -> Result<(), Stop> {
        let path = &self.path[..self.end];
        let matches = pattern.is_none_or(|pattern| glob::matches(pattern, path));
        let leads = pattern.is_none_or(|pattern| glob::may_lead(pattern, path));
        if !matches && !leads {
            return Ok(());
        }
        match sys::status_in(Some(directory), name).map(|status| status.what) {
            Ok(What::Directory) if leads && depth >= DEPTH_MAX => self.missed(Miss::Refused, Errno::LOOP),
            Ok(What::Directory) if leads => match sys::open_real_directory(Some(directory), name) {
                Ok(below) => self.walk(&below, pattern, depth + 1),
                Err(errno) => self.missed(why(errno), errno),
            },
            Ok(What::Directory) => Ok(()),
            Ok(what) => {
                if what == What::Link {
                    self.has_a_gap();
                }
                if matches { self.look_at(Some(directory), name, what) } else { Ok(()) }
            }
            Err(errno) => self.missed(why(errno), errno),
        }
    }

    /// Sends what has this name and isn't a directory, if it may be sent and hasn't been.
    fn look_at(&mut self, directory: Option<&Fd>, name: &CStr, what: What) -> Result<(), Stop> {
        self.met = true;
        if self.has_been_met() {
            return Ok(());
        }
        match what {
            What::File => {}
            What::Link => return self.missed(Miss::Link, Errno::LOOP),
            What::Directory | What::Other => return self.missed(Miss::Special, Errno(0)),
        }
        let file = match sys::open_real_file(directory, name) {
            Ok(file) => file,
            // It has become one since.
            Err(Errno::LOOP) => return self.missed(Miss::Link, Errno::LOOP),
            Err(errno) => return self.missed(why(errno), errno),
        };
        let status = match sys::status_of(&file) {
            Ok(status) => status,
            Err(errno) => return self.missed(Miss::Refused, errno),
        };
        if status.what != What::File || sys::is_the_kernels(&file) {
            return self.missed(Miss::Special, Errno(0));
        }
        if self.files_left == 0 {
            self.missed(Miss::TooMany, Errno(0))?;
            return Err(Stop::Full);
        }
        if status.size > self.bytes_left {
            return self.missed(Miss::TooLarge, Errno(0));
        }
        self.files_left -= 1;
        self.bytes_left -= status.size;
        self.send(&file, &status)
    }

    /// Whether an earlier pattern has led here. If that one's way had gaps, the worker sorts out what comes twice.
    fn has_been_met(&self) -> bool {
        let path = &self.path[..self.end];
        let whole = |n: usize| self.incomplete & bit(n) == 0;
        let earlier = self.wanted.patterns().take(self.pattern as usize).enumerate();
        earlier.filter(|(n, _)| whole(*n)).any(|(_, pattern)| glob::covers(pattern.to_bytes(), path))
    }

    fn has_a_gap(&mut self) {
        self.incomplete |= bit(self.pattern as usize);
    }

    fn send(&mut self, file: &Fd, status: &sys::Found) -> Result<(), Stop> {
        let head = Record { detail: status.mode, ..Record::plain(Tag::File, self.pattern, status.size) };
        self.record(&head, self.end)?;
        let mut left = status.size;
        let mut errno = Errno(0);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(Record::DATA_MAX);
            match sys::read(file, &mut self.chunk[Record::LEN..Record::LEN + most]) {
                // Shorter than it was: somebody outside of the container has it too.
                Ok(0) => break,
                Ok(n) => {
                    let record = Record::plain(Tag::Data, self.pattern, n as u64);
                    self.chunk[..Record::LEN].copy_from_slice(&record.encode());
                    sys::write_all(&self.to, &self.chunk[..Record::LEN + n])?;
                    left -= n as u64;
                }
                Err(error) => {
                    errno = error;
                    break;
                }
            }
        }
        self.record(&Record::plain(Tag::Done, self.pattern, errno.0 as u64), 0)?;
        Ok(())
    }

    /// The file or directory whose path is `self.path` is missing.
    fn missed(&mut self, miss: Miss, errno: Errno) -> Result<(), Stop> {
        self.met = true;
        self.has_a_gap();
        let room = self.misses_left > 0 && self.missed_bytes_left >= self.end;
        if room || miss == Miss::TooMany {
            self.misses_left = self.misses_left.saturating_sub(1);
            self.missed_bytes_left = self.missed_bytes_left.saturating_sub(self.end);
            let record = Record { detail: miss as u16, ..self.miss(errno) };
            self.record(&record, self.end)?;
        }
        Ok(())
    }

    /// All that the pattern stands for is missing.
    fn missed_pattern(&mut self, miss: Miss, errno: Errno) -> sys::Result<()> {
        self.met = true;
        self.has_a_gap();
        let record = Record { detail: miss as u16, ..self.miss(errno) };
        self.record(&record, 0)
    }

    fn miss(&self, errno: Errno) -> Record {
        Record::plain(Tag::Missed, self.pattern, errno.0 as u64)
    }

    /// Sends a record, and the first `path` bytes of the path after it.
    fn record(&mut self, record: &Record, path: usize) -> sys::Result<()> {
        let head = Record { path: path as u16, ..*record }.encode();
        let whole = Record::LEN + path;
        self.chunk[..Record::LEN].copy_from_slice(&head);
        self.chunk[Record::LEN..whole].copy_from_slice(&self.path[..path]);
        sys::write_all(&self.to, &self.chunk[..whole])
    }

    /// Whether there is room for it.
    fn set_path(&mut self, path: &[u8]) -> bool {
        self.end = path.len();
        let room = self.path.get_mut(..path.len().min(PATH_MAX));
        match room {
            Some(room) if path.len() < PATH_MAX => {
                room.copy_from_slice(path);
                true
            }
            _ => false,
        }
    }

    fn push(&mut self, name: &[u8]) -> bool {
        let at = match self.end {
            0 => 0,
            end if self.path[end - 1] == b'/' => end,
            end => end + 1,
        };
        if at + name.len() >= PATH_MAX {
            return false;
        }
        if at > self.end {
            self.path[self.end] = b'/';
        }
        self.path[at..at + name.len()].copy_from_slice(name);
        self.end = at + name.len();
        true
    }
}

/// A pattern's bit; those far behind have one together.
fn bit(pattern: usize) -> u64 {
    1 << pattern.min(63)
}

/// A path without its last name (and without the slash between, unless that is the root), and the name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        None => (b"", path),
        Some(0) => (b"/", &path[1..]),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
    }
}

fn why(errno: Errno) -> Miss {
    match errno {
        Errno::NOENT | Errno::NOTDIR => Miss::Nothing,
        _ => Miss::Refused,
    }
}

fn ended<'a>(buffer: &'a mut [u8], text: &[u8]) -> sys::Result<&'a CStr> {
    let room = buffer.get_mut(..=text.len()).ok_or(Errno::NAME_TOO_LONG)?;
    room[..text.len()].copy_from_slice(text);
    room[text.len()] = 0;
    CStr::from_bytes_with_nul(room).map_err(|_| Errno::NOENT)
}

/// Calls with a path that has an end marker.
fn with_end<T>(path: &[u8], f: impl FnOnce(&CStr) -> sys::Result<T>) -> sys::Result<T> {
    let mut buffer = [0; PATH_MAX];
    ended(&mut buffer, path).and_then(f)
}
