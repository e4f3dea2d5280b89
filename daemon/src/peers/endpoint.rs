//! The QUIC endpoint, its connections and streams; the only file that knows quinn.
//!
//! TLS 1.3 with raw public keys on both sides. A server takes the keys that its [`Gate`] lets in and fails the handshake of
//! all others; a client takes the one key it wants to reach. Addresses are validated by a Retry before a byte is kept. Sessions
//! are never resumed: a ticket would lead past the gate.
//!
//! Who calls may open one stream and send a little, until [`Connection::trust`] lifts that for a member.
//!
//! Windows: quinn gives up a connection with more than 1,024 gaps in one stream, so a stream's window stays below that
//! number of packets; throughput comes from several streams.
//!
//! What bounds the throughput is the work for each packet, in the kernel and here, and no window: so packets grow as large as the
//! path takes them. How fast packets follow each other is decided by [`ByDistance`].

use std::any::Any;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use larder_protocol::frame::{Frame, HEADER_SIZE, Header};
use larder_protocol::keys::Counting;
use larder_protocol::message::{Answer, Message};
use larder_protocol::stamp::NodeId;
use larder_protocol::version::ALPN;
use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::RttEstimator;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::{Error, Result};
use super::identity::{Identity, Pair, node_of, spki_of};
use super::paths::{Path, Paths};

/// The code that tells a peer why its connection was closed: it has another one.
const DISPLACED: u32 = 2;
/// Bytes that one stream may have under way: below 1,024 gaps of two packets.
const STREAM_WINDOW: u32 = 2_400_000;
/// Bytes that are kept for a peer that has not acknowledged them: what one peer gets in a round trip.
const SEND_WINDOW: u32 = 4 << 20;
/// Bytes that a member may have under way to this node, and that are kept if nobody reads them. The other side has no more under way anyway.
const RECEIVE_WINDOW: u32 = SEND_WINDOW;
/// The largest packet that is looked for on a path: most take 1,500 bytes with headers, networks of jumbo frames 9,000, the loopback
/// 65,536. quinn hands ten packets at a time to the kernel, which takes no more than 65,507 bytes: with larger packets none would pass.
const PACKET_MAX: u16 = 6_500;
/// Streams that a member may have open.
const STREAMS_MAX: u32 = 256;
/// The same for who has called and is not known to be a member yet: a hello or a join.
const STRANGER_RECEIVE_WINDOW: u32 = 64 << 10;
const STRANGER_STREAMS_MAX: u32 = 1;
/// Calls that wait to be taken; further ones are refused.
const INCOMING_MAX: usize = 256;
/// Bytes kept of one call that waits, and of all.
const INCOMING_BUFFER: u64 = 16 << 10;
const INCOMING_BUFFER_TOTAL: u64 = 1 << 20;
/// Bytes of datagrams that wait to be sent, or to be read; the oldest go first.
const DATAGRAM_BUFFER: usize = 64 << 10;
/// A connection on which nothing was heard for so long is gone.
const IDLE: Duration = Duration::from_secs(20);
/// Often enough to keep a NAT's mapping.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A path whose shortest round trip is below this is short: within a site, or between sites of one city.
const SHORT: Duration = Duration::from_millis(4);
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A body's buffer grows by this much at a time, whatever length was claimed.
const BODY_STEP: usize = 64 << 10;
/// Bytes that the larger requests of one peer may have here, from when they are read until they are answered; so none may be larger. The largest is a
/// vector: 10,000 lives have room.
pub(super) const ROOM: usize = 512 << 10;
/// A message that is no larger waits for nobody.
const USUAL: usize = 1 << 10;
/// What the kernel is asked to hold of received datagrams.
const SOCKET_BUFFER: usize = 4 << 20;

/// Says whose key it is that is let in, if it is.
pub(super) type Gate = Arc<dyn Fn(&NodeId) -> Option<NodeId> + Send + Sync>;

/// The node's UDP port.
#[derive(Clone)]
pub(super) struct Endpoint {
    endpoint: quinn::Endpoint,
    /// What is shown from now on.
    key: Arc<ArcSwap<CertifiedKey>>,
    /// How calls are taken from now on.
    server: Arc<ArcSwap<quinn::ServerConfig>>,
    gate: Gate,
    paths: Arc<Paths>,
    provider: Arc<CryptoProvider>,
}

/// A connection to a peer whose key was proven.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    connection: quinn::Connection,
    peer: NodeId,
    key: NodeId,
    paths: Arc<Paths>,
}

