//! A person's own folder: a profile, logins, and what they run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use towline_tunnel::fault::Fault;

use super::{Scene, provider::Provider};
use crate::{
    case::{Outcome, run_within},
    process::{Process, pause},
    stage::{CLUSTER_NAME, Proxy, Stage},
};

/// A command of kubectl's, and a login.
const WITHIN: Duration = Duration::from_secs(60);
/// A role that was just assigned reaches the relay a moment later.
const ROLE_WITHIN: Duration = Duration::from_secs(5);
/// Two commands and a stream, and who is asking.
const SCRIPT: &str = "set -eu\nkubectl auth whoami -o jsonpath='{.status.userInfo}{\"\\n\"}'\n\
                      kubectl -n $NAMESPACE get pod box -o name\necho through | kubectl -n $NAMESPACE exec -i box -- cat";

/// The folder, with the profile in it.
pub(super) struct Home {
    folder: PathBuf,
    profile: PathBuf,
    environment: Vec<(String, String)>,
}

impl Home {
    /// With a profile that leads to the stage's cluster; `more` goes to its top, and `login` under `[login]`.
    pub(super) fn new(stage: &Stage, name: &str, more: &str, login: &str) -> anyhow::Result<Self> {
        let folder = stage.folder().join(name);
        fs::create_dir_all(&folder)?;
        let profile = folder.join("profile.toml");
        let login =
            if login.is_empty() { String::new() } else { format!("[login]\nkeep = 'file'\n{login}\n") };
        let text = format!(
            "relay = 'https://{}'\nrelay-key = '{}'\nrelay-ca-file = '{}'\nstate-dir = 'state'\n{more}\n{login}[clusters]\n{CLUSTER_NAME} = '{}'\n",
            stage.relay_address,
            stage.relay_key,
            stage.relay_dir().join("tls-ca.pem").display(),
            stage.cluster_id,
        );
        fs::write(&profile, text)?;
        let programs = stage.cluster.programs().folder().display();
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{programs}:{path}", folder.display());
        let environment = vec![("PATH".to_owned(), path), ("HOME".to_owned(), folder.display().to_string())];
        Ok(Self { folder, profile, environment })
    }

    /// One whose logins are at the provider.
    pub(super) fn at(scene: &Scene, name: &str, more: &str, login: &str) -> anyhow::Result<Self> {
        let Provider { url, .. } = scene.provider;
        let ca = scene.provider.ca_file();
        Self::new(
            scene.stage,
            name,
            more,
            &format!("issuer = '{url}'\nca-file = '{}'\n{login}", ca.display()),
        )
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sets a variable for all that runs here.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// `towline` with this profile.
    pub(super) fn towline(&self, stage: &Stage, command: &str) -> Command {
        let mut towline = Command::new(&stage.programs.client);
        towline.arg(command).arg("--profile").arg(&self.profile);
        towline.envs(self.environment.iter().cloned()).current_dir(&self.folder);
        towline
    }

    /// `towline` where this profile is meant if none is named, to which a command is to be added.
    pub(super) fn any(&self, stage: &Stage) -> Command {
        let mut towline = Command::new(&stage.programs.client);
        towline.env("TOWLINE_PROFILE", &self.profile);
        towline.envs(self.environment.iter().cloned()).current_dir(&self.folder);
        towline
    }

    /// `towline login`, as `person`, who goes wherever they are sent.
    pub(super) fn log_in(&self, scene: &Scene, more: &[&str], person: &str) -> anyhow::Result<()> {
        let mut login = self.towline(scene.stage, "login");
        login.arg("--no-browser").args(more);
        let mut login = Process::start("towline login", &mut login, &self.folder.join("login.log"))?;
        let (since, mut visited) = (Instant::now(), 0);
        while login.is_alive() {
            let pages = pages(&login.log());
            if let Some(page) = pages.get(visited) {
                scene.provider.visit(scene.runtime, page, person)?;
                visited += 1;
            }
            ensure!(since.elapsed() < WITHIN, "the login does not end: {}", login.log());
            pause(Duration::from_millis(20));
        }
        let status = login.wait(WITHIN)?;
        ensure!(status.success(), "towline login: {status}: {}", login.log());
        Ok(())
    }

    /// A shell's script by `towline run`.
    fn run(&self, scene: &Scene, script: &str, more: &[&str]) -> anyhow::Result<Outcome> {
        let since = Instant::now();
        loop {
            let mut run = self.towline(scene.stage, "run");
            run.args(more).args(["--", "bash", "-c", script]).env("NAMESPACE", &scene.namespace);
            let outcome = run_within(run, WITHIN)?;
            if !outcome.stderr.contains(Fault::ClusterForbidden.code()) || since.elapsed() > ROLE_WITHIN {
                return Ok(outcome);
            }
            pause(Duration::from_millis(100));
        }
    }

    /// Works with kubectl, as this user, in exactly these groups of an issuer's; says so.
    pub(super) fn works(
        &self,
        scene: &Scene,
        more: &[&str],
        user: &str,
        groups: &[&str],
    ) -> anyhow::Result<String> {
        let outcome = self.run(scene, SCRIPT, more)?;
        let (said, errors) = (&outcome.stdout, &outcome.stderr);
        ensure!(outcome.ended == "exit 0", "{}: {said}{errors}", outcome.ended);
        let (who, rest) = said.split_once('\n').context("it says nothing")?;
        let who: Value = serde_json::from_str(who)?;
        ensure!(who["username"] == user, "it is not {user}: {who}");
        let all: Vec<&str> =
            who["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        ensure!(all.contains(&"system:authenticated"), "{who}");
        let issued: Vec<&str> = all.into_iter().filter(|group| !group.starts_with("system:")).collect();
        ensure!(issued == groups, "other groups than {groups:?}: {who}");
        ensure!(rest == "pod/box\nthrough\n", "{rest}");
        Ok(format!("get and exec as {user} {groups:?}"))
    }

    /// `towline proxy`, ready.
    pub(super) fn proxy(&self, stage: &Stage) -> anyhow::Result<Proxy> {
        let kubeconfig = self.folder.join("kubeconfig");
        let mut proxy = self.towline(stage, "proxy");
        proxy.args(["--port", "0", "--kubeconfig"]).arg(&kubeconfig);
        let mut process = Process::start("towline proxy", &mut proxy, &self.folder.join("proxy.log"))?;
        process.wait_for(&["ready: "], WITHIN)?;
        Ok(Proxy { process, kubeconfig })
    }
}

/// The pages that a person is told to go to, in order; of a code, the one that has it already.
fn pages(told: &str) -> Vec<String> {
    let whole = told.rfind('\n').map_or("", |end| &told[..end]);
    let page = |line: &str| {
        let (url, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let straight = rest.strip_prefix("(or straight to ").and_then(|rest| rest.strip_suffix(')'));
        url.starts_with("https://").then(|| straight.unwrap_or(url).to_owned())
    };
    whole.lines().filter_map(page).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_from_what_a_person_is_told() {
        let told = "Go to\n\n    https://idp/auth?a=b\n\nand log in\nCode 1 of 2: go to\n\n    https://idp/device (or straight to \
                    https://idp/device?c=d)\n\nand enter\n\n    https://half";
        assert_eq!(pages(told), ["https://idp/auth?a=b", "https://idp/device?c=d"]);
    }
}
