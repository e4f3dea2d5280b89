//! Hosts of our own on one machine: network namespaces behind switches, with cables of a known rate.
//!
//! ```text
//!   host 1 (namespace)        host 2 (namespace)             host 3 (namespace)
//!   net0 198.18.R.1           net0 198.18.R.2                net0 198.18.R.3
//!     |tbf                      |tbf                           |tbf        what a host sends
//!     |                         |                              |
//!     |tbf                      |tbf                           |tbf        what it receives
//!   port1                     port2                          port3
//!   [------- zone 1: a bridge --------] wan 2 ---tbf--- wan 1 [--- zone 2: a bridge ---]
//! ```
//!
//! - A node that is built with [`NodeBuilder::on`](crate::NodeBuilder::on) runs inside its host's namespace. The harness itself stays
//!   outside: its HTTP client opens its sockets in the namespace of the host that it talks to, as a client on that host does, so
//!   what it sends does not pass the host's cable. `http://A@B/` is a client on host A that talks to host B.
//! - Rates are kept by the kernel (`tbf`), on both ends of each cable, and the bytes on a cable are counted by the kernel. Delay, loss
//!   and cuts in one direction are the [`proxy`]'s.
//! - Nothing is left on the machine: no address, no device, no route outside of the namespaces, whose names carry the process id. They go
//!   when the last who uses a host is dropped; those of a process that was killed go when the next [`Rig`] is made.
//!
//! It needs root, `ip` and `tc`. [`Rig::new`] gives `None` and says "skipped" where it can't be had.

pub mod machine;
mod namespace;
pub mod proxy;
#[cfg(test)]
mod tests;

pub(crate) use namespace::Namespace;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// The port of every node on its host.
pub const PORT: u16 = 5000;
/// The part of the network that a rig has: its number stands in the third byte. The range is the one that is set aside for benchmarks.
const NETWORK: [u8; 2] = [198, 18];
/// The last byte of the address of the first switch, where a proxy can be.
const SWITCH: u8 = 250;
/// What a cable's queue holds, as time; like the buffer of a small switch.
const QUEUE: Duration = Duration::from_millis(50);
/// The least that it holds: a few of the largest packets that the kernel passes on at once.
const QUEUE_MIN: u64 = 256 << 10;
/// What may go at once after a pause, as time and in bytes. Below the least, nothing gets through.
const BURST: Duration = Duration::from_millis(10);
const BURST_RANGE: (u64, u64) = (10_000, 65_000);
/// Until a connection inside is there or refused.
const CONNECT: Duration = Duration::from_secs(10);

/// Bits a second on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub u64);

impl Rate {
    /// Millions of bits a second.
    pub const fn mbit(number: u64) -> Self {
        Self(number * 1_000_000)
    }

    /// Bytes in this time.
    pub fn bytes(self, time: Duration) -> u64 {
        (self.0 as f64 / 8.0 * time.as_secs_f64()) as u64
    }
}

/// A switch, or several with cables between them. Hosts are plugged into it.
#[derive(Debug)]
pub struct Rig {
    number: u8,
    zones: Vec<Arc<Namespace>>,
    hosts: u8,
}

/// A host with one cable. Cheap to clone; the namespace goes with the last clone.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Plugged>,
}

#[derive(Debug)]
struct Plugged {
    address: Ipv4Addr,
    namespace: Arc<Namespace>,
    switch: Arc<Namespace>,
    switch_address: Ipv4Addr,
    port: String,
}

/// The cable between two zones.
#[derive(Debug)]
pub struct Wan {
    ends: [(Arc<Namespace>, String); 2],
}

/// Bytes that went over a cable, as the kernel counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// From the host, or from the first zone to the second.
    pub sent: u64,
    /// To the host, or from the second zone to the first.
    pub received: u64,
}

impl std::ops::Sub for Traffic {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { sent: self.sent - before.sent, received: self.received - before.received }
    }
}

impl Rig {
    /// One zone without hosts; `None`, and says why, where no namespaces can be made.
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        namespace::remove_leftovers();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let number = u8::try_from(number).unwrap_or_else(|_| panic!("a process makes {} rigs at most", u8::MAX));
        let mut rig = Self { number, zones: Vec::new(), hosts: 0 };
        match rig.try_zone() {
            Ok(_) => Some(rig),
            Err(error) => {
                println!("skipped: no network namespaces can be made here: {error}");
                None
            }
        }
    }

    /// Another switch; gives its number. The first one is 0.
    pub fn zone(&mut self) -> usize {
        self.try_zone().unwrap_or_else(|error| panic!("make a zone: {error}"))
    }

    fn try_zone(&mut self) -> io::Result<usize> {
        let number = self.zones.len();
        let namespace = Namespace::new(&format!("{}-z{number}", self.number))?;
        let address = self.address(SWITCH + number as u8);
        namespace
            .ip(&format!("link add name switch type bridge forward_delay 0\nlink set switch up\naddress add {address}/24 dev switch\n"))?;
        self.zones.push(Arc::new(namespace));
        Ok(number)
    }

    /// Plugs a new host into a zone. Without a rate its cable is as fast as the machine.
    pub fn host(&mut self, zone: usize, rate: Option<Rate>) -> Host {
        self.hosts += 1;
        assert!(self.hosts < SWITCH, "a rig has so many addresses");
        let (address, switch) = (self.address(self.hosts), Arc::clone(&self.zones[zone]));
        let made = || -> io::Result<Host> {
            let namespace = Arc::new(Namespace::new(&format!("{}-h{}", self.number, self.hosts))?);
            let (port, inside) = (format!("port{}", self.hosts), &namespace.name);
            switch.ip(&format!("link add name {port} type veth peer name net0 netns {inside}\nlink set {port} master switch up\n"))?;
            namespace.ip(&format!("address add {address}/24 dev net0\nlink set net0 up\n"))?;
            let switch_address = self.address(SWITCH + zone as u8);
            let inner = Plugged { address, namespace, switch, switch_address, port };
            Ok(Host { inner: Arc::new(inner) })
        };
        let host = made().unwrap_or_else(|error| panic!("make a host: {error}"));
        addresses().insert(address, Arc::downgrade(&host.inner.namespace));
        host.set_rate(rate);
        host
    }

    /// Connects two zones that are not connected yet.
    pub fn wan(&self, first: usize, second: usize, rate: Option<Rate>) -> Wan {
        let ends = [(first, second), (second, first)].map(|(here, there)| (Arc::clone(&self.zones[here]), format!("wan{there}")));
        let [(near, out), (far, back)] = &ends;
        near.ip(&format!("link add name {out} type veth peer name {back} netns {}\nlink set {out} master switch up\n", far.name))
            .and_then(|()| far.ip(&format!("link set {back} master switch up\n")))
            .unwrap_or_else(|error| panic!("connect two zones: {error}"));
        let wan = Wan { ends };
        wan.set_rate(rate);
        wan
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(NETWORK[0], NETWORK[1], self.number, last)
    }
}

