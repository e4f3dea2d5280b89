//! `larder tag`: what a repository's tags name.

use std::io::Write;

use clap::{Args, Subcommand};
use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag as TagName};
use serde::Deserialize;

use super::client::{Client, encode};
use super::table::{self, Align, Table};
use super::{Format, show};

/// Tags of a repository.
#[derive(Args, Debug)]
pub(super) struct Tag {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the tags of a repository
    List {
        /// The repository: team/app
        #[arg(value_parser = repository)]
        repository: String,
        #[command(flatten)]
        format: Format,
    },
    /// List what a tag named before, the newest first
    History {
        /// The tag: team/app:1.0
        #[arg(value_name = "REPOSITORY:TAG", value_parser = tag)]
        tag: (String, String),
        #[command(flatten)]
        format: Format,
    },
    /// Let a tag name a manifest again that it named before, or any other of its repository
    Restore {
        /// The tag: team/app:1.0
        #[arg(value_name = "REPOSITORY:TAG", value_parser = tag)]
        tag: (String, String),
        /// The manifest's digest, as `tag history` shows it
        #[arg(value_parser = digest)]
        digest: String,
    },
    /// Delete a tag on all nodes; the manifest it names stays and can be pulled by digest
    Delete {
        /// The tag: team/app:1.0
        #[arg(value_name = "REPOSITORY:TAG", value_parser = tag)]
        tag: (String, String),
    },
}

fn repository(text: &str) -> Result<String, String> {
    let name = text.parse::<RepositoryName>().map_err(|error| error.to_string())?;
    Ok(name.to_string())
}

fn digest(text: &str) -> Result<String, String> {
    let digest = text.parse::<Digest>().map_err(|error| error.to_string())?;
    Ok(digest.to_string())
}

fn tag(text: &str) -> Result<(String, String), String> {
    let (name, tag) = text.rsplit_once(':').ok_or("a repository and a tag are needed, such as team/app:1.0")?;
    let tag = tag.parse::<TagName>().map_err(|error| error.to_string())?;
    Ok((repository(name)?, tag.to_string()))
}

#[derive(Deserialize)]
struct Listed {
    tag: String,
    digest: String,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    pushed: serde_json::Value,
}

#[derive(Deserialize)]
struct Version {
    digest: String,
    #[serde(default)]
    pushed: serde_json::Value,
    #[serde(default)]
    until: serde_json::Value,
    #[serde(default)]
    node: String,
    #[serde(default)]
    current: bool,
    #[serde(default)]
    available: bool,
    #[serde(default)]
    conflict: bool,
}

impl Tag {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        match self.action {
            Action::List { repository, format } => {
                let answer = client.get(&format!("tags?repository={}", encode(&repository))).await?;
                show(out, format, answer, |tags: Vec<Listed>| list(&tags, jiff::Timestamp::now()))
            }
            Action::History { tag: (repository, tag), format } => {
                let answer = client.get(&format!("tags/history?repository={}&tag={}", encode(&repository), encode(&tag))).await?;
                show(out, format, answer, |versions: Vec<Version>| history(&versions, jiff::Timestamp::now()))
            }
            Action::Restore { tag: (repository, tag), digest } => {
                let asked = serde_json::json!({ "repository": repository, "tag": tag, "digest": digest });
                let changed = client.post("tags/restore", asked).await?.read::<serde_json::Value>()?["changed"] == true;
                let done = if changed { "now names" } else { "names already" };
                Ok(writeln!(out, "{repository}:{tag} {done} {digest}")?)
            }
            Action::Delete { tag: (repository, tag) } => {
                client.delete(&format!("tags?repository={}&tag={}", encode(&repository), encode(&tag))).await?;
                Ok(writeln!(out, "deleted {repository}:{tag}")?)
            }
        }
    }
}

fn list(tags: &[Listed], now: jiff::Timestamp) -> String {
    let mut table = Table::new(&[
        ("TAG", Align::Left),
        ("DIGEST", Align::Left),
        ("SIZE", Align::Right),
        ("PUSHED", Align::Left),
        ("TYPE", Align::Left),
    ]);
    for tag in tags {
        table.line([tag.tag.clone(), tag.digest.clone(), table::size(tag.size), table::age(&tag.pushed, now), kind(&tag.media_type)]);
    }
    table.or("no tags")
}

fn history(versions: &[Version], now: jiff::Timestamp) -> String {
    let mut table = Table::new(&[
        ("DIGEST", Align::Left),
        ("PUSHED", Align::Left),
        ("UNTIL", Align::Left),
        ("NODE", Align::Left),
        ("MANIFEST", Align::Left),
        ("NOTE", Align::Left),
    ]);
    for version in versions {
        let until = if version.current { "now".to_owned() } else { table::age(&version.until, now) };
        let manifest = if version.available { "here" } else { "deleted" };
        let node = version.node.split('-').take(2).collect::<Vec<_>>().join("-");
        let note = if version.conflict { "lost a conflict" } else { "" };
        table.line([version.digest.clone(), table::age(&version.pushed, now), until, node, manifest.to_owned(), note.to_owned()]);
    }
    table.or("no versions")
}

/// The two words that people know, or the media type.
fn kind(media_type: &str) -> String {
    match media_type {
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => "image",
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => "index",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_listed_with_what_they_name() {
        let answer = r#"[{"tag":"1.0","digest":"sha256:abc","media_type":"application/vnd.oci.image.index.v1+json","size":1536,"pushed":"2026-11-23T11:00:00Z"}]"#;
        let tags: Vec<Listed> = serde_json::from_str(answer).expect("the API's form");
        let now = "2026-11-23T12:00:00Z".parse().expect("a time");
        assert_eq!(list(&tags, now), "TAG  DIGEST         SIZE  PUSHED  TYPE\n1.0  sha256:abc  1.5 KiB  1h ago  index\n");
        assert_eq!(list(&[], now), "no tags\n");
    }

    #[test]
    fn versions_are_listed_with_when_and_where_they_came_from() {
        let answer = r#"[{"digest":"sha256:b","pushed":"2026-11-23T11:00:00Z","node":"1abc-2def-3","until":null,"current":true,"available":true},
            {"digest":"sha256:a","pushed":"2026-11-23T10:00:00Z","node":"1abc-2def-3","until":"2026-11-23T11:00:00Z","current":false,"available":false,"conflict":true}]"#;
        let versions: Vec<Version> = serde_json::from_str(answer).expect("the API's form");
        let now = "2026-11-23T12:00:00Z".parse().expect("a time");
        let shown = history(&versions, now);
        let lines: Vec<Vec<&str>> =
            shown.lines().map(|line| line.split("  ").filter(|word| !word.is_empty()).map(str::trim).collect()).collect();
        assert_eq!(lines[1], ["sha256:b", "1h ago", "now", "1abc-2def", "here"]);
        assert_eq!(lines[2][3..], ["1abc-2def", "deleted", "lost a conflict"]);
        assert_eq!(lines[2][..3], ["sha256:a", "2h ago", "1h ago"]);
    }

    #[test]
    fn a_tag_is_named_with_its_repository() {
        assert_eq!(tag("team/app:1.0"), Ok(("team/app".to_owned(), "1.0".to_owned())));
        for wrong in ["team/app", "Team/app:1", "team/app:", ":1", "a:b:c", "../x:1"] {
            assert!(tag(wrong).is_err(), "{wrong}");
        }
    }
}
