//! Between fork and execve: what a job's process does before it is the image's entrypoint.

use core::convert::Infallible;
use core::ffi::CStr;

use crate::glob::PATH_MAX;
use crate::sys::{self, Arg, Environment, Errno, Fd};
use crate::wire::{Failed, StartHead, Step};
use crate::{files, home};

/// The job's ends of its pipes.
pub struct Ends {
    /// For those who have a stdin of their own, not `/dev/null`.
    pub stdin: Fd,
    pub stdout: Fd,
    pub stderr: Fd,
    /// Where a failure is reported, in the form of a FAILED payload; closed by a successful `execve`.
    pub report: Fd,
}

/// What an entrypoint's environment is made of, beside what START says.
#[derive(Clone, Copy)]
pub struct Surroundings {
    /// Init's own environment.
    pub inherited: Environment,
    /// The entry `HOME=…` of the job's user, if it is known.
    pub home: Option<&'static CStr>,
}

/// What can be done before there is a START: a session of its own, and where the output goes.
pub fn stand_alone(ends: &Ends) -> Result<(), Failed> {
    sys::new_session().map_err(|errno| Failed::at(Step::Fork, errno.0))?;
    sys::place(&ends.stdout, 1)
        .and_then(|()| sys::place(&ends.stderr, 2))
        .map_err(|errno| Failed::at(Step::Pipe, errno.0))
}

/// Becomes the entrypoint that the START frame names, or reports why not. It stands alone already.
pub fn become_entrypoint(head: StartHead, strings: &[u8], around: Surroundings, ends: &Ends) -> ! {
    let Err(failed) = execute(head, strings, around, ends);
    give_up(ends, failed)
}

/// Reports why there will be no entrypoint, and ends.
pub fn give_up(ends: &Ends, failed: Failed) -> ! {
    let _ = sys::write(&ends.report, &failed.encode());
    sys::exit(125)
}

fn execute(head: StartHead, strings: &[u8], around: Surroundings, ends: &Ends) -> Result<Infallible, Failed> {
    let at = |step| move |errno: Errno| Failed::at(step, errno.0);
    let mut strings = strings.split_inclusive(|b| *b == 0).filter_map(|s| CStr::from_bytes_with_nul(s).ok());

    if head.stdin {
        sys::place(&ends.stdin, 0)
    } else {
        // To be written to as well, since that is how the runtime gives it to Docker's.
        sys::open_both_ways(c"/dev/null").and_then(|null| sys::place(&null, 0))
    }
    .map_err(at(Step::Pipe))?;
    // Everything of init's own was opened so that execve closes it; this is for what the engine may have leaked
    // into init (CVE-2024-21626 began with such a descriptor).
    sys::close_the_rest_on_exec();

    let directory = strings.next().unwrap_or_default();
    if !directory.is_empty() {
        sys::chdir(directory).map_err(at(Step::Chdir))?;
    }
    if head.files > 0 {
        files::receive(head.files, &ends.stdin)?;
    }

    let argc = head.argc as usize;
    // A place more at the front: see below. And one for the end.
    let argv = sys::args(1 + argc + 1).map_err(at(Step::Memory))?;
    let name = strings.clone().next().unwrap_or_default();
    for (place, argument) in argv[1..=argc].iter_mut().zip(&mut strings) {
        *place = sys::arg(argument);
    }
    let envp =
        sys::args(head.envc as usize + around.inherited.iter().count() + 1).map_err(at(Step::Memory))?;
    let path = merge(envp, strings, around).map_err(at(Step::Memory))?;

    let mut candidate = [0; PATH_MAX];
    let program = find(name, path, &mut candidate).map_err(at(Step::Lookup))?;

    // From here on a signal meets a process like any other.
    sys::block_signals(sys::Mask::None);
    let errno = sys::execve(program, &argv[1..], envp);
    if errno == Errno::NOEXEC {
        // Neither ELF nor #!: execvp(3), and so `docker run --init`, has the shell read it.
        argv[0] = sys::arg(c"/bin/sh");
        argv[1] = sys::arg(program);
        sys::execve(c"/bin/sh", argv, envp);
    }
    Err(Failed::at(Step::Exec, errno.0))
}

