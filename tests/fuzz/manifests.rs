//! Manifests: what is taken names what it says, and nothing takes long, however deep or wide it is.

use larder::store::ManifestView;
use larder_harness::{Random, fuzz};
use larder_protocol::digest::Digest;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TYPES: [&str; 6] = [
    IMAGE,
    INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.example+json",
    "",
];
/// The limits of S6.
const DEPTH_MAX: usize = 32;
const DESCRIPTORS_MAX: usize = 10_000;
/// The largest manifest that the registry takes unless it is told otherwise.
const SIZE: usize = 4 << 20;
/// A parser that goes over its input a few times needs a tenth of this.
const TIME_MAX: Duration = Duration::from_secs(3);

/// What a manifest names, read in another way than the program's.
fn expected(body: &Value) -> Option<Vec<Digest>> {
    let mut named = Vec::new();
    let lists = ["layers", "blobs", "manifests"].iter().filter_map(|field| body.get(field)?.as_array()).flatten();
    for descriptor in body.get("config").filter(|config| !config.is_null()).into_iter().chain(lists) {
        let foreign = |descriptor: &Value| {
            let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
            let urls = descriptor["urls"].as_array().is_some_and(|urls| !urls.is_empty());
            urls || media_type.contains("nondistributable") || media_type.contains(".foreign.")
        };
        let digest = descriptor["digest"].as_str()?.parse().ok()?;
        descriptor["size"].as_i64().filter(|size| *size >= 0)?;
        if !foreign(descriptor) {
            named.push(digest);
        }
    }
    if let Some(subject) = body.get("subject").filter(|subject| !subject.is_null()) {
        named.push(subject["digest"].as_str()?.parse().ok()?);
    }
    Some(named)
}

