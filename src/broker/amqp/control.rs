//! Reads what is sent to all workers: a queue of this connection's own, bound to the control exchange.
//!
//! The queue is exclusive, so it is gone with the connection; what is sent while there is none is not seen. That is
//! the nature of a request to whoever is there now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use super::link::{Fault, Link, short};
use super::properties;
use super::{Shared, channel_backoff};
use crate::broker::{Control, Request};
use crate::retry::Backoff;

pub(super) struct AmqpControl {
    shared: Arc<Shared>,
    /// Kept between calls of `next`, which may be given up at any time.
    opening: Option<BoxFuture<'static, Session>>,
    session: Option<Session>,
    backoff: Backoff,
    delay: Duration,
}

struct Session {
    since: Instant,
    link: Arc<Link>,
    channel: Channel,
    requests: lapin::Consumer,
}

impl AmqpControl {
    pub(super) fn new(shared: Arc<Shared>) -> AmqpControl {
        let backoff = channel_backoff();
        AmqpControl { shared, opening: None, session: None, backoff, delay: Duration::ZERO }
    }

    async fn session(&mut self) -> &mut Session {
        let session = if let Some(session) = self.session.take() {
            session
        } else {
            let opening =
                self.opening.get_or_insert_with(|| Box::pin(Session::open(self.shared.clone(), self.delay)));
            let session = opening.await;
            self.opening = None;
            session
        };
        self.session.insert(session)
    }
}

#[async_trait]
impl Control for AmqpControl {
    async fn next(&mut self) -> Request {
        loop {
            let session = self.session().await;
            let lost = tokio::select! {
                biased;
                request = session.requests.next() => match request {
                    Some(Ok(request)) => {
                        self.backoff.reset();
                        return Request {
                            body: Bytes::from(request.data),
                            properties: properties::decode(&request.properties),
                        };
                    }
                    Some(Err(error)) => Fault::Refused(error).to_string(),
                    None => "the broker cancelled the consumer".to_owned(),
                },
                reason = session.link.lost() => reason,
            };
            tracing::debug!(reason = lost, "not listening to the control exchange; trying again");
            if let Some(Session { since, link, channel, .. }) = self.session.take() {
                self.delay = self.backoff.next_after(since.elapsed());
                link.close_channel(&channel).await;
            }
        }
    }
}

impl Session {
    async fn open(shared: Arc<Shared>, delay: Duration) -> Session {
        let mut backoff = channel_backoff();
        let mut told = false;
        tokio::time::sleep(delay).await;
        loop {
            // The exchange is declared when the publishing line comes up.
            shared.publish.link().await;
            let link = shared.consume.link().await;
            match Session::listen(&shared, link.clone()).await {
                Ok(session) => return session,
                Err(fault) => {
                    if fault.reply_code() == Some(403) && !std::mem::replace(&mut told, true) {
                        tracing::warn!(%fault, "can't be told to cancel jobs: that needs the permissions configure, write and read \
                             on names that start with 'amq.gen-'");
                    } else {
                        tracing::debug!(%fault, "can't listen to the control exchange; trying again");
                    }
                    if fault.reply_code() == Some(404) {
                        shared.repair(&link).await;
                    }
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn listen(shared: &Shared, link: Arc<Link>) -> Result<Session, Fault> {
        let channel = link.channel().await?;
        let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let declare = channel.queue_declare(short(""), exclusive, FieldTable::default());
        let queue = link.ask("declaring a control queue", declare).await?;
        let bind = channel.queue_bind(
            queue.name().clone(),
            short(&shared.names.control()),
            short(""),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        link.ask("binding a control queue", bind).await?;
        let consume = channel.basic_consume(
            queue.name().clone(),
            short(""),
            BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() },
            FieldTable::default(),
        );
        let requests = link.ask("listening to the control exchange", consume).await?;
        Ok(Session { since: Instant::now(), link, channel, requests })
    }
}
