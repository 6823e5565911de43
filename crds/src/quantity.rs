//! Kubernetes quantities: sizes in bytes and bandwidths in bits per second.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// What the API server accepts: a decimal number above 0 with a suffix of Kubernetes, no sign, no exponent.
const PATTERN: &str =
    r"^([0-9]*[1-9][0-9]*(\.[0-9]{1,9})?|0+\.[0-9]{0,4}[1-9][0-9]{0,4})(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$";

/// A quantity as it was written: a number (`500`) or a string (`500Gi`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(String);

impl Quantity {
    /// The value in whole units (bytes, bits per second), rounded up.
    pub fn value(&self) -> Result<u64, QuantityError> {
        parse_quantity(&self.0)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IntOrString;
        impl Visitor<'_> for IntOrString {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 500Gi")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Quantity, E> {
                Ok(Quantity(value.to_string()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Quantity, E> {
                Ok(Quantity(value.to_string()))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Quantity, E> {
                Ok(Quantity(value.to_owned()))
            }
        }
        deserializer.deserialize_any(IntOrString)
    }
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"x-kubernetes-int-or-string": true, "pattern": PATTERN, "minimum": 1})
    }
}

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It has another form.
    #[error(
        "{0:?} is no quantity: write a number and one of the suffixes Ki, Mi, Gi, Ti, Pi, Ei, k, M, G, T, P, E, as in 500Gi"
    )]
    Malformed(String),
    /// It does not fit in 63 bits.
    #[error("{0:?} is too large a quantity: the largest is below 8Ei")]
    TooLarge(String),
}

/// Parses a quantity such as `500Gi`, `1.5T` or `42` into whole units, rounded up as Kubernetes does.
pub fn parse_quantity(text: &str) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Malformed(text.to_owned());
    let suffix_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(suffix_at);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 || number.ends_with('.') {
        return Err(malformed());
    }
    // The unit as a fraction, because of `m`.
    let (multiply, divide): (u128, u128) = match suffix {
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => return Err(malformed()),
    };
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let scale = 10_u128.pow(fraction.len() as u32);
    let number: u128 = format!("{whole}{fraction}").parse().map_err(|_| too_large())?;
    let value = number.checked_mul(multiply).ok_or_else(too_large)?.div_ceil(divide * scale);
    i64::try_from(value).map(|value| value as u64).map_err(|_| too_large())
}

/// A size for people, as a quantity with at most one decimal: `0`, `512`, `1.2Gi`, `340Mi`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let suffix = UNITS.get(unit).unwrap_or(&"");
    if unit == 0 || value >= 99.95 || value.fract() < 0.05 || value.fract() >= 0.95 {
        format!("{value:.0}{suffix}")
    } else {
        format!("{value:.1}{suffix}")
    }
}

/// `part` of `whole` as a percentage for people, `97.3%`; rounded down, so that 100% means all of it. Nothing of nothing is 100%.
pub fn format_percent(part: u64, whole: u64) -> String {
    let tenths = if whole == 0 { 1000 } else { (u128::from(part) * 1000 / u128::from(whole)).min(1000) };
    if tenths.is_multiple_of(10) { format!("{}%", tenths / 10) } else { format!("{}.{}%", tenths / 10, tenths % 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_the_suffixes_of_kubernetes() {
        for (text, value) in [
            ("0", 0),
            ("42", 42),
            ("1k", 1000),
            ("1Ki", 1024),
            ("1.5Gi", 3 << 29),
            ("2Ti", 2 << 40),
            ("10G", 10_000_000_000),
            ("1500m", 2),
        ] {
            assert_eq!(parse_quantity(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_an_example() {
        for text in ["", "Gi", "1.Gi", "-1", "1GB", "1 Gi", "1e3", "ten", ".5Gi"] {
            let error = parse_quantity(text).unwrap_err().to_string();
            assert!(error.contains("500Gi"), "{text}: {error}");
        }
        assert!(matches!(parse_quantity("9Ei"), Err(QuantityError::TooLarge(_))));
        assert!(matches!(parse_quantity(&"9".repeat(60)), Err(QuantityError::TooLarge(_))));
    }

    #[test]
    fn sizes_for_people_have_at_most_one_decimal() {
        for (bytes, text) in [
            (0, "0"),
            (512, "512"),
            (1024, "1Ki"),
            (1536, "1.5Ki"),
            (90_900_000, "86.7Mi"),
            (1 << 30, "1Gi"),
            ((1 << 30) - 1, "1Gi"),
            (500 << 30, "500Gi"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
    }

    #[test]
    fn a_percentage_is_a_hundred_only_when_all_is_there() {
        assert_eq!(format_percent(9_999, 10_000), "99.9%");
        assert_eq!(format_percent(10_000, 10_000), "100%");
        assert_eq!(format_percent(0, 0), "100%");
        assert_eq!(format_percent(1, 3), "33.3%");
    }

    #[test]
    fn a_quantity_may_be_a_number() {
        let quantity: Quantity = serde_json::from_str("500").unwrap();
        assert_eq!(quantity.value(), Ok(500));
    }
}
