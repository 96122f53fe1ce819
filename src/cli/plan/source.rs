//! Where a worker's status comes from: the worker, or a file.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;

/// How long a worker may take to answer, to the last byte.
const PATIENCE: Duration = Duration::from_secs(10);
/// No status is longer; bytes.
const LONGEST: u64 = 16 << 20;

/// What is at a URL or in a file.
pub(in crate::cli) fn read(from: &str) -> Result<String, String> {
    match from.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => get(Url::parse(rest)?, PATIENCE),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
            Err("a worker speaks plain HTTP: write http://".into())
        }
        _ => whole(std::fs::File::open(from).map_err(say)?),
    }
}

fn say(error: std::io::Error) -> String {
    error.to_string()
}

/// All of it, if that isn't too much.
fn whole(source: impl Read) -> Result<String, String> {
    let mut bytes = Vec::new();
    source.take(LONGEST + 1).read_to_end(&mut bytes).map_err(say)?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("longer than {} MiB: that is no worker's status", LONGEST >> 20));
    }
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// What follows `http://`.
#[derive(Debug, PartialEq)]
struct Url {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// Both, as written.
    authority: String,
    path: String,
}

impl Url {
    fn parse(text: &str) -> Result<Url, String> {
        if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err("a URL has no spaces or control characters".into());
        }
        let text = text.split('#').next().unwrap_or_default();
        let (authority, path) = text.split_at(text.find(['/', '?']).unwrap_or(text.len()));
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))),
            None => {
                authority.split_once(':').map_or((authority, Some("")), |(host, port)| (host, Some(port)))
            }
        };
        let port = match port {
            Some("") => Some(80),
            // Not parsed alone: that would take a sign.
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().ok().filter(|n| *n > 0),
            _ => None,
        };
        let wanted = "write http://HOST:PORT, as http://127.0.0.1:9464 or http://[::1]:9464";
        let port = port.filter(|_| !host.is_empty() && !host.contains(['@', '[', ']'])).ok_or(wanted)?;
        let path = match path.strip_prefix('/').unwrap_or(path) {
            "" => "/status".to_owned(),
            query if query.starts_with('?') => format!("/status{query}"),
            path => format!("/{path}"),
        };
        Ok(Url { host: host.to_owned(), port, authority: authority.to_owned(), path })
    }
}

/// The time is one for all of it, looking up the name included. What is not over by then is left to end with the process.
fn get(url: Url, patience: Duration) -> Result<String, String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let work = move || drop(sender.send(ask(&url, patience)));
    std::thread::Builder::new().name("plan-from".into()).spawn(work).map_err(say)?;
    receiver
        .recv_timeout(patience)
        .unwrap_or_else(|_| Err(format!("no whole answer within {}", humantime::format_duration(patience))))
}

/// HTTP/1.0, so that the body is what comes until the end.
fn ask(url: &Url, patience: Duration) -> Result<String, String> {
    let addresses: Vec<_> = (url.host.as_str(), url.port).to_socket_addrs().map_err(say)?.collect();
    let mut stream = Err("no such host".to_owned());
    for address in &addresses {
        // A share of the time for each: one that is silent leaves the others theirs.
        stream = TcpStream::connect_timeout(address, patience / addresses.len() as u32).map_err(say);
        if stream.is_ok() {
            break;
        }
    }
    let mut stream = stream?;
    // In one piece.
    let Url { authority, path, .. } = url;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(say)?;
    let answer = whole(stream)?;
    let not_http = "the answer is not HTTP";
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(not_http)?;
    let status = head.lines().next().filter(|line| line.starts_with("HTTP/")).ok_or(not_http)?;
    match status.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!("the answer is {}", status.escape_debug())),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    fn parsed(text: &str) -> Option<(String, u16, String)> {
        Url::parse(text).ok().map(|url| (url.host, url.port, url.path))
    }

    #[test]
    fn urls_are_taken_apart_and_have_a_default_port() {
        for (text, host, port, path) in [
            ("[::1]", "::1", 80, "/status"),
            ("[::1]:9464", "::1", 9464, "/status"),
            ("[::1]:9464/", "::1", 9464, "/status"),
            ("localhost", "localhost", 80, "/status"),
            ("localhost:/x", "localhost", 80, "/x"),
            ("127.0.0.1:9464/a/b?c=d#e", "127.0.0.1", 9464, "/a/b?c=d"),
            ("127.0.0.1:9464?c=/", "127.0.0.1", 9464, "/status?c=/"),
        ] {
            assert_eq!(parsed(text), Some((host.into(), port, path.into())), "{text}");
        }
        for wrong in [
            "",
            "/status",
            ":80",
            "::1",
            "[::1",
            "[::1]9464",
            "[]",
            "h:x",
            "h:+1",
            "h:0",
            "h:65536",
            "u@h",
            "h/\r\nx",
            "h /",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_server_that_drips_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(b"H").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let begun = Instant::now();
        let why = get(url, Duration::from_millis(400)).unwrap_err();
        assert_eq!(why, "no whole answer within 400ms");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}
