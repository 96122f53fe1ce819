//! `prewarm schema`

use std::process::ExitCode;

use super::{exit, fail};
use crate::contract::schema::{self, Message};

#[derive(clap::Args)]
pub struct Args {
    /// Which message
    message: Message,
}

pub fn main(args: Args) -> ExitCode {
    match serde_json::to_string_pretty(&schema::of(args.message)) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(exit::FAILURE, error),
    }
}
