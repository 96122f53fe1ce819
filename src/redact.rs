//! Pure: masks secrets in a stream of bytes, wherever the stream is cut.
//!
//! Every occurrence of every secret is masked, overlapping ones as one. A byte is given out when no secret can cover it
//! any more: what is held back is at most the beginning of a secret, and comes at the latest with the
//! stream's end. It is not given out after a while either, or a secret printed slowly would be.
//!
//! Each secret is followed by the automaton of Knuth, Morris and Pratt: one step a byte, whatever the input, and its state
//! is just how much must be held back.

/// What stands in place of a secret.
pub const MASK: &[u8] = b"***";

/// Masks a set of secrets in one stream.
#[derive(Debug)]
pub struct Redactor {
    secrets: Vec<Automaton>,
    /// Bytes that a secret may still cover.
    held: Vec<u8>,
    /// Ranges of `held` that are covered already, in order, apart from each other.
    covered: Vec<(usize, usize)>,
    /// Whether the last byte that left was covered, so that what follows it needs no second mask.
    in_mask: bool,
}

impl Redactor {
    /// Masks these values; empty ones are no secrets. `None` if none is left.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Option<Redactor> {
        let secrets: Vec<_> = secrets.into_iter().filter(|s| !s.is_empty()).map(Automaton::new).collect();
        (!secrets.is_empty()).then(|| Redactor {
            secrets,
            held: Vec::new(),
            covered: Vec::new(),
            in_mask: false,
        })
    }

    /// Takes what comes next in the stream; gives what is safe to show.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            self.held.push(*byte);
            for secret in &mut self.secrets {
                if let Some(len) = secret.step(*byte) {
                    cover(&mut self.covered, self.held.len() - len, self.held.len());
                }
            }
        }
        let open = self.secrets.iter().map(|s| s.matched).max().unwrap_or(0);
        self.give(self.held.len() - open)
    }

    /// The stream has ended: what was held back.
    pub fn finish(&mut self) -> Vec<u8> {
        self.give(self.held.len())
    }

    /// Gives out the first `n` held bytes, masked.
    fn give(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(n);
        let mut at = 0;
        for (from, to) in self.covered.iter().map(|(from, to)| (*from.min(&n), *to.min(&n))) {
            out.extend_from_slice(&self.held[at..from]);
            self.in_mask &= from == at;
            if from < to && !self.in_mask {
                out.extend_from_slice(MASK);
                self.in_mask = true;
            }
            at = to;
        }
        out.extend_from_slice(&self.held[at..n]);
        self.in_mask &= at == n;
        self.held.drain(..n);
        self.covered.retain_mut(|(from, to)| {
            (*from, *to) = (from.saturating_sub(n), to.saturating_sub(n));
            *from < *to
        });
        out
    }
}

/// Adds a range to ranges that end no later than it does.
fn cover(ranges: &mut Vec<(usize, usize)>, mut from: usize, to: usize) {
    while let Some((f, _)) = ranges.pop_if(|(_, t)| *t >= from) {
        from = from.min(f);
    }
    ranges.push((from, to));
}

/// One secret, and how much of it the stream's end is.
#[derive(Debug)]
struct Automaton {
    secret: Vec<u8>,
    /// For each length of a beginning of the secret: the longest shorter one that it ends with.
    fallback: Vec<usize>,
    matched: usize,
}

impl Automaton {
    fn new(secret: &[u8]) -> Automaton {
        let mut fallback = vec![0; secret.len() + 1];
        let mut k = 0;
        for i in 1..secret.len() {
            while k > 0 && secret[i] != secret[k] {
                k = fallback[k];
            }
            if secret[i] == secret[k] {
                k += 1;
            }
            fallback[i + 1] = k;
        }
        Automaton { secret: secret.to_vec(), fallback, matched: 0 }
    }

    /// Takes a byte; the secret's length if it is complete with it.
    fn step(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.secret[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        if self.secret[self.matched] == byte {
            self.matched += 1;
        }
        (self.matched == self.secret.len()).then(|| {
            self.matched = self.fallback[self.matched];
            self.secret.len()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(secrets: &[&str], pieces: &[&str]) -> String {
        let mut r = Redactor::new(secrets.iter().map(|s| s.as_bytes())).unwrap();
        let mut out: Vec<u8> = pieces.iter().flat_map(|p| r.feed(p.as_bytes())).collect();
        out.extend(r.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn secrets_are_masked_wherever_the_stream_is_cut() {
        assert_eq!(masked(&["s3cret"], &["a s3cret b s3cret"]), "a *** b ***");
        assert_eq!(masked(&["s3cret"], &["a s3", "cr", "et b"]), "a *** b");
        let one_by_one: Vec<String> = "x s3s3cret s3cre".chars().map(String::from).collect();
        let pieces: Vec<&str> = one_by_one.iter().map(String::as_str).collect();
        assert_eq!(masked(&["s3cret"], &pieces), "x s3*** s3cre", "what only begins like one is shown");
        assert_eq!(masked(&["abc", "abcdef"], &["abc", "def abcde"]), "*** ***de", "the longer one whole");
        assert_eq!(masked(&["xab", "abq"], &["xabq."]), "***.", "overlapping ones as one");
        assert_eq!(masked(&["aa"], &["aaaaa", "a"]), "***");
        assert!(Redactor::new([&b""[..]]).is_none());
    }

    #[test]
    fn nothing_is_held_back_that_no_secret_begins_with() {
        let mut r = Redactor::new([&b"s3cret"[..]]).unwrap();
        assert_eq!(r.feed(b"prompt> "), b"prompt> ");
        assert_eq!(r.feed(b"yes"), b"ye");
        assert_eq!(r.feed(b"!"), b"s!");
    }

    /// Against the definition: all occurrences in the whole, covered ranges joined.
    #[test]
    fn it_is_the_same_as_masking_the_whole() {
        use proptest::prelude::*;
        let word = || prop::collection::vec(prop::sample::select(vec![b'a', b'b']), 1..5);
        let input = (
            prop::collection::vec(word(), 1..4),
            prop::collection::vec(
                prop::collection::vec(prop::sample::select(vec![b'a', b'b', b'c']), 0..9),
                0..8,
            ),
        );
        proptest!(ProptestConfig::with_cases(2000), |((secrets, pieces) in input)| {
            let whole: Vec<u8> = pieces.concat();
            let mut hidden = vec![false; whole.len()];
            for secret in &secrets {
                for (at, window) in whole.windows(secret.len()).enumerate() {
                    if window == secret.as_slice() {
                        hidden[at..at + secret.len()].fill(true);
                    }
                }
            }
            let mut want = Vec::new();
            for (at, byte) in whole.iter().enumerate() {
                if !hidden[at] {
                    want.push(*byte);
                } else if at == 0 || !hidden[at - 1] {
                    want.extend_from_slice(MASK);
                }
            }
            let mut r = Redactor::new(secrets.iter().map(Vec::as_slice)).unwrap();
            let mut got: Vec<u8> = pieces.iter().flat_map(|p| r.feed(p)).collect();
            got.extend(r.finish());
            prop_assert_eq!(got, want);
        });
    }
}
