//! The worker's end of the stream to a container's init: frames in, frames out. It leads through the engine, or past it
//! (see [`super::shortcut`]).

use std::io::{self, ErrorKind};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{Attached, ContainerId};
use crate::contract::event::Stream;
use crate::init::parcel::FileHead;
use crate::init::wire::{self, Doubt, Exited, Failed, HEADER, Kind, Malformed, SetupHead, StartHead, TOKEN};

/// How long the engine, or init, may take to accept a frame.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

/// There is room for at least so much that is read, unless a frame that is longer has begun: idle containers are many, and each has a buffer.
const ROOM: usize = 4 << 10;

/// What init says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// It waits for a START.
    Ready,
    /// The entrypoint is executing.
    Started,
    /// The job printed.
    Output(Stream, Bytes),
    /// It has room for the next piece of stdin.
    StdinTaken,
    /// The job is over.
    Exited(Exited),
    /// The entrypoint was not executed.
    Failed(Failed),
    /// No other job should run there.
    Doubt(Doubt),
    /// The job is over; its artifacts follow.
    Ended(Exited),
    /// A piece of the artifacts' stream.
    Artifact(Bytes),
}

/// Why nothing more comes from an init.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The container ended, or the engine closed the stream.
    #[error("container {0}: its stream ended")]
    Closed(ContainerId),
    /// The connection to the engine broke.
    #[error("container {0}: its stream broke: {1}")]
    Broken(ContainerId, #[source] io::Error),
    /// What came is no frame of this protocol.
    #[error("container {0}: its init sent what is no frame: {1:?}")]
    Protocol(ContainerId, Malformed),
    /// Init speaks another version of the protocol.
    #[error("container {0}: its init speaks protocol {1}, this worker {ours}", ours = wire::VERSION)]
    Version(ContainerId, u32),
}

/// The stream to one container's init. Dropping it ends the container.
pub struct Link {
    container: ContainerId,
    attached: Attached,
    /// What takes the attached stream's place for frames; the container's end is told by that one still.
    shortcut: Option<UnixStream>,
    buffer: BytesMut,
}

impl Link {
    /// Speaks to the init of `container` over its stdio.
    pub fn new(container: ContainerId, attached: Attached) -> Link {
        Link { container, attached, shortcut: None, buffer: BytesMut::new() }
    }

    /// Speaks to init by this socket from now on; see [`super::shortcut`].
    pub fn take(&mut self, shortcut: UnixStream) {
        self.shortcut = Some(shortcut);
    }

    /// The container at the other end.
    pub fn container(&self) -> &ContainerId {
        &self.container
    }

