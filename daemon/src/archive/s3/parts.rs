//! An object in parts: what is larger than one PutObject may be, and what a slow link could not hold for so long.
//!
//! Parts go one after the other, each streamed from the blob files and sent again by itself when it fails; the checksum of the whole is announced with the
//! completion, so a bucket that lost or mixed up something refuses it. An upload that does not end is given up, so that nobody pays for its parts; what a
//! crash left is given up by the next upload, when it is a day old.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::super::body::Reading;
use super::super::bucket::Object;
use super::super::{Error, keys};
use super::{S3, is_kept, timeouts};

/// Bytes of a part, unless there would be too many.
const PART_SIZE: u64 = 64 << 20;
/// Most parts of an object, a little below what S3 takes.
const PARTS_MAX: u64 = 9_000;
/// What a bucket takes time for when an upload is completed.
const COMPLETION: Duration = Duration::from_secs(300);
/// An upload that is older belongs to nobody.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How large the parts of an object are.
fn part_size(size: u64, above: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    PART_SIZE.min(above.max(5 * MIB)).max(size.div_ceil(PARTS_MAX).next_multiple_of(MIB))
}

impl S3 {
    /// Writes an object in parts.
    pub(super) async fn put_parts(&self, object: Object) -> Result<(), Error> {
        let key = object.key.clone();
        self.give_up_old().await;
        let begun = self
            .client()
            .await
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(&key)
            .content_type("application/x-tar")
            .set_storage_class(super::class_of(&key))
            .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
            .checksum_type(ChecksumType::FullObject)
            .set_server_side_encryption(self.settings.sse.algorithm())
            .set_ssekms_key_id(self.settings.sse_kms_key.clone())
            .send()
            .await
            .map_err(|error| self.error("begin to put", &key, error))?;
        let Some(id) = begun.upload_id() else {
            let detail = "the bucket began an upload without an id".to_owned();
            return Err(Error::Bucket { doing: "put", key, bucket: self.id.clone(), detail });
        };
        let put = self.send_parts(id, &object).await;
        if put.is_err() {
            let given_up = self.client().await.abort_multipart_upload().bucket(&self.bucket).key(&key).upload_id(id).send().await;
            if let Err(error) = given_up {
                tracing::info!(key, error = %self.error("give up the upload of", &key, error), "a later upload gives it up");
            }
        }
        put
    }

    async fn send_parts(&self, id: &str, object: &Object) -> Result<(), Error> {
        let (key, size) = (&object.key, object.body.size());
        let step = part_size(size, self.settings.multipart_above);
        let mut parts = Vec::new();
        for (index, start) in (0..size).step_by(usize::try_from(step).unwrap_or(usize::MAX)).enumerate() {
            let range = start..(start + step).min(size);
            let length = range.end - range.start;
            let number = i32::try_from(index + 1).unwrap_or(i32::MAX);
            let body = object.body.clone();
            let content = SdkBody::retryable(move || SdkBody::from_body_1_x::<Reading, std::io::Error>(body.reading_of(range.clone())));
            let answer = self
                .client()
                .await
                .upload_part()
                .bucket(&self.bucket)
                .key(key)
                .upload_id(id)
                .part_number(number)
                .body(ByteStream::new(content))
                .content_length(i64::try_from(length).unwrap_or(i64::MAX))
                .customize()
                .config_override(aws_sdk_s3::config::Builder::new().timeout_config(timeouts(length)))
                .send()
                .await
                .map_err(|error| self.error("put a part of", key, error))?;
            let tag = answer.e_tag().map(str::to_owned);
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(tag).build());
        }
        let checksum = BASE64.encode(object.crc64.to_be_bytes());
        // F30: an answer of 200 that has an error for its body counts as one, and is tried again.
        let answer = self
            .client()
            .await
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(key)
            .upload_id(id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .checksum_crc64_nvme(&checksum)
            .checksum_type(ChecksumType::FullObject)
            .customize()
            .config_override(aws_sdk_s3::config::Builder::new().timeout_config(timeouts(COMPLETION.as_secs() * super::PACE_MIN)))
            .send()
            .await;
        match answer {
            Ok(answer) => match answer.checksum_crc64_nvme() {
                Some(stored) if stored != checksum => {
                    let detail = format!("the bucket stored checksum {stored}, {checksum} was sent");
                    Err(Error::Checksum { key: key.clone(), detail })
                }
                _ => Ok(()),
            },
            // The answer to the attempt before was lost: it is there. Or to one before that, in a bucket that keeps everything.
            Err(error) if (error.code() == Some("NoSuchUpload") || is_kept(&error)) && self.stands(key, size, &checksum).await => Ok(()),
            Err(error) => Err(self.error("put", key, error)),
        }
    }

    /// Whether an object stands that has this size, and this checksum if the bucket knows it.
    pub(super) async fn stands(&self, key: &str, size: u64, checksum: &str) -> bool {
        let request = self.client().await.head_object().bucket(&self.bucket).key(key).checksum_mode(ChecksumMode::Enabled);
        request.send().await.is_ok_and(|found| {
            found.content_length().and_then(|length| u64::try_from(length).ok()) == Some(size)
                && found.checksum_crc64_nvme().is_none_or(|stored| stored == checksum)
        })
    }

    /// Gives up what crashes have left; a bucket that doesn't say is left alone.
    async fn give_up_old(&self) {
        let prefix = keys::packs(&self.prefix);
        let Ok(found) = self.client().await.list_multipart_uploads().bucket(&self.bucket).prefix(&prefix).send().await else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        for upload in found.uploads() {
            let begun = upload.initiated().and_then(|begun| u64::try_from(begun.secs()).ok()).unwrap_or(now);
            let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
            if now.saturating_sub(begun) > ABANDONED_AFTER.as_secs() {
                let _ = self.client().await.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(id).send().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_never_too_many_nor_too_small() {
        const GIB: u64 = 1 << 30;
        for (size, above) in [(5 * GIB + 1, 5 * GIB), (6 << 20, 5 << 20), (64 << 20, 1), (5000 * GIB, 5 * GIB)] {
            let part = part_size(size, above);
            assert!(part >= 5 << 20 && size.div_ceil(part) <= 10_000, "{size} {above}: {part}");
        }
        assert_eq!(part_size(6 * GIB, 5 * GIB), PART_SIZE);
    }
}
