//! prewarm takes job messages from RabbitMQ, runs each in a fresh container that was made ready beforehand, and
//! sends output and result to a reply queue.
//!
//! # A job's journey
//!
//! 1. [`broker`] gives a `Delivery` to a seat of the [`worker`]; each seat has one at a time.
//! 2. [`contract::job`] decodes it, or says exactly what is wrong with it.
//! 3. [`pool`] leases a container: one that is idle (a hit), or the next that becomes ready (a miss). Whoever leases it
//!    gets the stream to its init, or the socket past the engine ([`engine::shortcut`]); no engine is asked. How many are idle follows from how jobs come
//!    ([`pool::planner`]).
//! 4. [`launch`] says what `docker run` would have executed; [`attempt`] sends it down the stream as one START frame and
//!    follows what comes back, with the deadline in hand. [`init`] is what sits at the other end: the container's PID 1.
//! 5. [`output`] masks secrets ([`redact`]; the job's own and those that its pool gives it, [`secrets`]) and cuts what the job prints into pieces; [`replies`] publishes them side by side with the run.
//!    A job's files go ahead of its stdin, and [`artifacts`] come back when it is over, in pieces of the same stream.
//! 6. EXITED releases the container. The pool retires it, and has already begun to replace it; or it serves again, where init
//!    gives each job a world of its own (`init/sandbox.rs`), under a filter that [`seccomp`] makes.
//! 7. [`outcome`] judges the run and decides what becomes of the delivery.
//! 8. The result is published and confirmed; then the delivery is settled. At least once, never lost. If its channel was lost
//!    meanwhile the broker gives it out again, and if that is to this worker, it is known here and not run twice. Nor is a job
//!    that its publisher publishes again.
//!
//! What a worker tells of itself meanwhile: [`status`], [`failures`], [`running`], which [`http`] shows to programs and people; [`onlookers`] see what a job prints without its
//! noticing, and collectors of traces its spans ([`trace`]). Jobs that the broker gave up itself are answered by `worker/died.rs`.
//!
//! # Who knows whom
//!
//! ```text
//!   contract ◄── engine ◄── pool ◄── attempt ◄── worker ◄── app ◄── cli
//!   contract ◄── broker ◄─────────── replies ◄──┘
//! ```
//!
//! The pool never sees the broker; the broker never sees a container. What is pure is apart from what does
//! I/O: [`pool::slots`], [`pool::planner`] (which [`fleet`] runs in simulated time, for `prewarm simulate`), [`output`], [`artifacts`], [`redact`], [`outcome`], [`launch`], [`engine::convert`],
//! [`contract`], and [`seccomp`], which says what the kernel lets a job call when a container serves many.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
// A worker that panics loses its jobs to a redelivery: what can't happen says so, and why, where it stands.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::todo, clippy::dbg_macro)]
// Each await may be the last: a lock must not be held over one.
#![deny(clippy::await_holding_lock)]

pub mod app;
pub mod artifacts;
pub mod attempt;
pub mod broker;
pub mod cli;
pub mod config;
pub mod contract;
pub mod engine;
pub mod failures;
pub mod fleet;
pub mod http;
pub mod init;
pub mod launch;
pub mod metrics;
pub mod onlookers;
pub mod outcome;
pub mod output;
pub mod pool;
pub mod redact;
pub mod replies;
pub mod retry;
pub mod running;
pub mod seccomp;
pub mod secrets;
pub mod service;
pub mod status;
pub mod telemetry;
pub mod trace;
pub mod worker;
