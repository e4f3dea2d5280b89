//! Who is asking, and may they: users, robots, rules, tokens.
//!
//! - **Who there is** (`directory`): people, robots and rules are records, so they are the same on every node; a password file may add people
//!   on one. All of it is read anew when something has changed, which each request looks at first: what was taken away is gone with the next.
//! - **Who is asking** (`password`, `token`, `foreign`): a name and a password, a client's certificate, a robot's token, a token that a member has signed, or one of a
//!   configured issuer. The key and the algorithm are ours to choose, and never the token's. People with a browser keep a `session`, which gets them tokens.
//! - **May they** (`policy`): one function, without I/O. What no rule gives is refused. Its answer is asked anew at every request, also of who comes
//!   with a token: a token limits what its owner may do, and adds nothing.
//! - **Who says so** (`manage`): what the commands of the command line do.
//!
//! # What holds
//!
//! - A node that was ever told of anybody asks everybody, also when the last was removed; and so does one whose configuration names a password file, a
//!   token server, an issuer, or says `auth.required`. What can't be read lets nobody in.
//! - Passwords and tokens appear in no log, no error and no record; of both, only hashes are kept.
//! - Checking costs no more than `password` allows, and takes as long for a name that is not there.
//!
//! - **What was done** (`audit`): who did what, kept for some days.
//!
//! One core task, `audit`, writes that down. Locks: the last reading, held while it is made anew; the caches, held for a look. But for what `audit` keeps, nothing here survives a
//! crash, and nothing needs to.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use aws_lc_rs::rand::SecureRandom as _;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use larder_protocol::access::Actions;
use larder_protocol::stamp::NodeId;
use sha2::Digest as _;
use subtle::ConstantTimeEq as _;

use crate::config::{self, Config};
use crate::limits::Guesses;
use crate::store::{self, Store};
use crate::tasks::Tasks;
use crate::tls::Client;

mod audit;
mod directory;
mod fetch;
mod foreign;
#[cfg(test)]
mod fuzz;
pub mod htpasswd;
mod keys;
mod login;
mod manage;
pub mod password;
pub mod policy;
pub mod scope;
mod session;
mod token;

pub use audit::{Audit, Event, LISTED_MAX, Wanted};
pub use directory::Snapshot;
pub use login::{Begun, Returned};
pub use manage::{Explained, NewRobot, RobotInfo, RuleInfo, UserInfo};
pub use policy::Who;
pub use scope::Access;

use directory::Since;
use foreign::Foreign;
use login::Logins;
use password::Passwords;
use session::Sessions;
use token::{Claims, Expected, InvalidToken, Use};

/// What robots' names begin with when they sign in.
pub const ROBOT_PREFIX: &str = "robot+";
/// The name under which a token of another issuer is a password.
pub const OIDC_NAME: &str = "oidc";
/// In the data folder: there have been users here.
const MARKER: &str = "closed";
/// Longest header that is looked at.
const HEADER_LENGTH_MAX: usize = 24 << 10;
/// Most tokens whose signatures are remembered as right.
const TOKENS_MAX: usize = 10_000;

/// Signs by a key of this node.
pub type Sign = Arc<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;
/// The key that this node signs by at this moment, and how.
pub type Signer = Arc<dyn Fn() -> (NodeId, Sign) + Send + Sync>;

/// Who may do what. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    node: NodeId,
    signer: Signer,
    config: config::Auth,
    /// The configuration alone is reason enough to ask everybody, or what was left in the data folder.
    is_closed: bool,
    /// Is made when this node is first told of anybody: so that one which has lost its index is not open until it has heard from others again.
    marker: PathBuf,
    current: ArcSwapOption<Read>,
    file: Mutex<File>,
    passwords: Passwords,
    guesses: Mutex<Guesses>,
    started: Instant,
    foreign: Foreign,
    logins: Logins,
    sessions: Sessions,
    audit: Arc<Audit>,
    events: Mutex<Option<audit::Events>>,
    tokens: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

