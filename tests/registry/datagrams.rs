//! S34: noise on the port where the other nodes are expected.

use crate::node;
use larder_harness::{Content, Image, Random};
use tokio::net::UdpSocket;

#[tokio::test]
async fn s34_noise_on_the_peers_port_neither_stops_the_node_nor_fills_its_memory() {
    let (mut node, registry) = node().await;
    let image = Image::from_seed(1, &[100_000]);
    registry.push_image("team/app", "v1", &image).await;
    let before = node.memory_peak_bytes();
    let mut random = Random::printed("s34_noise");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("take a port");
    for round in 0..5000_u64 {
        // Nothing, a byte, around what a handshake must have at least, and as much as a datagram on loopback holds.
        let size = [0, 1, 20, 1199, 1200, 1201, 1452, 9000, 65_000][random.below(9) as usize];
        let mut datagram = Content::new(random.number(), size).bytes().to_vec();
        if round % 2 == 0 && size > 6 {
            // Dressed as the first packet of a handshake, in the current and in an unknown version.
            datagram[0] = 0xc0 | (datagram[0] & 0x0f);
            datagram[1..5].copy_from_slice(if round % 4 == 0 { &[0, 0, 0, 1] } else { &[0x1a; 4] });
            datagram[5] = 8;
        }
        // The kernel may drop some; what matters is that many arrive.
        let _ = socket.send_to(&datagram, node.address()).await;
    }
    assert!(node.is_running(), "{}", node.log_tail());
    registry.pull_image("team/app", "v1", &image).await;
    let grown = node.memory_peak_bytes() - before;
    assert!(grown < 32 << 20, "memory grew by {grown} bytes");
    node.stop().await;
}
