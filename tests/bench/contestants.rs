//! Who takes part: Larder, Debian's docker-registry on its file system driver, and nginx with sendfile on the same bytes.
//!
//! Each gets the configuration that favours it and that people run: no access log, connections kept, files on the same disk.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use larder_harness::node::free_port;
use larder_harness::rig::machine::cpu_seconds;
use larder_harness::{Node, wait_until};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::wire::{Numbered, Wire};

pub const REPOSITORY: &str = "bench/app";
pub const TAG: &str = "v1";

/// One of them, running.
pub struct Contestant {
    pub name: &'static str,
    pub address: String,
    process: Process,
}

enum Process {
    Larder(Box<Node>),
    Other { child: Child, _folder: tempfile::TempDir },
}

/// What TLS needs, or nothing for plain HTTP.
pub struct Encryption {
    pub folder: tempfile::TempDir,
    pub client: Arc<ClientConfig>,
}

impl Encryption {
    /// A certificate for localhost; the same for all.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pair = KeyPair::generate().expect("a key");
        let made =
            CertificateParams::new(vec!["localhost".to_owned()]).and_then(|params| params.self_signed(&pair)).expect("a certificate");
        std::fs::write(folder.path().join("certificate.pem"), made.pem()).expect("write");
        let key = folder.path().join("key.pem");
        std::fs::write(&key, pair.serialize_pem()).expect("write");
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("make it private");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(made.der().to_vec())).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        Self { folder, client: Arc::new(builder.with_root_certificates(roots).with_no_client_auth()) }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// What all of them serve.
pub struct Goods {
    pub blobs: [Vec<u8>; 3],
    pub digests: [String; 3],
    pub manifest: Vec<u8>,
}

impl Goods {
    /// Blobs of these sizes, and a manifest that names them.
    pub fn new(sizes: [usize; 3]) -> Self {
        let made = sizes.map(|size| {
            let blob = Numbered::new(size);
            (blob.whole(0), blob.digest(0))
        });
        let descriptor = |place: usize, kind: &str| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": made[place].1, "size": sizes[place]});
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(0, "config.v1+json"),
            "layers": [descriptor(1, "layer.v1.tar"), descriptor(2, "layer.v1.tar")],
        });
        let manifest = serde_json::to_vec(&manifest).expect("JSON");
        let digests = [0, 1, 2].map(|place: usize| made[place].1.clone());
        Self { blobs: made.map(|(bytes, _)| bytes), digests, manifest }
    }

    pub fn blob_path(&self, place: usize) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}", self.digests[place])
    }

    pub fn push_all(&self, wire: &mut Wire) {
        for (bytes, digest) in self.blobs.iter().zip(&self.digests) {
            wire.push_bytes(REPOSITORY, bytes, digest);
        }
        wire.push_manifest(REPOSITORY, TAG, &self.manifest);
    }
}

impl Contestant {
    pub async fn larder(program: &str, goods: &Goods, tls: Option<&Encryption>) -> Self {
        let name = if tls.is_some() { "bench-tls" } else { "bench" };
        let mut builder = Node::builder(program).name(name).archive("none");
        if let Some(tls) = tls {
            builder = builder.env("LARDER_TLS__CERTIFICATE", tls.file("certificate.pem")).env("LARDER_TLS__KEY", tls.file("key.pem"));
        }
        let node = builder.start().await;
        let address = node.address();
        let contestant = Self { name: "larder", address, process: Process::Larder(Box::new(node)) };
        contestant.ready(goods, tls, true).await
    }

    pub async fn registry(goods: &Goods, tls: Option<&Encryption>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = format!("127.0.0.1:{}", free_port());
        let encryption = tls.map_or(String::new(), |tls| {
            format!("  tls:\n    certificate: {}\n    key: {}\n", tls.file("certificate.pem"), tls.file("key.pem"))
        });
        let configuration = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{encryption}",
            folder.path().join("data").display()
        );
        let file = folder.path().join("config.yml");
        std::fs::write(&file, configuration).expect("write");
        let child = start(Command::new("docker-registry").arg("serve").arg(&file));
        let contestant = Self { name: "docker-registry", address, process: Process::Other { child, _folder: folder } };
        contestant.ready(goods, tls, true).await
    }

    pub async fn nginx(goods: &Goods, tls: Option<&Encryption>) -> Self {
        let folder = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().expect("a folder");
        let (address, root) = (format!("127.0.0.1:{}", free_port()), folder.path().join("root"));
        let put = |path: &str, bytes: &[u8]| {
            let file = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("make a folder");
            std::fs::write(file, bytes).expect("write");
        };
        for (place, bytes) in goods.blobs.iter().enumerate() {
            put(&goods.blob_path(place), bytes);
        }
        put(&format!("/v2/{REPOSITORY}/manifests/{TAG}"), &goods.manifest);
        let encryption = tls.map_or(String::new(), |tls| {
            format!("ssl_certificate {}; ssl_certificate_key {};", tls.file("certificate.pem"), tls.file("key.pem"))
        });
        let listen = if tls.is_some() { "ssl http2" } else { "" };
        let configuration = format!(
            "daemon off; worker_processes auto; pid {0}/pid; error_log {0}/error.log; user root;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; default_type application/octet-stream;\n\
             client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};\n\
             server {{ listen {address} {listen}; root {1}; {encryption} }} }}\n",
            folder.path().display(),
            root.display()
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, configuration).expect("write");
        let child = start(Command::new("/usr/sbin/nginx").arg("-c").arg(&file).arg("-e").arg(folder.path().join("error.log")));
        let contestant = Self { name: "nginx", address, process: Process::Other { child, _folder: folder } };
        contestant.ready(goods, tls, false).await
    }

    async fn ready(self, goods: &Goods, tls: Option<&Encryption>, by_pushing: bool) -> Self {
        wait_until("the server listens", Duration::from_secs(60), async || std::net::TcpStream::connect(&self.address).ok()).await;
        let mut wire = Wire::connect(&self.address, tls.map(|tls| &tls.client));
        if by_pushing {
            goods.push_all(&mut wire);
        }
        for place in 0..goods.blobs.len() {
            wire.ask("GET", &goods.blob_path(place), "");
            assert_eq!(wire.answer(200).length, goods.blobs[place].len() as u64, "{}", self.name);
        }
        self
    }

    /// Seconds of processors that it has taken.
    pub fn cpu(&self) -> f64 {
        self.processes().into_iter().map(cpu_seconds).sum()
    }

    /// The most memory it ever had, in MiB.
    pub fn memory_peak(&self) -> f64 {
        let peak = |id: u32| {
            let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
        };
        self.processes().into_iter().map(peak).sum()
    }

    /// nginx works in children.
    fn processes(&self) -> Vec<u32> {
        let id = match &self.process {
            Process::Larder(node) => node.id(),
            Process::Other { child, .. } => child.id(),
        };
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        std::iter::once(id).chain(children.split_whitespace().filter_map(|child| child.parse().ok())).collect()
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        if let Process::Other { child, .. } = &mut self.process {
            // nginx's workers end with their master when that is told, and not when it is killed.
            let told = rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM);
            let _ = told.and_then(|()| child.wait().map_err(|_| rustix::io::Errno::CHILD));
        }
    }
}

fn start(command: &mut Command) -> Child {
    let program = PathBuf::from(command.get_program());
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.unwrap_or_else(|error| panic!("start {}: {error}; `packaging/setup test` installs it", Path::new(&program).display()))
}
