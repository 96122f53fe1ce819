//! What a pool's jobs may do: capabilities and security options.

use std::fs::File;
use std::io::Read;

use super::fault::quoted;
use super::field::Field;
use super::reader::Outcome;
use super::suggest::{did_you_mean, nearest};
use super::values::any_text;
use crate::seccomp::Capabilities;

/// Profiles are some ten KiB; above this it is the wrong file.
const LARGEST_PROFILE: u64 = 1 << 20;

/// A capability's name, or `ALL`: with or without `CAP_`, in any case. Gives it without, in upper case.
pub(super) fn capability(field: &mut Field<'_, '_>) -> Outcome<String> {
    let text = any_text(field)?.to_ascii_uppercase();
    let name = text.strip_prefix("CAP_").unwrap_or(&text);
    if name == "ALL" || Capabilities::NAMES.contains(&name) {
        return Ok(name.to_owned());
    }
    let hint = nearest(name, Capabilities::NAMES)
        .map_or_else(|| ": write one such as \"CHOWN\", or \"ALL\"".to_owned(), did_you_mean);
    Err(field.is_not(&format!("a capability of the kernel{hint}")))
}

/// An option as in `docker run --security-opt`, as the engine's API wants it: a seccomp profile's file is
/// replaced with its content.
pub(super) fn security_option(field: &mut Field<'_, '_>) -> Outcome<String> {
    let text = any_text(field)?;
    let (name, value) = match text.split_once(['=', ':']) {
        Some((name, value)) => (name, Some(value)),
        None => (text.as_str(), None),
    };
    match (name, value) {
        ("no-new-privileges", None | Some("true")) => Ok("no-new-privileges".to_owned()),
        ("no-new-privileges", Some("false")) => Ok("no-new-privileges=false".to_owned()),
        ("seccomp", Some("unconfined" | "builtin")) => Ok(format!("seccomp={}", value.unwrap_or_default())),
        ("seccomp", Some(file)) if !file.is_empty() => seccomp(field, file),
        ("apparmor" | "label", Some(value)) if !value.is_empty() => Ok(format!("{name}={value}")),
        _ => Err(field.is_not(
            "a security option: write no-new-privileges, seccomp=FILE, seccomp=unconfined, apparmor=PROFILE or \
             label=VALUE",
        )),
    }
}

fn seccomp(field: &mut Field<'_, '_>, file: &str) -> Outcome<String> {
    let path = field.resolve(file);
    let mut profile = String::new();
    let read = File::open(&path).and_then(|file| file.take(LARGEST_PROFILE + 1).read_to_string(&mut profile));
    let shown = quoted(&path.to_string_lossy());
    if let Err(error) = read {
        return Err(field.wrong(format!("the seccomp profile {shown} can't be read: {error}")));
    }
    match serde_json::from_str::<serde_json::Value>(&profile) {
        Ok(profile) if profile.is_object() => Ok(format!("seccomp={profile}")),
        Ok(_) => Err(field.wrong(format!("the seccomp profile {shown} is not a JSON object"))),
        Err(error) => Err(field.wrong(format!("the seccomp profile {shown} is not JSON: {error}"))),
    }
}
