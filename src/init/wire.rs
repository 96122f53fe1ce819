//! The frames between worker and init: one definition, compiled into both.
//!
//! A frame is a 5-byte header — payload length (`u32`, little-endian), kind (`u8`) — and the payload.
//! Worker to init travels on the container's stdin, init to worker on its stdout; or, from SETUP on, both on the worker's
//! socket, if that is mounted (`engine/shortcut.rs`). Integers are little-endian. The file is `no_std`, allocates nothing, and touches no I/O, so that init (which has
//! no heap) and the worker read the same bytes with the same code.
//!
//! ```text
//! worker → init   [SETUP]  START  STDIN  STDIN_EOF  SIGNAL
//! init → worker   READY  STARTED  STDOUT  STDERR  STDIN_TAKEN  [ENDED  ARTIFACT]  EXITED | FAILED  [READY | DOUBT]
//! ```
//!
//! Per container: READY once; then per START: STARTED, any number of STDOUT/STDERR/STDIN_TAKEN, and one
//! EXITED, after which nothing follows. FAILED stands in place of STARTED…EXITED when the entrypoint
//! could not be executed.
//!
//! Files that a job brings are the beginning of what STDIN frames carry, and are put in place before STARTED. If START asks for
//! artifacts, ENDED says that the entrypoint is over and everything printed has been sent; ARTIFACT frames follow, then EXITED. A
//! SIGKILL cuts them short. `parcel.rs` defines both streams.
//!
//! With isolation `namespace` the worker first sends SETUP, and each EXITED or FAILED is followed by another READY, when the
//! next job may come, or by DOUBT, when none should. FAILED in place of READY says why there can't be any.

/// Version of this protocol; READY carries it, and a worker refuses any other. The init that a worker
/// meets is the one it put there itself (volumes are named by content), so this is a safety net.
pub const VERSION: u32 = 5;

/// Length of a frame's header in bytes.
pub const HEADER: usize = 5;

/// Largest payload of a STDIN, STDOUT or STDERR frame: a pipe's default capacity on Linux.
pub const CHUNK_MAX: usize = 64 * 1024;

/// Largest payload of a START frame. The kernel takes at most 6 MiB of argument and environment strings
/// (three quarters of `_STK_LIM`, fs/exec.c), whatever the stack limit is.
pub const START_MAX: usize = 8 * 1024 * 1024;

/// Length of the token by which the worker knows an init that comes to its socket.
pub const TOKEN: usize = 16;

/// Where the worker's socket is mounted, if it is.
pub const SHORTCUT: &core::ffi::CStr = c"/.prewarm/shortcut";

/// Init's argument for isolation `namespace`: it waits for SETUP before it says READY.
pub const NAMESPACE: &core::ffi::CStr = c"namespace";

/// Largest payload of a SETUP frame: a seccomp program is at most 4096 instructions of 8 bytes (`BPF_MAXINSNS`), and paths
/// and names are what an operator wrote.
pub const SETUP_MAX: usize = 256 * 1024;

