//! One AMQP connection, from its handshake to its end. Reconnecting is [`line`](super::line)'s affair.
//!
//! ```text
//!             ┌── connection.blocked ──► Blocked ──┐
//!  open ──► Flowing ◄── connection.unblocked ──────┤
//!             └──── error, close, silence ─────────┴──► Lost (for good)
//! ```

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::tcp::AsyncTcpStream;
use lapin::types::ShortString;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, ConnectionStatus, ErrorKind, Event};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::address::Address;
use super::explain::explain;
use crate::broker::BrokerError;
use crate::broker::topology::reply_code;

/// How often the status is looked at besides the events: lapin sends none for some orderly closes.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);

/// The same while it is being closed, which somebody waits for.
const ENDED_INTERVAL: Duration = Duration::from_millis(50);

/// AMQP's reply code.
const INTERNAL_ERROR: u16 = 541;

/// What a connection is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// All well.
    Flowing,
    /// The broker takes nothing more for now: memory or disk are short there.
    Blocked(String),
    /// Gone for good, and why.
    Lost(String),
}

/// An open connection. Dropping it closes it without ceremony.
pub(crate) struct Link {
    connection: Connection,
    flow: watch::Receiver<Flow>,
    breaker: Breaker,
    address: Address,
    timeout: Duration,
    complaints: Arc<watch::Sender<u32>>,
}

/// Why a request at the broker failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The connection is gone.
    Lost(String),
    /// No answer in time.
    Timeout { doing: &'static str, within: Duration },
    /// lapin's error, mostly the broker's refusal.
    Refused(lapin::Error),
}

impl Fault {
    /// The broker's AMQP reply code, if it answered with one.
    pub(crate) fn reply_code(&self) -> Option<u16> {
        match self {
            Fault::Refused(error) => reply_code(error),
            Fault::Lost(_) | Fault::Timeout { .. } => None,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Lost(reason) => write!(f, "connection lost: {reason}"),
            Fault::Timeout { doing, within } => write!(f, "no answer within {within:?} while {doing}"),
            Fault::Refused(error) => match error.kind() {
                ErrorKind::ProtocolError(error) => write!(f, "{}", error.get_message()),
                _ => write!(f, "{error}"),
            },
        }
    }
}

