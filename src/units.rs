//! Sizes, durations and numbers as people write them: `512M`, `2G`; `90s`, `1h30m`; `4`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "String")]
pub(crate) struct Size(pub(crate) u64);

/// A span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "String")]
pub(crate) struct Duration(pub(crate) std::time::Duration);

/// A number of vCPUs, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "String")]
pub(crate) struct Cpus(pub(crate) u32);

/// A value that a configuration file may write with or without quotes.
#[derive(Deserialize)]
#[serde(untagged, expecting = "this is neither a number nor text")]
enum Text {
    Number(i64),
    Fraction(f64),
    String(String),
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Text::Number(number) => number.fmt(f),
            Text::Fraction(number) => number.fmt(f),
            Text::String(text) => text.fmt(f),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no size; write 512M or 2G");
        let (number, unit) = split(text.trim());
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
            "" => 0,
            "K" | "k" => 10,
            "M" | "m" => 20,
            "G" | "g" => 30,
            "T" | "t" => 40,
            _ => return Err(wrong()),
        };
        let bytes = number * f64::from(1u32 << 10).powi(shift / 10);
        // Above 2^53 a double is not exact; no machine has so much.
        if !(0.0..9e15).contains(&bytes) {
            return Err(wrong());
        }
        Ok(Size(bytes as u64))
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no duration; write 90s or 1h30m");
        let mut rest = text.trim();
        let mut seconds = 0.0;
        while !rest.is_empty() {
            let (number, tail) = split(rest);
            let number: f64 = number.parse().map_err(|_| wrong())?;
            let len = tail
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(len);
            seconds += number
                * match unit {
                    "ms" => 1e-3,
                    "" | "s" => 1.0,
                    "m" | "min" => 60.0,
                    "h" => 3600.0,
                    "d" => 86400.0,
                    _ => return Err(wrong()),
                };
            rest = tail;
        }
        if text.trim().is_empty() || !(0.0..3e9).contains(&seconds) {
            return Err(wrong());
        }
        Ok(Duration(std::time::Duration::from_secs_f64(seconds)))
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: u32 = text
            .trim()
            .parse()
            .map_err(|_| format!("'{text}' is no number of CPUs"))?;
        match number {
            0 => Err(String::from("0 is too few: a machine has at least one CPU")),
            number => Ok(Cpus(number)),
        }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number that `text` starts with, and the rest.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    text.split_at(end.unwrap_or(text.len()))
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0 >= 1 << shift && self.0 % (1 << shift) == 0 {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0.as_secs(), self.0.subsec_millis());
        if millis > 0 || seconds == 0 {
            return write!(f, "{}ms", self.0.as_millis());
        }
        for (unit, name) in [(3600, "h"), (60, "m")] {
            if seconds % unit == 0 {
                return write!(f, "{}{name}", seconds / unit);
            }
        }
        write!(f, "{seconds}s")
    }
}

impl TryFrom<Text> for Size {
    type Error = String;
    fn try_from(text: Text) -> Result<Self, String> {
        text.to_string().parse()
    }
}

impl TryFrom<Text> for Duration {
    type Error = String;
    fn try_from(text: Text) -> Result<Self, String> {
        text.to_string().parse()
    }
}

impl TryFrom<Text> for Cpus {
    type Error = String;
    fn try_from(text: Text) -> Result<Self, String> {
        text.to_string().parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

impl From<Cpus> for String {
    fn from(cpus: Cpus) -> Self {
        cpus.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_cpus() {
        assert_eq!("4".parse(), Ok(Cpus(4)));
        for text in ["0", "-1", "x", "", "99999999999"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("512M", 512 << 20, "512M"),
            ("2G", 2 << 30, "2G"),
            ("2GiB", 2 << 30, "2G"),
            ("1.5G", 1536 << 20, "1536M"),
            ("64k", 64 << 10, "64K"),
            ("3", 3, "3"),
            ("0", 0, "0"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(
                (size.0, size.to_string().as_str()),
                (bytes, shown),
                "{text}"
            );
        }
        for text in ["", "M", "-1M", "1X", "1 G", "1e9", "99999999T", "1.2.3G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis, shown) in [
            ("90s", 90_000, "90s"),
            ("90", 90_000, "90s"),
            ("1h30m", 5_400_000, "90m"),
            ("2h", 7_200_000, "2h"),
            ("250ms", 250, "250ms"),
            ("1.5s", 1500, "1500ms"),
            ("0", 0, "0ms"),
        ] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration.0.as_millis(), millis, "{text}");
            assert_eq!(duration.to_string(), shown, "{text}");
        }
        for text in ["", "s", "-1s", "1y", "1h 30m", "99999999d"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}
