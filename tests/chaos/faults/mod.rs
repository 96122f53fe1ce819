//! The faults, each its own function: it injects one while jobs keep coming, and closes the books.

pub mod broker;
pub mod cluster;
pub mod container;
pub mod engine;
pub mod size;
pub mod worker;
