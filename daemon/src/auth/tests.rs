//! The whole room through its door, over a store in a temporary folder.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use larder_protocol::record::{Key, Member, Roles, Value};

use super::*;
use crate::store::{Commit, DataFolder, Options, SpaceLimits};

/// A node's auth, and its store.
struct Place {
    folder: tempfile::TempDir,
    store: Store,
    node: NodeId,
    key: Arc<Ed25519KeyPair>,
}

impl Place {
    fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random");
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key");
        let node = NodeId(key.public_key().as_ref().try_into().expect("32 bytes"));
        let folder = tempfile::tempdir().expect("temporary folder");
        let options = Options {
            node,
            durability: config::Durability::Relaxed,
            max_clock_drift: Duration::from_secs(300),
            uploads_max: 8,
            uploads_per_client_max: 8,
            sparse_manifests: false,
            blob_size_max: 1 << 20,
            renew_after: Duration::from_secs(3600),
            immutable_tags: vec![],
            space: SpaceLimits::default(),
        };
        let store = Store::open(DataFolder::open(&folder.path().join("data")).expect("folder"), options).expect("store");
        Self { folder, store, node, key: Arc::new(key) }
    }

    fn auth(&self, change: impl FnOnce(&mut Config)) -> Auth {
        let mut config = Config { data_dir: self.folder.path().join("data"), ..Config::default() };
        change(&mut config);
        let key = self.key.clone();
        let (sign, node): (Sign, _) = (Arc::new(move |bytes| key.sign(bytes).as_ref().try_into().expect("64 bytes")), self.node);
        Auth::open(&config, self.store.clone(), node, Arc::new(move || (node, sign.clone()))).expect("open")
    }

    fn open(&self) -> Auth {
        self.auth(|_| {})
    }

    fn write(&self, key: Key, value: Option<Value>) {
        self.store.commit(Commit { records: vec![(key, value)], ..Commit::default() }).expect("written");
    }
}

const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Who shows this, from this host.
async fn known(auth: &Auth, authorization: Option<&[u8]>) -> Result<Caller, Refused> {
    auth.identify(authorization, &Client::plain((LOCAL, 1).into())).await
}

fn quick(password: &str) -> String {
    bcrypt::hash(password, 4).expect("a hash")
}

fn basic(name: &str, password: &str) -> Vec<u8> {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"))).into_bytes()
}

fn bearer(token: &str) -> Vec<u8> {
    format!("Bearer {token}").into_bytes()
}

fn pull(repository: &str) -> Vec<Access> {
    scope::parse([format!("repository:{repository}:pull")].iter().map(String::as_str))
}

#[tokio::test]
async fn as_long_as_nobody_was_added_everybody_may_do_everything() {
    let place = Place::new();
    let auth = place.open();
    let caller = known(&auth, Some(b"Basic nonsense")).await.expect("nobody is asked");
    assert!(caller.may(Actions::DELETE, "a") && !caller.is_asked());
    auth.add_users(vec![("alice".to_owned(), quick("secret"))], None).expect("added");
    assert!(!known(&auth, None).await.expect("anonymous").may(Actions::PULL, "a"));
    auth.remove_user("alice").expect("removed");
    assert!(!known(&auth, None).await.expect("anonymous").may(Actions::PULL, "a"), "it stays closed");
}

#[tokio::test]
async fn s17_who_is_told_to_come_back_has_guessed_nothing() {
    let place = Place::new();
    let auth = place.open();
    // Dear enough for all that follows to happen while a few are checked.
    auth.add_users(vec![("alice".to_owned(), bcrypt::hash("secret", 12).expect("a hash"))], None).expect("added");
    // More at once than may wait, each about somebody else and from somewhere else: none of them is slowed by what others try.
    let others = (0..200_u32).map(|number| {
        let (auth, from) = (auth.clone(), IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number)));
        tokio::spawn(async move { auth.sign_in(&format!("user-{number}"), b"wrong", from).await.map(drop) })
    });
    let others: Vec<_> = others.collect();
    // The runtime has one thread and takes some of its tasks at a turn: until all have begun.
    for _ in 0..others.len() {
        tokio::task::yield_now().await;
    }
    for number in 0..100 {
        let told = auth.sign_in("alice", b"wrong", LOCAL).await.map(drop);
        assert!(matches!(told, Err(Refused::Busy)), "{number}: {told:?}");
    }
    for other in others {
        other.abort();
        let _ = other.await;
    }
    auth.sign_in("alice", b"secret", LOCAL).await.expect("she has not guessed once");
}

