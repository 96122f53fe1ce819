//! The automaton of Knuth, Morris and Pratt: one secret, one step a byte, whatever the input.

/// One secret, and how much of it the stream's end is.
#[derive(Debug)]
pub(super) struct Automaton {
    secret: Vec<u8>,
    /// For each length of a beginning of the secret: the longest shorter one that it ends with.
    fallback: Vec<usize>,
    matched: usize,
}

impl Automaton {
    pub(super) fn new(secret: &[u8]) -> Automaton {
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
    pub(super) fn step(&mut self, byte: u8) -> Option<usize> {
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

    pub(super) fn matched(&self) -> usize {
        self.matched
    }
}