/// The last reading.
struct Read {
    /// The store's number of changes, and what was seen of the file.
    seen: (u64, Option<Mark>),
    snapshot: Arc<Snapshot>,
}

/// What tells whether a file has changed.
type Mark = (u64, SystemTime, u64);

/// The password file.
#[derive(Default)]
struct File {
    mark: Option<Mark>,
    entries: BTreeMap<String, String>,
}

/// Somebody who asks, and what they come with.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who it is.
    pub who: Who,
    since: Option<Since>,
    /// What the token is for; `None`: whatever the rules give.
    scope: Option<Vec<Access>>,
    snapshot: Arc<Snapshot>,
}

/// Whether a caller may do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Yes.
    Allowed,
    /// With another token it would.
    OtherToken,
    /// No.
    Denied,
}

/// Why somebody is nobody.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// What was shown proves nothing.
    #[error("{0}")]
    Credentials(String),
    /// Too many wrong passwords came from there, or for this name.
    #[error("too many wrong passwords from there, or for this name; try again in {} s", .0.as_secs().max(1))]
    Slowed(Duration),
    /// Too many passwords are being checked.
    #[error("too many passwords are being checked; try again in a moment")]
    Busy,
    /// It can't be looked up.
    #[error("look up who may do what: {0}")]
    Store(#[from] store::Error),
}

/// A token, and what a client is told of it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// To be shown with requests.
    pub token: String,
    /// To get others.
    pub refresh_token: Option<String>,
    /// For how long it is good.
    pub expires_in: Duration,
    /// When it was issued, in seconds since 1970.
    pub issued_at: u64,
    /// What it is for.
    pub access: Vec<Access>,
}

impl Auth {
    /// Opens the door's book. Blocks on the disk.
    ///
    /// # Errors
    /// The password file can't be used, or the store.
    pub fn open(config: &Config, store: Store, node: NodeId, signer: Signer) -> anyhow::Result<Self> {
        let is_closed =
            config.auth.required || config.auth.htpasswd.is_some() || config.token_server.realm.is_some() || !config.oidc.is_empty();
        let marker = config.data_dir.join(MARKER);
        let is_closed = is_closed || marker.exists();
        let mut file = File::default();
        if let Some(path) = &config.auth.htpasswd {
            file.mark = mark(path);
            file.entries = htpasswd::read(path)?;
        }
        // S42: told at the start, and not when somebody wants to sign in.
        for issuer in &config.oidc {
            login::read_secret(issuer).map_err(anyhow::Error::msg)?;
        }
        let (audit, events) = Audit::new(config.auth.audit, config.auth.audit_kept, &config.data_dir);
        let inner = Inner {
            store,
            node,
            signer,
            config: config.auth.clone(),
            is_closed,
            marker,
            current: ArcSwapOption::empty(),
            file: Mutex::new(file),
            passwords: Passwords::default(),
            guesses: Mutex::new(Guesses::new(random())),
            started: Instant::now(),
            foreign: Foreign::new(config)?,
            logins: Logins::default(),
            sessions: Sessions::new(config.auth.session_life),
            audit: Arc::new(audit),
            events: Mutex::new(Some(events)),
            tokens: Mutex::default(),
        };
        let auth = Self { inner: Arc::new(inner) };
        auth.current()?;
        Ok(auth)
    }

    /// Starts to write down what happens.
    pub fn start(&self, tasks: &Tasks) {
        let events = self.inner.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(events) = events {
            tasks.core("audit", self.inner.audit.clone().keep(events, tasks.stopping()));
        }
    }

    /// Takes note of what was done. Does not block.
    pub fn audit(&self) -> &Audit {
        &self.inner.audit
    }

