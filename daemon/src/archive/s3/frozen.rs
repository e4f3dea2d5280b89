//! What is frozen: how it is listed, looked at and asked for.

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{GlacierJobParameters, OptionalObjectAttributes, RestoreRequest};

use crate::config::Tier;

use super::super::bucket::{Listed, Page};
use super::super::thaw::Seen;
use super::super::{Error, thawing};
use super::S3;

impl S3 {
    /// A page of a listing; with what is said of thawing, where the server knows how to say that.
    pub(super) async fn list_page(&self, prefix: &str, after: Option<&str>, with_thaws: bool) -> Result<Page, Error> {
        let request = self.client().await.list_objects_v2().bucket(&self.bucket).prefix(prefix).set_start_after(after.map(str::to_owned));
        let request = if with_thaws { request.optional_object_attributes(OptionalObjectAttributes::RestoreStatus) } else { request };
        let answer = request.send().await.map_err(|error| self.error("list", prefix, error))?;
        let object = |object: &aws_sdk_s3::types::Object| {
            let (key, class) = (object.key()?.to_owned(), object.storage_class().map(|class| class.as_str().to_owned()));
            let is_thawing = object.restore_status().and_then(|status| status.is_restore_in_progress());
            let seen = thawing::seen(&key, class.as_deref(), is_thawing);
            Some(Listed { key, size: u64::try_from(object.size()?).ok()?, class, seen })
        };
        Ok(Page { objects: answer.contents().iter().filter_map(object).collect(), more: answer.is_truncated().unwrap_or(false) })
    }