#[tokio::test]
async fn s16_what_is_taken_away_is_gone_with_the_next_request() {
    let place = Place::new();
    let auth = place.open();
    auth.add_users(vec![("alice".to_owned(), quick("secret"))], None).expect("added");
    auth.allow("user:alice", "team/*", "pull").expect("allowed");
    let shown = basic("alice", "secret");
    let caller = known(&auth, Some(&shown)).await.expect("known");
    assert!(caller.may(Actions::PULL, "team/a") && !caller.may(Actions::PUSH, "team/a") && !caller.may(Actions::PULL, "other"));
    let issued = auth.issue(&caller, pull("team/a"), true);
    let by_token = bearer(&issued.token);
    assert!(known(&auth, Some(&by_token)).await.expect("known").may(Actions::PULL, "team/a"));
    // A rule.
    auth.disallow("user:alice", "team/*").expect("taken away");
    assert!(!known(&auth, Some(&shown)).await.expect("known").may(Actions::PULL, "team/a"));
    assert!(!known(&auth, Some(&by_token)).await.expect("known").may(Actions::PULL, "team/a"));
    // A group.
    auth.allow("group:dev", "team/*", "pull").expect("allowed");
    auth.add_users(vec![("alice".to_owned(), quick("secret"))], Some(vec!["dev".to_owned()])).expect("changed");
    assert!(known(&auth, Some(&shown)).await.expect("known").may(Actions::PULL, "team/a"));
    // The password: tokens of the old one end.
    assert!(known(&auth, Some(&by_token)).await.is_err(), "the token was issued for an older password");
    assert!(auth.refresh(issued.refresh_token.as_deref().expect("asked for")).is_err());
    let caller = known(&auth, Some(&shown)).await.expect("known");
    let issued = auth.issue(&caller, pull("team/a"), true);
    // The user.
    auth.remove_user("alice").expect("removed");
    assert!(known(&auth, Some(&shown)).await.is_err());
    assert!(known(&auth, Some(&bearer(&issued.token))).await.is_err());
    assert!(auth.refresh(issued.refresh_token.as_deref().expect("asked for")).is_err());
}

#[tokio::test]
async fn s14_a_token_is_for_what_it_was_asked_for() {
    let place = Place::new();
    let auth = place.open();
    auth.add_users(vec![("alice".to_owned(), quick("secret"))], None).expect("added");
    auth.allow("user:alice", "**", "admin").expect("allowed");
    let caller = known(&auth, Some(&basic("alice", "secret"))).await.expect("known");
    let issued = auth.issue(&caller, pull("team/a"), true);
    let by_token = known(&auth, Some(&bearer(&issued.token))).await.expect("known");
    assert_eq!(by_token.permission(Actions::PULL, "team/a"), Permission::Allowed);
    assert_eq!(by_token.permission(Actions::PUSH, "team/a"), Permission::OtherToken);
    assert_eq!(by_token.permission(Actions::PULL, "team/b"), Permission::OtherToken);
    // A refresh token is none to be shown, and the other way round.
    let refresh = issued.refresh_token.expect("asked for");
    assert!(known(&auth, Some(&bearer(&refresh))).await.is_err());
    assert!(auth.refresh(&issued.token).is_err());
    assert!(auth.refresh(&refresh).expect("known").may(Actions::DELETE, "team/b"));
}

#[tokio::test]
async fn a_token_is_no_more_than_the_rules_give() {
    let place = Place::new();
    let auth = place.open();
    auth.add_users(vec![("alice".to_owned(), quick("secret"))], None).expect("added");
    auth.allow("user:alice", "team/a", "pull").expect("allowed");
    let caller = known(&auth, Some(&basic("alice", "secret"))).await.expect("known");
    let asked = scope::parse(["repository:team/a:pull,push,delete repository:team/b:* repository:team/a:*"].into_iter());
    let issued = auth.issue(&caller, asked, false);
    let given: Vec<_> = issued.access.iter().map(|access| access.actions.join(",")).collect();
    assert_eq!((given, issued.refresh_token), (vec!["pull".to_owned(), String::new(), "pull".to_owned()], None));
}

