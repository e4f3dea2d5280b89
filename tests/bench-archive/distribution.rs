//! Debian's docker-registry, keeping its state in the counting S3 server: the same images, pushed for real.

use larder_harness::{CountingS3, Image, Registry};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What a sample took.
pub struct Sample {
    pub pushes: usize,
    pub per_push: f64,
    pub dollars_per_push: f64,
}

/// Ends the program with the sample.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Pushes the images to docker-registry; `None` when it is not on this machine or does not work here.
pub async fn sample(images: &[Image]) -> Option<Sample> {
    let s3 = CountingS3::start().await;
    let environment = s3.environment("");
    let value = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()).unwrap_or_default();
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  s3:\n    accesskey: {key}\n    secretkey: {secret}\n    region: us-east-1\n    \
         regionendpoint: {endpoint}\n    bucket: {bucket}\n    secure: false\n    v4auth: true\n    rootdirectory: /registry\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
        key = value("AWS_ACCESS_KEY_ID"),
        secret = value("AWS_SECRET_ACCESS_KEY"),
        endpoint = s3.endpoint(),
        bucket = larder_harness::s3::BUCKET,
    );
    let path = folder.path().join("config.yml");
    std::fs::write(&path, config).expect("write the configuration");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).env_remove("AWS_CA_BUNDLE");
    let _running = Running(command.spawn().ok()?);
    let registry = Registry::new(format!("http://127.0.0.1:{port}"));
    let mut is_up = false;
    for _ in 0..100 {
        is_up = registry.try_request("GET", "/v2/", &[], larder_harness::Body::empty()).await.is_ok_and(|answer| answer.status == 200);
        if is_up {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if !is_up {
        return None;
    }
    s3.forget();
    for (number, image) in images.iter().enumerate() {
        if let Err(error) = registry.try_push_image("team/app", &format!("build-{number}"), image).await {
            println!("docker-registry: {error}; the last that it asked for: {:?}", s3.requests().last());
            return None;
        }
    }
    let count = images.len() as f64;
    Some(Sample { pushes: images.len(), per_push: s3.requests().len() as f64 / count, dollars_per_push: s3.bill().dollars / count })
}
