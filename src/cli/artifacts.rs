//! Saves a job's artifacts below a directory, and nowhere else, whatever a job calls its files and whatever links are there.
//!
//! Each file is written under a name of its own beside its place, and takes the place when it is whole and the worker's digest is
//! its own. Descriptors lead there, never paths, so nobody can put a link in the way meanwhile.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::reply::data;
use super::{exit, inert};
use crate::artifacts::Piece;

/// Where artifacts go, and what has come of them so far.
pub(super) struct Saver {
    root: OwnedFd,
    /// Permission bits that new files don't get.
    umask: u32,
    attempt: u64,
    parts: Vec<Part>,
    /// The last part's file.
    open: Option<File>,
}

/// A file that comes in pieces.
struct Part {
    path: String,
    got: u64,
    digest: Sha256,
    /// Where it is, or why it is of no use.
    kept: Result<Kept, String>,
}

/// A file beside its place.
struct Kept {
    place: Vec<String>,
    name: String,
}

/// An artifact as a result lists it.
struct Listed {
    path: String,
    size: u64,
    mode: u32,
    sha256: String,
    /// All of it, unless it came in pieces.
    bytes: Option<Vec<u8>>,
}

impl Listed {
    /// The artifacts of a result.
    fn all(result: &Value) -> Vec<Listed> {
        result["artifacts"].as_array().into_iter().flatten().map(Listed::of).collect()
    }

    fn of(listed: &Value) -> Listed {
        let text = |field: &str| listed[field].as_str().unwrap_or_default();
        let is_here = listed.get("text").or(listed.get("base64")).is_some();
        Listed {
            path: text("path").to_owned(),
            size: listed["size"].as_u64().unwrap_or_default(),
            mode: u32::from_str_radix(text("mode"), 8).unwrap_or(0o644) & 0o777,
            sha256: text("sha256").to_owned(),
            bytes: is_here.then(|| data(listed)),
        }
    }
}

impl Saver {
    /// Saves below this directory, which is made if it isn't there; without one, below the current directory.
    pub(super) fn new(directory: Option<&Path>) -> Result<Saver, String> {
        let directory = directory.unwrap_or(Path::new("."));
        let why = |error: io::Error| format!("--artifacts-to {}: {error}", directory.display());
        std::fs::create_dir_all(directory).map_err(why)?;
        // That it is a link itself is its user's own wish.
        let root = rustix::fs::openat(CWD, directory, DIRECTORY, Mode::empty()).map_err(|e| why(e.into()))?;
        Ok(Saver { root, umask: umask(), attempt: 0, parts: Vec::new(), open: None })
    }

    /// This attempt is heard of. What an earlier one sent is dropped: it was lost, and the new one sends its own.
    pub(super) fn attempt(&mut self, attempt: u64) {
        if attempt > self.attempt {
            self.attempt = attempt;
            self.open = None;
            for part in self.parts.drain(..) {
                part.kept.iter().for_each(|kept| kept.remove(&self.root));
            }
        }
    }

    /// Takes a `prewarm.artifact.v1`.
    pub(super) fn event(&mut self, event: &Value) {
        let number = |field: &str| event[field].as_u64().unwrap_or_default();
        let path = event["path"].as_str().unwrap_or_default().to_owned();
        let piece = Piece { path, size: number("size"), offset: number("offset"), bytes: data(event) };
        self.piece(number("attempt"), &piece);
    }

    /// The job is over, with this result: saves what it lists, and says on stderr what is missing. Gives the job's exit code; or, if
    /// that is 0 and something could not be saved, ours.
    pub(super) fn conclude(self, result: &Value, code: u8) -> u8 {
        for missed in result["artifacts_missed"].as_array().into_iter().flatten() {
            let text = |field: &str| missed[field].as_str().unwrap_or_default();
            let (path, reason, message) = (text("path"), text("reason"), inert(text("message")));
            eprintln!("prewarm: artifact {path:?} is missing: {reason}: {message}");
        }
        let faults = self.finish(result["attempt"].as_u64().unwrap_or_default(), Listed::all(result));
        faults.iter().for_each(|fault| eprintln!("prewarm: {fault}"));
        if code == 0 && !faults.is_empty() { exit::RUN } else { code }
    }