#[tokio::test]
async fn robots_sign_in_by_their_token_until_it_expires() {
    let place = Place::new();
    let auth = place.open();
    let grants = [("ci/**".to_owned(), "pull,push".to_owned())];
    let made = auth.add_robot("ci", &grants, Some(Duration::from_secs(3600))).expect("made");
    assert_eq!(made.login, "robot+ci");
    let caller = known(&auth, Some(&basic(&made.login, &made.token))).await.expect("known");
    assert!(caller.may(Actions::PUSH, "ci/a") && !caller.may(Actions::OVERWRITE, "ci/a") && !caller.may(Actions::PULL, "team/a"));
    let issued = auth.issue(&caller, pull("ci/a"), true);
    assert_eq!(issued.refresh_token, None, "it would outlive the robot");
    assert!(known(&auth, Some(&bearer(&issued.token))).await.expect("known").may(Actions::PULL, "ci/a"));
    for wrong in ["", "x", "lrt_"] {
        assert!(known(&auth, Some(&basic(&made.login, wrong))).await.is_err());
        assert!(known(&auth, Some(&basic("robot+other", wrong))).await.is_err());
    }
    // Its time is over: who has the token hears that, and nobody else.
    let short = auth.add_robot("ci", &grants, Some(Duration::from_millis(1))).expect("made");
    while auth.current().expect("read").robot_as("ci", now_ms()).is_some() {
        std::thread::yield_now();
    }
    let told = |refused: Result<Caller, Refused>| refused.expect_err("over").to_string();
    assert!(told(known(&auth, Some(&basic("robot+ci", &short.token))).await).contains("has expired"));
    assert!(!told(known(&auth, Some(&basic("robot+ci", &made.token))).await).contains("expired"));
    assert!(known(&auth, Some(&bearer(&issued.token))).await.is_err());
}

#[tokio::test]
async fn a_token_lasts_no_longer_than_its_robot() {
    let place = Place::new();
    let auth = place.open();
    let made = auth.add_robot("ci", &[], Some(Duration::from_secs(60))).expect("made");
    let caller = known(&auth, Some(&basic(&made.login, &made.token))).await.expect("known");
    assert!(auth.issue(&caller, vec![], false).expires_in <= Duration::from_secs(60));
}

#[tokio::test]
async fn tokens_of_members_that_write_count_and_of_others_do_not() {
    let (here, there) = (Place::new(), Place::new());
    here.store.adopt_cluster([7; 16]).expect("joined");
    there.store.adopt_cluster([7; 16]).expect("joined");
    let (auth, other) = (here.open(), there.open());
    // What replicates: the same user at the same time on both.
    auth.add_users(vec![("alice".to_owned(), quick("secret"))], None).expect("added");
    let records = here.store.exchange(&Default::default()).expect("an exchange").collect::<store::Result<Vec<_>>>().expect("records");
    there.store.apply(records, &here.store.vector()).expect("applied");
    let caller = other.sign_in("alice", b"secret", LOCAL).await.expect("known there");
    let token = bearer(&other.issue(&caller, pull("a"), false).token);
    assert!(known(&auth, Some(&token)).await.is_err(), "its issuer is no member");
    let member = Member { name: "b".to_owned(), zone: "z".to_owned(), addresses: vec![], bucket: None, version: "1".to_owned() };
    here.write(Key::Member(there.node), Some(Value::Member(member)));
    assert_eq!(known(&auth, Some(&token)).await.expect("known").who.name(), "user:alice");
    // S29: a reader's word counts on itself only; of who was expelled, nothing does.
    here.write(Key::Role(there.node), Some(Value::Role(Roles::default().with_writer(false))));
    assert!(known(&auth, Some(&token)).await.is_err());
    here.write(Key::Role(there.node), Some(Value::Role(Roles::default())));
    assert!(known(&auth, Some(&token)).await.is_ok());
    here.write(Key::Member(there.node), None);
    assert!(known(&auth, Some(&token)).await.is_err());
    assert!(known(&other, Some(&token)).await.is_ok());
}

