//! Byte ranges: the part of a blob that a client wants, and the part that it sends.
//!
//! Both are read from text of strangers, so numbers beyond 64 bits are legal input: they stand for "beyond any blob"
//! and never wrap. Ranges are inclusive on the wire and half-open everywhere else.

use std::ops::Range;

/// What a `Range` header asks for, for a blob of a known size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Everything: no header, or one that may be ignored (another unit, broken, or several ranges: S22).
    Whole,
    /// These bytes; never empty, never past the end.
    Part(Range<u64>),
    /// Nothing of what is there.
    Unsatisfiable,
}

/// Reads a `Range` header. SPEC: RFC 9110, 14.2.
pub(super) fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let Some(spec) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else { return Wanted::Whole };
    if spec.contains(',') {
        return Wanted::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Some(first), None) if last.is_empty() => first..size,
        (None, Some(length)) if first.is_empty() => size.saturating_sub(length)..size,
        // Backwards: such a range is invalid, and may be refused. A client that gets nothing notices its mistake.
        (Some(_), Some(_)) => return Wanted::Unsatisfiable,
        (Some(_), None) | (None, Some(_)) | (None, None) => return Wanted::Whole,
    };
    if range.start < range.end { Wanted::Part(range) } else { Wanted::Unsatisfiable }
}

/// What a `Content-Range` header says of an uploaded chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Offset of its first byte in the blob.
    pub(super) start: u64,
    /// Its bytes.
    pub(super) size: u64,
}

/// Reads the `Content-Range` of an upload, `<first>-<last>`; the form of RFC 9110 (`bytes <first>-<last>/<total>`) is
/// taken too. `None` for anything else. SPEC: end-5.
pub(super) fn chunk(header: &str) -> Option<Chunk> {
    let text = header.trim();
    let text = text.strip_prefix("bytes ").unwrap_or(text);
    let text = text.split_once('/').map_or(text, |(range, _)| range);
    let (first, last) = text.split_once('-')?;
    let (start, last) = (number(first)?, number(last)?);
    Some(Chunk { start, size: last.checked_sub(start)?.saturating_add(1) })
}

/// A number of any length; what 64 bits can't hold is the largest that they can.
pub(super) fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_clamped_to_the_blob() {
        for (header, size, expected) in [
            ("bytes=0-0", 10, Wanted::Part(0..1)),
            ("bytes=0-9", 10, Wanted::Part(0..10)),
            ("bytes=3-", 10, Wanted::Part(3..10)),
            ("bytes=9-10", 10, Wanted::Part(9..10)),
            ("bytes=0-9223372036854775808", 10, Wanted::Part(0..10)),
            ("bytes=0-99999999999999999999999", 10, Wanted::Part(0..10)),
            ("bytes=-3", 10, Wanted::Part(7..10)),
            ("bytes=-11", 10, Wanted::Part(0..10)),
            ("bytes=-18446744073709551616", 10, Wanted::Part(0..10)),
        ] {
            assert_eq!(wanted(Some(header), size), expected, "{header}");
        }
    }

    #[test]
    fn what_lies_behind_the_end_is_unsatisfiable() {
        for header in [
            "bytes=10-",
            "bytes=10-11",
            "bytes=2-1",
            "bytes=-0",
            "bytes=9223372036854775808-",
            "bytes=18446744073709551616-18446744073709551617",
        ] {
            assert_eq!(wanted(Some(header), 10), Wanted::Unsatisfiable, "{header}");
        }
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn s22_several_broken_or_foreign_ranges_mean_the_whole_blob() {
        let thousand = format!("bytes={}", vec!["0-1"; 1_000].join(","));
        for header in [&thousand, "bytes=", "bytes=-", "bytes=a-b", "bytes=1", "bytes=+1-2", "lines=1-2", ""] {
            assert_eq!(wanted(Some(header), 10), Wanted::Whole, "{header}");
        }
        assert_eq!(wanted(None, 10), Wanted::Whole);
    }

    #[test]
    fn s21_the_range_of_a_chunk_is_read_or_refused_and_never_wraps() {
        for (header, expected) in [
            ("0-0", Some((0, 1))),
            ("5-9", Some((5, 5))),
            ("bytes 5-9/20", Some((5, 5))),
            ("bytes 5-9/*", Some((5, 5))),
            ("0-9223372036854775808", Some((0, (1 << 63) + 1))),
            ("0-18446744073709551615", Some((0, u64::MAX))),
            ("18446744073709551616-18446744073709551617", Some((u64::MAX, 1))),
            ("9-5", None),
            ("-5", None),
            ("5-", None),
            ("", None),
            ("a-b", None),
            ("-1-5", None),
        ] {
            assert_eq!(chunk(header), expected.map(|(start, size)| Chunk { start, size }), "{header}");
        }
    }
}
