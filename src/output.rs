//! Pure: what becomes of a job's output — secrets masked, pieces for log events, a limit, the tails for the result.
//!
//! Bytes go in as init read them; pieces come out in the same order, across both streams. Nothing here grows
//! with what a job prints.

use std::time::{Duration, Instant};

use crate::contract::event::{Data, Stream, Tail};
use crate::contract::job::Logs;
use crate::redact::{Redactor, Secrets};

/// A piece is sent when it has this many bytes.
pub const PIECE_MAX: usize = 64 * 1024;
/// Or when its first byte is this old.
pub const PIECE_AGE: Duration = Duration::from_millis(100);
/// Bytes of each stream's end that the result shows.
pub const TAIL_MAX: usize = 64 * 1024;

/// A piece of output, as a log event shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which stream.
    pub stream: Stream,
    /// Bytes of this stream before it.
    pub offset: u64,
    /// The bytes; not empty, but for a marker.
    pub bytes: Vec<u8>,
    /// Set on the last piece of a job that printed more than the limit, which this is.
    pub truncated_at: Option<u64>,
}

/// What one job has printed so far.
#[derive(Debug)]
pub struct Output {
    logs: Logs,
    limit: u64,
    /// Bytes that may still become pieces; `None` when the limit was passed, and said so.
    left: Option<u64>,
    pending: Vec<u8>,
    pending_of: Stream,
    since: Option<Instant>,
    stdout: End,
    stderr: End,
    secrets: Option<Secrets>,
    /// For stdout and stderr, if the job has secrets and has printed. All else here counts what is left after masking.
    redactors: Option<[Redactor; 2]>,
}

impl Output {
    /// Nothing yet. At most `limit` bytes of both streams become pieces.
    pub fn new(logs: Logs, limit: u64, secrets: Option<Secrets>) -> Output {
        Output {
            secrets,
            redactors: None,
            logs,
            limit,
            left: Some(limit),
            pending: Vec::new(),
            pending_of: Stream::Stdout,
            since: None,
            stdout: End::default(),
            stderr: End::default(),
        }
    }

    /// Takes what the job printed; gives the pieces that are due because of it.
    pub fn push(&mut self, stream: Stream, bytes: &[u8], now: Instant) -> Vec<Piece> {
        let Some(secrets) = &self.secrets else { return self.take(stream, bytes, now) };
        // Not before there is something to mask: a job's start doesn't wait for it.
        let redactors = self.redactors.get_or_insert_with(|| [secrets.redactor(), secrets.redactor()]);
        let shown = redactors[stream as usize].feed(bytes);
        self.take(stream, &shown, now)
    }

    /// Takes what may be shown.
    fn take(&mut self, stream: Stream, bytes: &[u8], now: Instant) -> Vec<Piece> {
        let mut due = Vec::new();
        if self.logs == Logs::Stream && self.left.is_some() && !bytes.is_empty() {
            if stream != self.pending_of {
                due.extend(self.cut(Cut::All));
                self.pending_of = stream;
            }
            self.collect(bytes, now, &mut due);
        }
        // After the pieces: their offsets are what came before.
        let keep = if self.logs == Logs::Off { 0 } else { TAIL_MAX };
        self.end_mut(stream).push(bytes, keep);
        due
    }

    fn collect(&mut self, bytes: &[u8], now: Instant, due: &mut Vec<Piece>) {
        let left = self.left.unwrap_or(0);
        let allowed = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut rest = &bytes[..allowed];
        let mut taken = 0;
        while !rest.is_empty() {
            let (now_in, later) = rest.split_at(rest.len().min(PIECE_MAX - self.pending.len()));
            self.since.get_or_insert(now);
            self.pending.extend_from_slice(now_in);
            taken += now_in.len();
            rest = later;
            if self.pending.len() >= PIECE_MAX {
                due.extend(self.cut_at(Cut::Whole, taken));
            }
        }
        self.left = Some(left - allowed as u64);
        if allowed < bytes.len() {
            due.extend(self.cut_at(Cut::All, taken));
            due.push(Piece {
                stream: self.pending_of,
                offset: self.end(self.pending_of).total + taken as u64,
                bytes: Vec::new(),
                truncated_at: Some(self.limit),
            });
            self.left = None;
        }
    }

    /// When `flush` has something to give, if nothing more is printed.
    pub fn due(&self) -> Option<Instant> {
        self.since.map(|t| t + PIECE_AGE)
    }

