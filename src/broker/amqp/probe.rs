//! One look at the broker, for `prewarm check`.

use std::time::Duration;

use lapin::uri::AMQPScheme;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address::Address;
use super::link::Link;
use crate::broker::BrokerError;
use crate::broker::topology::{Missing, State, Topology};
use crate::config::{BrokerConfig, TopologyMode};
use crate::contract::PoolName;
use crate::contract::topology::Names;

/// What `prewarm check` tells about the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// The broker's address, without secrets.
    pub address: String,
    /// What answers there, if it said so.
    pub server: Option<Server>,
    /// What exists as needed, as in `queue 'prewarm.dead'`.
    pub present: Vec<String>,
    /// What doesn't exist. With `topology = "declare"` the worker makes it; with `"check"` it is a fault.
    pub missing: Vec<String>,
    /// What exists but not as needed: sentences that say what differs and what to do.
    pub conflicts: Vec<String>,
    /// Who is to make what is missing.
    pub mode: TopologyMode,
}

/// A broker's name for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `RabbitMQ`
    pub product: String,
    /// As in `3.10.8`.
    pub version: String,
}

impl ProbeReport {
    /// Whether a worker would work with this broker.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.conflicts.is_empty() && (self.mode == TopologyMode::Declare || self.missing.is_empty())
    }
}

/// Connects once, and looks without changing anything.
///
/// # Errors
/// [`BrokerError::Connect`] if the broker can't be reached or doesn't let us in.
pub async fn probe<'a>(
    config: &BrokerConfig,
    pools: impl IntoIterator<Item = &'a PoolName>,
) -> Result<ProbeReport, BrokerError> {
    let address = Address::parse(&config.url, config.heartbeat)?;
    let names = Names::new(&config.prefix);
    let topology = Topology::new(&names, pools, config.delivery_limit, &config.retry_delays);
    let link = Link::open(&address, "prewarm check", config.timeout).await?;
    let findings = topology.survey(&link, config.topology, Missing::Report).await;
    link.close().await;
    let mut report = ProbeReport {
        address: address.to_string(),
        server: server(&address, config.timeout).await,
        present: Vec::new(),
        missing: Vec::new(),
        conflicts: Vec::new(),
        mode: config.topology,
    };
    for finding in findings? {
        match finding.state {
            State::Present => report.present.push(finding.what),
            State::Missing => report.missing.push(finding.what),
            State::Conflict(why) => report.conflicts.push(why),
        }
    }
    Ok(report)
}

/// The server's properties from its `connection.start`. lapin keeps those to itself, so this says hello once more and
/// reads the first frame. Not over TLS: a version isn't worth a second TLS client.
async fn server(address: &Address, within: Duration) -> Option<Server> {
    let uri = address.uri();
    if uri.scheme == AMQPScheme::AMQPS {
        return None;
    }
    let greeting = async {
        let mut stream = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await.ok()?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await.ok()?;
        let mut header = [0; 7]; // type, channel, size
        stream.read_exact(&mut header).await.ok()?;
        let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
        let mut payload = vec![0; usize::try_from(size).ok()?.min(64 * 1024)];
        stream.read_exact(&mut payload).await.ok()?;
        Some(payload)
    };
    let payload = timeout(within, greeting).await.ok()??;
    Some(Server { product: property(&payload, "product")?, version: property(&payload, "version")? })
}

/// A string of an AMQP table: name (with its length), `S`, length, bytes.
fn property(table: &[u8], name: &str) -> Option<String> {
    let mut key = vec![u8::try_from(name.len()).ok()?];
    key.extend(name.as_bytes());
    key.push(b'S');
    let at = table.windows(key.len()).position(|window| window == key)? + key.len();
    let length = table.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)?;
    let value = table.get(at + 4..)?.get(..usize::try_from(length).ok()?)?;
    String::from_utf8(value.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_found_and_garbage_is_not() {
        let table = b"\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x063.10.8";
        assert_eq!(property(table, "product").as_deref(), Some("RabbitMQ"));
        assert_eq!(property(table, "version").as_deref(), Some("3.10.8"));
        assert_eq!(property(table, "platform"), None);
        assert_eq!(property(b"\x07versionS\xff\xff\xff\xff3", "version"), None);
        assert_eq!(property(b"\x07versionS\x00", "version"), None);
    }
}
