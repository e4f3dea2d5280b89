//! Sixteen nodes pull one new image at once.

use crate::cables::Cables;
use crate::pulls::{LAYERS_AT_ONCE, Pushed, image_size, pull_all, quiet};
use crate::{PROGRAM, cluster, is_quick, within};
use futures_util::future::join_all;
use larder_harness::rig::machine::Busy;
use larder_harness::rig::{Host, Rate};
use larder_harness::{Figure, Registry, Rig, figures, wait_until};
use std::process::{Child, Stdio};
use std::time::Duration;

const NODES: usize = 16;
const CAP: Rate = Rate::mbit(50);
/// All of it, with the minutes that one registry behind such a cable takes for sixteen images.
const DEADLINE: Duration = Duration::from_secs(900);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-cluster"]
async fn sixteen_nodes_pull_a_new_image_at_once() {
    let Some(mut rig) = Rig::new() else { return };
    let figures = within(DEADLINE, async {
        let hosts: Vec<Host> = (0..NODES).map(|_| rig.host(0, Some(CAP))).collect();
        let mut figures = ours(&hosts).await;
        if !is_quick() {
            distribution(&mut figures, &hosts, &rig.host(0, Some(CAP))).await;
        }
        figures
    });
    figures::publish(PROGRAM, "cluster-fan-out", &figures.await);
}

async fn ours(hosts: &[Host]) -> Vec<Figure> {
    let nodes = cluster(hosts, |node| node).await;
    let url = nodes[0].url();
    let size = image_size();

    let first = Pushed::new(1, size);
    first.push(&url).await;
    first.visible(&nodes[NODES - 1]).await;
    quiet(hosts).await;
    let alone = nodes.iter().min_by_key(|node| first.held(node)).expect("there are nodes");
    let (held, busy) = (first.held(alone), Busy::start());
    let alone = first.pull(&alone.url()).await;
    let alone_busy = busy.percent();
    println!("one alone: {alone:.1} s, {held} bytes were there before, machine {alone_busy:.0} % busy");

    let second = Pushed::new(2, size);
    let traffic = || hosts[0].traffic();
    let before = traffic();
    second.push(&url).await;
    join_all(nodes.iter().map(|node| second.visible(node))).await;
    let early = traffic() - before;
    let (busy, cables) = (Busy::start(), Cables::watch(hosts, CAP));
    let (seconds, failed) = pull_all(&second, &nodes, LAYERS_AT_ONCE).await;
    let (all_busy, used) = (busy.percent(), cables.origin_used());
    drop(cables);
    let sent = traffic() - before;
    quiet(hosts).await;
    let in_the_end = traffic() - before;

    let copies = |bytes: u64| second.copies(bytes);
    let last = if failed == 0 { seconds[NODES - 1] } else { f64::INFINITY };
    let processor: f64 = nodes.iter().map(|node| node.cpu_seconds()).sum();
    vec![
        Figure::new(format!("one node pulls {} MiB alone", size >> 20), alone, "s"),
        Figure::new("16 nodes pull at once: the last is done after", last, "s"),
        Figure::new("16 nodes at once, beside one alone", last / alone, "x").at_most(1.30),
        Figure::new("median of them, beside one alone", seconds.get(NODES / 2).map_or(f64::INFINITY, |median| median / alone), "x"),
        Figure::new("the origin sent, until the last was done", copies(sent.sent), "copies").at_most(1.10),
        Figure::new("its cable was used meanwhile", used, "%"),
        Figure::new("the same, when owners have their copies", copies(in_the_end.sent), "copies"),
        Figure::new("of these, before the pulls began", copies(early.sent), "copies"),
        Figure::new("the origin received", copies(sent.received), "copies"),
        Figure::new("pulls that failed", failed as f64, "").at_most(0.0),
        Figure::new("machine busy, one alone", alone_busy, "%"),
        Figure::new("machine busy, 16 at once", all_busy, "%"),
        Figure::new("processor time of all nodes, from their start", processor, "s"),
    ]
}

/// The same pulls from one registry on a host of its own; puts its figures beside ours.
async fn distribution(figures: &mut Vec<Figure>, hosts: &[Host], server: &Host) {
    let registry = Distribution::start(server).await;
    let image = Pushed::new(3, image_size());
    image.push(&registry.url).await;
    let alone = image.pull(&server.url_from(&hosts[0], Distribution::PORT)).await;
    let before = server.traffic();
    let busy = Busy::start();
    let urls: Vec<String> = hosts.iter().map(|host| server.url_from(host, Distribution::PORT)).collect();
    let seconds = join_all(urls.iter().map(|url| image.pull(url))).await;
    let last = seconds.into_iter().fold(0.0, f64::max);
    let sent = image.copies((server.traffic() - before).sent);
    let theirs = [alone, last, last / alone, f64::NAN, sent];
    for (figure, theirs) in figures.iter_mut().zip(theirs).filter(|(_, theirs)| !theirs.is_nan()) {
        *figure = figure.clone().against(theirs);
    }
    figures.push(Figure::new("machine busy, 16 at once from Distribution", busy.percent(), "%"));
}

/// CNCF Distribution as Debian has it.
struct Distribution {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Distribution {
    const PORT: u16 = 5001;

    async fn start(host: &Host) -> Self {
        let folder = tempfile::Builder::new().prefix("larder-distribution-").tempdir_in("/dev/shm").expect("make a folder in memory");
        let configuration = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{}:{}\"}}\n",
            folder.path().join("data").display(),
            host.address(),
            Self::PORT
        );
        let path = folder.path().join("config.yml");
        std::fs::write(&path, configuration).expect("write a configuration");
        let mut command = host.command("docker-registry");
        command
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("start docker-registry, which packaging/setup installs");
        let url = format!("http://{}:{}", host.address(), Self::PORT);
        let registry = Self { child, url, _folder: folder };
        wait_until("docker-registry answers", Duration::from_secs(30), async || {
            let answer = Registry::new(&registry.url).try_request("GET", "/v2/", &[], larder_harness::Body::empty()).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
        registry
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
