//! The same pushes on Debian's docker-registry with its s3 driver, at full size, counted by the same server.

use super::month::Push;
use larder_harness::node::free_port;
use larder_harness::{CountingS3, Registry, wait_until};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const DOCKER_REGISTRY: &str = "/usr/bin/docker-registry";

/// What it takes for each push.
#[derive(Debug)]
pub struct Counted {
    /// Requests.
    pub requests: f64,
    /// What they cost.
    pub dollars: f64,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Pushes these; `None` when docker-registry is not on this machine.
pub async fn sample(pushes: &[Push]) -> Option<Counted> {
    if !std::path::Path::new(DOCKER_REGISTRY).exists() {
        println!("skipped: {DOCKER_REGISTRY} is missing; packaging/setup test installs it");
        return None;
    }
    let s3 = CountingS3::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let environment = s3.environment("x");
    let of = |name: &str| environment.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value.as_str());
    let configuration = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  s3:\n    accesskey: {}\n    secretkey: {}\n    \
         region: us-east-1\n    regionendpoint: {}\n    bucket: {}\n    secure: false\n    v4auth: true\n    rootdirectory: /distribution\n  \
         cache:\n    blobdescriptor: inmemory\nhttp:\n  addr: 127.0.0.1:{port}\n",
        of("AWS_ACCESS_KEY_ID"),
        of("AWS_SECRET_ACCESS_KEY"),
        s3.endpoint(),
        larder_harness::s3::BUCKET,
    );
    let file = folder.path().join("config.yml");
    std::fs::write(&file, configuration).expect("write a file");
    let log = std::fs::File::create(folder.path().join("log")).expect("make a file");
    let child = Command::new(DOCKER_REGISTRY)
        .arg("serve")
        .arg(&file)
        // What this machine says of proxies and certificate bundles is not for it.
        .env_clear()
        .env("HOME", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("start docker-registry");
    let _server = Server(child);
    let address = format!("127.0.0.1:{port}");
    wait_until("docker-registry listens", Duration::from_secs(60), async || std::net::TcpStream::connect(&address).ok()).await;
    let registry = Registry::new(format!("http://{address}"));
    s3.forget();
    for push in pushes {
        let pushed = registry.try_push_image("team/app", &push.tag(), &push.image(1)).await;
        pushed.unwrap_or_else(|error| {
            panic!("push to docker-registry: {error}\n{}", std::fs::read_to_string(folder.path().join("log")).unwrap_or_default())
        });
    }
    let count = pushes.len() as f64;
    Some(Counted { requests: s3.requests().len() as f64 / count, dollars: s3.bill().dollars / count })
}