impl Host {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.inner.address
    }

    /// The address of the switch that it is plugged into.
    pub fn switch_address(&self) -> Ipv4Addr {
        self.inner.switch_address
    }

    /// Runs `work` on a thread on the switch: sockets that it makes are there.
    pub fn at_switch<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inner.switch.run(work)
    }

    /// The same on the host itself.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inner.namespace.run(work)
    }

    /// Sets the rate of its cable, both ways.
    pub fn set_rate(&self, rate: Option<Rate>) {
        let Plugged { namespace, switch, port, .. } = &*self.inner;
        shape(namespace, "net0", rate);
        shape(switch, port, rate);
    }

    /// Sets the largest frame of its cable, in bytes.
    pub fn set_mtu(&self, size: u16) {
        let Plugged { namespace, switch, port, .. } = &*self.inner;
        let line = |device: &str| format!("link set {device} mtu {size}\n");
        let set = switch.ip(&line(port)).and_then(|()| namespace.ip(&line("net0")));
        set.unwrap_or_else(|error| panic!("set the frames of {port}: {error}"));
    }

    /// Pulls the cable, or plugs it in again.
    pub fn set_plugged(&self, is_plugged: bool) {
        let Plugged { switch, port, .. } = &*self.inner;
        let state = if is_plugged { "up" } else { "down" };
        switch.ip(&format!("link set {port} {state}\n")).unwrap_or_else(|error| panic!("set {port} {state}: {error}"));
    }

    /// Bytes that went over its cable.
    pub fn traffic(&self) -> Traffic {
        let Plugged { switch, port, .. } = &*self.inner;
        switch.traffic(port)
    }

    /// A command that runs on the host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.inner.namespace.command(program)
    }

    /// The address of a server here, for a client on the host `client`.
    pub fn url_from(&self, client: &Self, port: u16) -> String {
        format!("http://{}@{}:{port}", client.address(), self.address())
    }
}

impl Wan {
    /// Sets its rate, both ways.
    pub fn set_rate(&self, rate: Option<Rate>) {
        self.ends.iter().for_each(|(namespace, device)| shape(namespace, device, rate));
    }

    /// Bytes that went over it.
    pub fn traffic(&self) -> Traffic {
        let (namespace, device) = &self.ends[0];
        // The counters of a port are those of what is behind it.
        let seen = namespace.traffic(device);
        Traffic { sent: seen.received, received: seen.sent }
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        addresses().remove(&self.address);
    }
}

/// What leaves by a device goes at this rate.
fn shape(namespace: &Namespace, device: &str, rate: Option<Rate>) {
    let done = match rate {
        Some(rate) => {
            let burst = rate.bytes(BURST).clamp(BURST_RANGE.0, BURST_RANGE.1);
            let limit = rate.bytes(QUEUE).max(QUEUE_MIN);
            namespace.tc(&format!("qdisc replace dev {device} root tbf rate {}bit burst {burst} limit {limit}", rate.0))
        }
        // There may be none yet.
        None => namespace.tc(&format!("qdisc del dev {device} root")).or(Ok(())),
    };
    done.unwrap_or_else(|error| panic!("set the rate of {device}: {error}"));
}

/// The hosts of this process by their addresses.
fn addresses() -> std::sync::MutexGuard<'static, BTreeMap<Ipv4Addr, Weak<Namespace>>> {
    static ADDRESSES: Mutex<BTreeMap<Ipv4Addr, Weak<Namespace>>> = Mutex::new(BTreeMap::new());
    ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The namespace in which a client of `client@server` has its socket, and the server; `None` when no host has that address.
fn route(authority: &str) -> Option<(Arc<Namespace>, SocketAddr)> {
    let (client, server) = authority.split_once('@').unzip();
    let server: SocketAddrV4 = server.unwrap_or(authority).parse().ok()?;
    let client = client.map_or(Some(*server.ip()), |client| client.parse().ok())?;
    let namespace = addresses().get(&client)?.upgrade()?;
    Some((namespace, server.into()))
}

/// Connects with a server on a host of a rig; `None` when `authority` is no such server.
pub(crate) async fn connect(authority: &str) -> Option<io::Result<tokio::net::TcpStream>> {
    let (namespace, server) = route(authority)?;
    let connected = tokio::task::spawn_blocking(move || {
        let stream = namespace.run(|| TcpStream::connect_timeout(&server, CONNECT))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    let connected: io::Result<TcpStream> = connected.await.expect("connecting does not panic");
    Some(connected.and_then(tokio::net::TcpStream::from_std))
}
