//! The commands: what people and scripts type.
//!
//! A file for each noun. `serve` is the daemon; `check-config`, `setup`, `completions` and `man` work without one; all
//! others ask the running daemon over its socket ([`client`]) and print what it says: tables for people, with `--json`
//! the daemon's answer as it came. A command knows the management API and nothing of the rooms behind it.
//!
//! What was asked for goes to standard output, everything else to standard error, errors as one line. The exit code is 0
//! when it was done, 1 when it failed, 2 when it was asked wrongly, which includes a configuration with a mistake. A reader
//! that closes the pipe early (`larder tag list x | head -1`) has what it wanted: that is no failure.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::config::{self, ArchiveUrlFault, Fault};

mod access;
mod archive;
mod audit;
mod check_config;
mod client;
mod compact;
mod completions;
mod cost;
mod gc;
mod man;
mod nearest;
mod peers;
mod repo;
mod restore;
mod scrub;
mod serve;
mod setup;
mod status;
mod table;
mod tag;
mod thaw;
mod transfer;
mod verify;

use client::Client;

/// A registry daemon for fleets of build hosts and edge sites.
///
/// Every host runs one node. Clients push to and pull from the nearest one; nodes share what they have with each other and
/// archive it to a bucket.
#[derive(Debug, Parser)]
#[command(name = "larder", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 asked wrongly (usage or configuration).")]
pub struct Cli {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(subcommand)]
    command: Command,
}

/// Where the daemon is; understood by every command.
#[derive(Args, Clone, Debug)]
struct PlaceArgs {
    /// The data folder; commands find the running daemon by it [env: LARDER_DATA_DIR]
    #[arg(long, global = true, value_name = "DIR", long_help = DATA_DIR_HELP)]
    data_dir: Option<PathBuf>,
    /// The configuration file [env: LARDER_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

const DATA_DIR_HELP: &str = "The data folder; commands find the running daemon by it [env: LARDER_DATA_DIR]

When it is not given, it is the data_dir of the configuration file, if one is given, and ./larder-data otherwise. Commands that talk to a \
running daemon then also try /var/lib/larder, where the packaged service keeps its data.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until it is told to stop
    Serve(serve::Serve),
    /// Make a one-time token with which another node can join
    Token(peers::Token),
    /// Join the cluster of the node that made a token
    Join(peers::Join),
    /// List the nodes of the cluster, or remove one
    Peers(peers::Peers),
    /// Say how the running node is
    Status(status::Status),
    /// Check the configuration without starting anything
    CheckConfig(check_config::CheckConfig),
    /// Repositories
    Repo(repo::Repo),
    /// Tags of a repository
    Tag(tag::Tag),
    /// Who signs in with a name and a password
    User(access::User),
    /// Programs that sign in with a token
    Robot(access::Robot),
    /// Who may do what
    Policy(access::Policy),
    /// What clients did, and what they were refused
    Audit(audit::Audit),
    /// The bucket: how it stands, what is in it, what it costs
    Archive(archive::Archive),
    /// Collect garbage now, or say what would go
    Gc(gc::Gc),
    /// Read everything on this disk and mend what is damaged
    Scrub(scrub::Scrub),
    /// Bring a bucket's content back on a node that has none
    Restore(restore::Restore),
    /// Write images into a file, for a place without a network
    Export(transfer::Export),
    /// Take in a file that `larder export` wrote
    Import(transfer::Import),
    /// Unpack an exported file, or a pack from a bucket, into a folder
    Unpack(transfer::Unpack),
    /// Say which node's registry is nearest from here
    Nearest(nearest::Nearest),
    /// Print or install the configuration of a client on this host
    Setup(setup::Setup),
    /// Print the completions of a shell
    Completions(completions::Completions),
    /// Write the manual pages
    Man(man::Man),
}

/// What every command gets.
struct Context {
    place: PlaceArgs,
    environment: Vec<(OsString, OsString)>,
}

impl Context {
    /// The daemon's socket, in the folder where it is.
    fn client(&self) -> Result<Client, config::Error> {
        let folders = config::data_dirs(self.place.data_dir.as_deref(), self.place.config.as_deref(), &self.environment)?;
        Ok(Client::new(folders))
    }

