//! S35 as the kernel counts it: what members with bad intent can make a node hold. The node is a process of its own, this program once more.
//! They are several, so that what counts is what one more of them costs.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use futures_util::future::join_all;
use larder_protocol::digest::CHUNK_SIZE;
use larder_protocol::frame::Frame;
use larder_protocol::message::{ChunkRead, Message, READ_MAX, Read, Seen};
use larder_protocol::vector::{Origin, VersionVector};

use super::*;
use crate::peers::endpoint::ROOM;

const VICTIM: &str = "LARDER_TEST_VICTIM";
/// What no member gets beyond.
const MOST: u64 = 8 << 20;
/// Who attack together.
const MEMBERS: usize = 4;
const STREAMS: usize = 250;

/// The node in the other process: says where it is, and lives until its input ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s35_the_node_in_a_process_of_its_own() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let site = Site::start("victim", "x").await;
    let (digest, _) = site.push_blob(&bytes(1, 24 << 20)).await;
    print!("\nvictim {digest}");
    for _ in 0..MEMBERS {
        let token = site.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
        print!(" {token}");
    }
    println!();
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().lines().count()).await;
}

/// A node in a process of its own, and members' keys in other hands.
struct Scene {
    child: Child,
    members: Vec<(Place, Hello)>,
    node: NodeId,
    address: std::net::SocketAddr,
    digest: Digest,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Scene {
    async fn new() -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args(["--exact", "peers::tests::memory::s35_the_node_in_a_process_of_its_own", "--nocapture"]);
        // As the program's own main has it.
        command.env(VICTIM, "1").env("MALLOC_ARENA_MAX", "2").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the other process");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let said = tokio::task::spawn_blocking(move || {
            let line = output.lines().map_while(std::result::Result::ok).find(|line| line.starts_with("victim "));
            line.expect("it says where it is")
        });
        let said = said.await.expect("read");
        let words: Vec<_> = said.split(' ').collect();
        let [_, digest, tokens @ ..] = &words[..] else { panic!("{said}") };
        let (mut members, mut found) = (Vec::new(), None);
        for token in tokens {
            let site = Site::start("impostor", "x").await;
            let joined = site.peers.join(token).await.expect("join");
            let hello = Hello { life: 1, ..site.peers.inner.hello() };
            until("it knows the node", || site.peers.inner.links.get(&joined.issuer).is_some()).await;
            let member = site.peers.inner.members.others().into_iter().find(|(node, _)| *node == joined.issuer);
            found = member.map(|(node, member)| (node, member.addresses[0].parse().expect("an address")));
            members.push((site.stop().await, hello));
        }
        let (node, address) = found.expect("a member");
        Self { child, members, node, address, digest: Digest::from_str(digest).expect("a digest") }
    }

    /// A connection of each member, by which the node has touched once what an honest one makes it touch.
    async fn connect(&self) -> Vec<Impostor> {
        let mut impostors = Vec::new();
        for (place, hello) in &self.members {
            let endpoint = Endpoint::open("127.0.0.1:0".parse().expect("address"), &place.identity(), Arc::new(|_| None)).expect("port");
            let connection = endpoint.dial(self.node, &Counting::first(self.node), self.address).await.expect("dial");
            let (answer, _) = connection.ask(&Request::Hello(hello.clone())).await.expect("hello");
            assert!(matches!(answer, Answer::Hello(_)));
            for index in 0..24 {
                let read = Request::Read(Read { digest: self.digest, offset: index * CHUNK_SIZE, length: CHUNK_SIZE });
                let (answer, mut receiver) = connection.ask(&read).await.expect("an answer");
                assert_eq!(answer, Answer::Read { length: CHUNK_SIZE });
                receiver.raw_counted(CHUNK_SIZE as usize, &Default::default()).await.expect("a chunk");
            }
            impostors.push(Impostor { _endpoint: endpoint, connection });
        }
        impostors
    }

    /// Bytes of memory that the node has.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("the kernel says");
        line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") << 10
    }
}

