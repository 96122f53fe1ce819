//! "Did you mean": the nearest of the names that exist.

/// The candidate nearest to `name`, if one is near enough to be meant. Letter case counts for nothing.
pub(super) fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // One slip in a short word, two in a longer one; with more, a guess is more often wrong than right.
    let allowed = if name.chars().count() > 5 { 2 } else { 1 };
    let name = name.to_lowercase();
    candidates
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= allowed * 4)
        .map(|candidate| (distance(&name, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The end of a message about something unknown that has a near name.
pub(super) fn did_you_mean(near: &str) -> String {
    format!("; did you mean '{near}'?")
}

/// Optimal string alignment: insertions, deletions, substitutions, and swaps of neighbours (`imgae`).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut above_last = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substituted = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substituted.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                let unswapped: usize = above_last[j - 2];
                best = best.min(unswapped + 1);
            }
            row.push(best);
        }
        above_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("image", "image", 0),
            ("imgae", "image", 1),
            ("imag", "image", 1),
            ("timout", "timeout", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        let keys = ["image", "idle", "memory", "mounts", "cap_add"];
        assert_eq!(nearest("imgae", keys), Some("image"));
        assert_eq!(nearest("IMAGE", keys), Some("image"));
        assert_eq!(nearest("cap-add", keys), Some("cap_add"));
        assert_eq!(nearest("memroy", keys), Some("memory"));
        assert_eq!(nearest("mem", keys), None);
        assert_eq!(nearest("", keys), None);
        assert_eq!(nearest(&"é".repeat(100_000), keys), None);
    }
}
