//! `larder export`, `larder import`, `larder unpack`: images in a file.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use larder_protocol::pack::{FOOTER_SIZE, Footer};
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::table::{self, Align, Table, facts};
use super::{Format, show};
use crate::age::{self, RECIPIENTS_MAX, Recipient, Seal};
use crate::archive::{Choice, PackFile, Unpacked, look, unpack};

const BAR: &str = "{msg} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}";

/// Write images into a file, for a place without a network.
///
/// The file has everything that is needed to pull the images, and what is attached to them. `larder import` takes it in anywhere else;
/// `docker load`, `podman load` and `skopeo copy oci-archive:FILE:IMAGE` read it too.
#[derive(Args, Debug)]
pub(super) struct Export {
    /// REPOSITORY:TAG, with wildcards (`team/**:v*`); REPOSITORY for all its tags; REPOSITORY@DIGEST
    #[arg(required = true, num_args = 1.., value_name = "IMAGE")]
    images: Vec<String>,
    /// The file; one that is there is replaced when the new one is whole
    #[arg(required = true)]
    file: PathBuf,
    /// Encrypt the file to this age recipient, age1...; may be given more than once. Without it, the file is not encrypted
    #[arg(long, value_name = "RECIPIENT")]
    recipient: Vec<Recipient>,
}

/// Take in a file that `larder export` wrote.
///
/// Its images are pushed to this node, under the names that they had: what is there already is not sent again, and tags move as with
/// any push. Every blob is checked.
#[derive(Args, Debug)]
pub(super) struct Import {
    /// The file
    file: PathBuf,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    format: Format,
}

/// Unpack an exported file, or a pack from a bucket, into a folder. Needs no daemon.
///
/// What comes out is an OCI image layout and the records as lines of JSON. Every blob is checked against its digest. An encrypted file is opened by an
/// identity; without this program, `age -d -i IDENTITY FILE | tar x` does the same.
#[derive(Args, Debug)]
pub(super) struct Unpack {
    /// The file
    file: PathBuf,
    /// The folder; made when it is not there [default: the file's name without its ending]
    folder: Option<PathBuf>,
    /// The same as FOLDER
    #[arg(long, value_name = "DIR", conflicts_with = "folder")]
    to: Option<PathBuf>,
    /// Check everything in it and say what it is; write nothing
    #[arg(long, conflicts_with_all = ["folder", "to"])]
    list: bool,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    format: Format,
}

/// By what an encrypted file is read.
#[derive(Args, Debug)]
pub(super) struct IdentityArgs {
    /// A file with the age identity that opens it, as `age-keygen` writes it
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

impl IdentityArgs {
    /// The text of the file, which was looked at for mistakes.
    pub(super) fn text(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.identity else { return Ok(None) };
        let text = age::read_identities(path).map_err(anyhow::Error::msg)?;
        age::parse_identities(&path.display().to_string(), &text).map_err(anyhow::Error::msg)?;
        Ok(Some(text))
    }

    fn open(&self, file: &Path) -> anyhow::Result<PackFile> {
        let identities = match self.text()? {
            Some(text) => age::parse_identities("that was given", &text).map_err(anyhow::Error::msg)?,
            None => Vec::new(),
        };
        Ok(PackFile::open(file, &identities)?)
    }
}

#[derive(Deserialize)]
struct Imported {
    cluster: String,
    node: String,
    images: Vec<String>,
    manifests: u64,
    blobs: u64,
    bytes: u64,
    #[serde(default)]
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    name: String,
    why: String,
}

impl Export {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        for image in &self.images {
            // A mistake is better told before anything is asked.
            image.parse::<Choice>().map_err(anyhow::Error::msg)?;
        }
        ensure!(
            self.recipient.len() <= RECIPIENTS_MAX,
            "export to {} recipients: a file has at most {RECIPIENTS_MAX}",
            self.recipient.len()
        );
        let staged = staged(&self.file)?;
        let written = async {
            let mut file = File::create(&staged).with_context(|| format!("create {}", staged.display()))?;
            let download = client.download("export", json!({ "images": self.images })).await?;
            let (images, blobs, size) = (download.images, download.blobs, download.size);
            let bar = bar(size, "exporting");
            let doing = || format!("write {}", staged.display());
            let seal = if self.recipient.is_empty() { None } else { Some(Seal::new(&self.recipient, size)?) };
            let mut sealing = seal.as_ref().map(|seal| seal.sealing(0..seal.size()));
            let mut write = |bytes: Bytes| file.write_all(&bytes);
            download
                .save(|bytes| {
                    bar.inc(bytes.len() as u64);
                    match &mut sealing {
                        Some(sealing) => sealing.push(bytes, &mut write),
                        None => write(Bytes::copy_from_slice(bytes)),
                    }
                })
                .await
                .with_context(doing)?;
            if let Some(sealing) = sealing {
                sealing.finish(&mut write).with_context(doing)?;
            }
            file.sync_all().with_context(doing)?;
            fs::rename(&staged, &self.file).with_context(|| format!("rename {} to {}", staged.display(), self.file.display()))?;
            bar.finish_and_clear();
            anyhow::Ok(format!("wrote {}: {} with {images} images in {blobs} blobs\n", self.file.display(), table::size(size)))
        };
        match written.await {
            Ok(said) => out.write_all(said.as_bytes()).context("write to standard output"),
            Err(error) => {
                let _ = fs::remove_file(&staged);
                Err(error)
            }
        }
    }
}

