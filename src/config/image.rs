//! References to images.

/// What is wrong with an image's reference, `[HOST[:PORT]/]PATH[:TAG][@ALGORITHM:DIGEST]` or an image's id.
///
/// bollard puts names into URLs as they are, so that `../images/x` or `x?size=1#` would be other requests:
/// nothing may pass that has a meaning there.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check(image: &str) -> Result<(), &'static str> {
    if image.len() > 400 {
        return Err("too long: at most 400 characters");
    }
    if !image
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'/' | b'@' | b'-'))
    {
        return Err("use ASCII letters, digits and . _ : / @ - only");
    }
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("what follows '@' must be a digest such as sha256:…, with 64 hexadecimal digits");
    }
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let (path, tag) = match name[last..].find(':') {
        Some(colon) => (&name[..last + colon], Some(&name[last + colon + 1..])),
        None => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(
            "the tag after ':' must be 1 to 128 letters, digits, '_', '.' or '-', not starting with '.' or '-'",
        );
    }
    let path = match path.split_once('/') {
        Some((host, rest)) if is_host(host) => rest,
        _ => path,
    };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a repository's name is in lower case");
    }
    if !path.split('/').all(is_component) {
        return Err("write [HOST[:PORT]/]NAME[:TAG], such as acme/build:7");
    }
    Ok(())
}

/// The first component is a registry's host if it can't be a part of a path, as Docker has it.
fn is_host(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let named = port.is_some()
        || host.contains('.')
        || host == "localhost"
        || host.bytes().any(|b| b.is_ascii_uppercase());
    named && host.split('.').all(is_label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Runs of lower-case letters and digits, with one of `.`, `_`, `__` or any number of `-` between them.
fn is_component(text: &str) -> bool {
    let is_run = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(is_run) && text.bytes().last().is_some_and(is_run);
    let mut separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends && separators.all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    match text.split_once(':') {
        Some(("sha256", hex)) => hex.len() == 64 && is_hex(hex),
        Some(("sha512", hex)) => hex.len() == 128 && is_hex(hex),
        _ => false,
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_takes_is_taken() {
        let digest = format!("a/b@sha256:{}", "0a".repeat(32));
        let both = format!("localhost:5000/a/b:7@sha256:{}", "0a".repeat(32));
        let id = format!("sha256:{}", "0a".repeat(32));
        for good in [
            "busybox",
            "busybox:1.36",
            "acme/build:7",
            "ghcr.io/acme/build:v1.2_x-y",
            "localhost/x",
            "registry.example.org:5000/a/b/c:latest",
            "10.0.0.1:5000/x",
            "a__b/c--d.e_f",
            "x:_",
            &digest,
            &both,
            &id,
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_would_change_a_request_is_refused() {
        let digest = format!("a@sha256:{}", "0a".repeat(31));
        for bad in [
            "",
            "/",
            ":",
            "@",
            "a b",
            "a?size=1",
            "a#",
            "a%2f",
            "../images/x",
            "a/../b",
            "a/./b",
            "..",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:b:c",
            "a:.b",
            "a@",
            "a@b",
            "Acme",
            "acme/Build",
            "a..b",
            "a.",
            "-a",
            "a-",
            "a___b",
            "a\n",
            "é",
            "h:99999/x",
            "h.o:x/y",
            "a:b/c",
            "a.-b.c/x",
            "a@sha256:x@sha256:y",
            &digest,
            &"a".repeat(401),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
