//! A client that costs next to nothing: blocking sockets, one large buffer, and as little of HTTP/1.1 as servers need to be asked.
//!
//! What is measured is servers, and on a machine of few cores every cycle of the client is one that they don't get. Bodies are
//! read into the same buffer again and again and thrown away; what is pushed is one buffer whose last bytes make it another blob, so that
//! its digest costs the hash of those.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use sha2::{Digest, Sha256};

const BUFFER_SIZE: usize = 256 << 10;
/// No server takes longer for anything that is measured.
const PATIENCE: Duration = Duration::from_secs(60);

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection.
pub struct Wire {
    stream: Box<dyn Stream>,
    host: String,
    buffer: Vec<u8>,
    /// What of the buffer has come and was not taken.
    filled: std::ops::Range<usize>,
}

/// The head of an answer.
pub struct Head {
    pub status: u16,
    pub length: u64,
    pub location: String,
}

impl Wire {
    pub fn connect(address: &str, tls: Option<&Arc<ClientConfig>>) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("connect with {address}: {error}"));
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from("localhost").expect("a name");
                Box::new(StreamOwned::new(ClientConnection::new(Arc::clone(config), name).expect("a client"), stream))
            }
        };
        Self { stream, host: address.to_owned(), buffer: vec![0; BUFFER_SIZE], filled: 0..0 }
    }

    pub fn ask(&mut self, method: &str, path: &str, more: &str) {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{more}\r\n", self.host);
        self.stream.write_all(head.as_bytes()).expect("send a request");
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send a body");
    }

    pub fn head(&mut self) -> Head {
        loop {
            let there = &self.buffer[self.filled.clone()];
            if let Some(end) = there.windows(4).position(|window| window == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&there[..end]).into_owned();
                self.filled.start += end + 4;
                return parse(&text);
            }
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
            let count = self.stream.read(&mut self.buffer[self.filled.end..]).expect("read an answer");
            assert!(count > 0, "the server hung up");
            self.filled.end += count;
        }
    }

    /// Throws a body away; how much came until it ended, or until it was enough.
    pub fn drain(&mut self, length: u64, until: Option<Instant>, count: &AtomicU64) -> io::Result<()> {
        let mut left = length - self.take(length);
        count.fetch_add(length - left, Ordering::Relaxed);
        while left > 0 {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let most = usize::try_from(left).unwrap_or(BUFFER_SIZE).min(BUFFER_SIZE);
            let read = self.stream.read(&mut self.buffer[..most])?;
            assert!(read > 0, "the server hung up");
            left -= read as u64;
            count.fetch_add(read as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn take(&mut self, most: u64) -> u64 {
        let taken = (self.filled.len() as u64).min(most);
        self.filled.start += taken as usize;
        taken
    }

    /// Reads a whole answer and throws its body away.
    pub fn answer(&mut self, status: u16) -> Head {
        let head = self.head();
        self.drain(head.length, None, &AtomicU64::new(0)).expect("read a body");
        assert_eq!(head.status, status, "an answer of {}", self.host);
        head
    }

    /// Pushes a blob in one piece; how long its PUT took.
    pub fn push(&mut self, repository: &str, blob: &Numbered, number: u64) -> Duration {
        let location = self.begin(repository);
        let digest = blob.digest(number);
        let begun = Instant::now();
        self.ask(
            "PUT",
            &with_digest(&location, &digest),
            &format!("content-length: {}\r\ncontent-type: application/octet-stream\r\n", blob.size()),
        );
        blob.pieces(number).into_iter().for_each(|piece| self.send(piece.as_ref()));
        self.answer(201);
        begun.elapsed()
    }

    /// Pushes a blob in chunks; how long all of it took, and how long the closing PUT, which carries nothing.
    pub fn push_chunked(&mut self, repository: &str, blob: &Numbered, number: u64, chunk: usize) -> (Duration, Duration) {
        let mut location = self.begin(repository);
        let digest = blob.digest(number);
        let begun = Instant::now();
        let mut offset = 0;
        let last = blob.last(number);
        while offset < blob.size() {
            let end = (offset + chunk).min(blob.size());
            self.ask(
                "PATCH",
                &location,
                &format!(
                    "content-length: {}\r\ncontent-range: {offset}-{}\r\ncontent-type: application/octet-stream\r\n",
                    end - offset,
                    end - 1
                ),
            );
            let same = blob.body.len();
            self.send(&blob.body[offset.min(same)..end.min(same)]);
            if end > same {
                self.send(&last[offset.max(same) - same..end - same]);
            }
            location = path_of(&self.answer(202).location);
            offset = end;
        }
        let closing = Instant::now();
        self.ask("PUT", &with_digest(&location, &digest), "content-length: 0\r\n");
        self.answer(201);
        (begun.elapsed(), closing.elapsed())
    }

    /// Pushes these bytes.
    pub fn push_bytes(&mut self, repository: &str, bytes: &[u8], digest: &str) {
        let location = self.begin(repository);
        let more = format!("content-length: {}\r\ncontent-type: application/octet-stream\r\n", bytes.len());
        self.ask("PUT", &with_digest(&location, digest), &more);
        self.send(bytes);
        self.answer(201);
    }

    /// Reads all of what is at a path.
    pub fn get(&mut self, path: &str) {
        self.ask("GET", path, "accept: application/vnd.oci.image.manifest.v1+json\r\n");
        self.answer(200);
    }

    fn begin(&mut self, repository: &str) -> String {
        self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), "content-length: 0\r\n");
        path_of(&self.answer(202).location)
    }

    pub fn push_manifest(&mut self, repository: &str, tag: &str, bytes: &[u8]) {
        let more = format!("content-length: {}\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\n", bytes.len());
        self.ask("PUT", &format!("/v2/{repository}/manifests/{tag}"), &more);
        self.send(bytes);
        self.answer(201);
    }
}

