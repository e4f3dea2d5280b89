//! Strangers and members that mean harm.

use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_protocol::message::{Join, READ_MAX, Read};
use larder_protocol::refusal::Refusal;
use larder_protocol::stamp::NodeId;
use tokio::net::UdpSocket;

use super::token::Token;
use super::*;

/// Passes UDP packets between those who send to it and a target, and counts bytes both ways.
struct Relay {
    address: SocketAddr,
    forth: Arc<AtomicU64>,
    back: Arc<AtomicU64>,
    /// Whose packets don't pass, and whether that is those to the target, or those from it.
    cut: Arc<Mutex<Option<(SocketAddr, Way)>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Forth,
    Back,
}

impl Relay {
    async fn to(target: SocketAddr) -> Self {
        let outer = Arc::new(bind().await);
        let relay = Self { address: outer.local_addr().expect("bound"), forth: Arc::default(), back: Arc::default(), cut: Arc::default() };
        let (forth, back, cut) = (Arc::clone(&relay.forth), Arc::clone(&relay.back), Arc::clone(&relay.cut));
        tokio::spawn(async move {
            let (mut packet, mut callers) = (vec![0; 65536], HashMap::new());
            while let Ok((length, caller)) = outer.recv_from(&mut packet).await {
                let inner = match callers.entry(caller) {
                    Entry::Occupied(known) => Arc::clone(known.get()),
                    Entry::Vacant(new) => {
                        let inner = Arc::new(bind().await);
                        tokio::spawn(pass_back(Arc::clone(&inner), Arc::clone(&outer), caller, Arc::clone(&back), Arc::clone(&cut)));
                        Arc::clone(new.insert(inner))
                    }
                };
                forth.fetch_add(length as u64, Ordering::Relaxed);
                if *cut.lock().expect("held for a look") != Some((caller, Way::Forth)) {
                    let _ = inner.send_to(&packet[..length], target).await;
                }
            }
        });
        relay
    }

    fn bytes(&self) -> (u64, u64) {
        (self.forth.load(Ordering::Relaxed), self.back.load(Ordering::Relaxed))
    }

    fn cut(&self, what: Option<(SocketAddr, Way)>) {
        *self.cut.lock().expect("held for a look") = what;
    }
}

async fn pass_back(
    inner: Arc<UdpSocket>,
    outer: Arc<UdpSocket>,
    caller: SocketAddr,
    bytes: Arc<AtomicU64>,
    cut: Arc<Mutex<Option<(SocketAddr, Way)>>>,
) {
    let mut packet = vec![0; 65536];
    while let Ok((length, _)) = inner.recv_from(&mut packet).await {
        bytes.fetch_add(length as u64, Ordering::Relaxed);
        if *cut.lock().expect("held for a look") != Some((caller, Way::Back)) {
            let _ = outer.send_to(&packet[..length], caller).await;
        }
    }
}

async fn bind() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.expect("a free port")
}

fn endpoint_of(place: &Place) -> Endpoint {
    Endpoint::open("127.0.0.1:0".parse().expect("address"), &place.identity(), Arc::new(|_| None)).expect("port")
}

