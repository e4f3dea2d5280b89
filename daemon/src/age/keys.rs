//! Who may read (recipients, which are public) and who can (identities, which are secret).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};

use super::bech32;

const RECIPIENT: &str = "age";
const IDENTITY: &str = "age-secret-key-";
/// Most identities in a file: all are tried, one after the other.
pub const IDENTITIES_MAX: usize = 64;
/// Most bytes of such a file.
const FILE_SIZE_MAX: u64 = 16 << 10;

/// Somebody who may read: an X25519 public key, written `age1...`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Recipient(pub(super) [u8; 32]);

/// Why a text is no recipient.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecipient {
    /// The secret itself.
    #[error("this is an identity, which is secret; the recipient that belongs to it begins with age1: `age-keygen -y FILE` prints it")]
    Identity,
    /// Something else.
    #[error(
        "a recipient is what `age-keygen` prints as the public key: age1 and 58 letters and digits; {0:?} is none, or has a slip in it"
    )]
    Text(String),
}

impl FromStr for Recipient {
    type Err = InvalidRecipient;

    fn from_str(text: &str) -> Result<Self, InvalidRecipient> {
        if text.to_ascii_lowercase().starts_with(IDENTITY) {
            return Err(InvalidRecipient::Identity);
        }
        let key = bech32::decode(RECIPIENT, text).and_then(|bytes| bytes.try_into().ok());
        key.map(Self).ok_or_else(|| InvalidRecipient::Text(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bech32::encode(RECIPIENT, &self.0))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Somebody who can read. Shows nothing but whose it is.
pub struct Identity {
    key: PrivateKey,
    recipient: Recipient,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient)
    }
}

impl Identity {
    fn parse(text: &str) -> Option<Self> {
        let secret = bech32::decode(IDENTITY, text)?;
        let key = PrivateKey::from_private_key(&X25519, &secret).ok()?;
        let recipient = Recipient(key.compute_public_key().ok()?.as_ref().try_into().ok()?);
        Some(Self { key, recipient })
    }

    /// Whom to encrypt to, so that it can read.
    pub fn recipient(&self) -> Recipient {
        self.recipient
    }

    /// What it has in common with the maker of a key that nobody keeps; `None` for a key that is none.
    pub(super) fn agree(&self, share: &[u8; 32]) -> Option<[u8; 32]> {
        agree(&self.key, UnparsedPublicKey::new(&X25519, share), (), |shared| shared.try_into().map_err(|_| ())).ok()
    }
}

/// Reads identities as `age-keygen` writes them: a line each, and lines of comment. `file` is how an error calls the text; the text is never repeated.
///
/// # Errors
/// Which line is none, in words.
pub fn parse_identities(file: &str, text: &str) -> Result<Vec<Arc<Identity>>, String> {
    let mut identities = Vec::new();
    for (number, line) in text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let wrong = || {
            format!(
                "line {} of the identity file {file} is no X25519 identity: it should be AGE-SECRET-KEY-1..., as `age-keygen` writes it",
                number + 1
            )
        };
        identities.push(Arc::new(Identity::parse(line).ok_or_else(wrong)?));
        if identities.len() > IDENTITIES_MAX {
            return Err(format!("the identity file {file} has more than {IDENTITIES_MAX} identities"));
        }
    }
    if identities.is_empty() {
        return Err(format!("there is no identity in the file {file}: `age-keygen -o FILE` makes one"));
    }
    Ok(identities)
}

/// The text of an identity file, which nobody but its owner may read.
///
/// # Errors
/// It can't be read, or others can read it, in words.
pub fn read_identities(path: &Path) -> Result<String, String> {
    let failed = |why: String| format!("read the identity file {}: {why}", path.display());
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let found = file.metadata().map_err(|error| failed(error.to_string()))?;
    if !found.is_file() {
        return Err(failed("it is no file".to_owned()));
    }
    let mode = found.mode() & 0o777;
    // The group may: a service's secrets belong to root and its own group.
    if mode & 0o027 != 0 {
        return Err(failed(format!("others may read or change it (mode {mode:03o}); make it private with: chmod 600")));
    }
    let mut text = String::new();
    file.take(FILE_SIZE_MAX).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Made for tests by `age-keygen`; nothing but testdata was ever encrypted to it.
    const TEXT: &str = include_str!("../../testdata/test-identity.txt");

    #[test]
    fn identities_are_what_age_keygen_writes() {
        let identities = parse_identities("f", TEXT).expect("identities");
        let named = TEXT.lines().find_map(|line| line.strip_prefix("# public key: ")).expect("as age-keygen writes it");
        assert_eq!(identities[0].recipient().to_string(), named);
        assert_eq!(named.parse(), Ok(identities[0].recipient()));
        assert!(!format!("{identities:?}").to_uppercase().contains("SECRET"), "{identities:?}");
    }

    #[test]
    fn what_is_none_is_told_and_not_repeated() {
        let secret = TEXT.lines().find(|line| line.starts_with("AGE")).expect("one");
        let mut slip = secret.to_owned();
        slip.replace_range(20..21, if &secret[20..21] == "Q" { "P" } else { "Q" });
        let error = parse_identities("f", &format!("# a comment\n\n{slip}\n")).expect_err("a slip");
        assert!(error.starts_with("line 3 of the identity file f") && !error.contains(&slip), "{error}");
        assert!(parse_identities("f", "# nothing\n").expect_err("none").contains("no identity"));
        assert_eq!(secret.parse::<Recipient>(), Err(InvalidRecipient::Identity));
        for bad in ["", "age1", "ssh-ed25519 AAAA", "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq"] {
            assert!(matches!(bad.parse::<Recipient>(), Err(InvalidRecipient::Text(_))), "{bad}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("identity");
        std::fs::write(&path, TEXT).expect("write");
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o660, false), (0o604, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            let read = read_identities(&path);
            assert_eq!(read.is_ok(), good, "{mode:o}: {read:?}");
        }
        assert!(read_identities(folder.path()).is_err());
    }
}
