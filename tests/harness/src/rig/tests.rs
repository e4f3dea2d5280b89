//! The rig keeps what it promises, or no figure that was taken on it is worth anything.

use super::proxy::Path;
use super::*;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::time::Instant;

const SIZE: u64 = 4_000_000;

/// Sends [`SIZE`] bytes from one host to another; gives the seconds that it took.
fn send(from: &Host, to: &Host) -> f64 {
    let listener = to.inside(|| TcpListener::bind((to.address(), 0))).expect("listen");
    let server = listener.local_addr().expect("an address");
    let mut stream = from.inside(|| TcpStream::connect_timeout(&server, CONNECT)).expect("connect");
    // The way had to be found first, which may take a second where it was just missing.
    let begin = Instant::now();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut size = 0;
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            size += count as u64;
        }
        size
    });
    stream.write_all(&vec![1; SIZE as usize]).expect("send");
    drop(stream);
    assert_eq!(reader.join().expect("read"), SIZE);
    begin.elapsed().as_secs_f64()
}

#[test]
fn a_cable_carries_its_rate_both_ways_and_counts_what_it_carried() {
    let Some(mut rig) = Rig::new() else { return };
    let rate = Rate::mbit(32);
    let (slow, fast) = (rig.host(0, Some(rate)), rig.host(0, None));
    let expected = SIZE as f64 / rate.bytes(Duration::from_secs(1)) as f64;
    for (from, to) in [(&slow, &fast), (&fast, &slow)] {
        let before = slow.traffic();
        let seconds = send(from, to);
        assert!((expected * 0.9..expected * 1.5).contains(&seconds), "{seconds:.2} s and not {expected:.2} s");
        let traffic = slow.traffic() - before;
        let (much, little) =
            if from.address() == slow.address() { (traffic.sent, traffic.received) } else { (traffic.received, traffic.sent) };
        assert!((SIZE..SIZE * 11 / 10).contains(&much) && little < SIZE / 10, "{traffic:?}");
    }
    slow.set_rate(None);
    assert!(send(&slow, &fast) < expected / 2.0, "without a rate the machine is the limit");
}

#[test]
fn zones_are_joined_by_one_cable() {
    let Some(mut rig) = Rig::new() else { return };
    let second = rig.zone();
    let (here, there) = (rig.host(0, None), rig.host(second, None));
    let refused = here.inside(|| TcpStream::connect_timeout(&(there.address(), 1).into(), Duration::from_millis(300)));
    assert_ne!(refused.expect_err("no cable").kind(), io::ErrorKind::ConnectionRefused);
    let rate = Rate::mbit(32);
    let wan = rig.wan(0, second, Some(rate));
    let expected = SIZE as f64 / rate.bytes(Duration::from_secs(1)) as f64;
    let seconds = send(&here, &there);
    assert!((expected * 0.9..expected * 1.5).contains(&seconds), "{seconds:.2} s and not {expected:.2} s");
    let traffic = wan.traffic();
    assert!((SIZE..SIZE * 11 / 10).contains(&traffic.sent) && traffic.received < SIZE / 10, "{traffic:?}");
    here.set_plugged(false);
    let cut = here.inside(|| TcpStream::connect_timeout(&(there.address(), 1).into(), Duration::from_millis(300)));
    assert_ne!(cut.expect_err("no cable").kind(), io::ErrorKind::ConnectionRefused);
    here.set_plugged(true);
    let refused = here.inside(|| TcpStream::connect_timeout(&(there.address(), 1).into(), CONNECT));
    assert_eq!(refused.expect_err("nobody listens").kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn nothing_is_left_when_a_rig_is_gone() {
    let Some(mut rig) = Rig::new() else { return };
    let host = rig.host(0, None);
    let names = [rig.zones[0].name.clone(), host.inner.namespace.name.clone()];
    let is_there = |name: &String| std::path::Path::new("/run/netns").join(name).exists();
    drop(rig);
    assert!(names.iter().all(is_there), "a host in use keeps its switch");
    drop(host);
    assert!(!names.iter().any(is_there));
}

/// Two sockets with a proxy between them, and the address at which each reaches the other.
fn pair() -> (proxy::Proxy, [UdpSocket; 2]) {
    let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("open a port"));
    let nodes: Vec<SocketAddr> = sockets.iter().map(|socket| socket.local_addr().expect("an address")).collect();
    sockets.iter().for_each(|socket| socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout"));
    (proxy::Proxy::local(&nodes, 1), sockets)
}

#[test]
fn a_proxy_delays_both_ways_and_answers_come_back_over_what_was_dialled() {
    let (proxy, [one, other]) = pair();
    let delay = Duration::from_millis(30);
    proxy.set(0, 1, Path { delay, ..Path::CLEAR });
    let begin = Instant::now();
    one.send_to(b"hello", proxy.front(1)).expect("send");
    let mut buffer = [0; 100];
    let (size, back) = other.recv_from(&mut buffer).expect("it arrives");
    let passed = begin.elapsed();
    assert_eq!(&buffer[..size], b"hello");
    assert!((delay..delay * 3).contains(&passed), "{passed:?}");
    proxy.set(1, 0, Path { delay: delay * 2, ..Path::CLEAR });
    let begin = Instant::now();
    other.send_to(b"answer", back).expect("send");
    let (size, from) = one.recv_from(&mut buffer).expect("it comes back");
    assert_eq!((&buffer[..size], from), (&b"answer"[..], proxy.front(1)));
    assert!((delay * 2..delay * 4).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert_eq!((proxy.passed_bytes(0, 1), proxy.passed_bytes(1, 0)), (5, 6));
}

#[test]
fn a_proxy_cuts_one_way_and_loses_what_it_is_told_to() {
    let (proxy, [one, other]) = pair();
    let mut buffer = [0; 2000];
    proxy.set(0, 1, Path::CUT);
    one.send_to(b"lost", proxy.front(1)).expect("send");
    assert!(other.recv_from(&mut buffer).is_err(), "the path is cut");
    other.send_to(b"the other way", proxy.front(0)).expect("send");
    assert!(one.recv_from(&mut buffer).is_ok(), "the other direction is not");

    proxy.set(0, 1, Path { loss: 0.3, ..Path::CLEAR });
    let arrived = (0..1000).filter(|_| {
        one.send_to(&[7; 100], proxy.front(1)).expect("send");
        other.set_read_timeout(Some(Duration::from_millis(3))).expect("a timeout");
        other.recv_from(&mut buffer).is_ok()
    });
    let arrived = arrived.count();
    assert!((620..780).contains(&arrived), "{arrived} of 1000 arrived, and 700 should");
}

#[test]
fn a_proxy_keeps_a_rate() {
    let (proxy, [one, other]) = pair();
    proxy.set(0, 1, Path { rate: Some(Rate::mbit(1)), ..Path::CLEAR });
    // 20,000 bytes take 0.16 s, less than its queue holds.
    for _ in 0..20 {
        one.send_to(&[7; 1000], proxy.front(1)).expect("send");
    }
    let begin = Instant::now();
    let mut buffer = [0; 2000];
    let arrived = (0..20).filter(|_| other.recv_from(&mut buffer).is_ok()).count();
    assert_eq!(arrived, 20);
    let seconds = begin.elapsed().as_secs_f64();
    assert!((0.12..0.4).contains(&seconds), "{seconds:.2} s for 20,000 bytes");
}
