//! Letting a new node in, and being let in.
//!
//! A token is used once: it is removed in the same commit that writes the new node's `Member` record.

use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use larder_protocol::codec;
use larder_protocol::message::{Answer, Join, Joined, Request};
use larder_protocol::record::{Key, Value};
use larder_protocol::refusal::Refusal;
use larder_protocol::stamp::NodeId;

use super::endpoint::{Connection, Stream};
use super::error::{Error, Result};
use super::members::{TOKENS_MAX, now_ms};
use super::token::{self, Issued, Token};
use super::{Inner, Peers, dial};
use crate::store::Commit;

/// What a stranger has to show its token.
const SHOW: Duration = Duration::from_secs(10);

/// Makes a token and keeps its hash.
pub(super) async fn issue(inner: &Inner, expires: Duration) -> Result<String> {
    let random = SystemRandom::new();
    let (mut id, mut secret) = ([0; 8], [0; 16]);
    random.fill(&mut id).and_then(|()| random.fill(&mut secret)).expect("the system gives random bytes");
    let expires_ms = now_ms().saturating_add(u64::try_from(expires.as_millis()).unwrap_or(u64::MAX >> 1));
    let token = Token {
        cluster: inner.store.cluster(),
        issuer: inner.identity.node(),
        addresses: inner.own.addresses.clone(),
        id,
        secret,
        expires_ms,
    };
    let row = (token::setting(&id), Some(codec::encode(&token.issued())));
    let kept = inner.store.run(move |store| -> Result<()> {
        let waiting = store.settings(token::SETTING)?;
        let over = |row: &[u8]| codec::decode::<Issued>(row).map_or(true, |issued| issued.expires_ms <= now_ms());
        let (over, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(_, row)| over(row));
        if waiting.len() >= TOKENS_MAX {
            return Err(Error::TooManyTokens { max: TOKENS_MAX });
        }
        let mut settings = vec![row];
        settings.extend(over.into_iter().map(|(name, _)| (name, None)));
        store.commit(Commit { settings, ..Commit::default() })?;
        Ok(())
    });
    kept.await?;
    inner.members.open_until(expires_ms);
    Ok(token.to_text())
}

/// Hears out a stranger: it may join, and nothing else.
pub(super) async fn hear(inner: &Inner, connection: &Connection) {
    let heard = tokio::time::timeout(SHOW, async {
        let mut stream = connection.accept().await?;
        let request = stream.receive.message::<Request>().await?;
        let Some(Request::Join(join)) = request else { return Ok(()) };
        let answer = match admit(inner, connection.peer(), join).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(%error, "a node could not be let in");
                Answer::Refused(Refusal::FAILED)
            }
        };
        say(&mut stream, &answer).await?;
        // It closes the connection when it has read the answer.
        connection.closed().await;
        Ok::<_, Error>(())
    });
    if let Ok(Err(error)) = heard.await {
        tracing::debug!(%error, "a stranger knocked and left");
    }
    connection.close("join first");
}

async fn say(stream: &mut Stream, answer: &Answer) -> Result<()> {
    stream.send.message(answer).await?;
    stream.send.finish();
    Ok(())
}

async fn admit(inner: &Inner, stranger: NodeId, join: Join) -> Result<Answer> {
    let cluster = inner.store.cluster();
    // One at a time: of two that show one token at once, one gets in.
    let _one = inner.admitting.lock().await;
    let admitted = inner.store.run(move |store| -> Result<std::result::Result<(), Refusal>> {
        let name = token::setting(&join.token);
        let Some(issued) = store.setting(&name)?.and_then(|row| codec::decode::<Issued>(&row).ok()) else {
            return Ok(Err(Refusal::TOKEN_UNKNOWN));
        };
        if !issued.is_secret(&join.secret) {
            return Ok(Err(Refusal::TOKEN_UNKNOWN));
        }
        if issued.expires_ms <= now_ms() {
            return Ok(Err(Refusal::TOKEN_EXPIRED));
        }
        let records = vec![(Key::Member(stranger), Some(Value::Member(join.member)))];
        store.commit(Commit { records, settings: vec![(name, None)] })?;
        Ok(Ok(()))
    });
    if let Err(refusal) = admitted.await? {
        return Ok(Answer::Refused(refusal));
    }
    inner.members.refresh(&inner.store)?;
    tracing::info!(node = %stranger, "a node has joined");
    let members = inner.members.live().into_iter().map(|(node, member)| (node.0, member)).collect();
    Ok(Answer::Joined(Joined { cluster, members }))
}

/// Joins the cluster of a token.
pub(super) async fn join(peers: &Peers, text: &str) -> Result<super::Joined> {
    let inner = &peers.inner;
    let token = Token::parse(text)?;
    if token.expires_ms <= now_ms() {
        return Err(Error::TokenExpired);
    }
    let members = inner.members.live();
    if members.len() > 1 && inner.store.cluster() != token.cluster {
        return Err(Error::HasPeers { members: members.len(), node: inner.identity.node() });
    }
    let connection = match dial::reach(inner, token.issuer, &token.addresses).await {
        Ok(connection) => connection,
        Err(tried) => return Err(Error::Unreachable { tried }),
    };
    let request = Request::Join(Join { token: token.id, secret: token.secret, member: inner.own.clone() });
    let (answer, _) = connection.ask(&request).await?;
    connection.close("joined");
    let Answer::Joined(joined) = answer else {
        return Err(Error::Violation { peer: token.issuer, what: "something else than a welcome".to_owned() });
    };
    if joined.cluster != token.cluster {
        return Err(Error::Violation { peer: token.issuer, what: "a welcome to another cluster than its token's".to_owned() });
    }
    let issuer = token.issuer;
    let records = joined
        .members
        .into_iter()
        .filter(|(node, _)| *node == issuer.0)
        .map(|(node, member)| (Key::Member(NodeId(node)), Some(Value::Member(member))));
    let records = records.collect();
    let cluster = joined.cluster;
    inner
        .store
        .run(move |store| -> Result<()> {
            store.adopt_cluster(cluster)?;
            // The issuer's record is enough to dial it; all others come by sync.
            store.commit(Commit { records, ..Commit::default() })?;
            Ok(())
        })
        .await?;
    inner.members.refresh(&inner.store)?;
    inner.redial.notify_one();
    tracing::info!(%issuer, cluster = hex::encode(cluster), "joined a cluster");
    Ok(super::Joined { cluster, issuer })
}