    /// A piece that an attempt sent. What is wrong with it is told at the end, if it still matters then.
    pub(super) fn piece(&mut self, attempt: u64, piece: &Piece) {
        self.attempt(attempt);
        if attempt < self.attempt {
            return;
        }
        let goes_on = self.parts.last().is_some_and(|part| part.path == piece.path) && piece.offset > 0;
        if !goes_on {
            self.begin(&piece.path);
        }
        let Some(part) = self.parts.last_mut() else { return };
        let Ok(kept) = &part.kept else { return };
        let written = if piece.offset != part.got {
            Err(format!("the {} bytes from {} on have not come", piece.offset.abs_diff(part.got), part.got))
        } else if piece.offset.saturating_add(piece.bytes.len() as u64) > piece.size {
            Err(format!("more than its {} bytes came", piece.size))
        } else {
            match &mut self.open {
                Some(file) => file.write_all(&piece.bytes).map_err(|error| error.to_string()),
                None => Ok(()),
            }
        };
        match written {
            Ok(()) => {
                part.got += piece.bytes.len() as u64;
                part.digest.update(&piece.bytes);
            }
            Err(why) => {
                kept.remove(&self.root);
                part.kept = Err(why);
            }
        }
    }

    /// A file's first piece is here.
    fn begin(&mut self, path: &str) {
        self.open = None;
        let kept = place(path).and_then(|place| {
            let (kept, file) = Kept::create(&self.root, place)?;
            self.open = Some(file);
            Ok(kept)
        });
        self.parts.push(Part { path: path.to_owned(), got: 0, digest: Sha256::new(), kept });
    }

    /// The job is over, and these are its artifacts: each takes its place. Gives what could not be saved, in words.
    fn finish(mut self, attempt: u64, listed: Vec<Listed>) -> Vec<String> {
        self.attempt(attempt);
        self.open = None;
        let mut taken = HashSet::new();
        let mut faults = Vec::new();
        for artifact in listed {
            if let Err(why) = self.save(&artifact, &mut taken) {
                faults.push(format!("artifact {:?} is not saved: {why}", artifact.path));
            }
        }
        faults
    }

    fn save(&mut self, artifact: &Listed, taken: &mut HashSet<Vec<String>>) -> Result<(), String> {
        let place = place(&artifact.path)?;
        if taken.contains(&place) {
            return Err("another one was saved in the same place".into());
        }
        let kept = match &artifact.bytes {
            Some(bytes) => {
                is_whole(artifact, bytes.len() as u64, Sha256::new_with_prefix(bytes))?;
                let (kept, mut file) = Kept::create(&self.root, place)?;
                if let Err(error) = file.write_all(bytes) {
                    kept.remove(&self.root);
                    return Err(error.to_string());
                }
                kept
            }
            None => self.part_of(artifact, place)?,
        };
        match kept.take_place(&self.root, artifact.mode & !self.umask) {
            Ok(()) => {
                taken.insert(kept.place);
                Ok(())
            }
            Err(error) => {
                kept.remove(&self.root);
                Err(error.to_string())
            }
        }
    }

    /// The file that came in pieces.
    fn part_of(&mut self, artifact: &Listed, place: Vec<String>) -> Result<Kept, String> {
        let mut fault = "none of its pieces has come".to_owned();
        for at in 0..self.parts.len() {
            let part = &self.parts[at];
            if part.path != artifact.path {
                continue;
            }
            let whole = match &part.kept {
                Ok(_) => is_whole(artifact, part.got, part.digest.clone()),
                Err(why) => Err(why.clone()),
            };
            match whole {
                Ok(()) => return self.parts.swap_remove(at).kept,
                Err(why) => fault = why,
            }
        }
        // It had become empty when it was read.
        if artifact.size == 0 && is_whole(artifact, 0, Sha256::new()).is_ok() {
            return Kept::create(&self.root, place).map(|(kept, _)| kept);
        }
        Err(fault)
    }
}

/// What isn't in its place by now is not wanted.
impl Drop for Saver {
    fn drop(&mut self) {
        for kept in self.parts.iter().flat_map(|part| &part.kept) {
            kept.remove(&self.root);
        }
    }
}