/// Asks the same again and again, on so many connections, for answers without a body; how many came.
pub fn heads(address: &str, request: &[u8], status: &str, connections: usize, until: Instant) -> u64 {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    let mut streams: Vec<(TcpStream, Vec<u8>)> = Vec::new();
    for place in 0..connections {
        let mut stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("connect with {address}: {error}"));
        stream.set_nodelay(true).expect("a socket");
        epoll::add(&poll, &stream, epoll::EventData::new_u64(place as u64), epoll::EventFlags::IN).expect("watch a socket");
        stream.write_all(request).expect("send a request");
        streams.push((stream, Vec::new()));
    }
    let (mut count, mut ready, mut buffer) = (0, Vec::with_capacity(connections), [0; 8192]);
    let patience = Timespec { tv_sec: 1, tv_nsec: 0 };
    while Instant::now() < until {
        ready.clear();
        epoll::wait(&poll, spare_capacity(&mut ready), Some(&patience)).expect("wait");
        for event in &ready {
            let (stream, answer) = &mut streams[event.data.u64() as usize];
            let read = stream.read(&mut buffer).expect("read an answer");
            assert!(read > 0, "the server hung up");
            answer.extend_from_slice(&buffer[..read]);
            if answer.ends_with(b"\r\n\r\n") {
                assert_eq!(answer.get(9..12), Some(status.as_bytes()), "{}", String::from_utf8_lossy(answer));
                answer.clear();
                count += 1;
                stream.write_all(request).expect("send a request");
            }
        }
    }
    count
}

fn parse(text: &str) -> Head {
    let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {text}"));
    let value = |name: &str| {
        let found = text.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let length = value("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    Head { status, length, location: value("location").unwrap_or_default() }
}

/// The address without scheme and host, which some servers put before it.
fn path_of(location: &str) -> String {
    match location.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or_else(|| "/".to_owned(), |slash| rest[slash..].to_owned()),
        None => location.to_owned(),
    }
}

fn with_digest(location: &str, digest: &str) -> String {
    format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' })
}

/// Blobs that differ in their last bytes.
pub struct Numbered {
    body: Vec<u8>,
    state: Sha256,
}

const NUMBER_SIZE: usize = 16;

impl Numbered {
    pub fn new(size: usize) -> Self {
        let mut body = vec![0; size - NUMBER_SIZE];
        larder_harness::Random::new(size as u64).fill(&mut body);
        let state = Sha256::new().chain_update(&body);
        Self { body, state }
    }

    pub fn size(&self) -> usize {
        self.body.len() + NUMBER_SIZE
    }

    pub fn last(&self, number: u64) -> [u8; NUMBER_SIZE] {
        let mut last = [0; NUMBER_SIZE];
        last[..8].copy_from_slice(&number.to_le_bytes());
        last
    }

    fn pieces(&self, number: u64) -> [std::borrow::Cow<'_, [u8]>; 2] {
        [self.body.as_slice().into(), self.last(number).to_vec().into()]
    }

    pub fn digest(&self, number: u64) -> String {
        format!("sha256:{}", hex::encode(self.state.clone().chain_update(self.last(number)).finalize()))
    }

    /// All of one.
    pub fn whole(&self, number: u64) -> Vec<u8> {
        [self.body.as_slice(), &self.last(number)].concat()
    }
}