/// What went over a connection since it came up, as UDP counts it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// One stream, both ways.
#[derive(Debug)]
pub(super) struct Stream {
    pub send: Sender,
    pub receive: Receiver,
}

/// The way out of a stream.
#[derive(Debug)]
pub(super) struct Sender {
    stream: quinn::SendStream,
    peer: NodeId,
}

/// The way in of a stream.
#[derive(Debug)]
pub(super) struct Receiver {
    stream: quinn::RecvStream,
    peer: NodeId,
}

impl Endpoint {
    /// Opens the port.
    pub(super) fn open(listen: SocketAddr, identity: &Identity, gate: Gate) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = certified(&provider, &identity.used());
        let server = Arc::new(server(&provider, &gate, &key));

        let failed = |doing| move |source| Error::Listen { doing, source };
        let socket = UdpSocket::bind(listen).map_err(failed("open the UDP port"))?;
        // What the system grants of it is enough to work; packaging raises the system's limit.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
        let mut port = quinn::EndpointConfig::default();
        port.max_udp_payload_size(PACKET_MAX).expect("above the least that QUIC asks for");
        let endpoint = quinn::Endpoint::new(port, Some((*server).clone()), socket, Arc::new(quinn::TokioRuntime));
        let endpoint = endpoint.map_err(failed("use the UDP port"))?;
        let (key, server) = (Arc::new(ArcSwap::new(key)), Arc::new(ArcSwap::new(server)));
        Ok(Self { endpoint, key, server, gate, paths: Arc::default(), provider })
    }

    /// Shows another key from now on. Connections that are up stay.
    pub(super) fn show(&self, pair: &Pair) {
        let key = certified(&self.provider, pair);
        let server = Arc::new(server(&self.provider, &self.gate, &key));
        self.endpoint.set_server_config(Some((*server).clone()));
        self.server.store(server);
        self.key.store(key);
    }

    /// The next peer that got through the gate; `None` when the port is closed. Handshakes run side by side: call again at once.
    pub(super) async fn accept(&self) -> Option<impl Future<Output = Option<Connection>> + Send + use<>> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if !incoming.remote_address_validated() && incoming.may_retry() {
                // Fails only where no Retry may be sent, which was asked for.
                let _ = incoming.retry();
                continue;
            }
            let (gate, paths) = (Arc::clone(&self.gate), Arc::clone(&self.paths));
            let mut server = self.server.load_full();
            if let Some(size) = paths.size(incoming.remote_address().ip(), Instant::now()) {
                Arc::make_mut(&mut server).transport_config(transport(STRANGER_STREAMS_MAX, STRANGER_RECEIVE_WINDOW, Some(size)));
            }
            return Some(async move {
                let connection = tokio::time::timeout(HANDSHAKE, async { incoming.accept_with(server)?.await }).await;
                match connection {
                    Ok(Ok(connection)) => Connection::proven(connection, paths, |key| gate(key)),
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "a handshake failed");
                        None
                    }
                    Err(_) => None,
                }
            });
        }
    }

    /// Reaches a peer, of whom these keys count, at an address, and nobody else who may answer there.
    pub(super) async fn dial(&self, peer: NodeId, keys: &Counting, address: SocketAddr) -> Result<Connection> {
        let failed = |why: String| Error::Connection { doing: "connect to", peer, why: format!("{address}: {why}") };
        let keys = keys.clone();
        let gate: Gate = Arc::new(move |key| keys.proves(key).then_some(peer));
        let verifier = Verifier { gate: Arc::clone(&gate), algorithms: self.provider.signature_verification_algorithms };
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(rustls::client::AlwaysResolvesClientRawPublicKeys::new(self.key.load_full())));
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.enable_sni = false;
        tls.resumption = rustls::client::Resumption::disabled();
        let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("the provider has QUIC's first cipher")));
        client.transport_config(transport(STREAMS_MAX, RECEIVE_WINDOW, self.paths.size(address.ip(), Instant::now())));
        let connecting = self.endpoint.connect_with(client, address, "larder").map_err(|error| failed(error.to_string()))?;
        let connection = tokio::time::timeout(HANDSHAKE, connecting).await.map_err(|_| failed("no answer".to_owned()))?;
        let connection = connection.map_err(|error| failed(error.to_string()))?;
        Connection::proven(connection, Arc::clone(&self.paths), |key| gate(key)).ok_or_else(|| failed("it showed no key".to_owned()))
    }

    /// Where the port is, which the system may have chosen.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().expect("the port is open")
    }

    /// Goes on from another port, as when a NAT gives out another one.
    #[cfg(test)]
    pub(super) fn rebind(&self) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        self.endpoint.rebind(socket).expect("the port is used");
    }

    /// Says goodbye to everyone and closes the port.
    pub(super) async fn close(&self) {
        self.endpoint.close(0u32.into(), b"this node is stopping");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.endpoint)
    }
}

