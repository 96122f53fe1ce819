//! Pure: what becomes of the stream of artifacts that init sends (`init/parcel.rs`) — files for the result, pieces for events,
//! digests, and what is missing.
//!
//! Memory is bounded by the pool's `artifacts.inline`, by what names may take, by one piece, and by what one frame can hold. So is
//! the result, whatever a job calls its files and writes into them: a broker closes the channel of who sends more than it takes.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use base64::Engine as _;
use bytes::{Buf, Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::config::ArtifactsConfig;
use crate::contract::artifact::{Artifact, Missed, MissedArtifact};
use crate::contract::event::Data;
use crate::init::parcel::{Miss, Record, Tag};
use crate::redact::Secrets;

/// Largest piece of an artifact in an event, in bytes.
pub const PIECE_MAX: usize = 256 * 1024;

/// Most bytes of files' names in a result, as JSON.
const NAMES_MAX: usize = 1 << 20;

/// A piece of an artifact, as an event shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which file.
    pub path: String,
    /// Bytes that it had when it was opened.
    pub size: u64,
    /// Bytes of it before this piece.
    pub offset: u64,
    /// The bytes; not empty.
    pub bytes: Vec<u8>,
}

/// Whether there is somewhere for events to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// There is.
    Sent,
    /// The job has no reply queue.
    Nowhere,
}

/// What was collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Files that are whole.
    pub artifacts: Vec<Artifact>,
    /// What isn't there, or isn't whole.
    pub missed: Vec<MissedArtifact>,
}

/// Takes a job's artifacts apart.
#[derive(Debug)]
pub struct Collector {
    patterns: Vec<String>,
    limits: ArtifactsConfig,
    events: Events,
    /// Masked in names; what is in files is as it is.
    secrets: Option<Secrets>,
    inline_left: u64,
    names_left: usize,
    /// Hashes of the paths of files that are whole.
    known: HashSet<u64>,
    hasher: RandomState,
    /// Files of which nothing is told, since their names have no room.
    untold: u64,
    /// What has come of a record that isn't complete.
    buffer: BytesMut,
    open: Option<Open>,
    collected: Collected,
    /// How many patterns before the one that is being followed.
    reached: usize,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// All patterns have been gone through.
    Whole,
    /// What came is no such stream.
    Broken,
}

/// A file that is being received.
#[derive(Debug)]
struct Open {
    path: String,
    key: u64,
    mode: u16,
    size: u64,
    got: u64,
    digest: Sha256,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Result(Vec<u8>),
    Events {
        pending: Vec<u8>,
        sent: u64,
    },
    /// There is no reply queue.
    Nowhere,
    /// It is there already, or there is no room for its name.
    Untold,
}

impl Collector {
    /// For a job that asked for these.
    pub fn new(
        patterns: &[String],
        limits: ArtifactsConfig,
        events: Events,
        secrets: Option<Secrets>,
    ) -> Collector {
        Collector {
            patterns: patterns.to_vec(),
            limits,
            events,
            secrets,
            inline_left: limits.inline,
            names_left: NAMES_MAX,
            known: HashSet::new(),
            hasher: RandomState::new(),
            untold: 0,
            buffer: BytesMut::new(),
            open: None,
            collected: Collected::default(),
            reached: 0,
            end: End::Open,
        }
    }

    /// Takes what came; gives the pieces that are due because of it.
    pub fn push(&mut self, bytes: &Bytes) -> Vec<Piece> {
        let mut due = Vec::new();
        if self.end != End::Open {
            return due;
        }
        self.buffer.extend_from_slice(bytes);
        while self.end == End::Open {
            let Some(head) = self.buffer.first_chunk::<{ Record::LEN }>() else { break };
            let Some(record) = Record::decode(*head) else {
                self.end = End::Broken;
                break;
            };
            let body = match record.tag {
                // At most what a frame holds: it was checked.
                Tag::Data => usize::try_from(record.number).unwrap_or(usize::MAX),
                _ => usize::from(record.path),
            };
            if self.buffer.len() - Record::LEN < body {
                break;
            }
            self.buffer.advance(Record::LEN);
            let body = self.buffer.split_to(body);
            if !self.take(&record, &body, &mut due) {
                self.end = End::Broken;
            }
        }
        due
    }

