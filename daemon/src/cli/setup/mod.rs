//! `larder setup`: the configuration of a client, for the node on this host.
//!
//! A client is described by the changes to files that it needs: what is there now, and what should be there. Planning reads and
//! never writes; without `--write` the plan is printed. Installing ([`install`]) puts each file in place whole and keeps a
//! copy of what was there. What a file already says stays: settings are added to it, and where one stands against what would
//! be added, the command refuses and says what to write by hand.
//!
//! A registry that speaks plain HTTP is one that every client has to be told of that it is meant to be used without TLS; one whose certificate
//! no public authority vouches for is one whose authority every client has to be given. Both are written where the client looks for it.
//! Docker Hub's images are asked for here first; what is not here, the client gets from Docker Hub as before.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use super::Context;
use super::nearest::{Measured, TlsArgs, Way, address, measure};
use crate::config::{self, Flags};
use crate::tls;

mod buildkit;
mod containerd;
mod docker;
mod install;
mod podman;
mod speaks;

use speaks::{Pair, Proofs, Speaks};

/// Print or install the configuration of a client on this host, for the node on this host, or the nearest of others.
///
/// Prints what would be written; --write writes it, as root, and keeps a copy of each file that was there as
/// <file>.before-larder. Nothing that a file says is lost. A host without a node of its own names some with --node: those that answer
/// are written, the nearest first (`larder nearest` shows what is measured).
#[derive(Args, Debug)]
pub(super) struct Setup {
    /// The client
    client: ClientName,
    /// Install it
    #[arg(long)]
    write: bool,
    /// Where the client finds the registry, when that is not what this node's configuration says
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    address: Option<String>,
    /// Where nodes' registries are, for a host that has none of its own
    #[arg(long = "node", value_name = "HOST:PORT", num_args = 1.., conflicts_with = "address", value_parser = address)]
    nodes: Vec<String>,
    /// For this node its configuration says it, and who vouches for it
    #[command(flatten)]
    tls: TlsArgs,
    /// The folder that is taken for the root of the file system
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClientName {
    /// Docker Engine
    Docker,
    /// containerd: nerdctl, Kubernetes, k3s
    Containerd,
    /// podman, buildah, skopeo, CRI-O
    Podman,
    /// BuildKit: buildkitd, docker buildx with a builder of its own
    Buildkit,
}

/// A file as it is, and as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    path: PathBuf,
    before: Option<String>,
    after: String,
    /// It is for its owner alone, and never printed.
    is_secret: bool,
}

/// Nodes that a client is told of: it asks one after the other when the nearest is down.
const NODES_MAX: usize = 4;
/// No client's configuration is longer.
const FILE_SIZE_MAX: u64 = 4 * 1024 * 1024;

impl Setup {
    pub(super) fn run(self, context: &Context, out: &mut dyn Write) -> anyhow::Result<()> {
        let (addresses, speaks) = match &self.address {
            None if self.nodes.is_empty() => {
                let config = context.config(&Flags::default())?;
                (vec![on_this_host(&config)?], how_it_speaks(&config, self.said()?)?)
            }
            None => (nearest(&self.nodes, &Way::new(&self.tls)?, out)?, self.said()?),
            Some(address) => (vec![address.clone()], self.said()?),
        };
        let changes = self.client.plan(&self.root, &addresses, &speaks)?;
        if self.write { install_all(&changes, self.client, out) } else { print(&changes, self.client, out) }
    }
}

impl Setup {
    /// How registries are spoken to, as far as the command says it.
    fn said(&self) -> anyhow::Result<Speaks> {
        if !self.tls.is_tls() {
            return Ok(Speaks::Plain);
        }
        let ca = self.tls.ca.as_deref().map(authority).transpose()?;
        Ok(Speaks::Tls(Proofs { ca, client: self.tls.client().map(pair).transpose()? }))
    }
}

/// The nodes that answer, the nearest first; says what was measured.
fn nearest(nodes: &[String], way: &Way, out: &mut dyn Write) -> anyhow::Result<Vec<String>> {
    let mut answering = Vec::new();
    for Measured { address, time } in measure(nodes, way)? {
        match time {
            Ok(time) => {
                writeln!(out, "# {address} answers in {:.1} ms", time.as_secs_f64() * 1e3)?;
                answering.push(address);
            }
            Err(why) => writeln!(out, "# {address} is left out: {why}")?,
        }
    }
    if answering.is_empty() {
        bail!("find the nearest node: none answers at {}; check the addresses, and that their ports are open for TCP", nodes.join(", "));
    }
    answering.truncate(NODES_MAX);
    Ok(answering)
}

/// Where clients on this host reach a node that listens there: by its address, or with TLS by a name that its certificate is for.
fn on_this_host(config: &config::Config) -> anyhow::Result<String> {
    let mut listen = config.http.listen;
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    let port = listen.port();
    let names = match &config.tls.certificate {
        Some(path) => tls::certificates(path)?.first().map(tls::host_names).unwrap_or_default(),
        None => config.acme.domains.clone(),
    };
    if names.is_empty() || names.contains(&listen.ip().to_string()) {
        return Ok(listen.to_string());
    }
    let name = names.iter().find(|name| !name.contains('*')).with_context(|| {
        format!("find the name that clients call this node by: its certificate is for {}; say it with --address", names.join(", "))
    })?;
    Ok(if name.contains(':') { format!("[{name}]:{port}") } else { format!("{name}:{port}") })
}

