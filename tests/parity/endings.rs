//! How a job ends. Init's own tests go through all 256 codes and all signals; here a sample goes through everything.

use crate::docker::{BUSYBOX, DEBIAN, SCRATCH};
use crate::row::{Row, row};

pub fn rows() -> Vec<Row> {
    [codes(), signals()].into_iter().flatten().collect()
}

fn codes() -> Vec<Row> {
    let code = |name, code: u8| {
        row(name).image(SCRATCH).args(["out", "x", ",", "exit", &code.to_string()]).code(code)
    };
    vec![
        code("exit 0", 0),
        code("exit 1", 1),
        code("exit 2", 2),
        code("exit 42", 42),
        code("exit 125", 125),
        code("exit 126", 126),
        code("exit 127", 127),
        code("exit 128", 128),
        code("exit 137", 137),
        code("exit 255", 255),
        row("a shell's exit trap")
            .image(DEBIAN)
            .args(["bash", "-c", "trap 'echo trapped' EXIT; false; exit 9"])
            .code(9),
    ]
}

/// Who it is, and how many orphans it reaps of three that its children left.
const ORPHANS: &str = "for (1..3) { if (!($child = fork)) { fork; exit } waitpid $child, 0 } \
                       $reaped++ while wait > 0; printf qq(%d %d %d\\n), $$, getppid, $reaped";

fn signals() -> Vec<Row> {
    let killed = |name, signal: u8| {
        // The kernel keeps a first process from signals of its own namespace that it has no handler for.
        let row = row(name).image(BUSYBOX).probe(&format!("out x , kill {signal}"));
        row.code(128 + signal).code_as_first(0)
    };
    vec![
        killed("SIGHUP", 1),
        killed("SIGINT", 2),
        killed("SIGQUIT", 3),
        killed("SIGABRT", 6),
        killed("SIGKILL", 9),
        killed("SIGSEGV", 11),
        killed("SIGPIPE", 13),
        killed("SIGTERM", 15),
        killed("SIGSYS", 31),
        killed("a real-time signal", 34),
        row("a child's death by a signal").sh("probe kill 11; echo $?").prints("139\n"),
        row("a signal to process 1 reaches the job")
            .sh("kill -TERM 1; sleep 20")
            .code(143)
            .in_container("it is the job"),
        row("a first process is kept from itself")
            .sh("kill -TERM 1; kill -KILL $$; echo alive")
            .prints("alive\n")
            .in_namespace("only there a job is the first process"),
        row("a fault is no signal that a first process is kept from")
            .image(DEBIAN)
            .args(["bash", "-c", "ulimit -c 0; exec perl -e 'print unpack q(p), pack q(Q), 8'"])
            .code(139),
        row("a signal to process 1 is the job's to handle")
            .sh("trap 'echo got it; exit 7' USR1; kill -USR1 1; while :; do sleep 0.1; done")
            .code(7),
        row("process 1 can't be killed")
            .sh("kill -KILL 1; echo $?; sleep 0.1; echo alive")
            .prints("0\nalive\n"),
        row("everything killed but process 1")
            .sh("sleep 20 & kill -KILL -1; wait; echo alive")
            .prints("alive\n"),
        row("its own group killed").sh("sleep 20 & kill -TERM 0").code(143).code_as_first(0),
        row("the first process's children are its own to reap")
            .image(DEBIAN)
            .args(["perl", "-e", ORPHANS])
            .prints("1 0 3\n")
            .in_namespace("only there a job is the first process"),
    ]
}