    /// Who there is and what the rules are, now. Reads the disk only when something has changed.
    pub fn current(&self) -> store::Result<Arc<Snapshot>> {
        let inner = &self.inner;
        let seen = (inner.store.access_changes(), inner.config.htpasswd.as_deref().and_then(mark));
        if let Some(read) = inner.current.load().as_ref().filter(|read| read.seen == seen) {
            return Ok(read.snapshot.clone());
        }
        let mut file = inner.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.mark != seen.1
            && let Some(path) = &inner.config.htpasswd
        {
            file.mark = seen.1;
            match (seen.1, htpasswd::read(path)) {
                (_, Ok(entries)) => file.entries = entries,
                // A file that is gone has nobody; one that is half written has whom it had.
                (None, Err(error)) => {
                    file.entries.clear();
                    tracing::error!(%error, "the password file is gone: those who stood in it are not let in any more");
                }
                (Some(_), Err(error)) => {
                    tracing::error!(%error, "the password file is wrong; as long as it is, it counts as it was before")
                }
            }
        }
        // ORDER: the number was read before the rows: what changes between them is read again.
        let snapshot = Arc::new(Snapshot::read(&inner.store, &file.entries, inner.node, inner.is_closed)?);
        if snapshot.is_closed && !inner.is_closed {
            let made = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&inner.marker);
            // Without it the node only forgets sooner.
            made.map(drop).unwrap_or_else(|error| tracing::warn!(%error, path = %inner.marker.display(), "not noted that there are users"));
        }
        inner.passwords.forget();
        inner.current.store(Some(Arc::new(Read { seen, snapshot: snapshot.clone() })));
        Ok(snapshot)
    }

    /// The audience of this cluster's tokens.
    pub fn audience(&self) -> String {
        format!("larder/{}", hex::encode(self.inner.store.cluster()))
    }

    /// Whether anybody has to sign in.
    pub fn is_closed(&self) -> store::Result<bool> {
        Ok(self.current()?.is_closed)
    }

    /// Nobody in particular.
    pub fn anonymous(&self) -> Result<Caller, Refused> {
        Ok(Caller { who: Who::Anonymous, since: None, scope: None, snapshot: self.current()? })
    }

    /// Who shows this `Authorization`.
    ///
    /// # Errors
    /// What is shown proves nothing, or can't be checked now.
    pub async fn identify(&self, authorization: Option<&[u8]>, client: &Client) -> Result<Caller, Refused> {
        let anonymous = self.anonymous()?;
        if !anonymous.snapshot.is_closed {
            return Ok(anonymous);
        }
        let Some(shown) = authorization else { return Ok(by_certificate(client, anonymous)) };
        match parse(shown).ok_or_else(|| wrong("Authorization is neither Basic nor Bearer, or damaged"))? {
            Shown::Basic { name, password } => self.sign_in(&name, &password, client.ip()).await,
            Shown::Bearer(token) => match self.by_token(&token, Use::Access) {
                Err(Refused::Credentials(_)) if self.inner.foreign.has_server() => {
                    let who = self.inner.foreign.by_server(&token).await.map_err(|error| wrong(&error.to_string()))?;
                    Ok(Caller { who, since: None, scope: None, snapshot: self.current()? })
                }
                known => known,
            },
        }
    }

    /// Who has this name and password.
    ///
    /// # Errors
    /// Nobody, or it can't be checked now.
    pub async fn sign_in(&self, name: &str, password: &[u8], from: IpAddr) -> Result<Caller, Refused> {
        let snapshot = self.current()?;
        if let Some(robot) = name.strip_prefix(ROBOT_PREFIX) {
            return robot_in(snapshot, robot, password);
        }
        if name == OIDC_NAME {
            return self.exchange(std::str::from_utf8(password).unwrap_or_default()).await;
        }
        let guesses = || self.inner.guesses.lock().unwrap_or_else(PoisonError::into_inner);
        let now = || self.inner.started.elapsed();
        let attempt = guesses().begin(now(), from, name).map_err(Refused::Slowed)?;
        let person = snapshot.person(name);
        let (hash, like) = (person.map(|person| person.hash.as_str()), snapshot.like(name));
        match self.inner.passwords.check(name, password, hash, like).await {
            Ok(true) => guesses().right(now(), attempt),
            Ok(false) => return Err(wrong("the name or the password is wrong")),
            Err(password::Busy) => {
                guesses().withdraw(attempt);
                return Err(Refused::Busy);
            }
        }
        let (who, since) = snapshot.user(name).ok_or_else(|| wrong("the name or the password is wrong"))?;
        Ok(Caller { who, since: Some(since), scope: None, snapshot })
    }

    /// Whom a configured issuer means by this token.
    ///
    /// # Errors
    /// It counts for nothing.
    pub async fn exchange(&self, token: &str) -> Result<Caller, Refused> {
        let who = self.inner.foreign.by_issuer(token).await.map_err(|error| wrong(&error.to_string()))?;
        Ok(Caller { who, since: None, scope: None, snapshot: self.current()? })
    }

    /// Begins to sign a person in through an issuer, who sends the browser back to `redirect`.
    ///
    /// # Errors
    /// There is no such issuer, or it can't be asked.
    pub async fn begin_login(&self, issuer: &str, redirect: String) -> Result<Begun, String> {
        let issuer = self.inner.foreign.issuer(issuer).ok_or("no issuer of that name is configured")?;
        self.inner.logins.begin(issuer, redirect).await
    }

    /// Ends that: who has signed in.
    ///
    /// # Errors
    /// Nobody.
    pub async fn end_login(&self, returned: Returned<'_>) -> Result<Caller, String> {
        let who = self.inner.logins.end(|name| self.inner.foreign.issuer(name), returned).await?;
        let snapshot = self.current().map_err(|error| error.to_string())?;
        Ok(Caller { who, since: None, scope: None, snapshot })
    }

    /// Begins a session of a person who has just signed in: its secret, and how long it lasts. `None`: it is nobody, or a program.
    pub fn begin_session(&self, caller: &Caller) -> Option<(String, Duration)> {
        let is_person = matches!(caller.who, Who::User { .. } | Who::Workload { .. }) && caller.scope.is_none();
        is_person.then(|| self.inner.sessions.begin(caller.who.clone(), caller.since, Instant::now()))
    }

    /// Whose session this secret is of, and how long it lasts still.
    ///
    /// # Errors
    /// It is over, or its owner was removed or has another password now.
    pub fn by_session(&self, secret: &str) -> Result<(Caller, Duration), Refused> {
        let snapshot = self.current()?;
        let over = || wrong("the session is over; sign in again");
        let found = self.inner.sessions.find(secret, Instant::now()).ok_or_else(over)?;
        // Looked up anew each time: what was taken away is gone (S16).
        let (who, since) = match &found.who {
            Who::User { name, .. } => {
                let now = snapshot.user(name).filter(|(_, now)| found.since.is_some_and(|since| since.holds(*now)));
                let (who, now) = now.ok_or_else(|| {
                    self.end_session(secret);
                    over()
                })?;
                (who, Some(now))
            }
            other => (other.clone(), None),
        };
        Ok((Caller { who, since, scope: None, snapshot }, found.left))
    }

    /// Ends a session.
    pub fn end_session(&self, secret: &str) {
        self.inner.sessions.end(secret);
    }

    /// Who has this refresh token.
    ///
    /// # Errors
    /// It is none, or its time is over, or its owner was removed or has another password now.
    pub fn refresh(&self, token: &str) -> Result<Caller, Refused> {
        self.by_token(token, Use::Refresh)
    }

    fn by_token(&self, token: &str, purpose: Use) -> Result<Caller, Refused> {
        let snapshot = self.current()?;
        let audience = self.audience();
        let counts_until = |key: &NodeId| snapshot.counts_until(key);
        let expected = Expected { audience: &audience, purpose, now: now_ms() / 1000, counts_until: &counts_until };
        let claims = self.checked(token, &expected).map_err(|error| wrong(&error.to_string()))?;
        let gone = || wrong("the token's owner was removed, has expired, or has another password now; sign in again");
        let (who, since) = named(&snapshot, &claims).ok_or_else(gone)?;
        let scope = (purpose == Use::Access).then(|| claims.access.clone());
        Ok(Caller { who, since, scope, snapshot })
    }

    /// Reads a token; that its signature was right once is remembered.
    fn checked(&self, text: &str, expected: &Expected<'_>) -> Result<Arc<Claims>, InvalidToken> {
        let print: [u8; 32] = blake3::hash(text.as_bytes()).into();
        let known = self.inner.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&print).cloned();
        if let Some(claims) = known {
            token::check(&claims, expected)?;
            return Ok(claims);
        }
        let claims = Arc::new(token::read(text, expected)?);
        let mut tokens = self.inner.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, claims| claims.exp > expected.now);
        }
        if tokens.len() >= TOKENS_MAX {
            tokens.clear();
        }
        tokens.insert(print, claims.clone());
        Ok(claims)
    }

    /// Issues a token for as much of what is requested as the rules give.
    pub fn issue(&self, caller: &Caller, requested: Vec<Access>, with_refresh: bool) -> Issued {
        let inner = &self.inner;
        let now_ms = now_ms();
        let (now, mut life) = (now_ms / 1000, inner.config.token_life);
        if let Who::Robot { name, .. } = &caller.who
            && let Some(until) = caller.snapshot.robot(name).and_then(|(robot, _)| robot.expires_ms)
        {
            life = life.min(Duration::from_millis(until.saturating_sub(now_ms)));
        }
        let access: Vec<_> = requested.into_iter().map(|access| caller.granted(access)).collect();
        let (key, sign) = (inner.signer)();
        let claims = |purpose, life: Duration, access| Claims {
            iss: key.letters(),
            aud: self.audience(),
            sub: caller.who.name(),
            iat: now,
            exp: now + life.as_secs(),
            jti: hex::encode(random::<16>()),
            purpose,
            since: caller.since,
            access,
            said: match &caller.who {
                Who::Workload { claims, .. } => Some(claims.clone()),
                _ => None,
            },
        };
        let write = |claims: Claims| token::write(&claims, &*sign);
        // Who comes with another issuer's token comes with a new one next time; nobody gets one for nobody.
        let lasts = matches!(caller.who, Who::User { .. });
        let refresh_token = (with_refresh && lasts).then(|| write(claims(Use::Refresh, inner.config.refresh_life, Vec::new())));
        let token = write(claims(Use::Access, life, access.clone()));
        Issued { token, refresh_token, expires_in: life, issued_at: now, access }
    }
}

