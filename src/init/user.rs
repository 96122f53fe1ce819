//! The job's user and groups, as Docker finds them in the image (moby/sys/user, `GetExecUser`).

use crate::home::{Text, field, lines, number};
use crate::sys::{Errno, Mapping};
use crate::wire::{Failed, Step};

/// Most groups that the kernel takes (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// Who the job is.
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Beside `gid`; as many as `count` says.
    groups: Mapping,
    count: usize,
}

impl User {
    /// As the kernel takes them.
    pub fn groups(&self) -> &[u8] {
        &self.groups[..self.count * 4]
    }
}

/// The user that `name`, as in Docker's `USER`, means here: `NAME`, `UID`, and either with `:GROUP`.
pub fn find(name: &[u8]) -> Result<User, Failed> {
    let failed = |errno: Errno| Failed::at(Step::User, errno.0);
    let (user, group) = match name.iter().position(|b| *b == b':') {
        Some(colon) => (&name[..colon], &name[colon + 1..]),
        None => (name, &b""[..]),
    };
    let passwd = Text::of(c"/etc/passwd").map_err(failed)?;
    let line =
        lines(passwd.bytes()).find(|line| field(line, 0) == Some(user) || is_number(field(line, 2), user));
    let (uid, mut gid) = match line {
        Some(line) => (field(line, 2).map_or(0, number), field(line, 3).map_or(0, number)),
        None if user.is_empty() => (0, 0),
        // A number needs no line.
        None if user.iter().all(u8::is_ascii_digit) => (number(user), 0),
        None => return Err(failed(Errno::NOENT)),
    };
    let text = Text::of(c"/etc/group").map_err(failed)?;
    let text = text.bytes();
    let mut groups = Groups { list: Mapping::new(GROUPS_MAX * 4).map_err(failed)?, count: 0 };
    if !group.is_empty() {
        let line = lines(text).find(|l| field(l, 0) == Some(group) || is_number(field(l, 2), group));
        gid = match line {
            Some(line) => field(line, 2).map_or(0, number),
            None if group.iter().all(u8::is_ascii_digit) => number(group),
            None => return Err(failed(Errno::NOENT)),
        };
    }
    // The kernel looks at these, not only at the first one: without it a job could have a group by leaving it
    // (CVE-2022-36109).
    groups.push(gid as u32);
    if group.is_empty()
        && let Some(name) = line.and_then(|line| field(line, 0))
    {
        let member =
            |line: &&[u8]| field(line, 3).is_some_and(|m| m.split(|b| *b == b',').any(|m| m == name));
        for line in lines(text).filter(member) {
            groups.push(field(line, 2).map_or(0, number) as u32);
        }
    }
    Ok(User { uid: uid as u32, gid: gid as u32, groups: groups.list, count: groups.count })
}

struct Groups {
    list: Mapping,
    count: usize,
}

impl Groups {
    fn push(&mut self, gid: u32) {
        if let Some(place) = self.list.get_mut(self.count * 4..self.count * 4 + 4) {
            place.copy_from_slice(&gid.to_ne_bytes());
            self.count += 1;
        }
    }
}

/// Whether both are the same number.
fn is_number(field: Option<&[u8]>, wanted: &[u8]) -> bool {
    let is = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    field.is_some_and(|field| is(field) && is(wanted) && number(field) == number(wanted))
}
