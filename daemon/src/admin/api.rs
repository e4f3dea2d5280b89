//! The management API, `/api/v1/...`: JSON in, JSON out, failures as `{"error": "..."}`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::stamp::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Office;
use crate::age::{self, Identity};
use crate::archive::{Choice, DRILL_IMAGES_MAX, RestoreOptions, Subset, THAW_DAYS_MAX, ThawRequest};
use crate::glob::Glob;
use crate::peers::{KeyChange, RoleChange};
use crate::registry::Body;
use crate::registry::query::{Plus, Query, decode};
use crate::store::{Store, TagInfo, TagVersion};

/// Most bytes of a request's body.
const BODY_SIZE_MAX: usize = 64 << 10;
/// A body must be here by then.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most entries of one answer; a `Link` names where the rest begins.
const LISTED_MAX: usize = 100_000;
/// Entries read from the store at a time.
const PAGE_SIZE: usize = 1_000;
/// Versions of a tag that are listed.
const HISTORY_LISTED_MAX: usize = 1_000;
/// How long a join token is good when nothing else is said, and at most.
const TOKEN_EXPIRES_S: u64 = 3_600;
const TOKEN_EXPIRES_MAX_S: u64 = 30 * 24 * 3_600;

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    why: String,
}

/// What an endpoint gives: a JSON value, and the address of what did not fit.
pub(super) struct Answer {
    value: Value,
    next: Option<String>,
}

pub(super) type Outcome = Result<Answer, Refusal>;

impl Refusal {
    fn new(status: StatusCode, why: impl ToString) -> Self {
        Self { status, why: why.to_string() }
    }

    pub(super) fn bad(why: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }

    fn missing(why: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, why)
    }
}

/// A command that failed: all of its chain, for the person who gave it.
impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
    }
}

impl From<crate::store::Error> for Refusal {
    fn from(error: crate::store::Error) -> Self {
        Self::from(anyhow::Error::from(error))
    }
}

pub(super) fn answer(value: impl Serialize) -> Outcome {
    match serde_json::to_value(value) {
        Ok(value) => Ok(Answer { value, next: None }),
        Err(error) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("write the answer: {error}"))),
    }
}

