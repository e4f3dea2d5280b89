//! `larder audit`: what clients did on this node, and what they were refused.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Deserialize;

use super::client::{Client, encode};
use super::table::{Align, Table};
use super::{Format, show};
use crate::config;

/// What clients did on this node, and what they were refused.
///
/// Each node keeps what it was asked itself, for as long as `auth.audit_kept` says. The oldest comes first.
#[derive(Args, Debug)]
pub(super) struct Audit {
    /// Only what was within this time: 1h, 2d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Duration>,
    /// Only what this one did: alice, user:alice, robot:ci
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Only what is about repositories of this pattern
    #[arg(long, value_name = "PATTERN")]
    repository: Option<String>,
    /// Only what was refused
    #[arg(long)]
    refused: bool,
    /// The last so many
    #[arg(long, default_value = "100", value_name = "COUNT")]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

fn time(text: &str) -> Result<Duration, String> {
    config::duration(text).map_err(|fault| fault.to_string())
}

#[derive(Deserialize)]
struct Event {
    at_ms: i64,
    who: String,
    from: Option<String>,
    action: String,
    repository: Option<String>,
    reference: Option<String>,
    result: String,
    why: Option<String>,
}

impl Audit {
    pub(super) async fn run(self, client: &Client, out: &mut dyn std::io::Write) -> anyhow::Result<()> {
        let mut question = format!("audit?limit={}", self.limit);
        if let Some(since) = self.since {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            question.push_str(&format!("&since_ms={}", now.saturating_sub(since).as_millis()));
        }
        for (name, value) in [("who", &self.who), ("repository", &self.repository)] {
            if let Some(value) = value {
                question.push_str(&format!("&{name}={}", encode(value)));
            }
        }
        if self.refused {
            question.push_str("&refused=1");
        }
        show(out, self.format, client.get(&question).await?, |events: Vec<Event>| list(&events))
    }
}

fn list(events: &[Event]) -> String {
    let columns = ["TIME", "WHO", "FROM", "DID", "TO", "RESULT"].map(|name| (name, Align::Left));
    let mut table = Table::new(&columns);
    for event in events {
        let moment = jiff::Timestamp::from_millisecond(event.at_ms).unwrap_or_default();
        let about = match (&event.repository, &event.reference) {
            (Some(repository), Some(digest)) if digest.contains(':') => format!("{repository}@{digest}"),
            (Some(repository), Some(tag)) => format!("{repository}:{tag}"),
            (Some(only), None) | (None, Some(only)) => only.clone(),
            (None, None) => "-".to_owned(),
        };
        let why = event.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        table.line([
            moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            event.who.clone(),
            event.from.clone().unwrap_or_else(|| "-".to_owned()),
            event.action.clone(),
            about,
            format!("{}{why}", event.result),
        ]);
    }
    table.or("nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_listed_as_the_api_tells_them() {
        let answer = r#"[{"at_ms":0,"who":"user:alice","from":"10.0.0.7","action":"push","repository":"team/app","reference":"1.0",
            "result":"done","status":201},
            {"at_ms":1000,"who":"user:bob","from":"::1","action":"delete","repository":"team/app","reference":"sha256:ab","result":"refused",
            "status":403,"why":"user:bob may not"},
            {"at_ms":2000,"who":"command line","from":null,"action":"remove user","reference":"bob","result":"done"}]"#;
        let events: Vec<Event> = serde_json::from_str(answer).expect("the API's form");
        let expected = "\
TIME                  WHO           FROM      DID          TO                  RESULT
1970-01-01T00:00:00Z  user:alice    10.0.0.7  push         team/app:1.0        done
1970-01-01T00:00:01Z  user:bob      ::1       delete       team/app@sha256:ab  refused: user:bob may not
1970-01-01T00:00:02Z  command line  -         remove user  bob                 done
";
        assert_eq!(list(&events), expected);
    }
}
