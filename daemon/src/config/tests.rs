//! The configuration through its door: layers, and what each mistake is answered with.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

fn variables(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    list.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

/// Loads a file with this text.
fn load(text: &str, flags: &Flags, environment: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("a temp folder");
    let path = folder.path().join("larder.toml");
    std::fs::write(&path, text).expect("write the file");
    let loaded = Config::load(Some(&path), flags, variables(environment));
    loaded.map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

/// A file with this text is refused in these words.
fn refused(text: &str, expected: &str) {
    let error = load(text, &Flags::default(), &[]).expect_err(text);
    assert!(!error.contains('\n'), "one line: {error}");
    assert!(error.contains(expected), "{text}\n  answered: {error}\n  expected: {expected}");
}

#[test]
fn nothing_configured_gives_the_documented_defaults() {
    let config = Config::load(None, &Flags::default(), []).expect("defaults work");
    assert_eq!(config.data_dir, Path::new("./larder-data"));
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:5000");
    assert_eq!(config.peers.listen.to_string(), "127.0.0.1:5000");
    assert_eq!(config.peers.advertise, ["127.0.0.1:5000"]);
    assert_eq!(config.archive.url, Some(ArchiveUrl::Directory(PathBuf::from("./larder-data/archive"))));
    assert!(!config.node.name.is_empty());
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
}

#[test]
fn flags_go_before_variables_and_these_before_the_file() {
    let text = "data_dir = '/a'\n[http]\nlisten = '127.0.0.1:1'\n[peers]\nlisten = '127.0.0.1:1'\n[archive]\nurl = 's3://aaa'\n";
    let environment = [
        ("LARDER_HTTP__LISTEN", "127.0.0.1:2"),
        ("LARDER_DATA_DIR", "/b"),
        ("LARDER_ARCHIVE__URL", "none"),
        ("LARDER_PEERS__LISTEN", "127.0.0.1:2"),
    ];
    let file = load(text, &Flags::default(), &[]).expect("the file alone");
    assert_eq!((file.data_dir.as_path(), file.http.listen.port(), file.peers.listen.port()), (Path::new("/a"), 1, 1));
    let over = load(text, &Flags::default(), &environment).expect("variables over the file");
    assert_eq!((over.data_dir.as_path(), over.http.listen.port(), over.peers.listen.port()), (Path::new("/b"), 2, 2));
    assert_eq!(over.archive.url, None);
    let flags = Flags {
        data_dir: Some(PathBuf::from("/c")),
        listen: Some("127.0.0.1:3".to_owned()),
        peer_listen: Some("127.0.0.1:3".to_owned()),
        archive: Some(String::new()),
    };
    let top = load(text, &flags, &environment).expect("flags over all");
    assert_eq!((top.data_dir.as_path(), top.http.listen.port(), top.peers.listen.port()), (Path::new("/c"), 3, 3));
    assert_eq!(top.archive.url, Some(ArchiveUrl::Directory(PathBuf::from("/c/archive"))));
    assert_eq!(top.peers.advertise, ["127.0.0.1:3"]);
}

#[test]
fn every_setting_can_stand_in_a_variable() {
    let environment = [
        ("LARDER_HTTP__INSECURE", "true"),
        ("LARDER_HTTP__LISTEN", "0.0.0.0:5000"),
        ("LARDER_HTTP__CONNECTIONS_MAX", "7"),
        ("LARDER_PEERS__ADVERTISE", "a:1, b:2"),
        ("LARDER_ARCHIVE__PACK_SIZE", "1GiB"),
        ("LARDER_ARCHIVE__MAX_DELAY", "1h30m"),
        ("LARDER_STORE__DURABILITY", "relaxed"),
        ("LARDER_LOG__FORMAT", "json"),
        // Not ours.
        ("LARDER_FAILPOINTS", "a=kill"),
        ("LARDER_SERVICE_HOST", "10.0.0.1"),
        ("PATH", "/bin"),
    ];
    let config = Config::load(None, &Flags::default(), variables(&environment)).expect("variables");
    assert!(config.http.insecure && config.http.connections_max == 7);
    assert_eq!(config.peers.advertise, ["a:1", "b:2"]);
    assert_eq!((config.archive.pack_size, config.archive.max_delay), (1 << 30, Duration::from_secs(5400)));
    assert_eq!((config.store.durability, config.log.format), (Durability::Relaxed, LogFormat::Json));
    for setting in settings::SETTINGS {
        let error = Config::load(None, &Flags::default(), variables(&[(&setting.variable(), "\u{1}")]));
        // The data folder may have any name.
        assert!(error.is_err() || setting.name == "data_dir", "{}", setting.name);
    }
}

#[test]
fn variables_that_are_no_settings_are_refused() {
    let check = |name: &str, value: &str, expected: &str| {
        let error = Config::load(None, &Flags::default(), variables(&[(name, value)])).expect_err(name).to_string();
        assert_eq!(error, expected);
    };
    check(
        "LARDER_HTTP__LISTN",
        "x",
        "environment variable LARDER_HTTP__LISTN: there is no such setting; did you mean LARDER_HTTP__LISTEN?",
    );
    check(
        "LARDER_HTTP_LISTEN",
        "x",
        "environment variable LARDER_HTTP_LISTEN: there is no such setting; did you mean LARDER_HTTP__LISTEN?",
    );
    check(
        "LARDER_AUTHENTICATION__REQUIRED",
        "x",
        "environment variable LARDER_AUTHENTICATION__REQUIRED: there is no such setting; take it out",
    );
    check(
        "LARDER_PEERS__REPLICAS",
        "10",
        "environment variable LARDER_PEERS__REPLICAS: peers.replicas = \"10\": this has to be from 1 to 9",
    );
}

#[test]
fn the_file_can_be_named_by_a_variable_and_must_be_there() {
    let folder = tempfile::tempdir().expect("a temp folder");
    let path = folder.path().join("x.toml");
    std::fs::write(&path, "[node]\nzone = 'west'\n").expect("write the file");
    let named = variables(&[("LARDER_CONFIG", path.to_str().expect("text"))]);
    assert_eq!(Config::load(None, &Flags::default(), named.clone()).expect("the named file").node.zone, "west");
    assert_eq!(data_dirs(None, None, &named).expect("its folder"), [PathBuf::from(DATA_DIR)]);
    let missing = Config::load(Some(Path::new("/no/such.toml")), &Flags::default(), named).expect_err("no such file").to_string();
    assert!(missing.starts_with("read the configuration /no/such.toml: No such file"), "{missing}");
}

/// FAULTS S43: unknown keys, port 0, huge numbers, plain HTTP that others can reach.
#[test]
fn s43_mistakes_are_named_with_file_line_key_and_mend() {
    refused("[http]\n\nlisen = '127.0.0.1:5000'\n", "larder.toml:3: there is no key http.lisen; did you mean listen?");
    refused("[htpt]\n", "larder.toml:1: there is no section [htpt]; did you mean [http]?");
    refused("[auht]\nrequired = true\n", "larder.toml:1: there is no section [auht]; did you mean [auth]?");
    refused("[auth]\nrequird = true\n", "larder.toml:2: there is no key auth.requird; did you mean required?");
    refused("[[auth]]\nrequired = true\n", "larder.toml:1: auth is a section");
    refused("listen = '127.0.0.1:5000'\n", "larder.toml:1: there is no key listen; did you mean listen in section [http]?");
    refused(
        "[http]\nlisten = '127.0.0.1:0'\n",
        "larder.toml:2: http.listen = \"127.0.0.1:0\": with port 0 nobody would know where to connect; choose a port",
    );
    refused("[peers]\nlisten = '127.0.0.1:0'\n", "larder.toml:2: peers.listen = \"127.0.0.1:0\": with port 0");
    refused("[http]\nlisten = '0.0.0.0:5000'\n", "larder.toml:2: http.listen = \"0.0.0.0:5000\": other hosts can reach this address");
    refused("[http]\nlisten = '10.0.0.7:5000'\n", "set http.insecure = true if that is wanted");
    refused("[push]\nack = 'peers'\n", "larder.toml:2: push.ack = \"peers\": this has to be \"local\", \"archived\", or \"peers:N\"");
    refused("[push]\nack = 'peers:0'\n", "from peers:1 to peers:9");
    refused("[push]\nack = 'archived'\n[archive]\nurl = 'none'\n", "larder.toml:2: push.ack = \"archived\": the archive is switched off");
    let config = load("[push]\nack = 'peers:2'\nack_timeout = '5s'\n", &Flags::default(), &[]).expect("a write concern");
    assert_eq!((config.push.ack, config.push.ack_timeout), (Ack::Peers(2), Duration::from_secs(5)));
    assert_eq!(load("[push]\nack = 'archived'\n", &Flags::default(), &[]).expect("with the default archive").push.ack, Ack::Archived);
    refused("[http]\nlisten = 'localhost:5000'\n", "this is no address with a port; write numbers, not a name");
    refused("[http]\nlisten = 5000\n", "larder.toml:2: http.listen = 5000: this has to be text in quotes");
    refused("[http]\nconnections_max = 0\n", "http.connections_max = 0: this has to be from 1 to 1000000");
    refused("[http]\nconnections_max = 99999999999999999999999999\n", "from 1 to 1000000");
    refused("[http]\nconnections_max = -1\n", "from 1 to 1000000");
    refused("[http]\nconnections_max = '7'\n", "this has to be a whole number, without quotes");
    refused("[http]\ninsecure = 'yes'\n", "http.insecure = \"yes\": this has to be true or false, without quotes");
    refused("[http]\nidle_timeout = '1 fortnight'\n", "http.idle_timeout = \"1 fortnight\": this is no time");
    refused("[http]\nidle_timeout = 60\n", "this is no time; write whole numbers with units");
    refused("[http]\nidle_timeout = '0s'\n", "this has to be from 100ms to 1d");
    refused("[http]\npublic_url = 'registry.example.org'\n", "this is no URL");
    refused("[http]\npublic_url = 'https://registry.example.org/\u{e9}'\n", "this is no URL");
    refused("[registry]\nmanifest_size_max = '17MiB'\n", "this has to be from 1.0 KiB to 16.0 MiB");
    refused("[registry]\nmanifest_size_max = '4 elephants'\n", "registry.manifest_size_max = \"4 elephants\": this is no size");
    refused("[registry]\nblob_size_max = '99999999999EiB'\n", "this has to be from");
    refused("[registry]\nblob_size_max = 1048576\n", "this is no size; write a number and a unit");
    refused("[archive]\npack_size = '5GiB'\n", "this has to be from 1.0 MiB to 4.0 GiB");
    refused("[archive]\npack_size = '1KiB'\n", "this has to be from 1.0 MiB to 4.0 GiB");
    refused("[peers]\nreplicas = 10\n", "peers.replicas = 10: this has to be from 1 to 9");
    refused("[peers]\nadvertise = ['build-07']\n", "other nodes need a host and a port");
    refused("[peers]\nadvertise = ['none', 'build-07:5000']\n", "other nodes need a host and a port");
    refused("[peers]\nlisten = '0.0.0.0:5000'\n", "say in peers.advertise what they can dial");
    refused(
        "[archive]\nread_url = 'http://cdn.example.org'\n",
        "larder.toml:2: archive.read_url = \"http://cdn.example.org\": whoever is on the way",
    );
    refused("[archive]\nread_url = 'cdn.example.org'\n", "larder.toml:2: archive.read_url = \"cdn.example.org\": this is no URL");
    let read = "[archive]\nread_url = 'https://cdn.example.org'\n";
    refused(&format!("{read}read_url_key_id = 'K 1'\n"), "larder.toml:3: archive.read_url_key_id = \"K 1\": a public key at CloudFront is");
    refused(&format!("{read}read_url_key_id = 'K1'\n"), "this is of no use without archive.read_url_key_file");
    refused(&format!("{read}read_url_key_file = '/k'\n"), "this is of no use without archive.read_url_key_id");
    refused(
        "[archive]\nread_url_key_id = 'K1'\nread_url_key_file = '/k'\n",
        "archive.read_url_key_id = \"K1\": this is of no use without archive.read_url",
    );
    let slip = "age1nz7hctqwcxsuwqfxq2x4czw7kkkvaghhlaskecarwylyw6988cysn53k77";
    refused(&format!("[archive]\nrecipients = ['{slip}']\n"), "larder.toml:2: archive.recipients = [\"age1nz");
    refused(&format!("[archive]\nrecipients = ['{slip}']\n"), "is none, or has a slip in it");
    refused("[archive]\nrecipients = ['']\n", "larder.toml:2: archive.recipients = [\"\"]: a recipient is what");
    refused("[archive]\nrecipients = 'age1'\n", "this has to be a list");
    // A secret that strayed there is not shown to everybody who reads the log.
    let secret = "[archive]\nrecipients = ['AGE-SECRET-KEY-16CT5YYX70A92YZWR8GCFGDMNNETS7AJLPF7974ZZYNFH52P2Q7GSWA57DS']\n";
    refused(secret, "archive.recipients = (not repeated here): this is an identity, which is secret");
    assert!(!load(secret, &Flags::default(), &[]).expect_err("refused").contains("16CT5"));
    refused("[archive]\nsse = 'kms'\n", "larder.toml:2: archive.sse = \"kms\": this has to be \"none\" or \"AES256\" or \"aws:kms\"");
    refused(
        "[archive]\nsse_kms_key = 'alias/packs'\n",
        "larder.toml:2: archive.sse_kms_key = \"alias/packs\": this is of no use without archive.sse = \"aws:kms\"",
    );
    refused(
        "[archive]\nsse = 'aws:kms'\nsse_kms_key = 'a b'\n",
        "larder.toml:3: archive.sse_kms_key = \"a b\": a key of the key service is named",
    );
    refused("[archive]\nurl = 'gs://bucket'\n", "archive.url = \"gs://bucket\": an archive is s3://bucket/prefix or file:///folder");
    refused("[archive]\nurl = 'file://relative'\n", "with three slashes");
    refused("[archive]\nendpoint = 'https://s3.example.org'\n", "no bucket is named");
    refused("[store]\ndurability = 'lax'\n", "this has to be \"strict\" or \"relaxed\"");
    refused("[log]\nlevel = 'loud'\n", "log.level = \"loud\": \"loud\" is no level");
    refused("data_dir = '~/larder'\n", "~ is understood by shells only");
    refused("data_dir = ''\n", "this can't be empty");
}

#[test]
fn what_is_no_toml_is_named_with_its_line() {
    refused("[http]\nlisten = \n", "larder.toml:2: ");
    refused("[http]\nlisten = '127.0.0.1:1'\nlisten = '127.0.0.1:2'\n", "larder.toml:3: duplicate key");
    refused("http = 5\n", "larder.toml:1: http is a section and takes no value; write [http]");
    refused("[http.listen]\nx = 1\n", "http.listen = {...}: this has to be text in quotes");
    refused("[[http]]\n", "larder.toml:1: http is a section");
    refused(&"#".repeat(1024 * 1024 + 1), "it has more than 1048576 bytes; is it the right file?");
}

#[test]
fn a_mistake_is_found_even_where_a_flag_overrules_it() {
    let flags = Flags { listen: Some("127.0.0.1:5000".to_owned()), ..Flags::default() };
    let error = load("[http]\nlisten = 'x'\n", &flags, &[]).expect_err("a wrong address in the file");
    assert!(error.starts_with("larder.toml:2: http.listen"), "{error}");
    let flags = Flags { listen: Some("0.0.0.0:5000".to_owned()), ..Flags::default() };
    let error = load("", &flags, &[]).expect_err("plain HTTP by a flag");
    assert!(error.starts_with("flag --listen: http.listen = \"0.0.0.0:5000\""), "{error}");
}

#[test]
fn credentials_in_a_url_are_refused_and_not_repeated() {
    let error = load("[archive]\nendpoint = 'https://key:hunter2@s3.example.org'\n", &Flags::default(), &[]).expect_err("credentials");
    assert!(error.contains("credentials don't belong in a URL") && !error.contains("hunter2"), "{error}");
}

#[test]
fn commands_look_where_they_are_told_or_where_daemons_usually_are() {
    let said = |flag: Option<&str>, environment: &[(&str, &str)]| {
        data_dirs(flag.map(Path::new), None, &variables(environment))
            .expect("folders")
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(said(Some("/a"), &[("LARDER_DATA_DIR", "/b")]), ["/a"]);
    assert_eq!(said(None, &[("LARDER_DATA_DIR", "/b")]), ["/b"]);
    assert_eq!(said(None, &[("LARDER_DATA_DIR", "")]), ["./larder-data", "/var/lib/larder"]);
}

fn packaged() -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/larder.toml");
    let text = std::fs::read_to_string(&path).expect("packaging/larder.toml stands beside the program's source");
    (path, text)
}

/// The packaged file says of its values that they are the defaults; only the service's data folder is not.
#[test]
fn the_packaged_file_parses_to_the_defaults() {
    let (path, _) = packaged();
    let config = Config::load(Some(&path), &Flags::default(), []).expect("the packaged file is right");
    assert_eq!(config.data_dir, Path::new(DATA_DIR_OF_SERVICE));
    let folder = config.data_dir.join(ARCHIVE_FOLDER);
    let expected = Config { data_dir: config.data_dir.clone(), ..Config::default() };
    let expected = Config { archive: Archive { url: Some(ArchiveUrl::Directory(folder)), ..expected.archive.clone() }, ..expected };
    assert_eq!(format!("{config:?}"), format!("{expected:?}"));
}

#[test]
fn the_packaged_file_explains_every_setting() {
    let (_, text) = packaged();
    let mut section = String::new();
    let mut explained = BTreeSet::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("#[[").and_then(|rest| rest.strip_suffix("]]")) {
            section = format!("{name}.");
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            explained.insert(format!("{section}{key}"));
        }
    }
    let rules = retention::KEYS.iter().map(|key| format!("retention.{key}"));
    let rules = rules.chain(auth::KEYS.iter().map(|key| format!("oidc.{key}")));
    let rules = rules.chain(class::KEYS.map(str::to_owned));
    let settings: BTreeSet<String> = settings::SETTINGS.iter().map(|setting| setting.name.to_owned()).chain(rules).collect();
    assert_eq!(explained, settings);
}

#[test]
fn rules_of_retention_are_read_and_their_mistakes_named() {
    let text = "[[retention]]\nrepositories = ['ci/**']\ntags = ['pr-*']\nkeep_last = 10\nkeep_for = '30d'\n\
                [[retention]]\nrepositories = ['**']\nuntagged = '7d'\n";
    let rules = load(text, &Flags::default(), &[]).expect("two rules").retention;
    assert_eq!((rules.len(), rules[0].keep_last, rules[0].keep_for), (2, Some(10), Some(30 * DAY)));
    assert!(rules[1].tags[0].matches("anything") && rules[1].untagged == Some(7 * DAY) && rules[1].keep_last.is_none());
    refused("[retention]\nkeep_last = 1\n", "larder.toml:1: retention is a list of rules; write [[retention]]");
    refused("[[retention]]\nkeep_last = 1\n", "larder.toml:1: a rule of retention needs repositories");
    refused("[[retention]]\nrepositories = ['a']\n", "what shall stay?");
    refused(
        "[[retention]]\nrepositories = ['a b']\nkeep_last = 1\n",
        "larder.toml:2: retention.repositories = [\"a b\"]: ' ' stands in no name",
    );
    refused("[[retention]]\nrepositories = ['a']\nkeep_fo = '1d'\n", "there is no key retention.keep_fo; did you mean keep_for?");
    refused("[[retention]]\nrepositories = ['a']\nkeep_last = -1\n", "this has to be from 0 to");
    refused("[registry]\nimmutable_tags = ['a:b:c']\n", "registry.immutable_tags");
}

#[test]
fn issuers_are_read_and_their_mistakes_named() {
    let text = "[[oidc]]\nname = 'ci'\nissuer = 'https://ci.example.org/'\naudience = 'a'\nalgorithms = ['ES256']\njwks = '/etc/keys'\n";
    let issuers = load(text, &Flags::default(), &[]).expect("an issuer").oidc;
    assert_eq!((issuers[0].name.as_str(), issuers[0].issuer.as_str()), ("ci", "https://ci.example.org/"), "kept as its tokens have it");
    refused("[oidc]\nname = 'ci'\n", "larder.toml:1: oidc is a list of issuers; write [[oidc]]");
    let with = |line: &str| format!("[[oidc]]\nname = 'ci'\nissuer = 'https://ci.example.org'\n{line}\n");
    refused(&with(""), "an issuer needs an audience");
    refused(&with("audience = 'a'\nalgorithms = ['none']"), "oidc.algorithms = [\"none\"]: this has to be");
    refused(&with("audience = 'a'\nalgorithms = ['HS256']"), "oidc.algorithms");
    refused(&with("audience = 'a'\nalgorithms = []"), "oidc.algorithms");
    refused(&with("audience = 'a'\nclient_secret_file = '/x'"), "needs a client_id");
    refused(&with("audiense = 'a'"), "there is no key oidc.audiense");
    refused("[[oidc]]\nname = 'ci'\nissuer = 'http://ci.example.org'\n", "whoever is on the way could change");
    let twice = format!("{}{}", with("audience = 'a'"), with("audience = 'b'"));
    refused(&twice, "two issuers have one name");
}

#[test]
fn s43_a_token_server_is_configured_whole_or_not_at_all() {
    let whole = "[token_server]\nrealm = 'https://t.example.org/token'\nservice = 'r'\nissuer = 't'\njwks = '/etc/keys.json'\n";
    let config = load(whole, &Flags::default(), &[]).expect("whole");
    assert_eq!(config.token_server.jwks, Some(KeySource::File(PathBuf::from("/etc/keys.json"))));
    for part in ["realm = 'https://t.example.org/token'", "service = 'r'", "issuer = 't'", "jwks = '/etc/keys.json'"] {
        refused(&whole.replace(&format!("{part}\n"), ""), "a token server needs all of realm, service, issuer and jwks");
    }
    refused("[token_server]\nrealm = 'http://t.example.org/token'\n", "whoever is on the way could change");
    refused("[token_server]\nalgorithms = ['HS256']\n", "token_server.algorithms");
}

#[test]
fn f36_storage_classes_are_known_or_explained() {
    let bucket = "[archive]\nurl = 's3://bucket'\n";
    let config =
        load(&format!("{bucket}storage_class = 'GLACIER_IR'\nbulk_class = 'DEEP_ARCHIVE'\n"), &Flags::default(), &[]).expect("two classes");
    assert!(config.archive.bulk_class.is_some_and(|class| class.is_frozen()) && config.archive.storage_class.name() == "GLACIER_IR");
    refused(
        &format!("{bucket}storage_class = 'COLDLINE'\n"),
        "larder.toml:3: archive.storage_class = \"COLDLINE\": this has to be one of STANDARD, STANDARD_IA",
    );
    assert!(load(&format!("{bucket}storage_class = 'instant:COLDLINE'\n"), &Flags::default(), &[]).is_ok());
    refused(&format!("{bucket}storage_class = 'GLACIER'\n"), "set archive.bulk_class to keep layers in this class");
    refused(&format!("{bucket}bulk_class = 'glacier'\n"), "archive.bulk_class = \"glacier\": this has to be one of");
    refused("[archive]\nurl = 'file:///x'\nbulk_class = 'GLACIER'\n", "a folder has no storage classes");
    refused("[archive]\nstorage_class = 'GLACIER_IR'\n", "archive.storage_class = \"GLACIER_IR\": a folder has no storage classes");
}

#[test]
fn f36_prices_of_classes_are_read_and_their_mistakes_named() {
    let whole = "[[class]]\nname = 'frozen:Cold'\nput_thousand = 1\nget_thousand = 2\nstorage_gb_month = 3\nretrieval_gb = 4\n";
    let thaw = "standard_time = '3h'\nstandard_thousand = 5\nstandard_gb = 6\n";
    let prices = load(&format!("{whole}{thaw}"), &Flags::default(), &[]).expect("a class").prices;
    let cold = prices.of("Cold");
    let tier = cold.thaw(Tier::Standard).expect("a tier");
    assert_eq!((cold.put_thousand, cold.retrieval_gb, tier.gb, tier.time), (1.0, 4.0, 6.0, Duration::from_secs(3 * 3600)));
    assert_eq!((cold.thaw(Tier::Bulk), prices.of("GLACIER").days_min), (None, 90), "those that are known stay");
    assert_eq!(prices.of("nobody's").put_thousand, prices.put_thousand);
    refused("[class]\nname = 'GLACIER'\n", "larder.toml:1: class is a list of storage classes; write [[class]]");
    refused("[[class]]\nname = 'GLACIER'\n", "class.put_thousand is missing");
    refused(&format!("{whole}standard_time = '3h'\n"), "needs standard_time, standard_thousand and standard_gb");
    refused(&format!("{whole}standard_tim = '3h'\n"), "there is no key class.standard_tim; did you mean class.standard_time?");
    refused(&whole.replace("= 4", "= 'x'"), "class.retrieval_gb = \"x\": this has to be a price");
    refused(&whole.replace("frozen:Cold", "Cold"), "class.name = \"Cold\": this has to be one of");
}
