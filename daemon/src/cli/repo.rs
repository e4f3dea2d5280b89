//! `larder repo`: what is there.

use std::io::Write;

use clap::{Args, Subcommand};
use serde::Deserialize;

use super::client::Client;
use super::table::{Align, Table};
use super::{Format, show};

/// Repositories.
#[derive(Args, Debug)]
pub(super) struct Repo {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the repositories
    List(Format),
}

#[derive(Deserialize)]
struct Repository {
    name: String,
    tags: u64,
}

impl Repo {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let Action::List(format) = self.action;
        show(out, format, client.get("repositories").await?, |repositories: Vec<Repository>| list(&repositories))
    }
}

fn list(repositories: &[Repository]) -> String {
    let mut table = Table::new(&[("REPOSITORY", Align::Left), ("TAGS", Align::Right)]);
    for repository in repositories {
        table.line([repository.name.clone(), repository.tags.to_string()]);
    }
    table.or("no repositories yet; docker push makes them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_listed_with_their_tags() {
        let repositories: Vec<Repository> = serde_json::from_str(r#"[{"name":"team/app","tags":3}]"#).expect("the API's form");
        assert_eq!(list(&repositories), "REPOSITORY  TAGS\nteam/app       3\n");
        assert_eq!(list(&[]), "no repositories yet; docker push makes them\n");
    }
}