    fn config(&self, flags: &config::Flags) -> Result<config::Config, config::Error> {
        config::Config::load(self.place.config.as_deref(), flags, self.environment.iter().cloned())
    }
}

impl Cli {
    /// Reads the command line; prints help, or what is wrong with it, and ends the process when that is all there is to do.
    pub fn read() -> Self {
        Self::parse()
    }

    /// Does what was asked, and says on standard error what went wrong.
    pub fn run(self) -> ExitCode {
        let context = Context { place: self.place, environment: std::env::vars_os().collect() };
        // Whole answers are written at once: a line at a time would be a system call for each.
        let mut out = io::BufWriter::new(io::stdout());
        let done = self.command.run(&context, &mut out).and_then(|()| out.flush().context("write to standard output"));
        // Nobody may be left to read this either.
        done.map(|()| ExitCode::SUCCESS).unwrap_or_else(|error| {
            if is_closed_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            let _ = writeln!(io::stderr(), "larder: {}", one_line(&format!("{error:#}")));
            if is_usage(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        })
    }
}

impl Command {
    fn run(self, context: &Context, out: &mut dyn Write) -> anyhow::Result<()> {
        match self {
            Self::Serve(serve) => serve.run(context),
            Self::CheckConfig(check) => check.run(context, out),
            Self::Nearest(nearest) => nearest.run(out),
            Self::Unpack(unpack) => unpack.run(out),
            Self::Setup(setup) => setup.run(context, out),
            Self::Completions(completions) => completions.run(out),
            Self::Man(man) => man.run(out),
            asking => {
                let client = context.client()?;
                // One question and its answer: more than one thread would only be started and ended.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(asking.ask(&client, out))
            }
        }
    }

    async fn ask(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        match self {
            Self::Token(token) => token.run(client, out).await,
            Self::Join(join) => join.run(client, out).await,
            Self::Peers(peers) => peers.run(client, out).await,
            Self::Status(status) => status.run(client, out).await,
            Self::Repo(repo) => repo.run(client, out).await,
            Self::Tag(tag) => tag.run(client, out).await,
            Self::User(user) => user.run(client, out).await,
            Self::Robot(robot) => robot.run(client, out).await,
            Self::Policy(policy) => policy.run(client, out).await,
            Self::Audit(audit) => audit.run(client, out).await,
            Self::Archive(archive) => archive.run(client, out).await,
            Self::Gc(gc) => gc.run(client, out).await,
            Self::Scrub(scrub) => scrub.run(client, out).await,
            Self::Restore(restore) => restore.run(client, out).await,
            Self::Export(export) => export.run(client, out).await,
            Self::Import(import) => import.run(client, out).await,
            Self::Serve(_)
            | Self::CheckConfig(_)
            | Self::Nearest(_)
            | Self::Unpack(_)
            | Self::Setup(_)
            | Self::Completions(_)
            | Self::Man(_) => {
                unreachable!("these ask no daemon, and ran in `run`")
            }
        }
    }
}

/// `--json`, for commands that list.
#[derive(Args, Clone, Copy, Debug)]
struct Format {
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the daemon's answer as it came, or its table.
fn show<T: serde::de::DeserializeOwned>(
    out: &mut dyn Write,
    format: Format,
    answer: client::Answer,
    table: impl FnOnce(T) -> String,
) -> anyhow::Result<()> {
    let written =
        if format.json { out.write_all(&[answer.text(), b"\n"].concat()) } else { out.write_all(table(answer.read()?).as_bytes()) };
    written.context("write to standard output")
}

/// The same of a value that was put together from several answers.
fn show_value<T: serde::de::DeserializeOwned>(
    out: &mut dyn Write,
    format: Format,
    value: serde_json::Value,
    table: impl FnOnce(T) -> String,
) -> anyhow::Result<()> {
    let text = if format.json { format!("{value}\n") } else { table(serde_json::from_value(value).context("read the daemon's answer")?) };
    out.write_all(text.as_bytes()).context("write to standard output")
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    // Only ours: the daemon's end of the socket is told apart by its own error.
    !error.is::<client::Error>() && error.chain().any(closed)
}

/// Whether the mistake is in what was asked.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<config::Error>() || error.is::<Fault>() || error.is::<ArchiveUrlFault>()
}

/// Messages of other programs' making may have more lines, or control characters that a terminal would obey.
fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    clean.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
