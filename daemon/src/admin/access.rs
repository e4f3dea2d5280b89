//! People, robots, rules, and what was done: what `larder user`, `robot`, `policy` and `audit` ask.

use std::time::Duration;

use anyhow::Context as _;
use http::{Method, Request};
use hyper::body::Incoming;
use serde_json::json;

use super::Office;
use super::api::{Outcome, Refusal, answer, read, required, unknown};
use crate::auth::{Auth, Event, LISTED_MAX, Wanted};
use crate::glob::Glob;
use crate::registry::query::{Plus, Query, decode};

/// Longest life of a robot's token.
const EXPIRES_MAX_S: u64 = 10 * 366 * 24 * 3600;

/// Whether a request is for here; `path` is what stands behind `/api/v1/`.
pub(super) fn is_about(path: &str) -> bool {
    matches!(path.split('/').next(), Some("users" | "robots" | "rules" | "explain" | "audit"))
}

impl Office {
    pub(super) async fn access(&self, method: &Method, path: &str, query: &Query, request: Request<Incoming>) -> Outcome {
        let (what, name) = match path.split_once('/') {
            Some((what, name)) => (what, Some(decode(name, Plus::Plus).ok_or_else(|| Refusal::bad("the name is not readable"))?)),
            None => (path, None),
        };
        match (method, what, name) {
            (&Method::GET, "users", None) => answer(self.with(Auth::users).await?),
            (&Method::POST, "users", None) => {
                let asked: AskUsers = read(request).await?;
                let people: Vec<_> = asked.people.into_iter().map(|person| (person.name, person.hash)).collect();
                let names: Vec<_> = people.iter().map(|(name, _)| name.clone()).collect();
                let count = self.with(move |auth| auth.add_users(people, asked.groups)).await?;
                self.done("add user", names.join(" "));
                answer(json!({ "count": count }))
            }
            (&Method::DELETE, "users", Some(name)) => {
                let removed = name.clone();
                self.with(move |auth| auth.remove_user(&removed)).await?;
                self.done("remove user", name);
                answer(json!({}))
            }
            (&Method::GET, "robots", None) => answer(self.with(Auth::robots).await?),
            (&Method::POST, "robots", None) => {
                let asked: AskRobot = read(request).await?;
                if asked.expires_s.is_some_and(|expires| !(1..=EXPIRES_MAX_S).contains(&expires)) {
                    return Err(Refusal::bad(format!("expires_s has to be from 1 to {EXPIRES_MAX_S}")));
                }
                let grants: Vec<_> = asked.grants.into_iter().map(|grant| (grant.repositories, grant.actions)).collect();
                let life = asked.expires_s.map(Duration::from_secs);
                let name = asked.name.clone();
                let made = self.with(move |auth| auth.add_robot(&asked.name, &grants, life)).await?;
                self.done("add robot", name);
                answer(made)
            }
            (&Method::DELETE, "robots", Some(name)) => {
                let removed = name.clone();
                self.with(move |auth| auth.remove_robot(&removed)).await?;
                self.done("remove robot", name);
                answer(json!({}))
            }
            (&Method::GET, "rules", None) => answer(self.with(Auth::rules).await?),
            (&Method::POST, "rules", None) => {
                let asked: AskRule = read(request).await?;
                let rule = self.with(move |auth| auth.allow(&asked.subject, &asked.repositories, &asked.actions)).await?;
                self.done("allow", format!("{} {} {}", rule.subject, rule.repositories, rule.actions.join(",")));
                answer(rule)
            }
            (&Method::DELETE, "rules", None) => {
                let (subject, repositories): (String, String) = (required(query, "subject")?, required(query, "repositories")?);
                let rule = format!("{subject} {repositories}");
                self.with(move |auth| auth.disallow(&subject, &repositories)).await?;
                self.done("remove rule", rule);
                answer(json!({}))
            }
            (&Method::GET, "explain", None) => {
                let (who, action): (String, String) = (required(query, "who")?, required(query, "action")?);
                let reference: String = required(query, "reference")?;
                answer(self.with(move |auth| auth.explain(&who, &action, &reference)).await?)
            }
            (&Method::GET, "audit", None) => self.events(query).await,
            _ => Err(unknown(path)),
        }
    }

    async fn events(&self, query: &Query) -> Outcome {
        let number = |name: &str| query.first(name).map(|text| text.parse::<u64>()).transpose();
        let wrong = |_| Refusal::bad("since_ms and limit are numbers");
        let repository = query.first("repository").map(|text| text.parse::<Glob>()).transpose().map_err(Refusal::bad)?;
        let wanted = Wanted {
            since_ms: number("since_ms").map_err(wrong)?.unwrap_or(0),
            who: query.first("who").map(str::to_owned),
            repository,
            refused: query.first("refused").is_some(),
            limit: number("limit").map_err(wrong)?.map_or(LISTED_MAX, |limit| usize::try_from(limit).unwrap_or(LISTED_MAX)),
        };
        answer(self.with(move |auth| auth.audit().list(&wanted).context("read the events")).await?)
    }

    /// Writes down what a command did.
    fn done(&self, what: &str, about: String) {
        let event = Event::now("command line".to_owned(), what);
        self.auth.audit().note(Event { reference: Some(about), ..event });
    }

    /// Asks what blocks.
    async fn with<T: Send + 'static>(&self, ask: impl FnOnce(&Auth) -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
        let auth = self.auth.clone();
        self.store.run(move |_| ask(&auth)).await
    }
}

/// `POST users`
#[derive(serde::Deserialize)]
struct AskUsers {
    people: Vec<Person>,
    groups: Option<Vec<String>>,
}

#[derive(serde::Deserialize)]
struct Person {
    name: String,
    hash: String,
}

/// `POST robots`
#[derive(serde::Deserialize)]
struct AskRobot {
    name: String,
    #[serde(default)]
    grants: Vec<AskGrant>,
    expires_s: Option<u64>,
}

#[derive(serde::Deserialize)]
struct AskGrant {
    repositories: String,
    actions: String,
}

/// `POST rules`
#[derive(serde::Deserialize)]
struct AskRule {
    subject: String,
    repositories: String,
    actions: String,
}
