//! Frames to the worker, and the memory in which they wait for it.

use crate::Quit;
use crate::sys::{self, Errno, Fd, Mapping};
use crate::wire::{self, CHUNK_MAX, Exited, HEADER, Kind};

/// Room for one frame of output.
const FRAME: usize = HEADER + CHUNK_MAX;

/// Room that output never takes, so that the frames that tell how the job fares always find some. At most one each
/// of STARTED, STDIN_TAKEN, ENDED, EXITED (or FAILED), READY and a last FAILED (or DOUBT) can wait at a time: the worker
/// causes the next only after it received the one before.
const CONTROL: usize = 6 * (HEADER + Exited::LEN);

/// Two frames, so that one is filled while the other waits, and that neither of the job's streams starves the other.
const SIZE: usize = 2 * FRAME + CONTROL;

/// The stream to the worker. Frames go in at `end` and leave from `sent`; when all have left, both start over.
/// So nothing is ever moved or wraps around.
pub struct Output {
    fd: Fd,
    memory: Mapping,
    sent: usize,
    end: usize,
}

impl Output {
    pub fn new(fd: Fd) -> sys::Result<Output> {
        Ok(Output { fd, memory: Mapping::new(SIZE)?, sent: 0, end: 0 })
    }

    pub fn fd(&self) -> &Fd {
        &self.fd
    }

    /// Whether everything has left.
    pub fn is_empty(&self) -> bool {
        self.sent == self.end
    }

    /// Whether a frame of output fits.
    pub fn has_room(&self) -> bool {
        self.end + FRAME + CONTROL <= SIZE
    }

    /// Adds a frame that is not output. If there is no room, the worker broke the protocol: see [`CONTROL`].
    pub fn control(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Quit> {
        let body = self.end + HEADER;
        let end = body + payload.len();
        if end > SIZE {
            return Err(Quit::Protocol);
        }
        self.memory[self.end..body].copy_from_slice(&wire::header(kind, payload.len()));
        self.memory[body..end].copy_from_slice(payload);
        self.end = end;
        Ok(())
    }

    /// Adds a frame of what can be read from `pipe`, at most `limit` bytes, read to where they will be sent from.
    /// Answers as read(2) does, and adds nothing unless something was read. There must be room.
    pub fn fill(&mut self, kind: Kind, pipe: &Fd, limit: usize) -> sys::Result<usize> {
        let body = self.end + HEADER;
        let n = sys::read(pipe, &mut self.memory[body..body + limit.min(CHUNK_MAX)])?;
        if n > 0 {
            self.memory[self.end..body].copy_from_slice(&wire::header(kind, n));
            self.end = body + n;
        }
        Ok(n)
    }

    /// Sends as much as the stream takes now.
    pub fn flush(&mut self) -> Result<(), Quit> {
        while self.sent < self.end {
            match sys::write(&self.fd, &self.memory[self.sent..self.end]) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Quit::WorkerGone),
            }
        }
        self.sent = 0;
        self.end = 0;
        Ok(())
    }
}
