//! Passwords: hashes that cost something, checked where nobody waits for them, and never more at once than the machine can bear.
//!
//! A check takes tens of milliseconds of a processor. So few run at a time, on blocking threads; few more wait; others are told to
//! come back (S17). What was right is remembered for some minutes, as a keyed hash of name, password and the hash that it matched: a password
//! that was changed, or a name that was removed, matches nothing any more. A name that is not there costs as much as one that is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

/// Checks that run at a time.
const CHECKS_MAX: usize = 2;
/// Checks that wait for their turn.
const WAITING_MAX: usize = 64;
/// How long what was right is remembered.
const REMEMBERED: Duration = Duration::from_secs(300);
/// How much of it.
const REMEMBERED_MAX: usize = 10_000;
/// Longest password.
pub const LENGTH_MAX: usize = 1024;
/// Dearest bcrypt hash that is checked: each step doubles the time, and this takes about two seconds.
const BCRYPT_COST_MAX: u32 = 15;
/// Dearest argon2 hash that is checked: KiB of memory, passes over it, lanes.
const ARGON2_MEMORY_MAX_KIB: u32 = 256 << 10;
const ARGON2_PASSES_MAX: u32 = 16;
const ARGON2_LANES_MAX: u32 = 16;

/// Why a text is no hash that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHash {
    /// Of another kind, or of none.
    #[error("it is neither bcrypt nor argon2; `htpasswd -B` and `larder user add` make such")]
    Kind,
    /// Damaged.
    #[error("it is damaged")]
    Damaged,
    /// So dear that guessing would hurt the node more than who guesses.
    #[error(
        "to check it would cost too much; bcrypt's cost is at most {BCRYPT_COST_MAX}, argon2 takes at most 256 MiB, 16 passes and 16 lanes"
    )]
    Cost,
}

/// Too many checks are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// Checks passwords.
pub struct Passwords {
    turns: Semaphore,
    waiting: AtomicUsize,
    key: [u8; 32],
    right: Mutex<HashMap<[u8; 32], Instant>>,
    /// Is checked for names that are not there, when nobody else's can be.
    nobody: String,
}

/// Nothing remembered.
impl Default for Passwords {
    fn default() -> Self {
        let key: [u8; 32] = super::random();
        let nobody = hash(&super::random::<16>()).expect("random bytes are a password");
        Self { turns: Semaphore::new(CHECKS_MAX), waiting: AtomicUsize::new(0), key, right: Mutex::default(), nobody }
    }
}

impl Passwords {
    /// Whether a password is that of a hash. `None`: the name is not there, which takes as long to say. `like`: a hash of
    /// somebody's, so that it takes as long as for somebody.
    ///
    /// # Errors
    /// `Busy`: come back later.
    pub async fn check(&self, name: &str, password: &[u8], hash: Option<&str>, like: Option<&str>) -> Result<bool, Busy> {
        if password.len() > LENGTH_MAX {
            return Ok(false);
        }
        let known = hash.map(|hash| self.remembered(name, password, hash));
        if let Some(known) = known
            && self.is_right(&known)
        {
            return Ok(true);
        }
        let _waiting = Waiting::begin(&self.waiting)?;
        let turn = self.turns.acquire().await.expect("never closed");
        let (is_there, hash) = (hash.is_some(), hash.or(like).unwrap_or(&self.nobody).to_owned());
        let password = password.to_vec();
        let matches = tokio::task::spawn_blocking(move || verify(&password, &hash)).await.expect("a check does not panic");
        drop(turn);
        let is_right = matches & is_there;
        if let Some(known) = known.filter(|_| is_right) {
            self.remember(known);
        }
        Ok(is_right)
    }