/// What a frame is. The numbers are the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Run the entrypoint. Payload: see [`StartHead`].
    Start = 1,
    /// Bytes for the job's stdin, at most [`CHUNK_MAX`]. The worker may have one in flight: the next one
    /// follows STDIN_TAKEN. So init needs one chunk of memory, and a job that never reads its stdin
    /// does not stop init from reading the worker's other frames.
    Stdin = 2,
    /// The job's stdin ends here. Empty.
    StdinEof = 3,
    /// Send the entrypoint a signal. Payload: the number, `u32`.
    Signal = 4,
    /// What worlds to make for jobs, before the first one. Payload: see [`SetupHead`].
    Setup = 5,
    /// Init waits for a START. Payload: [`VERSION`], `u32`.
    Ready = 64,
    /// `execve` of the entrypoint succeeded. Empty.
    Started = 65,
    /// Bytes that the job wrote to its stdout.
    Stdout = 66,
    /// Bytes that the job wrote to its stderr.
    Stderr = 67,
    /// The previous STDIN frame is in the job's pipe (or was dropped, when the job closed its end). Empty.
    StdinTaken = 68,
    /// The entrypoint ended, no process of the job is left, its output is drained. Payload: [`Exited`].
    Exited = 69,
    /// The entrypoint was not executed. Payload: [`Failed`].
    Failed = 70,
    /// No other job should run in this container; init ends. Payload: a [`Doubt`]'s number, one byte.
    Doubt = 71,
    /// The entrypoint ended, no process of the job is left, its output is drained; artifacts follow. Payload: [`Exited`].
    Ended = 72,
    /// A piece of the artifacts' stream.
    Artifact = 73,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub const fn from_u8(n: u8) -> Option<Kind> {
        Some(match n {
            1 => Kind::Start,
            2 => Kind::Stdin,
            3 => Kind::StdinEof,
            4 => Kind::Signal,
            5 => Kind::Setup,
            64 => Kind::Ready,
            65 => Kind::Started,
            66 => Kind::Stdout,
            67 => Kind::Stderr,
            68 => Kind::StdinTaken,
            69 => Kind::Exited,
            70 => Kind::Failed,
            71 => Kind::Doubt,
            72 => Kind::Ended,
            73 => Kind::Artifact,
            _ => return None,
        })
    }

    /// The largest payload a frame of this kind may have; anything above it is a broken peer.
    pub const fn max_len(self) -> usize {
        match self {
            Kind::Start => START_MAX,
            Kind::Setup => SETUP_MAX,
            Kind::Doubt => 1,
            Kind::Stdin | Kind::Stdout | Kind::Stderr | Kind::Artifact => CHUNK_MAX,
            Kind::StdinEof | Kind::Started | Kind::StdinTaken => 0,
            Kind::Signal | Kind::Ready => 4,
            Kind::Exited | Kind::Ended => Exited::LEN,
            Kind::Failed => Failed::LEN,
        }
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No frame has this kind.
    Kind(u8),
    /// The frame's payload is longer than its kind allows.
    Length(Kind, u32),
    /// The payload's content is not what its kind says.
    Payload(Kind),
}

/// Writes the header of a frame of `kind` with `len` bytes of payload.
pub const fn header(kind: Kind, len: usize) -> [u8; HEADER] {
    let l = (len as u32).to_le_bytes();
    [l[0], l[1], l[2], l[3], kind as u8]
}

/// Reads a header: the kind and the payload's length, checked against what the kind allows.
///
/// # Errors
/// [`Malformed`] for an unknown kind or a payload over the kind's limit.
pub const fn parse_header(h: [u8; HEADER]) -> Result<(Kind, usize), Malformed> {
    let len = u32::from_le_bytes([h[0], h[1], h[2], h[3]]);
    let Some(kind) = Kind::from_u8(h[4]) else {
        return Err(Malformed::Kind(h[4]));
    };
    if len as usize > kind.max_len() {
        return Err(Malformed::Length(kind, len));
    }
    Ok((kind, len as usize))
}

/// The fixed head of a START payload. After it come NUL-terminated strings: the working directory (empty:
/// stay in init's own, which is the image's), then `argc` arguments, then `envc` environment entries, then `wanted` patterns
/// (see `glob.rs`) of files that are wanted when the job is over, relative ones from the working directory.
///
/// An entry `NAME=value` sets a variable; `HOME=` alone, as for the runtime, means the directory that the image's
/// `/etc/passwd` has for the user. An entry without `=` takes the variable of that name from
/// init's own environment (what the engine gave the container), if it has it. Variables of init's own
/// environment that no entry names follow at the end, in their order. So the worker decides the order,
/// which Docker's rules define, without having to know values that only the engine knows (HOSTNAME, HOME).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartHead {
    /// Whether the job gets a pipe as stdin, fed by STDIN frames, in place of `/dev/null`.
    pub stdin: bool,
    /// Number of arguments, the executable's name included; at least 1.
    pub argc: u32,
    /// Number of environment entries.
    pub envc: u32,
    /// Number of files ahead of the job's stdin.
    pub files: u32,
    /// Number of patterns.
    pub wanted: u32,
    /// Most artifacts.
    pub artifacts_max: u32,
    /// Most bytes of all artifacts together.
    pub bytes_max: u64,
}

impl StartHead {
    /// Length in bytes.
    pub const LEN: usize = 29;

    /// A job that has stdin or not, so many arguments and environment entries, and nothing else.
    pub const fn plain(stdin: bool, argc: u32, envc: u32) -> StartHead {
        StartHead { stdin, argc, envc, files: 0, wanted: 0, artifacts_max: 0, bytes_max: 0 }
    }