#[tokio::test]
async fn a_password_file_counts_as_it_is_now() {
    let place = Place::new();
    let path: PathBuf = place.folder.path().join("htpasswd");
    std::fs::write(&path, format!("alice:{}\n", quick("one"))).expect("write");
    let auth = place.auth(|config| config.auth.htpasswd = Some(path.clone()));
    let knows = async |name: &str, password: &str| known(&auth, Some(&basic(name, password))).await.is_ok();
    assert!(knows("alice", "one").await && !knows("bob", "two").await);
    std::fs::write(&path, format!("alice:{}\nbob:{}\n", quick("changed"), quick("two"))).expect("write");
    assert!(!knows("alice", "one").await && knows("alice", "changed").await && knows("bob", "two").await);
    // Half written: as it was before.
    std::fs::write(&path, "alice:").expect("write");
    assert!(knows("alice", "changed").await);
    std::fs::remove_file(&path).expect("remove");
    assert!(!knows("alice", "changed").await && auth.is_closed().expect("read"));
    assert!(
        Auth::open(
            &Config { auth: config::Auth { htpasswd: Some(path), ..Default::default() }, ..Config::default() },
            place.store.clone(),
            place.node,
            Arc::new(|| (NodeId([0; 32]), Arc::new(|_: &[u8]| [0; 64])))
        )
        .is_err(),
        "a start without it is none"
    );
}

#[tokio::test]
async fn a_node_that_has_lost_its_index_stays_closed() {
    let place = Place::new();
    let auth = place.open();
    assert!(!auth.is_closed().expect("read"));
    auth.add_users(vec![("alice".to_owned(), quick("secret"))], None).expect("added");
    assert!(auth.is_closed().expect("read"));
    // Another store, in the same folder as far as this room can see.
    let other = Place::new();
    assert!(!other.open().is_closed().expect("read"));
    assert!(other.auth(|config| config.data_dir = place.folder.path().join("data")).is_closed().expect("read"));
}

#[test]
fn a_configuration_that_names_a_way_in_closes_the_door() {
    let place = Place::new();
    assert!(!place.open().is_closed().expect("read"));
    assert!(place.auth(|config| config.auth.required = true).is_closed().expect("read"));
    assert!(place.auth(|config| config.token_server.realm = Some("https://t".to_owned())).is_closed().expect("read"));
}

#[test]
fn explanations_name_the_rule_or_what_is_missing() {
    let place = Place::new();
    let auth = place.open();
    assert!(auth.explain("anonymous", "pull", "team/a").expect("explained").allowed, "nobody was added yet");
    auth.add_users(vec![("alice".to_owned(), quick("secret"))], None).expect("added");
    auth.allow("user:alice", "team/*", "pull").expect("allowed");
    let yes = auth.explain("alice", "pull", "team/a:latest").expect("explained");
    assert!(yes.allowed && yes.because == ["rule user:alice team/* pull"], "{yes:?}");
    let no = auth.explain("user:alice", "push", "team/a").expect("explained");
    assert!(!no.allowed && no.note.contains("larder policy allow user:alice team/a push"), "{no:?}");
    assert!(auth.explain("bob", "pull", "team/a").is_err());
    assert!(auth.explain("alice", "fly", "team/a").is_err() && auth.explain("alice", "pull", "Team").is_err());
    assert!(!auth.explain("claim:ci:repository=acme/app", "pull", "team/a").expect("explained").allowed);
}

#[test]
fn headers_are_read_as_clients_write_them() {
    let of = |name: &str, password: &str| Some(Shown::Basic { name: name.to_owned(), password: password.as_bytes().to_vec() });
    assert_eq!(parse(b"Basic YWxpY2U6c2VjcmV0"), of("alice", "secret"));
    assert_eq!(parse(b"basic  YWxpY2U6YTpi "), of("alice", "a:b"));
    assert_eq!(parse(b"Basic YTo="), of("a", ""));
    assert_eq!(parse(b"Basic YTo"), of("a", ""), "without padding");
    assert_eq!(parse(b"Bearer a.b.c"), Some(Shown::Bearer("a.b.c".to_owned())));
    for nonsense in [&b""[..], b"Basic", b"Basic ", b"Basic !!", b"Basic YWxpY2U=", b"Digest x", b"\xff\xfe", b"Basic \xff"] {
        assert_eq!(parse(nonsense), None, "{nonsense:?}");
    }
    assert_eq!(parse(&[b"Basic ".to_vec(), vec![b'A'; HEADER_LENGTH_MAX + 1]].concat()), None);
}

#[tokio::test]
async fn names_that_mean_something_else_are_nobodys() {
    let place = Place::new();
    let auth = place.open();
    for name in ["oidc", "<token>", "robot+x", "a b", "a:b", ""] {
        assert!(auth.add_users(vec![(name.to_owned(), quick("x"))], None).is_err(), "{name}");
    }
    assert!(auth.add_users(vec![("alice".to_owned(), "plain".to_owned())], None).is_err());
    assert!(auth.users().expect("read").is_empty());
}
