//! `larder serve`: the daemon itself.

use clap::Args;

use super::Context;
use crate::config::{Flags, LogFormat};

/// Run a node until it is told to stop.
///
/// Without any configuration: data in ./larder-data, the registry on 127.0.0.1:5000, peers on 127.0.0.1:5000/udp, the archive
/// in a folder of the data folder. Flags go before the environment (LARDER_<SECTION>__<KEY>), and this before the file.
#[derive(Args, Debug)]
pub(super) struct Serve {
    /// Where clients find the registry
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where other nodes find this one, over UDP
    #[arg(long, value_name = "ADDR")]
    peer_listen: Option<String>,
    /// The bucket: s3://bucket/prefix, file:///folder or none
    #[arg(long, value_name = "URL")]
    archive: Option<String>,
}

impl Serve {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let flags =
            Flags { data_dir: context.place.data_dir.clone(), listen: self.listen, peer_listen: self.peer_listen, archive: self.archive };
        let config = context.config(&flags)?;
        let json = config.log.format == LogFormat::Json;
        crate::telemetry::log_to_stderr(&config.log)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("larder").build()?;
        let served = runtime.block_on(crate::node::serve(config));
        if let (Err(error), true) = (&served, json) {
            // Whoever reads JSON from standard error does not read the line that comes after it.
            tracing::error!(error = format!("{error:#}"), "the node could not go on");
        }
        served
    }
}