    /// Forgets what was right.
    pub fn forget(&self) {
        self.right.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn remembered(&self, name: &str, password: &[u8], hash: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [name.as_bytes(), hash.as_bytes(), password] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize().into()
    }

    fn is_right(&self, known: &[u8; 32]) -> bool {
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right.get(known).is_some_and(|since| since.elapsed() < REMEMBERED)
    }

    fn remember(&self, known: [u8; 32]) {
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() >= REMEMBERED_MAX {
            right.retain(|_, since| since.elapsed() < REMEMBERED);
        }
        if right.len() >= REMEMBERED_MAX {
            right.clear();
        }
        right.insert(known, Instant::now());
    }
}

/// A place among those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Result<Self, Busy> {
        if count.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX + CHECKS_MAX {
            count.fetch_sub(1, Ordering::Relaxed);
            return Err(Busy);
        }
        Ok(Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Hashes a password by argon2id, as OWASP advises. Takes its time.
///
/// # Errors
/// The system gives no random bytes, or the password is too long.
pub fn hash(password: &[u8]) -> Result<String, argon2::password_hash::Error> {
    Argon2::default().hash_password(password).map(|hash| hash.to_string())
}

/// Checks that a text is a hash, and one that may be checked against.
///
/// # Errors
/// It is none.
pub fn check_hash(text: &str) -> Result<(), InvalidHash> {
    if text.starts_with("$2") {
        let parts: bcrypt::HashParts = text.parse().map_err(|_| InvalidHash::Damaged)?;
        return if parts.get_cost() > BCRYPT_COST_MAX { Err(InvalidHash::Cost) } else { Ok(()) };
    }
    if !text.starts_with("$argon2") {
        return Err(InvalidHash::Kind);
    }
    let hash = PasswordHash::new(text).map_err(|_| InvalidHash::Damaged)?;
    let params = argon2::Params::try_from(&hash).map_err(|_| InvalidHash::Damaged)?;
    // A hash without its output would match nothing, or be an error.
    if hash.hash.is_none() || hash.salt.is_none() {
        return Err(InvalidHash::Damaged);
    }
    let is_dear = params.m_cost() > ARGON2_MEMORY_MAX_KIB || params.t_cost() > ARGON2_PASSES_MAX || params.p_cost() > ARGON2_LANES_MAX;
    if is_dear { Err(InvalidHash::Cost) } else { Ok(()) }
}

/// Whether a password is that of a hash. What is no hash matches nothing. Takes its time.
fn verify(password: &[u8], text: &str) -> bool {
    // ORDER: bounds first: hashes come from files and from other nodes.
    if check_hash(text).is_err() {
        return false;
    }
    if text.starts_with("$2") {
        return bcrypt::verify(password, text).unwrap_or(false);
    }
    PasswordHash::new(text).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_both_kinds_match_their_password_and_no_other() {
        let bcrypt = bcrypt::hash("secret", 4).expect("a hash");
        for hash in [hash(b"secret").expect("a hash"), bcrypt.clone(), bcrypt.replacen("$2b$", "$2y$", 1)] {
            assert_eq!(check_hash(&hash), Ok(()));
            assert!(verify(b"secret", &hash) && !verify(b"Secret", &hash) && !verify(b"", &hash), "{hash}");
        }
    }

    #[test]
    fn s17_hashes_that_cost_too_much_are_not_computed() {
        let salt = "c2FsdHNhbHQ";
        let output = "A".repeat(43);
        for params in ["m=4194304,t=3,p=1", "m=8192,t=1000000,p=1", "m=8192,t=1,p=200"] {
            let text = format!("$argon2id$v=19${params}${salt}${output}");
            assert_eq!(check_hash(&text), Err(InvalidHash::Cost), "{params}");
            assert!(!verify(b"x", &text));
        }
        assert_eq!(check_hash("$2b$16$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC"), Err(InvalidHash::Cost));
        for text in ["", "x", "$1$a$b", "{SHA}x"] {
            assert_eq!(check_hash(text), Err(InvalidHash::Kind), "{text}");
        }
        for text in ["$2b$", "$2b$04$short", "$argon2id$", "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ", "$2b$04$\u{e9}"] {
            assert_eq!(check_hash(text), Err(InvalidHash::Damaged), "{text}");
            assert!(!verify(b"x", text));
        }
    }

    #[tokio::test]
    async fn what_was_right_is_remembered_for_that_hash_only() {
        let passwords = Passwords::default();
        let (one, other) = (bcrypt::hash("secret", 4).unwrap(), bcrypt::hash("other", 4).unwrap());
        assert_eq!(passwords.check("alice", b"secret", Some(&one), None).await, Ok(true));
        // Found without computing: the turns are all taken.
        let turns = passwords.turns.acquire_many(CHECKS_MAX as u32).await.unwrap();
        assert_eq!(passwords.check("alice", b"secret", Some(&one), None).await, Ok(true));
        drop(turns);
        assert_eq!(passwords.check("alice", b"secret", Some(&other), None).await, Ok(false), "the password was changed");
        assert_eq!(passwords.check("alice", b"secret", None, Some(&one)).await, Ok(false), "the name was removed");
        assert_eq!(passwords.check("bob", b"wrong", Some(&one), None).await, Ok(false));
        assert_eq!(passwords.right.lock().unwrap().len(), 1, "what was wrong is not remembered");
    }

    #[tokio::test]
    async fn s17_a_flood_of_guesses_is_told_to_come_back() {
        let passwords = std::sync::Arc::new(Passwords::default());
        let turns = passwords.turns.acquire_many(CHECKS_MAX as u32).await.unwrap();
        let hash = bcrypt::hash("secret", 4).unwrap();
        let guesses: Vec<_> = (0..WAITING_MAX + CHECKS_MAX + 10)
            .map(|_| {
                let (passwords, hash) = (passwords.clone(), hash.clone());
                tokio::spawn(async move { passwords.check("alice", b"guess", Some(&hash), None).await })
            })
            .collect();
        while passwords.waiting.load(Ordering::Relaxed) < WAITING_MAX + CHECKS_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(passwords.check("alice", b"guess", Some(&hash), None).await, Err(Busy));
        drop(turns);
        let mut busy = 0;
        for guess in guesses {
            busy += usize::from(guess.await.unwrap() == Err(Busy));
        }
        assert_eq!(busy, 10);
        assert_eq!(passwords.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn s17_a_name_that_is_not_there_takes_as_long_as_one_that_is() {
        let passwords = Passwords::default();
        let hash = bcrypt::hash("secret", 8).unwrap();
        let time = async |there: Option<&str>| {
            let mut times = Vec::new();
            for _ in 0..9 {
                let begun = Instant::now();
                assert_eq!(passwords.check("x", b"guess", there, Some(&hash)).await, Ok(false));
                times.push(begun.elapsed());
            }
            times.sort();
            times[4]
        };
        let (there, absent) = (time(Some(&hash)).await, time(None).await);
        assert!(absent > there / 3 && absent < there * 3, "{there:?} and {absent:?}");
    }
}