/// Fills `envp` by the rules of [`StartHead`] and returns the value of PATH in it. Names that the entries repeat stay
/// repeated: the worker's rules are not second-guessed here.
fn merge<'a>(
    envp: &mut [Arg<'a>],
    entries: impl Iterator<Item = &'a CStr> + Clone,
    Surroundings { inherited, home }: Surroundings,
) -> sys::Result<Option<&'a [u8]>> {
    // Looked up only for who asks for it.
    let home = match home {
        Some(home) => home,
        None if entries.clone().any(|entry| entry == c"HOME=") => home::entry(sys::user())?,
        None => c"HOME=",
    };
    let given = |name: &[u8]| inherited.iter().find(|variable| name_of(variable) == name);
    let explicit = entries.clone().filter_map(|entry| -> Option<&'a CStr> {
        match entry.to_bytes() {
            b"HOME=" => Some(home),
            name if !name.contains(&b'=') => given(name),
            _ => Some(entry),
        }
    });
    let named = |variable: &CStr| entries.clone().any(|entry| name_of(entry) == name_of(variable));
    let rest = inherited.iter().filter(|variable| !named(variable));
    let mut path = None;
    for (place, variable) in envp.iter_mut().zip(explicit.chain(rest)) {
        *place = sys::arg(variable);
        path = path.or_else(|| variable.to_bytes().strip_prefix(b"PATH="));
    }
    Ok(path)
}

fn name_of(variable: &CStr) -> &[u8] {
    let bytes = variable.to_bytes();
    bytes.iter().position(|b| *b == b'=').map_or(bytes, |end| &bytes[..end])
}

/// The file that `name` stands for, as execvp(3) finds it under `docker run --init`: if there was nothing but a file
/// that may not be executed, that is what is reported.
fn find<'a>(name: &'a CStr, path: Option<&[u8]>, candidate: &'a mut [u8; PATH_MAX]) -> sys::Result<&'a CStr> {
    if name.to_bytes().contains(&b'/') {
        return match check(name) {
            Err(Errno::NOTDIR) => Err(Errno::NOENT),
            Err(errno @ (Errno::NOENT | Errno::ACCES)) => Err(errno),
            // Whatever else there is to say about it, execve says it better.
            Ok(()) | Err(_) => Ok(name),
        };
    }
    let mut errno = Errno::NOENT;
    if let (Some(directories), false) = (path, name.is_empty()) {
        for directory in directories.split(|b| *b == b':') {
            // An empty one is the working directory, and a script is told the name that it was found by.
            let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
            let Some(found) = join(candidate, [directory, slash, name.to_bytes_with_nul()]) else { continue };
            match check(found) {
                Ok(()) => return CStr::from_bytes_until_nul(candidate).map_err(|_| Errno::NOENT),
                Err(Errno::ACCES) => errno = Errno::ACCES,
                Err(_) => {}
            }
        }
    }
    Err(errno)
}

fn join<'a>(buffer: &'a mut [u8; PATH_MAX], parts: [&[u8]; 3]) -> Option<&'a CStr> {
    CStr::from_bytes_with_nul(concat(buffer, parts)?).ok()
}

/// The parts one after the other, if they fit.
pub fn concat<'a, const N: usize>(buffer: &'a mut [u8], parts: [&[u8]; N]) -> Option<&'a [u8]> {
    let mut at = 0;
    for part in parts {
        buffer.get_mut(at..at + part.len())?.copy_from_slice(part);
        at += part.len();
    }
    Some(&buffer[..at])
}

/// Whether `file` may be executed: EACCES for a directory too, as execve would say.
fn check(file: &CStr) -> sys::Result<()> {
    const TYPE: u32 = 0o170_000;
    const DIRECTORY: u32 = 0o040_000;
    let mode = sys::mode(file)?;
    if mode & TYPE == DIRECTORY || mode & 0o111 == 0 {
        return Err(Errno::ACCES);
    }
    sys::may_execute(file)
}