impl Caller {
    /// Whether somebody may do all of `actions` in a repository.
    pub fn permission(&self, actions: Actions, repository: &str) -> Permission {
        if !self.snapshot.is_closed {
            return Permission::Allowed;
        }
        if !self.snapshot.rules.allow(&self.who, actions, repository) {
            return Permission::Denied;
        }
        let Some(scope) = &self.scope else { return Permission::Allowed };
        let given = scope.iter().fold(Actions::default(), |given, access| given.and(access.allowed(repository)));
        if given.contains(actions) { Permission::Allowed } else { Permission::OtherToken }
    }

    /// Whether they may, with what they have shown.
    pub fn may(&self, actions: Actions, repository: &str) -> bool {
        self.permission(actions, repository) == Permission::Allowed
    }

    /// Whether they may with any token; for lists, for which clients ask no token of their own.
    pub fn could(&self, actions: Actions, repository: &str) -> bool {
        self.permission(actions, repository) != Permission::Denied
    }

    /// Whether anything is asked of anybody here.
    pub fn is_asked(&self) -> bool {
        self.snapshot.is_closed
    }

    /// Whether somebody may do anything anywhere.
    pub fn has_any(&self) -> bool {
        !self.snapshot.is_closed || self.snapshot.rules.has_any(&self.who)
    }

