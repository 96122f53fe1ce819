//! What becomes of the pools and of the jobs when somebody lays hands on containers, the engine itself, the worker, or the
//! image, while jobs keep coming.

mod flow;
mod idle;
mod leftovers;
mod outage;
mod remote;
mod roll;
mod shortcut;
#[path = "../support/mod.rs"]
mod support;
