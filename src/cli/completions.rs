//! `prewarm completions`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, exit, fail};

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Args {
    /// The shell to complete commands in
    shell: Option<Shell>,
    /// Write manual pages into this directory instead, which must exist: prewarm.1 and one for each verb
    #[arg(long, value_name = "DIR")]
    man: Option<PathBuf>,
}

pub fn main(args: Args) -> ExitCode {
    let mut command = Cli::command();
    let written = match (args.shell, args.man) {
        (Some(shell), _) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "prewarm", &mut script);
            std::io::stdout().write_all(&script).map_err(|e| e.to_string())
        }
        (None, Some(directory)) => clap_mangen::generate_to(command, &directory)
            .map_err(|e| format!("writing manual pages to {}: {e}", directory.display())),
        // The group has one of them.
        (None, None) => Ok(()),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(exit::FAILURE, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verbs() -> Vec<String> {
        Cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect()
    }

    #[test]
    fn every_shell_learns_every_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "prewarm", &mut script);
            let script = String::from_utf8(script).unwrap();
            for verb in verbs() {
                assert!(script.contains(&verb), "{shell}: {verb}");
            }
        }
    }

    #[test]
    fn every_verb_has_a_manual_page() {
        let directory = std::env::temp_dir().join(format!("prewarm-man-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&directory).unwrap();
        let written = main(Args { shell: None, man: Some(directory.clone()) });
        assert_eq!(format!("{written:?}"), format!("{:?}", ExitCode::SUCCESS));
        assert!(std::fs::read_to_string(directory.join("prewarm.1")).unwrap().contains(".TH prewarm 1"));
        for verb in verbs() {
            assert!(directory.join(format!("prewarm-{verb}.1")).is_file(), "{verb}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
