//! Signing in, and what people read when they may not: with docker, podman, skopeo and buildah as they are.

use larder_harness::{Image, Node, Registry};

use crate::node;
use crate::tools::{Client, Engine, root_file_system, text, try_run};

/// What a person has to understand, in the client's words.
fn says(failed: Result<String, String>, words: &[&str]) {
    let said = failed.expect_err("it may not work").to_lowercase();
    println!("{said}");
    assert!(words.iter().any(|words| said.contains(&words.to_lowercase())), "none of {words:?} in {said}");
}

/// A node with alice, who may push below team, bob, who may read there, and a public image; and robots, one of which has expired.
async fn closed() -> (Node, String, String) {
    let node = node("node").start().await;
    for (name, actions) in [("alice", "pull,push,overwrite,delete"), ("bob", "pull")] {
        node.add_user(name, "secret").await;
        node.allow(&format!("user:{name}"), "team/**", actions).await;
    }
    node.allow("anonymous", "public/*", "pull").await;
    node.allow("user:alice", "public/*", "pull,push").await;
    let alice = Registry::new(node.url()).signed_in("alice", "secret");
    alice.push_image("public/app", "1", &Image::from_seed(1, &[1000])).await;
    let robot = async |name: &str, expires: &str| {
        let made = node.cli_json(&["robot", "add", name, "--allow", "team/**:pull,push", "--expires", expires]).await;
        made["token"].as_str().expect("a token").to_owned()
    };
    let (good, over) = (robot("good", "1h").await, robot("over", "1s").await);
    larder_harness::wait_until("a robot has expired", std::time::Duration::from_secs(10), async || {
        node.cli(&["robot", "list"]).await.expect("list").contains("(over)").then_some(())
    })
    .await;
    (node, good, over)
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_signs_in_and_is_told_what_it_may_not() {
    let (node, good, over) = closed().await;
    let engine = Engine::start();
    let address = node.address();
    let login = |name: &str, password: &str| engine.try_docker(&["login", "--username", name, "--password", password, &address]);
    let (_, tar) = root_file_system(node.scratch(), "docker");
    let (name, public) = (format!("{address}/team/app:1"), format!("{address}/public/app:1"));
    engine.docker(&["import", text(&tar), &name]);
    let id = engine.id(&name);
    says(engine.try_docker(&["push", &name]), &["no basic auth credentials", "sign in first"]);
    says(login("alice", "wrong"), &["the name or the password is wrong"]);
    says(login("mallory", "secret"), &["the name or the password is wrong"]);
    says(login("robot+over", &over), &["the token of robot+over has expired"]);
    assert!(login("bob", "secret").expect("bob is known").contains("Login Succeeded"));
    says(engine.try_docker(&["push", &name]), &["denied", "user:bob may not push in team/app"]);
    assert!(login("alice", "secret").expect("alice is known").contains("Login Succeeded"));
    engine.docker(&["push", &name]);
    engine.forget();
    login("robot+good", &good).expect("the robot is known");
    engine.docker(&["pull", &name]);
    assert_eq!(engine.id(&name), id);
    engine.docker(&["push", &name]);
    engine.docker(&["logout", &address]);
    // Manifests of this image are no real ones for docker to unpack, but it gets as far as the layers.
    says(
        engine.try_docker(&["pull", &format!("{address}/team/app:2")]),
        &["sign in first", "denied", "unauthorized", "authentication required"],
    );
    let pulled = engine.try_docker(&["pull", &public]);
    assert!(pulled.as_ref().err().is_none_or(|said| !said.contains("denied") && !said.contains("unauthorized")), "{pulled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_skopeo_and_buildah_sign_in_and_are_told_what_they_may_not() {
    let (node, good, over) = closed().await;
    let address = node.address();
    let (root, tar) = root_file_system(node.scratch(), "podman");
    let name = format!("{address}/team/app:1");
    let home = |name: &str| {
        let home = node.scratch().join(name);
        std::fs::create_dir_all(&home).expect("make a folder");
        home
    };
    let login = ["login", "--tls-verify=false"];
    let homes = [home("podman-home"), home("buildah-home"), home("skopeo-home")];
    for (program, home) in ["podman", "buildah"].into_iter().zip(&homes) {
        let client = Client::new(program, home, "storage");
        let sign_in =
            |name: &str, password: &str| client.try_run(&[login[0], login[1], "--username", name, "--password", password, &address]);
        if program == "podman" {
            client.run(&["import", text(&tar), "localhost/hello"]);
        } else {
            std::fs::write(root.join("Containerfile"), "FROM scratch\nCOPY . /\n").expect("write");
            client.run(&["build", "--isolation", "chroot", "--tag", "localhost/hello", text(&root)]);
        }
        let push = || client.try_run(&["push", "--tls-verify=false", "localhost/hello", &name]);
        // Their own words: a HEAD has no others.
        says(push(), &["authentication required"]);
        says(sign_in("alice", "wrong"), &["invalid username/password", "the name or the password is wrong"]);
        says(sign_in("robot+over", &over), &["invalid username/password", "has expired"]);
        assert!(sign_in("bob", "secret").expect("bob is known").contains("Login Succeeded"));
        says(push(), &["user:bob may not push in team/app", "denied"]);
        assert!(sign_in("alice", "secret").expect("alice is known").contains("Login Succeeded"));
        push().expect("alice may push");
        sign_in("robot+good", &good).expect("the robot is known");
        push().expect("the same image once more changes no tag");
        client.pull(&name);
        client.run(&["logout", &address]);
        // What is there already would not be asked for.
        client.run(&["rmi", "--all", "--force"]);
        says(client.try_run(&["pull", "--tls-verify=false", &name]), &["sign in first", "authentication required"]);
    }
    let home = &homes[2];
    let inspect = |name: &str, more: &[&str]| {
        let name = format!("docker://{address}/{name}");
        try_run(home, "skopeo", &[&["inspect", "--raw", "--tls-verify=false"], more, &[&name]].concat())
    };
    inspect("public/app:1", &[]).expect("anybody may");
    says(inspect("team/app:1", &[]), &["sign in first", "authentication required"]);
    says(inspect("team/app:1", &["--creds", "bob:wrong"]), &["invalid username/password", "the name or the password is wrong"]);
    says(inspect("team/app:1", &["--creds", &format!("robot+over:{over}")]), &["invalid username/password", "has expired"]);
    inspect("team/app:1", &["--creds", "bob:secret"]).expect("bob may");
    let delete = |who: &str| {
        try_run(home, "skopeo", &["delete", "--tls-verify=false", "--creds", &format!("{who}:secret"), &format!("docker://{name}")])
    };
    says(delete("bob"), &["user:bob may not delete", "denied", "unauthorized"]);
    delete("alice").expect("alice may");
}