    /// The next frame. Cancel safe: what has arrived is kept.
    ///
    /// # Errors
    /// [`LinkError`]: after any of them nothing more comes.
    pub async fn recv(&mut self) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = self.parse()? {
                return Ok(frame);
            }
            let said = match &mut self.shortcut {
                None => self.attached.output.next().await,
                Some(shortcut) => {
                    self.buffer.reserve(ROOM);
                    tokio::select! {
                        biased;
                        read = shortcut.read_buf(&mut self.buffer) => match read {
                            Ok(1..) => continue,
                            // Init has ended. Why is said, if at all, on the attached stream, before that ends too.
                            Ok(0) | Err(_) => {
                                self.shortcut = None;
                                continue;
                            }
                        },
                        said = self.attached.output.next() => said,
                    }
                }
            };
            match said {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(e)) => return Err(LinkError::Broken(self.container.clone(), e)),
                None => return Err(LinkError::Closed(self.container.clone())),
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Frame>, LinkError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let protocol = |m| LinkError::Protocol(self.container.clone(), m);
        let (kind, len) = wire::parse_header(*header).map_err(protocol)?;
        if self.buffer.len() < HEADER + len {
            self.buffer.reserve(HEADER + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let payload = self.buffer.split_to(len).freeze();
        Ok(Some(match kind {
            Kind::Ready => match payload.first_chunk().map(|v| u32::from_le_bytes(*v)) {
                Some(wire::VERSION) => Frame::Ready,
                other => return Err(LinkError::Version(self.container.clone(), other.unwrap_or(0))),
            },
            Kind::Started => Frame::Started,
            Kind::Stdout => Frame::Output(Stream::Stdout, payload),
            Kind::Stderr => Frame::Output(Stream::Stderr, payload),
            Kind::StdinTaken => Frame::StdinTaken,
            Kind::Exited => Frame::Exited(Exited::decode(&payload).map_err(protocol)?),
            Kind::Failed => Frame::Failed(Failed::decode(&payload).map_err(protocol)?),
            Kind::Doubt => match payload.first().copied().and_then(Doubt::from_u8) {
                Some(doubt) => Frame::Doubt(doubt),
                None => return Err(protocol(Malformed::Payload(kind))),
            },
            Kind::Ended => Frame::Ended(Exited::decode(&payload).map_err(protocol)?),
            Kind::Artifact => Frame::Artifact(payload),
            Kind::Setup | Kind::Start | Kind::Stdin | Kind::StdinEof | Kind::Signal => {
                return Err(protocol(Malformed::Kind(kind as u8)));
            }
        }))
    }

    /// Sends a frame that is already encoded, such as a START made by [`start_frame`].
    ///
    /// # Errors
    /// [`LinkError::Broken`] if the stream is gone.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), LinkError> {
        let written = async {
            match &mut self.shortcut {
                Some(shortcut) => match shortcut.write_all(frame).await {
                    // Init has ended. What it said before, such as how the job ended, is yet to be read; then comes the end.
                    Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                        Ok(())
                    }
                    written => written,
                },
                None => {
                    self.attached.input.write_all(frame).await?;
                    self.attached.input.flush().await
                }
            }
        };
        // An engine that is gone without a word, or stopped, takes nothing; init always does, unless it is stopped.
        let written = tokio::time::timeout(WRITE_PATIENCE, written).await;
        written
            .unwrap_or_else(|late| Err(late.into()))
            .map_err(|e| LinkError::Broken(self.container.clone(), e))
    }

    /// Sends the entrypoint a signal.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub async fn signal(&mut self, number: u8) -> Result<(), LinkError> {
        self.send(&encode(Kind::Signal, &u32::from(number).to_le_bytes())).await
    }

    /// Sends a piece of stdin, at most [`wire::CHUNK_MAX`] bytes; the next one only after [`Frame::StdinTaken`].
    ///
    /// # Errors
    /// As [`Link::send`].
    pub async fn stdin(&mut self, piece: &[u8]) -> Result<(), LinkError> {
        self.send(&encode(Kind::Stdin, piece)).await
    }

    /// Ends the job's stdin.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub async fn stdin_eof(&mut self) -> Result<(), LinkError> {
        self.send(&encode(Kind::StdinEof, &[])).await
    }
}

fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&wire::header(kind, payload.len()));
    frame.extend_from_slice(payload);
    frame
}

/// Arguments and environment are together longer than a START frame, and than the kernel, takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("arguments and environment are {0} bytes; the most is {max}", max = wire::START_MAX)]
pub struct StartTooLarge(pub usize);

/// Encodes a START frame. Strings must be without NUL: what comes from publishers is checked when it is decoded,
/// what comes from the operator when configuration is loaded, and the kernel's own strings have none.
///
/// # Errors
/// [`StartTooLarge`].
pub fn start_frame(
    argv: &[String],
    env: &[String],
    stdin: Stdin,
    beside: &Beside<'_>,
) -> Result<Vec<u8>, StartTooLarge> {
    let strings =
        || std::iter::once("").chain(argv.iter().chain(env).chain(beside.wanted).map(String::as_str));
    let len = StartHead::LEN + strings().map(|s| s.len() + 1).sum::<usize>();
    if len > wire::START_MAX {
        return Err(StartTooLarge(len));
    }
    let head = StartHead {
        stdin: stdin == Stdin::Pipe,
        // All counts are below START_MAX, since each string takes at least a byte, and a message has not more files.
        argc: argv.len() as u32,
        envc: env.len() as u32,
        files: beside.files as u32,
        wanted: beside.wanted.len() as u32,
        artifacts_max: u32::try_from(beside.artifacts_max).unwrap_or(u32::MAX),
        bytes_max: beside.bytes_max,
    };
    let mut frame = Vec::with_capacity(HEADER + len);
    frame.extend_from_slice(&wire::header(Kind::Start, len));
    frame.extend_from_slice(&head.encode());
    for s in strings() {
        debug_assert!(!s.contains('\0'), "checked when it came in");
        frame.extend_from_slice(s.as_bytes());
        frame.push(0);
    }
    Ok(frame)
}