/// A key as TLS shows it.
fn certified(provider: &CryptoProvider, pair: &Pair) -> Arc<CertifiedKey> {
    let pkcs8 = PrivateKeyDer::Pkcs8(pair.pkcs8().to_vec().into());
    let private = provider.key_provider.load_private_key(pkcs8).expect("the identity holds an Ed25519 key");
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki_of(&pair.key()))], private))
}

/// What takes calls: shows this key, and asks the gate about the caller's.
fn server(provider: &Arc<CryptoProvider>, gate: &Gate, key: &Arc<CertifiedKey>) -> quinn::ServerConfig {
    let verifier = Verifier { gate: Arc::clone(gate), algorithms: provider.signature_verification_algorithms };
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(rustls::server::AlwaysResolvesServerRawPublicKeys::new(Arc::clone(key))));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let mut server =
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("the provider has QUIC's first cipher")));
    server.transport_config(transport(STRANGER_STREAMS_MAX, STRANGER_RECEIVE_WINDOW, None));
    server.max_incoming(INCOMING_MAX).incoming_buffer_size(INCOMING_BUFFER).incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    server
}

impl Connection {
    fn proven(connection: quinn::Connection, paths: Arc<Paths>, whose: impl Fn(&NodeId) -> Option<NodeId>) -> Option<Self> {
        let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        let key = node_of(shown.first()?)?;
        // It may have stopped counting since the handshake.
        let peer = whose(&key)?;
        Some(Self { connection, peer, key, paths })
    }

    /// The key by which the peer has proved who it is.
    pub(super) fn key(&self) -> NodeId {
        self.key
    }

    /// Who is on the other side.
    pub(super) fn peer(&self) -> NodeId {
        self.peer
    }

    /// Lets a member that called do what members may.
    pub(super) fn trust(&self) {
        self.connection.set_receive_window(RECEIVE_WINDOW.into());
        self.connection.set_max_concurrent_bi_streams(STREAMS_MAX.into());
    }

    /// Opens a stream and sends the message that says what it is for.
    pub(super) async fn open<M: Message>(&self, first: &M) -> Result<Stream> {
        let (send, receive) = self.connection.open_bi().await.map_err(|error| broken(self.peer, error))?;
        let mut stream = self.stream(send, receive);
        stream.send.message(first).await?;
        Ok(stream)
    }

    /// Opens a stream and says nothing yet.
    #[cfg(test)]
    pub(super) async fn open_raw(&self) -> Result<Stream> {
        let (send, receive) = self.connection.open_bi().await.map_err(|error| broken(self.peer, error))?;
        Ok(self.stream(send, receive))
    }

    /// Asks for one answer.
    pub(super) async fn ask<M: Message>(&self, request: &M) -> Result<(Answer, Receiver)> {
        let mut stream = self.open(request).await?;
        stream.send.finish();
        let answer = stream.receive.message::<Answer>().await?.ok_or_else(|| broken(self.peer, "it ended the stream without an answer"))?;
        match answer {
            Answer::Refused(refusal) => Err(Error::Refused { peer: self.peer, refusal }),
            answer => Ok((answer, stream.receive)),
        }
    }

    /// The next stream that the peer opens.
    pub(super) async fn accept(&self) -> Result<Stream> {
        let (send, receive) = self.connection.accept_bi().await.map_err(|error| broken(self.peer, error))?;
        Ok(self.stream(send, receive))
    }

    fn stream(&self, send: quinn::SendStream, receive: quinn::RecvStream) -> Stream {
        Stream { send: Sender { stream: send, peer: self.peer }, receive: Receiver { stream: receive, peer: self.peer } }
    }

    /// Sends a datagram. It may be lost, and is when the peer takes none or it does not fit the path.
    pub(super) fn send_datagram(&self, bytes: Bytes) {
        let _ = self.connection.send_datagram(bytes);
    }

