//! The part of an address behind the question mark, and percent-encoding.
//!
//! Form rules, as every client library writes them: `&` between parameters, `+` for a space, `%` and two hex digits
//! for a byte. What does not decode to text becomes a value that no grammar takes, so that it is refused where it is parsed.

/// Stands for what does not decode: in no name, tag, digest or number.
const UNREADABLE: &str = "\u{FFFD}";

/// The parameters of a query, decoded, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query; unknown parameters are kept and never asked for.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let parameters = text.unwrap_or_default().split('&').filter(|part| !part.is_empty());
        let text = |text| decode(text, Plus::Space).unwrap_or_else(|| UNREADABLE.to_owned());
        let decoded = parameters.map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (text(name), text(value))
        });
        Self(decoded.collect())
    }

    /// The first value of a parameter.
    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Every value of a parameter.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// What a `+` stands for: a space in queries, itself in paths.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plus {
    /// In a query.
    Space,
    /// In a path.
    Plus,
}

/// Undoes percent-encoding; `None` for broken escapes and for bytes that are not UTF-8.
pub(crate) fn decode(text: &str, plus: Plus) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex_digit(rest.next()?)? << 4 | hex_digit(rest.next()?)?,
            b'+' if plus == Plus::Space => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A value as it may stand in the query of an address, and in a header.
pub(crate) fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_repeated_ones_kept() {
        let query = Query::parse(Some("digest=sha256%3Aab&tag=a&tag=b+c&&empty=&flag"));
        assert_eq!(query.first("digest"), Some("sha256:ab"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b c"]);
        assert_eq!(Query::parse(Some("mount=%ff")).first("mount"), Some(UNREADABLE));
        assert_eq!((query.first("empty"), query.first("flag"), query.first("absent")), (Some(""), Some(""), None));
    }

    #[test]
    fn what_was_encoded_decodes_to_what_it_was() {
        for text in ["application/vnd.x+json", "a b&c=d>\r\n", "ü€", "%", ""] {
            let encoded = encode(text);
            assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic() && !b"&=<>+\"".contains(&byte)), "{encoded}");
            assert_eq!(decode(&encoded, Plus::Space).as_deref(), Some(text));
        }
    }

    #[test]
    fn broken_escapes_and_bytes_that_are_no_text_give_nothing() {
        for text in ["%", "%1", "%zz", "%ff", "a%e2%28"] {
            assert_eq!(decode(text, Plus::Plus), None, "{text}");
        }
        assert_eq!(decode("a+b%2f", Plus::Plus).as_deref(), Some("a+b/"));
    }
}