/// The most memory that a node has more than before for each of several who do something to it over connections of their own, until a while after.
async fn grown(what: &str, attack: impl AsyncFn(Digest, &Impostor)) -> u64 {
    let scene = Scene::new().await;
    let impostors = scene.connect().await;
    let before = scene.memory();
    let mut most = before;
    {
        let mut attacks = std::pin::pin!(join_all(impostors.iter().map(|impostor| attack(scene.digest, impostor))));
        let mut is_done = false;
        let end = Instant::now() + Duration::from_secs(6);
        while Instant::now() < end {
            tokio::select! {
                _ = &mut attacks, if !is_done => is_done = true,
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
            most = most.max(scene.memory());
        }
    }
    impostors.iter().for_each(|impostor| impostor.connection.close("enough"));
    let grown = (most - before) / MEMBERS as u64;
    println!("s35: {what}: {:.1} MiB more for each of {MEMBERS}", grown as f64 / f64::from(1 << 20));
    grown
}

/// The larger part of a message, of a length that is claimed whole.
struct Part(Bytes);

impl Part {
    fn of(frame: &Frame, claimed: usize) -> Self {
        let mut bytes = frame.to_bytes();
        bytes[2..6].copy_from_slice(&(claimed as u32).to_le_bytes());
        Self(bytes.into())
    }
}

/// A vector of so many origins that nobody has heard of.
fn vector(count: u64, seed: u64) -> VersionVector {
    let origin = |number: u64| Origin { node: NodeId(*blake3::hash(&(seed << 32 | number).to_le_bytes()).as_bytes()), incarnation: 1 };
    (0..count).map(|number| (origin(number), 1)).collect()
}

async fn open(impostor: &Impostor, part: &Part, kept: &mut Vec<Stream>) -> bool {
    let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_millis(500), impostor.connection.open_raw()).await else { return false };
    let _ = tokio::time::timeout(Duration::from_millis(50), stream.send.raw(part.0.clone())).await;
    kept.push(stream);
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn s35_what_a_peer_makes_a_node_hold_is_bounded_as_the_kernel_counts_it() {
    let request = Request::Sync(vector(10_000, 1)).to_frame();
    assert!(request.body.len() < ROOM && request.body.len() > ROOM / 2, "{} bytes", request.body.len());
    let mut worst = 0;
    // For each a node of its own: what one has freed the next would take without growing.
    let attacked = grown("large requests that lack a byte", async |_, impostor| {
        let (part, mut kept) = (Part::of(&request, request.body.len() + 1), Vec::new());
        while kept.len() < STREAMS && open(impostor, &part, &mut kept).await {}
        tokio::time::sleep(Duration::from_secs(4)).await;
    });
    worst = worst.max(attacked.await);
    let attacked = grown("requests that wait for their turn", async |_, impostor| {
        let (part, mut kept) = (Part::of(&request, request.body.len()), Vec::new());
        while kept.len() < STREAMS && open(impostor, &part, &mut kept).await {}
        tokio::time::sleep(Duration::from_secs(4)).await;
    });
    worst = worst.max(attacked.await);
    let attacked = grown("vectors of ever more origins", async |_, impostor| {
        let mut stream = impostor.connection.open(&Request::Sync(vector(1, 0))).await.expect("a stream");
        for round in 2..40 {
            let _ = stream.send.message(&Seen(vector(10_000, round))).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    });
    worst = worst.max(attacked.await);
    let attacked = grown("chunks and ranges that are not read", async |digest, impostor| {
        let mut kept = Vec::new();
        for number in 0..STREAMS as u32 {
            let chunk = ChunkRead { digest, index: number % 24, class: Class::Client, insist: true };
            let read = Read { digest, offset: 0, length: READ_MAX };
            let request = if number % 2 == 0 { Request::Chunk(chunk) } else { Request::Read(read) };
            let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(500), impostor.connection.open(&request)).await else { break };
            kept.push(stream);
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
    });
    worst = worst.max(attacked.await);
    assert!(worst <= MOST, "{worst} bytes");
}
