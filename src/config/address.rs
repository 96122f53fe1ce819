//! The addresses of the broker and of the engine.
//!
//! They may carry a password, if only by mistake: no message from here contains any part of them.

/// What is wrong with a broker's URL.
pub(super) fn check_broker(url: &str) -> Result<(), &'static str> {
    let Some(rest) = url.strip_prefix("amqp://").or_else(|| url.strip_prefix("amqps://")) else {
        return Err("not a broker's URL: write amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps:// for TLS");
    };
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("contains white space: write it %-encoded, a blank as %20");
    }
    let (authority, path) = split_authority(rest);
    // A raw '/' in the password ends the host too early. What is left of the password must not be taken for
    // a virtual host, which is shown.
    if path.contains('@') || authority.matches('@').count() > 1 {
        return Err("contains '@' in a place other than before the host: write the user, password and \
                    virtual host %-encoded ('@' as %40, '/' as %2F)");
    }
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // lapin's URI parser takes no notice of an IPv6 address and connects to localhost.
    if host_and_port.starts_with('[') {
        return Err("has an IPv6 address, which the AMQP library can't take: write a host name");
    }
    check_host_and_port(host_and_port)
}

/// The URLs in a text that may have several. A password may contain a comma: only one with a scheme after it separates.
pub(super) fn split_urls(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let ends = text.match_indices(',').find(|(at, _)| {
            let next = text[at + 1..].trim_start();
            next.starts_with("amqp://") || next.starts_with("amqps://")
        });
        rest = ends.map(|(at, _)| text[at + 1..].trim_start());
        Some(ends.map_or(text, |(at, _)| &text[..at]))
    })
}

/// What is wrong with an engine's address.
pub(super) fn check_engine(host: &str) -> Result<(), &'static str> {
    if host.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("contains white space: leave it out");
    }
    match host.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(()),
        Some(("unix", _)) => Err("not an absolute path: write unix:///var/run/docker.sock"),
        // It goes to logs as it is.
        Some(("tcp" | "http" | "https", rest)) if rest.contains('@') => {
            Err("has a user, which engines don't ask for: leave it out")
        }
        Some(("tcp" | "http" | "https", rest)) => check_host_and_port(split_authority(rest).0),
        Some(("ssh", _)) => Err("ssh:// is not supported: forward the socket, and write unix:///PATH"),
        _ => Err("not an engine's address: write unix:///PATH, tcp://HOST:PORT or https://HOST:PORT"),
    }
}

/// A URL without user and password.
pub(super) fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    // The last '@' of all: in an unchecked URL the password may contain anything.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

fn split_authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

fn check_host_and_port(text: &str) -> Result<(), &'static str> {
    let (host, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address are within brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if !address.map_or(host.chars().all(is_host), |address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Err("has a bad host: write a name, an IPv4 address, or an IPv6 address in brackets");
    }
    if host.is_empty() {
        return Err("has no host: write one after '://'");
    }
    match port.map(str::parse::<u16>) {
        None | Some(Ok(1..)) => Ok(()),
        Some(_) => Err("has a bad port: write a number from 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_urls() {
        for good in [
            "amqp://guest:guest@127.0.0.1:5672/%2f",
            "amqps://rabbit.example.org",
            "amqp://h/",
            "amqp://u:p%40%2F@h:1/v?heartbeat=5",
            "amqp://u@h",
        ] {
            assert_eq!(check_broker(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "not a broker's URL"),
            ("http://h", "not a broker's URL"),
            ("AMQP://h", "not a broker's URL"),
            ("amqp:/h", "not a broker's URL"),
            ("amqp://", "no host"),
            ("amqp://u:p@", "no host"),
            ("amqp://u:p@:5672", "no host"),
            ("amqp://h:x", "bad port"),
            ("amqp://h:0", "bad port"),
            ("amqp://h:65536", "bad port"),
            ("amqp://h:", "bad port"),
            ("amqp://u:p@h/\n", "white space"),
            ("amqp://u:p a@h/", "white space"),
            ("amqp://u:p/a@h/", "'@' in a place"),
            ("amqp://u:p?a@h/", "'@' in a place"),
            ("amqp://u:p@a@h/", "'@' in a place"),
            ("amqp://u:p@[::1]:5672/", "IPv6"),
            ("amqp://h,i/", "bad host"),
        ] {
            assert!(check_broker(bad).is_err_and(|message| message.contains(why)), "{bad}");
        }
    }

    #[test]
    fn several_broker_urls_in_one_text() {
        for (text, urls) in [
            ("amqp://a", &["amqp://a"] as &[&str]),
            ("amqp://a,amqps://b/v", &["amqp://a", "amqps://b/v"]),
            ("amqp://a, amqp://b,\n amqp://c", &["amqp://a", "amqp://b", "amqp://c"]),
            ("amqp://u:p,w@a,amqp://b", &["amqp://u:p,w@a", "amqp://b"]),
            ("amqp://a,b", &["amqp://a,b"]),
            ("amqp://a,", &["amqp://a,"]),
            ("", &[""]),
        ] {
            assert_eq!(split_urls(text).collect::<Vec<_>>(), urls, "{text}");
        }
    }

    #[test]
    fn engine_addresses() {
        for good in
            ["unix:///var/run/docker.sock", "tcp://h:2375", "http://127.0.0.1:2375/", "https://[::1]:2376"]
        {
            assert_eq!(check_engine(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/var/run/docker.sock",
            "unix://docker.sock",
            "ssh://h",
            "tcp://",
            "tcp://h:x",
            "tcp://[::1",
            "tcp://a b",
            "tcp://u:p@h:1",
        ] {
            assert!(check_engine(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for (url, shown) in [
            ("amqp://user:secret@h:1/v", "amqp://h:1/v"),
            ("amqp://h/v", "amqp://h/v"),
            ("amqp://user:secret/x@y@h/v", "amqp://h/v"),
            ("amqps://user:secret?@h", "amqps://h"),
            ("user:secret@h", "h"),
        ] {
            assert_eq!(without_user(url), shown);
        }
    }
}
