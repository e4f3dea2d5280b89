//! Rights at the endpoints, and that nothing leaks around them.

use larder_harness::{Body, Image, Registry, sha256};

use super::{closed, node, registry, told};

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_node_is_open_and_the_first_user_closes_it() {
    let node = node("node").start().await;
    let (anyone, image) = (registry(&node), Image::from_seed(1, &[1000]));
    anyone.push_image("team/app", "1", &image).await;
    anyone.get("/v2/").await.expect(200, "nobody is asked");
    node.add_user("alice", "secret").await;
    anyone.get("/v2/").await.expect_error(401, "UNAUTHORIZED", "now everybody is asked");
    anyone.get("/v2/team/app/manifests/1").await.expect_error(401, "UNAUTHORIZED", "and nobody may");
    let alice = anyone.signed_in("alice", "secret");
    alice.get("/v2/").await.expect(200, "alice is known");
    let refused = alice.get("/v2/team/app/manifests/1").await.expect_error(403, "DENIED", "but may nothing");
    assert!(told(&refused).contains("user:alice may not pull in team/app"), "{}", told(&refused));
    node.allow("user:alice", "team/*", "pull").await;
    alice.pull_image("team/app", "1", &image).await;
    node.cli(&["user", "remove", "alice"]).await.expect("removed");
    alice.get("/v2/").await.expect_error(401, "UNAUTHORIZED", "removed");
    anyone.get("/v2/team/app/manifests/1").await.expect_error(401, "UNAUTHORIZED", "it stays closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_every_endpoint_asks_who_and_whether() {
    let node = closed().await;
    let anyone = registry(&node);
    let (alice, bob) = (anyone.signed_in("alice", "secret"), anyone.signed_in("bob", "secret2"));
    let image = Image::from_seed(2, &[1000]);
    alice.push_image("team/app", "1", &image).await;
    bob.pull_image("team/app", "1", &image).await;
    let blob = image.layers[0].digest();
    let session = alice.open_upload("team/app").await;
    let reading = [
        ("GET", "/v2/team/app/manifests/1".to_owned()),
        ("HEAD", "/v2/team/app/manifests/1".to_owned()),
        ("GET", format!("/v2/team/app/manifests/{}", image.digest())),
        ("GET", format!("/v2/team/app/blobs/{blob}")),
        ("HEAD", format!("/v2/team/app/blobs/{blob}")),
        ("GET", "/v2/team/app/tags/list".to_owned()),
        ("GET", format!("/v2/team/app/referrers/{}", image.digest())),
    ];
    let writing = [
        ("PUT", "/v2/team/app/manifests/2".to_owned()),
        ("POST", "/v2/team/app/blobs/uploads/".to_owned()),
        ("POST", format!("/v2/team/app/blobs/uploads/?digest={blob}")),
        ("POST", format!("/v2/team/app/blobs/uploads/?mount={blob}&from=team/app")),
        ("PATCH", session.clone()),
        ("PUT", format!("{session}?digest={blob}")),
        ("GET", session.clone()),
        ("DELETE", session.clone()),
        ("DELETE", "/v2/team/app/manifests/1".to_owned()),
        ("DELETE", format!("/v2/team/app/manifests/{}", image.digest())),
        ("DELETE", format!("/v2/team/app/blobs/{blob}")),
    ];
    let wrong = anyone.signed_in("alice", "wrong");
    let nobody = anyone.signed_in("mallory", "secret");
    for (index, (method, path)) in reading.iter().chain(&writing).enumerate() {
        // Wrong passwords only now and then: many would be slowed, and answered so.
        let strangers = if index % 6 == 0 { vec![&anyone, &wrong, &nobody] } else { vec![&anyone] };
        for stranger in strangers {
            let answer = stranger.request(method, path, &[], Body::empty()).await;
            assert_eq!(answer.status, 401, "{method} {path}");
            assert!(answer.header("www-authenticate").starts_with("Bearer realm="), "{method} {path}");
        }
    }
    for (method, path) in &reading {
        assert_eq!(bob.request(method, path, &[], Body::empty()).await.status, 200, "{method} {path}");
    }
    for (method, path) in &writing {
        assert_eq!(bob.request(method, path, &[], Body::empty()).await.status, 403, "{method} {path}");
    }
    // Nothing of it was done.
    alice.pull_image("team/app", "1", &image).await;
    alice.get(&session).await.expect(204, "the session stands");
}

#[tokio::test(flavor = "multi_thread")]
async fn s9_a_mount_from_what_may_not_be_read_is_an_ordinary_upload() {
    let node = closed().await;
    node.add_user("carol", "secret3").await;
    node.allow("user:carol", "other/*", "pull,push").await;
    let anyone = registry(&node);
    let (alice, carol) = (anyone.signed_in("alice", "secret"), anyone.signed_in("carol", "secret3"));
    let secret = bytes::Bytes::from_static(b"what only the team may read");
    let digest = alice.push_bytes("team/app", &secret).await;
    let absent = sha256(b"nobody has this");
    for from in ["&from=team/app", "&from=team/none", ""] {
        for digest in [&digest, &absent] {
            let path = format!("/v2/other/x/blobs/uploads/?mount={digest}{from}");
            let answer = carol.request("POST", &path, &[], Body::empty()).await.expect(202, "an upload like any other");
            assert_eq!(answer.header("range"), "0-0");
        }
    }
    carol.head(&format!("/v2/other/x/blobs/{digest}")).await.expect(404, "it was not mounted");
    // Who may read both may mount.
    node.allow("user:carol", "team/app", "pull").await;
    let path = format!("/v2/other/x/blobs/uploads/?mount={digest}&from=team/app");
    carol.request("POST", &path, &[], Body::empty()).await.expect(201, "mounted");
    // With a token, as far as the token goes: it is for other/x only.
    let token = carol.token("repository:other/x:pull,push").await.expect(200, "a token").json();
    let by_token = anyone.with_token(token["token"].as_str().expect("a token"));
    let other = alice.push_bytes("team/app", &bytes::Bytes::from_static(b"another")).await;
    let path = format!("/v2/other/x/blobs/uploads/?mount={other}&from=team/app");
    by_token.request("POST", &path, &[], Body::empty()).await.expect(202, "the token is not for team/app");
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_a_blob_is_read_through_a_repository_that_links_it_and_may_be_read() {
    let node = closed().await;
    node.allow("user:bob", "open/*", "pull").await;
    node.cli(&["policy", "remove", "user:bob", "team/**"]).await.expect("taken away");
    let anyone = registry(&node);
    let (alice, bob) = (anyone.signed_in("alice", "secret"), anyone.signed_in("bob", "secret2"));
    let digest = alice.push_bytes("team/app", &bytes::Bytes::from_static(b"secret layer")).await;
    bob.get(&format!("/v2/open/x/blobs/{digest}")).await.expect_error(404, "BLOB_UNKNOWN", "not linked there");
    bob.get(&format!("/v2/team/app/blobs/{digest}")).await.expect_error(403, "DENIED", "may not be read there");
    // The same for what is there and what is not.
    let there = bob.get(&format!("/v2/team/app/blobs/{digest}")).await;
    let absent = bob.get(&format!("/v2/team/app/blobs/{}", sha256(b"absent"))).await;
    let nowhere = bob.get(&format!("/v2/team/none/blobs/{digest}")).await;
    assert_eq!((there.status, told(&there)), (absent.status, told(&absent)));
    assert_eq!((nowhere.status, told(&nowhere).replace("none", "app")), (there.status, told(&there)));
}

#[tokio::test(flavor = "multi_thread")]
async fn s11_the_catalog_lists_what_may_be_read() {
    let node = closed().await;
    node.allow("user:alice", "**", "admin").await;
    let anyone = registry(&node);
    let (alice, bob) = (anyone.signed_in("alice", "secret"), anyone.signed_in("bob", "secret2"));
    let image = Image::from_seed(3, &[100]);
    for name in ["aaa/x", "team/a", "team/b", "team/c", "zzz/y"] {
        alice.push_image(name, "1", &image).await;
    }
    let list = async |registry: &Registry, path: &str| {
        let answer = registry.get(path).await.expect(200, "the catalog");
        let names = answer.json()["repositories"].as_array().expect("a list").clone();
        let names: Vec<_> = names.iter().map(|name| name.as_str().expect("a name").to_owned()).collect();
        (names, answer.header("link").to_owned())
    };
    assert_eq!(list(&alice, "/v2/_catalog").await.0, ["aaa/x", "team/a", "team/b", "team/c", "zzz/y"]);
    assert_eq!(list(&bob, "/v2/_catalog").await, (vec!["team/a".to_owned(), "team/b".to_owned(), "team/c".to_owned()], String::new()));
    let (page, next) = list(&bob, "/v2/_catalog?n=2").await;
    assert_eq!(page, ["team/a", "team/b"]);
    assert!(next.contains("last=team/b"), "{next}");
    assert_eq!(list(&bob, "/v2/_catalog?n=2&last=team/b").await.0, ["team/c"]);
    assert_eq!(list(&bob, "/v2/_catalog?n=0").await, (vec![], String::new()));
    anyone.get("/v2/_catalog").await.expect_error(401, "UNAUTHORIZED", "nobody may anything");
    node.allow("anonymous", "zzz/*", "pull").await;
    assert_eq!(list(&anyone, "/v2/_catalog").await.0, ["zzz/y"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn s15_who_may_only_create_does_not_overwrite_a_tag() {
    let node = closed().await;
    node.allow("user:alice", "team/**", "pull,push").await;
    let alice = registry(&node).signed_in("alice", "secret");
    let (one, other) = (Image::from_seed(4, &[100]), Image::from_seed(5, &[100]));
    alice.push_image("team/app", "latest", &one).await;
    alice.push_image("team/app", "latest", &one).await;
    alice.try_push_blobs("team/app", &other).await.expect("the blobs");
    let push = async |tag: &str| alice.put_manifest("team/app", tag, other.media_type(), other.manifest.clone()).await;
    let refused = push("latest").await.expect_error(403, "DENIED", "another image under the same tag");
    assert!(told(&refused).contains("right to overwrite"), "{}", told(&refused));
    push("new").await.expect(201, "a new tag");
    push(&other.digest()).await.expect(201, "by digest");
    // By digest with tags in the query: the same.
    let path = format!("/v2/team/app/manifests/{}?tag=latest", other.digest());
    let sent = alice.request("PUT", &path, &[("content-type", other.media_type())], other.manifest.clone()).await;
    sent.expect_error(403, "DENIED", "the tag in the query");
    alice.request("DELETE", "/v2/team/app/manifests/latest", &[], Body::empty()).await.expect(403, "nor delete it");
    alice.pull_image("team/app", "latest", &one).await;
    node.allow("user:alice", "team/**", "pull,push,overwrite").await;
    push("latest").await.expect(201, "now it may");
    let explained = node.cli(&["policy", "explain", "alice", "delete", "team/app:latest"]).await.expect("explained");
    assert!(explained.starts_with("user:alice may not delete team/app:latest"), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s20_a_session_is_of_who_began_it() {
    let node = closed().await;
    node.allow("user:bob", "team/**", "pull,push").await;
    let anyone = registry(&node);
    let (alice, bob) = (anyone.signed_in("alice", "secret"), anyone.signed_in("bob", "secret2"));
    let session = alice.open_upload("team/app").await;
    for (method, path) in [("GET", session.clone()), ("PATCH", session.clone()), ("DELETE", session.clone())] {
        bob.request(method, &path, &[], Body::empty()).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN", "it is another's");
    }
    bob.try_finish_upload(&session, &sha256(b"")).await.expect_err("it is another's");
    alice.try_finish_upload(&session, &sha256(b"")).await.expect("her own");
}

#[tokio::test(flavor = "multi_thread")]
async fn s43_a_misspelt_section_does_not_start_a_registry() {
    let mut node = node("node").create();
    let file = node.scratch().join("larder.toml");
    for (text, expected) in [
        ("[auht]\nrequired = true\n", "did you mean [auth]?"),
        ("[auth]\nrequire = true\n", "did you mean required?"),
        ("[auth]\nhtpasswd = '/does/not/exist'\n", "read /does/not/exist"),
    ] {
        std::fs::write(&file, text).expect("write");
        node.set_env("LARDER_CONFIG", file.to_str());
        node.spawn();
        assert!(!node.ended(std::time::Duration::from_secs(30)).await.success(), "{text}");
        assert!(node.log().contains(expected), "{text}: {}", node.log_tail());
    }
    node.expect_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_file_is_taken_as_it_is() {
    let mut node = node("node").create();
    let file = node.scratch().join("htpasswd");
    // As htpasswd -B writes it.
    std::fs::write(&file, "alice:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n").expect("write");
    node.set_env("LARDER_AUTH__HTPASSWD", file.to_str());
    node.start().await;
    registry(&node).get("/v2/").await.expect(401, "closed");
    registry(&node).signed_in("alice", "no").get("/v2/").await.expect(401, "wrong");
    registry(&node).signed_in("alice", "myPassword").get("/v2/").await.expect(200, "right");
    let users = node.cli(&["user", "list"]).await.expect("list");
    assert!(users.contains("this node's password file"), "{users}");
    node.cli(&["user", "import", file.to_str().expect("UTF-8"), "--group", "dev"]).await.expect("import");
    let users = node.cli_json(&["user", "list"]).await;
    assert_eq!(users[0]["groups"][0], "dev");
    assert_eq!(users[0]["here_only"], false);
}
