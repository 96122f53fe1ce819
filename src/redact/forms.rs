//! Pure: the forms in which a secret shows up in output: as it is, in base64 (a `Basic` header, a Kubernetes manifest, an
//! `echo … | base64`), in a URL.
//!
//! Best effort: a secret that is cut by line breaks, escaped in another way (JSON, shell quotes), encoded twice, compressed or
//! reversed is not known again. In base64 it may stand anywhere in what was encoded; up to four bits at either
//! end, which share a character with what is beside it, stay.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shorter secrets have no other forms: their base64 would be found everywhere.
const SHORTEST: usize = 4;

/// Characters that stand for themselves in a URL beside letters and digits. RFC 3986's own; with the slash, as Python's
/// `quote`; JavaScript's `encodeURIComponent`.
const PLAIN: [&[u8]; 3] = [b"-._~", b"-._~/", b"-._~!*'()"];

/// Those of a form (`application/x-www-form-urlencoded`), where a blank is a plus.
const PLAIN_IN_FORMS: [&[u8]; 2] = [b"-._~", b"-._*"];

/// All forms of a secret, itself included, each once.
pub fn of(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.to_vec()];
    if secret.len() >= SHORTEST {
        forms.extend(in_base64(secret));
        for digits in [b"0123456789ABCDEF", b"0123456789abcdef"] {
            forms.extend(PLAIN.map(|plain| in_url(secret, plain, b"%20", digits)));
            forms.extend(PLAIN_IN_FORMS.map(|plain| in_url(secret, plain, b"+", digits)));
        }
    }
    forms.sort_unstable();
    forms.dedup();
    forms
}

/// What base64 text shows of the secret wherever it stands in what was encoded: at the beginning of a group of three
/// bytes, or one or two bytes later; with something behind it, or at the end.
fn in_base64(secret: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..3).flat_map(move |before| {
        let text = [&[0; 2][..before], secret].concat();
        // Six bits a character; what is shared with the bytes before is left out.
        let (from, whole) = ((before * 8).div_ceil(6), text.len() * 8 / 6);
        [STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text)]
            .into_iter()
            .flat_map(move |coded| [coded[from..whole].into(), coded[from..].into()])
    })
}

fn in_url(secret: &[u8], plain: &[u8], blank: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    let mut coded = Vec::with_capacity(secret.len() * 3);
    for byte in secret {
        match byte {
            b' ' => coded.extend_from_slice(blank),
            _ if byte.is_ascii_alphanumeric() || plain.contains(byte) => coded.push(*byte),
            _ => coded.extend([b'%', digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]),
        }
    }
    coded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_s_forms_are_those_of_common_programs() {
        let forms = of("a b/c+é~(!".as_bytes());
        for form in [
            "a%20b%2Fc%2B%C3%A9~%28%21", // RFC 3986
            "a%20b/c%2B%C3%A9~%28%21",   // Python's quote
            "a%20b%2Fc%2B%C3%A9~(!",     // encodeURIComponent
            "a+b%2Fc%2B%C3%A9~%28%21",   // Python's quote_plus
            "a+b%2Fc%2B%C3%A9%7E%28%21", // a form
            "a%20b%2fc%2b%c3%a9~%28%21",
        ] {
            assert!(forms.contains(&form.as_bytes().to_vec()), "{form}");
        }
        assert_eq!(of(b"abc"), [b"abc".to_vec()], "too short for others");
        assert!(of(b"token-1234").len() < 12, "most are the same");
    }
}
