//! Site policies: a node gets what it may have, and nothing else.

use larder_protocol::message::Read;

use super::*;

/// Pushes an image of one blob into a repository; the blob.
async fn push(site: &Site, repository: &str, tag: &str) -> Digest {
    let blob = format!("content of {repository}:{tag}").into_bytes();
    let (name, digest): (RepositoryName, _) = (repository.parse().expect("a name"), Digest::sha256(&blob));
    let tags = vec![tag.parse().expect("a tag")];
    site.store
        .run(move |store| {
            let mut upload = store.create_upload(&name, Algorithm::Sha256, "").expect("session");
            upload.append(&blob).expect("append");
            upload.finish(digest).expect("finish");
            let descriptor = serde_json::json!({"mediaType": "application/octet-stream", "digest": digest, "size": blob.len()});
            let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": IMAGE, "config": descriptor, "layers": []}).to_string();
            let digest = Digest::sha256(manifest.as_bytes());
            let push = ManifestPush { repository: name, tags, digest, media_type: IMAGE.to_owned(), bytes: manifest.into() };
            store.put_manifest(push).expect("manifest");
        })
        .await;
    digest
}

fn has_tag(site: &Site, repository: &str, tag: &str) -> bool {
    let name: RepositoryName = repository.parse().expect("a name");
    site.store.tag(&name, &tag.parse().expect("a tag")).expect("readable").is_some()
}

async fn reads(site: &Site, from: &Site, digest: Digest) -> bool {
    let link = site.peers.inner.links.get(&from.node()).expect("connected");
    let read = Request::Read(Read { digest, offset: 0, length: 1 });
    let answer = link.connection.ask(&read).await.map(|(answer, _)| answer);
    let holders = link.connection.ask(&Request::WhoHas(vec![digest])).await.map(|(answer, _)| answer);
    let is_read = matches!(answer, Ok(Answer::Read { .. }));
    assert_eq!(matches!(holders, Ok(Answer::Holders(held)) if held == [true]), is_read);
    is_read
}

#[tokio::test(flavor = "multi_thread")]
async fn s28_a_node_gets_only_what_its_site_may_have() {
    let (a, b, edge) = (Site::start("a", "x").await, Site::start("b", "x").await, Site::start("edge", "y").await);
    a.let_in(&b).await;
    let globs = |text: &str| Some(vec![text.parse().expect("a pattern")]);
    let token = a.peers.token(Duration::from_secs(60), RoleChange::READER).await.expect("token");
    // Known before it joins, so that nothing is told to it in between.
    a.peers.set_site(edge.node(), globs("shop/**")).await.expect("bounded");
    edge.peers.join(&token).await.expect("join");
    until("all are connected", || edge.sees(&a, "connected") && edge.sees(&b, "connected") && b.sees(&edge, "connected")).await;
    until("all know its policy", || site::of(&b.peers.inner, &edge.node()).expect("readable").is_some()).await;
    let (secret, shop) = (push(&a, "team/secret", "1").await, push(&b, "shop/app", "1").await);
    until("it has what it may have", || has_tag(&edge, "shop/app", "1")).await;
    until("the others have everything", || has_tag(&b, "team/secret", "1") && has_tag(&a, "shop/app", "1")).await;
    // What is written later is told later: so the secret was passed over.
    push(&a, "shop/app", "2").await;
    until("it has what came after", || has_tag(&edge, "shop/app", "2")).await;
    assert!(!has_tag(&edge, "team/secret", "1"));
    assert!(edge.store.repositories_linking(&secret, 10).expect("readable").is_empty());
    assert!(reads(&edge, &b, shop).await && !reads(&edge, &a, secret).await);
    assert!(reads(&b, &a, secret).await, "others may");
    assert!((0..64u8).all(|i| !a.peers.inner.placement().ranked(&Digest::sha256(&[i])).contains(&edge.node())), "it owns nothing");

    // A wider policy takes effect without a restart, for what was there before too.
    a.peers.set_site(edge.node(), globs("**")).await.expect("wider");
    until("it has the rest", || has_tag(&edge, "team/secret", "1")).await;
    assert!(reads(&edge, &a, secret).await);
    // A narrower one holds for what is new.
    a.peers.set_site(edge.node(), globs("none/*")).await.expect("narrower");
    assert!(!reads(&edge, &a, secret).await);
    push(&a, "shop/app", "3").await;
    a.peers.set_site(edge.node(), globs("other/*")).await.expect("another");
    let heard = || edge.store.record(&Key::Site(edge.node())).expect("readable");
    let now = a.store.record(&Key::Site(edge.node())).expect("readable");
    until("it has heard what was written after", || heard() == now).await;
    assert!(!has_tag(&edge, "shop/app", "3"));
    // And everything again.
    a.peers.set_site(edge.node(), None).await.expect("unbounded");
    until("it has everything", || has_tag(&edge, "shop/app", "3")).await;
}