    /// The piece that is old enough by now, if there is one.
    pub fn flush(&mut self, now: Instant) -> Option<Piece> {
        if self.due()? > now {
            return None;
        }
        // A character that isn't complete after a second such wait is not going to be.
        let piece = self.cut(Cut::Whole).or_else(|| self.cut(Cut::All));
        self.since = (!self.pending.is_empty()).then_some(now);
        piece
    }

    /// All that was printed has been pushed: the last pieces.
    pub fn finish(&mut self, now: Instant) -> Vec<Piece> {
        let mut due = Vec::new();
        if let Some(mut redactors) = self.redactors.take() {
            // The stream that printed last goes on where it was.
            let order = if self.pending_of == Stream::Stdout {
                Stream::ALL
            } else {
                [Stream::Stderr, Stream::Stdout]
            };
            for stream in order {
                let shown = redactors[stream as usize].finish();
                due.extend(self.take(stream, &shown, now));
            }
        }
        due.extend(self.cut(Cut::All));
        due
    }

    /// The ends of stdout and stderr; `None` with `logs: off`.
    pub fn tails(self) -> Option<(Tail, Tail)> {
        (self.logs != Logs::Off).then(|| (self.stdout.tail(), self.stderr.tail()))
    }

    /// The last of what has become pieces of this stream, at most [`TAIL_MAX`] bytes, for who hasn't seen them.
    pub fn recent(&self, stream: Stream) -> Option<Piece> {
        let (end, pending) =
            (self.end(stream), if stream == self.pending_of { self.pending.len() } else { 0 });
        // Only so much of its end is one piece of the stream.
        let last = &end.last[end.last.len().saturating_sub(TAIL_MAX)..];
        let bytes = last[..last.len().saturating_sub(pending)].to_vec();
        let offset = end.total - (pending + bytes.len()) as u64;
        (!bytes.is_empty()).then_some(Piece { stream, offset, bytes, truncated_at: None })
    }

    /// Bytes of this stream so far.
    pub fn total(&self, stream: Stream) -> u64 {
        self.end(stream).total
    }

    fn cut(&mut self, how: Cut) -> Option<Piece> {
        self.cut_at(how, 0)
    }

    /// Makes a piece of what is pending; `uncounted` bytes of it are not in the stream's total yet.
    fn cut_at(&mut self, how: Cut, uncounted: usize) -> Option<Piece> {
        let keep = if how == Cut::Whole { open_character(&self.pending) } else { 0 };
        let len = self.pending.len() - keep;
        if len == 0 {
            return None;
        }
        let offset = self.end(self.pending_of).total + uncounted as u64 - self.pending.len() as u64;
        let rest = self.pending.split_off(len);
        let bytes = std::mem::replace(&mut self.pending, rest);
        if self.pending.is_empty() {
            self.since = None;
        }
        Some(Piece { stream: self.pending_of, offset, bytes, truncated_at: None })
    }

    fn end(&self, stream: Stream) -> &End {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn end_mut(&mut self, stream: Stream) -> &mut End {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// Where a piece ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Before a UTF-8 character whose bytes have not all come.
    Whole,
    /// After all there is.
    All,
}

/// How many bytes at the end are the beginning of a UTF-8 character.
fn open_character(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    for (i, byte) in tail.iter().enumerate().rev() {
        let have = tail.len() - i;
        let want = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => return 0,
        };
        return if have < want { have } else { 0 };
    }
    0
}

/// The end of one stream.
#[derive(Debug, Default)]
struct End {
    total: u64,
    /// At most twice what is kept: trimmed now and then rather than on each push.
    last: Vec<u8>,
}

impl End {
    fn push(&mut self, bytes: &[u8], keep: usize) {
        self.total += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(keep)..];
        if self.last.len() + bytes.len() > 2 * keep {
            let surplus = (self.last.len() + bytes.len() - keep).min(self.last.len());
            self.last.drain(..surplus);
        }
        self.last.extend_from_slice(bytes);
    }