fn is_whole(artifact: &Listed, got: u64, digest: Sha256) -> Result<(), String> {
    if got != artifact.size {
        return Err(format!("{got} of its {} bytes have come", artifact.size));
    }
    let sha256: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if sha256 != artifact.sha256 {
        return Err("what has come is not what the job left: its SHA-256 is another".into());
    }
    Ok(())
}

/// The names on the way from the directory to a file. An absolute path's begin there too.
fn place(path: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> =
        path.split('/').filter(|name| !matches!(*name, "" | ".")).map(str::to_owned).collect();
    if names.is_empty() || path.ends_with('/') {
        return Err("its path names no file".into());
    }
    if names.iter().any(|name| name == "..") {
        return Err("its path leads upwards".into());
    }
    Ok(names)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What a new file must be: no link is followed, and nothing that is there opened.
const NEW: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Kept {
    fn create(root: &OwnedFd, place: Vec<String>) -> Result<(Kept, File), String> {
        let name = format!(".prewarm-{}.part", uuid::Uuid::now_v7());
        let parent = parent(root, &place, true).map_err(|error| error.to_string())?;
        let file = rustix::fs::openat(&parent, name.as_str(), NEW, Mode::RUSR | Mode::WUSR)
            .map_err(|error| io::Error::from(error).to_string())?;
        Ok((Kept { place, name }, file.into()))
    }

    /// Becomes the file of its place, in one step.
    fn take_place(&self, root: &OwnedFd, mode: u32) -> io::Result<()> {
        let parent = parent(root, &self.place, false)?;
        let as_it_is = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, self.name.as_str(), as_it_is, Mode::empty())?;
        rustix::fs::fchmod(&file, Mode::from_bits_truncate(mode))?;
        let name = self.place.last().map(String::as_str).unwrap_or_default();
        Ok(rustix::fs::renameat(&parent, self.name.as_str(), &parent, name)?)
    }

    fn remove(&self, root: &OwnedFd) {
        if let Ok(parent) = parent(root, &self.place, false) {
            // There is nobody to tell, and nothing more to do.
            let _ = rustix::fs::unlinkat(&parent, self.name.as_str(), AtFlags::empty());
        }
    }
}

/// The directory that a file belongs into, reached without following a link.
fn parent(root: &OwnedFd, place: &[String], make: bool) -> io::Result<OwnedFd> {
    let mut directory = root.try_clone()?;
    for name in place.iter().take(place.len().saturating_sub(1)) {
        let open =
            |at: &OwnedFd| rustix::fs::openat(at, name.as_str(), DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        let opened = match open(&directory) {
            Err(Errno::NOENT) if make => {
                match rustix::fs::mkdirat(&directory, name.as_str(), Mode::from_bits_truncate(0o777)) {
                    // By somebody else, meanwhile.
                    Ok(()) | Err(Errno::EXIST) => open(&directory),
                    Err(error) => Err(error),
                }
            }
            opened => opened,
        };
        directory = match opened {
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(io::Error::other(format!("{name:?} on its way is a link, or no directory")));
            }
            opened => opened?,
        };
    }
    Ok(directory)
}