impl Office {
    /// Answers one request.
    pub(super) async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        if method == Method::POST && path == "/api/v1/export" {
            return self.export(request).await.unwrap_or_else(|refusal| refuse(&refusal));
        }
        // A task of its own: the command goes on when its client does not wait.
        let (office, asked) = (self.clone(), path.clone());
        let outcome = match tokio::spawn(async move { office.dispatch(request, &asked).await }).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(%error, path, "a management command panicked");
                Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the node failed; its log says why"))
            }
        };
        let mut response = match &outcome {
            Ok(answer) => page(StatusCode::OK, &answer.value),
            Err(refusal) => refuse(refusal),
        };
        tracing::debug!(method = method.as_str(), path, status = response.status().as_u16(), "answered a management request");
        if let Some(next) = outcome.ok().and_then(|answer| answer.next).and_then(|next| HeaderValue::try_from(next).ok()) {
            response.headers_mut().insert(header::LINK, next);
        }
        response
    }

    async fn dispatch(&self, request: Request<Incoming>, path: &str) -> Outcome {
        let rest = path.strip_prefix("/api/v1/").ok_or_else(|| unknown(path))?;
        let query = Query::parse(request.uri().query());
        let method = request.method().clone();
        match (&method, rest) {
            (&Method::GET, "status") => self.status().await,
            (&Method::POST, "tokens") => self.token(read(request).await?).await,
            (&Method::POST, "join") => self.join(read(request).await?).await,
            (&Method::GET, "peers") => answer(self.operations.peers()),
            (&Method::POST, "peers/role") => self.change_role(read(request).await?).await,
            (&Method::POST, "peers/rotate-key") => {
                let asked: AskKey = read(request).await?;
                answer(self.operations.change_key(KeyChange { now: asked.now, revoke: asked.revoke }).await?)
            }
            (&Method::POST, "peers/site") => self.set_site(read(request).await?).await,
            (&Method::GET, "repositories") => self.repositories(&query).await,
            (&Method::GET, "tags") => self.tags(&query).await,
            (&Method::GET, "tags/history") => self.tag_history(&query).await,
            (&Method::POST, "tags/restore") => self.restore_tag(read(request).await?).await,
            (&Method::POST, "gc") => answer(self.operations.gc(read::<AskGc>(request).await?.dry_run).await?),
            (&Method::POST, "scrub") => answer(self.operations.scrub().await?),
            (&Method::DELETE, "tags") => self.delete_tag(&query).await,
            (&Method::GET, "archive") => answer(self.operations.archive_status().await?),
            (&Method::POST, "archive/flush") => answer(json!({ "packs": self.operations.archive_flush().await? })),
            (&Method::GET, "archive/packs") => answer(self.operations.archive_packs().await?),
            (&Method::GET, "archive/cost") => answer(self.operations.archive_cost().await?),
            (&Method::POST, "import") => answer(self.import(request).await?),
            (&Method::POST, "archive/checkpoint") => answer(json!({ "key": self.operations.archive_checkpoint().await? })),
            (&Method::POST, "archive/verify") => self.verify(read(request).await?).await,
            (&Method::GET, "archive/compact") => answer(self.operations.archive_plan_compaction().await?),
            (&Method::POST, "archive/compact") => answer(self.operations.archive_compact().await?),
            (&Method::POST, "archive/start-over") => answer(json!({ "packs": self.operations.archive_start_over().await? })),
            (&Method::POST, "archive/thaw") => self.thaw(read(request).await?).await,
            (&Method::GET, "restore") => answer(self.operations.restoring().await?),
            (&Method::POST, "restore/drill") => self.drill(read(request).await?).await,
            (&Method::POST, "restore") => self.restore(read(request).await?).await,
            _ if super::access::is_about(rest) => self.access(&method, rest, &query, request).await,
            (&Method::DELETE, rest) => match rest.strip_prefix("peers/").filter(|node| !node.is_empty()) {
                Some(node) => {
                    let node = decode(node, Plus::Plus).ok_or_else(|| Refusal::bad("the node's id is not readable"))?;
                    self.operations.remove_peer(&node).await?;
                    answer(json!({}))
                }
                None => Err(unknown(path)),
            },
            _ => Err(unknown(path)),
        }
    }

    async fn status(&self) -> Outcome {
        let counts = self.store.run(Store::counts).await?;
        let peers = self.operations.peers();
        let others = peers.iter().filter(|peer| peer.state != "self");
        let (quarantined, forked) = self.store.run(super::aside::list).await?;
        let vector = self.store.vector();
        let vector: Vec<_> = vector
            .iter()
            .map(|(origin, sequence)| json!({ "node": origin.node.to_string(), "incarnation": origin.incarnation, "sequence": sequence }))
            .collect();
        answer(json!({
            "node": self.about.node.to_string(),
            "name": self.about.name,
            "zone": self.about.zone,
            "cluster": hex::encode(self.store.cluster()),
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.started.elapsed().as_secs(),
            "repositories": counts.repositories,
            "tags": counts.tags,
            "blobs": counts.blobs,
            "blob_bytes": counts.blob_bytes,
            "disk": self.store.run(Store::disk).await?,
            "peers_connected": others.clone().filter(|peer| peer.state == "connected").count(),
            "peers_total": others.count(),
            "vector": vector,
            "risk": self.operations.risk(),
            "quarantined": quarantined,
            "forked": forked,
            "archive": self.operations.archive_status().await?,
        }))
    }

    async fn token(&self, asked: AskToken) -> Outcome {
        let expires_s = asked.expires_s.unwrap_or(TOKEN_EXPIRES_S);
        if !(1..=TOKEN_EXPIRES_MAX_S).contains(&expires_s) {
            return Err(Refusal::bad(format!("expires_s is {expires_s}; a token is good for 1 to {TOKEN_EXPIRES_MAX_S} seconds")));
        }
        let role = match asked.role {
            Some(Role::Reader) => RoleChange::READER,
            Some(Role::Writer) | None => RoleChange::WRITER,
        };
        answer(json!({ "token": self.operations.token(Duration::from_secs(expires_s), role).await? }))
    }

    async fn change_role(&self, asked: AskRole) -> Outcome {
        let change = RoleChange { writer: asked.role.map(|role| matches!(role, Role::Writer)), archiver: asked.archiver };
        if change == RoleChange::default() {
            return Err(Refusal::bad("say what to change: role is writer or reader, archiver is true or false"));
        }
        answer(json!({ "roles": self.operations.change_role(&asked.node, change).await? }))
    }

    async fn set_site(&self, asked: AskSite) -> Outcome {
        let globs =
            asked.repositories.map(|list| list.iter().map(|text| parse::<Glob>(text)).collect::<Result<Vec<_>, _>>()).transpose()?;
        if globs.as_ref().is_some_and(|globs| globs.is_empty() || globs.len() > larder_protocol::access::ENTRIES_MAX) {
            return Err(Refusal::bad(format!("name 1 to {} patterns", larder_protocol::access::ENTRIES_MAX)));
        }
        self.operations.set_site(&asked.node, globs).await?;
        answer(json!({}))
    }

    async fn join(&self, asked: AskJoin) -> Outcome {
        let joined = self.operations.join(asked.token.trim()).await?;
        answer(json!({ "cluster": hex::encode(joined.cluster), "issuer": joined.issuer.to_string() }))
    }

    async fn restore(&self, asked: AskRestore) -> Outcome {
        let glob = |text: &String| text.parse::<Glob>().map_err(|error| Refusal::bad(format!("repository {text:?}: {error}")));
        let repositories = asked.repositories.iter().map(glob).collect::<Result<_, _>>()?;
        let node = |text: &String| {
            NodeId::parse(text).ok_or_else(|| Refusal::bad(format!("trust {text:?}: this is no node's id, which has 52 letters")))
        };
        let trust = asked.trust.iter().map(node).collect::<Result<_, _>>()?;
        let identities = identities(asked.identities)?;
        let AskRestore { metadata_only, allow_gaps, leave_strangers, .. } = asked;
        let options = RestoreOptions { repositories, metadata_only, allow_gaps, trust, leave_strangers, identities };
        answer(self.operations.restore(&asked.url, options).await?)
    }

    async fn verify(&self, asked: AskVerify) -> Outcome {
        let subset = asked.subset.as_deref().map(str::parse::<Subset>).transpose();
        let subset = subset.map_err(|why| Refusal::bad(format!("read-data-subset: {why}")))?;
        answer(self.operations.archive_verify(subset, asked.mend).await?)
    }

    async fn thaw(&self, asked: AskThaw) -> Outcome {
        let tier = asked.tier.as_deref().map(str::parse).transpose().map_err(|why: String| Refusal::bad(format!("tier: {why}")))?;
        if asked.days == 0 || asked.days > THAW_DAYS_MAX {
            return Err(Refusal::bad(format!("what has thawed is kept for 1 to {THAW_DAYS_MAX} days")));
        }
        if let Some((image, why)) = asked.images.iter().find_map(|image| Some((image, image.parse::<Choice>().err()?))) {
            return Err(Refusal::bad(format!("{image}: {why}")));
        }
        answer(self.operations.archive_thaw(ThawRequest { images: asked.images, tier, days: asked.days }).await?)
    }

    async fn drill(&self, asked: AskDrill) -> Outcome {
        if asked.images == 0 || asked.images > DRILL_IMAGES_MAX {
            return Err(Refusal::bad(format!("a drill restores 1 to {DRILL_IMAGES_MAX} images")));
        }
        answer(self.operations.drill(asked.url, asked.images, identities(asked.identities)?).await?)
    }

    async fn repositories(&self, query: &Query) -> Outcome {
        let mut after = query.first("after").map(parse::<RepositoryName>).transpose()?;
        self.store
            .run(move |store| {
                let mut listed = Vec::new();
                loop {
                    let page = store.repositories(after.as_ref().map(RepositoryName::as_str), PAGE_SIZE)?;
                    let whole = page.len() < PAGE_SIZE;
                    for name in page {
                        listed.push(json!({ "name": name.as_str(), "tags": count_tags(store, &name)? }));
                        after = Some(name);
                    }
                    if whole || listed.len() >= LISTED_MAX {
                        let next = after.filter(|_| !whole).map(|after| format!("</api/v1/repositories?after={after}>; rel=\"next\""));
                        return Ok(Answer { value: Value::Array(listed), next });
                    }
                }
            })
            .await
    }

    async fn tags(&self, query: &Query) -> Outcome {
        let repository: RepositoryName = required(query, "repository")?;
        let mut after = query.first("after").map(parse::<Tag>).transpose()?;
        self.store
            .run(move |store| {
                let mut listed = Vec::new();
                loop {
                    let page = store.tags(&repository, after.as_ref().map(Tag::as_str), PAGE_SIZE)?;
                    if page.is_empty() && listed.is_empty() && !store.repository_exists(&repository)? {
                        return Err(Refusal::missing(format!("no repository {repository}; `larder repo list` shows those that there are")));
                    }
                    let whole = page.len() < PAGE_SIZE;
                    for info in page {
                        listed.push(describe(store, &repository, &info)?);
                        after = Some(info.tag);
                    }
                    if whole || listed.len() >= LISTED_MAX {
                        let link = |after| format!("</api/v1/tags?repository={repository}&after={after}>; rel=\"next\"");
                        return Ok(Answer { value: Value::Array(listed), next: after.filter(|_| !whole).map(link) });
                    }
                }
            })
            .await
    }

    async fn tag_history(&self, query: &Query) -> Outcome {
        let repository: RepositoryName = required(query, "repository")?;
        let tag: Tag = required(query, "tag")?;
        self.store
            .run(move |store| {
                let versions = store.tag_history(&repository, &tag, HISTORY_LISTED_MAX)?;
                if versions.is_empty() {
                    return Err(Refusal::missing(format!("{repository}:{tag} was never pushed, as far as this node knows")));
                }
                let listed: Result<Vec<_>, Refusal> = versions.iter().map(|version| version_of(store, &repository, version)).collect();
                answer(listed?)
            })
            .await
    }

    async fn restore_tag(&self, asked: AskRestoreTag) -> Outcome {
        let (repository, tag): (RepositoryName, Tag) = (parse(&asked.repository)?, parse(&asked.tag)?);
        let digest: Digest = parse(&asked.digest)?;
        let (name, of) = (repository.clone(), tag.clone());
        match self.store.run(move |store| store.restore_tag(&name, &of, &digest)).await {
            Ok(changed) => answer(json!({ "changed": changed })),
            Err(crate::store::Error::Missing(_)) => Err(Refusal::missing(format!(
                "{repository} has no manifest {digest} any more; `larder tag history {repository}:{tag}` says which can be had"
            ))),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete_tag(&self, query: &Query) -> Outcome {
        let repository: RepositoryName = required(query, "repository")?;
        let tag: Tag = required(query, "tag")?;
        let (name, gone) = (repository.clone(), tag.clone());
        if !self.store.run(move |store| store.delete_tag(&name, &gone)).await? {
            return Err(Refusal::missing(format!(
                "no tag {tag} in {repository}; `larder tag list {repository}` shows those that there are"
            )));
        }
        answer(json!({}))
    }
}

/// `POST gc`
#[derive(serde::Deserialize)]
struct AskGc {
    #[serde(default)]
    dry_run: bool,
}

/// `POST tags/restore`
#[derive(serde::Deserialize)]
struct AskRestoreTag {
    repository: String,
    tag: String,
    digest: String,
}

/// `POST tokens`
#[derive(serde::Deserialize)]
struct AskToken {
    expires_s: Option<u64>,
    role: Option<Role>,
}

/// `POST peers/role`
#[derive(serde::Deserialize)]
struct AskRole {
    node: String,
    role: Option<Role>,
    archiver: Option<bool>,
}

#[derive(Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Writer,
    Reader,
}

