//! Signing in, and what people read when they may not: with docker, podman, skopeo and buildah as they are.

use std::path::PathBuf;

use larder_harness::Node;

use crate::node;
use crate::tools::{Client, Engine, root_file_system, text, try_run_on};

/// What a person has to understand, in the client's words.
pub fn says(failed: Result<String, String>, words: &[&str]) {
    let said = failed.expect_err("it may not work").to_lowercase();
    println!("{said}");
    assert!(words.iter().any(|words| said.contains(&words.to_lowercase())), "none of {words:?} in {said}");
}

/// A node that asks who is there: alice may push below team and public, bob may read below team, anybody below public; one robot is good, and one
/// has expired.
pub struct Closed {
    pub node: Node,
    /// How clients call it.
    pub address: String,
    /// The host's own configuration: of a node with TLS, what `larder setup` wrote there.
    pub system: Option<PathBuf>,
    good: String,
    over: String,
}

impl Closed {
    pub async fn new(node: Node, address: String, system: Option<PathBuf>) -> Self {
        for (name, actions) in [("alice", "pull,push,overwrite,delete"), ("bob", "pull")] {
            node.add_user(name, "secret").await;
            node.allow(&format!("user:{name}"), "team/**", actions).await;
        }
        node.allow("anonymous", "public/*", "pull").await;
        node.allow("user:alice", "public/*", "pull,push").await;
        let robot = async |name: &str, expires: &str| {
            let made = node.cli_json(&["robot", "add", name, "--allow", "team/**:pull,push", "--expires", expires]).await;
            made["token"].as_str().expect("a token").to_owned()
        };
        let (good, over) = (robot("good", "1h").await, robot("over", "1s").await);
        larder_harness::wait_until("a robot has expired", std::time::Duration::from_secs(10), async || {
            node.cli(&["robot", "list"]).await.expect("list").contains("(over)").then_some(())
        })
        .await;
        Self { node, address, system, good, over }
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// What podman and those like it have to be told on the command line: nothing, where there is TLS and a configuration.
    fn flags(&self) -> &'static [&'static str] {
        if self.system.is_some() { &[] } else { &["--tls-verify=false"] }
    }
}

pub fn docker_is_told_what_it_may_not(closed: &Closed, engine: &Engine) {
    let login = |name: &str, password: &str| engine.try_docker(&["login", "--username", name, "--password", password, &closed.address]);
    let (_, tar) = root_file_system(closed.node.scratch(), "docker");
    let (name, public) = (closed.image("team/app:1"), closed.image("public/app:1"));
    engine.docker(&["import", text(&tar), &name]);
    engine.docker(&["tag", &name, &public]);
    let id = engine.id(&name);
    says(engine.try_docker(&["push", &name]), &["no basic auth credentials", "sign in first"]);
    says(login("alice", "wrong"), &["the name or the password is wrong"]);
    says(login("mallory", "secret"), &["the name or the password is wrong"]);
    says(login("robot+over", &closed.over), &["the token of robot+over has expired"]);
    assert!(login("bob", "secret").expect("bob is known").contains("Login Succeeded"));
    says(engine.try_docker(&["push", &name]), &["denied", "user:bob may not push in team/app"]);
    assert!(login("alice", "secret").expect("alice is known").contains("Login Succeeded"));
    engine.docker(&["push", &name]);
    engine.docker(&["push", &public]);
    engine.forget();
    login("robot+good", &closed.good).expect("the robot is known");
    engine.docker(&["pull", &name]);
    assert_eq!(engine.id(&name), id);
    engine.docker(&["push", &name]);
    engine.docker(&["logout", &closed.address]);
    engine.forget();
    says(engine.try_docker(&["pull", &name]), &["sign in first", "denied", "unauthorized", "authentication required"]);
    engine.docker(&["pull", &public]);
    assert_eq!(engine.id(&public), id, "anybody may pull it");
}

