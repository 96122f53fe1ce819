//! Copies of a running job's output, for those who look on from elsewhere (`prewarm logs`).
//!
//! ```text
//!  who follows the job ──never waits──► 16 events, 1 MiB ──► Worker's copying task ──confirmed──► the onlooker's queue
//!                        no room: dropped, which the offsets show
//! ```
//!
//! A job doesn't notice them: its own replies have a publisher of their own, and nothing here is waited for.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::contract::event::{Data, Envelope, JobResult, Log};
use crate::output::Piece;

/// Events that may wait for an onlooker's queue, each at most 64 KiB of output.
const EVENTS: usize = 16;
/// Bytes that they may have together, as JSON: a byte of output may take six there, and each event has the job's metadata.
const BYTES: usize = 1 << 20;
/// Onlookers that may come to one job in the same moment.
pub const COMING: usize = 4;

/// One of them, as the job's side sees it. Dropped before it was given a result, the job went on elsewhere.
#[derive(Debug)]
pub struct Onlooker {
    seq: u64,
    events: mpsc::Sender<Copy>,
    room: Arc<Semaphore>,
    result: oneshot::Sender<Bytes>,
}

/// A log event that waits to be published.
#[derive(Debug)]
pub struct Copy {
    /// The event, as JSON.
    pub body: Bytes,
    /// Its place among those that wait; free again when it is dropped.
    _room: OwnedSemaphorePermit,
}

/// One of them, as the side that publishes sees it.
#[derive(Debug)]
pub struct Copies {
    /// Log events, until the job is over.
    pub events: mpsc::Receiver<Copy>,
    /// After them its result, as JSON; an error if there is none here.
    pub result: oneshot::Receiver<Bytes>,
}

impl Onlooker {
    /// Both sides of one.
    pub fn new() -> (Onlooker, Copies) {
        let (send, events) = mpsc::channel(EVENTS);
        let (end, result) = oneshot::channel();
        let room = Arc::new(Semaphore::new(BYTES));
        (Onlooker { seq: 0, events: send, room, result: end }, Copies { events, result })
    }

    /// Shows a piece of output if there is room. The envelope's number is set to the onlooker's own, which grows with what is
    /// dropped too. False if nobody looks any more.
    pub fn show(&mut self, envelope: Envelope, piece: &Piece) -> bool {
        let seq = self.seq;
        self.seq += 1;
        match self.events.try_reserve() {
            Ok(room) => {
                let log = Log {
                    envelope: Envelope { seq, ..envelope },
                    stream: piece.stream,
                    offset: piece.offset,
                    data: Data::from(piece.bytes.clone()),
                    truncated_at: piece.truncated_at,
                };
                // Our own types: no way to fail.
                let body = Bytes::from(serde_json::to_vec(&log).unwrap_or_default());
                let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
                if let Ok(place) = self.room.clone().try_acquire_many_owned(bytes) {
                    room.send(Copy { body, _room: place });
                }
                true
            }
            Err(mpsc::error::TrySendError::Full(())) => true,
            Err(mpsc::error::TrySendError::Closed(())) => false,
        }
    }

    fn end(self, result: &JobResult) {
        let mut result = result.clone();
        result.envelope.seq = self.seq;
        // Whether it still looks doesn't matter any more.
        let _ = self.result.send(serde_json::to_vec(&result).unwrap_or_default().into());
    }
}

/// All that look at one attempt.
#[derive(Debug, Default)]
pub struct Onlookers {
    coming: Option<mpsc::Receiver<Onlooker>>,
    here: Vec<Onlooker>,
}

impl Onlookers {
    /// None yet; they come from there.
    pub fn from(coming: mpsc::Receiver<Onlooker>) -> Onlookers {
        Onlookers { coming: Some(coming), here: Vec::new() }
    }

    /// The next one that comes; waits for ever if none can. Cancel safe.
    pub async fn next(&mut self) -> Onlooker {
        if let Some(coming) = &mut self.coming
            && let Some(onlooker) = coming.recv().await
        {
            return onlooker;
        }
        std::future::pending().await
    }

    /// One has come.
    pub fn add(&mut self, onlooker: Onlooker) {
        self.here.push(onlooker);
    }

    /// Whether nobody looks.
    pub fn is_empty(&self) -> bool {
        self.here.is_empty()
    }

    /// Shows all of them a piece of output.
    pub fn show(&mut self, piece: &Piece, envelope: impl Fn() -> Envelope) {
        self.here.retain_mut(|onlooker| onlooker.show(envelope(), piece));
    }

    /// The attempt's result, to all of them, and to those that had just come.
    pub fn end(&mut self, result: &JobResult) {
        while let Some(onlooker) = self.coming.as_mut().and_then(|coming| coming.try_recv().ok()) {
            self.here.push(onlooker);
        }
        for onlooker in self.here.drain(..) {
            onlooker.end(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::contract::event::Stream;

    fn envelope() -> Envelope {
        Envelope { job_id: "j".into(), attempt: 1, seq: 77, time: String::new(), metadata: None }
    }

    #[test]
    fn one_that_is_slow_misses_what_there_is_no_room_for_and_one_that_left_is_forgotten() {
        let mut all = Onlookers::default();
        let ((slow, mut copies), (left, gone)) = (Onlooker::new(), Onlooker::new());
        all.add(slow);
        all.add(left);
        drop(gone);
        for n in 0..EVENTS as u64 + 4 {
            let piece = Piece { stream: Stream::Stdout, offset: n, bytes: b"x".to_vec(), truncated_at: None };
            all.show(&piece, envelope);
            if n == EVENTS as u64 {
                copies.events.try_recv().unwrap();
            }
        }
        assert_eq!(all.here.len(), 1);
        drop(all);
        let mut seen = Vec::new();
        while let Ok(body) = copies.events.try_recv() {
            let log: Value = serde_json::from_slice(&body.body).unwrap();
            assert_eq!(log["seq"], log["offset"]);
            seen.push(log["seq"].as_u64().unwrap());
        }
        // 0 was taken, 16 was dropped, 17 had its place, 18 and 19 had none.
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17]);
        assert!(copies.result.try_recv().is_err(), "the job went on elsewhere");
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_too() {
        let (mut onlooker, mut copies) = Onlooker::new();
        // As JSON each of these is six.
        let bytes = vec![0; 64 << 10];
        for n in 0..EVENTS as u64 {
            let piece = Piece { stream: Stream::Stdout, offset: n, bytes: bytes.clone(), truncated_at: None };
            assert!(onlooker.show(envelope(), &piece));
        }
        let waiting: Vec<Copy> = std::iter::from_fn(|| copies.events.try_recv().ok()).collect();
        assert_eq!(waiting.len(), 2);
        assert!(waiting.iter().map(|copy| copy.body.len()).sum::<usize>() <= BYTES);
        drop(waiting);
        let piece = Piece { stream: Stream::Stdout, offset: 99, bytes, truncated_at: None };
        assert!(onlooker.show(envelope(), &piece) && copies.events.try_recv().is_ok());
    }
}