/// This process's own; without /proc the usual one.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let own = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    own.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    /// A directory of the test's own, with one in it for the artifacts.
    struct Scene(PathBuf);

    impl Scene {
        fn new() -> Scene {
            let path = std::env::temp_dir().join(format!("prewarm-{}", uuid::Uuid::now_v7()));
            fs::create_dir_all(path.join("to")).unwrap();
            Scene(path)
        }

        fn saver(&self) -> Saver {
            Saver::new(Some(&self.to())).unwrap()
        }

        fn to(&self) -> PathBuf {
            self.0.join("to")
        }

        /// Saves a result's artifacts; gives what went wrong.
        fn save(&self, listed: Value) -> Vec<String> {
            self.saver().finish(1, Listed::all(&json!({ "artifacts": listed })))
        }

        fn read(&self, path: &str) -> Vec<u8> {
            fs::read(self.to().join(path)).unwrap()
        }

        /// All files and links below, the directory of artifacts or what is beside it.
        fn files(&self) -> Vec<String> {
            let (mut found, mut open) = (Vec::new(), vec![self.0.clone()]);
            while let Some(directory) = open.pop() {
                for entry in fs::read_dir(directory).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() && !path.is_symlink() {
                        open.push(path);
                    } else {
                        found.push(path.strip_prefix(&self.0).unwrap().display().to_string());
                    }
                }
            }
            found.sort_unstable();
            found
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn text(path: &str, text: &str) -> Value {
        json!({"path": path, "size": text.len(), "mode": "0644", "sha256": sha256(text.as_bytes()), "text": text})
    }

    fn in_pieces(path: &str, bytes: &[u8], events: u64) -> Value {
        json!({"path": path, "size": bytes.len(), "mode": "0600", "sha256": sha256(bytes), "events": events})
    }

    fn listed(artifacts: Value) -> Vec<Listed> {
        Listed::all(&json!({ "artifacts": artifacts }))
    }

    fn piece(path: &str, offset: u64, size: u64, bytes: &[u8]) -> Piece {
        Piece { path: path.to_owned(), size, offset, bytes: bytes.to_vec() }
    }

    fn send(saver: &mut Saver, attempt: u64, path: &str, bytes: &[u8], cut: usize) {
        for (at, part) in bytes.chunks(cut).enumerate() {
            saver.piece(attempt, &piece(path, (at * cut) as u64, bytes.len() as u64, part));
        }
    }

    #[test]
    fn files_take_their_places_and_replace_what_is_there() {
        let scene = Scene::new();
        fs::write(scene.to().join("report"), "old").unwrap();
        fs::hard_link(scene.to().join("report"), scene.0.join("old")).unwrap();
        let bytes = json!({"path": "/out/./sub//bytes", "size": 2, "mode": "0751", "sha256": sha256(b"\xff\0"), "base64": "/wA="});
        assert_eq!(scene.save(json!([text("report", "new"), bytes, text("out/empty", "")])), [""; 0]);
        assert_eq!(scene.files(), ["old", "to/out/empty", "to/out/sub/bytes", "to/report"]);
        assert_eq!(
            (scene.read("report"), scene.read("out/sub/bytes")),
            (b"new".to_vec(), b"\xff\0".to_vec())
        );
        assert_eq!(fs::read(scene.0.join("old")).unwrap(), b"old", "replaced, not written over");
        let mode = fs::metadata(scene.to().join("out/sub/bytes")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o751 & !umask());
    }

    #[test]
    fn nothing_is_written_anywhere_else() {
        let scene = Scene::new();
        fs::create_dir(scene.0.join("beside")).unwrap();
        fs::write(scene.0.join("precious"), "precious").unwrap();
        symlink("../beside", scene.to().join("link")).unwrap();
        symlink("../precious", scene.to().join("file")).unwrap();
        symlink("../made", scene.to().join("dangling")).unwrap();
        fs::create_dir(scene.to().join("directory")).unwrap();
        for (path, why) in [
            ("../x", "upwards"),
            ("a/../../x", "upwards"),
            ("/..", "upwards"),
            ("link/x", "\"link\" on its way is a link"),
            ("dangling/x", "a link"),
            ("file/x", "or no directory"),
            ("directory", "directory"),
            ("", "no file"),
            ("/", "no file"),
            (".", "no file"),
            ("a/", "no file"),
            ("a\0b", "nvalid"),
            (&"x".repeat(256), "too long"),
        ] {
            let faults = scene.save(json!([text(path, "new")]));
            assert!(matches!(&faults[..], [one] if one.contains(why)), "{path:?}: {faults:?}");
            let mut saver = scene.saver();
            send(&mut saver, 1, path, b"new", 2);
            let faults = saver.finish(1, listed(json!([in_pieces(path, b"new", 2)])));
            assert!(matches!(&faults[..], [one] if one.contains(why)), "{path:?}: {faults:?}");
        }
        assert_eq!(scene.files(), ["precious", "to/dangling", "to/file", "to/link"]);
        // A link in the place itself is what is replaced.
        assert_eq!(scene.save(json!([text("/file", "new"), text("dangling", "new")])), [""; 0]);
        assert_eq!(fs::read(scene.0.join("precious")).unwrap(), b"precious");
        assert!(fs::symlink_metadata(scene.to().join("file")).unwrap().is_file());
        assert_eq!(scene.files(), ["precious", "to/dangling", "to/file", "to/link"]);
    }

    #[test]
    fn what_is_not_whole_is_not_saved_and_leaves_what_was_there() {
        let scene = Scene::new();
        fs::write(scene.to().join("a"), "old").unwrap();
        let mut wrong = text("a", "new");
        wrong["text"] = "nes".into();
        let mut short = text("b", "new");
        short["size"] = 4.into();
        let faults =
            scene.save(json!([wrong, short, text("c/d", "x"), text("/c/d", "y"), in_pieces("e", b"z", 1)]));
        let expected = [
            "\"a\" is not saved: what has come is not",
            "\"b\" is not saved: 3 of its 4",
            "\"/c/d\" is not saved: another",
            "\"e\" is not saved: none of its pieces",
        ];
        assert_eq!(faults.len(), expected.len(), "{faults:?}");
        assert!(faults.iter().zip(expected).all(|(fault, part)| fault.contains(part)), "{faults:?}");
        assert_eq!((scene.read("a"), scene.read("c/d")), (b"old".to_vec(), b"x".to_vec()));

        let mut saver = scene.saver();
        saver.piece(1, &piece("a", 0, 6, b"ab"));
        saver.piece(1, &piece("a", 4, 6, b"ef"));
        saver.piece(1, &piece("late", 4, 6, b"ef"));
        saver.piece(1, &piece("long", 0, 1, b"ef"));
        let six = |path| in_pieces(path, b"abcdef", 3);
        let faults = saver.finish(1, listed(json!([six("a"), six("late"), six("long")])));
        let expected = ["the 2 bytes from 2 on", "the 4 bytes from 0 on", "more than its 1 bytes"];
        assert_eq!(faults.len(), expected.len(), "{faults:?}");
        assert!(faults.iter().zip(expected).all(|(fault, part)| fault.contains(part)), "{faults:?}");
        assert_eq!(scene.files(), ["to/a", "to/c/d"]);
    }

    #[test]
    fn pieces_become_files_and_those_of_a_lost_attempt_nothing() {
        let scene = Scene::new();
        let large: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let mut saver = scene.saver();
        send(&mut saver, 1, "large", b"of the first attempt", 5);
        send(&mut saver, 1, "only/first", b"gone", 4);
        saver.piece(1, &piece("broken", 4, 9, b"x"));
        assert_eq!(scene.files().len(), 2, "beside their places");
        send(&mut saver, 2, "broken", b"not broken", 3);
        send(&mut saver, 2, "large", &large, 1000);
        send(&mut saver, 1, "broken", b"late", 4);
        send(&mut saver, 2, "unlisted", b"changed when it was read", 7);
        // Two whose names are masked alike: each has its own bytes, and one its place.
        send(&mut saver, 2, "***", b"one", 2);
        send(&mut saver, 2, "***", b"two", 2);
        let all = json!([
            in_pieces("***", b"two", 2),
            in_pieces("***", b"one", 2),
            in_pieces("broken", b"not broken", 4),
            in_pieces("large", &large, 400),
            in_pieces("emptied", b"", 0),
        ]);
        let faults = saver.finish(2, listed(all));
        assert!(matches!(&faults[..], [one] if one.contains("\"***\"")), "{faults:?}");
        assert_eq!(scene.files(), ["to/***", "to/broken", "to/emptied", "to/large"]);
        assert_eq!((scene.read("large"), scene.read("broken")), (large, b"not broken".to_vec()));
        assert_eq!(scene.read("***"), b"two");

        let mut saver = scene.saver();
        send(&mut saver, 1, "large", b"never whole", 5);
        assert_eq!(scene.files().len(), 5);
        drop(saver);
        assert_eq!(scene.files().len(), 4);
    }

    #[test]
    fn the_directory_is_made_and_may_be_a_link() {
        let scene = Scene::new();
        symlink("to", scene.0.join("link")).unwrap();
        let saver = Saver::new(Some(&scene.0.join("link/a/b"))).unwrap();
        assert_eq!(saver.finish(1, listed(json!([text("x", "1")]))), [""; 0]);
        assert_eq!(scene.read("a/b/x"), b"1");
        let why = Saver::new(Some(&scene.to().join("a/b/x"))).map(drop).unwrap_err();
        assert!(why.contains("--artifacts-to") && why.contains("a/b/x"), "{why}");
    }
}
