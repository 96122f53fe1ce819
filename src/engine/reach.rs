//! How the engine is reached: its address, and a client for it.

use std::time::Duration;

use bollard::errors::Error as ClientError;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker as Client};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::{EngineError, Fault, Op};
use crate::config::EngineConfig;

/// When nothing has come from another host for so long, its kernel is asked whether it is there: so often, and so many times. A job's
/// stream may be silent for hours, and a host that lost its power, or a firewall that forgot the connection, never says so. Docker
/// asks its clients the same way (Go's `net.ListenConfig`).
const SILENT_FOR: Duration = Duration::from_secs(15);
const ASKED_EVERY: Duration = Duration::from_secs(10);
const ASKED: u32 = 3;

/// Where Docker is unless somebody says otherwise.
const DOCKERS_OWN: &str = "unix:///var/run/docker.sock";

/// Seconds; the configured ones take their place.
const REQUEST_TIMEOUT: u64 = 60;

/// A client for the engine that is configured, and where that is.
///
/// # Errors
/// [`Fault::Unreachable`] if the address can't be one.
pub(super) fn client(config: &EngineConfig) -> Result<(Client, String), EngineError> {
    let host = config.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty()));
    let host = host.unwrap_or_else(|| DOCKERS_OWN.into());
    let verify = std::env::var_os("DOCKER_TLS_VERIFY").is_some_and(|v| !v.is_empty());
    let authority = host.strip_prefix("tcp://").or_else(|| host.strip_prefix("http://"));
    let client = match authority {
        _ if wants_tls(&host, verify) => over_tls(&host),
        Some(authority) => over_tcp(authority.trim_end_matches('/')).map_err(|e| e.to_string()),
        None => Client::connect_with_host(&host).map_err(|e| e.to_string()),
    };
    match client {
        Ok(client) => Ok((client.with_timeout(config.timeout), host)),
        Err(reason) => Err(EngineError {
            op: Op::Info,
            subject: "at start".into(),
            fault: Fault::Unreachable { host, reason },
        }),
    }
}

/// Whether an address is one for TLS; `verify`: whether `DOCKER_TLS_VERIFY` is set, which Docker's own client goes by.
fn wants_tls(host: &str, verify: bool) -> bool {
    host.starts_with("https://") || (host.starts_with("tcp://") && verify)
}

fn over_tls(host: &str) -> Result<Client, String> {
    if cfg!(feature = "engine-tls") {
        return Client::connect_with_host(host).map_err(|e| e.to_string());
    }
    Err("it is to be spoken to over TLS, and this prewarm was built without `--features engine-tls`".into())
}

/// As the library's own, but for what is asked of the connections.
fn over_tcp(authority: &str) -> Result<Client, ClientError> {
    let mut connector = HttpConnector::new();
    connector.set_keepalive(Some(SILENT_FOR));
    connector.set_keepalive_interval(Some(ASKED_EVERY));
    connector.set_keepalive_retries(Some(ASKED));
    // While something of ours isn't acknowledged the kernel doesn't ask, but sends it again, for a quarter of an hour.
    connector.set_tcp_user_timeout(Some(SILENT_FOR + ASKED_EVERY * ASKED));
    // Frames are short, and wait for nothing.
    connector.set_nodelay(true);
    let http = legacy::Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let transport = move |request: BollardRequest| {
        let answer = http.request(request);
        async move { answer.await.map_err(ClientError::from) }
    };
    let address = format!("http://{authority}");
    Client::connect_with_custom_transport(transport, Some(address), REQUEST_TIMEOUT, API_DEFAULT_VERSION)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    fn at(host: &str) -> Result<(Client, String), EngineError> {
        client(&EngineConfig { host: Some(host.into()), ..EngineConfig::default() })
    }

    #[test]
    fn an_engine_behind_tls_is_not_spoken_to_in_the_clear() {
        assert!(wants_tls("https://h:2376", false));
        assert!(wants_tls("tcp://h:2376", true));
        assert!(!wants_tls("tcp://h:2375", false));
        assert!(!wants_tls("unix:///var/run/docker.sock", true));
        #[cfg(not(feature = "engine-tls"))]
        {
            let refused = at("https://127.0.0.1:2376").err().unwrap().to_string();
            assert!(refused.contains("--features engine-tls"), "{refused}");
        }
    }

    /// The kernel's table says which timer a connection has: 2 is that of keepalive (`Documentation/networking/proc_net_tcp.rst`).
    #[tokio::test]
    async fn another_host_is_asked_whether_it_is_still_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let (engine, _) = at(&format!("tcp://{here}")).unwrap();
        let request = tokio::spawn(async move { engine.ping().await });
        let (_silent, client) =
            tokio::task::spawn_blocking(move || listener.accept().unwrap()).await.unwrap();
        let ends = format!(" 0100007F:{:04X} 0100007F:{:04X} 01 ", client.port(), here.port());
        let begun = Instant::now();
        loop {
            let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
            let line =
                table.lines().find(|line| line.contains(&ends)).unwrap_or_else(|| panic!("{ends}: {table}"));
            if line.split_whitespace().nth(5).is_some_and(|timer| timer.starts_with("02:")) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{line}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        request.abort();
    }
}