pub fn podman_skopeo_and_buildah_are_told_what_they_may_not(closed: &Closed) {
    let scratch = closed.node.scratch();
    let (root, tar) = root_file_system(scratch, "podman");
    let (name, public) = (closed.image("team/app:1"), closed.image("public/app:1"));
    let home = |name: &str| {
        let home = scratch.join(name);
        std::fs::create_dir_all(&home).expect("make a folder");
        home
    };
    let flags = closed.flags();
    let with = |words: &[&'static str], more: &[&str]| -> Vec<String> {
        words.iter().chain(flags).copied().chain(more.iter().copied()).map(str::to_owned).collect()
    };
    let homes = [home("podman-home"), home("buildah-home"), home("skopeo-home")];
    for (program, home) in ["podman", "buildah"].into_iter().zip(&homes) {
        let client = Client::new(program, home, "storage").on(closed.system.as_deref());
        let try_run = |words: Vec<String>| client.try_run(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let sign_in =
            |name: &str, password: &str| try_run(with(&["login"], &["--username", name, "--password", password, &closed.address]));
        if program == "podman" {
            client.run(&["import", text(&tar), "localhost/hello"]);
        } else {
            std::fs::write(root.join("Containerfile"), "FROM scratch\nCOPY . /\n").expect("write");
            client.run(&["build", "--isolation", "chroot", "--tag", "localhost/hello", text(&root)]);
        }
        let push = |name: &str| try_run(with(&["push"], &["localhost/hello", name]));
        let pull = |name: &str| try_run(with(&["pull", "--quiet"], &[name]));
        // Their own words: a HEAD has no others.
        says(push(&name), &["authentication required"]);
        says(sign_in("alice", "wrong"), &["invalid username/password", "the name or the password is wrong"]);
        says(sign_in("robot+over", &closed.over), &["invalid username/password", "has expired"]);
        assert!(sign_in("bob", "secret").expect("bob is known").contains("Login Succeeded"));
        says(push(&name), &["user:bob may not push in team/app", "denied"]);
        assert!(sign_in("alice", "secret").expect("alice is known").contains("Login Succeeded"));
        push(&name).expect("alice may push");
        push(&format!("{public}-{program}")).expect("there too");
        sign_in("robot+good", &closed.good).expect("the robot is known");
        push(&name).expect("the same image once more changes no tag");
        pull(&name).expect("the robot may read too");
        client.run(&["logout", &closed.address]);
        // What is there already would not be asked for.
        client.run(&["rmi", "--all", "--force"]);
        says(pull(&name), &["sign in first", "authentication required"]);
        pull(&format!("{public}-{program}")).expect("anybody may pull it");
    }
    let home = &homes[2];
    let skopeo = |words: &[&'static str], who: &[&str], image: &str| {
        let (words, image) = (with(words, who), format!("docker://{image}"));
        let arguments: Vec<_> = words.iter().map(String::as_str).chain([image.as_str()]).collect();
        try_run_on(closed.system.as_deref(), home, "skopeo", &arguments)
    };
    let inspect = |image: &str, who: &[&str]| skopeo(&["inspect", "--raw"], who, image);
    inspect(&format!("{public}-podman"), &[]).expect("anybody may");
    says(inspect(&name, &[]), &["sign in first", "authentication required"]);
    says(inspect(&name, &["--creds", "bob:wrong"]), &["invalid username/password", "the name or the password is wrong"]);
    says(inspect(&name, &["--creds", &format!("robot+over:{}", closed.over)]), &["invalid username/password", "has expired"]);
    inspect(&name, &["--creds", "bob:secret"]).expect("bob may");
    let delete = |who: &str| skopeo(&["delete"], &["--creds", &format!("{who}:secret")], &name);
    says(delete("bob"), &["user:bob may not delete", "denied", "unauthorized"]);
    delete("alice").expect("alice may");
}

async fn plain() -> Closed {
    let node = node("node").start().await;
    let address = node.address();
    Closed::new(node, address, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_signs_in_and_is_told_what_it_may_not() {
    docker_is_told_what_it_may_not(&plain().await, &Engine::start());
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_skopeo_and_buildah_sign_in_and_are_told_what_they_may_not() {
    podman_skopeo_and_buildah_are_told_what_they_may_not(&plain().await);
}
