//! One look at the broker, at each of its addresses, for `prewarm check`.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use lapin::uri::AMQPScheme;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::address::{Address, Addresses};
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
    /// The virtual host.
    pub vhost: String,
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

/// Connects once to each address, and looks without changing anything.
///
/// # Errors
/// For an address, [`BrokerError::Connect`] if the broker can't be reached there or doesn't let us in.
pub async fn probe<'a>(
    config: &BrokerConfig,
    pools: impl IntoIterator<Item = &'a PoolName>,
) -> Vec<Result<ProbeReport, BrokerError>> {
    let addresses = match Addresses::of(config) {
        Ok(addresses) => addresses.in_turn(),
        Err(error) => return vec![Err(error)],
    };
    let names = Names::new(&config.prefix);
    let topology = Topology::of(config, &names, pools);
    let mut reports = Vec::new();
    for address in addresses {
        reports.push(probe_one(config, &topology, &address).await);
    }
    reports
}

async fn probe_one(
    config: &BrokerConfig,
    topology: &Topology,
    address: &Address,
) -> Result<ProbeReport, BrokerError> {
    let link = Link::open(address, "prewarm check", config.timeout).await?;
    let findings = topology.survey(&link, config.topology, Missing::Report).await;
    link.close().await;
    let mut report = ProbeReport {
        address: address.to_string(),
        vhost: address.vhost().to_owned(),
        server: server(address.clone(), config.timeout).await,
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
/// reads the first frame.
async fn server(address: Address, within: Duration) -> Option<Server> {
    let greeted = tokio::task::spawn_blocking(move || greeting(&address, within)).await;
    // That it doesn't answer a second time isn't worth a fault.
    let payload = greeted.ok()?.ok()?;
    Some(Server { product: property(&payload, "product")?, version: property(&payload, "version")? })
}

fn greeting(address: &Address, within: Duration) -> io::Result<Vec<u8>> {
    let uri = address.uri();
    let mut tried = Err(io::ErrorKind::NotFound.into());
    for found in (uri.authority.host.as_str(), uri.authority.port).to_socket_addrs()? {
        tried = TcpStream::connect_timeout(&found, within);
        if tried.is_ok() {
            break;
        }
    }
    let stream = tried?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    match uri.scheme {
        AMQPScheme::AMQP => first_frame(stream),
        AMQPScheme::AMQPS => {
            let client = address.tls().client().map_err(io::Error::other)?;
            let name = ServerName::try_from(address.server_name().to_owned()).map_err(io::Error::other)?;
            let client = ClientConnection::new(Arc::new(client), name).map_err(io::Error::other)?;
            first_frame(StreamOwned::new(client, stream))
        }
    }
}

/// The payload of the first frame that the server sends.
fn first_frame(mut stream: impl Read + Write) -> io::Result<Vec<u8>> {
    stream.write_all(b"AMQP\x00\x00\x09\x01")?;
    stream.flush()?;
    let mut header = [0; 7]; // type, channel, size
    stream.read_exact(&mut header)?;
    let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
    let mut payload = vec![0; usize::try_from(size).map_err(io::Error::other)?.min(64 * 1024)];
    stream.read_exact(&mut payload)?;
    Ok(payload)
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
