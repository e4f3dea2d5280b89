//! `larder tag`: what a repository's tags name.

use std::io::Write;

use clap::{Args, Subcommand};
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

impl Tag {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        match self.action {
            Action::List { repository, format } => {
                let answer = client.get(&format!("tags?repository={}", encode(&repository))).await?;
                show(out, format, answer, |tags: Vec<Listed>| list(&tags, jiff::Timestamp::now()))
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
    fn a_tag_is_named_with_its_repository() {
        assert_eq!(tag("team/app:1.0"), Ok(("team/app".to_owned(), "1.0".to_owned())));
        for wrong in ["team/app", "Team/app:1", "team/app:", ":1", "a:b:c", "../x:1"] {
            assert!(tag(wrong).is_err(), "{wrong}");
        }
    }
}