    /// The next datagram of the peer.
    pub(super) async fn datagram(&self) -> Result<Bytes> {
        self.connection.read_datagram().await.map_err(|error| broken(self.peer, error))
    }

    /// UDP packets and bytes that came from the peer, and bytes that went to it.
    pub(super) fn traffic(&self) -> Traffic {
        let stats = self.connection.stats();
        Traffic { packets_in: stats.udp_rx.datagrams, bytes_in: stats.udp_rx.bytes, bytes_out: stats.udp_tx.bytes }
    }

    /// Waits until it is gone.
    pub(super) async fn closed(&self) -> String {
        self.connection.closed().await.to_string()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    pub(super) fn close(&self, reason: &str) {
        self.connection.close(1u32.into(), reason.as_bytes());
    }

    /// Closes it because another connection with the same peer has taken its place.
    pub(super) fn give_up_for_another(&self) {
        self.connection.close(DISPLACED.into(), b"another connection has taken its place");
    }

    /// Whether the peer closed it because another connection with this node's key has taken its place.
    pub(super) fn was_displaced(&self) -> bool {
        matches!(self.connection.close_reason(), Some(quinn::ConnectionError::ApplicationClosed(close)) if close.error_code == DISPLACED.into())
    }

    /// Has the next connection with this address begin with packets as large as this one, which was up for so long, has found to pass.
    pub(super) fn note_path(&self, age: Duration) {
        let path = self.connection.stats().path;
        let path = Path { size: path.current_mtu, is_largest: path.current_mtu == PACKET_MAX, holes: path.black_holes_detected, age };
        self.paths.note(self.connection.remote_address().ip(), &path, Instant::now());
    }

    /// Bytes of the largest packet that passes, as far as it was looked for.
    #[cfg(test)]
    pub(super) fn packet_size(&self) -> u16 {
        self.connection.stats().path.current_mtu
    }

    /// Bytes of UDP both ways.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        let stats = self.connection.stats();
        stats.udp_tx.bytes + stats.udp_rx.bytes
    }

    /// Whether its path has shown to be short.
    #[cfg(test)]
    pub(super) fn is_short(&self) -> bool {
        self.connection.congestion_state().into_any().downcast::<Distanced>().expect("made by ByDistance").is_short
    }

    pub(super) fn rtt(&self) -> Duration {
        self.connection.rtt()
    }
}

impl Sender {
    pub(super) async fn message<M: Message>(&mut self, message: &M) -> Result<()> {
        self.raw(message.to_frame().to_bytes().into()).await
    }

    /// Sends bytes as they are.
    pub(super) async fn raw(&mut self, bytes: Bytes) -> Result<()> {
        self.stream.write_chunk(bytes).await.map_err(|error| broken(self.peer, error))
    }

    /// Among streams that have something to send, those of higher priority go first.
    pub(super) fn set_priority(&self, priority: i32) {
        // Fails only on a stream that was closed, which then sends nothing.
        let _ = self.stream.set_priority(priority);
    }

    /// Waits until the peer has everything, or wants no more.
    pub(super) async fn received(&mut self) {
        let _ = self.stream.stopped().await;
    }

    /// Says that nothing more comes. What was sent still arrives.
    pub(super) fn finish(&mut self) {
        let _ = self.stream.finish();
    }
}

impl Receiver {
    /// The next message; `None` at the end of the stream.
    pub(super) async fn message<M: Message>(&mut self) -> Result<Option<M>> {
        let Some(header) = self.header().await? else { return Ok(None) };
        self.body(header).await.map(Some)
    }

