//! How packets follow each other on short and long paths.

use super::*;
use tokio::net::UdpSocket as Port;

/// Passes datagrams on to `server`, each after so long; for one client.
async fn delayed(server: std::net::SocketAddr, delay: Duration) -> std::net::SocketAddr {
    let (front, back) = (Port::bind("127.0.0.1:0").await.expect("port"), Port::bind("127.0.0.1:0").await.expect("port"));
    let (front, back) = (Arc::new(front), Arc::new(back));
    let address = front.local_addr().expect("address");
    tokio::spawn(async move {
        let (mut there, mut here, mut client) = ([0; 65536], [0; 65536], None);
        loop {
            let (from, to, bytes) = tokio::select! {
                Ok((length, sender)) = front.recv_from(&mut there) => {
                    client = Some(sender);
                    (&back, server, there[..length].to_vec())
                }
                Ok((length, _)) = back.recv_from(&mut here) => (&front, client.expect("it has called"), here[..length].to_vec()),
            };
            let from = Arc::clone(from);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = from.send_to(&bytes, to).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_path_is_filled_by_what_it_delivers_and_a_short_one_by_what_it_loses() {
    let (server, client) = (Site::start("server", "x").await, Site::start("client", "x").await);
    server.let_in(&client).await;
    let (server, client) = (server.stop().await, client.stop().await);
    let listening = Endpoint::open("127.0.0.1:0".parse().expect("address"), &server.identity(), Arc::new(|key| Some(*key))).expect("port");
    let dialling = Endpoint::open("127.0.0.1:0".parse().expect("address"), &client.identity(), Arc::new(|key| Some(*key))).expect("port");
    let (direct, node) = (listening.address(), server.identity().node());
    let far = delayed(direct, Duration::from_millis(5)).await;
    tokio::spawn(async move {
        let mut accepted = Vec::new();
        while let Some(handshake) = listening.accept().await {
            accepted.push(handshake.await);
        }
    });
    for (address, is_short) in [(direct, true), (far, false)] {
        let connection = dialling.dial(node, &Counting::first(node), address).await.expect("dial");
        let mut stream = connection.open(&Request::WhoHas(Vec::new())).await.expect("a stream");
        // A machine that is busy may take long for one round trip, but not for all of them.
        for _ in 0..50 {
            stream.send.message(&Request::WhoHas(Vec::new())).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(connection.is_short(), is_short, "{address}, round trip {:?}", connection.rtt());
    }
}
