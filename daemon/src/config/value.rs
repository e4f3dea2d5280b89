//! Text to sizes, times, addresses: strict, and alike for every place where a value can stand.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;

use super::Fault;

/// A value before it is checked.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Text in the file.
    Text(String),
    /// An integer in the file.
    Integer(String),
    /// `true` or `false` in the file.
    Boolean(bool),
    /// A list of texts in the file.
    List(Vec<String>),
    /// Something in the file that no setting takes; how it is shown.
    Other(String),
    /// A variable or a flag, where everything is text.
    Word(String),
}

impl Value {
    /// The value as it was written, on one line and not too long, for messages.
    pub(super) fn shown(&self) -> String {
        let text = match self {
            Self::Text(text) | Self::Word(text) => format!("{text:?}"),
            Self::Integer(text) | Self::Other(text) => text.clone(),
            Self::Boolean(value) => value.to_string(),
            Self::List(list) => format!("{list:?}"),
        };
        if text.chars().count() <= SHOWN_MAX { text } else { text.chars().take(SHOWN_MAX).chain("...".chars()).collect() }
    }

    pub(super) fn text(&self) -> Result<&str, Fault> {
        match self {
            Self::Text(text) | Self::Word(text) => Ok(text.trim()),
            _ => Err(Fault::Type { wanted: "text in quotes" }),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool, Fault> {
        match self {
            Self::Boolean(value) => Ok(*value),
            Self::Word(text) if text.trim() == "true" => Ok(true),
            Self::Word(text) if text.trim() == "false" => Ok(false),
            _ => Err(Fault::Type { wanted: "true or false, without quotes" }),
        }
    }

    /// A whole number within bounds, both included.
    pub(super) fn number(&self, least: usize, most: usize) -> Result<usize, Fault> {
        let (Self::Integer(text) | Self::Word(text)) = self else {
            return Err(Fault::Type { wanted: "a whole number, without quotes" });
        };
        let text = text.trim().replace('_', "");
        let digits = text.strip_prefix('-').unwrap_or(&text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Fault::Type { wanted: "a whole number, without quotes" });
        }
        // What does not fit, or is negative, is out of bounds as well.
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| Fault::Bounds { least: least.to_string(), most: most.to_string() })
    }

    /// A list of texts; in a variable, they are separated by commas.
    pub(super) fn list(&self) -> Result<Vec<String>, Fault> {
        match self {
            Self::List(list) => Ok(list.iter().map(|text| text.trim().to_owned()).collect()),
            Self::Word(text) => Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()),
            _ => Err(Fault::Type { wanted: "a list of texts: [\"a\", \"b\"]" }),
        }
    }

    /// A size in bytes within bounds, both included.
    pub(super) fn size(&self, least: u64, most: u64) -> Result<u64, Fault> {
        if let Self::Integer(_) = self {
            return Err(Fault::Size);
        }
        let bytes = size(self.text()?)?;
        let shown = |bytes| ByteSize::b(bytes).to_string();
        if (least..=most).contains(&bytes) { Ok(bytes) } else { Err(Fault::Bounds { least: shown(least), most: shown(most) }) }
    }

    /// A time within bounds, both included; these are given as they are shown.
    pub(super) fn duration(&self, least: &str, most: &str) -> Result<Duration, Fault> {
        if let Self::Integer(_) = self {
            return Err(Fault::Duration);
        }
        let time = duration(self.text()?)?;
        let bound = |text| duration(text).expect("bounds are written in this program, and a test reads them all");
        if (bound(least)..=bound(most)).contains(&time) {
            Ok(time)
        } else {
            Err(Fault::Bounds { least: least.to_owned(), most: most.to_owned() })
        }
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(&self, words: &'static [&'static str], values: &[T]) -> Result<T, Fault> {
        let text = self.text().map_err(|_| Fault::Choice(words))?;
        let place = words.iter().position(|word| *word == text).ok_or(Fault::Choice(words))?;
        Ok(values[place])
    }

    /// An address to listen on.
    pub(super) fn address(&self) -> Result<SocketAddr, Fault> {
        let address: SocketAddr = self.text()?.parse().map_err(|_| Fault::Address)?;
        if address.port() == 0 { Err(Fault::PortZero) } else { Ok(address) }
    }

    /// An http or https URL without a slash at its end, or nothing.
    pub(super) fn url(&self) -> Result<Option<String>, Fault> {
        let text = self.text()?.trim_end_matches('/');
        if text.is_empty() {
            return Ok(None);
        }
        let uri: http::Uri = text.parse().map_err(|_| Fault::Url)?;
        let web = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority().filter(|_| web).ok_or(Fault::Url)?;
        if authority.as_str().contains('@') {
            return Err(Fault::Credentials);
        }
        // It becomes a header, which takes ASCII only.
        if authority.host().is_empty() || uri.query().is_some() || text.contains('#') || !text.is_ascii() {
            return Err(Fault::Url);
        }
        Ok(Some(text.to_owned()))
    }
}

