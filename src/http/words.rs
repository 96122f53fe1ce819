//! Pure: figures and texts as the page shows them.

use std::fmt;

use crate::pool::planner::Reason;

/// Text from outside, harmless wherever the page has it: in an element or in an attribute with quotes. Characters that
/// nobody sees, or that turn around what is beside them, are shown as their numbers.
pub(super) struct Text<'a>(pub &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_str(" ")?,
                '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    write!(f, "\\u{:04x}", u32::from(c))?;
                }
                c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// Two digits that count, with a unit: `0.85 ms`, `12 ms`, `1.5 s`.
pub(super) fn seconds(seconds: f64) -> String {
    let (value, unit) = if seconds < 0.9995 { (seconds * 1000.0, "ms") } else { (seconds, "s") };
    let digits = if value < 0.995 {
        2
    } else if value < 9.95 {
        1
    } else {
        0
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

/// The two largest units of a time: `45 s`, `2 m 5 s`, `3 d 4 h`.
pub(super) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} m {s} s"),
        (0, h, m, _) => format!("{h} h {m} m"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

/// A share as a percentage that is 100 % only if it is all: one miss in a million is not none.
pub(super) fn percent(share: f64) -> String {
    // Cut off, not rounded; the little more is for what is 0.57 and no less.
    let tenths = (share * 1000.0 + 1e-6).floor() / 10.0;
    let text = format!("{tenths:.1}");
    format!("{} %", text.trim_end_matches(".0"))
}

/// A number in thousands where it is large, for an axis.
pub(super) fn count(number: u64) -> String {
    if number < 10_000 { number.to_string() } else { format!("{} k", number / 1000) }
}

/// `1 job`, `2 jobs`.
pub(super) fn so_many(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Why a target is what it is.
pub(super) fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::Fixed => "fixed: idle.min = idle.max",
        Reason::Min => "idle.min: less would do",
        Reason::Demand => "what the jobs ask for",
        Reason::Recent => "what the jobs asked for until a few minutes ago",
        Reason::Max => "idle.max: more would be needed for the goal",
        Reason::Budget => "the host's containers or memory are used up: shared out by need",
        Reason::Unreachable => "jobs come about as fast as containers can be made: no size reaches the goal",
        Reason::Ttl => "no job for idle.ttl",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_whatever_is_in_it() {
        let hostile = "<b onclick='x'>\"&amp;\u{0}\u{1b}[2J\u{202e}gnp.exe\u{2066}\n</b>é日👩‍🚀";
        assert_eq!(
            Text(hostile).to_string(),
            "&lt;b onclick=&#39;x&#39;&gt;&quot;&amp;amp;\\u0000\\u001b[2J\\u202egnp.exe\\u2066 &lt;/b&gt;é日👩‍🚀"
        );
    }

    #[test]
    fn figures_have_two_digits_and_a_unit() {
        let texts = [0.0001, 0.00085, 0.001, 0.0099, 0.0124, 0.25, 0.9996, 1.5, 12.3, 60.0].map(seconds);
        assert_eq!(
            texts,
            ["0.1 ms", "0.85 ms", "1 ms", "9.9 ms", "12 ms", "250 ms", "1 s", "1.5 s", "12 s", "60 s"]
        );
        assert_eq!([0, 59, 125, 3600, 100_000].map(span), ["0 s", "59 s", "2 m 5 s", "1 h 0 m", "1 d 3 h"]);
        assert_eq!([1.0, 0.99999, 0.57, 0.0].map(percent), ["100 %", "99.9 %", "57 %", "0 %"]);
        assert_eq!([9999, 20_000].map(count), ["9999", "20 k"]);
        assert_eq!([so_many(1, "job"), so_many(0, "job")], ["1 job", "0 jobs"]);
    }
}
