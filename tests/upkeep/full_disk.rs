//! A small file system that gets full: what comes is refused, what is there is served, and what goes makes room again.

use crate::{files, gc};
use larder_harness::{Body, Content, Image, Registry, sha256, wait_until};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::task::JoinSet;

/// The file system, and the layers that fill it.
const DISK: &str = "200m";
const LAYER: u64 = 8 << 20;
/// More layers than fit.
const LAYERS_MAX: u64 = 64;
/// Clients that push at once.
const CLIENTS: u64 = 8;
/// Images that are deleted to make room, and pushed anew.
const AGAIN: u64 = 8;
const DEADLINE: Duration = Duration::from_secs(30);

/// A file system of its own for a folder; gone when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts one, or says why that can't be.
    fn on(folder: &Path) -> Result<Self, String> {
        std::fs::create_dir(folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
        let options = format!("size={DISK},mode=0700");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "larder-test"]).arg(folder).output();
        let mount = mount.map_err(|error| format!("run mount: {error}"))?;
        if mount.status.success() { Ok(Self(folder.to_owned())) } else { Err(String::from_utf8_lossy(&mount.stderr).trim().to_owned()) }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: the node may still run when its test has failed.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.display());
        }
    }
}

fn image(seed: u64) -> Image {
    Image::from_seed(seed, &[LAYER])
}

/// Asserts that a push is refused for lack of room, in the words of the specification.
async fn assert_full(registry: &Registry) {
    let content = Content::new(u64::MAX, LAYER);
    let path = format!("/v2/team/app/blobs/uploads/?digest={}", content.digest());
    let answer = registry.request("POST", &path, &[("content-type", "application/octet-stream")], Body::content(content)).await;
    let answer = answer.expect(503, "push a layer to a full node");
    let error = answer.json()["errors"][0].clone();
    assert!(error["code"].as_str().is_some_and(|code| !code.is_empty()), "{error}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("disk is full")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f6_a_full_disk_refuses_pushes_and_serves_pulls_until_deletes_make_room() {
    let mut node = crate::node("full").archive("none").env("LARDER_STORE__RESERVE", "48MiB").create();
    // ORDER: dropped before the node, which removes its folder.
    let _mounted = match Mounted::on(node.data_dir()) {
        Ok(mounted) => mounted,
        Err(why) => {
            println!("skipped: no file system could be mounted here ({why})");
            return;
        }
    };
    node.start().await;
    let (registry, id) = (Registry::new(node.url()), node.id());

    // Several at once: what each of them may take is not what all of them may.
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let registry = registry.clone();
        clients.spawn(async move {
            let mut pushed = Vec::new();
            for seed in (client..LAYERS_MAX).step_by(CLIENTS as usize) {
                match registry.try_push_image("team/app", &format!("v{seed}"), &image(seed)).await {
                    Ok(()) => pushed.push(seed),
                    Err(error) => assert!(error.to_string().contains(": 503 "), "pushes are refused with 503: {error:?}"),
                }
            }
            pushed
        });
    }
    let mut pushed: Vec<u64> = clients.join_all().await.into_iter().flatten().collect();
    pushed.sort_unstable();
    let count = pushed.len() as u64;
    assert!((2 * AGAIN..LAYERS_MAX).contains(&count), "{count} images fit");
    for _ in 0..20 {
        assert_full(&registry).await;
    }
    for seed in &pushed {
        registry.pull_image("team/app", &format!("v{seed}"), &image(*seed)).await;
    }
    assert_eq!(registry.tags("team/app").await.len() as u64, count);

    for seed in &pushed[..AGAIN as usize] {
        let path = format!("/v2/team/app/manifests/{}", image(*seed).digest());
        registry.request("DELETE", &path, &[], Body::empty()).await.expect(202, "delete an image of a full node");
    }
    wait_until("the layers to be gone", DEADLINE, async || {
        gc(&node).await;
        // Not by HEAD, which would keep them.
        (files(&node) as u64 + AGAIN <= count).then_some(())
    })
    .await;
    for seed in 0..AGAIN {
        let image = image(1_000 + seed);
        registry.push_image("team/app", &format!("again-{seed}"), &image).await;
        registry.pull_image("team/app", &format!("again-{seed}"), &image).await;
    }
    for seed in &pushed[AGAIN as usize..] {
        registry.pull_image("team/app", &format!("v{seed}"), &image(*seed)).await;
    }
    assert!(node.is_running() && node.id() == id, "nothing was restarted");
    // And it starts again on what it left.
    node.kill_and_restart().await;
    registry.pull_image("team/app", "again-0", &image(1_000)).await;
    assert_eq!(registry.get(&format!("/v2/team/app/blobs/{}", sha256(b"never"))).await.status, 404);
}
