//! What travels inside of frames: files for a job, ahead of its stdin in STDIN frames, and its artifacts, in ARTIFACT
//! frames. Both are streams of bytes of their own, which frames cut anywhere. One definition, compiled into init and the worker, as
//! `wire.rs` is; integers are little-endian.
//!
//! ```text
//!   files       (FileHead  path  content)*                                     as many as START says
//!   artifacts   (FILE path  (DATA bytes)*  DONE  |  MISSED path)*  END
//! ```

/// What comes before a file's path and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHead {
    /// Bytes of content.
    pub size: u32,
    /// Bytes of the path, without an end marker.
    pub path: u16,
    /// Permission bits.
    pub mode: u16,
}

impl FileHead {
    /// Length in bytes.
    pub const LEN: usize = 8;

    /// The bytes.
    pub const fn encode(self) -> [u8; Self::LEN] {
        let (s, p, m) = (self.size.to_le_bytes(), self.path.to_le_bytes(), self.mode.to_le_bytes());
        [s[0], s[1], s[2], s[3], p[0], p[1], m[0], m[1]]
    }

    /// Reads the bytes; none if there can be no such file.
    pub const fn decode(b: [u8; Self::LEN]) -> Option<FileHead> {
        let head = FileHead {
            size: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            path: u16::from_le_bytes([b[4], b[5]]),
            mode: u16::from_le_bytes([b[6], b[7]]),
        };
        let fits = head.path > 0 && (head.path as usize) < super::glob::PATH_MAX;
        if fits && head.mode <= 0o777 { Some(head) } else { None }
    }
}

/// What a record of the artifacts' stream is. The numbers are the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// A file begins: `number` is its size, `detail` its permission bits. Its path follows.
    File = 1,
    /// `number` bytes of it follow.
    Data = 2,
    /// It is complete, or reading it failed with the error `number`.
    Done = 3,
    /// A file, or a pattern, of which nothing is sent: `detail` is a [`Miss`]'s number, `number` the kernel's error. Its path
    /// follows; none if it is the pattern.
    Missed = 4,
    /// All patterns have been gone through.
    End = 5,
}

/// Why an artifact is missing. The numbers are the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Miss {
    /// Nothing is there.
    Nothing = 1,
    /// The kernel says no, by the error.
    Refused = 2,
    /// It is no ordinary file: a pipe, a device, a socket, or the kernel's own.
    Special = 3,
    /// It is a symbolic link.
    Link = 4,
    /// It has more bytes than are left of what may be sent.
    TooLarge = 5,
    /// So many may be sent, and there are more.
    TooMany = 6,
}

impl Miss {
    /// The one with this number, if there is one.
    pub const fn from_u16(n: u16) -> Option<Miss> {
        Some(match n {
            1 => Miss::Nothing,
            2 => Miss::Refused,
            3 => Miss::Special,
            4 => Miss::Link,
            5 => Miss::TooLarge,
            6 => Miss::TooMany,
            _ => return None,
        })
    }
}

/// One record of the artifacts' stream; a path or bytes may follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub tag: Tag,
    /// Which pattern of the job's is concerned.
    pub pattern: u32,
    /// Bytes of a path that follow.
    pub path: u16,
    /// See [`Tag`].
    pub detail: u16,
    /// See [`Tag`].
    pub number: u64,
}

impl Record {
    /// Length in bytes.
    pub const LEN: usize = 17;

    /// Most bytes that follow a [`Tag::Data`]: with it they fill a pipe.
    pub const DATA_MAX: usize = super::wire::CHUNK_MAX - Self::LEN;

    /// One without a path.
    pub const fn plain(tag: Tag, pattern: u32, number: u64) -> Record {
        Record { tag, pattern, path: 0, detail: 0, number }
    }

    /// The bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[0] = self.tag as u8;
        b[1..5].copy_from_slice(&self.pattern.to_le_bytes());
        b[5..7].copy_from_slice(&self.path.to_le_bytes());
        b[7..9].copy_from_slice(&self.detail.to_le_bytes());
        b[9..].copy_from_slice(&self.number.to_le_bytes());
        b
    }

    /// Reads the bytes; none if there is no such record.
    pub fn decode(b: [u8; Self::LEN]) -> Option<Record> {
        let tag = match b[0] {
            1 => Tag::File,
            2 => Tag::Data,
            3 => Tag::Done,
            4 => Tag::Missed,
            5 => Tag::End,
            _ => return None,
        };
        let record = Record {
            tag,
            pattern: u32::from_le_bytes([b[1], b[2], b[3], b[4]]),
            path: u16::from_le_bytes([b[5], b[6]]),
            detail: u16::from_le_bytes([b[7], b[8]]),
            number: u64::from_le_bytes([b[9], b[10], b[11], b[12], b[13], b[14], b[15], b[16]]),
        };
        let path = record.path as usize;
        let fits = match tag {
            Tag::File => path > 0 && path < super::glob::PATH_MAX,
            Tag::Missed => path < super::glob::PATH_MAX && Miss::from_u16(record.detail).is_some(),
            Tag::Data => path == 0 && record.number > 0 && record.number <= Self::DATA_MAX as u64,
            Tag::Done | Tag::End => path == 0,
        };
        fits.then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_survive_the_trip() {
        let head = FileHead { size: 0x0102_0304, path: 9, mode: 0o755 };
        assert_eq!(FileHead::decode(head.encode()), Some(head));
        for bad in
            [FileHead { path: 0, ..head }, FileHead { path: 4096, ..head }, FileHead { mode: 0o4755, ..head }]
        {
            assert_eq!(FileHead::decode(bad.encode()), None);
        }
        for record in [
            Record { tag: Tag::File, pattern: 7, path: 4095, detail: 0o644, number: u64::MAX },
            Record::plain(Tag::Data, 0, Record::DATA_MAX as u64),
            Record::plain(Tag::Done, 1, 5),
            Record { tag: Tag::Missed, pattern: 3, path: 0, detail: Miss::Link as u16, number: 40 },
            Record::plain(Tag::End, 0, 0),
        ] {
            assert_eq!(Record::decode(record.encode()), Some(record));
        }
        for bad in [
            Record { tag: Tag::File, pattern: 0, path: 0, detail: 0, number: 0 },
            Record::plain(Tag::Data, 0, 0),
            Record::plain(Tag::Data, 0, Record::DATA_MAX as u64 + 1),
            Record { tag: Tag::Missed, pattern: 0, path: 1, detail: 99, number: 0 },
            Record { tag: Tag::End, pattern: 0, path: 1, detail: 0, number: 0 },
        ] {
            assert_eq!(Record::decode(bad.encode()), None, "{bad:?}");
        }
    }
}