fn depth(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(depth).max().unwrap_or(0),
        Value::Object(object) => object.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn check(media_type: &str, bytes: &[u8]) -> bool {
    let Ok(view) = ManifestView::parse(media_type, bytes) else { return false };
    let body: Value = serde_json::from_slice(bytes).expect("what is taken is JSON");
    assert!(body.is_object(), "what is taken is an object");
    assert!(depth(&body) <= DEPTH_MAX, "what is taken is flat enough: {}", depth(&body));
    let mut named: Vec<_> = view.names().copied().collect();
    let mut wanted = expected(&body).expect("what is taken has good descriptors");
    assert!(named.len() <= DESCRIPTORS_MAX + 1, "what is taken is short enough");
    named.sort();
    wanted.sort();
    assert_eq!(named, wanted, "what it names");
    if let Some(own) = body.get("mediaType").and_then(Value::as_str) {
        assert_eq!(own, media_type.split(';').next().unwrap_or_default().trim(), "it is what it was pushed as");
    }
    assert!(
        body.get("manifests").is_none_or(|list| list.is_null()) || body.get("layers").is_none_or(|list| list.is_null()),
        "one thing and not two"
    );
    true
}

/// A manifest that may be a good one: each part is there, is missing, or is something else.
fn made(random: &mut Random) -> (&'static str, String) {
    let media_type = TYPES[random.below(6) as usize];
    let mut body = json!({"schemaVersion": 2});
    for field in ["mediaType", "config", "layers", "blobs", "manifests", "subject", "annotations"] {
        let list = |random: &mut Random| Value::from((0..random.below(4)).map(|_| descriptor(random)).collect::<Vec<_>>());
        // What an image and an index have is mostly there, the rest is seldom.
        let usual = match field {
            "config" | "layers" => media_type != TYPES[1] && media_type != TYPES[3],
            "manifests" => media_type == TYPES[1] || media_type == TYPES[3],
            _ => random.below(3) == 0,
        };
        if usual == (random.below(12) == 0) {
            continue;
        }
        body[field] = match (field, random.below(30)) {
            (_, 0) => odd(random),
            ("mediaType", _) => media_type.into(),
            ("config" | "subject", _) => descriptor(random),
            ("annotations", _) => json!({"a": "b", "c": odd(random)}),
            _ => list(random),
        };
    }
    (media_type, body.to_string())
}

fn descriptor(random: &mut Random) -> Value {
    let mut bytes = [0; 8];
    random.fill(&mut bytes);
    let mut made =
        json!({"mediaType": "application/octet-stream", "digest": Digest::sha256(&bytes).to_string(), "size": random.below(1 << 40)});
    match random.below(24) {
        0 => made["urls"] = json!(["https://example.org/x"]),
        1 => made["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar".into(),
        2 => made["digest"] = odd(random),
        3 => made["size"] = odd(random),
        4 => made["mediaType"] = odd(random),
        5 => made["data"] = "aGVsbG8=".into(),
        6 => made["platform"] = json!({"os": "linux", "deep": odd(random)}),
        7 => drop(made.as_object_mut().map(|fields| fields.remove("size"))),
        _ => {}
    }
    made
}

fn odd(random: &mut Random) -> Value {
    match random.below(10) {
        0 => Value::Null,
        1 => (-1).into(),
        2 => u64::MAX.into(),
        3 => 1.5.into(),
        4 => true.into(),
        5 => "".into(),
        6 => "\u{0}\u{fffd}\"\\".into(),
        7 => json!({}),
        8 => (0..random.below(40)).fold(json!([]), |inner, _| json!([inner])),
        _ => json!([[], {}, null]),
    }
}

#[test]
fn s6_s7_manifests_name_what_they_say_or_are_refused() {
    // Half of the inputs are made of parts, half of them are bytes that were mutated.
    let mut random = Random::new(2);
    let corpus: Vec<String> = (0..300).map(|_| made(&mut random).1).collect();
    let corpus: Vec<&str> = corpus.iter().map(String::as_str).collect();
    let words = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "\"digest\":",
        "\"size\":",
        "\"layers\":[",
        "\"config\":{",
        "\"manifests\":[]",
        "\"urls\":[\"\"]",
        "-1",
        "1e400",
        "\\ud800",
        "\"subject\":null",
        "\"mediaType\":",
        "\u{feff}",
    ];
    fuzz("manifests", &corpus, &words, |input| {
        let (media_type, body) = made(&mut random);
        let made = check(media_type, body.as_bytes());
        let types = &TYPES[random.below(6) as usize];
        // Twice the same key: never taken, whatever else it is.
        if let Some(rest) = body.strip_prefix('{') {
            assert!(!check(media_type, format!("{{\"schemaVersion\":2,{rest}").as_bytes()), "a key stands twice");
        }
        (check(types, input) || made && input.len() < 64).into()
    });
}

#[test]
fn s6_deep_and_wide_manifests_take_no_longer_than_they_are() {
    let descriptor = format!("{{\"mediaType\":\"a/b\",\"size\":1,\"digest\":\"{}\"}}", Digest::sha256(b""));
    let wide = |item: &str, end: &str| item.repeat((SIZE - end.len()) / item.len()) + end;
    let inputs = [
        wide("[", ""),
        wide("{\"a\":", ""),
        wide("[{\"a\":", ""),
        format!("{{\"layers\":[{}", wide(&format!("{descriptor},"), &format!("{descriptor}]}}"))),
        format!("{{\"a\":[{}", wide("[],", "[]]}")),
        format!("{{\"a\":[{}", wide("0,", "0]}")),
        format!("{{\"a\":\"{}", wide("\\u0000", "\"}")),
        format!("{{\"a\":{}", wide("9", "}")),
        format!("{{\"a\":0.{}", wide("0", "1}")),
        format!("{{{}", (0..SIZE / 12).map(|i| format!("\"{i:06}\":0,")).collect::<String>() + "\"a\":0}"),
        format!("{{{}", wide("\"a\":0,", "\"a\":0}")),
        wide(" ", "{}"),
        wide("\u{feff}", ""),
    ];
    for input in &inputs {
        let begin = Instant::now();
        let taken = ManifestView::parse(IMAGE, input.as_bytes()).is_ok();
        let shown = &input[..60.min(input.len())];
        assert!(begin.elapsed() < TIME_MAX, "{shown}... took {:?}", begin.elapsed());
        assert!(!taken, "{shown}... is no image");
    }
    let deepest = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
    // The object and the number count as well.
    assert!(ManifestView::parse("application/vnd.example+json", deepest(DEPTH_MAX - 2).as_bytes()).is_ok());
    assert!(ManifestView::parse("application/vnd.example+json", deepest(DEPTH_MAX - 1).as_bytes()).is_err());
    let layers = |count: usize| format!("{{\"layers\":[{}]}}", vec![descriptor.as_str(); count].join(","));
    assert!(ManifestView::parse("application/vnd.example+json", layers(DESCRIPTORS_MAX).as_bytes()).is_ok());
    assert!(ManifestView::parse("application/vnd.example+json", layers(DESCRIPTORS_MAX + 1).as_bytes()).is_err());
    assert!(ManifestView::parse(INDEX, b"{\"manifests\":[]}\xff").is_err());
}