    /// Whether the record has a place here.
    fn take(&mut self, record: &Record, body: &[u8], due: &mut Vec<Piece>) -> bool {
        let pattern = record.pattern as usize;
        if pattern < self.reached || pattern >= self.patterns.len() {
            return false;
        }
        self.reached = pattern;
        match (record.tag, &mut self.open) {
            (Tag::File, None) => self.begin(record, body),
            (Tag::Data, Some(open)) => {
                open.got += body.len() as u64;
                if open.got > open.size {
                    return false;
                }
                open.digest.update(body);
                open.keep(body, due);
                true
            }
            (Tag::Done, Some(_)) => {
                self.finish_file(record.number, due);
                true
            }
            (Tag::Missed, None) => {
                let path = if body.is_empty() {
                    self.shown(self.patterns[pattern].as_bytes())
                } else {
                    self.shown(body)
                };
                if self.has_room_for(&path) {
                    let missed = missed(path, record, &self.limits);
                    self.collected.missed.push(missed);
                }
                true
            }
            (Tag::End, None) => {
                self.end = End::Whole;
                true
            }
            _ => false,
        }
    }

    fn begin(&mut self, record: &Record, path: &[u8]) -> bool {
        // Init keeps to the limits; if it is another that sends, they hold all the same.
        let sum: u64 = self.collected.artifacts.iter().map(|artifact| artifact.size).sum();
        let count = self.collected.artifacts.len();
        if count >= self.limits.max || sum.saturating_add(record.number) > self.limits.size {
            return false;
        }
        let key = self.hasher.hash_one(path);
        let path = self.shown(path);
        // By another pattern: see `init/artifacts.rs`.
        let place = if self.known.contains(&key) || !self.has_room_for(&path) {
            Place::Untold
        } else if record.number <= self.inline_left {
            self.inline_left -= record.number;
            Place::Result(Vec::new())
        } else if self.events == Events::Sent {
            Place::Events { pending: Vec::new(), sent: 0 }
        } else {
            Place::Nowhere
        };
        self.open = Some(Open {
            path,
            key,
            mode: record.detail & 0o777,
            size: record.number,
            got: 0,
            digest: Sha256::new(),
            place,
        });
        true
    }

    fn finish_file(&mut self, errno: u64, due: &mut Vec<Piece>) {
        let Some(mut open) = self.open.take() else { return };
        if let Place::Untold = open.place {
            return;
        }
        if errno != 0 {
            let message = format!("reading it failed after {} bytes: {}", open.got, said(errno));
            return self.miss(open.path, Missed::Unreadable, message);
        }
        open.flush(due);
        let (events, data) = match open.place {
            Place::Result(bytes) => (None, Some(shortest(bytes))),
            Place::Events { sent, .. } => (Some(sent), None),
            Place::Nowhere | Place::Untold => {
                let message = format!(
                    "it has {} bytes, more than is left of the {} that the result may hold, and the job has no reply_to for the rest",
                    open.size, self.limits.inline
                );
                return self.miss(open.path, Missed::NoReplyQueue, message);
            }
        };
        self.known.insert(open.key);
        self.collected.artifacts.push(Artifact {
            path: open.path,
            size: open.got,
            mode: format!("{:04o}", open.mode),
            sha256: open.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            events,
            data,
        });
    }

    /// Whether there is room for one more name.
    fn has_room_for(&mut self, path: &str) -> bool {
        let bytes = as_json(path);
        let fits = bytes <= self.names_left;
        if fits {
            self.names_left -= bytes;
        } else {
            self.untold += 1;
        }
        fits
    }

