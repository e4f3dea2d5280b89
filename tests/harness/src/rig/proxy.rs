//! A network between nodes that delays, loses, throttles and cuts, and can be changed while they run.
//!
//! ```text
//!   node A  --- A's packets to B -->  front of B  --[path A to B]-->  back of B for A  -->  node B
//!           <-- [path B to A] ------------------------------------------------------------
//! ```
//!
//! Each node says that it is reached at its front, so every connection that another one dials goes through here, and with
//! it all that flows back. Who sent a packet is told by its address, because a node dials from the port that it listens on: so each
//! direction of each pair has a [`Path`] of its own, whoever of the two has dialled.
//!
//! One thread moves all packets; the kernel's timers make delays good to about a tenth of a millisecond.

use super::{Host, Rate};
use crate::random::Random;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a packet may wait for its turn where there is a rate; later ones are dropped, as a router's queue does it.
const QUEUE: Duration = Duration::from_millis(200);
/// How often the thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);
/// Packets that are taken from one socket before the others have their turn.
const TURN: usize = 64;
const SOCKET_BUFFER: usize = 4 << 20;
const PACKET_MAX: usize = 65_536;

/// One direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Path {
    /// From one end to the other.
    pub delay: Duration,
    /// Which part of the packets is lost, from 0 to 1.
    pub loss: f64,
    /// Bits a second; `None`: as many as come.
    pub rate: Option<Rate>,
    /// Nothing gets through.
    pub is_cut: bool,
}

impl Path {
    /// At once and everything.
    pub const CLEAR: Self = Self { delay: Duration::ZERO, loss: 0.0, rate: None, is_cut: false };
    /// Nothing.
    pub const CUT: Self = Self { is_cut: true, ..Self::CLEAR };

    /// One half of this round trip time.
    pub fn rtt(rtt: Duration) -> Self {
        Self { delay: rtt / 2, ..Self::CLEAR }
    }
}

/// The network between nodes that are known by their places in a list. Ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    fronts: Vec<SocketAddr>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    count: usize,
    lanes: Mutex<Vec<Lane>>,
    is_over: AtomicBool,
}

/// The state of one direction.
#[derive(Debug, Clone, Copy)]
struct Lane {
    path: Path,
    free_at: Option<Instant>,
    passed_bytes: u64,
}

impl Proxy {
    /// Between nodes on the loopback, which listen at these addresses. `seed` says which packets are lost.
    pub fn local(nodes: &[SocketAddr], seed: u64) -> Self {
        let make = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("open a port");
        Self::over(nodes, seed, make)
    }

    /// Between nodes on hosts of a rig, at the switch of `host`: what it lets through still passes all their cables.
    pub fn at_switch(host: &Host, nodes: &[SocketAddr], seed: u64) -> Self {
        host.at_switch(|| Self::over(nodes, seed, || UdpSocket::bind((host.switch_address(), 0)).expect("open a port")))
    }

    fn over(nodes: &[SocketAddr], seed: u64, make: impl Fn() -> UdpSocket) -> Self {
        println!("what is lost is by seed {seed}");
        let count = nodes.len();
        let fronts: Vec<UdpSocket> = (0..count).map(|_| prepared(make())).collect();
        let addresses = fronts.iter().map(|front| front.local_addr().expect("an address")).collect();
        // Of (to, for) the place is to * count + for. Those of a node to itself are never used.
        let backs: Vec<UdpSocket> = (0..count * count).map(|_| prepared(make())).collect();
        let lane = Lane { path: Path::CLEAR, free_at: None, passed_bytes: 0 };
        let shared = Arc::new(Shared { count, lanes: Mutex::new(vec![lane; count * count]), is_over: AtomicBool::new(false) });
        let mover = Mover {
            nodes: nodes.to_vec(),
            fronts,
            backs,
            shared: Arc::clone(&shared),
            random: Random::new(seed),
            waiting: BinaryHeap::new(),
            taken: 0,
            buffer: vec![0; PACKET_MAX],
        };
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(move || mover.run());
        Self { fronts: addresses, shared, thread: Some(thread.expect("start a thread")) }
    }

    /// Where others reach a node; what it has to advertise.
    pub fn front(&self, node: usize) -> SocketAddr {
        self.fronts[node]
    }

    /// Changes one direction.
    pub fn set(&self, from: usize, to: usize, path: Path) {
        self.shared.lanes()[from * self.shared.count + to].path = path;
    }

    /// Changes both directions between two nodes.
    pub fn set_both(&self, one: usize, other: usize, path: Path) {
        self.set(one, other, path);
        self.set(other, one, path);
    }

    /// Changes every direction.
    pub fn set_all(&self, path: Path) {
        self.shared.lanes().iter_mut().for_each(|lane| lane.path = path);
    }

