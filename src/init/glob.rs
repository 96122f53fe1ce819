//! Pure: patterns for paths, by which a job says which of its files are wanted. Compiled into init and the worker.
//!
//! In a component of a pattern `*` stands for any characters and `?` for one; hidden files are no exception. A component
//! `**` stands for any number of directories, also none. A pattern without any of these is a path; if that is a directory,
//! all files below it are meant. There is no way to escape: `?` matches a `*`.
//!
//! Matching takes time in proportion to the pattern's length times the path's at most, whatever they are: after a mismatch only the
//! last `*` (or `**`) is given more, since giving an earlier one more can't help where the last one couldn't.

/// Longest path, its end marker included (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;

type Components<'a> = core::slice::Split<'a, u8, fn(&u8) -> bool>;

fn components(path: &[u8]) -> Components<'_> {
    fn slash(byte: &u8) -> bool {
        *byte == b'/'
    }
    path.split(slash as fn(&u8) -> bool)
}

fn is_wild(component: &[u8]) -> bool {
    component.iter().any(|b| matches!(b, b'*' | b'?'))
}

/// Takes a pattern apart: the directory in which everything that matches lies (empty: the working directory), without a
/// slash at its end unless it is the root; and whether there is a wildcard at all. Without one the first is the whole pattern.
pub fn fixed(pattern: &[u8]) -> (&[u8], bool) {
    let mut end = 0;
    for component in components(pattern) {
        if is_wild(component) {
            let directory = &pattern[..end];
            return match directory {
                b"" | b"/" => (directory, true),
                _ => (&directory[..end - 1], true),
            };
        }
        end += component.len() + 1;
    }
    (pattern, false)
}