    /// As much of an access as the rules give.
    fn granted(&self, access: Access) -> Access {
        if access.is_all() {
            return access;
        }
        let allowed = |actions| !self.snapshot.is_closed || self.snapshot.rules.allow(&self.who, actions, &access.name);
        let mut actions = Vec::new();
        for word in &access.actions {
            let words: &[(&str, Actions)] = match word.as_str() {
                "pull" => &[("pull", Actions::PULL)],
                "push" => &[("push", Actions::PUSH)],
                "delete" => &[("delete", Actions::DELETE)],
                "overwrite" => &[("overwrite", Actions::OVERWRITE)],
                "*" => &[("pull", Actions::PULL), ("push", Actions::PUSH), ("delete", Actions::DELETE), ("*", Actions::ADMIN)],
                _ => &[],
            };
            for (word, needed) in words {
                if (access.kind == "registry" || allowed(*needed)) && !actions.iter().any(|known| known == word) {
                    actions.push((*word).to_owned());
                }
            }
        }
        Access { actions, ..access }
    }
}

fn wrong(why: &str) -> Refused {
    Refused::Credentials(why.to_owned())
}

/// Whom a client's certificate names, if it has one: whoever signed it vouches for the name and the groups. It counts as long as nothing else is shown.
fn by_certificate(client: &Client, anonymous: Caller) -> Caller {
    let Some(certificate) =
        client.certificate().filter(|certificate| policy::is_name(&certificate.name) && !is_reserved(&certificate.name))
    else {
        return anonymous;
    };
    let groups = certificate.groups.iter().filter(|group| policy::is_name(group)).cloned().collect();
    Caller { who: Who::User { name: certificate.name.clone(), groups }, ..anonymous }
}

