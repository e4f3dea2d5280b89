//! What is written down of a request: who did what to what, and what came of it.
//!
//! Pushes, deletes, mounts and tokens are, and whatever somebody was refused who had shown who they are, or said so; pulls only where it is configured.
//! That a client is asked for a name first is no event: every client begins so.

use std::net::IpAddr;

use http::{HeaderMap, Response, header};
use larder_protocol::name::Tag;

use super::error::Error;
use super::route::Route;
use super::{Body, Front};
use crate::auth::{Audit, Caller, Event, Who};

/// A request, as far as it may have to be written down.
pub(super) struct Note {
    action: &'static str,
    repository: Option<String>,
    reference: Option<String>,
    from: IpAddr,
    who: Option<String>,
    /// Whether it is written down also when it was done.
    when_done: bool,
    /// Whether somebody said who they are.
    has_shown: bool,
}

impl Note {
    /// Something that somebody asks for.
    pub(super) fn new(action: &'static str, from: IpAddr) -> Self {
        Self { action, repository: None, reference: None, from, who: None, when_done: false, has_shown: true }
    }

    /// Takes note of who asks.
    pub(super) fn is(&mut self, caller: &Caller) {
        self.who = Some(caller.who.name());
    }

    /// Writes it down, if it is to be.
    pub(super) fn take(self, audit: &Audit, result: &Result<Response<Body>, Error>) {
        let (status, why) = match result {
            Ok(response) => (response.status().as_u16(), None),
            Err(error) => {
                let status = error.refusal().status.as_u16();
                (status, matches!(status, 401 | 403).then(|| error.to_string()))
            }
        };
        let is_refused = matches!(status, 401 | 403) && self.has_shown;
        if self.when_done && !matches!(status, 401 | 403) || is_refused {
            self.note(audit, status, why);
        }
    }

    /// The same of a request for a token. Nobody's is none.
    pub(super) fn of_token(mut self, audit: &Audit, result: Result<Who, &Error>) {
        match result {
            Ok(Who::Anonymous) => {}
            Ok(who) => {
                self.who = Some(who.name());
                self.note(audit, 200, None);
            }
            Err(error) => self.note(audit, error.refusal().status.as_u16(), Some(error.to_string())),
        }
    }

    fn note(self, audit: &Audit, status: u16, why: Option<String>) {
        let who = self.who.unwrap_or_else(|| "unknown".to_owned());
        let event = Event::now(who, self.action);
        let event = Event { from: Some(self.from), repository: self.repository, reference: self.reference, ..event };
        audit.note(event.answered(status, why));
    }
}

impl Front {
    /// What is to be written down of a request, as far as its head says.
    pub(super) fn noted(&self, headers: &HeaderMap, route: Option<&Route>, from: IpAddr) -> Note {
        let pulls = self.auth.audit().has_pulls();
        let (action, repository, reference, when_done) = match route {
            None => ("request", None, None, false),
            Some(Route::Ping) => ("sign-in", None, None, false),
            Some(Route::ListRepositories(_)) => ("list", None, None, false),
            Some(Route::ListTags { repository, .. }) => ("list", Some(repository), None, false),
            Some(Route::ListReferrers { repository, subject, .. }) => ("list", Some(repository), Some(subject.to_string()), false),
            Some(Route::CheckBlob { repository, digest }) => ("pull", Some(repository), Some(digest.to_string()), false),
            Some(Route::PullBlob { repository, digest }) => ("pull", Some(repository), Some(digest.to_string()), pulls),
            Some(Route::PullManifest { repository, reference }) => ("pull", Some(repository), Some(reference.to_string()), pulls),
            Some(Route::PushManifest { repository, digest, tags }) => {
                let tags: Vec<_> = tags.iter().map(Tag::as_str).collect();
                let named = digest.map(|digest| digest.to_string()).filter(|_| tags.is_empty()).unwrap_or_else(|| tags.join(" "));
                ("push", Some(repository), Some(named), true)
            }
            Some(Route::DeleteManifest { repository, reference }) => ("delete", Some(repository), Some(reference.to_string()), true),
            Some(Route::DeleteBlob { repository, digest }) => ("delete", Some(repository), Some(digest.to_string()), true),
            Some(Route::MountBlob { repository, digest, .. }) => ("mount", Some(repository), Some(digest.to_string()), true),
            Some(
                Route::StartUpload { repository, .. }
                | Route::PushBlob { repository, .. }
                | Route::UploadStatus { repository, .. }
                | Route::AppendUpload { repository, .. }
                | Route::FinishUpload { repository, .. }
                | Route::CancelUpload { repository, .. },
            ) => ("upload", Some(repository), None, false),
        };
        Note {
            action,
            repository: repository.map(|name| name.as_str().to_owned()),
            reference,
            from,
            who: None,
            when_done,
            has_shown: headers.contains_key(header::AUTHORIZATION),
        }
    }
}
