//! `larder nearest`: which node's registry is nearest from here. For hosts that have no node of their own.
//!
//! What is measured is what a client waits for: the answer to `GET /v2/` over a connection that is open. All addresses are asked at once,
//! each a few times one after the other, and the median counts, so that one lost packet says nothing.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Format;
use super::table::{Align, Table};
use crate::config;
use crate::tls;

/// How often each address is asked.
const TRIES: usize = 5;
/// How long a connection may take, and each answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long one address may take in all.
const PATIENCE_TOTAL: Duration = Duration::from_secs(3);
/// Addresses that are asked.
const ADDRESSES_MAX: usize = 64;
/// No node's answer is longer.
const ANSWER_SIZE_MAX: usize = 4 << 10;

/// Say which node's registry is nearest from here.
///
/// Measures how long each takes to answer and lists the nearest first; ends with 1 when none answers. Needs no node on this host.
#[derive(Args, Debug)]
pub(super) struct Nearest {
    /// Where the nodes' registries are
    #[arg(required = true, value_name = "HOST:PORT", value_parser = address)]
    addresses: Vec<String>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    format: Format,
}

/// What both sides prove themselves by.
#[derive(Args, Debug, Default)]
pub(super) struct TlsArgs {
    /// They speak TLS
    #[arg(long)]
    tls: bool,
    /// Who vouches for their certificates, when that is no public authority (PEM); says that they speak TLS
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// The certificate that is shown to them, when they ask for one (PEM); says that they speak TLS
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_certificate: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "client_certificate")]
    client_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Whether TLS is spoken at all.
    pub(super) fn is_tls(&self) -> bool {
        self.tls || self.ca.is_some() || self.client().is_some()
    }

    /// The certificate and its key.
    pub(super) fn client(&self) -> Option<(&Path, &Path)> {
        self.client_certificate.as_deref().zip(self.client_key.as_deref())
    }
}

/// How nodes are spoken to.
pub(super) struct Way(Option<tls::Connector>);

impl Way {
    /// With TLS or without; with whom to trust instead of the system's authorities, and what to show.
    pub(super) fn new(tls: &TlsArgs) -> anyhow::Result<Self> {
        Ok(Self(if tls.is_tls() { Some(tls::connector(tls.ca.as_deref(), tls.client())?) } else { None }))
    }
}

/// What was measured of one address.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) address: String,
    /// The median of the answers' times, or why there is none.
    pub(super) time: Result<Duration, String>,
}

/// Checks what was typed.
pub(super) fn address(text: &str) -> Result<String, String> {
    if config::is_host_port(text) { Ok(text.to_owned()) } else { Err("a host and a port are needed, such as 127.0.0.1:5000".to_owned()) }
}

impl Nearest {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<()> {
        let way = Way::new(&self.tls)?;
        let measured = measure(&self.addresses, &way)?;
        let text = if self.format.json { as_json(&measured) } else { as_table(&measured) };
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write to standard output")?;
        if measured.iter().all(|measured| measured.time.is_err()) {
            bail!(
                "no node answers at {}; check the addresses, that their ports are open for TCP, and whether they speak TLS (--tls, --ca, --client-certificate)",
                self.addresses.join(", ")
            );
        }
        Ok(())
    }
}

/// Measures all addresses; the nearest first, those that don't answer last.
pub(super) fn measure(addresses: &[String], way: &Way) -> anyhow::Result<Vec<Measured>> {
    if addresses.len() > ADDRESSES_MAX {
        bail!("measure {} addresses: at most {ADDRESSES_MAX} are asked at a time", addresses.len());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the measuring")?;
    let each = addresses.iter().map(|address| async move {
        let time = timeout(PATIENCE_TOTAL, measure_one(address, way)).await;
        let time = time.unwrap_or_else(|_| Err(format!("not measured within {PATIENCE_TOTAL:?}")));
        Measured { address: address.clone(), time }
    });
    let mut measured = runtime.block_on(futures_util::future::join_all(each));
    // Stable: what can't be told apart stays as it was given.
    measured.sort_by_key(|measured| measured.time.clone().unwrap_or(Duration::MAX));
    measured.dedup_by(|a, b| a.address == b.address);
    Ok(measured)
}

async fn measure_one(address: &str, way: &Way) -> Result<Duration, String> {
    let connected = timeout(PATIENCE, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| format!("no connection within {PATIENCE:?}"))?.map_err(|error| error.to_string())?;
    // Else the second question would wait for the answer to the first one's packets.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    match &way.0 {
        None => measure_over(address, stream).await,
        Some(connector) => {
            let stream = timeout(PATIENCE, tls::connect(connector, address, stream)).await;
            measure_over(address, stream.map_err(|_| format!("no handshake within {PATIENCE:?}"))?.map_err(|error| error.to_string())?)
                .await
        }
    }
}

