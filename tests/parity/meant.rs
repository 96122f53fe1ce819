//! What is another than under `docker run`, and is meant to be, with isolation `namespace`: all of it, with the reasons.
//!
//! A row that shows such a difference names it, and the difference has to be there. (What differs with isolation
//! `container`, too, is written in the rows.)

use crate::row::{Isolation, Row, edit_lines, order, usage};

const NAMESPACE: Isolation = Isolation::Namespace;

/// How the program is looked for. runc looks along PATH in another way than execvp(3), by which `docker run --init` does;
/// runc doesn't have the shell read a script that names no interpreter, and exits with 125 or 1 where others say 126 or 127.
/// An image must not behave differently because of a pool's isolation, so prewarm has one way for both: that of
/// `docker run --init`.
pub fn lookup(row: Row) -> Row {
    row.with_init("programs are looked for as by `docker run --init`")
}

/// The table of mounts.
///
/// - The order: what jobs have in common is moved to its place before what is made for each of them.
/// - `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` are no mounts: they belong to the container, and a job may write to
///   them. So each job has copies, in the root file system.
/// - What all jobs see is read-only: the files that mask others in `/proc`, and the directory of control groups in version 1,
///   whose modes and owners a job could otherwise change for the next one.
pub fn mounts(row: Row) -> Row {
    let row = row.mask_in(NAMESPACE, order).without_in(NAMESPACE, |line| {
        let on = line.split(' ').nth(1);
        matches!(on, Some("/etc/hosts" | "/etc/hostname" | "/etc/resolv.conf"))
    });
    row.mask_in(NAMESPACE, |text| {
        edit_lines(text, |line| {
            let mut words: Vec<&str> = line.splitn(5, ' ').collect();
            let [_, on, "tmpfs", options, _] = &mut words[..] else { return Some(line.into()) };
            if !on.starts_with("/proc/") && *on != "/sys/fs/cgroup" {
                return Some(line.into());
            }
            let rest = options.split_once(',').map_or("", |(_, rest)| rest);
            let options = format!("(ro),{rest}");
            Some([words[0], words[1], words[2], &options, words[4]].join(" "))
        })
    })
}

/// An image's VOLUME is no mount: an anonymous volume belongs to the container, and what one job writes the next one would
/// see. A job has the image's content there, as in the rest of its root file system.
pub fn volume(row: Row) -> Row {
    row.without_in(NAMESPACE, |line| line.contains(" /data "))
}

/// With a read-only root it is a mount, which can be written to, but of the job's own files.
pub fn volume_below_a_read_only_root(row: Row) -> Row {
    row.mask_in(NAMESPACE, |text| {
        edit_lines(text, |line| match line.split_once(" /data ") {
            Some((_, options)) => Some(format!("(volume) /data {options}")),
            None => Some(line.into()),
        })
    })
}

/// `/proc/self/status`: besides the container's filter a job has one of its own, which takes back what the container may
/// do for init's sake.
pub fn filters(row: Row) -> Row {
    row.mask_in(NAMESPACE, usage).but_in(NAMESPACE, "Seccomp_filters:\t1\n", "Seccomp_filters:\t2\n")
}

/// The limit of processes is the container's, in which init is one more.
pub fn processes(row: Row) -> Row {
    row.but_in(NAMESPACE, "77\n", "78\n")
}
