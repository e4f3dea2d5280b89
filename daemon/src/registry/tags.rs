//! The two listings: the tags of a repository, and the repositories. Both are pages of a sorted range, so a page costs a page,
//! however long the list is (S12).

use http::{Response, header};
use larder_protocol::access::Actions;
use larder_protocol::name::{RepositoryName, Tag};
use serde_json::json;

use super::error::Error;
use super::route::{PAGE_SIZE_MAX, Page};
use super::{Body, Front, json, set};
use crate::auth::Caller;
use crate::store::{self, Store};

/// Pages that are read from the store for one of names that may be read.
const READS_MAX: usize = 16;

impl Front {
    /// Lists the tags of a repository. SPEC: end-8a, end-8b.
    pub(super) async fn list_tags(&self, repository: RepositoryName, page: Page<Tag>) -> Result<Response<Body>, Error> {
        let (name, after, fetch) = (repository.clone(), page.after, page.limit + 1);
        let tags = self.store.run(move |store| {
            let tags = store.tags(&name, after.as_ref().map(Tag::as_str), fetch)?;
            Ok::<_, Error>(if tags.is_empty() && !store.repository_exists(&name)? { None } else { Some(tags) })
        });
        let Some(tags) = tags.await? else { return Err(Error::RepositoryUnknown { name: repository }) };
        let tags = tags.into_iter().map(|info| info.tag.as_str().to_owned()).collect();
        let (tags, more) = split(tags, page.limit);
        let mut response = json(&json!({ "name": repository.as_str(), "tags": tags }));
        if let Some(last) = more {
            set(&mut response, header::LINK, self.next(format_args!("{repository}/tags/list"), page.limit, &last));
        }
        Ok(response)
    }

    /// Lists the repositories that who asks may read (S11). Where many may not be read, a page may be short and still have a next one.
    pub(super) async fn list_repositories(&self, page: Page<RepositoryName>, caller: &Caller) -> Result<Response<Body>, Error> {
        let (caller, limit) = (caller.clone(), page.limit);
        let (names, more) = self.store.run(move |store| readable(store, page.after, limit, &caller)).await?;
        let mut response = json(&json!({ "repositories": names }));
        if let Some(last) = more {
            set(&mut response, header::LINK, self.next(format_args!("_catalog"), page.limit, &last));
        }
        Ok(response)
    }

    /// The address of the next page. Names and tags are made of letters that need no encoding; slashes may stand in a query.
    fn next(&self, path: std::fmt::Arguments<'_>, limit: usize, last: &str) -> String {
        format!("<{}?n={limit}&last={last}>; rel=\"next\"", self.location(path))
    }
}

/// As many names as are wanted of those that may be read; and the last one that was looked at, when there may be more behind it.
fn readable(
    store: &Store,
    after: Option<RepositoryName>,
    limit: usize,
    caller: &Caller,
) -> Result<(Vec<String>, Option<String>), store::Error> {
    let (mut names, mut after) = (Vec::new(), after.map(|name| name.as_str().to_owned()));
    if limit == 0 {
        return Ok((names, None));
    }
    for _ in 0..READS_MAX {
        let page = store.repositories(after.as_deref(), PAGE_SIZE_MAX)?;
        let whole = page.len() < PAGE_SIZE_MAX;
        for (index, name) in page.iter().enumerate() {
            after = Some(name.as_str().to_owned());
            if caller.could(Actions::PULL, name.as_str()) {
                names.push(name.as_str().to_owned());
                if names.len() == limit {
                    let is_last = whole && index + 1 == page.len();
                    return Ok((names, after.filter(|_| !is_last)));
                }
            }
        }
        if whole {
            return Ok((names, None));
        }
    }
    Ok((names, after))
}

/// A page, and its last entry when there is more behind it. SPEC: a page of 0 has no next one.
fn split(mut entries: Vec<String>, limit: usize) -> (Vec<String>, Option<String>) {
    let more = entries.len() > limit;
    entries.truncate(limit);
    let last = entries.last().filter(|_| more).cloned();
    (entries, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_its_last_entry_only_when_there_is_more() {
        let entries = |count: usize| (0..count).map(|i| format!("t{i}")).collect::<Vec<_>>();
        for (found, limit, size, more) in [(0, 2, 0, None), (1, 2, 1, None), (2, 2, 2, None), (3, 2, 2, Some("t1")), (1, 0, 0, None)] {
            let (page, last) = split(entries(found), limit);
            assert_eq!((page.len(), last.as_deref()), (size, more), "{found} found, {limit} wanted");
        }
    }
}
