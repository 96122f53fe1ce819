//! `prewarm schema`

use std::process::ExitCode;

use clap::builder::PossibleValue;

use super::{exit, fail};
use crate::contract::asyncapi;
use crate::contract::schema::{self, Message};
use crate::contract::topology::Names;

#[derive(clap::Args)]
pub struct Args {
    /// Which message; `asyncapi`: all of them, with exchanges, queues and properties, as an AsyncAPI 3.0 document
    what: What,
    /// What the names of exchanges and queues start with, in that document
    #[arg(long, default_value = "prewarm")]
    prefix: String,
}

/// What there is to print.
#[derive(Clone, Copy)]
enum What {
    Message(Message),
    AsyncApi,
}

impl clap::ValueEnum for What {
    fn value_variants<'a>() -> &'a [What] {
        use Message::{Artifact, Cancel, Cancelling, Job, Log, Result, Started};
        const ALL: [What; 8] = [
            What::Message(Job),
            What::Message(Started),
            What::Message(Log),
            What::Message(Artifact),
            What::Message(Result),
            What::Message(Cancel),
            What::Message(Cancelling),
            What::AsyncApi,
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            What::Message(message) => message.to_possible_value(),
            What::AsyncApi => {
                Some(PossibleValue::new("asyncapi").help("All of the contract, as AsyncAPI 3.0"))
            }
        }
    }
}

pub fn main(args: Args) -> ExitCode {
    let value = match args.what {
        What::Message(message) => schema::of(message).to_value(),
        What::AsyncApi => asyncapi::document(&Names::new(args.prefix)),
    };
    match serde_json::to_string_pretty(&value) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(exit::FAILURE, error),
    }
}