    /// The bytes that open the payload.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[0] = self.stdin as u8;
        let numbers = [self.argc, self.envc, self.files, self.wanted, self.artifacts_max];
        for (place, number) in b[1..21].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        b[21..].copy_from_slice(&self.bytes_max.to_le_bytes());
        b
    }

    /// Reads the head of a START payload; the strings are what follows it.
    ///
    /// # Errors
    /// [`Malformed::Payload`] if it is too short, has no argument, or its strings are not
    /// `1 + argc + envc + wanted` NUL-terminated ones.
    pub fn decode(payload: &[u8]) -> Result<(StartHead, &[u8]), Malformed> {
        const BAD: Malformed = Malformed::Payload(Kind::Start);
        let Some((h, strings)) = payload.split_first_chunk::<{ Self::LEN }>() else {
            return Err(BAD);
        };
        let number = |at: usize| u32::from_le_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
        let head = StartHead {
            stdin: match h[0] {
                0 => false,
                1 => true,
                _ => return Err(BAD),
            },
            argc: number(1),
            envc: number(5),
            files: number(9),
            wanted: number(13),
            artifacts_max: number(17),
            bytes_max: u64_at(h, 21),
        };
        let wanted = 1 + u64::from(head.argc) + u64::from(head.envc) + u64::from(head.wanted);
        let ends = strings.iter().filter(|b| **b == 0).count() as u64;
        if head.argc == 0 || ends != wanted || strings.last() != Some(&0) {
            return Err(BAD);
        }
        Ok((head, strings))
    }
}

/// The fixed head of a SETUP payload. After it come NUL-terminated strings: the user as in Docker's `USER` (empty: root), the
/// AppArmor profile that jobs are to run under (empty: none), then as many mount points as `kept` says, which jobs
/// are to see as they are. What follows is the seccomp program for jobs, in the kernel's form; none if it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupHead {
    /// What to say at the worker's socket, if it is mounted; frames go that way from then on.
    pub token: [u8; TOKEN],
    /// Jobs' bounding set of capabilities, and root's own.
    pub capabilities: u64,
    /// Bytes that a job may write into its root file system.
    pub scratch: u64,
    /// Number of mount points that jobs see as they are.
    pub kept: u32,
}

impl SetupHead {
    /// Length in bytes.
    pub const LEN: usize = 20 + TOKEN;

    /// The bytes that open the payload.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..TOKEN].copy_from_slice(&self.token);
        b[TOKEN..TOKEN + 8].copy_from_slice(&self.capabilities.to_le_bytes());
        b[TOKEN + 8..TOKEN + 16].copy_from_slice(&self.scratch.to_le_bytes());
        b[TOKEN + 16..].copy_from_slice(&self.kept.to_le_bytes());
        b
    }

    /// Reads the head of a SETUP payload, its strings, and the seccomp program.
    ///
    /// # Errors
    /// [`Malformed::Payload`] if it is too short, or lacks strings.
    pub fn decode(payload: &[u8]) -> Result<(SetupHead, &[u8], &[u8]), Malformed> {
        const BAD: Malformed = Malformed::Payload(Kind::Setup);
        let Some((token, rest)) = payload.split_first_chunk::<TOKEN>() else {
            return Err(BAD);
        };
        let Some((h, rest)) = rest.split_first_chunk::<{ Self::LEN - TOKEN }>() else {
            return Err(BAD);
        };
        let head = SetupHead {
            token: *token,
            capabilities: u64_at(h, 0),
            scratch: u64_at(h, 8),
            kept: u32::from_le_bytes([h[16], h[17], h[18], h[19]]),
        };
        let mut ends = rest.iter().enumerate().filter(|(_, b)| **b == 0).map(|(at, _)| at + 1);
        let Some(end) = ends.nth(head.kept as usize + 1) else {
            return Err(BAD);
        };
        let (strings, program) = rest.split_at(end);
        Ok((head, strings, program))
    }
}

/// The eight bytes from `at` on, which are there.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Why a container that has served a job should not serve another. The numbers are the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Doubt {
    /// The table of mounts is another than before the job.
    Mounts = 1,
    /// Init has other descriptors open than before the job.
    Descriptors = 2,
    /// Something else than init runs in the container.
    Processes = 3,
    /// The process that was to become the next job ended.
    Sandbox = 4,
}

impl Doubt {
    /// The one with this number, if there is one.
    pub const fn from_u8(n: u8) -> Option<Doubt> {
        Some(match n {
            1 => Doubt::Mounts,
            2 => Doubt::Descriptors,
            3 => Doubt::Processes,
            4 => Doubt::Sandbox,
            _ => return None,
        })
    }
}

/// How an entrypoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It called `exit` with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

