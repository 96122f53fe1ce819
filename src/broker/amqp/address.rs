//! The broker's URLs: what lapin is given of them, what may be shown, and which is tried next.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lapin::uri::AMQPUri;

use crate::broker::BrokerError;
use crate::config::{BrokerConfig, TlsConfig};

/// RabbitMQ's default. What comes may have a header as long as its publisher's frames, and a header is not split.
const FRAME_MAX: u32 = 128 * 1024;

/// What we send has short headers: here 32 KiB do. lapin keeps two buffers of 32 frames for each connection. RabbitMQ 4.1 and
/// newer refuse less than 8 KiB.
const FRAME_MAX_SENDING: u32 = 32 * 1024;

/// The URL without user, password and query: what may appear in logs, errors and `prewarm check`.
///
/// Also for what is no valid URL, where a parser would give up: all between the scheme and the last `@` is
/// cut, and all from the first `?` or `#` after it.
#[must_use]
pub fn redacted(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None => ("", url),
    };
    let shown = rest.rsplit_once('@').map_or(rest, |(_, shown)| shown);
    let shown = shown.split(['?', '#']).next().unwrap_or_default();
    if scheme.is_empty() { shown.to_owned() } else { format!("{scheme}://{shown}") }
}

/// Where the broker is: the nodes of one cluster, any of which will do.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    all: Vec<Address>,
    /// The one that worked last, and is tried first therefore.
    last: usize,
}

impl Addresses {
    /// Those that are configured.
    pub(crate) fn of(config: &BrokerConfig) -> Result<Addresses, BrokerError> {
        let tls = Arc::new(config.tls.clone());
        let parse = |url: &String| Address::parse(url, config.heartbeat, &tls);
        Ok(Addresses { all: config.urls.iter().map(parse).collect::<Result<_, _>>()?, last: 0 })
    }

    /// For a connection that only sends.
    pub(crate) fn for_sending(&self) -> Addresses {
        let mut addresses = self.clone();
        for address in &mut addresses.all {
            let frame_max = &mut address.uri.query.frame_max;
            *frame_max = frame_max.map(|own| if own == FRAME_MAX { FRAME_MAX_SENDING } else { own });
        }
        addresses
    }

    /// All, in the order in which to try them.
    pub(crate) fn in_turn(&self) -> Vec<Address> {
        let (before, from) = self.all.split_at(self.last);
        from.iter().chain(before).cloned().collect()
    }

    /// The `turn`-th of [`Addresses::in_turn`] worked.
    pub(crate) fn worked(&mut self, turn: usize) {
        self.last = (self.last + turn) % self.all.len().max(1);
    }

    /// The one that worked last doesn't serve: it is tried last.
    pub(crate) fn pass_over(&mut self) {
        self.worked(1);
    }

    /// Whether there is only one.
    pub(crate) fn is_single(&self) -> bool {
        self.all.len() == 1
    }
}

