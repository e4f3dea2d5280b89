//! The policies in packaging/iam allow what the program asks of a bucket, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;

use larder_harness::s3::{Operation, Request};
use larder_harness::{CountingS3, Image, sha256};
use serde_json::Value;

use super::{flush, node, registry};

/// What a policy allows: actions on objects below the prefix, and on the bucket.
struct Policy {
    objects: BTreeSet<String>,
    bucket: BTreeSet<String>,
}

impl Policy {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/iam").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        let policy: Value = serde_json::from_str(&text).expect("a policy is JSON");
        let mut read = Self { objects: BTreeSet::new(), bucket: BTreeSet::new() };
        for statement in policy["Statement"].as_array().expect("statements") {
            assert_eq!(statement["Effect"], "Allow");
            let actions = statement["Action"].as_array().expect("actions").iter().map(|action| action.as_str().expect("text").to_owned());
            match statement["Resource"][0].as_str() {
                Some("arn:aws:s3:::BUCKET/PREFIX/v1/*") => read.objects.extend(actions),
                Some("arn:aws:s3:::BUCKET") => read.bucket.extend(actions),
                other => panic!("{name} is about {other:?}"),
            }
        }
        read
    }

    fn allows(&self, request: &Request) -> bool {
        let (of, action) = match request.operation {
            Operation::Put | Operation::Begin | Operation::Part | Operation::Complete => (&self.objects, "s3:PutObject"),
            Operation::Get | Operation::Head => (&self.objects, "s3:GetObject"),
            Operation::Abort => (&self.objects, "s3:AbortMultipartUpload"),
            Operation::Delete => (&self.objects, "s3:DeleteObject"),
            Operation::Restore => (&self.objects, "s3:RestoreObject"),
            Operation::List => (&self.bucket, "s3:ListBucket"),
            // Uploads in parts that were left.
            Operation::Other => (&self.bucket, "s3:ListBucketMultipartUploads"),
        };
        of.contains(action) && (request.key.is_empty() || request.key.starts_with("fleet/v1/"))
    }
}

fn check(s3: &CountingS3, policy: &str) {
    let policy = Policy::read(policy);
    let refused: Vec<_> = s3.requests().into_iter().filter(|request| !policy.allows(request)).collect();
    assert!(refused.is_empty() && !s3.requests().is_empty(), "{refused:?}");
    s3.forget();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policies_allow_what_is_asked_and_never_to_delete() {
    let s3 = CountingS3::start().await;
    let mut first = node("first").s3(&s3, "fleet").env("LARDER_ARCHIVE__MULTIPART_ABOVE", "5MiB").start().await;
    let image = Image::from_seed(610, &[6 << 20, 1000]);
    registry(&first).push_image("team/app", "v1", &image).await;
    assert_eq!(flush(&first).await, 1);
    first.cli(&["archive", "checkpoint"]).await.expect("write a checkpoint");
    first.cli(&["archive", "verify", "--read-data-subset", "1/1"]).await.expect("all is well");
    first.cli(&["restore", "--drill", "1"]).await.expect("try it out");
    check(&s3, "writer.json");
    first.stop().await;
    first.set_env("LARDER_ARCHIVE__COMPACT_WAIT", Some("0s"));
    first.set_env("LARDER_ARCHIVE__COMPACT_PAYBACK", Some("1000000"));
    first.start().await;
    registry(&first).request("DELETE", &format!("/v2/team/app/manifests/{}", image.digest()), &[], "").await.expect(202, "delete");
    for blob in image.layers.iter().map(|layer| layer.digest()).chain([sha256(&image.config)]) {
        registry(&first).request("DELETE", &format!("/v2/team/app/blobs/{blob}"), &[], "").await.expect(202, "delete");
    }
    let image = Image::from_seed(611, &[1000]);
    registry(&first).push_image("team/app", "v1", &image).await;
    flush(&first).await;
    let done = first.cli_json(&["archive", "compact"]).await;
    assert_eq!(done["deleted"].as_array().map(Vec::len), Some(1), "{done}");
    first.lose_disk();
    check(&s3, "compactor.json");
    // Who only restores needs not write.
    let fresh = node("fresh").s3(&s3, "fleet").start().await;
    fresh.cli(&["restore", &s3.url("fleet")]).await.expect("restore");
    registry(&fresh).pull_image("team/app", "v1", &image).await;
    check(&s3, "reader.json");
    // Asking for what is frozen costs money: whoever may is given that beside.
    assert_eq!(Policy::read("thaw.json").objects, ["s3:RestoreObject".to_owned()].into());
    for name in ["writer.json", "reader.json", "thaw.json"] {
        let Policy { objects, bucket } = Policy::read(name);
        let all: Vec<_> = objects.iter().chain(&bucket).collect();
        assert!(all.iter().all(|action| !action.contains('*') && !action.contains("Delete")), "{name}: {all:?}");
    }
}