/// `POST peers/site`
#[derive(serde::Deserialize)]
struct AskSite {
    node: String,
    repositories: Option<Vec<String>>,
}

/// `POST peers/rotate-key`
#[derive(serde::Deserialize)]
struct AskKey {
    #[serde(default)]
    now: bool,
    #[serde(default)]
    revoke: bool,
}

/// `POST join`
#[derive(serde::Deserialize)]
struct AskJoin {
    token: String,
}

/// `POST restore`
#[derive(serde::Deserialize)]
struct AskRestore {
    url: String,
    #[serde(default)]
    repositories: Vec<String>,
    #[serde(default)]
    metadata_only: bool,
    #[serde(default)]
    allow_gaps: bool,
    #[serde(default)]
    trust: Vec<String>,
    #[serde(default)]
    leave_strangers: bool,
    /// The text of an identity file.
    #[serde(default)]
    identities: Option<String>,
}

/// The identities in a text that was sent; it is not repeated.
fn identities(text: Option<String>) -> Result<Vec<Arc<Identity>>, Refusal> {
    text.map_or_else(|| Ok(Vec::new()), |text| age::parse_identities("that was given", &text).map_err(Refusal::bad))
}

/// `POST archive/verify`
#[derive(serde::Deserialize)]
struct AskVerify {
    subset: Option<String>,
    #[serde(default)]
    mend: bool,
}