/// What a START frame says of files; see [`StartHead`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// How many files come ahead of the job's stdin.
    pub files: usize,
    /// Which files are wanted when the job is over.
    pub wanted: &'a [String],
    /// Most of them.
    pub artifacts_max: usize,
    /// Most bytes of all of them together.
    pub bytes_max: u64,
}

/// The head of a file ahead of the job's stdin; its content follows.
pub fn file_head(path: &str, mode: u16, size: usize) -> Vec<u8> {
    // Both were checked when the message was decoded.
    let head = FileHead { size: size as u32, path: path.len() as u16, mode };
    [&head.encode()[..], path.as_bytes()].concat()
}

/// A SETUP frame: the same for all containers of a pool, but for the token.
#[derive(Clone, Debug)]
pub struct SetupFrame(Vec<u8>);

impl SetupFrame {
    /// Encodes it. Strings must be without NUL, as in [`start_frame`].
    pub fn new(setup: &Setup<'_>) -> SetupFrame {
        let Setup { capabilities, scratch, user, profile, kept, program } = setup;
        // As many mounts as an operator can write.
        let (token, kept_count) = ([0; TOKEN], kept.len() as u32);
        let head = SetupHead { token, capabilities: *capabilities, scratch: *scratch, kept: kept_count };
        let mut payload = head.encode().to_vec();
        for text in [user, profile].into_iter().chain(*kept) {
            debug_assert!(!text.contains('\0'), "checked when it came in");
            payload.extend_from_slice(text.as_bytes());
            payload.push(0);
        }
        payload.extend_from_slice(program);
        SetupFrame(encode(Kind::Setup, &payload))
    }

    /// The one for an init that is known by this token at the worker's socket, if it can come there.
    pub fn with(&self, token: Option<&[u8; TOKEN]>) -> Vec<u8> {
        let mut frame = self.0.clone();
        frame[HEADER..HEADER + TOKEN].copy_from_slice(token.unwrap_or(&[0; TOKEN]));
        frame
    }
}

/// What a SETUP frame says; see [`SetupHead`].
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Jobs' bounding set of capabilities.
    pub capabilities: u64,
    /// Bytes that a job may write into its root file system.
    pub scratch: u64,
    /// As in Docker's `USER`; empty: root.
    pub user: &'a str,
    /// The AppArmor profile that jobs run under; empty: none.
    pub profile: &'a str,
    /// Mount points that jobs see as they are.
    pub kept: &'a [&'a str],
    /// The seccomp program for jobs.
    pub program: &'a [u8],
}

