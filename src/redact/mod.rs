//! Pure: masks secrets in a stream of bytes, wherever the stream is cut.
//!
//! Every occurrence of every secret, in every form of [`forms`], is masked, overlapping ones as one. A byte is given out when
//! no secret can cover it any more: what is held back is at most the beginning of a secret, and comes at the latest with the
//! stream's end. It is not given out after a while either, or a secret printed slowly would be.
//!
//! All forms of all secrets are followed by one automaton of Aho and Corasick, about one step a byte, however many they are and
//! whatever the input. Its state stands for the longest beginning of any form that the stream's end is; how
//! long that is, is how much must be held back, and the one thing that the library doesn't tell, so it is noted beside. Very
//! long secrets have an automaton of Knuth, Morris and Pratt each, which takes less memory, and no other forms.

pub mod forms;
mod long;

use std::fmt;
use std::sync::{Arc, OnceLock};

use aho_corasick::Anchored;
use aho_corasick::automaton::{Automaton as _, StateID};
use aho_corasick::nfa::contiguous::NFA;

use long::Automaton;

/// What stands in place of a secret.
pub const MASK: &[u8] = b"***";

/// Secrets of more bytes than this are masked as they are alone.
const LONG: usize = 8 * 1024;

/// Most bytes of all forms together; secrets whose forms don't fit any more are masked as they are alone. It bounds memory: the
/// automaton takes some 25 bytes for each.
const FORMS_MAX: usize = 1 << 20;

/// The secrets of one job. Cheap to clone, and to make: the automaton is built when it is first needed.
#[derive(Clone)]
pub struct Secrets(Arc<Values>);

struct Values {
    values: Vec<Vec<u8>>,
    built: OnceLock<Built>,
}

/// How many; never which.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.0.values.len())
    }
}

/// What follows a stream, whatever has been read of it.
struct Built {
    forms: Option<Forms>,
    long: Vec<Vec<u8>>,
}

struct Forms {
    nfa: NFA,
    start: StateID,
    /// Of each state, in order: how long a beginning it stands for.
    depths: Vec<(StateID, u32)>,
}

impl Secrets {
    /// These values; empty ones are no secrets. `None` if none is left.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Secrets> {
        let mut values: Vec<Vec<u8>> =
            values.into_iter().filter(|v| !v.is_empty()).map(<[u8]>::to_vec).collect();
        values.sort_unstable();
        values.dedup();
        (!values.is_empty()).then(|| Secrets(Arc::new(Values { values, built: OnceLock::new() })))
    }

    /// To mask one stream.
    pub fn redactor(&self) -> Redactor {
        let built = self.built();
        Redactor {
            state: built.forms.as_ref().map(|forms| forms.start),
            long: built.long.iter().map(|secret| Automaton::new(secret)).collect(),
            secrets: self.clone(),
            held: Vec::new(),
            covered: Vec::new(),
            in_mask: false,
        }
    }

    /// Masks a whole text.
    pub fn mask(&self, text: &str) -> String {
        let mut redactor = self.redactor();
        let mut masked = redactor.feed(text.as_bytes());
        masked.extend(redactor.finish());
        String::from_utf8(masked).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    fn built(&self) -> &Built {
        self.0.built.get_or_init(|| Built::new(&self.0.values))
    }
}

impl Built {
    fn new(values: &[Vec<u8>]) -> Built {
        let (mut patterns, mut long, mut left) = (Vec::new(), Vec::new(), FORMS_MAX);
        for value in values {
            let forms = if value.len() <= LONG { forms::of(value) } else { Vec::new() };
            let bytes: usize = forms.iter().map(Vec::len).sum();
            if forms.is_empty() || bytes > left {
                long.push(value.clone());
            } else {
                left -= bytes;
                patterns.extend(forms);
            }
        }
        patterns.sort_unstable();
        patterns.dedup();
        // The library's limit is the number of states, two thousand times as many as there can be.
        let forms = (!patterns.is_empty()).then(|| Forms::new(&patterns)).flatten();
        if forms.is_none() {
            long = values.to_vec();
        }
        Built { forms, long }
    }
}

impl Forms {
    fn new(patterns: &[Vec<u8>]) -> Option<Forms> {
        let nfa = NFA::new(patterns).ok()?;
        let start = nfa.start_state(Anchored::No).ok()?;
        let mut depths = vec![(start, 0)];
        for pattern in patterns {
            let mut state = start;
            for (depth, byte) in (1..).zip(pattern) {
                state = nfa.next_state(Anchored::No, state, *byte);
                depths.push((state, depth));
            }
        }
        depths.sort_unstable();
        depths.dedup();
        Some(Forms { nfa, start, depths })
    }

    /// How much of a form the stream's end is.
    fn depth(&self, state: StateID) -> usize {
        let at = self.depths.binary_search_by_key(&state, |(state, _)| *state);
        at.map_or(0, |at| self.depths[at].1 as usize)
    }

    /// The longest form that ends where this state is.
    fn longest(&self, state: StateID) -> usize {
        let ends = (0..self.nfa.match_len(state)).map(|n| self.nfa.match_pattern(state, n));
        ends.map(|pattern| self.nfa.pattern_len(pattern)).max().unwrap_or(0)
    }
}

/// Masks secrets in one stream.
pub struct Redactor {
    secrets: Secrets,
    state: Option<StateID>,
    long: Vec<Automaton>,
    /// Bytes that a secret may still cover.
    held: Vec<u8>,
    /// Ranges of `held` that are covered already, in order, apart from each other.
    covered: Vec<(usize, usize)>,
    /// Whether the last byte that left was covered, so that what follows it needs no second mask.
    in_mask: bool,
}

/// Nothing of what it holds.
impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").field("secrets", &self.secrets).finish_non_exhaustive()
    }
}

impl Redactor {
    /// Takes what comes next in the stream; gives what is safe to show.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let base = self.held.len();
        self.held.extend_from_slice(bytes);
        let mut open = 0;
        if let (Some(state), Some(forms)) = (&mut self.state, &self.secrets.built().forms) {
            let mut at = *state;
            for (n, byte) in bytes.iter().enumerate() {
                at = forms.nfa.next_state(Anchored::No, at, *byte);
                if forms.nfa.is_special(at) && forms.nfa.is_match(at) {
                    let end = base + n + 1;
                    cover(&mut self.covered, end - forms.longest(at), end);
                }
            }
            *state = at;
            open = forms.depth(at);
        }
        for secret in &mut self.long {
            let mut found = Vec::new();
            for (n, byte) in bytes.iter().enumerate() {
                if let Some(len) = secret.step(*byte) {
                    cover(&mut found, base + n + 1 - len, base + n + 1);
                }
            }
            open = open.max(secret.matched());
            if !found.is_empty() {
                found.append(&mut self.covered);
                found.sort_unstable_by_key(|(_, to)| *to);
                for (from, to) in found {
                    cover(&mut self.covered, from, to);
                }
            }
        }
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

#[cfg(test)]
mod tests;
