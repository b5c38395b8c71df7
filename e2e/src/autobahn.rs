//! WebSocket conformance: Autobahn|Testsuite against an [`Echo`] that uses the relay's own accept code.
//!
//! The suite needs Python 2.7. Its environment is made once and kept in the cache.

use std::{
    collections::BTreeMap,
    fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use towline_tunnel::carrier::SUBPROTOCOL;
use xtask::needs::{self, Need};

use crate::{case::run_within, echo::Echo};

const SUITE: &str = "autobahntestsuite==25.10.1";
/// The newest that still makes environments of Python 2.7.
const VIRTUALENV: &str = "virtualenv<20.22";
/// Framing, pings, reserved bits, opcodes, fragments, UTF-8, closing; and automatic fragmentation.
///
/// Not 9 (large messages and their speed): a carrier's message has at most 256 KiB. Not 12 and 13 (compression): no
/// extension is ever negotiated.
pub const SECTIONS: &[&str] = &["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"];
/// About 250 cases; each that fails may take seconds.
const WITHIN: Duration = Duration::from_secs(280);

/// What the suite says of a server.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    /// How many cases of each section had each verdict.
    pub counts: BTreeMap<(u32, String), u32>,
    /// The cases that failed, each with what was wrong.
    pub failed: Vec<String>,
}

impl Verdicts {
    /// Cases in all.
    pub fn cases(&self) -> u32 {
        self.counts.values().sum()
    }
}

/// Runs the cases (`6.*`, `7.1.1`) against an echo server of its own.
///
/// # Errors
/// If the suite can't be installed or run. What fails is in the verdicts.
pub async fn run(cases: &[&str], say: impl FnMut(&str)) -> anyhow::Result<Verdicts> {
    let program = installed(say)?;
    let echo = Echo::start().await?;
    let folder = tempfile::Builder::new().prefix("towline-autobahn-").tempdir()?;
    let spec = folder.path().join("spec.json");
    let reports = folder.path().join("reports");
    let server = json!({ "agent": "towline", "url": echo.url(), "protocols": [SUBPROTOCOL] });
    let text = json!({ "outdir": reports, "servers": [server], "cases": cases, "exclude-cases": [], "exclude-agent-cases": {} });
    fs::write(&spec, text.to_string())?;
    let mut command = Command::new(program);
    command.args(["-m", "fuzzingclient", "-s"]).arg(&spec).current_dir(folder.path());
    let outcome = tokio::task::spawn_blocking(move || run_within(command, WITHIN)).await??;
    ensure!(outcome.ended == "exit 0", "wstest: {}\n{}{}", outcome.ended, outcome.stdout, outcome.stderr);
    let index = fs::read_to_string(reports.join("index.json")).context("wstest left no report")?;
    let verdicts = read(&serde_json::from_str(&index)?, &reports)?;
    ensure!(verdicts.cases() > 0, "wstest ran no case of {cases:?}");
    Ok(verdicts)
}

fn read(index: &Value, reports: &Path) -> anyhow::Result<Verdicts> {
    let mut verdicts = Verdicts::default();
    for (case, result) in index["towline"].as_object().context("the report names another server")? {
        let section = case.split('.').next().and_then(|number| number.parse().ok());
        let section: u32 = section.with_context(|| format!("case {case} has no section"))?;
        let [behavior, closing] =
            ["behavior", "behaviorClose"].map(|name| result[name].as_str().unwrap_or("MISSING"));
        let passed = is_passed(behavior) && is_passed(closing);
        let verdict = if passed { behavior } else { "FAILED" };
        *verdicts.counts.entry((section, verdict.to_owned())).or_default() += 1;
        if !passed {
            let report = result["reportfile"].as_str().map(|name| reports.join(name));
            let report = report.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
            let report: Value = serde_json::from_str(&report).unwrap_or_default();
            let told = |name: &str| report[name].as_str().unwrap_or_default().to_owned();
            verdicts.failed.push(format!(
                "case {case}: {behavior}, closing {closing}: {} {} ({})",
                told("result"),
                told("resultClose"),
                told("description")
            ));
        }
    }
    Ok(verdicts)
}

/// `INFORMATIONAL`: the RFC leaves it open. `NON-STRICT`: as the RFC wants it, if later than could be.
fn is_passed(verdict: &str) -> bool {
    matches!(verdict, "OK" | "INFORMATIONAL" | "NON-STRICT")
}

/// `wstest`, installed into the cache where it isn't.
fn installed(mut say: impl FnMut(&str)) -> anyhow::Result<PathBuf> {
    let folder = xtask::cache_folder()?.join("autobahn");
    let (program, complete) = (folder.join("python2/bin/wstest"), folder.join("complete"));
    let is_complete = || fs::read_to_string(&complete).is_ok_and(|suite| suite == SUITE);
    if is_complete() {
        return Ok(program);
    }
    let lock = File::create(folder.with_extension("lock"))?;
    if lock.try_lock().is_err() {
        say("another process installs Autobahn|Testsuite; waiting for it");
        lock.lock()?;
    }
    if is_complete() {
        return Ok(program);
    }
    say("installing Autobahn|Testsuite into the cache (once, 1 min)");
    needs::check(&[Need::Python3, Need::Pip, Need::Python2])?;
    let python2 = needs::python2().context("Python 2.7 is gone")?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let virtualenv = folder.join("virtualenv");
    let quietly = ["--quiet", "--disable-pip-version-check", "--no-input"];
    install(
        Command::new("python3")
            .args(["-m", "pip", "install"])
            .args(quietly)
            .arg("--target")
            .arg(&virtualenv)
            .arg(VIRTUALENV),
    )?;
    install(
        Command::new("python3")
            .args(["-m", "virtualenv", "--quiet", "--python"])
            .arg(&python2)
            .arg(folder.join("python2"))
            .env("PYTHONPATH", &virtualenv),
    )?;
    install(
        Command::new(folder.join("python2/bin/python"))
            .args(["-m", "pip", "install"])
            .args(quietly)
            .arg(SUITE),
    )?;
    ensure!(program.exists(), "{SUITE} has no wstest");
    fs::write(&complete, SUITE)?;
    Ok(program)
}

fn install(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{:?} can't be run", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_passes_only_if_it_also_closes_as_it_must() {
        let index = json!({ "towline": {
            "1.1.1": { "behavior": "OK", "behaviorClose": "OK" },
            "1.1.2": { "behavior": "OK", "behaviorClose": "UNCLEAN" },
            "6.4.1": { "behavior": "NON-STRICT", "behaviorClose": "OK" },
            "7.1.6": { "behavior": "INFORMATIONAL", "behaviorClose": "INFORMATIONAL" },
            "10.1.1": { "behaviorClose": "OK" },
        } });
        let verdicts = read(&index, Path::new("/nowhere")).unwrap();
        assert_eq!(verdicts.cases(), 5);
        let failed: Vec<&str> = verdicts.failed.iter().map(|case| case.split(':').next().unwrap()).collect();
        assert_eq!(failed, ["case 1.1.2", "case 10.1.1"]);
        assert_eq!(verdicts.counts[&(6, "NON-STRICT".to_owned())], 1);
    }
}
