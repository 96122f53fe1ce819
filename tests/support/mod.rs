//! What tests over the real engine and the real broker have in common.
//!
//! Each test program compiles this for itself and uses a part of it.
#![allow(dead_code, reason = "no test program uses all of it")]

pub mod broker;
pub mod docker;
pub mod engine;
pub mod gate;
pub mod marks;
pub mod own_broker;
pub mod own_engine;
pub mod schema;
pub mod worker;
