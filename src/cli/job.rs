//! What a job is given on the command line; the same for `run` and `submit`.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::contract::PoolName;
use crate::contract::content::{self, Content, FILES_MAX, File, Files};

/// Most bytes of standard input, or of a file: RabbitMQ takes no larger message.
const CONTENT_MAX: u64 = 512 << 20;
/// Most bytes of one file of variables.
const ENV_FILE_MAX: u64 = 16 << 20;

#[derive(Args)]
pub(super) struct JobArgs {
    /// The pool
    pub(super) pool: PoolName,
    /// Set a variable of the job's environment; NAME alone takes it from this one
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Take variables from a file, as `docker run --env-file`: a line each, `#` for comments; -e goes over them
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// How long the job may run, as 90s or 30m
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(super) timeout: Option<Duration>,
    /// Give the job what is in this file as its standard input; `-` is this command's own
    #[arg(long, value_name = "FILE|-")]
    stdin: Option<PathBuf>,
    /// Short for `--stdin -`
    #[arg(long, short = 'i', conflicts_with = "stdin")]
    interactive: bool,
    /// Put a local file into the job's container, with its permission bits, before the entrypoint begins: what is before the first
    /// colon is the file (`-`: this command's standard input), what follows the path, absolute or from the working directory
    #[arg(long = "file", value_name = "SOURCE:PATH", value_parser = source, allow_hyphen_values = true)]
    files: Vec<Source>,
    /// Arguments for the entrypoint, in place of the image's CMD
    #[arg(last = true)]
    args: Vec<String>,
}

/// A file that is to be put into a job's container.
#[derive(Clone)]
struct Source {
    from: PathBuf,
    path: String,
}

fn source(text: &str) -> Result<Source, String> {
    match text.split_once(':') {
        Some((from, path)) if !from.is_empty() => {
            let path = content::file_path(path).map_err(|fault| format!("'{path}' {fault}"))?;
            Ok(Source { from: from.into(), path })
        }
        _ => Err("write SOURCE:PATH, as input.csv:/data/input.csv".into()),
    }
}

impl JobArgs {
    /// The variables of files and options, in their order; a later one takes the place of an earlier one.
    pub(super) fn env(&self) -> Result<Vec<(String, String)>, String> {
        let mut entries = Vec::new();
        self.stdin_is_given_once()?;
        for path in &self.env_file {
            let why = |why: String| format!("--env-file {}: {why}", path.display());
            let text = String::from_utf8(whole(path, ENV_FILE_MAX).map_err(why)?)
                .map_err(|error| why(format!("not UTF-8 (byte {})", error.utf8_error().valid_up_to())))?;
            entries.extend(env_file(&text).map_err(why)?);
        }
        entries.extend(self.env.iter().cloned());
        variables(&entries)
    }

    pub(super) fn args(&self) -> Option<Vec<String>> {
        (!self.args.is_empty()).then(|| self.args.clone())
    }

    /// All of the job's standard input, if it has one.
    pub(super) fn read_stdin(&self) -> Result<Option<Vec<u8>>, String> {
        self.stdin_is_given_once()?;
        let path = match &self.stdin {
            Some(path) => path.as_path(),
            None if self.interactive => Path::new("-"),
            None => return Ok(None),
        };
        whole(path, CONTENT_MAX).map(Some).map_err(|why| format!("--stdin {}: {why}", path.display()))
    }

    /// The files that the job is to have.
    pub(super) fn read_files(&self) -> Result<Files, String> {
        let own = Path::new("-");
        let mut stdin_is_taken = self.uses_of_stdin() > 0;
        let mut room = CONTENT_MAX;
        let mut files = Files::default();
        for Source { from, path } in &self.files {
            let why = |why: String| format!("--file {}:{path}: {why}", from.display());
            if files.0.iter().any(|file| file.path == *path) {
                return Err(why("there is another file with this path".into()));
            }
            if files.0.len() == FILES_MAX {
                return Err(format!("--file: a job takes {FILES_MAX} files at most"));
            }
            let mode = if from == own {
                if std::mem::replace(&mut stdin_is_taken, true) {
                    return Err(why("this command's standard input can be given once".into()));
                }
                content::MODE
            } else {
                let metadata = std::fs::metadata(from).map_err(|error| why(error.to_string()))?;
                // Never more than nine bits.
                u16::try_from(metadata.permissions().mode() & 0o777).unwrap_or(content::MODE)
            };
            let bytes = whole(from, room).map_err(why)?;
            room -= bytes.len() as u64;
            files.0.push(File { path: path.clone(), content: Content(bytes.into()), mode });
        }
        Ok(files)
    }