impl Link {
    /// Connects, with `name` to be seen in RabbitMQ's list of connections.
    pub(crate) async fn open(address: &Address, name: &str, within: Duration) -> Result<Link, BrokerError> {
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property(short("product"), env!("CARGO_PKG_NAME").into())
            .with_client_property(short("version"), env!("CARGO_PKG_VERSION").into());
        let breaker = Breaker::default();
        let error = |reason: String| BrokerError::Connect { url: address.to_string(), reason };
        let connecting = connect(address.clone(), properties, breaker.clone(), within);
        // lapin ignores the URI's connection_timeout here, and a peer that accepts and then says nothing
        // would hold it for ever.
        let connection = match timeout(within, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(fault)) => return Err(error(explain(address, &fault))),
            Err(_) => {
                breaker.cut();
                return Err(error(format!(
                    "no AMQP answer within {within:?}; is {} a broker's AMQP port, and is the broker alive?",
                    address.host()
                )));
            }
        };
        // The one listener of this connection: several would compete for events.
        let events = connection.events_listener();
        let (sender, flow) = watch::channel(Flow::Flowing);
        let complaints = Arc::new(watch::Sender::new(0));
        tokio::spawn(observe(events, connection.status().clone(), sender, complaints.clone()));
        Ok(Link { connection, flow, breaker, address: address.clone(), timeout: within, complaints })
    }

    /// The node answers, but didn't do what it was asked for. It may be cut off from the others of its cluster.
    pub(crate) fn complain(&self) {
        self.complaints.send_modify(|complaints| *complaints = complaints.saturating_add(1));
    }

    /// The node does what it is asked for.
    pub(crate) fn works(&self) {
        self.complaints.send_if_modified(|complaints| std::mem::replace(complaints, 0) > 0);
    }

    /// How often in a row it didn't, and tells of changes.
    pub(crate) fn complaints(&self) -> watch::Receiver<u32> {
        self.complaints.subscribe()
    }

    /// Where it leads to.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Opens a channel.
    pub(crate) async fn channel(&self) -> Result<Channel, Fault> {
        self.ask("opening a channel", self.connection.create_channel()).await
    }

    /// Awaits an answer of the broker, for as long as is configured and the connection lives.
    pub(crate) async fn ask<T>(
        &self,
        doing: &'static str,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Fault> {
        tokio::select! {
            biased;
            answer = request => answer.map_err(Fault::Refused),
            reason = self.lost() => Err(Fault::Lost(reason)),
            () = self.overdue() => Err(Fault::Timeout { doing, within: self.timeout }),
        }
    }

    /// Closes a channel. Nothing is left to be done if that fails: the broker forgets it with the connection.
    pub(crate) async fn close_channel(&self, channel: &Channel) {
        // Closing it twice is an error that lapin answers by ending the whole connection.
        if channel.status().connected() {
            let closing = self.ask("closing a channel", channel.close(200, short("OK"))).await;
            if let Err(fault) = closing {
                tracing::debug!(channel = channel.id(), %fault, "channel not closed in an orderly way");
            }
        }
    }

    /// Waits until the connection is gone, and says why.
    pub(crate) async fn lost(&self) -> String {
        let mut flow = self.flow.clone();
        let lost = flow.wait_for(|flow| matches!(flow, Flow::Lost(_))).await;
        match lost.as_deref() {
            Ok(Flow::Lost(reason)) => reason.clone(),
            // The observer ended without a word: only with the runtime.
            Ok(_) | Err(_) => "shut down".to_owned(),
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        matches!(*self.flow.borrow(), Flow::Lost(_))
    }

    /// Returns when a request that was sent just now is overdue. The clock doesn't run while the broker has us
    /// blocked: then nothing is read there, yet all that was sent is still handled after the unblock, so
    /// giving up on it would only double it.
    pub(crate) async fn overdue(&self) {
        let mut flow = self.flow.clone();
        loop {
            if flow.wait_for(|flow| !matches!(flow, Flow::Blocked(_))).await.is_err() {
                return;
            }
            let blocked = flow.wait_for(|flow| matches!(flow, Flow::Blocked(_)));
            if timeout(self.timeout, blocked).await.is_err() {
                return;
            }
        }
    }

    /// What the connection does now, and tells of changes.
    pub(crate) fn flow(&self) -> watch::Receiver<Flow> {
        self.flow.clone()
    }

    /// Says goodbye, for a bounded time, and ends the connection whatever the answer.
    pub(crate) async fn close(&self) {
        // lapin sends nothing while blocked, not even this, and the broker reads nothing.
        if *self.flow.borrow() == Flow::Flowing {
            let goodbye = self.connection.close(200, short("OK"));
            tokio::select! {
                _ = goodbye => {}
                () = self.ended() => {}
                () = tokio::time::sleep(self.timeout) => {
                    tracing::debug!(broker = %self.address, "no answer to connection.close");
                }
            }
        }
        self.breaker.cut();
    }

    /// Waits until lapin has ended the connection. It doesn't always tell who waits for `close`: of connections with a channel
    /// that was dropped just before, one in 640 never heard on a busy machine (lapin 4.12), and its thread was gone.
    async fn ended(&self) {
        let status = self.connection.status();
        let mut tick = interval(ENDED_INTERVAL);
        while !(status.errored() || status.closed()) {
            tick.tick().await;
        }
    }

    /// Puts a fault into the words of the seam.
    pub(crate) fn broker_error(&self, doing: &str, fault: &Fault) -> BrokerError {
        match *fault {
            Fault::Timeout { doing, within } => BrokerError::Timeout { doing, within },
            Fault::Lost(_) | Fault::Refused(_) => BrokerError::Connect {
                url: self.address.to_string(),
                reason: format!("{fault} while {doing}"),
            },
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.breaker.cut();
    }
}

/// Turns lapin's events into [`Flow`] until the connection is gone.
async fn observe(
    events: impl Stream<Item = Event>,
    status: ConnectionStatus,
    flow: watch::Sender<Flow>,
    complaints: Arc<watch::Sender<u32>>,
) {
    let mut events = std::pin::pin!(events);
    let mut tick = interval(STATUS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_error = None;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tick.tick() => None,
        };
        match event {
            Some(Event::ConnectionBlocked(reason)) => _ = flow.send_replace(Flow::Blocked(reason)),
            Some(Event::ConnectionUnblocked) => _ = flow.send_replace(Flow::Flowing),
            // Channels report their errors here too, so this alone doesn't mean the end.
            Some(Event::Error(error)) => {
                // How a node that can't reach a queue's majority ends the connection of who asks for it.
                if reply_code(&error) == Some(INTERNAL_ERROR) {
                    complaints.send_modify(|complaints| *complaints = complaints.saturating_add(1));
                }
                last_error = Some(Fault::Refused(error).to_string());
            }
            _ => {}
        }
        if !status.connected() {
            let reason = last_error.unwrap_or_else(|| "closed".to_owned());
            _ = flow.send_replace(Flow::Lost(reason));
            return;
        }
        if flow.is_closed() {
            return;
        }
    }
}

/// Lets us end a TCP connection that lapin still holds. lapin gives up on a connection that is being made only when
/// the peer does: each attempt at a silent peer would leave a thread and a socket behind.
#[derive(Clone, Default)]
struct Breaker(Arc<OnceLock<TcpStream>>);

impl Breaker {
    fn arm(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        _ = self.0.set(socket.try_clone_to_owned()?.into());
        Ok(())
    }

    fn cut(&self) {
        if let Some(socket) = self.0.get() {
            // An error means that it is disconnected already.
            _ = socket.shutdown(Shutdown::Both);
        }
    }
}

async fn connect(
    address: Address,
    properties: ConnectionProperties,
    breaker: Breaker,
    within: Duration,
) -> lapin::Result<Connection> {
    // Inline, so that the types of the runtime and the stream, which lapin doesn't export, are inferred.
    Connection::connector(
        address.uri(),
        lapin::runtime::default_runtime()?,
        async move |uri: AMQPUri, runtime| {
            let connecting = async {
                let host = (uri.authority.host.as_str(), uri.authority.port);
                let found: Vec<_> = tokio::net::lookup_host(host).await?.collect();
                // lapin sets TCP_NODELAY.
                let stream = AsyncTcpStream::connect(&runtime, found).await?;
                if let AsyncTcpStream::Plain(socket) = &stream {
                    breaker.arm(socket.get_ref().as_fd())?;
                }
                match uri.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => {
                        // Read anew each time: certificates are renewed.
                        let client = address.tls().client().map_err(io::Error::other)?;
                        stream.into_rustls(&client.into(), address.server_name()).await
                    }
                }
            };
            // Runs on a thread of lapin's, which nothing else would end.
            let stream =
                timeout(within, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            Ok(stream)
        },
        properties,
    )
    .await
}

/// AMQP's short string, at most 255 bytes; lapin panics on more. Names and ids that come from deliveries and from
/// a checked configuration fit, so what is cut here could only have been refused by the broker.
pub(crate) fn short(text: &str) -> ShortString {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    ShortString::try_new(&text[..end]).unwrap_or_default()
}
