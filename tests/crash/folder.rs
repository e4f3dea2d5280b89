//! Whose data folder it is.

use larder_harness::{Image, Node, Registry};

#[tokio::test]
async fn f12_a_second_daemon_on_one_data_folder_ends_at_once_and_says_why() {
    let node = Node::builder(env!("CARGO_BIN_EXE_larder")).start().await;
    let port = larder_harness::node::free_port();
    let address = format!("127.0.0.1:{port}");
    let mut second = node.command(["serve", "--listen", &address, "--peer-listen", &address]);
    let output = tokio::task::spawn_blocking(move || second.output()).await.expect("not cancelled").expect("run larder");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&*node.data_dir().to_string_lossy()), "the folder is not named: {said}");
    let registry = Registry::new(node.url());
    let image = Image::from_seed(1, &[100]);
    registry.push_image("team/app", "v1", &image).await;
    registry.pull_image("team/app", "v1", &image).await;
}

#[tokio::test]
async fn f12_the_folder_of_a_killed_node_is_free_again() {
    let mut node = Node::builder(env!("CARGO_BIN_EXE_larder")).start().await;
    for _ in 0..3 {
        node.kill_and_restart().await;
    }
    node.stop().await;
}
