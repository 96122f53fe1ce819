//! Init, the first process of every warm container, as the worker sees it: its binary and its protocol.
//!
//! The program itself is `main.rs` beside this file, with `input.rs`, `output.rs`, `job.rs`, `child.rs`, `home.rs`,
//! `files.rs`, `artifacts.rs` and `sys.rs`, and for isolation `namespace` `sandbox.rs`, `mounts.rs` and `user.rs`. It is compiled by `build.rs`, apart from
//! the worker: it has no standard library, no heap and no thread beside its one. [`wire`], [`parcel`] and [`glob`] are
//! compiled into both.

pub mod glob;
pub mod parcel;
pub mod wire;

/// The static executable for this worker's own architecture.
pub static BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/prewarm-init"));