    fn miss(&mut self, path: String, reason: Missed, message: String) {
        self.collected.missed.push(MissedArtifact { path, reason, message });
    }

    /// A path as it may be shown.
    fn shown(&self, path: &[u8]) -> String {
        let path = String::from_utf8_lossy(path);
        self.secrets.as_ref().map_or_else(|| path.to_string(), |secrets| secrets.mask(&path))
    }

    /// Nothing more comes: all that there is.
    pub fn finish(mut self) -> Collected {
        if self.end != End::Whole {
            let message =
                "collecting ended before it was whole: its time was over, or the container was lost";
            if let Some(open) = self.open.take() {
                self.miss(open.path, Missed::Interrupted, message.into());
            }
            for pattern in self.patterns.split_off(self.reached.min(self.patterns.len())) {
                let pattern = self.shown(pattern.as_bytes());
                self.miss(pattern, Missed::Interrupted, message.into());
            }
        }
        if self.untold > 0 {
            let message = format!("{} more files; their names would be too long for the result", self.untold);
            let pattern = self.patterns.get(self.reached).or(self.patterns.last());
            let pattern = pattern.map(|pattern| self.shown(pattern.as_bytes())).unwrap_or_default();
            self.miss(pattern, Missed::TooMany, message);
        }
        self.collected
    }
}

/// Bytes that a text takes as a JSON string, without its quotes.
fn as_json(text: &str) -> usize {
    let of = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..=31 => 6,
        _ => 1,
    };
    text.bytes().map(of).sum()
}

/// As text, unless it is none, or escapes would make it longer than base64 is.
fn shortest(bytes: Vec<u8>) -> Data {
    match Data::from(bytes) {
        Data::Text(text) if as_json(&text) > text.len().div_ceil(3) * 4 => {
            Data::Base64(base64::engine::general_purpose::STANDARD.encode(text))
        }
        data => data,
    }
}

impl Open {
    fn keep(&mut self, bytes: &[u8], due: &mut Vec<Piece>) {
        match &mut self.place {
            Place::Result(all) => all.extend_from_slice(bytes),
            Place::Events { pending, .. } => {
                pending.extend_from_slice(bytes);
                if pending.len() >= PIECE_MAX {
                    let rest = pending.split_off(PIECE_MAX);
                    self.send(rest, due);
                }
            }
            Place::Nowhere | Place::Untold => {}
        }
    }

    fn flush(&mut self, due: &mut Vec<Piece>) {
        if let Place::Events { pending, .. } = &self.place
            && !pending.is_empty()
        {
            self.send(Vec::new(), due);
        }
    }

    /// Makes a piece of what is pending but for `rest`.
    fn send(&mut self, rest: Vec<u8>, due: &mut Vec<Piece>) {
        if let Place::Events { pending, sent } = &mut self.place {
            let offset = self.got - (pending.len() + rest.len()) as u64;
            let bytes = std::mem::replace(pending, rest);
            *sent += 1;
            due.push(Piece { path: self.path.clone(), size: self.size, offset, bytes });
        }
    }
}

fn said(errno: u64) -> String {
    std::io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(0)).to_string()
}