/// Whether a pattern matches a path as a whole. Both are absolute, or both are relative to the same directory.
pub fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let (mut pattern, mut path) = (components(pattern), components(path));
    // After a `**`: what of the pattern follows it, and of the path what it may still take.
    let mut wild: Option<(Components<'_>, Components<'_>)> = None;
    loop {
        let mut rest = pattern.clone();
        match (rest.next(), path.clone().next()) {
            (Some(b"**"), _) => {
                pattern = rest;
                wild = Some((pattern.clone(), path.clone()));
                continue;
            }
            (Some(wanted), Some(name)) if component(wanted, name) => {
                pattern = rest;
                path.next();
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        let Some((after, taken)) = &mut wild else { return false };
        if taken.next().is_none() {
            return false;
        }
        pattern = after.clone();
        path = taken.clone();
    }
}

/// Whether something that a pattern matches may lie below this directory.
pub fn may_lead(pattern: &[u8], directory: &[u8]) -> bool {
    let mut pattern = components(pattern);
    for name in components(directory) {
        match pattern.next() {
            Some(b"**") => return true,
            Some(wanted) if component(wanted, name) => {}
            _ => return false,
        }
    }
    pattern.next().is_some()
}

/// Whether a pattern stands for this file: it matches, or it is the path of a directory that the file is below.
pub fn covers(pattern: &[u8], path: &[u8]) -> bool {
    match fixed(pattern) {
        (directory, false) if directory != path => {
            path.strip_prefix(directory).is_some_and(|rest| directory == b"/" || rest.starts_with(b"/"))
        }
        _ => matches(pattern, path),
    }
}

/// Whether one component of a pattern matches one name.
fn component(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // After a `*`: where the pattern goes on, and up to where in the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(p), name.get(n)) {
            (Some(b'*'), _) => {
                p += 1;
                star = Some((p, n));
                continue;
            }
            (Some(b'?'), Some(_)) => {
                p += 1;
                n = character(name, n);
                continue;
            }
            (Some(wanted), Some(byte)) if wanted == byte => {
                p += 1;
                n += 1;
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match &mut star {
            Some((after, taken)) if *taken < name.len() => {
                *taken += 1;
                (p, n) = (*after, *taken);
            }
            _ => return false,
        }
    }
}

/// Where the next character begins; a byte that is no UTF-8 is one by itself.
fn character(name: &[u8], mut at: usize) -> usize {
    let lead = name[at] >= 0xC0;
    at += 1;
    while lead && name.get(at).is_some_and(|b| (0x80..0xC0).contains(b)) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_paths() {
        for (pattern, yes, no) in [
            ("a", vec!["a"], vec!["b", "a/a", "", "aa"]),
            ("*.xml", vec!["a.xml", ".xml", "é.xml"], vec!["a.xmlx", "d/a.xml", "xml"]),
            ("/out/*", vec!["/out/x", "/out/.hidden"], vec!["/out", "/out/a/b", "out/x"]),
            ("?x?", vec!["axb", "éxü"], vec!["x", "ax", "aaxb", "axbb"]),
            ("a*b*c", vec!["abc", "aXbYc", "abbcc"], vec!["ab", "acb", "abcd"]),
            ("**/*.o", vec!["a.o", "x/y/a.o"], vec!["a.oo", "x/"]),
            ("a/**/b", vec!["a/b", "a/x/b", "a/x/y/b", "a/b/b"], vec!["a/x", "b", "a/b/c"]),
            ("/**", vec!["/a", "/a/b"], vec!["a"]),
            ("**/a/**/b/*", vec!["a/b/c", "x/a/y/b/z", "a/a/b/b/b"], vec!["a/b", "b/a/c"]),
        ] {
            for path in yes {
                assert!(matches(pattern.as_bytes(), path.as_bytes()), "{pattern} {path}");
            }
            for path in no {
                assert!(!matches(pattern.as_bytes(), path.as_bytes()), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn a_pattern_lies_in_a_directory() {
        for (pattern, directory, wild) in [
            ("a/b", "a/b", false),
            ("*", "", true),
            ("/*", "/", true),
            ("/a/b*/c", "/a", true),
            ("a/?", "a", true),
            ("/a/**", "/a", true),
        ] {
            assert_eq!(fixed(pattern.as_bytes()), (directory.as_bytes(), wild), "{pattern}");
        }
        for (pattern, directory, may) in [
            ("/a/*/c", "/a", true),
            ("/a/*/c", "/a/b", true),
            ("/a/*/c", "/a/b/c", false),
            ("/a/*/c", "/b", false),
            ("/a/**", "/a/b/c/d", true),
            ("a*/x", "ab", true),
            ("*", "a", false),
        ] {
            assert_eq!(may_lead(pattern.as_bytes(), directory.as_bytes()), may, "{pattern} {directory}");
        }
        assert!(covers(b"/out", b"/out/a/b") && covers(b"/out", b"/out") && covers(b"/", b"/a"));
        assert!(!covers(b"/out", b"/outer") && !covers(b"/out/*", b"/out/a/b"));
    }

    #[test]
    fn what_matches_is_led_to_and_nothing_takes_long() {
        use proptest::prelude::*;
        let text = |letters: &'static str| {
            prop::collection::vec(prop::sample::select(letters.chars().collect::<Vec<_>>()), 0..14)
                .prop_map(|letters| letters.into_iter().collect::<String>())
        };
        proptest!(ProptestConfig::with_cases(3000), |(pattern in text("ab*?/"), path in text("ab/"))| {
            if matches(pattern.as_bytes(), path.as_bytes()) {
                for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
                    prop_assert!(may_lead(pattern.as_bytes(), &path.as_bytes()[..at]), "{pattern} {path} {at}");
                }
            }
        });
        let long = [b"a".repeat(2000), b"/a".repeat(1000)].concat();
        let begun = std::time::Instant::now();
        assert!(!matches(&[b"*a".repeat(1000), b"b".to_vec()].concat(), &long));
        assert!(!matches(&[b"**/a/".repeat(700), b"b".to_vec()].concat(), &long));
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    }
}