/// `POST archive/thaw`
#[derive(serde::Deserialize)]
struct AskThaw {
    #[serde(default)]
    images: Vec<String>,
    tier: Option<String>,
    days: u32,
}

/// `POST restore/drill`
#[derive(serde::Deserialize)]
struct AskDrill {
    url: Option<String>,
    images: usize,
    /// See [`AskRestore`].
    #[serde(default)]
    identities: Option<String>,
}

fn page(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refuse(refusal: &Refusal) -> Response<Body> {
    page(refusal.status, &json!({ "error": refusal.why }))
}

pub(super) fn unknown(path: &str) -> Refusal {
    Refusal::missing(format!("the management API has no such request ({path}); is the daemon of another version than this command?"))
}

pub(super) fn required<T>(query: &Query, name: &str) -> Result<T, Refusal>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    parse(query.first(name).ok_or_else(|| Refusal::bad(format!("the parameter {name} is missing")))?)
}

fn parse<T>(text: &str) -> Result<T, Refusal>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error| Refusal::bad(format!("{text:?}: {error}")))
}

/// A request's body as JSON; none at all is an empty object.
pub(super) async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(request.into_body(), BODY_SIZE_MAX).collect());
    let body = body.await.map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time"))?;
    let bytes = body.map_err(|error| Refusal::bad(format!("read the request's body (at most {BODY_SIZE_MAX} bytes): {error}")))?.to_bytes();
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text).map_err(|error| Refusal::bad(format!("read the request's JSON: {error}")))
}