    /// The same, of a peer that may have many streams open: what is larger than usual waits for its part of the bytes that all of them may have here,
    /// and is not read before (S35). It has its part for as long as the second value lives.
    pub(super) async fn message_in_turn<'a, M: Message>(
        &mut self,
        room: &'a Semaphore,
    ) -> Result<Option<(M, Option<SemaphorePermit<'a>>)>> {
        let Some(header) = self.header().await? else { return Ok(None) };
        if header.length > ROOM {
            let what = format!("a request of {} bytes, where {ROOM} are the most", header.length);
            return Err(Error::Violation { peer: self.peer, what });
        }
        let part = match header.length > USUAL {
            true => Some(room.acquire_many(header.length as u32).await.expect("never closed")),
            false => None,
        };
        Ok(Some((self.body(header).await?, part)))
    }

    async fn header(&mut self) -> Result<Option<Header>> {
        let mut header = [0; HEADER_SIZE];
        match self.stream.read_exact(&mut header).await {
            Ok(()) => {}
            Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(error) => return Err(broken(self.peer, error)),
        }
        Header::parse(&header).map(Some).map_err(|error| self.violation(error))
    }

    async fn body<M: Message>(&mut self, header: Header) -> Result<M> {
        let mut body = Vec::new();
        while body.len() < header.length {
            let have = body.len();
            body.resize(header.length.min(have + BODY_STEP), 0);
            self.stream.read_exact(&mut body[have..]).await.map_err(|error| broken(self.peer, error))?;
        }
        M::from_frame(&Frame { kind: header.kind, body }).map_err(|error| self.violation(error))
    }

    /// Exactly `length` raw bytes; they are counted as they come.
    pub(super) async fn raw_counted(&mut self, length: usize, count: &AtomicU64) -> Result<Bytes> {
        let mut bytes = BytesMut::new();
        while bytes.len() < length {
            let chunk = self.stream.read_chunk(length - bytes.len(), true).await.map_err(|error| broken(self.peer, error))?;
            let chunk = chunk.ok_or_else(|| broken(self.peer, "the stream ended early"))?;
            count.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
            if chunk.bytes.len() == length {
                return Ok(chunk.bytes);
            }
            bytes.extend_from_slice(&chunk.bytes);
        }
        Ok(bytes.freeze())
    }

    fn violation(&self, error: impl std::error::Error) -> Error {
        Error::Violation { peer: self.peer, what: error.to_string() }
    }
}

fn broken(peer: NodeId, why: impl ToString) -> Error {
    Error::Connection { doing: "talk to", peer, why: why.to_string() }
}

/// `size`: of the largest packet that is known to pass; it is looked for, with some 50 kB, where it is not known.
fn transport(streams: u32, receive_window: u32, size: Option<u16>) -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(STREAM_WINDOW.into());
    transport.receive_window(receive_window.into());
    transport.send_window(SEND_WINDOW.into());
    transport.max_concurrent_bidi_streams(streams.into());
    transport.max_concurrent_uni_streams(0u32.into());
    transport.max_idle_timeout(Some(IDLE.try_into().expect("seconds fit")));
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    let mut sizes = quinn::MtuDiscoveryConfig::default();
    sizes.upper_bound(size.unwrap_or(PACKET_MAX));
    transport.mtu_discovery_config(Some(sizes));
    size.map(|size| transport.initial_mtu(size));
    transport.congestion_controller_factory(Arc::new(ByDistance));
    transport.datagram_receive_buffer_size(Some(DATAGRAM_BUFFER));
    transport.datagram_send_buffer_size(DATAGRAM_BUFFER);
    Arc::new(transport)
}

/// How fast packets follow each other: on a long path by what it delivers (BBR), because lines between sites lose packets that no queue
/// was too short for; on a short one by what it loses (CUBIC). There the chunks of a crowd come in bursts from many peers at once, and
/// BBR, which is slow to see that others have ended, leaves cables empty and some connections with next to nothing.
#[derive(Debug)]
struct ByDistance;

impl ControllerFactory for ByDistance {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Distanced { inner: Arc::new(BbrConfig::default()).build(now, mtu), mtu, is_short: false })
    }
}

/// Begins as for a long path, until a round trip shows that it is short.
struct Distanced {
    inner: Box<dyn Controller>,
    mtu: u16,
    is_short: bool,
}

impl Controller for Distanced {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        if !self.is_short && rtt.min() < SHORT {
            self.is_short = true;
            let mut cubic = CubicConfig::default();
            // A packet that probes the path's size must not fill the window: what waits behind it, even a close, would not be sent.
            cubic.initial_window(2 * u64::from(PACKET_MAX));
            self.inner = Arc::new(cubic).build(now, self.mtu);
        }
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), mtu: self.mtu, is_short: self.is_short })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Lets in whom the gate lets in. There is nothing else to check: no chain, no name, no date.
struct Verifier {
    gate: Gate,
    algorithms: WebPkiSupportedAlgorithms,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    fn check(&self, shown: &CertificateDer<'_>) -> std::result::Result<(), rustls::Error> {
        match node_of(shown) {
            Some(key) if (self.gate)(&key).is_some() => Ok(()),
            _ => Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(shown.as_ref()), signed, &self.algorithms)
    }
}

const NO_TLS12: &str = "QUIC has no TLS 1.2";

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        self.check(shown).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General(NO_TLS12.to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        self.check(shown).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General(NO_TLS12.to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
