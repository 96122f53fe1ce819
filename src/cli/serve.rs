//! `prewarm serve`

use std::process::ExitCode;

use super::{ConfigArgs, block_on, exit, fail, load};
use crate::{app, config};

pub fn main(args: &ConfigArgs) -> ExitCode {
    let loaded = match load(args) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let reload = || config::load(args.config.as_deref(), config::environment());
    match block_on(app::serve(loaded.config, reload)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(exit::FAILURE, format!("{error:#}")),
        Err(code) => code,
    }
}
