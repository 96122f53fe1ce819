//! Readers of plain values: text, numbers, sizes, durations.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::fault::quoted;
use super::field::Field;
use super::reader::Outcome;
use super::suggest::{did_you_mean, nearest};

/// The largest duration anywhere: far more than any job needs, and little enough that adding it to the
/// present moment can't overflow.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Text that isn't empty.
pub(super) fn text(field: &mut Field<'_, '_>) -> Outcome<String> {
    match any_text(field)?.as_str() {
        "" => Err(field.wrong("empty: write a text, or leave the key out")),
        text => Ok(text.to_owned()),
    }
}

/// Any text that a C program can be given.
pub(super) fn any_text(field: &mut Field<'_, '_>) -> Outcome<String> {
    match field.text() {
        None => Err(field.is_not("text: write text in quotes")),
        Some(text) if text.contains('\0') => Err(field.wrong("contains a NUL byte: take it out")),
        Some(text) => Ok(text.to_owned()),
    }
}

/// Text that is accepted.
pub(super) fn text_such_that(
    accepts: impl Fn(&str) -> bool,
    wanted: &str,
) -> impl Fn(&mut Field<'_, '_>) -> Outcome<String> {
    move |field| {
        let text = any_text(field)?;
        if accepts(&text) { Ok(text) } else { Err(field.is_not(wanted)) }
    }
}

/// One of some words.
pub(super) fn choice<T: Copy>(words: &[(&str, T)]) -> impl Fn(&mut Field<'_, '_>) -> Outcome<T> {
    move |field| {
        let known = words.iter().map(|(word, _)| *word);
        let found = field.text().and_then(|text| words.iter().find(|(word, _)| *word == text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let list: Vec<String> = known.clone().map(|word| format!("\"{word}\"")).collect();
            let hint = nearest(field.text().unwrap_or_default(), known).map(did_you_mean).unwrap_or_default();
            field.is_not(&format!("known here: write {}{hint}", list.join(", ")))
        })
    }
}

/// `true` or `false`.
pub(super) fn flag(field: &mut Field<'_, '_>) -> Outcome<bool> {
    field.value().as_bool().ok_or_else(|| field.is_not("known here: write true or false"))
}

/// A whole number.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&mut Field<'_, '_>) -> Outcome<T>
where
    T: TryFrom<i128> + PartialOrd + Display,
{
    move |field| {
        let wanted = format!("write a whole number from {} to {}", range.start(), range.end());
        let DeValue::Integer(written) = field.value() else {
            return Err(field.is_not(&format!("a whole number: {wanted}")));
        };
        // More digits than 128 bits have room for are out of every range.
        let number = i128::from_str_radix(written.as_str(), written.radix()).ok();
        let number = number.and_then(|number| T::try_from(number).ok());
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| field.is_not(&format!("in range: {wanted}")))
    }
}

/// A number with or without a fraction; neither infinite nor NaN.
pub(super) fn fraction(field: &mut Field<'_, '_>) -> Outcome<f64> {
    let number = match field.value() {
        DeValue::Float(number) => number.as_str().parse().ok(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
        _ => None,
    };
    number
        .filter(|number: &f64| number.is_finite())
        .ok_or_else(|| field.is_not("a number: write one such as 1.5"))
}

/// A size in bytes: a number, or one with a unit. As in Docker the units are binary, so that `m`, `MB` and
/// `MiB` all are 1024 × 1024 bytes.
pub(super) fn size(field: &mut Field<'_, '_>) -> Outcome<u64> {
    let size = match field.value() {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
        DeValue::String(text) => parse_size(text),
        _ => None,
    };
    // The engine's API has signed numbers.
    size.filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| field.is_not("a size: write 512MiB, 2GiB or a number of bytes"))
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) =
        text.split_at(text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let (whole, tenths) = number.split_once('.').map_or((number, ""), |(whole, tenths)| (whole, tenths));
    if whole.is_empty() || number.ends_with('.') || tenths.len() > 9 {
        return None;
    }
    let places = u32::try_from(tenths.len()).ok()?;
    // Up to 64 + 30 + 40 bits would not fit, hence the checked multiplication.
    let scaled: u128 = format!("{whole}{tenths}").parse::<u128>().ok()?.checked_mul(1 << shift)?;
    u64::try_from(scaled / 10_u128.pow(places)).ok()
}

/// A duration with its unit.
pub(super) fn duration(field: &mut Field<'_, '_>) -> Outcome<Duration> {
    if let DeValue::Integer(number) = field.value() {
        let number = number.as_str();
        return Err(field.wrong(format!("{} has no unit: write {number}s or {number}m", quoted(number))));
    }
    let duration = field.text().and_then(|text| humantime::parse_duration(text).ok());
    duration.ok_or_else(|| field.is_not("a duration: write 30s, 10m or 1h 30m"))
}

/// A value that a range contains.
pub(super) fn within<T: PartialOrd>(
    read: impl Fn(&mut Field<'_, '_>) -> Outcome<T>,
    range: RangeInclusive<T>,
    wanted: &str,
) -> impl Fn(&mut Field<'_, '_>) -> Outcome<T> {
    move |field| {
        let value = read(field)?;
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(field.is_not(&format!("in range: write {wanted}")))
        }
    }
}

/// An array of what `read` reads.
pub(super) fn list<T>(
    read: impl Fn(&mut Field<'_, '_>) -> Outcome<T>,
) -> impl Fn(&mut Field<'_, '_>) -> Outcome<Vec<T>> {
    move |field| field.each("an array: write [\"…\", \"…\"]", &read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dockers() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("512b", Some(512)),
            ("1k", Some(1024)),
            ("64KiB", Some(64 << 10)),
            ("64kb", Some(64 << 10)),
            ("1m", Some(1 << 20)),
            ("1MB", Some(1 << 20)),
            (" 2 GiB ", Some(2 << 30)),
            ("1.5g", Some(3 << 29)),
            ("0.1k", Some(102)),
            ("1t", Some(1 << 40)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999999999999999999999g", None),
            ("999999999999999999999999999999999999999999", None),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1e3", None),
            ("1.", None),
            (".5g", None),
            ("1.2.3", None),
            ("1.0000000001g", None),
            ("2 gigs", None),
            ("1é", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text}");
        }
    }
}
