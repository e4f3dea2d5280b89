//! The same on a real S3 server, SeaweedFS, which packaging/setup installs: what ours takes for granted, another may not.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use larder_harness::{Image, NodeBuilder, wait_until};

use super::{SOON, flush, node, registry};

const BUCKET: &str = "larder";
const KEY: &str = "test-key";
const SECRET: &str = "test-secret";

struct Seaweed {
    child: Child,
    endpoint: String,
    sockets: Vec<PathBuf>,
    _folder: tempfile::TempDir,
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.sockets.iter().for_each(|socket| _ = std::fs::remove_file(socket));
    }
}

impl Seaweed {
    /// Starts a server with an empty bucket; `None` when it is not on this machine.
    async fn start() -> Option<Self> {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        let program = cache.join("larder/tools/bin/weed");
        if !program.is_file() {
            println!("skipped: {} is not there; packaging/setup test installs it", program.display());
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        std::fs::create_dir(&data).expect("make a folder");
        let identity = serde_json::json!({ "identities": [{
            "name": "test",
            "credentials": [{ "accessKey": KEY, "secretKey": SECRET }],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }]});
        let config = folder.path().join("s3.json");
        std::fs::write(&config, identity.to_string()).expect("write the configuration");
        let listeners: Vec<TcpListener> = (0..9).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().expect("an address").port()).collect();
        drop(listeners);
        let mut command = Command::new(program);
        command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]).arg(format!("-dir={}", data.display()));
        let mut sockets = Vec::new();
        for (part, ports) in ["master", "volume", "filer", "s3"].into_iter().zip(ports.chunks(2)) {
            command.arg(format!("-{part}.port={}", ports[0])).arg(format!("-{part}.port.grpc={}", ports[1]));
            // It puts these here whatever it is told, and leaves them when it ends.
            sockets.push(PathBuf::from(format!("/tmp/seaweedfs-{part}-grpc-{}.sock", ports[1])));
        }
        let own = |name: &str| folder.path().join(name).display().to_string();
        command.arg("-s3").arg(format!("-s3.config={}", config.display())).arg(format!("-s3.localSocket={}", own("s3.sock")));
        command.arg(format!("-filer.localSocket={}", own("filer.sock"))).arg(format!("-metricsPort={}", ports[8]));
        command.args([
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-volume.max=1000",
            "-master.volumeSizeLimitMB=1024",
        ]);
        let child = command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start SeaweedFS");
        let seaweed = Self { child, endpoint: format!("http://127.0.0.1:{}", ports[6]), sockets, _folder: folder };
        let client = seaweed.client();
        wait_until("the S3 server takes a bucket", Duration::from_secs(60), async || {
            client.create_bucket().bucket(BUCKET).send().await.is_ok().then_some(())
        })
        .await;
        Some(seaweed)
    }

    fn client(&self) -> Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&self.endpoint)
            .force_path_style(true)
            .credentials_provider(Credentials::builder().access_key_id(KEY).secret_access_key(SECRET).provider_name("test").build());
        Client::from_conf(config.build())
    }

    /// A node that archives there.
    fn node(&self, name: &str) -> NodeBuilder {
        let settings = [
            ("LARDER_ARCHIVE__URL", self.url()),
            ("LARDER_ARCHIVE__ENDPOINT", self.endpoint.clone()),
            ("LARDER_ARCHIVE__REGION", "us-east-1".to_owned()),
            ("LARDER_ARCHIVE__PATH_STYLE", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ];
        settings.into_iter().fold(node(name), |builder, (key, value)| builder.env(key, value))
    }

    fn url(&self) -> String {
        format!("s3://{BUCKET}/fleet")
    }

    async fn keys(&self) -> Vec<String> {
        let listed = self.client().list_objects_v2().bucket(BUCKET).send().await.expect("list the bucket");
        listed.contents().iter().filter_map(|object| object.key().map(str::to_owned)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_s3_server_takes_packs_parts_and_checkpoints_and_gives_them_back() {
    let Some(s3) = Seaweed::start().await else { return };
    let mut first = s3.node("first").env("LARDER_ARCHIVE__MULTIPART_ABOVE", "5MiB").start().await;
    let (small, large) = (Image::from_seed(470, &[200_000, 10]), Image::from_seed(471, &[11 << 20, 70_000]));
    registry(&first).push_image("team/app", "small", &small).await;
    // Its first object takes it long, where much else goes on.
    wait_until("the first pack", SOON * 2, async || first.cli(&["archive", "flush"]).await.ok()).await;
    registry(&first).push_image("team/app", "large", &large).await;
    assert_eq!(flush(&first).await, 1);
    let written = first.cli(&["archive", "checkpoint"]).await.expect("write a checkpoint");
    assert!(written.contains("fleet/v1/checkpoints/"), "{written}");
    registry(&first).push_image("team/app", "later", &Image::from_seed(472, &[30_000])).await;
    assert_eq!(flush(&first).await, 1);
    let keys = s3.keys().await;
    assert_eq!(keys.iter().filter(|key| key.contains("/packs/")).count(), 3, "{keys:?}");
    first.lose_disk();

    let fresh = s3.node("fresh").start().await;
    let restored = fresh.cli_json(&["restore", &s3.url()]).await;
    assert_eq!((restored["tags"].as_u64(), restored["packs"].as_u64()), (Some(3), Some(1)), "{restored}");
    assert_eq!((restored["blobs"]["state"].as_str(), restored["blobs"]["lost"].as_u64()), (Some("done"), Some(0)), "{restored}");
    registry(&fresh).pull_image("team/app", "small", &small).await;
    registry(&fresh).pull_image("team/app", "large", &large).await;
    // It goes on where the lost one stopped.
    registry(&fresh).push_image("team/app", "new", &Image::from_seed(473, &[30_000])).await;
    assert_eq!(flush(&fresh).await, 1);
    wait_until("nothing waits", SOON, async || (fresh.cli_json(&["archive", "status"]).await["pending_records"] == 0).then_some(())).await;
    let drilled = fresh.cli_json(&["restore", "--drill", "4"]).await;
    assert_eq!((drilled["images"].as_u64(), drilled["failed"].as_array().map(Vec::len)), (Some(4), Some(0)), "{drilled}");
}