    /// Cuts between those nodes for which `side` is true and those for which it is not; inside each side all is clear.
    pub fn part(&self, side: impl Fn(usize) -> bool) {
        for from in 0..self.shared.count {
            for to in 0..self.shared.count {
                self.set(from, to, if side(from) == side(to) { Path::CLEAR } else { Path::CUT });
            }
        }
    }

    /// Bytes of the packets that got through in one direction.
    pub fn passed_bytes(&self, from: usize, to: usize) -> u64 {
        self.shared.lanes()[from * self.shared.count + to].passed_bytes
    }

    /// The same over all directions.
    pub fn passed_bytes_in_all(&self) -> u64 {
        self.shared.lanes().iter().map(|lane| lane.passed_bytes).sum()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the proxy broke");
        }
    }
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn prepared(socket: UdpSocket) -> UdpSocket {
    socket.set_nonblocking(true).expect("a socket that does not wait");
    // What the kernel grants of it is enough.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    socket
}

/// The thread.
struct Mover {
    nodes: Vec<SocketAddr>,
    fronts: Vec<UdpSocket>,
    backs: Vec<UdpSocket>,
    shared: Arc<Shared>,
    random: Random,
    waiting: BinaryHeap<Reverse<Packet>>,
    /// Packets taken so far: those that are due at one time keep their order.
    taken: u64,
    buffer: Vec<u8>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    order: u64,
    from: usize,
    to: usize,
    /// Whether it goes on from the back of `to`, as what was dialled does; otherwise from the front of `from`, as an answer.
    is_forward: bool,
    bytes: Vec<u8>,
}

impl Mover {
    fn run(mut self) {
        while !self.shared.is_over.load(Ordering::Relaxed) {
            let wait = self.waiting.peek().map_or(LOOK, |Reverse(next)| next.due.saturating_duration_since(Instant::now()).min(LOOK));
            for place in self.readable(wait) {
                self.take(place);
            }
            self.deliver();
        }
    }

    /// Waits for packets; gives the places of the sockets that have some, the fronts first.
    fn readable(&self, wait: Duration) -> Vec<usize> {
        let sockets = self.fronts.iter().chain(&self.backs);
        let mut polled: Vec<PollFd<'_>> = sockets.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        // Interrupted: nothing is readable, and the next round asks again.
        if poll(&mut polled, Some(&wait)).is_err() {
            return Vec::new();
        }
        polled.iter().enumerate().filter(|(_, socket)| !socket.revents().is_empty()).map(|(place, _)| place).collect()
    }

    fn take(&mut self, place: usize) {
        let count = self.nodes.len();
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..TURN {
            let socket = if place < count { &self.fronts[place] } else { &self.backs[place - count] };
            let (size, sender) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // A node that has ended refused what was sent to it before.
                Err(_) => continue,
            };
            let Some(from) = self.nodes.iter().position(|node| *node == sender) else { continue };
            let (to, is_forward) = if place < count { (place, true) } else { ((place - count) % count, false) };
            self.schedule(from, to, is_forward, &buffer[..size]);
        }
        self.buffer = buffer;
    }

    /// Decides when a packet arrives, if at all.
    fn schedule(&mut self, from: usize, to: usize, is_forward: bool, bytes: &[u8]) {
        let now = Instant::now();
        let mut lanes = self.shared.lanes();
        let lane = &mut lanes[from * self.nodes.len() + to];
        let Path { delay, loss, rate, is_cut } = lane.path;
        if is_cut {
            return;
        }
        let mut sent = now;
        if let Some(rate) = rate {
            let begin = lane.free_at.map_or(now, |free_at| free_at.max(now));
            if begin - now > QUEUE {
                return;
            }
            sent = begin + Duration::from_secs_f64(bytes.len() as f64 * 8.0 / rate.0 as f64);
            lane.free_at = Some(sent);
        }
        // It has used its turn even when it is lost on the way.
        if loss > 0.0 && (self.random.below(1 << 30) as f64) < loss * f64::from(1 << 30) {
            return;
        }
        lane.passed_bytes += bytes.len() as u64;
        self.taken += 1;
        self.waiting.push(Reverse(Packet { due: sent + delay, order: self.taken, from, to, is_forward, bytes: bytes.to_vec() }));
    }

    fn deliver(&mut self) {
        let count = self.nodes.len();
        while let Some(Reverse(next)) = self.waiting.peek()
            && next.due <= Instant::now()
        {
            let Some(Reverse(packet)) = self.waiting.pop() else { return };
            let socket = match packet.is_forward {
                true => &self.backs[packet.to * count + packet.from],
                false => &self.fronts[packet.from],
            };
            // A full queue of the kernel or a node that is not there loses it, as a network would.
            let _ = socket.send_to(&packet.bytes, self.nodes[packet.to]);
        }
    }
}
