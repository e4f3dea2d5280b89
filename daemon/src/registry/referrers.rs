//! The listing of what is attached to a manifest, as an image index.
//!
//! A digest that nobody has heard of has no referrers, and neither has one in an unknown repository: a 404 would tell
//! clients that this registry can't list any. Pages are bounded in entries and bytes; a filter that finds little gives short pages.

use http::{HeaderValue, Response, header};
use larder_protocol::digest::Digest;
use larder_protocol::name::RepositoryName;
use serde_json::{Value, json};

use super::error::Error;
use super::query::encode;
use super::route::Page;
use super::{Body, Front, set};
use crate::store::{Referrer, ReferrersQuery};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Front {
    /// Lists what names `subject` as its subject. SPEC: end-12a, end-12b.
    pub(super) async fn list_referrers(
        &self,
        repository: RepositoryName,
        subject: Digest,
        artifact_type: Option<String>,
        page: Page<Digest>,
    ) -> Result<Response<Body>, Error> {
        let (name, limit) = (repository.clone(), page.limit);
        let query = ReferrersQuery { subject, artifact_type: artifact_type.clone(), after: page.after, limit };
        let found = self.store.run(move |store| store.referrers(&name, &query)).await?;
        let descriptors: Vec<_> = found.referrers.into_iter().map(descriptor).collect();
        let mut response = super::json(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors }));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(INDEX));
        let filter = artifact_type.map(|wanted| format!("&artifactType={}", encode(&wanted)));
        if filter.is_some() {
            set(&mut response, "oci-filters-applied", "artifactType");
        }
        if let Some(last) = found.next {
            let address = self.location(format_args!("{repository}/referrers/{subject}"));
            set(&mut response, header::LINK, format_args!("<{address}?n={limit}&last={last}{}>; rel=\"next\"", filter.unwrap_or_default()));
        }
        Ok(response)
    }
}

fn descriptor(referrer: Referrer) -> Value {
    let mut descriptor = json!({ "mediaType": referrer.media_type, "digest": referrer.digest, "size": referrer.size });
    if let Some(artifact_type) = referrer.artifact_type {
        descriptor["artifactType"] = artifact_type.into();
    }
    if !referrer.annotations.is_empty() {
        descriptor["annotations"] = referrer.annotations.into();
    }
    descriptor
}