    /// Whether an object can be read, by a HEAD.
    pub(super) async fn head_of_frozen(&self, key: &str) -> Result<Seen, Error> {
        let answer = match self.client().await.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(answer) => answer,
            // A HEAD has no body that could say more.
            Err(error) if error.raw_response().is_some_and(|response| response.status().as_u16() == 404) => return Ok(Seen::Missing),
            Err(error) => return Err(self.error("look at", key, error)),
        };
        let is_thawing = answer.restore().map(|restore| restore.contains("ongoing-request=\"true\""));
        Ok(thawing::seen(key, answer.storage_class().map(|class| class.as_str()), is_thawing))
    }

    /// Asks for an object; `false` where that was asked before, or is not needed.
    pub(super) async fn ask_to_thaw(&self, key: &str, days: u32, tier: Tier) -> Result<bool, Error> {
        let tier = match tier {
            Tier::Bulk => aws_sdk_s3::types::Tier::Bulk,
            Tier::Standard => aws_sdk_s3::types::Tier::Standard,
            Tier::Expedited => aws_sdk_s3::types::Tier::Expedited,
        };
        let parameters = GlacierJobParameters::builder().tier(tier).build().expect("the tier is set");
        let days = i32::try_from(days).unwrap_or(i32::MAX);
        let asked = RestoreRequest::builder().days(days).glacier_job_parameters(parameters).build();
        let answer = self.client().await.restore_object().bucket(&self.bucket).key(key).restore_request(asked).send().await;
        match answer {
            Ok(_) => Ok(true),
            // The answer to an earlier request was lost, or another asked; or a rule has moved it to a class that needs no thawing.
            Err(error) if matches!(error.code(), Some("RestoreAlreadyInProgress" | "InvalidObjectState")) => Ok(false),
            Err(error) => Err(self.error("thaw", key, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, bucket_at, server};
    use super::*;
    use crate::archive::bucket::Bucket;
    use crate::archive::ledger::Requests;

    const KEY: &str = "p/v1/packs/x/000000000001.DEEP_ARCHIVE.tar";

    #[tokio::test]
    async fn f36_an_object_is_asked_for_with_its_tier_and_days() {
        let error = |code: &str| format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
        let answers = vec![
            answer("202 Accepted", "", ""),
            answer("409 Conflict", "", &error("RestoreAlreadyInProgress")),
            answer("403 Forbidden", "", &error("InvalidObjectState")),
            answer("501 Not Implemented", "", &error("NotImplemented")),
        ];
        let (endpoint, requests) = server(answers).await;
        let (bucket, ledger) = bucket_at(&endpoint);
        for expected in [true, false, false] {
            assert_eq!(bucket.thaw(KEY, 7, Tier::Bulk).await.expect("asked"), expected);
        }
        let refused = bucket.thaw(KEY, 7, Tier::Bulk).await.expect_err("no such thing").to_string();
        assert!(refused.contains("its own tools"), "{refused}");
        let requests = requests.await.expect("the server ended well");
        let body = String::from_utf8_lossy(&requests[0].1).into_owned();
        assert!(requests[0].0.starts_with("post /b/p/v1/packs/x/000000000001.deep_archive.tar?restore"), "{}", requests[0].0);
        assert!(body.contains("<Days>7</Days>") && body.contains("<Tier>Bulk</Tier>"), "{body}");
        let tally = ledger.tally();
        assert_eq!(tally.classes["DEEP_ARCHIVE"].requests, Requests { thaw: 4, ..Requests::default() });
    }

    #[tokio::test]
    async fn f36_what_thaws_is_told_by_a_listing_or_by_a_head() {
        let entry = |key: &str, restore: &str| {
            format!("<Contents><Key>{key}</Key><Size>7</Size><StorageClass>GLACIER</StorageClass>{restore}</Contents>")
        };
        let status = |is: bool| format!("<RestoreStatus><IsRestoreInProgress>{is}</IsRestoreInProgress></RestoreStatus>");
        let xml = format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated>{}{}{}</ListBucketResult>",
            entry("a", ""),
            entry("b", &status(true)),
            entry("c", &status(false))
        );
        let head = |restore: &str| answer("200 OK", &format!("x-amz-storage-class: DEEP_ARCHIVE\r\n{restore}"), "");
        let answers = vec![
            answer("200 OK", "", &xml),
            head(""),
            head("x-amz-restore: ongoing-request=\"true\"\r\n"),
            head("x-amz-restore: ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2040 00:00:00 GMT\"\r\n"),
            answer("404 Not Found", "", ""),
        ];
        let (endpoint, requests) = server(answers).await;
        let (bucket, _) = bucket_at(&endpoint);
        let seen: Vec<Seen> = bucket.list_thaws("", None).await.expect("list").objects.iter().map(|listed| listed.seen).collect();
        assert_eq!(seen, [Seen::Frozen, Seen::Thawing, Seen::Readable]);
        for expected in [Seen::Frozen, Seen::Thawing, Seen::Readable, Seen::Missing] {
            assert_eq!(bucket.head_thaw(KEY).await.expect("head"), expected);
        }
        let requests = requests.await.expect("the server ended well");
        assert!(requests[0].0.contains("x-amz-optional-object-attributes: restorestatus"), "{}", requests[0].0);
    }

    #[tokio::test]
    async fn f36_packs_say_their_class_and_what_is_frozen_is_told_apart() {
        let frozen = "<Error><Code>InvalidObjectState</Code><Message>no</Message></Error>";
        let (endpoint, requests) =
            server(vec![answer("200 OK", "", ""), answer("200 OK", "", ""), answer("403 Forbidden", "", frozen)]).await;
        let (bucket, ledger) = bucket_at(&endpoint);
        for key in [KEY, "p/v1/packs/x/000000000002.tar"] {
            let pack = crate::archive::bucket::Object { key: key.to_owned(), ..super::super::tests::pack(b"x") };
            bucket.put_once(pack).await.expect("put");
        }
        assert!(matches!(bucket.get_range(KEY, 0..4).await.map(drop), Err(Error::Frozen { .. })));
        let requests = requests.await.expect("the server ended well");
        assert!(requests[0].0.contains("x-amz-storage-class: deep_archive\r\n") && !requests[1].0.contains("x-amz-storage-class"));
        let tally = ledger.tally();
        assert_eq!((tally.requests.put, tally.standard().requests.put, tally.classes["DEEP_ARCHIVE"].requests.get), (2, 1, 1));
    }
}