/// What to say when none of several addresses worked.
pub(crate) fn none_worked(mut errors: Vec<BrokerError>) -> BrokerError {
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let mut reasons: Vec<String> = Vec::new();
    for reason in errors.iter().map(ToString::to_string) {
        // What is wrong with exchanges and queues is so on every node.
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    BrokerError::NoAddress(reasons.join("; "))
}

/// A parsed URL with our settings in it. Its `Debug` and `Display` show no secret.
#[derive(Clone)]
pub(crate) struct Address {
    uri: AMQPUri,
    shown: String,
    tls: Arc<TlsConfig>,
}

impl Address {
    fn parse(url: &str, heartbeat: Duration, tls: &Arc<TlsConfig>) -> Result<Address, BrokerError> {
        let shown = redacted(url);
        // The parser's message can quote the URL, password included.
        let fault = |reason: &str| BrokerError::Connect { url: shown.clone(), reason: reason.to_owned() };
        let mut uri: AMQPUri = url.parse().map_err(|_| {
            fault(
                "not a broker URL; write amqp://USER:PASSWORD@HOST:PORT/VHOST (or amqps://), with special \
                 characters percent-encoded: the default vhost is %2f",
            )
        })?;
        if let Some(host) = ipv6_host(url) {
            // lapin's parser knows no IPv6 literals and would silently connect to localhost.
            uri.authority.host = host;
        }
        let seconds = heartbeat.as_secs_f64().ceil().clamp(1.0, f64::from(u16::MAX));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped above")]
        let seconds = seconds as u16;
        uri.query.heartbeat = Some(seconds);
        uri.query.frame_max.get_or_insert(FRAME_MAX);
        Ok(Address { uri, shown, tls: tls.clone() })
    }

    pub(crate) fn uri(&self) -> AMQPUri {
        self.uri.clone()
    }

    pub(crate) fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    pub(crate) fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    pub(crate) fn host(&self) -> &str {
        &self.uri.authority.host
    }

    /// What matters if [`Address::uri`] says `amqps`.
    pub(crate) fn tls(&self) -> &TlsConfig {
        &self.tls
    }

    /// The name that the broker's certificate must be for.
    pub(crate) fn server_name(&self) -> &str {
        self.tls.server_name.as_deref().unwrap_or(self.host())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn ipv6_host(url: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (literal, _) = host.strip_prefix('[')?.split_once(']')?;
    Some(literal.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str, heartbeat: Duration) -> Result<Address, BrokerError> {
        Address::parse(url, heartbeat, &Arc::default())
    }

    #[test]
    fn the_one_that_worked_last_is_tried_first() {
        let all =
            ["a", "b", "c"].map(|host| parse(&format!("amqp://{host}"), Duration::from_secs(1)).unwrap());
        let mut addresses = Addresses { all: all.into(), last: 0 };
        let hosts = |addresses: &Addresses| -> String {
            addresses.in_turn().iter().map(|address| address.host().to_owned()).collect()
        };
        assert_eq!(hosts(&addresses), "abc");
        addresses.worked(2);
        assert_eq!(hosts(&addresses), "cab");
        addresses.worked(0);
        assert_eq!(hosts(&addresses), "cab");
        addresses.worked(2);
        assert_eq!(hosts(&addresses), "bca");
        addresses.pass_over();
        assert_eq!(hosts(&addresses), "cab");
    }

    #[test]
    fn what_failed_everywhere_alike_is_said_once() {
        let refused =
            |host: &str| BrokerError::Connect { url: format!("amqp://{host}"), reason: "refused".into() };
        let topology = || BrokerError::Topology("queue 'q' differs".into());
        assert_eq!(none_worked(vec![refused("a")]).to_string(), "broker amqp://a: refused");
        assert_eq!(
            none_worked(vec![refused("a"), topology(), refused("b"), topology()]).to_string(),
            "no address of the broker works: broker amqp://a: refused; broker topology: queue 'q' differs; broker \
             amqp://b: refused"
        );
    }

    #[test]
    fn nothing_secret_is_shown() {
        for (url, shown) in [
            ("amqp://guest:s3cret@127.0.0.1:5672/%2f", "amqp://127.0.0.1:5672/%2f"),
            ("amqps://u:p%40ss@mq.example.org/jobs?heartbeat=5", "amqps://mq.example.org/jobs"),
            ("amqp://u:p@ss/w@host/v", "amqp://host/v"),
            ("amqp://host", "amqp://host"),
            ("amqp://token@host/v", "amqp://host/v"),
            ("amqp://u:s3cret@[::1]:5672/v", "amqp://[::1]:5672/v"),
            ("u:s3cret@host", "host"),
            ("amqp://host/v?password=s3cret", "amqp://host/v"),
            ("", ""),
        ] {
            assert_eq!(redacted(url), shown, "{url}");
        }
    }

    #[test]
    fn neither_the_address_nor_its_errors_show_the_password() {
        let address = parse("amqp://u:s3cret@host/v", Duration::from_secs(5)).unwrap();
        assert_eq!(format!("{address} {address:?}"), "amqp://host/v amqp://host/v");
        let error = parse("http://u:s3cret@host/v", Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().contains("not a broker URL"), "{error}");
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }

    #[test]
    fn heartbeat_and_frame_size_are_set() {
        let query = |ms| parse("amqp://h", Duration::from_millis(ms)).unwrap().uri().query;
        assert_eq!(query(10_000).heartbeat, Some(10));
        assert_eq!(query(1_500).heartbeat, Some(2));
        assert_eq!(query(0).heartbeat, Some(1), "0 would turn heartbeats off");
        assert_eq!(query(1).frame_max, Some(FRAME_MAX));
    }

    #[test]
    fn ipv6_literals_are_understood() {
        let address = parse("amqp://u:p@[::1]:5671/v", Duration::from_secs(1)).unwrap();
        assert_eq!(address.host(), "::1");
        assert_eq!(address.uri().authority.port, 5671);
    }
}
