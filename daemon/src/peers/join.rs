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

use super::dial::{self, ADDRESSES_MAX};
use super::endpoint::{Connection, Stream};
use super::error::{Error, Result};
use super::members::{TOKENS_MAX, introduced, now_ms};
use super::roles::RoleChange;
use super::token::{self, Issued, Token};
use super::{Inner, Peers};
use crate::store::{self, Commit};

/// What a stranger has to show its token.
const SHOW: Duration = Duration::from_secs(10);
/// How often one token may be shown before it is withdrawn; whoever has it shows it once, or again when the answer was lost.
const TRIES_MAX: u32 = 5;
/// Longest text that a new node may say of itself.
const TEXT_MAX: usize = 1024;
/// What the issuer has to answer.
const ANSWER: Duration = Duration::from_secs(15);

/// Makes a token and keeps its hash.
pub(super) async fn issue(inner: &Inner, expires: Duration, role: RoleChange) -> Result<String> {
    if inner.store.is_reader() {
        return Err(store::Error::Reader.into());
    }
    if inner.own.addresses.is_empty() {
        return Err(Error::NoAddress);
    }
    let random = SystemRandom::new();
    let (mut id, mut secret) = ([0; 8], [0; 16]);
    random.fill(&mut id).and_then(|()| random.fill(&mut secret)).expect("the system gives random bytes");
    let expires_ms = now_ms().saturating_add(u64::try_from(expires.as_millis()).unwrap_or(u64::MAX >> 1));
    let token = Token {
        cluster: inner.store.cluster(),
        issuer: inner.identity.used().key(),
        addresses: inner.own.addresses.clone(),
        id,
        secret,
        expires_ms,
    };
    let name = token::setting(&id);
    let reader = (role.writer == Some(false)).then(|| token::reader_setting(&name));
    let row = (name, Some(codec::encode(&token.issued())));
    let kept = inner.store.run(move |store| -> Result<()> {
        let waiting = store.settings(token::SETTING)?;
        let over = |row: &[u8]| codec::decode::<Issued>(row).map_or(true, |issued| issued.expires_ms <= now_ms());
        let (over, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(_, row)| over(row));
        if waiting.len() >= TOKENS_MAX {
            return Err(Error::TooManyTokens { max: TOKENS_MAX });
        }
        let mut settings = vec![row];
        settings.extend(reader.map(|name| (name, Some(Vec::new()))));
        settings.extend(over.into_iter().flat_map(|(name, _)| [(token::reader_setting(&name), None), (name, None)]));
        store.commit(Commit { settings, ..Commit::default() })?;
        Ok(())
    });
    kept.await?;
    inner.members.refresh_gate(&inner.store)?;
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
    let said = [&join.member.name, &join.member.zone, &join.member.version].into_iter().chain(&join.member.bucket);
    let too_long = said.chain(&join.member.addresses).any(|text| text.len() > TEXT_MAX);
    if too_long || join.member.addresses.len() > ADDRESSES_MAX {
        return Ok(Answer::Refused(Refusal::TOO_MUCH));
    }
    // One at a time: of two that show one token at once, one gets in.
    let mut admitting = inner.admitting.lock().await;
    let tries = admitting.entry(join.token).or_insert(0);
    *tries += 1;
    let is_last_try = *tries >= TRIES_MAX;
    // Guesses at tokens that there are not must not fill the memory.
    admitting.retain(|token, _| *token == join.token || inner.members.is_token(token));
    let standing = inner.members.roles(&stranger);
    let admitted = inner.store.run(move |store| -> Result<std::result::Result<(), Refusal>> {
        let name = token::setting(&join.token);
        let Some(issued) = store.setting(&name)?.and_then(|row| codec::decode::<Issued>(&row).ok()) else {
            return Ok(Err(Refusal::TOKEN_UNKNOWN));
        };
        if !issued.is_secret(&join.secret) {
            if is_last_try {
                store.commit(Commit { settings: vec![(token::reader_setting(&name), None), (name, None)], ..Commit::default() })?;
                tracing::warn!(node = %stranger, "a join token was shown with wrong secrets too often, and is withdrawn");
            }
            return Ok(Err(Refusal::TOKEN_UNKNOWN));
        }
        if issued.expires_ms <= now_ms() {
            store.commit(Commit { settings: vec![(token::reader_setting(&name), None), (name, None)], ..Commit::default() })?;
            return Ok(Err(Refusal::TOKEN_EXPIRED));
        }
        let reader = token::reader_setting(&name);
        let role = if store.setting(&reader)?.is_some() { RoleChange::READER } else { RoleChange::WRITER };
        let roles = role.of(standing);
        let mut records = vec![(Key::Member(stranger), Some(Value::Member(join.member)))];
        // It may have been a member before, in another role.
        records.extend((roles != standing).then_some((Key::Role(stranger), Some(Value::Role(roles)))));
        store.commit(Commit { records, settings: vec![(reader, None), (name, None)] })?;
        Ok(Ok(()))
    });
    let admitted = admitted.await?;
    inner.members.refresh_gate(&inner.store)?;
    if let Err(refusal) = admitted {
        return Ok(Answer::Refused(refusal));
    }
    inner.members.refresh(&inner.store)?;
    tracing::info!(node = %stranger, "a node has joined");
    Ok(Answer::Joined(welcome(inner)))
}

