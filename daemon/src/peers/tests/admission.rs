//! Who is let in, and who is not.

use larder_protocol::message::Join;
use larder_protocol::refusal::Refusal;

use super::token::Token;
use super::*;

/// What came of a stranger's request: its answer, or `None` when it was hung up on.
async fn ask(from: &Place, victim: &Site, request: Request) -> Option<Answer> {
    let stranger = Impostor::with_key_of(from, victim).await;
    match stranger.connection.ask(&request).await {
        Ok((answer, _)) => Some(answer),
        Err(Error::Refused { refusal, .. }) => Some(Answer::Refused(refusal)),
        Err(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_a_stranger_gets_no_further_than_the_handshake() {
    let (a, stranger) = (Site::start("a", "x").await, Site::start("s", "x").await);
    let stranger = stranger.stop().await;
    let hello = Request::Hello(a.peers.inner.hello());
    assert_eq!(ask(&stranger, &a, hello.clone()).await, None);
    // While a token waits it may show one, and nothing else.
    let _token = a.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    for request in [hello, Request::WhoHas(vec![]), Request::Sync(a.store.vector())] {
        assert_eq!(ask(&stranger, &a, request).await, None);
    }
    assert!(a.peers.inner.links.all().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_a_token_is_good_once_and_in_time_and_with_its_secret() {
    let a = Site::start("a", "x").await;
    let (b, c) = (Site::start("b", "x").await, Site::start("c", "x").await);
    let text = a.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    let token = Token::parse(&text).expect("own token");
    let guess = |secret, id| {
        let place = &c.place;
        let join = Join { token: id, secret, member: c.peers.inner.own.clone() };
        ask(place, &a, Request::Join(join))
    };
    assert_eq!(guess([0; 16], token.id).await, Some(Answer::Refused(Refusal::TOKEN_UNKNOWN)));
    assert_eq!(guess(token.secret, [0; 8]).await, Some(Answer::Refused(Refusal::TOKEN_UNKNOWN)));
    assert!(matches!(a.peers.join(&text).await, Err(Error::OwnToken)));

    let joined = b.peers.join(&text).await.expect("join");
    assert_eq!((joined.cluster, joined.issuer), (a.store.cluster(), a.node()));
    // A second time by the one that was let in is harmless: its first answer may have been lost.
    until("they are connected", || a.sees(&b, "connected")).await;
    b.peers.join(&text).await.expect("join again");
    // By another node it is of no use: nobody waits behind the gate any more.
    assert!(matches!(c.peers.join(&text).await, Err(Error::NotLetIn { .. })));
    let _another = a.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    let refused = c.peers.join(&text).await;
    assert!(matches!(refused, Err(Error::Refused { refusal: Refusal::TOKEN_UNKNOWN, .. })), "{refused:?}");

    let expired = a.peers.token(Duration::ZERO, RoleChange::WRITER).await.expect("token");
    assert!(matches!(c.peers.join(&expired).await, Err(Error::TokenExpired)));
    let late = Token { expires_ms: u64::MAX, ..Token::parse(&expired).expect("own token") };
    let refused = c.peers.join(&late.to_text()).await;
    assert!(matches!(refused, Err(Error::Refused { refusal: Refusal::TOKEN_EXPIRED, .. })), "its issuer looks too: {refused:?}");

    // A node that stands in for the issuer at its address does not have its key.
    let forged = Token { issuer: c.node(), ..Token::parse(&text).expect("own token") };
    let d = Site::start("d", "x").await;
    assert!(matches!(d.peers.join(&forged.to_text()).await, Err(Error::Unreachable { .. })));
    let elsewhere = d.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    assert!(matches!(b.peers.join(&elsewhere).await, Err(Error::HasPeers { members: 2, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_outlive_a_restart_of_their_issuer() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    let token = a.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    let a = a.stop().await.start().await;
    b.peers.join(&token).await.expect("join");
    until("they are connected", || a.sees(&b, "connected")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_an_expelled_node_is_cut_off_everywhere_and_stays_out_until_a_new_token() {
    let (a, b, c) = (Site::start("a", "x").await, Site::start("b", "x").await, Site::start("c", "x").await);
    a.let_in(&b).await;
    a.let_in(&c).await;
    until("all are connected", || b.sees(&c, "connected") && c.sees(&b, "connected")).await;
    let id = c.node();
    assert_eq!(a.peers.resolve(&id.to_string()[..9]).expect("a prefix"), id);
    assert!(a.peers.remove(id).await.expect("remove"));
    assert!(!a.peers.remove(id).await.expect("remove again"), "it is no member any more");
    assert!(matches!(a.peers.remove(a.node()).await, Err(Error::Oneself)));
    assert!(matches!(a.peers.resolve(&id.to_string()[..9]), Err(Error::UnknownMember { .. })));
    until("its connections are closed", || [&a, &b].iter().all(|site| site.peers.inner.links.get(&id).is_none())).await;

    // When it has heard of it by another way and is started again, it must not write itself back in.
    let exchange = a.store.exchange(&c.store.vector()).expect("exchange");
    let vector = exchange.vector().clone();
    c.store.apply(exchange.map(|numbered| numbered.expect("record")).collect(), &vector).expect("apply");
    let c = c.stop().await.start().await;
    assert!(!c.peers.inner.members.is_member(&id));
    c.push_image("from-outside").await;
    let mark = b.push_image("inside").await;
    until("the others go on", || a.tag("inside") == Some(mark)).await;
    assert_eq!(ask(&c.place, &b, Request::Hello(b.peers.inner.hello())).await, None);
    assert!(!a.peers.inner.members.is_member(&id) && !b.peers.inner.members.is_member(&id));
    assert_eq!((a.tag("from-outside"), c.tag("inside")), (None, None));

    // With a token of a member it is let in again, and what it wrote comes with it.
    let token = b.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    c.peers.join(&token).await.expect("join");
    until("it is back", || c.tag("inside") == Some(mark) && a.tag("from-outside").is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_is_connected_again_at_once_and_one_connection_is_kept() {
    let (a, mut b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    for _ in 0..3 {
        b = b.stop().await.start().await;
        let begun = Instant::now();
        until("they are connected", || a.sees(&b, "connected") && b.sees(&a, "connected")).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((a.metrics.peers_connected.get(), b.metrics.peers_connected.get()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_alive_is_told_and_since_when() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    let mut changes = a.peers.standing_changes();
    a.let_in(&b).await;
    let of_b = |a: &Site, node| a.peers.standings().get(&node).copied();
    let node = b.node();
    until("b is alive", || of_b(&a, node).is_some_and(|standing| standing.condition == Condition::Alive)).await;
    assert!(changes.has_changed().expect("open"));
    changes.mark_unchanged();
    assert!(of_b(&a, a.node()).is_none(), "this node is not among them");
    let before = Instant::now();
    let b = b.stop().await;
    until("b is down", || of_b(&a, node).is_some_and(|standing| standing.down_for(Instant::now()).is_some())).await;
    assert!(of_b(&a, node).expect("a member").since >= before && changes.has_changed().expect("open"));
    let b = b.start().await;
    until("b is back", || of_b(&a, b.node()).is_some_and(|standing| standing.condition == Condition::Alive)).await;
}
