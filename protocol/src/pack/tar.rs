//! Tar headers, written by hand: a pack only ever writes regular files with names of its own making, and never
//! unpacks anything, so there is nothing here that reads a header.
//!
//! ```text
//! header (512)            content            zeros up to the next 512
//! +-----------------------+------------------+-------+
//! | ustar, mode 0644      | size bytes       | 0...  |
//! +-----------------------+------------------+-------+
//! ```
//!
//! A name of more than 100 bytes (`blobs/sha512/...`) or a size of 8 GiB and more doesn't fit there. A pax extended header
//! (`typeflag` `x`) goes before it then; it is the only kind of extension used.

/// Everything in a tar begins at a multiple of this.
pub const BLOCK: u64 = 512;
/// Two blocks of zeros end a tar.
pub const END: u64 = 2 * BLOCK;
/// Longest name in a plain header.
const NAME_MAX: usize = 100;
/// First size that eleven octal digits can't hold.
const SIZE_LIMIT: u64 = 1 << 33;

/// Zeros that follow `size` bytes of content.
pub fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK) - size
}

/// The blocks that stand before the content of a file.
pub fn header(name: &str, size: u64, modified_s: u64) -> Vec<u8> {
    let mut extensions = Vec::new();
    if name.len() > NAME_MAX {
        extensions.extend(pax_record("path", name));
    }
    if size >= SIZE_LIMIT {
        extensions.extend(pax_record("size", &size.to_string()));
    }
    let mut blocks = Vec::new();
    if !extensions.is_empty() {
        let length = extensions.len() as u64;
        blocks.extend(plain("larder/pax", length, modified_s, b'x'));
        blocks.extend(extensions);
        blocks.resize(blocks.len() + padding(length) as usize, 0);
    }
    let short = &name[..name.len().min(NAME_MAX)];
    blocks.extend(plain(short, if size < SIZE_LIMIT { size } else { 0 }, modified_s, b'0'));
    blocks
}

fn plain(name: &str, size: u64, modified_s: u64, kind: u8) -> [u8; BLOCK as usize] {
    assert!(name.is_ascii() && name.len() <= NAME_MAX && size < SIZE_LIMIT, "tar member {name} of {size} bytes");
    let mut block = [0; BLOCK as usize];
    let mut field = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    field(0, name.as_bytes());
    field(100, b"0000644\0");
    field(108, b"0000000\0");
    field(116, b"0000000\0");
    field(124, format!("{size:011o}\0").as_bytes());
    field(136, format!("{:011o}\0", modified_s.min(SIZE_LIMIT - 1)).as_bytes());
    field(148, b"        ");
    field(156, &[kind]);
    field(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts its own digits as well.
fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_count_their_own_length() {
        assert_eq!(pax_record("path", "x"), b"9 path=x\n");
        // 89 bytes of value: the length grows from two digits to three by counting itself.
        for size in 80..100 {
            let record = pax_record("path", &"n".repeat(size));
            assert_eq!(record.split(|byte| *byte == b' ').next(), Some(record.len().to_string().as_bytes()));
        }
    }

    #[test]
    fn only_long_names_and_huge_sizes_are_extended() {
        assert_eq!(header("blobs/sha256/aa", 7, 0).len(), 512);
        assert_eq!(header(&"n".repeat(101), 7, 0).len(), 3 * 512);
        assert_eq!(header("n", (1 << 33) - 1, 0).len(), 512);
        assert_eq!(header("n", 1 << 33, 0).len(), 3 * 512);
    }
}