/// What a new member is told.
pub(super) fn welcome(inner: &Inner) -> Joined {
    let own = inner.identity.node();
    // Itself is enough to be dialled: all other members come by sync.
    let members = inner.members.live().into_iter().filter(|(node, _)| *node == own).map(|(node, member)| (node.0, member));
    Joined { cluster: inner.store.cluster(), members: members.collect() }
}

/// Joins the cluster of a token.
pub(super) async fn join(peers: &Peers, text: &str) -> Result<super::Joined> {
    let inner = &peers.inner;
    let token = Token::parse(text)?;
    if token.expires_ms <= now_ms() {
        return Err(Error::TokenExpired);
    }
    if token.issuer == inner.identity.used().key() {
        return Err(Error::OwnToken);
    }
    let members = inner.members.live();
    if members.len() > 1 && inner.store.cluster() != token.cluster {
        return Err(Error::HasPeers { members: members.len(), node: inner.identity.node() });
    }
    if inner.store.cluster() != token.cluster && inner.identity.used().key() != inner.identity.node() {
        // Nobody there could know whose the key is.
        return Err(Error::OtherKey);
    }
    let connection = match dial::reach(inner, token.issuer, &token.addresses).await {
        Ok(connection) => connection,
        Err(tried) => return Err(Error::Unreachable { tried }),
    };
    let request = Request::Join(Join { token: token.id, secret: token.secret, member: inner.own.clone() });
    let asked = tokio::time::timeout(ANSWER, connection.ask(&request)).await;
    connection.close("done");
    let answer = match asked {
        Ok(Ok((answer, _))) => answer,
        // The handshake ends on this side before the other has looked at the key: being turned away shows here.
        Ok(Err(Error::Connection { why, .. })) => return Err(Error::NotLetIn { issuer: token.issuer, why }),
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            return Err(Error::Unreachable { tried: format!("{} (it took the call and gave no answer)", token.addresses.join(", ")) });
        }
    };
    let Answer::Joined(joined) = answer else {
        return Err(Error::Violation { peer: token.issuer, what: "something else than a welcome".to_owned() });
    };
    if joined.cluster != token.cluster {
        return Err(Error::Violation { peer: token.issuer, what: "a welcome to another cluster than its token's".to_owned() });
    }
    // It is who it says with the key that the token pins: another id than that key's own when it has changed its key.
    let Some((issuer, member)) = joined.members.into_iter().next().map(|(node, member)| (NodeId(node), member)) else {
        return Err(Error::Violation { peer: token.issuer, what: "a welcome without its own record".to_owned() });
    };
    let records = if inner.members.is_member(&issuer) { Vec::new() } else { vec![(Key::Member(issuer), Some(Value::Member(member)))] };
    let settings = if issuer == token.issuer { Vec::new() } else { vec![introduced(&issuer, &token.issuer)] };
    let cluster = joined.cluster;
    inner
        .store
        .run(move |store| -> Result<()> {
            // CRASH: between the two, this node belongs to the cluster and knows nobody in it: joining again mends that.
            store.adopt_cluster(cluster)?;
            // The issuer's record is enough to dial it; all others come by sync.
            store.commit(Commit { records, settings })?;
            Ok(())
        })
        .await?;
    inner.members.refresh(&inner.store)?;
    inner.redial.notify_one();
    tracing::info!(%issuer, cluster = hex::encode(cluster), "joined a cluster");
    Ok(super::Joined { cluster, issuer })
}
