//! Frames from the worker, put together from whatever pieces they arrive in.

use crate::Quit;
use crate::sys::{self, Errno, Fd, Mapping};
use crate::wire::{self, CHUNK_MAX, HEADER, Kind};

/// A frame that is complete.
pub enum Command {
    /// What the worlds of jobs are to be.
    Setup(Mapping),
    /// The START payload and its length, or why there was no memory for it.
    Start(sys::Result<(Mapping, usize)>),
    /// The chunk holds bytes for the job's stdin: see [`Input::chunk`].
    Stdin,
    StdinEof,
    Signal(i32),
}

/// Where the payload of the frame that is being read goes.
enum Body {
    Start(Mapping),
    Setup(Mapping),
    /// There is no memory for this START; its bytes are thrown away.
    Refused(Errno),
    Chunk,
    Number([u8; 4]),
}

/// The worker's end of the conversation.
pub struct Input {
    fd: Fd,
    header: [u8; HEADER],
    /// How much of the frame is there, header included; `len` and `body` have a meaning from `HEADER` on.
    got: usize,
    len: usize,
    body: Body,
    kind: Kind,
    /// Memory for one STDIN payload, used by the job until it is in the job's pipe.
    memory: Mapping,
    chunk: Chunk,
    /// Where the next START payload goes, if not into memory of its own.
    start: Option<Mapping>,
}

/// The part of a STDIN payload that the job's pipe has not taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Free,
    Pending { from: usize, to: usize },
}

impl Input {
    pub fn new(fd: Fd) -> sys::Result<Input> {
        Ok(Input {
            fd,
            header: [0; HEADER],
            got: 0,
            len: 0,
            body: Body::Chunk,
            kind: Kind::Signal,
            memory: Mapping::new(CHUNK_MAX)?,
            chunk: Chunk::Free,
            start: None,
        })
    }

    pub fn fd(&self) -> &Fd {
        &self.fd
    }

    /// The next START payload is to go into this memory, which has room for the largest.
    pub fn start_goes_into(&mut self, memory: Mapping) {
        self.start = Some(memory);
    }

    /// Reads what there is, up to the end of one frame. `accepts` says whether a kind has a place now, given
    /// whether the chunk is free; a frame is refused by its header, before its payload goes anywhere.
    pub fn read(&mut self, accepts: impl FnOnce(Kind, bool) -> bool) -> Result<Option<Command>, Quit> {
        if self.got < HEADER {
            if !self.read_header()? {
                return Ok(None);
            }
            let (kind, len) = wire::parse_header(self.header).map_err(|_| Quit::Protocol)?;
            if !accepts(kind, self.chunk == Chunk::Free) {
                return Err(Quit::Protocol);
            }
            self.kind = kind;
            self.len = len;
            self.body = match kind {
                Kind::Start => match self.start.take() {
                    Some(memory) => Body::Start(memory),
                    None => Mapping::new(len).map_or_else(Body::Refused, Body::Start),
                },
                Kind::Setup => Body::Setup(Mapping::new(len).map_err(|_| Quit::Kernel("memory for SETUP"))?),
                Kind::Signal if len == 4 => Body::Number([0; 4]),
                Kind::Signal => return Err(Quit::Protocol),
                _ => Body::Chunk,
            };
        }
        if !self.read_body()? {
            return Ok(None);
        }
        self.got = 0;
        // The mapping moves out with the command, so that it lives no longer than its use.
        let body = core::mem::replace(&mut self.body, Body::Chunk);
        Ok(Some(match (self.kind, body) {
            (_, Body::Start(payload)) => Command::Start(Ok((payload, self.len))),
            (_, Body::Setup(payload)) => Command::Setup(payload),
            (_, Body::Refused(errno)) => Command::Start(Err(errno)),
            (_, Body::Number(n)) => match u32::from_le_bytes(n) {
                n @ 1..=64 => Command::Signal(n as i32),
                _ => return Err(Quit::Protocol),
            },
            (Kind::Stdin, Body::Chunk) => {
                self.chunk = Chunk::Pending { from: 0, to: self.len };
                Command::Stdin
            }
            (_, Body::Chunk) => Command::StdinEof,
        }))
    }

    /// Whether the header is complete.
    fn read_header(&mut self) -> Result<bool, Quit> {
        while self.got < HEADER {
            match take(&self.fd, &mut self.header[self.got..])? {
                0 => return Ok(false),
                n => self.got += n,
            }
        }
        Ok(true)
    }

    /// Whether the payload is complete.
    fn read_body(&mut self) -> Result<bool, Quit> {
        loop {
            let at = self.got - HEADER;
            if at == self.len {
                return Ok(true);
            }
            let room = match &mut self.body {
                Body::Start(payload) | Body::Setup(payload) => &mut payload[at..self.len],
                Body::Number(n) => &mut n[at..],
                Body::Chunk => &mut self.memory[at..self.len],
                Body::Refused(_) => &mut self.memory[..(self.len - at).min(CHUNK_MAX)],
            };
            match take(&self.fd, room)? {
                0 => return Ok(false),
                n => self.got += n,
            }
        }
    }

    /// The bytes that the job's stdin has yet to take, if there is a STDIN frame that it hasn't taken in full.
    pub fn chunk(&self) -> Option<&[u8]> {
        match self.chunk {
            Chunk::Free => None,
            Chunk::Pending { from, to } => Some(&self.memory[from..to]),
        }
    }

    /// The job took the first `n` bytes of the chunk.
    pub fn advance_chunk(&mut self, n: usize) {
        if let Chunk::Pending { from, .. } = &mut self.chunk {
            *from += n;
        }
    }

    /// The next STDIN frame may come.
    pub fn free_chunk(&mut self) {
        self.chunk = Chunk::Free;
    }
}

/// Reads what there is; 0 if there is nothing yet.
fn take(fd: &Fd, into: &mut [u8]) -> Result<usize, Quit> {
    match sys::read(fd, into) {
        Ok(0) => Err(Quit::WorkerGone),
        Ok(n) => Ok(n),
        Err(Errno::AGAIN) => Ok(0),
        Err(_) => Err(Quit::WorkerGone),
    }
}