fn robot_in(snapshot: Arc<Snapshot>, name: &str, secret: &[u8]) -> Result<Caller, Refused> {
    let shown: [u8; 32] = sha2::Sha256::digest(secret).into();
    let known = snapshot.robot(name);
    // Compared also when there is none: as long.
    let is_right = bool::from(shown.ct_eq(&known.map_or([0; 32], |(robot, _)| robot.secret)));
    if !is_right || known.is_none() {
        return Err(wrong("the robot's name or its token is wrong"));
    }
    // Only who has the secret hears that it has expired.
    let Some((who, since)) = snapshot.robot_as(name, now_ms()) else {
        return Err(wrong(&format!("the token of {ROBOT_PREFIX}{name} has expired; `larder robot add` makes another one")));
    };
    Ok(Caller { who, since: Some(since), scope: None, snapshot })
}

/// Whom a token is about, if they are still there and what it was issued for still holds.
fn named(snapshot: &Snapshot, claims: &Claims) -> Option<(Who, Option<Since>)> {
    let (kind, name) = claims.sub.split_once(':').unwrap_or((&claims.sub, ""));
    let (who, now) = match kind {
        "anonymous" => return Some((Who::Anonymous, None)),
        "user" => snapshot.user(name)?,
        "robot" => snapshot.robot_as(name, now_ms())?,
        "claim" => {
            let (issuer, subject) = name.split_once(':')?;
            let claims = claims.said.clone()?;
            return Some((Who::Workload { issuer: issuer.to_owned(), subject: subject.to_owned(), claims }, None));
        }
        _ => return None,
    };
    claims.since?.holds(now).then_some((who, Some(now)))
}

/// Whether a name means something of its own, and nobody may have it.
pub fn is_reserved(name: &str) -> bool {
    name == OIDC_NAME || name == "<token>" || name.starts_with(ROBOT_PREFIX)
}

/// What is shown in an `Authorization` header.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    Basic { name: String, password: Vec<u8> },
    Bearer(String),
}

/// With or without padding: clients differ.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// SPEC: RFC 7617, RFC 6750.
fn parse(header: &[u8]) -> Option<Shown> {
    let text = std::str::from_utf8(header).ok().filter(|text| text.len() <= HEADER_LENGTH_MAX)?;
    let (scheme, rest) = text.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Shown::Bearer(rest.to_owned()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64.decode(rest).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let name = std::str::from_utf8(&decoded[..colon]).ok()?.to_owned();
    Some(Shown::Basic { name, password: decoded[colon + 1..].to_vec() })
}

/// What tells whether a file has changed; `None`: it is not there.
fn mark(path: &std::path::Path) -> Option<Mark> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?, metadata.ino()))
}

/// Random bytes of the system.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// Milliseconds since 1970, by the wall clock.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
