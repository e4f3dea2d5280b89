//! The objects as files in a folder: what the server does with a request that it accepts.

use super::{State, multipart, object_path};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use s3s::dto::*;
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// The step in which objects go out.
pub(super) const READ_SIZE: usize = 256 * 1024;
/// How many keys one listing has at most, as at Amazon's.
const LIST_COUNT_MAX: usize = 1000;

pub(super) struct Folder {
    pub root: PathBuf,
    pub state: Arc<Mutex<State>>,
}

impl Folder {
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this")
    }

    pub(super) fn path(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        if !self.root.join(bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        object_path(&self.root, bucket, key).ok_or_else(|| s3_error!(InvalidArgument, "keys have no empty, . or .. parts here"))
    }

    async fn open(&self, bucket: &str, key: &str) -> S3Result<(tokio::fs::File, u64, Timestamp)> {
        let file = tokio::fs::File::open(self.path(bucket, key)?).await.map_err(|_| s3_error!(NoSuchKey))?;
        let metadata = file.metadata().await.map_err(internal)?;
        if metadata.is_dir() {
            return Err(s3_error!(NoSuchKey));
        }
        Ok((file, metadata.len(), metadata.modified().map_err(internal)?.into()))
    }
}

#[async_trait::async_trait]
impl S3 for Folder {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let path = self.path(&input.bucket, &input.key)?;
        if input.if_none_match.is_some() && path.exists() {
            return Err(s3_error!(PreconditionFailed));
        }
        tokio::fs::create_dir_all(path.parent().expect("an object is in its bucket's folder")).await.map_err(internal)?;
        // Beside the bucket: a listing never shows what is still coming in, and a rename makes it visible at once.
        let incoming = tempfile::Builder::new().prefix("incoming-").tempfile_in(&self.root).map_err(internal)?;
        let mut file = tokio::fs::File::from_std(incoming.reopen().map_err(internal)?);
        let mut left = self.state().take_put_limit().unwrap_or(u64::MAX);
        let mut hasher = ChecksumHasher {
            crc32: input.checksum_crc32.is_some().then(Crc32::new),
            crc32c: input.checksum_crc32c.is_some().then(Crc32c::new),
            sha1: input.checksum_sha1.is_some().then(Sha1::new),
            sha256: input.checksum_sha256.is_some().then(Sha256::new),
            crc64nvme: Some(Crc64Nvme::new()),
        };
        let mut body = input.body.ok_or_else(|| s3_error!(IncompleteBody))?;
        let mut size = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| S3Error::with_message(s3s::S3ErrorCode::IncompleteBody, error.to_string()))?;
            hasher.update(&chunk);
            size += chunk.len() as u64;
            let keep = left.min(chunk.len() as u64);
            left -= keep;
            file.write_all(&chunk[..keep as usize]).await.map_err(internal)?;
        }
        file.flush().await.map_err(internal)?;
        if input.content_length.is_some_and(|said| said as u64 != size) {
            return Err(s3_error!(IncompleteBody));
        }
        let sums = hasher.finalize();
        let claims = [
            (&input.checksum_crc32, &sums.checksum_crc32),
            (&input.checksum_crc32c, &sums.checksum_crc32c),
            (&input.checksum_sha1, &sums.checksum_sha1),
            (&input.checksum_sha256, &sums.checksum_sha256),
            (&input.checksum_crc64nvme, &sums.checksum_crc64nvme),
        ];
        if claims.iter().any(|(claim, sum)| claim.is_some() && claim != sum) {
            return Err(s3_error!(BadDigest, "the checksum is not that of the body"));
        }
        incoming.persist(&path).map_err(internal)?;
        self.state().classes.put(&input.key, input.storage_class.as_ref())?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(tag(size)),
            checksum_crc64nvme: sums.checksum_crc64nvme,
            checksum_type: Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            ..Default::default()
        }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let (mut file, size, modified) = self.open(&input.bucket, &input.key).await?;
        self.state().classes.check_readable(&input.key)?;
        let range = match input.range {
            Some(range) => range.check(size)?,
            None => 0..size,
        };
        file.seek(io::SeekFrom::Start(range.start)).await.map_err(internal)?;
        let content_range = input.range.map(|_| format!("bytes {}-{}/{size}", range.start, range.end - 1));
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(read(file, range.end - range.start))),
            content_length: Some((range.end - range.start) as i64),
            content_range,
            e_tag: Some(tag(size)),
            last_modified: Some(modified),
            storage_class: self.state().classes.header(&input.key),
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let (_, size, modified) = self.open(&request.input.bucket, &request.input.key).await?;
        // ORDER: one after the other; two guards in one expression would wait for each other.
        let storage_class = self.state().classes.header(&request.input.key);
        let restore = self.state().classes.restore_header(&request.input.key);
        let output = HeadObjectOutput {
            content_length: Some(size as i64),
            e_tag: Some(tag(size)),
            last_modified: Some(modified),
            storage_class,
            restore,
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let bucket = self.root.join(&*input.bucket);
        if !bucket.is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        // The token of a listing is the last key of the page before it.
        let after = input.continuation_token.clone().or(input.start_after.clone()).unwrap_or_default();
        let mut found = walk(&bucket).map_err(internal)?;
        found.retain(|(key, _)| key.starts_with(&prefix) && (after.is_empty() || *key > after));
        // What lies below a delimiter is told as one name.
        let mut below = std::collections::BTreeSet::new();
        if let Some(delimiter) = input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty()) {
            found.retain(|(key, _)| match key[prefix.len()..].split_once(delimiter) {
                Some((name, _)) => {
                    below.insert(format!("{prefix}{name}{delimiter}"));
                    false
                }
                None => true,
            });
        }
        let count_max = input.max_keys.map_or(LIST_COUNT_MAX, |count| (count.max(0) as usize).min(LIST_COUNT_MAX));
        let more = found.len() > count_max;
        found.truncate(count_max);
        let next = found.last().filter(|_| more).map(|(key, _)| key.clone());
        let with_restores = input.optional_object_attributes.is_some();
        let state = self.state();
        let contents: Vec<Object> = found
            .into_iter()
            .map(|(key, size)| Object {
                storage_class: Some(state.classes.listed(&key)),
                restore_status: state.classes.restore_status(&key).filter(|_| with_restores),
                size: Some(size as i64),
                e_tag: Some(tag(size)),
                last_modified: std::fs::metadata(bucket.join(&key)).and_then(|file| file.modified()).ok().map(Timestamp::from),
                key: Some(key),
                ..Default::default()
            })
            .collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            max_keys: Some(count_max as i32),
            key_count: Some(contents.len() as i32),
            is_truncated: Some(more),
            next_continuation_token: next,
            contents: Some(contents),
            delimiter: input.delimiter,
            common_prefixes: (!below.is_empty()).then(|| below.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect()),
            ..Default::default()
        }))
    }

    async fn list_objects(&self, request: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        let marker = request.input.marker.clone();
        let asked = request.map_input(|input| ListObjectsV2Input {
            bucket: input.bucket,
            prefix: input.prefix,
            delimiter: input.delimiter,
            max_keys: input.max_keys,
            start_after: input.marker,
            ..Default::default()
        });
        let listed = self.list_objects_v2(asked).await?.output;
        Ok(S3Response::new(ListObjectsOutput {
            marker,
            next_marker: listed.next_continuation_token,
            name: listed.name,
            prefix: listed.prefix,
            max_keys: listed.max_keys,
            is_truncated: listed.is_truncated,
            contents: listed.contents,
            delimiter: listed.delimiter,
            common_prefixes: listed.common_prefixes,
            ..Default::default()
        }))
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = request.input;
        let CopySource::Bucket { bucket, key, .. } = &input.copy_source else { return Err(s3_error!(NotImplemented)) };
        let (from, to) = (self.path(bucket, key)?, self.path(&input.bucket, &input.key)?);
        tokio::fs::create_dir_all(to.parent().expect("an object is in its bucket's folder")).await.map_err(internal)?;
        let size = tokio::fs::copy(from, to).await.map_err(|_| s3_error!(NoSuchKey))?;
        let last_modified = Some(Timestamp::from(std::time::SystemTime::now()));
        let result = CopyObjectResult { e_tag: Some(tag(size)), last_modified, ..Default::default() };
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    async fn delete_objects(&self, request: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = request.input;
        let mut deleted = Vec::new();
        for object in input.delete.objects {
            self.state().classes.deleted(&object.key);
            let _ = tokio::fs::remove_file(self.path(&input.bucket, &object.key)?).await;
            deleted.push(DeletedObject { key: Some(object.key), ..Default::default() });
        }
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..Default::default() }))
    }

    async fn restore_object(&self, request: S3Request<RestoreObjectInput>) -> S3Result<S3Response<RestoreObjectOutput>> {
        let input = request.input;
        self.open(&input.bucket, &input.key).await?;
        let days = input.restore_request.and_then(|asked| asked.days).unwrap_or(1);
        let thawed = self.state().classes.thaw(&input.key, days.max(1) as u64)?;
        let mut answer = S3Response::new(RestoreObjectOutput::default());
        answer.status = Some(if thawed { hyper::StatusCode::OK } else { hyper::StatusCode::ACCEPTED });
        Ok(answer)
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        multipart::create(self, request).await
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        multipart::upload_part(self, request).await
    }

    async fn upload_part_copy(&self, request: S3Request<UploadPartCopyInput>) -> S3Result<S3Response<UploadPartCopyOutput>> {
        multipart::copy_part(self, request).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        multipart::complete(self, request).await
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        multipart::abort(self, request).await
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        multipart::list(self, request).await
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        multipart::list_parts(self, request).await
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.state().classes.deleted(&request.input.key);
        match tokio::fs::remove_file(self.path(&request.input.bucket, &request.input.key)?).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(internal(error)),
            // S3 says 204 for an object that was not there.
            _ => Ok(S3Response::new(DeleteObjectOutput::default())),
        }
    }
}

