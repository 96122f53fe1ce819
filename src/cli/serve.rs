//! `prewarm serve`

use std::process::ExitCode;

use super::{ConfigArgs, block_on, exit, fail, load};
use crate::{app, config, trace};

pub fn main(args: &ConfigArgs) -> ExitCode {
    let loaded = match load(args) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    // Before the runtime: its client has one of its own.
    let exporter = match trace::Exporter::start(&loaded.config.worker.name) {
        Ok(exporter) => exporter,
        Err(why) => return fail(exit::CONFIG, why),
    };
    let reload = || config::load(args.config.as_deref(), config::environment());
    let done = block_on(app::serve(loaded.config, reload));
    exporter.stop();
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(exit::FAILURE, format!("{error:#}")),
        Err(code) => code,
    }
}
