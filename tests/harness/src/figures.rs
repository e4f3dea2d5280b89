//! Figures that were promised: a table for people, JSON for machines, and whether they were met.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// The same figure of CNCF Distribution.
    pub against: Option<f64>,
    /// The most that it may be, or the least.
    pub goal: Option<Goal>,
}

/// What was promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Goal {
    fn number(self) -> f64 {
        match self {
            Self::AtMost(number) | Self::AtLeast(number) => number,
        }
    }
}

impl Figure {
    /// A figure without a goal.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, against: None, goal: None }
    }

    /// The same with a goal.
    pub fn at_most(self, goal: f64) -> Self {
        Self { goal: Some(Goal::AtMost(goal)), ..self }
    }

    /// The same with a goal that has to be reached.
    pub fn at_least(self, goal: f64) -> Self {
        Self { goal: Some(Goal::AtLeast(goal)), ..self }
    }

    /// The same beside CNCF Distribution's.
    pub fn against(self, against: f64) -> Self {
        Self { against: Some(against), ..self }
    }

    fn is_met(&self) -> bool {
        match self.goal {
            Some(Goal::AtMost(most)) => self.value <= most,
            Some(Goal::AtLeast(least)) => self.value >= least,
            None => true,
        }
    }
}

/// Prints figures and writes them as `<name>.json` to the folder `$BENCH_OUT`, or else to `<target>/bench` beside `program`.
///
/// # Panics
/// When a goal was missed, after all was printed.
pub fn publish(program: &str, name: &str, figures: &[Figure]) {
    print(figures);
    let path = write(program, name, figures);
    println!("written to {}", path.display());
    for figure in figures {
        assert!(figure.is_met(), "{}: {} {}, promised was {:?}", figure.name, figure.value, figure.unit, figure.goal);
    }
}

fn print(figures: &[Figure]) {
    println!("\n{:<58} {:>12} {:<6} {:>10} {:>12}", "figure", "Larder", "", "promised", "Distribution");
    for figure in figures {
        let Figure { name, value, unit, against, goal } = figure;
        let goal = match goal {
            Some(Goal::AtMost(most)) => format!("<= {most}"),
            Some(Goal::AtLeast(least)) => format!(">= {least}"),
            None => String::new(),
        };
        let against = against.map_or(String::new(), |number| format!("{number:.2}"));
        let missed = if figure.is_met() { "" } else { "  MISSED" };
        println!("{name:<58} {value:>12.2} {unit:<6} {goal:>10} {against:>12}{missed}");
    }
    println!();
}

/// Where figures are written: `$BENCH_OUT`, or else `<target>/bench` beside `program`.
pub fn folder(program: &str) -> PathBuf {
    let target = Path::new(program).ancestors().nth(2).expect("the program is in target/release");
    std::env::var_os("BENCH_OUT").map_or_else(|| target.join("bench"), PathBuf::from)
}

fn write(program: &str, name: &str, figures: &[Figure]) -> PathBuf {
    let folder = folder(program);
    let path = folder.join(format!("{name}.json"));
    let entries: Vec<Value> = figures
        .iter()
        .map(|figure| {
            let ratio = figure.against.map(|against| figure.value / against);
            json!({
                "name": figure.name, "value": figure.value, "unit": figure.unit,
                "against": figure.against, "ratio": ratio, "goal": figure.goal.map(Goal::number), "met": figure.is_met(),
            })
        })
        .collect();
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("make {}: {error}", folder.display()));
    let text = serde_json::to_string_pretty(&entries).expect("figures are JSON");
    std::fs::write(&path, text + "\n").unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    path
}