    /// How often this command's standard input is asked for, apart from what `--file` asks for.
    fn uses_of_stdin(&self) -> usize {
        let own = Path::new("-");
        let as_stdin = self.interactive || self.stdin.as_deref() == Some(own);
        usize::from(as_stdin) + self.env_file.iter().filter(|path| *path == own).count()
    }

    fn stdin_is_given_once(&self) -> Result<(), String> {
        if self.uses_of_stdin() > 1 {
            return Err("--env-file -: this command's standard input can be given once".into());
        }
        Ok(())
    }
}

/// All bytes of a file, or of this command's standard input.
fn whole(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(most + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
    };
    match read {
        Ok(n) if n as u64 > most => Err(format!("longer than the {most} bytes that there is room for")),
        Ok(_) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

/// The entries of a file as Docker reads it (docker/cli `opts/file.go`): values are taken as they are, quotes and all; space
/// before a name doesn't count.
fn env_file(text: &str) -> Result<Vec<String>, String> {
    let mut entries = Vec::new();
    for (number, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
        let entry = line.trim_start();
        if entry.is_empty() || entry.starts_with('#') {
            continue;
        }
        let name = entry.split('=').next().unwrap_or_default();
        // What stands there may be a secret, so it isn't repeated.
        let fault = if name.is_empty() {
            "the name is empty; write NAME=VALUE"
        } else if name.contains(char::is_whitespace) {
            "the name has a space in it; write NAME=VALUE"
        } else {
            entries.push(entry.to_owned());
            continue;
        };
        return Err(format!("line {}: {fault}", number + 1));
    }
    Ok(entries)
}

/// The variables of `-e` options, in their order; a later one takes the place of an earlier one.
pub(super) fn variables(entries: &[String]) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = Vec::new();
    for entry in entries {
        let (name, value) = match entry.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            // As `docker run -e NAME`: not set here, not set there.
            None => match std::env::var(entry) {
                Ok(value) => (entry.as_str(), value),
                Err(_) => continue,
            },
        };
        if name.is_empty() {
            return Err(format!("-e '{entry}': the name is empty; write -e NAME=VALUE"));
        }
        match env.iter_mut().find(|(n, _)| n == name) {
            Some(slot) => slot.1 = value,
            None => env.push((name.to_owned(), value)),
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_as_docker_reads_it() {
        let text = "\u{feff}# comment\n\n  A=1 # no comment\nB=\"x\"\r\nC=\n\tD=a=b \nHOME\n";
        let entries = env_file(text).unwrap();
        assert_eq!(entries, ["A=1 # no comment", "B=\"x\"", "C=", "D=a=b ", "HOME"]);
        for (wrong, line) in
            [("A=1\n=s3cret", "line 2"), ("a b=s3cret", "line 1"), ("export X=s3cret", "line 1")]
        {
            let why = env_file(wrong).unwrap_err();
            assert!(why.contains(line) && !why.contains("s3cret"), "{why}");
        }
    }

    #[test]
    fn a_later_variable_takes_the_place_of_an_earlier_one() {
        let entries = ["A=1", "B=2", "A=3", "PREWARM_SURELY_NOT_SET"].map(str::to_owned);
        let env = variables(&entries).unwrap();
        assert_eq!(env, [("A".to_owned(), "3".to_owned()), ("B".to_owned(), "2".to_owned())]);
        assert!(variables(&["=x".to_owned()]).is_err());
    }
}
