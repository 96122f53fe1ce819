//! Which program is executed, with which arguments, and what happens if it can't be.

use crate::docker::{DEBIAN, SCRATCH};
use crate::meant;
use crate::row::{Row, row};

pub fn rows() -> Vec<Row> {
    let looked_for = lookup().into_iter().chain(not_executed()).map(meant::lookup);
    entrypoint_and_cmd().into_iter().chain(looked_for).collect()
}

const EXEC: &str = r#"ENTRYPOINT ["probe", "args", "a b"]
CMD ["c", ""]"#;
const SHELL_ENTRYPOINT: &str = r#"ENTRYPOINT echo "[$0] [$*]"
CMD ["x"]"#;
const SHELL_CMD: &str = r"CMD echo $((6 * 7)) $0; exit 3";

fn entrypoint_and_cmd() -> Vec<Row> {
    vec![
        row("exec entrypoint, exec cmd").busybox(EXEC).prints("[a b]\n[c]\n[]\n"),
        row("exec entrypoint, args for cmd").busybox(EXEC).args(["1", "-2"]).prints("[a b]\n[1]\n[-2]\n"),
        row("exec entrypoint, shell cmd")
            .busybox("ENTRYPOINT [\"probe\", \"args\"]\nCMD echo $HOME")
            .prints("[/bin/sh]\n[-c]\n[echo $HOME]\n"),
        row("shell entrypoint, exec cmd").busybox(SHELL_ENTRYPOINT).prints("[x] []\n"),
        row("shell entrypoint, args for cmd").busybox(SHELL_ENTRYPOINT).args(["y", "z"]).prints("[y] [z]\n"),
        row("shell entrypoint, shell cmd").busybox("ENTRYPOINT echo 1\nCMD echo 2").prints("1\n"),
        row("no entrypoint, exec cmd").busybox(r#"CMD ["probe", "args", "$X"]"#).prints("[$X]\n"),
        row("no entrypoint, shell cmd").busybox(SHELL_CMD).code(3).prints("42 /bin/sh\n"),
        row("no entrypoint, args for cmd").busybox(SHELL_CMD).probe("args x").prints("[x]\n"),
        row("shell of the image's own")
            .busybox("SHELL [\"/bin/sh\", \"-exc\"]\nCMD echo traced; false; echo")
            .code(1),
        row("neither entrypoint nor cmd").busybox("CMD []").not_run(125, "nothing to execute"),
        row("neither, but args").busybox("CMD []").probe("args x").prints("[x]\n"),
        row("from scratch").image(SCRATCH).args(["args", "x", ",", "env"]).mask(crate::row::hostname),
        row("from scratch, nothing else").image(SCRATCH).args(["file", "/etc/passwd"]).code(99),
        row("a real Debian").image(DEBIAN).args([
            "bash",
            "-c",
            r#"echo "$BASH" $$ >/dev/null; . /etc/os-release; echo $ID"#,
        ]),
        row("a real Debian's git").image(DEBIAN).args(["git", "--version"]),
        row("arguments are passed as they are")
            .args(["probe", "args", "", " ", "\n", "*", "$HOME", "\"", "'", "\\", "é", "🐇"]),
        row("two thousand arguments").args(["probe", "args"]).args((0..2000).map(|n| n.to_string())),
        row("entrypoint of the pool's own")
            .busybox(EXEC)
            .option(r#"entrypoint = ["probe"]"#, "--entrypoint probe")
            .args(["args", "x"])
            .prints("[x]\n"),
        row("entrypoint of the pool's own makes cmd void")
            .busybox(EXEC)
            .option(r#"entrypoint = ["pwd"]"#, "--entrypoint pwd")
            .prints("/\n"),
    ]
}

/// Programs that say which they are, in three directories; and in `/first` what is in the way of finding them.
const PROGRAMS: &str = r#"RUN mkdir -p /first/dir /second /work/sub && \
    for d in /first /second /work /work/sub; do printf '#!/bin/sh\necho %s $0 "$@"\n' $d >$d/tool; done && \
    cp /second/tool /second/dir && cp /second/tool /second/plain && cp /first/tool /first/plain && \
    chmod 755 /*/tool /work/sub/tool /second/* && \
    printf 'echo no interpreter named, $0 "$@"\n' >/second/bare && chmod 755 /second/bare && \
    printf '#!/bin/echo  one  two \n' >/second/echo-args && chmod 755 /second/echo-args && \
    ln -s /second/tool /work/link
WORKDIR /work"#;

fn lookup() -> Vec<Row> {
    let tools = |name| row(name).busybox(PROGRAMS);
    vec![
        tools("in the job's PATH")
            .env("PATH=/second:/bin")
            .args(["tool", "x"])
            .prints("/second /second/tool x\n"),
        tools("the first in PATH")
            .env("PATH=/first:/second:/bin")
            .args(["tool"])
            .prints("/first /first/tool\n"),
        tools("not in the job's PATH").env("PATH=/nowhere").args(["sh"]).not_run(127, "sh"),
        tools("a directory of that name is passed over").env("PATH=/first:/second:/bin").args(["dir"]),
        tools("a file of that name that may not be executed is passed over")
            .env("PATH=/first:/second:/bin")
            .args(["plain"]),
        tools("nothing but a file that may not be executed")
            .env("PATH=/first")
            .args(["plain"])
            .not_run(126, "plain"),
        tools("a relative PATH").env("PATH=sub:/bin").args(["tool"]).prints("/work/sub sub/tool\n"),
        tools("an empty element of PATH is the working directory").env("PATH=:/bin").args(["tool"]),
        tools("an empty PATH").env("PATH=").args(["tool"]),
        tools("a slash at the end of PATH's element").env("PATH=/second/").args(["tool"]),
        tools("PATH with a file in it").env("PATH=/etc/passwd:/second").args(["tool"]),
        tools("relative to the working directory").args(["./tool"]).prints("/work ./tool\n"),
        tools("relative, below the working directory").args(["sub/tool"]).prints("/work/sub sub/tool\n"),
        tools("relative to the pool's working directory").workdir("/second").args(["./tool"]),
        tools("through a symbolic link").args(["./link"]),
        tools("a script that names no interpreter").args(["/second/bare", "x"]),
        tools("such a script, by PATH").env("PATH=/second:/bin").args(["bare", "x", "y"]),
        tools("an interpreter with arguments").args(["/second/echo-args", "x"]),
    ]
}

const BROKEN: &str = r#"RUN mkdir /b && cd /b && \
    printf '#!/no/interpreter\n' >interpreter && printf '#!/bin/sh\r\necho\r\n' >crlf && printf '#!\n' >nothing && \
    printf '#!/etc\n' >directory-interpreter && printf 'text' >text && : >empty && \
    printf '\177ELF\002\001\001' >truncated && ln -s loop loop && ln -s /nowhere dangling && \
    cp /usr/local/bin/probe private && chmod 755 * ; chmod 644 text; chmod 700 private; \
    mkdir closed && cp private closed && chmod 755 closed/private && chmod 700 closed"#;

fn not_executed() -> Vec<Row> {
    let broken = |name| row(name).busybox(BROKEN);
    vec![
        row("not found")
            .args(["no-such-program"])
            .not_run(127, "\"no-such-program\": executable file not found in $PATH"),
        row("not found, absolute")
            .args(["/no/such/program"])
            .not_run(127, "\"/no/such/program\": no such file"),
        row("not found, relative").args(["./program"]).not_run(127, "\"./program\""),
        row("not found, from scratch")
            .image(SCRATCH)
            .option("entrypoint = [\"sh\"]", "--entrypoint sh")
            .not_run(127, "\"sh\""),
        row("an empty name").args([""]).not_run(127, "\"\""),
        row("a directory").args(["/etc"]).not_run(126, "\"/etc\": permission denied"),
        row("not executable").args(["/etc/passwd"]).not_run(126, "\"/etc/passwd\": permission denied"),
        broken("a dangling link").args(["/b/dangling"]).not_run(127, "/b/dangling"),
        broken("no such interpreter").args(["/b/interpreter"]).not_run(127, "/b/interpreter"),
        broken("an interpreter with a carriage return").args(["/b/crlf"]).not_run(127, "/b/crlf"),
        broken("an interpreter that is a directory")
            .args(["/b/directory-interpreter"])
            .not_run(126, "/b/directory-interpreter"),
        broken("an empty interpreter").args(["/b/nothing"]),
        broken("an empty file is an empty script").args(["/b/empty"]),
        broken("a truncated ELF file is taken for a script").args(["/b/truncated"]).code(127),
        broken("not executable for this user").user("app").args(["/b/private"]).not_run(126, "/b/private"),
        broken("in a directory that is closed to this user")
            .user("app")
            .args(["/b/closed/private"])
            .not_run(126, "/b/closed"),
        // tini knows two errors and exits with 1 for every other one, as if the job had run and failed. Ours are what
        // Docker means by 126 and 127.
        broken("a loop of links").args(["/b/loop"]).not_run_but(1, 126, "/b/loop"),
        broken("a file taken for a directory").args(["/etc/passwd/x"]).not_run_but(1, 127, "/etc/passwd/x"),
        // Here, tini reports that there is no shell to read it as a script.
        row("neither a program nor a shell").program(b"text").not_run_but(
            127,
            126,
            "\"/program\": exec format error",
        ),
    ]
}
