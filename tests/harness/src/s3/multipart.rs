//! Uploads in parts: parts lie in a folder of their own beside the bucket until the upload is completed.

use super::folder::{self, Folder, internal};
use futures_util::StreamExt;
use s3s::crypto::{Checksum as _, Crc64Nvme};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The smallest part that is not the last, as at Amazon's.
const PART_SIZE_MIN: u64 = 5 << 20;

/// An upload that was begun.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    key: String,
    class: Option<StorageClass>,
    parts: BTreeMap<i32, u64>,
}

fn part_path(folder: &Folder, id: &str, number: i32) -> PathBuf {
    folder.root.join(format!("upload-{id}-{number}"))
}

pub(super) async fn create(
    folder: &Folder,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let input = request.input;
    folder.path(&input.bucket, &input.key)?;
    let mut state = folder.state();
    let id = format!("{:08}", state.next_upload);
    state.next_upload += 1;
    state.uploads.insert(id.clone(), Upload { key: input.key.clone(), class: input.storage_class, parts: BTreeMap::new() });
    let output = CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(id),
        checksum_algorithm: input.checksum_algorithm,
        checksum_type: input.checksum_type,
        ..Default::default()
    };
    Ok(S3Response::new(output))
}

pub(super) async fn upload_part(folder: &Folder, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
    let input = request.input;
    find(folder, &input.upload_id, &input.key)?;
    let path = part_path(folder, &input.upload_id, input.part_number);
    let mut file = tokio::fs::File::create(&path).await.map_err(internal)?;
    let mut body = input.body.ok_or_else(|| s3_error!(IncompleteBody))?;
    let mut size = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| s3_error!(IncompleteBody, "{error}"))?;
        size += chunk.len() as u64;
        file.write_all(&chunk).await.map_err(internal)?;
    }
    file.flush().await.map_err(internal)?;
    if input.content_length.is_some_and(|said| said as u64 != size) {
        return Err(s3_error!(IncompleteBody));
    }
    if let Some(upload) = folder.state().uploads.get_mut(&input.upload_id) {
        upload.parts.insert(input.part_number, size);
    }
    Ok(S3Response::new(UploadPartOutput { e_tag: Some(folder::tag(size)), ..Default::default() }))
}

pub(super) async fn copy_part(folder: &Folder, request: S3Request<UploadPartCopyInput>) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let input = request.input;
    find(folder, &input.upload_id, &input.key)?;
    let CopySource::Bucket { bucket, key, .. } = &input.copy_source else { return Err(s3_error!(NotImplemented)) };
    let from = folder.path(bucket, key)?;
    let size = tokio::fs::metadata(&from).await.map_err(|_| s3_error!(NoSuchKey))?.len();
    let range = input.copy_source_range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let range = range.and_then(|(first, last)| Some((first.parse().ok()?, last.parse::<u64>().ok()? + 1))).unwrap_or((0, size));
    let mut file = tokio::fs::File::open(from).await.map_err(internal)?;
    tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::Start(range.0)).await.map_err(internal)?;
    let mut part = tokio::fs::File::create(part_path(folder, &input.upload_id, input.part_number)).await.map_err(internal)?;
    let size = tokio::io::copy(&mut file.take(range.1.saturating_sub(range.0)), &mut part).await.map_err(internal)?;
    part.flush().await.map_err(internal)?;
    if let Some(upload) = folder.state().uploads.get_mut(&input.upload_id) {
        upload.parts.insert(input.part_number, size);
    }
    let last_modified = Some(Timestamp::from(std::time::SystemTime::now()));
    let result = CopyPartResult { e_tag: Some(folder::tag(size)), last_modified, ..Default::default() };
    Ok(S3Response::new(UploadPartCopyOutput { copy_part_result: Some(result), ..Default::default() }))
}

