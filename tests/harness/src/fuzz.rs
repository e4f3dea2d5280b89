//! Fuzzing on any toolchain: inputs are mutated from a corpus by a seed, and what the target takes joins the corpus.
//!
//! Without `FUZZ_SECONDS` a run is short and the same every time, so that it can be a part of the test suite. With it, each target goes
//! on for so long, from another seed every time, which is printed (`LARDER_TEST_SEED` repeats it).

use crate::random::Random;
use std::time::{Duration, Instant};

/// Inputs of a short run.
const SHORT_COUNT: u64 = 60_000;
/// The seed of short runs.
const SHORT_SEED: u64 = 1;
/// Inputs that join the corpus, at most; later ones take the places of earlier ones.
const CORPUS_MAX: usize = 2_000;
/// Longest input.
const LENGTH_MAX: usize = 8 << 10;
/// Mutations of one input, at most.
const MUTATIONS_MAX: u64 = 5;
/// What is near to letters and digits: where grammars end.
const NEAR: &[u8] = b"-._/:%+?&=,~ \0aZ09\x7f\xff";
/// No target may take longer for one input, on a machine that does other things too.
const TIME_MAX: Duration = Duration::from_secs(2);

/// What a target says of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken: what is like it may be worth a look.
    Taken,
    /// It was refused.
    Refused,
}

impl From<bool> for Verdict {
    fn from(taken: bool) -> Self {
        if taken { Self::Taken } else { Self::Refused }
    }
}

/// Says what the input was when a target panics.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was b\"{}\"", self.0.escape_ascii());
        }
    }
}

/// Gives `check` mutations of `corpus`, with `words` that mean something to it strewn in.
///
/// # Panics
/// When `check` does, or takes too long; or when it never takes an input: then it is not fuzzed but only knocked at.
pub fn fuzz(target: &str, corpus: &[&str], words: &[&str], check: impl FnMut(&[u8]) -> Verdict) {
    fuzz_bytes(target, corpus.iter().map(|text| text.as_bytes().to_vec()).collect(), words, check);
}

/// The same with a corpus that is no text.
///
/// # Panics
/// As [`fuzz`].
pub fn fuzz_bytes(target: &str, mut corpus: Vec<Vec<u8>>, words: &[&str], mut check: impl FnMut(&[u8]) -> Verdict) {
    let seconds: Option<u64> = std::env::var("FUZZ_SECONDS").ok().map(|text| text.parse().expect("FUZZ_SECONDS is a number"));
    let mut random = if seconds.is_some() { Random::printed(target) } else { Random::new(SHORT_SEED) };
    let (begin, mut count, mut taken) = (Instant::now(), 0, 0);
    let given = corpus.len();
    let is_over = |count| seconds.map_or(count >= SHORT_COUNT, |seconds| begin.elapsed() >= Duration::from_secs(seconds));
    while !is_over(count) {
        let input = match corpus.get(count as usize).filter(|_| (count as usize) < given) {
            Some(input) => input.clone(),
            None => mutated(&mut random, &corpus, words),
        };
        let (shown, since) = (Shown(&input), Instant::now());
        let verdict = check(&input);
        assert!(since.elapsed() < TIME_MAX, "it took {:?}", since.elapsed());
        drop(shown);
        count += 1;
        if verdict == Verdict::Taken {
            taken += 1;
            if corpus.len() < CORPUS_MAX {
                corpus.push(input);
            } else {
                let place = given + random.below((CORPUS_MAX - given) as u64) as usize;
                corpus[place] = input;
            }
        }
    }
    println!("{target}: {count} inputs in {:.1?}, {taken} taken", begin.elapsed());
    assert!(taken > 0, "{target} took none of {count} inputs");
}

fn mutated(random: &mut Random, corpus: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut input = any(random, corpus).clone();
    for _ in 0..=random.below(MUTATIONS_MAX) {
        let at = random.below(input.len() as u64 + 1) as usize;
        let end = at + random.below((input.len() - at) as u64 + 1) as usize;
        match random.below(11) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.number() as u8,
            2 => input.insert(at, random.number() as u8),
            3 => input.insert(at, NEAR[random.below(NEAR.len() as u64) as usize]),
            4 => drop(input.drain(at..end)),
            5 => drop(input.splice(at..at, input[at..end].to_vec())),
            6 | 7 if !words.is_empty() => drop(input.splice(at..end.min(at + 4), words[random.below(words.len() as u64) as usize].bytes())),
            8 => {
                let other = any(random, corpus);
                let from = random.below(other.len() as u64 + 1) as usize;
                input.splice(at..end, other[from..].to_vec());
            }
            9 => {
                // Numbers at the edge of what a machine has.
                let edges = [0, 1, 255, 1 << 16, i64::MAX as u128, 1 << 63, u64::MAX as u128, 1 << 64, u128::MAX];
                let number = edges[random.below(edges.len() as u64) as usize].saturating_sub(random.below(2) as u128);
                input.splice(at..end.min(at + 3), number.to_string().bytes());
            }
            _ => {
                let times = 1 + random.below(64) as usize;
                let part = input[at..end.min(at + 16)].repeat(times);
                input.splice(at..at, part);
            }
        }
    }
    input.truncate(LENGTH_MAX);
    input
}

fn any<'a>(random: &mut Random, corpus: &'a [Vec<u8>]) -> &'a Vec<u8> {
    &corpus[random.below(corpus.len() as u64) as usize]
}
