//! The decision: a table of who may do what, and that rules only ever give.

use proptest::prelude::*;

use super::*;

fn rule(subject: &str, repositories: &str, words: &str) -> Rule {
    Rule {
        subject: subject.parse().expect("a subject"),
        repositories: repositories.parse().expect("a pattern"),
        actions: actions(words).expect("actions"),
    }
}

fn user(name: &str, groups: &[&str]) -> Who {
    Who::User { name: name.to_owned(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
}

fn workload(claims: &[(&str, &str)]) -> Who {
    let claims = claims.iter().map(|(name, said)| ((*name).to_owned(), vec![(*said).to_owned()])).collect();
    Who::Workload { issuer: "ci".to_owned(), subject: "job".to_owned(), claims }
}

fn rules() -> Rules {
    Rules::new([
        rule("anonymous", "public/**", "pull"),
        rule("users", "shared/*", "pull"),
        rule("user:alice", "team/app", "pull,push"),
        rule("group:dev", "team/**", "pull"),
        rule("group:ops", "**", "admin"),
        rule("robot:ci", "ci/**", "pull"),
        rule("claim:ci:repository=acme/app,ref=refs/heads/*", "acme/app", "pull,push,overwrite"),
    ])
}

#[test]
fn the_table_of_decisions() {
    let robot = Who::Robot { name: "ci".to_owned(), grants: vec![("build/*".parse().unwrap(), Actions::PUSH)] };
    let job = workload(&[("repository", "acme/app"), ("ref", "refs/heads/main")]);
    let external = Who::External { subject: "x".to_owned(), grants: vec![("team/app".to_owned(), Actions::PULL)] };
    for (who, repository, allowed) in [
        (Who::Anonymous, "public/a/b", "pull"),
        (Who::Anonymous, "shared/a", ""),
        (Who::Anonymous, "team/app", ""),
        (user("alice", &[]), "public/a", "pull"),
        (user("alice", &[]), "shared/a", "pull"),
        (user("alice", &[]), "shared/a/b", ""),
        (user("alice", &[]), "team/app", "pull,push"),
        (user("alice", &[]), "team/app2", ""),
        (user("bob", &["dev"]), "team/app", "pull"),
        (user("bob", &[]), "team/app", ""),
        (user("dev", &[]), "team/app", ""),
        (user("root", &["ops"]), "any/thing", "pull,push,overwrite,delete,admin"),
        (robot.clone(), "ci/x", "pull"),
        (robot.clone(), "build/x", "push"),
        (robot, "team/app", ""),
        (job, "acme/app", "pull,push,overwrite"),
        (workload(&[("repository", "acme/app"), ("ref", "refs/tags/v1")]), "acme/app", ""),
        (workload(&[("repository", "acme/app")]), "acme/app", ""),
        (workload(&[("repository", "evil/app"), ("ref", "refs/heads/main")]), "acme/app", ""),
        (workload(&[]), "shared/a", ""),
        (external.clone(), "team/app", "pull"),
        (external, "team/other", ""),
    ] {
        let allowed = if allowed.is_empty() { Actions::default() } else { actions(allowed).unwrap() };
        for (action, word) in WORDS {
            assert_eq!(rules().allow(&who, action, repository), allowed.contains(action), "{who:?} {word} {repository}");
            assert_eq!(!rules().explain(&who, action, repository).is_empty(), allowed.contains(action), "explain {who:?} {word}");
        }
    }
}

#[test]
fn s15_overwriting_a_tag_is_a_right_of_its_own() {
    assert!(rules().allow(&user("alice", &[]), Actions::PUSH, "team/app"));
    assert!(!rules().allow(&user("alice", &[]), Actions::OVERWRITE, "team/app"));
    assert!(!rules().allow(&user("alice", &[]), Actions::PUSH.and(Actions::OVERWRITE), "team/app"));
}

#[test]
fn without_rules_nobody_may_do_anything() {
    for who in [Who::Anonymous, user("alice", &["dev"]), workload(&[("repository", "a")])] {
        assert!(WORDS.iter().all(|(action, _)| !Rules::default().allow(&who, *action, "a")));
        assert!(!Rules::default().has_any(&who));
    }
}

#[test]
fn subjects_are_read_and_written_alike_and_nonsense_is_refused() {
    for text in ["user:alice", "group:a.b-c_d@e+f", "robot:ci", "users", "anonymous", "claim:gh:repository=a/*,ref=*"] {
        assert_eq!(text.parse::<Subject>().expect(text).to_string(), text);
    }
    let long = format!("user:{}", "a".repeat(129));
    for text in [
        "",
        "alice",
        "user:",
        "user:a:b",
        "user:a b",
        "user:ü",
        "User:a",
        "claim:gh",
        "claim:gh:",
        "claim:gh:a",
        "claim:gh:a=",
        "claim:gh:=b",
        "claim::a=b",
        "claim:gh:a=*",
        "claim:gh:a=*,b=**",
        "user:*",
        &long,
    ] {
        assert!(text.parse::<Subject>().is_err(), "{text}");
    }
    for text in ["", "pull,", "read", "pull push", "PULL"] {
        assert!(actions(text).is_err(), "{text}");
    }
    assert_eq!(words(actions("push, pull").unwrap()), ["pull", "push"]);
}

#[test]
fn stars_in_claims_stand_for_any_letters() {
    for (pattern, text, is_like) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a*", "abc", true),
        ("*c", "abc", true),
        ("a*c", "ac", true),
        ("a*c", "abcb", false),
        ("a*b*c", "axxbyyc", true),
        ("a*b*b", "ab", false),
        ("*", "", true),
        ("", "a", false),
        ("ab*ba", "aba", false),
    ] {
        assert_eq!(like(pattern, text), is_like, "{pattern} {text}");
    }
}

proptest! {
    /// A rule more never takes anything away, whatever it says, and the order of rules means nothing.
    #[test]
    fn rules_only_give(which in prop::collection::vec(0usize..7, 0..7), more in 0usize..7, action in 0usize..5, repository in 0usize..6) {
        let all = [
            rule("anonymous", "public/**", "pull"),
            rule("users", "team/*", "push"),
            rule("user:alice", "**", "delete"),
            rule("group:dev", "team/**", "pull,push"),
            rule("group:dev", "**", "admin"),
            rule("user:bob", "**", "admin"),
            rule("claim:ci:a=b", "**", "pull"),
        ];
        let repository = ["public/a", "team/a", "team/a/b", "other", "public", "team"][repository];
        let picked: Vec<_> = which.iter().map(|index| all[*index].clone()).collect();
        let with_more: Vec<_> = picked.iter().cloned().chain([all[more].clone()]).collect();
        let backwards: Vec<_> = picked.iter().rev().cloned().collect();
        for who in [Who::Anonymous, user("alice", &[]), user("carol", &["dev"]), workload(&[("a", "b")])] {
            let before = Rules::new(picked.clone()).allow(&who, WORDS[action].0, repository);
            prop_assert!(!before || Rules::new(with_more.clone()).allow(&who, WORDS[action].0, repository));
            prop_assert_eq!(before, Rules::new(backwards.clone()).allow(&who, WORDS[action].0, repository));
        }
    }
}