/// The payload of EXITED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exited {
    /// How the entrypoint itself ended.
    pub end: End,
    /// Whether something that the job left could not be killed (a set-user-id program under an init that is
    /// not root): the container must not serve again, and only its removal ends that process.
    pub left_behind: bool,
    /// Whether somebody outside the container sent the job a signal past the worker: the engine, being shut down in an orderly
    /// way, or `docker stop`.
    pub interfered: bool,
    /// Processes of the container that the kernel killed for memory during the job.
    pub oom_kills: u32,
    /// User and system time of all the job's processes, in microseconds.
    pub cpu_us: u64,
    /// Largest resident set of any one of the job's processes, in bytes.
    pub max_rss: u64,
}

impl Exited {
    /// Length in bytes.
    pub const LEN: usize = 23;

    /// The payload.
    pub fn encode(self) -> [u8; Self::LEN] {
        let (how, value) = match self.end {
            End::Code(c) => (0, c),
            End::Signal(s) => (1, s),
        };
        let mut b = [0; Self::LEN];
        b[0] = how;
        b[1] = value;
        b[2] = self.left_behind as u8 | (self.interfered as u8) << 1;
        b[3..7].copy_from_slice(&self.oom_kills.to_le_bytes());
        b[7..15].copy_from_slice(&self.cpu_us.to_le_bytes());
        b[15..23].copy_from_slice(&self.max_rss.to_le_bytes());
        b
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// [`Malformed::Payload`] if it has another length or an unknown way to end.
    pub fn decode(payload: &[u8]) -> Result<Exited, Malformed> {
        const BAD: Malformed = Malformed::Payload(Kind::Exited);
        let b: &[u8; Self::LEN] = payload.try_into().map_err(|_| BAD)?;
        Ok(Exited {
            end: match b[0] {
                0 => End::Code(b[1]),
                1 => End::Signal(b[1]),
                _ => return Err(BAD),
            },
            left_behind: b[2] & 1 != 0,
            interfered: b[2] & 2 != 0,
            oom_kills: u32::from_le_bytes([b[3], b[4], b[5], b[6]]),
            cpu_us: u64_at(b, 7),
            max_rss: u64_at(b, 15),
        })
    }
}

/// The step at which starting an entrypoint failed. The numbers are the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Finding the executable: `errno` is ENOENT (Docker's 127) or EACCES (126).
    Lookup = 1,
    /// `execve` itself.
    Exec = 2,
    /// `chdir` into the working directory.
    Chdir = 3,
    /// Memory for the arguments.
    Memory = 4,
    /// Pipes for stdin, stdout, stderr, or opening `/dev/null`.
    Pipe = 5,
    /// `fork`, or what the child does before `execve`.
    Fork = 6,
    /// The worker sent what is no frame, or one that has no place here; init ends after this.
    Protocol = 7,
    /// Finding the user or group in the image's `/etc/passwd` and `/etc/group`; ENOENT: it isn't there.
    User = 8,
    /// What all jobs of the container have in common: the table of mounts, the layer over the image.
    Ground = 9,
    /// New namespaces for the next job, and what init holds of them.
    Namespaces = 10,
    /// The job's root file system.
    Overlay = 11,
    /// What is mounted in it.
    Mounts = 12,
    /// What is in its `/dev`.
    Devices = 13,
    /// Making it the root.
    Pivot = 14,
    /// Becoming the user, giving up capabilities.
    Credentials = 15,
    /// The AppArmor profile.
    AppArmor = 16,
    /// The seccomp program.
    Seccomp = 17,
    /// Entering or making the directory of a file that the job brings.
    Directory = 18,
    /// Making or writing that file.
    File = 19,
    /// Reading artifacts.
    Artifacts = 20,
}

impl Step {
    /// The step with this number, if there is one.
    pub const fn from_u8(n: u8) -> Option<Step> {
        Some(match n {
            1 => Step::Lookup,
            2 => Step::Exec,
            3 => Step::Chdir,
            4 => Step::Memory,
            5 => Step::Pipe,
            6 => Step::Fork,
            7 => Step::Protocol,
            8 => Step::User,
            9 => Step::Ground,
            10 => Step::Namespaces,
            11 => Step::Overlay,
            12 => Step::Mounts,
            13 => Step::Devices,
            14 => Step::Pivot,
            15 => Step::Credentials,
            16 => Step::AppArmor,
            17 => Step::Seccomp,
            18 => Step::Directory,
            19 => Step::File,
            20 => Step::Artifacts,
            _ => return None,
        })
    }
}

/// The payload of FAILED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What failed.
    pub step: Step,
    /// The kernel's error number, 0 where there is none.
    pub errno: i32,
    /// Which of the job's files it is about, from 0, where it is about one.
    pub item: u32,
}

impl Failed {
    /// Length in bytes.
    pub const LEN: usize = 9;