impl Import {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let doing = || format!("read {}", self.file.display());
        let file = self.identity.open(&self.file)?;
        let size = file.size();
        let tail = tail_of(&file).with_context(doing)?;
        let bar = bar(size, "importing");
        // Its end first: see the daemon's side.
        let (mut at, mut sent) = (size - tail, 0);
        let answer = client.upload("import", size, tail, |buffer| {
            let (place, end) = if sent < tail { (at, size) } else { (sent - tail, size - tail) };
            let read = buffer.len().min(usize::try_from(end - place).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..read], place)?;
            (at, sent) = (at + read as u64, sent + read as u64);
            bar.inc(read as u64);
            Ok(read)
        });
        let answer = answer.await;
        bar.finish_and_clear();
        let answer = answer?;
        let refused = answer.read::<Imported>()?.refused.len();
        show(out, self.format, answer, |imported: Imported| imported.shown())?;
        ensure!(refused == 0, "import {}: {refused} of its images were not taken; the list above says why", self.file.display());
        Ok(())
    }
}

impl Unpack {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<()> {
        let folder = match self.folder.or(self.to) {
            _ if self.list => None,
            Some(folder) => Some(folder),
            None => {
                let plain =
                    self.file.extension().filter(|ending| *ending == "age").map_or(self.file.clone(), |_| self.file.with_extension(""));
                let folder = plain.with_extension("");
                ensure!(folder != self.file, "unpack {}: its name has no ending; say into which folder", self.file.display());
                Some(folder)
            }
        };
        let doing = || format!("unpack {}", self.file.display());
        let file = self.identity.open(&self.file).with_context(doing)?;
        let unpacked = match &folder {
            Some(folder) => unpack(&file, folder),
            None => look(&file),
        };
        let unpacked = unpacked.with_context(doing)?;
        let said = if self.format.json { serde_json::to_string(&unpacked)? + "\n" } else { shown(&unpacked, folder.as_deref()) };
        out.write_all(said.as_bytes()).context("write to standard output")?;
        let damaged = unpacked.damaged.len();
        ensure!(damaged == 0, "unpack {}: {damaged} blobs are damaged in it and are left out", self.file.display());
        Ok(())
    }
}

/// Where a file is written until it is whole.
fn staged(file: &Path) -> anyhow::Result<PathBuf> {
    let Some(name) = file.file_name() else { bail!("export to {}: that is no file's name", file.display()) };
    let mut staged = name.to_owned();
    staged.push(".partial");
    Ok(file.with_file_name(staged))
}

/// Where a file's tables begin, counted from its end. Its signature is the daemon's business.
fn tail_of(file: &PackFile) -> anyhow::Result<u64> {
    ensure!(file.size() >= FOOTER_SIZE, "it is too short to be an exported file");
    let mut footer = [0; FOOTER_SIZE as usize];
    file.read_exact_at(&mut footer, file.size() - FOOTER_SIZE)?;
    Ok(Footer::parse(&footer, file.size(), |_, _, _| true)?.tail_length())
}

fn bar(size: u64, doing: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(BAR).expect("the template is right, a test reads it");
    ProgressBar::new(size).with_style(style).with_message(doing)
}

impl Imported {
    fn shown(&self) -> String {
        let mut text = facts(&[
            ("from cluster", self.cluster.clone()),
            ("written by", self.node.clone()),
            ("manifests", self.manifests.to_string()),
            ("new blobs", format!("{}, {}", self.blobs, table::size(self.bytes))),
        ]);
        self.images.iter().for_each(|image| text.push_str(&format!("imported {image}\n")));
        if !self.refused.is_empty() {
            let mut table = Table::new(&[("NOT TAKEN", Align::Left), ("WHY", Align::Left)]);
            self.refused.iter().for_each(|refused| table.line([refused.name.clone(), refused.why.clone()]));
            text.push_str(&table.to_string());
        }
        text
    }
}

fn shown(unpacked: &Unpacked, folder: Option<&Path>) -> String {
    let mut told: Vec<_> = folder.map(|folder| ("folder", folder.display().to_string())).into_iter().collect();
    told.extend([
        ("cluster", unpacked.cluster.clone()),
        ("signed by", unpacked.writer.clone()),
        ("written", unpacked.created.clone()),
        ("encrypted", if unpacked.encrypted { "yes" } else { "no" }.to_owned()),
        ("blobs", format!("{}, {}", unpacked.blobs, table::size(unpacked.bytes))),
        ("records", unpacked.records.to_string()),
    ]);
    let mut text = facts(&told);
    unpacked.images.iter().for_each(|image| text.push_str(&format!("image {image}\n")));
    unpacked.damaged.iter().for_each(|digest| text.push_str(&format!("damaged {digest}\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_in_is_told() {
        let answer = r#"{"cluster":"ab","node":"n","images":["a:1"],"manifests":2,"blobs":3,"bytes":2048,
            "refused":[{"name":"b:1","why":"it may not move"}]}"#;
        let imported: Imported = serde_json::from_str(answer).expect("the API's form");
        assert_eq!(
            imported.shown(),
            "from cluster: ab\nwritten by:   n\nmanifests:    2\nnew blobs:    3, 2.0 KiB\nimported a:1\nNOT TAKEN  WHY\nb:1        it may not move\n"
        );
    }

    #[test]
    fn a_file_grows_beside_its_place() {
        assert_eq!(staged(Path::new("/mnt/stick/images.tar")).expect("a name"), Path::new("/mnt/stick/images.tar.partial"));
        assert!(staged(Path::new("/")).is_err());
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }
}