pub(super) async fn complete(
    folder: &Folder,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let input = request.input;
    let upload = find(folder, &input.upload_id, &input.key)?;
    let named: Vec<i32> =
        input.multipart_upload.and_then(|parts| parts.parts).unwrap_or_default().iter().filter_map(|part| part.part_number).collect();
    if named.is_empty() || named.iter().any(|number| !upload.parts.contains_key(number)) {
        return Err(s3_error!(InvalidPart));
    }
    if named[..named.len() - 1].iter().any(|number| upload.parts[number] < PART_SIZE_MIN) {
        return Err(s3_error!(EntityTooSmall));
    }
    let path = folder.path(&input.bucket, &input.key)?;
    tokio::fs::create_dir_all(path.parent().expect("an object is in its bucket's folder")).await.map_err(internal)?;
    let incoming = tempfile::Builder::new().prefix("incoming-").tempfile_in(&folder.root).map_err(internal)?;
    let mut file = tokio::fs::File::from_std(incoming.reopen().map_err(internal)?);
    let (mut crc, mut buffer) = (Crc64Nvme::new(), vec![0; folder::READ_SIZE]);
    for number in &named {
        let mut part = tokio::fs::File::open(part_path(folder, &input.upload_id, *number)).await.map_err(internal)?;
        loop {
            let count = part.read(&mut buffer).await.map_err(internal)?;
            if count == 0 {
                break;
            }
            crc.update(&buffer[..count]);
            file.write_all(&buffer[..count]).await.map_err(internal)?;
        }
    }
    file.flush().await.map_err(internal)?;
    let crc = s3s::checksum::ChecksumHasher { crc64nvme: Some(crc), ..Default::default() }.finalize().checksum_crc64nvme;
    if input.checksum_crc64nvme.is_some() && input.checksum_crc64nvme != crc {
        return Err(s3_error!(BadDigest, "the checksum is not that of the parts"));
    }
    incoming.persist(&path).map_err(internal)?;
    let size = upload.parts.values().sum();
    folder.state().classes.put(&input.key, upload.class.as_ref())?;
    forget(folder, &input.upload_id);
    let output = CompleteMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(folder::tag(size)),
        checksum_crc64nvme: crc,
        ..Default::default()
    };
    Ok(S3Response::new(output))
}

pub(super) async fn abort(
    folder: &Folder,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    find(folder, &request.input.upload_id, &request.input.key)?;
    forget(folder, &request.input.upload_id);
    Ok(S3Response::new(AbortMultipartUploadOutput::default()))
}

pub(super) async fn list(
    folder: &Folder,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let input = request.input;
    let prefix = input.prefix.clone().unwrap_or_default();
    let uploads = folder.state().uploads.clone();
    let listed = uploads.into_iter().filter(|(_, upload)| upload.key.starts_with(&prefix)).map(|(id, upload)| MultipartUpload {
        key: Some(upload.key),
        upload_id: Some(id),
        initiated: Some(Timestamp::from(std::time::SystemTime::now())),
        ..Default::default()
    });
    let output = ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: input.prefix,
        is_truncated: Some(false),
        uploads: Some(listed.collect()),
        ..Default::default()
    };
    Ok(S3Response::new(output))
}

pub(super) async fn list_parts(folder: &Folder, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
    let upload = find(folder, &request.input.upload_id, &request.input.key)?;
    let part = |(number, size): (&i32, &u64)| Part {
        part_number: Some(*number),
        size: Some(*size as i64),
        e_tag: Some(folder::tag(*size)),
        ..Default::default()
    };
    let parts = upload.parts.iter().map(part).collect();
    Ok(S3Response::new(ListPartsOutput { is_truncated: Some(false), parts: Some(parts), ..Default::default() }))
}

fn find(folder: &Folder, id: &str, key: &str) -> S3Result<Upload> {
    folder.state().uploads.get(id).filter(|upload| upload.key == key).cloned().ok_or_else(|| s3_error!(NoSuchUpload))
}

fn forget(folder: &Folder, id: &str) {
    let Some(upload) = folder.state().uploads.remove(id) else { return };
    for number in upload.parts.keys() {
        let _ = std::fs::remove_file(part_path(folder, id, *number));
    }
}
