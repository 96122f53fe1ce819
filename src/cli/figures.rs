//! Numbers as people read them in answers.

/// Three digits at most where they say enough.
pub(super) fn short(n: f64) -> String {
    if n > 0.0 && n < 0.01 {
        return format!("{n:.1e}");
    }
    let decimals = if n >= 100.0 { 0 } else { 2 };
    let text = format!("{n:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A share, without its sign.
pub(super) fn percent(share: f64) -> String {
    // Never rounded up to what isn't reached.
    short((share * 100_000.0 + 1e-6).floor() / 1000.0)
}
