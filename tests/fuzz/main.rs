//! Fuzzing for the test command: the targets of `targets.rs` with the corpus beside them and with what becomes of it by chance, for
//! five seconds each (`PREWARM_TEST_FUZZ=60` for a minute). On a stable toolchain, so it isn't led by coverage; `tests/fuzz/Cargo.toml`
//! is for cargo-fuzz, which is, and shares targets and corpus. An input that fails is printed, and belongs into the corpus once mended.

mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Longest input that is made.
const LONGEST: usize = 4096;

/// What is interesting somewhere: ends of ranges, and words of the formats.
const WORDS: [&[u8]; 34] = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\x01\0\0\0",
    b"\0\x10",
    b"\xff\x0f",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\u0000",
    b":",
    b",",
    b"null",
    b"1e999",
    b"\"env\":{\"A\":\"b\"}",
    b"\"stdin\":{\"base64\":\"AA==\"}",
    b"\"files\":{\"a\":{\"text\":\"\",\"mode\":\"0755\"}}",
    b"\"artifacts\":[\"**\"]",
    b"\"secrets\":[\"A\"]",
    b"\"timeout\":\"1s\"",
    b"..",
    b"/",
    b"//",
    b"/./",
    b"*",
    b"?",
    b"**/",
    b"/.prewarm",
    "\u{e9}\u{1F600}".as_bytes(),
];

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut files: Vec<PathBuf> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_unstable();
    assert!(!files.is_empty(), "{directory:?}");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn mutate(random: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut data = corpus[random.random_range(0..corpus.len())].clone();
    for _ in 0..random.random_range(1..8) {
        let at = random.random_range(0..=data.len());
        let to = random.random_range(at..=data.len());
        match random.random_range(0..7) {
            0 => drop(data.drain(at..to)),
            1 => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                data.splice(at..at, word.iter().copied());
            }
            2 => {
                let other = &corpus[random.random_range(0..corpus.len())];
                let from = random.random_range(0..=other.len());
                data.splice(at..to, other[from..].iter().copied());
            }
            3 if at < data.len() => data[at] = random.random(),
            4 if at < data.len() => data[at] ^= 1 << random.random_range(0..8),
            5 if at < data.len() => {
                data[at] = data[at].wrapping_add(random.random_range(0..3)).wrapping_sub(1)
            }
            _ => {
                let again = data[at..to].to_vec();
                data.splice(at..at, again);
            }
        }
        data.truncate(LONGEST);
    }
    data
}

#[test]
fn nothing_that_comes_from_outside_makes_it_panic() {
    let seconds = std::env::var("PREWARM_TEST_FUZZ").map_or(5, |text| text.parse().expect("seconds"));
    for (name, target) in targets::ALL {
        let corpus = corpus(name);
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let try_one = |data: &[u8]| {
            let outcome = catch_unwind(AssertUnwindSafe(|| target(data)));
            assert!(outcome.is_ok(), "{name} fails with (seed {seed}): {}", data.escape_ascii());
        };
        corpus.iter().for_each(|data| try_one(data));
        let (begun, mut count) = (Instant::now(), 0_u64);
        while begun.elapsed() < Duration::from_secs(seconds) {
            for _ in 0..100 {
                try_one(&mutate(&mut random, &corpus));
            }
            count += 100;
        }
        println!("{name}: {} of the corpus, {count} made, seed {seed}", corpus.len());
    }
}
