//! The floor: the same command on this host, without any container.

use std::io::{Read, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;

use super::measure::Sample;
use super::ways::Runner;

/// Commands that do nothing but end, or print and end. Others, which may be meant for the inside of a container alone, run
/// here only for who asks for it.
const HARMLESS: [&str; 4] = ["true", "false", "echo", "printf"];

/// Whether a command can do no harm outside of a container.
pub fn is_harmless(argv: &[String]) -> bool {
    argv.first().is_some_and(|executable| HARMLESS.contains(&executable.as_str()))
}

/// Where this host has a command, if it has it.
pub fn has(executable: &str) -> bool {
    if executable.contains('/') {
        return Path::new(executable).is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(executable).is_file())
}

/// A command of this host.
pub struct Host {
    argv: Arc<[String]>,
    env: Arc<[(String, String)]>,
}

impl Host {
    /// Runs `argv`, which isn't empty.
    pub fn new(argv: &[String], env: &[(String, String)]) -> Host {
        Host { argv: argv.into(), env: env.into() }
    }
}

#[async_trait]
impl Runner for Host {
    async fn one(&self) -> Result<Sample, String> {
        let (argv, env) = (Arc::clone(&self.argv), Arc::clone(&self.env));
        let kill = Kill::default();
        let child = Arc::clone(&kill.0);
        // With nothing in between that would be measured too: this thread is the one that waits.
        let ran = tokio::task::spawn_blocking(move || run(&argv, &env, &child));
        match ran.await {
            Ok(sample) => sample.map_err(|error| format!("{}: {error}", self.argv[0])),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Kills the child of who goes away before its end.
#[derive(Default)]
struct Kill(Arc<Mutex<Option<Child>>>);

impl Drop for Kill {
    fn drop(&mut self) {
        // Locked: it is being waited for, so its output has ended.
        if let Ok(mut child) = self.0.try_lock()
            && let Some(child) = child.as_mut()
        {
            let _ = child.kill();
        }
    }
}

fn run(argv: &[String], env: &[(String, String)], slot: &Mutex<Option<Child>>) -> std::io::Result<Sample> {
    let (mut output, input) = pipe()?;
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).env_clear().envs(std::env::vars_os().filter(|(name, _)| name == "PATH"));
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    let begun = Instant::now();
    let child = command.spawn()?;
    let mut sample = Sample { executing: Some(begun.elapsed()), ..Sample::default() };
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    // Its ends of the pipe would keep it open.
    drop(command);
    let mut buffer = [0; 64 << 10];
    while output.read(&mut buffer)? > 0 {
        sample.first_output.get_or_insert_with(|| begun.elapsed());
    }
    let mut child = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let status = child.as_mut().map(Child::wait).transpose()?;
    sample.exit = Some(begun.elapsed());
    sample.succeeded = status.is_some_and(|status| status.success());
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn only_what_can_do_no_harm_is_taken_for_that() {
        assert!(is_harmless(&strings(&["echo", "x"])));
        for harmful in [&["sh", "-c", "true"][..], &["/entrypoint.sh"], &["./true"], &[]] {
            assert!(!is_harmless(&strings(harmful)), "{harmful:?}");
        }
        assert!(has("true") && has("/bin/sh") && !has("no-such-command") && !has("/"));
    }

    #[tokio::test]
    async fn a_command_is_measured_to_each_step() {
        let host = Host::new(&strings(&["sh", "-c", "echo $A"]), &[("A".into(), "x".into())]);
        let sample = host.one().await.unwrap();
        assert!(
            sample.succeeded && sample.executing < sample.first_output && sample.first_output < sample.exit
        );
        let silent = Host::new(&strings(&["false"]), &[]).one().await.unwrap();
        assert_eq!((silent.succeeded, silent.first_output), (false, None));
        let none = Host::new(&strings(&["no-such-command"]), &[]).one().await.unwrap_err();
        assert!(none.contains("no-such-command"), "{none}");
    }
}