/// What quinn says first to a node.
async fn first_packet(place: &Place, to: NodeId) -> Vec<u8> {
    let recorder = bind().await;
    let (endpoint, address) = (endpoint_of(place), recorder.local_addr().expect("bound"));
    let call = tokio::spawn(async move { endpoint.dial(to, &Counting::first(to), address).await.map(drop) });
    let mut packet = vec![0; 65536];
    let (length, _) = recorder.recv_from(&mut packet).await.expect("a packet");
    call.abort();
    packet.truncate(length);
    packet
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_a_stranger_costs_a_retry_and_gets_no_more_bytes_than_it_sends() {
    let (victim, stranger) = (Site::start("victim", "x").await, Site::start("stranger", "x").await);
    let stranger = stranger.stop().await;
    let target = victim.peers.inner.endpoint.address();
    // Whoever forges its address never answers the Retry: that packet is all that is sent there, however often it asks.
    let first = first_packet(&stranger, victim.node()).await;
    let forger = bind().await;
    const CALLS: usize = 200;
    for _ in 0..CALLS {
        forger.send_to(&first, target).await.expect("send");
    }
    let (mut answers, mut bytes, mut packet) = (0, 0, [0; 65536]);
    while let Ok(received) = tokio::time::timeout(Duration::from_millis(700), forger.recv_from(&mut packet)).await {
        let (length, _) = received.expect("receive");
        answers += 1;
        bytes += length;
        // A long header of type Retry (RFC 9000, 17.2.5).
        assert_eq!(packet[0] & 0xf0, 0xf0, "something else than a Retry");
    }
    assert!(answers > 0 && answers <= CALLS && bytes < answers * first.len(), "{answers} answers of {bytes} bytes");
    println!("s27: {CALLS} packets of {} bytes from a forged address drew {answers} of {} bytes", first.len(), bytes / answers);

    // One with an address of its own that goes on to the handshake.
    let relay = Relay::to(target).await;
    for _ in 0..5 {
        let endpoint = endpoint_of(&stranger);
        // The client's half of the handshake ends before the victim has looked at the key.
        if let Ok(connection) = endpoint.dial(victim.node(), &Counting::first(victim.node()), relay.address).await {
            tokio::time::timeout(DEADLINE, connection.closed()).await.expect("it is sent away");
        }
    }
    let (sent, received) = relay.bytes();
    println!("s27: 5 handshakes of a stranger sent {sent} bytes and drew {received}");
    assert!(sent > 0 && received <= 3 * sent, "{received} bytes for {sent}");
    assert!(victim.peers.inner.links.all().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_a_token_that_is_guessed_at_is_withdrawn() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    let text = a.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    let token = Token::parse(&text).expect("own token");
    // Another one keeps the gate open.
    let _other = a.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    let guess = async |id, secret| {
        let stranger = Impostor::with_key_of(&b.place, &a).await;
        let join = Join { token: id, secret, member: b.peers.inner.own.clone() };
        match stranger.connection.ask(&Request::Join(join)).await {
            Err(Error::Refused { refusal, .. }) => refusal,
            other => panic!("{other:?}"),
        }
    };
    for number in 0..20u8 {
        assert_eq!(guess([number; 8], [0; 16]).await, Refusal::TOKEN_UNKNOWN);
        assert!(a.peers.inner.admitting.lock().await.len() <= 3, "guesses at names fill nothing");
    }
    for number in 0..5u8 {
        assert_eq!(guess(token.id, [number; 16]).await, Refusal::TOKEN_UNKNOWN);
    }
    assert_eq!(guess(token.id, token.secret).await, Refusal::TOKEN_UNKNOWN, "it was guessed at too often");
    assert!(!a.peers.inner.members.is_member(&b.node()));
}

#[tokio::test(flavor = "multi_thread")]
async fn s35_a_peer_that_opens_streams_and_never_reads_takes_a_bounded_part() {
    let victim = Site::start("victim", "x").await;
    let honest = Site::start("honest", "x").await;
    victim.let_in(&honest).await;
    let (digest, link) = victim.push_blob(&bytes(1, 24 << 20)).await;
    let impostor = Impostor::of(&victim).await;
    let before = victim.metrics.served_bytes.get();
    // Streams that say nothing: no more than are allowed are opened.
    let mut silent = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_secs(1), impostor.connection.open(&Nothing)).await {
        silent.push(stream.expect("the connection stands"));
        assert!(silent.len() <= 256, "more streams than a member may have");
    }
    assert!(silent.len() >= 200, "{} streams: something else has stopped them", silent.len());
    drop(silent);
    // Requests for far more than is ever read.
    let read = Request::Read(Read { digest, offset: 0, length: READ_MAX });
    let mut unread = Vec::new();
    while unread.len() < 200 {
        match tokio::time::timeout(Duration::from_secs(2), impostor.connection.open(&read)).await {
            Ok(stream) => unread.push(stream.expect("the connection stands")),
            Err(_) => break,
        }
    }
    // It stands still: what is read for a peer and not yet taken by it is bounded.
    let served = || victim.metrics.served_bytes.get() - before;
    let (mut last, mut same) = (served(), 0);
    let deadline = Instant::now() + DEADLINE;
    while same < 10 {
        assert!(Instant::now() < deadline, "it goes on reading: {last} bytes");
        tokio::time::sleep(Duration::from_millis(50)).await;
        same = if served() == last { same + 1 } else { 0 };
        last = served();
    }
    let taken = impostor.connection.traffic().bytes_in;
    let kept = last.saturating_sub(taken);
    println!("s35: {} requests for {READ_MAX} bytes: {last} bytes read from disk, {taken} taken, {kept} kept", unread.len());
    assert!(kept <= 8 << 20, "{kept} bytes are kept for a peer that does not read");
    // What it sends behind its requests is read by nobody: it stands still, too.
    let sent = || impostor.connection.traffic().bytes_out;
    let before = sent();
    for stream in &mut unread {
        if tokio::time::timeout(Duration::from_millis(300), stream.send.raw(bytes(2, 1 << 20).into())).await.is_err() {
            break;
        }
    }
    let filled = sent() - before;
    println!("s35: {filled} bytes were sent that nobody reads");
    assert!((3 << 20..5 << 20).contains(&filled), "{filled} bytes are kept of a peer that sends what nobody reads");
    // Others are served meanwhile.
    assert!(honest.fetch(digest, link).await.expect("fetch"));
    impostor.connection.close("enough");
    until("nothing of it is left", || victim.peers.inner.links.all().len() == 1).await;
}

/// A stream without a request.
#[derive(serde::Serialize, serde::Deserialize)]
struct Nothing;

impl larder_protocol::message::Message for Nothing {
    const KIND: larder_protocol::frame::Kind = larder_protocol::frame::Kind::Request;

    fn to_frame(&self) -> larder_protocol::frame::Frame {
        // The head of a frame whose body never comes: the endpoint sends what there is.
        larder_protocol::frame::Frame { kind: Self::KIND.number(), body: vec![1, 200] }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f19_a_link_that_works_one_way_is_given_up_and_others_serve() {
    let (a, b, c) = (Site::start("a", "x").await, Site::start("b", "x").await, Site::start("c", "x").await);
    // A and B call each other through relays only.
    let (to_a, to_b) = (Relay::to(a.peers.inner.endpoint.address()).await, Relay::to(b.peers.inner.endpoint.address()).await);
    let (mut a, mut b) = (a.stop().await, b.stop().await);
    a.config.peers.advertise = vec![to_a.address.to_string()];
    b.config.peers.advertise = vec![to_b.address.to_string()];
    let (a, b) = (a.start().await, b.start().await);
    c.let_in(&a).await;
    c.let_in(&b).await;
    until("all are connected", || a.sees(&b, "connected") && b.sees(&a, "connected")).await;
    let (digest, link) = b.push_blob(&bytes(3, 5 << 20)).await;
    assert!(c.fetch(digest, link).await.expect("fetch"));

    // What A sends does not reach B any more; A hears B.
    let (of_a, of_b) = (a.peers.inner.endpoint.address(), b.peers.inner.endpoint.address());
    to_b.cut(Some((of_a, Way::Forth)));
    to_a.cut(Some((of_b, Way::Back)));
    let begun = Instant::now();
    assert!(a.fetch(digest, link).await.expect("fetch"), "C serves");
    let fetched = begun.elapsed();
    assert!(fetched < Duration::from_secs(15), "{fetched:?}");
    while a.peers.inner.links.get(&b.node()).is_some() || b.peers.inner.links.get(&a.node()).is_some() {
        assert!(begun.elapsed() < Duration::from_secs(120), "a half-open connection is left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("f19: fetched elsewhere in {fetched:?}, the connection given up on both sides after {:?}", begun.elapsed());
    // C hears both, so neither is taken for dead; between them nothing is left.
    until("they are alive through C", || a.sees(&b, "indirect") && b.sees(&a, "indirect")).await;
    to_b.cut(None);
    to_a.cut(None);
    until("they meet again", || a.sees(&b, "connected") && b.sees(&a, "connected")).await;
}