async fn measure_over<S>(address: &str, stream: S) -> Result<Duration, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let asking = async {
        let mut times = Vec::new();
        for _ in 0..TRIES {
            let request = Request::get("/v2/").header(header::HOST, address).body(Empty::<Bytes>::new()).expect("an address is a header");
            let begun = Instant::now();
            let answer = async {
                let response = client.send_request(request).await.map_err(|error| error.to_string())?;
                let status = response.status();
                let is_registry = response.headers().contains_key("docker-distribution-api-version");
                Limited::new(response.into_body(), ANSWER_SIZE_MAX).collect().await.map_err(|error| error.to_string())?;
                Ok((status, is_registry))
            };
            match timeout(PATIENCE, answer).await {
                Ok(Ok((StatusCode::OK | StatusCode::UNAUTHORIZED, true))) => times.push(begun.elapsed()),
                Ok(Ok((status, _))) => return Err(format!("it is no registry (status {status})")),
                Ok(Err(why)) => return Err(why),
                Err(_) => return Err(format!("no answer within {PATIENCE:?}")),
            }
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    };
    tokio::select! {
        answered = asking => answered,
        ended = connection => Err(ended.err().map_or_else(|| "it closed the connection".to_owned(), |error| error.to_string())),
    }
}

fn as_ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn as_json(measured: &[Measured]) -> String {
    let line = |measured: &Measured| json!({ "address": measured.address, "rtt_ms": measured.time.as_ref().ok().map(|time| as_ms(*time)), "error": measured.time.as_ref().err() });
    let lines: Vec<_> = measured.iter().map(line).collect();
    format!("{}\n", json!(lines))
}

fn as_table(measured: &[Measured]) -> String {
    let mut table = Table::new(&[("ADDRESS", Align::Left), ("RTT", Align::Right), ("NOTE", Align::Left)]);
    for Measured { address, time } in measured {
        let (rtt, note) = match time {
            Ok(time) => (format!("{:.1} ms", as_ms(*time)), String::new()),
            Err(why) => ("-".to_owned(), why.clone()),
        };
        table.line([address.clone(), rtt, note]);
    }
    table.or("no addresses")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// Answers like a registry, after a while; gives its address.
    fn registry(delay: Duration, answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut bytes = [0; 1024];
                while stream.read(&mut bytes).is_ok_and(|count| count > 0) {
                    std::thread::sleep(delay);
                    if stream.write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        address
    }

    const REGISTRY: &str = "HTTP/1.1 200 OK\r\ndocker-distribution-api-version: registry/2.0\r\ncontent-length: 2\r\n\r\n{}";

    #[test]
    fn the_nearest_comes_first_and_those_that_do_not_answer_last() {
        let (far, near) = (registry(Duration::from_millis(60), REGISTRY), registry(Duration::ZERO, REGISTRY));
        let web = registry(Duration::ZERO, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let closed = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a free port").to_string();
        let silent_address = silent.local_addr().expect("bound").to_string();
        let begun = Instant::now();
        let measured =
            measure(&[closed.clone(), far.clone(), web.clone(), silent_address.clone(), near.clone()], &Way(None)).expect("measured");
        assert!(begun.elapsed() < PATIENCE_TOTAL + Duration::from_secs(2), "bounded in time");
        let order: Vec<_> = measured.iter().map(|measured| measured.address.clone()).collect();
        assert_eq!(order, [near, far, closed, web, silent_address]);
        assert!(measured[1].time.as_ref().is_ok_and(|time| *time >= Duration::from_millis(60)));
        assert!(measured[3].time.as_ref().is_err_and(|why| why.contains("no registry")), "{measured:?}");
        assert!(measured[4].time.as_ref().is_err_and(|why| why.contains("no answer")), "{measured:?}");
        assert!(as_table(&measured).lines().nth(1).expect("a line").contains(" ms"));
        let json: serde_json::Value = serde_json::from_str(&as_json(&measured)).expect("JSON");
        assert!(json[0]["rtt_ms"].is_f64() && json[0]["error"].is_null() && json[4]["rtt_ms"].is_null() && json[4]["error"].is_string());
    }

    #[test]
    fn nobody_there_is_a_failure() {
        let closed = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a free port").to_string();
        let mut out = Vec::new();
        let nearest = Nearest { addresses: vec![closed.clone()], tls: TlsArgs::default(), format: Format { json: false } };
        let error = nearest.run(&mut out).expect_err("nobody");
        assert!(error.to_string().contains(&closed) && String::from_utf8_lossy(&out).contains(&closed), "{error}");
        assert!(measure(&vec![closed; ADDRESSES_MAX + 1], &Way(None)).is_err());
    }
}