fn missed(path: String, record: &Record, limits: &ArtifactsConfig) -> MissedArtifact {
    let (reason, message) = match Miss::from_u16(record.detail) {
        Some(Miss::Nothing) if path.contains(['*', '?']) => (Missed::NotFound, "nothing matches".to_owned()),
        Some(Miss::Nothing) => (Missed::NotFound, "there is no such file".to_owned()),
        Some(Miss::Link) => {
            (Missed::Link, "a symbolic link, which is not followed; name what it points to".into())
        }
        Some(Miss::Special) => {
            (Missed::NotAFile, "not an ordinary file: a pipe, a device, a socket, or the kernel's own".into())
        }
        Some(Miss::TooLarge) => {
            (Missed::TooLarge, format!("all artifacts together may have {} bytes in this pool", limits.size))
        }
        Some(Miss::TooMany) => (
            Missed::TooMany,
            format!("there may be {} artifacts in this pool, and there are more", limits.max),
        ),
        Some(Miss::Refused) | None => (Missed::NotReadable, said(record.number)),
    };
    MissedArtifact { path, reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ArtifactsConfig =
        ArtifactsConfig { max: 3, size: 1 << 20, inline: 8, timeout: std::time::Duration::from_secs(1) };

    fn collector(patterns: &[&str]) -> Collector {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        Collector::new(&patterns, LIMITS, Events::Sent, None)
    }

    fn file(pattern: u32, path: &str, content: &[u8]) -> Vec<u8> {
        let plain = Record::plain(Tag::File, pattern, content.len() as u64);
        let mut all = Record { path: path.len() as u16, detail: 0o644, ..plain }.encode().to_vec();
        all.extend(path.as_bytes());
        for piece in content.chunks(Record::DATA_MAX) {
            all.extend(Record::plain(Tag::Data, pattern, piece.len() as u64).encode());
            all.extend(piece);
        }
        all.extend(Record::plain(Tag::Done, pattern, 0).encode());
        all
    }

    fn end(pattern: u32) -> Vec<u8> {
        Record::plain(Tag::End, pattern, 0).encode().to_vec()
    }

    fn reasons(collected: &Collected) -> Vec<(&str, Missed)> {
        collected.missed.iter().map(|m| (m.path.as_str(), m.reason)).collect()
    }

    #[test]
    fn small_files_are_in_the_result_and_large_ones_in_pieces_however_the_stream_is_cut() {
        let large: Vec<u8> = (0..600_000u32).map(|n| n as u8).collect();
        let miss = Record { detail: Miss::Nothing as u16, ..Record::plain(Tag::Missed, 1, 2) };
        let stream = [file(0, "a", b"hello"), file(0, "b", &large), miss.encode().to_vec(), end(1)].concat();
        for cut in [1, 7, 4096, 65_536] {
            let mut collector = collector(&["*", "no/*"]);
            let mut pieces = Vec::new();
            for bytes in stream.chunks(cut) {
                pieces.extend(collector.push(&Bytes::copy_from_slice(bytes)));
            }
            assert_eq!(pieces.iter().map(|p| p.offset).collect::<Vec<_>>(), [0, 262_144, 524_288]);
            assert!(pieces.iter().all(|p| p.path == "b" && p.size == 600_000 && p.bytes.len() <= PIECE_MAX));
            assert_eq!(pieces.iter().flat_map(|p| p.bytes.clone()).collect::<Vec<_>>(), large);
            let collected = collector.finish();
            let [a, b] = &collected.artifacts[..] else { panic!("{collected:?}") };
            assert_eq!(
                (a.data.clone(), a.events, a.mode.as_str()),
                (Some(Data::Text("hello".into())), None, "0644")
            );
            assert_eq!(a.sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
            assert_eq!((b.data.clone(), b.events, b.size), (None, Some(3), 600_000));
            assert_eq!(reasons(&collected), [("no/*", Missed::NotFound)]);
        }
    }

    #[test]
    fn what_has_not_come_is_missing() {
        let nothing = collector(&["a", "b"]).finish();
        assert_eq!(reasons(&nothing), [("a", Missed::Interrupted), ("b", Missed::Interrupted)]);
        let mut half = collector(&["a", "b"]);
        half.push(&Bytes::from(file(0, "a", b"12345")));
        let rest = file(1, "b", b"12345");
        half.push(&Bytes::copy_from_slice(&rest[..rest.len() - 20]));
        let half = half.finish();
        assert_eq!(half.artifacts.len(), 1);
        assert_eq!(reasons(&half), [("b", Missed::Interrupted), ("b", Missed::Interrupted)]);
        let mut nowhere = Collector::new(&["a".to_owned()], LIMITS, Events::Nowhere, None);
        let stream = [file(0, "a", b"more than eight"), end(0)].concat();
        assert_eq!(nowhere.push(&Bytes::from(stream)), []);
        assert_eq!(reasons(&nowhere.finish()), [("a", Missed::NoReplyQueue)]);
    }

    #[test]
    fn a_result_is_bounded_whatever_files_are_called_and_hold() {
        let limits = ArtifactsConfig { max: 10_000, size: 1 << 30, inline: 1 << 20, ..LIMITS };
        let mut collector = Collector::new(&["**".to_owned()], limits, Events::Sent, None);
        let name = "\u{1}".repeat(4000);
        let miss = Record { detail: Miss::Link as u16, ..Record::plain(Tag::Missed, 0, 0) };
        let miss = [&Record { path: 4000, ..miss }.encode()[..], name.as_bytes()].concat();
        let content = vec![1; 600_000];
        assert_eq!(collector.push(&Bytes::from(file(0, "control", &content))), []);
        for n in 0..1000 {
            collector.push(&Bytes::from(miss.clone()));
            let name = format!("{n:04}{}", &name[4..]);
            assert_eq!(collector.push(&Bytes::from(file(0, &name, b"x"))), []);
        }
        collector.push(&Bytes::from(end(0)));
        let collected = collector.finish();
        let Some(Data::Base64(coded)) = &collected.artifacts[0].data else { panic!() };
        assert_eq!(coded.len(), 800_000);
        let json = serde_json::to_vec(&(&collected.artifacts, &collected.missed)).unwrap();
        assert!(json.len() < 800_000 + NAMES_MAX + (100 << 10), "{}", json.len());
        let last = collected.missed.last().unwrap();
        assert_eq!((last.path.as_str(), last.reason), ("**", Missed::TooMany));
        let told = collected.artifacts.len() - 1 + collected.missed.len() - 1;
        assert_eq!(
            last.message,
            format!("{} more files; their names would be too long for the result", 2000 - told)
        );
        // What comes by two patterns is there once.
        let mut twice = Collector::new(&["a".to_owned(), "*".to_owned()], LIMITS, Events::Sent, None);
        twice.push(&Bytes::from(
            [file(0, "a", b"1"), file(1, "a", b"1"), file(1, "b", b"2"), end(1)].concat(),
        ));
        let twice = twice.finish();
        assert_eq!(twice.artifacts.iter().map(|a| a.path.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(twice.missed, []);
        for text in ["a\"\\\n\u{1}\u{7f}é", ""] {
            assert_eq!(as_json(text), serde_json::to_string(text).unwrap().len() - 2);
        }
    }

    #[test]
    fn what_is_no_such_stream_does_no_harm() {
        let big = Record { path: 1, ..Record::plain(Tag::File, 0, 1 << 21) };
        let four = ["a", "b", "c", "d"].map(|path| file(0, path, b"")).concat();
        for bad in [
            vec![9; 40],
            Record::plain(Tag::Data, 0, 1).encode().to_vec(),
            [&big.encode()[..], b"x"].concat(),
            file(7, "x", b""),
            [file(1, "x", b""), file(0, "y", b"")].concat(),
            four,
        ] {
            let mut collector = collector(&["a", "b"]);
            assert_eq!(collector.push(&Bytes::from([bad, end(1)].concat())), []);
            assert!(collector.finish().missed.iter().any(|m| m.reason == Missed::Interrupted));
        }
        use proptest::prelude::*;
        proptest!(|(bytes in prop::collection::vec(0u8..6, 0..400))| {
            let mut collector = collector(&["a", "b"]);
            collector.push(&Bytes::from(bytes));
            prop_assert!(collector.finish().artifacts.len() <= 3);
        });
    }
}
