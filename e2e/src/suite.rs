//! The journeys as tests of `cargo test`: one cluster and one stage for all of them, each reported as libtest reports its own.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

/// One check.
pub struct Check<'a> {
    /// A sentence; for a row of the threats' table it begins with the row's id.
    pub name: String,
    /// What it does.
    pub run: Box<dyn FnOnce() -> anyhow::Result<()> + 'a>,
}

impl<'a> Check<'a> {
    /// A check with a name.
    pub fn new(name: impl Into<String>, run: impl FnOnce() -> anyhow::Result<()> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// What `cargo test` passes on: words that a check's name must contain one of.
fn filters() -> BTreeSet<String> {
    std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect()
}

/// Runs the checks one after the other, and says so as libtest does; true if all passed.
pub fn run(checks: Vec<Check<'_>>, mut say: impl FnMut(&str)) -> bool {
    let filters = filters();
    let wanted = |check: &Check<'_>| {
        filters.is_empty() || filters.iter().any(|filter| check.name.contains(filter.as_str()))
    };
    let all = checks.len();
    let chosen: Vec<Check<'_>> = checks.into_iter().filter(wanted).collect();
    let filtered = all - chosen.len();
    let begun = Instant::now();
    say(&format!("\nrunning {} tests", chosen.len()));
    let mut failures = Vec::new();
    let mut passed = 0;
    for Check { name, run } in chosen {
        let result =
            catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
        match result {
            Ok(()) => {
                passed += 1;
                say(&format!("test {name} ... ok"));
            }
            Err(error) => {
                say(&format!("test {name} ... FAILED"));
                failures.push(format!("---- {name} ----\n{error:#}"));
            }
        }
    }
    for failure in &failures {
        say(&format!("\n{failure}"));
    }
    say(&format!(
        "\ntest result: {}. {passed} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        failures.len(),
        begun.elapsed().as_secs_f64()
    ));
    failures.is_empty()
}