fn count_tags(store: &Store, repository: &RepositoryName) -> Result<usize, crate::store::Error> {
    let (mut count, mut after) = (0, None);
    loop {
        let page = store.tags(repository, after.as_ref().map(Tag::as_str), PAGE_SIZE)?;
        count += page.len();
        match page.into_iter().nth(PAGE_SIZE - 1) {
            Some(last) => after = Some(last.tag),
            None => return Ok(count),
        }
    }
}

fn version_of(store: &Store, repository: &RepositoryName, version: &TagVersion) -> Result<Value, Refusal> {
    Ok(json!({
        "digest": version.digest,
        "pushed": moment(version.stamp.time.ms()),
        "node": version.stamp.node.to_string(),
        "until": version.until.and_then(|until| moment(until.time.ms())),
        "current": version.current,
        "available": store.manifest(repository, &version.digest)?.is_some(),
        "conflict": version.lost_to.is_some(),
    }))
}

fn describe(store: &Store, repository: &RepositoryName, info: &TagInfo) -> Result<Value, crate::store::Error> {
    // A tag may come before its manifest; then these are unknown for a moment.
    let manifest = store.manifest(repository, &info.digest)?;
    Ok(json!({
        "tag": info.tag.as_str(),
        "digest": info.digest,
        "media_type": manifest.as_ref().map(|manifest| &manifest.media_type),
        "size": manifest.as_ref().map(|manifest| manifest.bytes.len()),
        "pushed": moment(info.stamp.time.ms()),
    }))
}

/// A time as RFC 3339; `None` for one that no calendar has.
pub(super) fn moment(ms: u64) -> Option<String> {
    let moment = jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?;
    Some(moment.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_parsed_or_named() {
        let query = Query::parse(Some("repository=library%2Fa&tag=.x"));
        assert_eq!(required::<RepositoryName>(&query, "repository").unwrap().as_str(), "library/a");
        assert_eq!(required::<Tag>(&query, "tag").unwrap_err().status, StatusCode::BAD_REQUEST);
        assert!(required::<Tag>(&query, "absent").unwrap_err().why.contains("absent"));
    }

    #[test]
    fn times_are_written_for_people_and_never_panic() {
        assert_eq!(moment(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(moment(u64::MAX), None);
        assert_eq!(moment(u64::MAX >> 16), None);
    }

    #[test]
    fn a_failed_command_shows_its_whole_chain() {
        let error = anyhow::anyhow!("connection refused").context("dial 10.0.0.1:5000").context("join the cluster");
        let refusal = Refusal::from(error);
        assert_eq!((refusal.status.as_u16(), refusal.why.as_str()), (500, "join the cluster: dial 10.0.0.1:5000: connection refused"));
    }
}