/// Longest value that a message repeats.
const SHOWN_MAX: usize = 80;
const NAME_LENGTH_MAX: usize = 64;

/// Whether people can tell nodes and zones apart by it, wherever it is printed.
pub(super) fn is_name(text: &str) -> bool {
    (1..=NAME_LENGTH_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

/// Whether a text is `host:port` with a port that can be dialed.
pub fn is_host_port(text: &str) -> bool {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() != 0 && !address.ip().is_unspecified();
    }
    text.rsplit_once(':').is_some_and(|(host, port)| {
        is_host(host) && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.split('.').all(|label| is_name(label) && !label.starts_with('-'))
        // All digits and dots, but no address (that was tried before): a mistyped one.
        && !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// Reads a size: a number and a unit (`512MiB`, `1.5 GB`), in bytes.
///
/// # Errors
/// `Size`: it is none, has no unit, or no computer could count it.
pub fn size(text: &str) -> Result<u64, Fault> {
    let text = text.trim();
    // A number alone leaves open what it counts.
    if !text.ends_with(|letter: char| letter.is_ascii_alphabetic()) {
        return Err(Fault::Size);
    }
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| Fault::Size)
}

/// Reads a time: whole numbers with units, the bigger ones first (`90s`, `1h30m`, `1d 12h`).
///
/// # Errors
/// `Duration`: it is none, or longer than can be counted.
pub fn duration(text: &str) -> Result<Duration, Fault> {
    let mut rest = text.trim();
    let (mut total_ms, mut before) = (0u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let tail = tail.trim_start();
        let letters = tail.len() - tail.trim_start_matches(|letter: char| letter.is_ascii_lowercase()).len();
        let (unit, tail) = tail.split_at(letters);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => 24 * 60 * 60 * 1000,
            _ => return Err(Fault::Duration),
        };
        if unit_ms >= before {
            return Err(Fault::Duration);
        }
        before = unit_ms;
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms)).ok_or(Fault::Duration)?;
        total_ms = total_ms.checked_add(part).ok_or(Fault::Duration)?;
        rest = tail.trim_start();
    }
    if before == u64::MAX { Err(Fault::Duration) } else { Ok(Duration::from_millis(total_ms)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_numbers_with_units() {
        let check =
            |text: &str, expected: Option<u64>| assert_eq!(duration(text).ok().map(|time| time.as_millis() as u64), expected, "{text:?}");
        check("15m", Some(900_000));
        check("1h30m", Some(5_400_000));
        check(" 1d 12 h ", Some(129_600_000));
        check("250ms", Some(250));
        check("0s", Some(0));
        for text in
            ["", "15", "m", "-1s", "1.5h", "1m1h", "1s1s", "1w", "1M", "99999999999999999999s", "18446744073709551615d", "1s!", "一s"]
        {
            check(text, None);
        }
    }

    #[test]
    fn sizes_have_a_unit() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(size(text).ok(), expected, "{text:?}");
        check("512MiB", Some(512 << 20));
        check("4 GiB", Some(4 << 30));
        check("1.5GiB", Some(3 << 29));
        check("1MB", Some(1_000_000));
        for text in ["", "512", "MiB", "-1MiB", "5 apples", "1e3MiB", "0x10MiB"] {
            check(text, None);
        }
    }

    #[test]
    fn hosts_that_can_be_dialed_are_told_from_others() {
        for good in ["10.0.0.7:5000", "[2001:db8::7]:5000", "build-07:5000", "build_07.example.org:65535"] {
            assert!(is_host_port(good), "{good}");
        }
        for bad in [
            "",
            "build-07",
            ":5000",
            "build-07:0",
            "build-07:65536",
            "build-07:+1",
            "0.0.0.0:5000",
            "10.0.0.300:5000",
            "a b:1",
            "-a:1",
            "a..b:1",
        ] {
            assert!(!is_host_port(bad), "{bad}");
        }
    }
}
