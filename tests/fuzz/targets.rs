//! What is fuzzed: each takes any bytes, must not panic, and checks what must hold whatever the bytes are. Used by the test program
//! beside this file, on a stable toolchain, and by `fuzz_targets/`, under libFuzzer.

use bytes::Bytes;
use prewarm::artifacts::{Collector, Events};
use prewarm::config::ArtifactsConfig;
use prewarm::contract::content::tidy;
use prewarm::contract::job;
use prewarm::init::glob;
use prewarm::init::parcel::{FileHead, Record};
use prewarm::init::wire::{self, Exited, Failed, HEADER, SetupHead, StartHead};

/// A target: its name, which its corpus has too, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 4] = [("job", job), ("frames", frames), ("artifacts", artifacts), ("paths", paths)];

/// A message's body: taken or refused, in few words that repeat nothing secret.
pub fn job(data: &[u8]) {
    match job::decode(data) {
        Ok(job) => {
            for file in &job.files.0 {
                assert_eq!(tidy(&file.path).as_deref(), Ok(file.path.as_str()), "a path stays as it is");
                assert!(file.mode <= 0o777);
            }
            for pattern in &job.artifacts.0 {
                assert_eq!(tidy(pattern).as_deref(), Ok(pattern.as_str()));
            }
            assert!(
                job.env.0.iter().all(|(name, value)| !name.contains(['=', '\0']) && !value.contains('\0'))
            );
        }
        Err(refused) => {
            let field = refused.field.as_deref().unwrap_or_default();
            assert!(field.chars().count() <= 401 && refused.message.chars().count() <= 401, "{refused}");
        }
    }
}

/// Frames in either direction: what is read back is what was written.
pub fn frames(data: &[u8]) {
    let Some((header, rest)) = data.split_first_chunk::<HEADER>() else { return };
    if let Ok((kind, len)) = wire::parse_header(*header) {
        assert!(len <= kind.max_len());
        assert_eq!(wire::header(kind, len), *header);
    }
    if let Ok((head, strings)) = StartHead::decode(rest) {
        assert!(head.argc > 0 && strings.last() == Some(&0));
        assert_eq!(&rest[..StartHead::LEN], head.encode());
    }
    if let Ok((head, strings, program)) = SetupHead::decode(rest) {
        assert_eq!(rest.len(), SetupHead::LEN + strings.len() + program.len());
        assert_eq!(&rest[..SetupHead::LEN], head.encode());
    }
    let _ = Exited::decode(rest);
    if let Ok(failed) = Failed::decode(rest) {
        assert_eq!(failed.encode(), rest);
    }
    if let Some(head) = rest.first_chunk().and_then(|bytes| FileHead::decode(*bytes)) {
        assert_eq!(rest[..FileHead::LEN], head.encode());
    }
    if let Some(record) = rest.first_chunk().and_then(|bytes| Record::decode(*bytes)) {
        assert_eq!(rest[..Record::LEN], record.encode());
    }
}

/// The stream of artifacts, cut as its first byte says: the limits hold, and cuts make no difference.
pub fn artifacts(data: &[u8]) {
    const LIMITS: ArtifactsConfig =
        ArtifactsConfig { max: 4, size: 4096, inline: 16, timeout: std::time::Duration::from_secs(1) };
    let Some((cut, stream)) = data.split_first() else { return };
    let patterns = ["a".to_owned(), "b/*".to_owned()];
    let collect = |cut: usize| {
        let mut collector = Collector::new(&patterns, LIMITS, Events::Sent, None);
        let pieces: Vec<_> =
            stream.chunks(cut).flat_map(|bytes| collector.push(&Bytes::copy_from_slice(bytes))).collect();
        (pieces, collector.finish())
    };
    let whole = collect(stream.len().max(1));
    assert!(whole.1.artifacts.len() <= LIMITS.max);
    assert!(whole.1.artifacts.iter().map(|a| a.size).sum::<u64>() <= LIMITS.size);
    assert_eq!(whole, collect(usize::from(*cut).max(1)));
}

/// Paths and patterns: the first line is a pattern, the second a path.
pub fn paths(data: &[u8]) {
    let (pattern, path) = match data.iter().position(|b| *b == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &b"a/b"[..]),
    };
    if pattern.len().saturating_mul(path.len()) > 1 << 20 {
        return;
    }
    let (directory, wild) = glob::fixed(pattern);
    assert!(pattern.starts_with(directory) && (wild || directory == pattern));
    if glob::matches(pattern, path) {
        for at in path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).filter(|at| *at > 0)
        {
            assert!(glob::may_lead(pattern, &path[..at]));
        }
        assert!(glob::covers(pattern, path));
    }
    if let Ok(path) = std::str::from_utf8(path)
        && let Ok(tidied) = tidy(path)
    {
        assert_eq!(tidy(&tidied), Ok(tidied.clone()), "tidying again changes nothing");
        assert!(!tidied.split('/').skip(1).any(|name| matches!(name, "" | "." | "..")), "{tidied}");
        assert_eq!(tidied.starts_with('/'), path.starts_with('/'));
    }
}