/// Whether this node speaks TLS, and what both sides prove themselves by. What was said goes first; else the node's chain says who vouches for it
/// when it ends in somebody whom nobody vouches for.
fn how_it_speaks(config: &config::Config, said: Speaks) -> anyhow::Result<Speaks> {
    let said = match said {
        Speaks::Plain if !config.speaks_tls() => return Ok(Speaks::Plain),
        Speaks::Plain => Proofs::default(),
        Speaks::Tls(proofs) => proofs,
    };
    if said.client.is_none() && config.tls.client_ca.is_some() && config.tls.client_certificates == config::ClientCertificates::Required {
        bail!(
            "set up a client: this node asks for a certificate (tls.client_certificates); name one with --client-certificate and --client-key"
        );
    }
    let chain = match &config.tls.certificate {
        Some(path) if said.ca.is_none() => tls::certificates(path)?,
        _ => Vec::new(),
    };
    let own = chain.last().filter(|last| tls::is_self_issued(last)).map(|authority| tls::pem(authority));
    Ok(Speaks::Tls(Proofs { ca: said.ca.or(own), client: said.client }))
}

/// An authority's file, once it is seen that it is one.
fn authority(path: &Path) -> anyhow::Result<String> {
    tls::certificates(path)?;
    read(path)?.with_context(|| format!("read {}", path.display()))
}

/// A certificate and its key, once it is seen that they belong together.
fn pair((certificate, key): (&Path, &Path)) -> anyhow::Result<Pair> {
    tls::check_pair(certificate, key)?;
    let text = |path: &Path| read(path)?.with_context(|| format!("read {}", path.display()));
    Ok(Pair { certificate: text(certificate)?, key: text(key)? })
}

impl ClientName {
    /// What has to change for registries at these addresses, of which the first is asked first.
    fn plan(self, root: &Path, addresses: &[String], speaks: &Speaks) -> anyhow::Result<Vec<Change>> {
        match self {
            Self::Docker => docker::plan(root, addresses, speaks),
            Self::Containerd => containerd::plan(root, addresses, speaks),
            Self::Podman => podman::plan(root, addresses, speaks),
            Self::Buildkit => buildkit::plan(root, addresses, speaks),
        }
    }

    /// What makes the client read its configuration.
    fn then(self) -> &'static str {
        match self {
            Self::Docker => "docker reads it after: systemctl reload docker",
            Self::Containerd => {
                "containerd reads it at the next pull, if config_path = \"/etc/containerd/certs.d\" stands in its config.toml (containerd 2 has \
                 that by default)"
            }
            Self::Buildkit => "buildkitd reads it when it starts; `docker buildx create --buildkitd-config FILE` takes it too",
            Self::Podman => "podman, buildah and skopeo read it the next time they run",
        }
    }
}

fn print(changes: &[Change], client: ClientName, out: &mut dyn Write) -> anyhow::Result<()> {
    for change in changes {
        let state = match &change.before {
            None => "does not exist yet",
            Some(before) if *before == change.after => "is like this already",
            Some(_) => "would be changed to this",
        };
        let shown = if change.is_secret { "# (the private key, for root alone)\n" } else { &change.after };
        writeln!(out, "# {} ({state})\n{shown}", change.path.display())?;
    }
    Ok(writeln!(out, "# --write installs it; {}", client.then())?)
}

fn install_all(changes: &[Change], client: ClientName, out: &mut dyn Write) -> anyhow::Result<()> {
    for change in changes {
        if change.before.as_ref() == Some(&change.after) {
            writeln!(out, "{}: is like this already", change.path.display())?;
            continue;
        }
        match install::install(change)? {
            Some(copy) => writeln!(out, "{}: changed; what was there is in {}", change.path.display(), copy.display())?,
            None => writeln!(out, "{}: written", change.path.display())?,
        }
    }
    Ok(writeln!(out, "{}", client.then())?)
}

/// A file's text, or nothing when there is none.
fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if found.len() > FILE_SIZE_MAX => {
            bail!("read {}: it has {} bytes, which no configuration has", path.display(), found.len())
        }
        _ => {}
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(Some(text))
}

/// Puts an absolute path below the root.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(root: &Path, client: ClientName, write: bool) -> String {
        let context = Context { place: super::super::PlaceArgs { data_dir: None, config: None }, environment: Vec::new() };
        let mut out = Vec::new();
        Setup { client, write, address: None, nodes: Vec::new(), tls: TlsArgs::default(), root: root.to_owned() }
            .run(&context, &mut out)
            .expect("setup");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn printing_writes_nothing_and_writing_twice_changes_nothing_more() {
        for client in [ClientName::Docker, ClientName::Containerd, ClientName::Podman, ClientName::Buildkit] {
            let root = tempfile::tempdir().expect("a temp folder");
            let printed = run(root.path(), client, false);
            assert!(printed.contains("127.0.0.1:5000") && printed.contains("does not exist yet"), "{printed}");
            assert_eq!(std::fs::read_dir(root.path()).expect("the root").count(), 0, "{client:?}");
            let written = run(root.path(), client, true);
            assert!(written.contains(": written\n"), "{written}");
            let again = run(root.path(), client, true);
            assert!(again.contains("is like this already") && !again.contains("written"), "{again}");
        }
    }

    #[test]
    fn the_address_is_what_this_host_can_reach() {
        let mut config = config::Config::default();
        let mut check = |listen: &str, expected: &str| {
            config.http.listen = listen.parse().expect("an address");
            assert_eq!(on_this_host(&config).expect("an address"), expected);
        };
        check("0.0.0.0:5001", "127.0.0.1:5001");
        check("[::]:5001", "[::1]:5001");
        check("10.0.0.7:5000", "10.0.0.7:5000");
        config.acme.domains = vec!["registry.example.org".to_owned()];
        assert_eq!(on_this_host(&config).expect("a name"), "registry.example.org:5000");
        assert!(address("somewhere").is_err() && address("somewhere:5000").is_ok());
    }
}