    /// One that is not about a file.
    pub const fn at(step: Step, errno: i32) -> Failed {
        Failed { step, errno, item: 0 }
    }

    /// The payload.
    pub const fn encode(self) -> [u8; Self::LEN] {
        let (e, i) = (self.errno.to_le_bytes(), self.item.to_le_bytes());
        [self.step as u8, e[0], e[1], e[2], e[3], i[0], i[1], i[2], i[3]]
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// [`Malformed::Payload`] if it has another length or an unknown step.
    pub fn decode(payload: &[u8]) -> Result<Failed, Malformed> {
        const BAD: Malformed = Malformed::Payload(Kind::Failed);
        let b: &[u8; Self::LEN] = payload.try_into().map_err(|_| BAD)?;
        Ok(Failed {
            step: Step::from_u8(b[0]).ok_or(BAD)?,
            errno: i32::from_le_bytes([b[1], b[2], b[3], b[4]]),
            item: u32::from_le_bytes([b[5], b[6], b[7], b[8]]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_trip() {
        for n in 0..=255u8 {
            if let Some(k) = Kind::from_u8(n) {
                assert_eq!(k as u8, n);
                assert_eq!(parse_header(header(k, k.max_len())), Ok((k, k.max_len())));
                let over = k.max_len() + 1;
                assert_eq!(parse_header(header(k, over)), Err(Malformed::Length(k, over as u32)));
            } else {
                assert_eq!(parse_header([0, 0, 0, 0, n]), Err(Malformed::Kind(n)));
            }
            if let Some(doubt) = Doubt::from_u8(n) {
                assert_eq!(doubt as u8, n);
            }
            if let Some(step) = Step::from_u8(n) {
                let f = Failed { step, errno: -7 + i32::from(n), item: u32::from(n) << 20 };
                assert_eq!(Failed::decode(&f.encode()), Ok(f));
            }
            for end in [End::Code(n), End::Signal(n)] {
                let e = Exited {
                    end,
                    left_behind: n % 2 == 1,
                    interfered: n % 3 == 1,
                    oom_kills: u32::from(n) * 77,
                    cpu_us: u64::MAX - u64::from(n),
                    max_rss: u64::from(n) << 40,
                };
                assert_eq!(Exited::decode(&e.encode()), Ok(e));
            }
        }
        assert!(Exited::decode(&[0; Exited::LEN - 1]).is_err());
        assert!(Failed::decode(&[99; Failed::LEN]).is_err());
    }

    #[test]
    fn a_setup_payload_must_have_the_strings_that_its_head_counts() {
        let head =
            SetupHead { capabilities: 1 << 40 | 3, scratch: u64::MAX, kept: 1, token: *b"sixteen bytes it" };
        let mut ok = head.encode().to_vec();
        ok.extend_from_slice(b"nobody\0\0/cache\0\x06\0\0\0\0\0\xff\x7f");
        let (read, strings, program) = SetupHead::decode(&ok).unwrap();
        assert_eq!((read, strings), (head, &b"nobody\0\0/cache\0"[..]));
        assert_eq!(program, b"\x06\0\0\0\0\0\xff\x7f");
        for short in [0, SetupHead::LEN - 1, SetupHead::LEN, SetupHead::LEN + 8] {
            assert_eq!(SetupHead::decode(&ok[..short]), Err(Malformed::Payload(Kind::Setup)));
        }
    }

    #[test]
    fn a_start_payload_must_have_the_strings_that_its_head_counts() {
        let plain = StartHead::plain(true, 2, 1);
        let head = StartHead { files: 7, wanted: 1, artifacts_max: 9, bytes_max: u64::MAX - 1, ..plain };
        let mut ok = head.encode().to_vec();
        ok.extend_from_slice(b"\0sh\0-c\0A=1\0*\0");
        assert_eq!(StartHead::decode(&ok), Ok((head, &b"\0sh\0-c\0A=1\0*\0"[..])));

        let mut open = ok.clone();
        open.extend_from_slice(b"tail");
        let mut more = ok.clone();
        more.push(0);
        let mut flag = ok.clone();
        flag[0] = 2;
        let mut none = StartHead::plain(false, 0, 0).encode().to_vec();
        none.push(0);
        let huge = StartHead::plain(false, u32::MAX, u32::MAX).encode().to_vec();
        for bad in [&ok[..ok.len() - 1], &open, &more, &flag, &none, &huge, &[][..]] {
            assert_eq!(StartHead::decode(bad), Err(Malformed::Payload(Kind::Start)));
        }
    }
}
