//! Sessions of people who have signed in with a browser.
//!
//! A session is a secret in a cookie, and who it is about; only a hash of the secret is kept, in memory, on the node where somebody signed in. It gives no right to the
//! registry by itself: it is good for getting tokens, which are asked for and shown like any others. Sessions end at their time, when they are not used,
//! when there are too many, with a restart, and with whom they are about.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::directory::Since;
use super::policy::Who;
use super::random;

/// Most sessions; then the one that was not used for the longest goes.
const SESSIONS_MAX: usize = 2_000;
/// Most of one person.
const OF_ONE_MAX: usize = 20;
/// One that is not used for so long ends.
const IDLE_MAX: Duration = Duration::from_secs(3600);
/// A secret in letters is shorter.
const SECRET_LENGTH_MAX: usize = 64;

/// The sessions of this node.
pub(super) struct Sessions {
    life: Duration,
    all: Mutex<HashMap<[u8; 32], Session>>,
}

struct Session {
    who: Who,
    since: Option<Since>,
    begun: Instant,
    used: Instant,
}

/// Somebody of whom a session is, and for how long it lasts at most.
pub(super) struct Found {
    pub(super) who: Who,
    pub(super) since: Option<Since>,
    pub(super) left: Duration,
}

impl Sessions {
    pub(super) fn new(life: Duration) -> Self {
        Self { life, all: Mutex::default() }
    }

    /// Begins one; the secret, and how long it lasts.
    pub(super) fn begin(&self, who: Who, since: Option<Since>, now: Instant) -> (String, Duration) {
        let secret = URL_SAFE_NO_PAD.encode(random::<32>());
        let mut all = self.all();
        all.retain(|_, session| session.left(self.life, now).is_some());
        make_room(&mut all, OF_ONE_MAX, |session| session.who.name() == who.name());
        make_room(&mut all, SESSIONS_MAX, |_| true);
        all.insert(print(&secret), Session { who, since, begun: now, used: now });
        (secret, self.life)
    }

    /// Whose secret this is; it counts as used.
    pub(super) fn find(&self, secret: &str, now: Instant) -> Option<Found> {
        let mut all = self.all();
        let print = print(secret);
        let session = all.get_mut(&print)?;
        let Some(left) = session.left(self.life, now) else {
            all.remove(&print);
            return None;
        };
        session.used = now;
        Some(Found { who: session.who.clone(), since: session.since, left })
    }

    /// Ends one, if there is one.
    pub(super) fn end(&self, secret: &str) {
        self.all().remove(&print(secret));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<[u8; 32], Session>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// How long it lasts still; `None`: it is over.
    fn left(&self, life: Duration, now: Instant) -> Option<Duration> {
        let is_idle = now.duration_since(self.used) >= IDLE_MAX;
        life.checked_sub(now.duration_since(self.begun)).filter(|left| !left.is_zero() && !is_idle)
    }
}

/// Lets those go that were not used for the longest, until there is room for one more of a kind.
fn make_room(all: &mut HashMap<[u8; 32], Session>, max: usize, is_of_kind: impl Fn(&Session) -> bool) {
    let mut kind: Vec<_> = all.iter().filter(|(_, session)| is_of_kind(session)).map(|(print, session)| (session.used, *print)).collect();
    if kind.len() < max {
        return;
    }
    kind.sort_unstable();
    for (_, print) in &kind[..=kind.len() - max] {
        all.remove(print);
    }
}

/// What is kept of a secret. It has 256 random bits: a quick hash does, and nobody learns anything from how long it takes to find it.
fn print(secret: &str) -> [u8; 32] {
    let bounded = if secret.len() <= SECRET_LENGTH_MAX { secret } else { "" };
    Sha256::digest(bounded).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(12 * 3600);

    fn who(name: &str) -> Who {
        Who::User { name: name.to_owned(), groups: vec![] }
    }

    #[test]
    fn a_session_is_its_secrets_until_its_time_and_while_it_is_used() {
        let (sessions, start) = (Sessions::new(LIFE), Instant::now());
        let (secret, life) = sessions.begin(who("alice"), None, start);
        assert_eq!((life, secret.len()), (LIFE, 43));
        assert_eq!(sessions.find(&secret, start).expect("hers").who, who("alice"));
        for wrong in ["", "x", &secret[1..], &format!("{secret}x"), &"x".repeat(1 << 20)] {
            assert!(sessions.find(wrong, start).is_none(), "{wrong:.50}");
        }
        // Used, it lasts as long as it may, and no longer.
        let mut now = start;
        let step = IDLE_MAX - Duration::from_secs(1);
        while now + step < start + LIFE {
            now += step;
            assert_eq!(sessions.find(&secret, now).expect("used").left, start + LIFE - now);
        }
        assert!(sessions.find(&secret, start + LIFE).is_none());
        let (idle, _) = sessions.begin(who("alice"), None, start);
        assert!(sessions.find(&idle, start + IDLE_MAX).is_none() && sessions.all().is_empty());
        let (ended, _) = sessions.begin(who("alice"), None, start);
        sessions.end(&ended);
        assert!(sessions.find(&ended, start).is_none());
    }

    #[test]
    fn sessions_are_bounded_for_one_and_for_all() {
        let (sessions, start) = (Sessions::new(LIFE), Instant::now());
        let at = |second: usize| start + Duration::from_secs(second as u64);
        let secrets: Vec<_> = (0..OF_ONE_MAX + 3).map(|number| sessions.begin(who("alice"), None, at(number)).0).collect();
        let left = secrets.iter().map(|secret| sessions.find(secret, at(secrets.len())).is_some()).collect::<Vec<_>>();
        assert_eq!((left.iter().filter(|there| **there).count(), &left[..3]), (OF_ONE_MAX, &[false; 3][..]));
        for number in 0..SESSIONS_MAX + 5 {
            sessions.begin(who(&format!("user-{number}")), None, at(100));
        }
        assert_eq!(sessions.all().len(), SESSIONS_MAX);
    }
}