    fn tail(mut self) -> Tail {
        let surplus = self.last.len().saturating_sub(TAIL_MAX);
        self.last.drain(..surplus);
        let truncated = self.total > self.last.len() as u64;
        if truncated {
            // The cut may have gone through a character, which would make the rest no text.
            let open = self.last.iter().take(3).take_while(|b| (0x80..=0xBF).contains(*b)).count();
            if std::str::from_utf8(&self.last[open..]).is_ok() {
                self.last.drain(..open);
            }
        }
        Tail { data: Data::from(self.last), total_bytes: self.total, truncated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stream::{Stderr, Stdout};

    fn all(output: &mut Output, writes: &[(Stream, &[u8])]) -> Vec<Piece> {
        let now = Instant::now();
        let mut out: Vec<Piece> = writes.iter().flat_map(|(s, b)| output.push(*s, b, now)).collect();
        out.extend(output.finish(now));
        out
    }

    fn piece(stream: Stream, offset: u64, bytes: &[u8]) -> Piece {
        Piece { stream, offset, bytes: bytes.to_vec(), truncated_at: None }
    }

    fn plain(logs: Logs, limit: u64) -> Output {
        Output::new(logs, limit, None)
    }

    #[test]
    fn secrets_are_masked_in_pieces_and_tails_in_each_stream() {
        let mut o = Output::new(Logs::Stream, 1000, Secrets::new([&b"s3cret"[..]]));
        let got = all(
            &mut o,
            &[(Stdout, b"a s3c"), (Stderr, b"s3cret"), (Stdout, b"ret open s3"), (Stderr, b"cret")],
        );
        let text = |s: Stream| {
            got.iter().filter(|p| p.stream == s).flat_map(|p| p.bytes.clone()).collect::<Vec<_>>()
        };
        assert_eq!(text(Stdout), b"a *** open s3");
        assert_eq!(text(Stderr), b"***cret");
        let (out, err) = o.tails().unwrap();
        assert_eq!((out.data, out.total_bytes), (Data::Text("a *** open s3".into()), 13));
        assert_eq!(err.data, Data::Text("***cret".into()));
    }

    #[test]
    fn order_across_streams_is_kept_and_offsets_are_per_stream() {
        let mut o = plain(Logs::Stream, 1000);
        let got =
            all(&mut o, &[(Stdout, b"a"), (Stdout, b"b"), (Stderr, b"E"), (Stdout, b"c"), (Stderr, b"F")]);
        assert_eq!(
            got,
            [piece(Stdout, 0, b"ab"), piece(Stderr, 0, b"E"), piece(Stdout, 2, b"c"), piece(Stderr, 1, b"F")]
        );
    }

    #[test]
    fn pieces_are_bounded_in_size_and_age() {
        let mut o = plain(Logs::Stream, u64::MAX);
        let now = Instant::now();
        assert_eq!(o.due(), None);
        let big = vec![b'x'; PIECE_MAX * 2 + 5];
        let got = o.push(Stdout, &big, now);
        assert_eq!(
            got.iter().map(|p| (p.offset, p.bytes.len())).collect::<Vec<_>>(),
            [(0, PIECE_MAX), (PIECE_MAX as u64, PIECE_MAX)]
        );
        assert_eq!(o.due(), Some(now + PIECE_AGE));
        assert_eq!(o.flush(now), None);
        assert_eq!(o.flush(now + PIECE_AGE), Some(piece(Stdout, 2 * PIECE_MAX as u64, b"xxxxx")));
        assert_eq!(o.due(), None);
    }

    #[test]
    fn a_character_is_not_cut_unless_the_job_leaves_it_so() {
        let mut o = plain(Logs::Stream, 1000);
        let now = Instant::now();
        o.push(Stdout, "hé".as_bytes().split_last().unwrap().1, now);
        assert_eq!(o.flush(now + PIECE_AGE), Some(piece(Stdout, 0, b"h")));
        o.push(Stdout, b"\xa9!", now);
        assert_eq!(o.finish(now), [piece(Stdout, 1, "é!".as_bytes())]);
        o.push(Stdout, b"x\xf0\x9f", now);
        assert_eq!(o.flush(now + PIECE_AGE), Some(piece(Stdout, 4, b"x")));
        assert_eq!(o.flush(now + PIECE_AGE), None, "it may still come");
        assert_eq!(o.flush(now + 2 * PIECE_AGE), Some(piece(Stdout, 5, b"\xf0\x9f")), "it never came");
    }

    #[test]
    fn past_the_limit_there_is_one_marker_and_the_tails_go_on() {
        let mut o = plain(Logs::Stream, 10);
        let got = all(&mut o, &[(Stdout, b"12345678"), (Stderr, b"abcd"), (Stdout, b"9"), (Stderr, b"e")]);
        assert_eq!(got[..2], [piece(Stdout, 0, b"12345678"), piece(Stderr, 0, b"ab")]);
        assert_eq!(got[2], Piece { stream: Stderr, offset: 2, bytes: vec![], truncated_at: Some(10) });
        assert_eq!(got.len(), 3);
        let (out, err) = o.tails().unwrap();
        assert_eq!((out.data, out.total_bytes, out.truncated), (Data::Text("123456789".into()), 9, false));
        assert_eq!((err.data, err.total_bytes), (Data::Text("abcde".into()), 5));
    }

    #[test]
    fn output_of_exactly_the_limit_is_not_truncated() {
        let mut o = plain(Logs::Stream, 4);
        assert_eq!(all(&mut o, &[(Stdout, b"1234")]), [piece(Stdout, 0, b"1234")]);
    }

    #[test]
    fn result_and_off_give_no_pieces() {
        let mut o = plain(Logs::Result, 10);
        assert_eq!(all(&mut o, &[(Stdout, b"x")]), []);
        assert_eq!(o.tails().unwrap().0.data, Data::Text("x".into()));
        let mut o = plain(Logs::Off, 10);
        assert_eq!(all(&mut o, &[(Stdout, b"x")]), []);
        assert_eq!(o.total(Stdout), 1);
        assert_eq!(o.tails(), None);
    }

    #[test]
    fn a_tail_is_the_end_and_starts_with_a_whole_character() {
        let mut o = plain(Logs::Result, 0);
        let now = Instant::now();
        let text = "é".repeat(TAIL_MAX);
        for chunk in text.as_bytes().chunks(1001) {
            o.push(Stdout, chunk, now);
        }
        o.push(Stdout, b"!", now);
        let (tail, _) = o.tails().unwrap();
        let Data::Text(t) = tail.data else { panic!("text") };
        assert!(t.ends_with("é!") && t.len() <= TAIL_MAX && t.len() >= TAIL_MAX - 2, "{}", t.len());
        assert_eq!((tail.total_bytes, tail.truncated), (2 * TAIL_MAX as u64 + 1, true));
    }

    /// Somebody who looks on from some moment gets the end of what came before, and then what comes: no byte twice, none missing.
    #[test]
    fn what_is_recent_ends_where_the_next_piece_begins() {
        let mut o = plain(Logs::Stream, u64::MAX);
        let now = Instant::now();
        assert_eq!(o.recent(Stdout), None);
        o.push(Stdout, b"out", now);
        assert_eq!(o.recent(Stdout), None, "it becomes a piece only now");
        o.push(Stderr, b"err", now);
        assert_eq!(o.recent(Stdout), Some(piece(Stdout, 0, b"out")));
        assert_eq!(o.recent(Stderr), None);
        o.flush(now + PIECE_AGE);
        assert_eq!(o.recent(Stderr), Some(piece(Stderr, 0, b"err")));
        let big: Vec<u8> = (0..5 * TAIL_MAX + 17).map(|n| (n % 251) as u8).collect();
        let pieces = o.push(Stdout, &big, now);
        let last = pieces.last().unwrap();
        let recent = o.recent(Stdout).unwrap();
        assert_eq!(recent.offset + recent.bytes.len() as u64, last.offset + last.bytes.len() as u64);
        assert!(last.bytes.ends_with(&recent.bytes[recent.bytes.len() - 100..]));
        assert_eq!(o.finish(now)[0].offset, recent.offset + recent.bytes.len() as u64);
    }

    /// Whatever the writes: the pieces put together are the output, in order.
    #[test]
    fn nothing_is_lost_or_doubled() {
        use proptest::prelude::*;
        let writes = prop::collection::vec(
            (any::<bool>(), prop::collection::vec(any::<u8>(), 0..200_000), any::<bool>()),
            0..20,
        );
        proptest!(ProptestConfig::with_cases(64), |(writes in writes, limit in 0u64..400_000)| {
            let mut o = plain(Logs::Stream, limit);
            let mut now = Instant::now();
            let (mut got, mut want) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
            let (mut left, mut pieces) = (limit as usize, Vec::new());
            for (err, bytes, wait) in &writes {
                let stream = if *err { Stderr } else { Stdout };
                let n = bytes.len().min(left);
                left -= n;
                want[usize::from(*err)].extend_from_slice(&bytes[..n]);
                if n < bytes.len() { left = 0 }
                pieces.extend(o.push(stream, bytes, now));
                if *wait {
                    now += PIECE_AGE;
                    pieces.extend(o.flush(now));
                }
            }
            pieces.extend(o.finish(now));
            for p in pieces {
                prop_assert!(p.bytes.len() <= PIECE_MAX);
                let stream = &mut got[usize::from(p.stream == Stderr)];
                prop_assert_eq!(p.offset, stream.len() as u64);
                stream.extend(p.bytes);
            }
            prop_assert_eq!(got, want);
        });
    }
}