/// What a job has as stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// `/dev/null`
    Null,
    /// A pipe, fed by [`Link::stdin`].
    Pipe,
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, stream};

    fn link(chunks: Vec<Vec<u8>>) -> Link {
        let output = stream::iter(chunks.into_iter().map(|c| Ok(Bytes::from(c))));
        Link::new(
            ContainerId::new("c"),
            Attached { input: Box::pin(tokio::io::sink()), output: Box::pin(output) },
        )
    }

    fn script() -> Vec<u8> {
        let mut all = encode(Kind::Ready, &wire::VERSION.to_le_bytes());
        all.extend(encode(Kind::Started, &[]));
        all.extend(encode(Kind::Stdout, b"out"));
        all.extend(encode(Kind::Stderr, &vec![b'e'; wire::CHUNK_MAX]));
        all.extend(encode(Kind::StdinTaken, &[]));
        all
    }

    #[tokio::test]
    async fn frames_arrive_whole_however_they_are_cut() {
        for size in [1, 2, 7, 4096, usize::MAX] {
            let bytes = script();
            let mut l = link(bytes.chunks(size.min(bytes.len())).map(<[u8]>::to_vec).collect());
            assert_eq!(l.recv().await.unwrap(), Frame::Ready);
            assert_eq!(l.recv().await.unwrap(), Frame::Started);
            assert_eq!(l.recv().await.unwrap(), Frame::Output(Stream::Stdout, Bytes::from_static(b"out")));
            let Frame::Output(Stream::Stderr, e) = l.recv().await.unwrap() else { panic!("stderr") };
            assert_eq!(e.len(), wire::CHUNK_MAX);
            assert_eq!(l.recv().await.unwrap(), Frame::StdinTaken);
            assert!(matches!(l.recv().await, Err(LinkError::Closed(_))));
        }
    }

    /// A link with a shortcut: the other end of that, and what ends the attached stream.
    fn short_link() -> (Link, UnixStream, tokio::sync::oneshot::Sender<()>) {
        let (ours, init) = UnixStream::pair().unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let output = stream::once(ended).filter_map(async |_| None);
        let attached = Attached { input: Box::pin(tokio::io::sink()), output: Box::pin(output) };
        let mut link = Link::new(ContainerId::new("c"), attached);
        link.take(ours);
        (link, init, end)
    }

    #[tokio::test]
    async fn frames_go_by_the_shortcut_until_the_engine_says_that_the_container_ended() {
        let (mut link, mut init, end) = short_link();
        init.write_all(&script()).await.unwrap();
        for _ in 0..5 {
            link.recv().await.unwrap();
        }
        link.stdin_eof().await.unwrap();
        let mut said = [0; HEADER];
        init.read_exact(&mut said).await.unwrap();
        assert_eq!(said, wire::header(Kind::StdinEof, 0));
        drop(end);
        assert!(matches!(link.recv().await, Err(LinkError::Closed(_))));
    }

    #[tokio::test]
    async fn what_init_said_before_it_ended_is_heard_whatever_is_sent_meanwhile() {
        let (mut link, mut init, end) = short_link();
        init.write_all(&script()).await.unwrap();
        drop(init);
        for _ in 0..5 {
            link.signal(15).await.unwrap();
            link.recv().await.unwrap();
        }
        // The engine hasn't said yet that the container ended, nor what init complained of.
        assert!(link.recv().now_or_never().is_none());
        drop(end);
        assert!(matches!(link.recv().await, Err(LinkError::Closed(_))));
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error() {
        let old = encode(Kind::Ready, &7u32.to_le_bytes());
        assert!(matches!(link(vec![old]).recv().await, Err(LinkError::Version(_, 7))));
        for bad in [vec![0, 0, 0, 0, 9], vec![255, 255, 255, 255, 66], encode(Kind::Signal, &[0; 4])] {
            assert!(matches!(link(vec![bad]).recv().await, Err(LinkError::Protocol(..))));
        }
    }

    #[test]
    fn a_start_frame_reads_back() {
        let argv = ["sh".to_string(), String::new()];
        let env = ["A=1".to_string(), "PATH".into(), "B=\n=".into()];
        let wanted = ["*.o".to_string()];
        let beside = Beside { files: 3, wanted: &wanted, artifacts_max: 5, bytes_max: 6 };
        let frame = start_frame(&argv, &env, Stdin::Pipe, &beside).unwrap();
        let (kind, len) = wire::parse_header(*frame.first_chunk().unwrap()).unwrap();
        assert_eq!((kind, len), (Kind::Start, frame.len() - HEADER));
        let (head, strings) = StartHead::decode(&frame[HEADER..]).unwrap();
        let plain = StartHead::plain(true, 2, 3);
        assert_eq!(head, StartHead { files: 3, wanted: 1, artifacts_max: 5, bytes_max: 6, ..plain });
        assert_eq!(strings, b"\0sh\0\0A=1\0PATH\0B=\n=\0*.o\0");
        assert!(start_frame(&["x".repeat(wire::START_MAX)], &[], Stdin::Null, &Beside::default()).is_err());
    }
}
