//! What a pool mounts: `mounts` and `tmpfs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use super::MountConfig;
use super::fault::quoted;
use super::field::Field;
use super::reader::Outcome;
use super::values::{any_text, flag, text, text_such_that};

/// The engines' sockets. Whoever can write to one of them is root on the host.
const SOCKETS: [&str; 5] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/var/run/containerd/containerd.sock",
];

/// Where our init is mounted: nothing may hide it.
const INIT: &str = "/.prewarm";

/// The mount points of one pool. The engine refuses to mount twice at one point.
#[derive(Default)]
pub(super) struct Targets(BTreeSet<String>);

impl Targets {
    /// A path in the container, brought to its plain form.
    fn claim(&mut self, field: &mut Field<'_, '_>, target: &str) -> Outcome<String> {
        let Some(plain) = plain_path(target) else {
            return Err(field.wrong(format!(
                "{} is not a mount point: write an absolute path without '..'",
                quoted(target)
            )));
        };
        if plain == "/" {
            return Err(field.wrong("'/' is the image's own: mount at a directory below it"));
        }
        if Path::new(&plain).starts_with(INIT) {
            return Err(field.wrong(format!("'{INIT}' is where prewarm's init is: mount elsewhere")));
        }
        if !self.0.insert(plain.clone()) {
            return Err(field.wrong(format!("{} is mounted twice: leave one out", quoted(&plain))));
        }
        Ok(plain)
    }
}

/// `tmpfs`: a table of mount points with options, or an array of mount points.
pub(super) fn tmpfs(field: &mut Field<'_, '_>, targets: &mut Targets) -> Outcome<BTreeMap<String, String>> {
    if field.value().is_array() {
        let wanted = "an array of mount points";
        let points = field.each(wanted, |field| {
            let target = text(field)?;
            Ok((targets.claim(field, &target)?, String::new()))
        })?;
        return Ok(points.into_iter().collect());
    }
    let wanted = "a table of mount points: write { \"/scratch\" = \"size=64m\" }";
    let points = field.entries(wanted, |target, field| {
        let target = targets.claim(field, target);
        let options = text_such_that(
            |options| options.chars().all(|c| c.is_ascii_graphic()),
            "a list of mount options: write \"size=64m,mode=1777\"",
        )(field);
        Ok((target?, options?))
    })?;
    Ok(points.into_iter().collect())
}

/// `mounts`: an array of tables.
pub(super) fn mounts(field: &mut Field<'_, '_>, targets: &mut Targets) -> Outcome<Vec<MountConfig>> {
    let wanted = "an array: write [{ source = \"/srv/cache\", target = \"/cache\", read_only = true }]";
    field.each(wanted, |field| {
        let wanted = "a mount: write { source = \"/srv/cache\", target = \"/cache\", read_only = true }";
        field.section(wanted, |section| {
            let source = section.required("source", "\"/srv/cache\"", source);
            let target = section.required("target", "\"/cache\"", |field| {
                let target = any_text(field)?;
                targets.claim(field, &target)
            });
            let read_only = section.or("read_only", false, flag);
            let shared = section.or("shared", false, flag);
            Ok(MountConfig { source: source?, target: target?, read_only: read_only?, shared: shared? })
        })
    })
}

/// A path on the engine's host, or a volume's name.
fn source(field: &mut Field<'_, '_>) -> Outcome<String> {
    let source = any_text(field)?;
    if source.starts_with('/') {
        if exposes_engine(&source) {
            field.advise("gives jobs the engine's socket: whoever can write to it is root on the host");
        }
        return Ok(source);
    }
    if is_docker_name(&source) {
        Ok(source)
    } else {
        Err(field.is_not("a source: write an absolute path or a volume's name"))
    }
}

/// Whether a socket is mounted by itself or with a directory that contains it.
fn exposes_engine(source: &str) -> bool {
    let source = plain_path(source).unwrap_or_else(|| source.to_owned());
    SOCKETS.iter().any(|socket| Path::new(socket).starts_with(&source))
}

/// What Docker takes as the name of a volume or a network.
pub(super) fn is_docker_name(text: &str) -> bool {
    text.len() <= 255
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// An absolute path without `.`, doubled and trailing slashes; nothing if it is relative or has a `..`.
fn plain_path(path: &str) -> Option<String> {
    let mut components = Path::new(path).components();
    if components.next() != Some(Component::RootDir) {
        return None;
    }
    let mut plain = String::new();
    for component in components {
        let Component::Normal(name) = component else { return None };
        plain.push('/');
        plain.push_str(name.to_str()?);
    }
    Some(if plain.is_empty() { "/".to_owned() } else { plain })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_brought_to_their_plain_form() {
        for (path, plain) in [
            ("/", Some("/")),
            ("//", Some("/")),
            ("/a/b/", Some("/a/b")),
            ("//a/./b//", Some("/a/b")),
            ("/a/../b", None),
            ("a", None),
            ("", None),
            ("./a", None),
        ] {
            assert_eq!(plain_path(path).as_deref(), plain, "{path}");
        }
    }

    #[test]
    fn the_engines_socket_is_noticed() {
        for source in ["/var/run/docker.sock", "/var/run/", "/run", "/", "//run//docker.sock"] {
            assert!(exposes_engine(source), "{source}");
        }
        for source in ["/srv/docker.sock", "/var/run/other", "/var/run/docker.sock/x", "/ru"] {
            assert!(!exposes_engine(source), "{source}");
        }
    }
}
