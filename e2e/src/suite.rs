//! The journeys as tests of `cargo test`: one cluster and one stage for most of them, each reported as libtest reports its own.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

/// One check.
pub struct Check<'a> {
    /// A sentence; for a row of the threats' table it begins with the row's id.
    pub name: String,
    /// What it does.
    pub run: Box<dyn FnOnce() -> anyhow::Result<()> + Send + 'a>,
}

impl<'a> Check<'a> {
    /// A check with a name.
    pub fn new(name: impl Into<String>, run: impl FnOnce() -> anyhow::Result<()> + Send + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// What `cargo test` passes on: words that a check's name must contain one of.
fn filters() -> BTreeSet<String> {
    std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect()
}

/// Runs the checks, and says so as libtest does; true if all passed.
///
/// Those of a lane run one after the other, and lanes beside each other: a check waits for clusters more than it computes. `alone` is what
/// runs after all of them, one after the other.
pub fn run<'a>(mut lanes: Vec<Vec<Check<'a>>>, mut alone: Vec<Check<'a>>, say: impl Fn(&str) + Sync) -> bool {
    let filters = filters();
    let wanted = |check: &Check<'_>| {
        filters.is_empty() || filters.iter().any(|filter| check.name.contains(filter.as_str()))
    };
    let all = lanes.iter().map(Vec::len).sum::<usize>() + alone.len();
    for lane in lanes.iter_mut().chain([&mut alone]) {
        lane.retain(wanted);
    }
    let chosen = lanes.iter().map(Vec::len).sum::<usize>() + alone.len();
    let begun = Instant::now();
    say(&format!("\nrunning {chosen} tests"));
    let failures = Mutex::new(Vec::new());
    let judge_all = &|lane: Vec<Check<'a>>| {
        for check in lane {
            if let Some(failure) = judge(check, &say) {
                failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
            }
        }
    };
    thread::scope(|scope| {
        for lane in lanes {
            scope.spawn(move || judge_all(lane));
        }
    });
    judge_all(alone);
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    for failure in &failures {
        say(&format!("\n{failure}"));
    }
    say(&format!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        chosen - failures.len(),
        failures.len(),
        all - chosen,
        begun.elapsed().as_secs_f64()
    ));
    failures.is_empty()
}

/// Runs one, and says what came of it; what it failed of.
fn judge(Check { name, run }: Check<'_>, say: impl Fn(&str)) -> Option<String> {
    let begun = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
    say(&format!("   {:.0} s: {name}", begun.elapsed().as_secs_f64()));
    match result {
        Ok(()) => {
            say(&format!("test {name} ... ok"));
            None
        }
        Err(error) => {
            say(&format!("test {name} ... FAILED"));
            Some(format!("---- {name} ----\n{error:#}"))
        }
    }
}