/// Key and size of every file below `bucket`, sorted by key.
pub(super) fn walk(bucket: &Path) -> io::Result<Vec<(String, u64)>> {
    let (mut found, mut folders) = (Vec::new(), vec![bucket.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                let key = entry.path().strip_prefix(bucket).expect("it is below the bucket").to_string_lossy().into_owned();
                found.push((key, entry.metadata()?.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `body` that breaks after `keep` bytes.
pub(super) fn truncated(body: s3s::Body, keep: u64) -> s3s::Body {
    let stream = futures_util::stream::unfold((body, keep), |(mut body, left)| async move {
        if left == 0 {
            return Some((Err(io::Error::other("this body is cut on purpose")), (body, 0)));
        }
        let chunk = match body.next().await? {
            Ok(chunk) => chunk.slice(..chunk.len().min(left as usize)),
            Err(error) => return Some((Err(io::Error::other(error)), (body, 0))),
        };
        let left = left - chunk.len() as u64;
        Some((Ok(chunk), (body, left)))
    });
    StreamingBlob::wrap(SyncStream(Mutex::new(Box::pin(stream)))).into()
}

/// The next `size` bytes of `file`.
fn read(file: tokio::fs::File, size: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    let stream = futures_util::stream::unfold((file, size), |(mut file, left)| async move {
        if left == 0 {
            return None;
        }
        let mut buffer = vec![0; READ_SIZE.min(left as usize)];
        let chunk = file.read(&mut buffer).await.map(|count| {
            buffer.truncate(count);
            Bytes::from(buffer)
        });
        let left = match &chunk {
            Ok(chunk) if !chunk.is_empty() => left - chunk.len() as u64,
            _ => 0,
        };
        Some((chunk, (file, left)))
    });
    SyncStream(Mutex::new(Box::pin(stream)))
}

type BoxedStream = std::pin::Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The server wants its bodies to be Sync; nobody ever polls one from two threads, so the mutex is never waited for.
struct SyncStream(Mutex<BoxedStream>);

impl Stream for SyncStream {
    type Item = io::Result<Bytes>;

    fn poll_next(self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        self.get_mut().0.get_mut().expect("polling does not panic").as_mut().poll_next(context)
    }
}

pub(super) fn tag(size: u64) -> ETag {
    ETag::Strong(format!("size-{size}"))
}

pub(super) fn internal(error: impl std::fmt::Display) -> S3Error {
    S3Error::with_message(s3s::S3ErrorCode::InternalError, error.to_string())
}
