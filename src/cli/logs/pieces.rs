//! Pure: pieces of two streams, put together by their offsets.

/// How far either stream has been shown.
#[derive(Default)]
pub(super) struct Pieces {
    /// The next byte of stdout and of stderr.
    next: [u64; 2],
}

/// What to show of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown<'a> {
    /// Bytes that are missing before it.
    pub(super) gap: Option<u64>,
    /// What has not been shown yet.
    pub(super) bytes: &'a [u8],
}

impl Pieces {
    /// Takes the piece of a stream that begins at this offset.
    pub(super) fn take<'a>(&mut self, is_stderr: bool, offset: u64, bytes: &'a [u8]) -> Shown<'a> {
        let next = &mut self.next[usize::from(is_stderr)];
        let before = *next;
        let gap = offset.checked_sub(before).filter(|gap| *gap > 0);
        let seen = usize::try_from(before.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
        *next = before.max(offset.saturating_add(bytes.len() as u64));
        Shown { gap, bytes: &bytes[seen..] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_and_what_was_seen_is_not_shown_again() {
        let mut pieces = Pieces::default();
        assert_eq!(pieces.take(false, 10, b"abc"), Shown { gap: Some(10), bytes: b"abc" });
        assert_eq!(pieces.take(true, 0, b"e"), Shown { gap: None, bytes: b"e" });
        assert_eq!(pieces.take(false, 13, b"def"), Shown { gap: None, bytes: b"def" });
        assert_eq!(pieces.take(false, 20, b"g"), Shown { gap: Some(4), bytes: b"g" });
        assert_eq!(pieces.take(false, 18, b"xyghi"), Shown { gap: None, bytes: b"hi" });
        assert_eq!(pieces.take(false, 0, b"all of it"), Shown { gap: None, bytes: b"" });
        assert_eq!(pieces.take(false, 23, b"j"), Shown { gap: None, bytes: b"j" });
    }
}
