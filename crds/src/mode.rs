//! Permission bits as octal text.

/// The text is no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no file mode: write three octal digits as a string, as in \"0444\"")]
pub struct ModeError(String);

/// Parses `0444` or `444` into 0o444.
pub fn parse_mode(text: &str) -> Result<u32, ModeError> {
    let digits = if text.len() == 4 { text.strip_prefix('0') } else { Some(text) };
    digits
        .filter(|digits| digits.len() == 3 && digits.bytes().all(|b| (b'0'..=b'7').contains(&b)))
        .and_then(|digits| u32::from_str_radix(digits, 8).ok())
        .ok_or_else(|| ModeError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_with_or_without_a_leading_zero() {
        assert_eq!(parse_mode("0444"), Ok(0o444));
        assert_eq!(parse_mode("755"), Ok(0o755));
    }

    #[test]
    fn what_is_no_mode_is_refused() {
        for text in ["", "44", "888", "04444", "4444", "r--r--r--", "0o444"] {
            assert!(parse_mode(text).is_err(), "{text}");
        }
    }
}
