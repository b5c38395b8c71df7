//! What is open when a right ends: it ends within a minute, and a person is told why; and where the right goes on, so does it.

use std::{
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use towline_tunnel::fault::Fault;

use super::{BRIEF, MAX_TOKEN_AGE, Scene, home::Home};
use crate::{
    bad_days::{fails_with, kubectl, until},
    process::{Process, pause},
    stage::{CLUSTER_AUDIENCE, CLUSTER_NAME, Proxy},
    table::TOKEN_LIFETIME,
};

/// What begins has so long to begin.
const BEGINS_WITHIN: Duration = Duration::from_secs(30);
/// A right that ends now has its streams ended within this, clocks that differ included.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// Looking, and a machine that is busy.
const SLACK: Duration = Duration::from_secs(10);
/// A token that is about to end lives this long: enough to begin.
const LIVES: Duration = Duration::from_secs(15);
/// A renewed token's life, of [`BRIEF`].
const LIFE: Duration = Duration::from_secs(15);
/// How far clocks may differ, as the agent grants it.
const SKEW: Duration = Duration::from_secs(45);

/// An exec that counts and a watch, through one proxy.
pub(super) struct Open {
    pub(super) proxy: Proxy,
    exec: Process,
    watch: Process,
}

impl Open {
    pub(super) fn begin(scene: &Scene, proxy: Proxy, name: &str) -> anyhow::Result<Self> {
        let start = |what: &str, arguments: &[&str]| {
            let mut command = Command::new(scene.stage.cluster.programs().kubectl());
            command.env("KUBECONFIG", &proxy.kubeconfig).env("HOME", scene.stage.folder());
            command.args(["-n", &scene.namespace]).args(arguments);
            Process::start(what, &mut command, &scene.stage.log(&format!("{name}-{what}")))
        };
        let count = "n=0; while true; do n=$((n+1)); echo count $n; sleep 1; done";
        let mut exec = start("exec", &["exec", "box", "--", "sh", "-c", count])?;
        let mut watch = start("watch", &["get", "pods", "--watch", "--output-watch-events"])?;
        exec.wait_for(&["count 1"], BEGINS_WITHIN)?;
        watch.wait_for(&["ADDED"], BEGINS_WITHIN)?;
        Ok(Self { proxy, exec, watch })
    }

    /// Both go on, and a new command works.
    pub(super) fn goes_on(&mut self, scene: &Scene) -> anyhow::Result<()> {
        let counted = self.exec.log().lines().count();
        let next = format!("count {}", counted + 1);
        self.exec.wait_for(&[&next], BEGINS_WITHIN)?;
        let get = ["-n", &scene.namespace, "get", "pod", "box", "-o", "name"];
        let pod = kubectl(scene.stage, &self.proxy, &get)?;
        ensure!(pod.ended == "exit 0", "{}", pod.stderr);
        ensure!(self.watch.is_alive() && self.proxy.process.is_alive(), "{}", self.proxy.process.log());
        Ok(())
    }

    /// Both end, the exec not as if all were well; and the proxy names the fault. Says how long after `since`.
    pub(super) fn ended(&mut self, since: Instant, fault: Fault) -> anyhow::Result<String> {
        let left = || (ENDS_WITHIN + SLACK).saturating_sub(since.elapsed());
        let exec = self.exec.wait(left()).context("exec")?;
        let after = since.elapsed();
        ensure!(!exec.success(), "what was cut says that all is well: {}", self.exec.log());
        self.watch.wait(left()).context("the watch")?;
        let within = since.elapsed();
        ensure!(within <= ENDS_WITHIN, "it ended only {within:?} after the right");
        self.proxy.process.wait_for(&["was cut", fault.code()], SLACK)?;
        Ok(format!(
            "exec ended {:.0} s, the watch {:.0} s after it, {}",
            after.as_secs_f64(),
            within.as_secs_f64(),
            fault.code()
        ))
    }
}

/// Of the development issuer, changed for the cluster alone.
fn proxy_with(scene: &Scene, user: &str, claims: &[(&str, u64)]) -> anyhow::Result<Proxy> {
    let tokens = scene.stage.write_tokens(user, &["people"], |request| {
        request.lifetime = TOKEN_LIFETIME;
        if request.audience == CLUSTER_AUDIENCE {
            request.claims.extend(claims.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
        }
    })?;
    scene.stage.proxy(user, &tokens)
}

fn now() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

pub(super) fn expired(scene: &Scene) -> anyhow::Result<String> {
    let (now, begun) = (now()?, Instant::now());
    let proxy = proxy_with(scene, "carol", &[("iat", now), ("exp", now + LIVES.as_secs())])?;
    let mut open = Open::begin(scene, proxy, "expired")?;
    open.ended(begun + LIVES, Fault::ClusterTokenExpired)
}

pub(super) fn too_old(scene: &Scene) -> anyhow::Result<String> {
    let (now, begun) = (now()?, Instant::now());
    let issued = now + LIVES.as_secs() - MAX_TOKEN_AGE.as_secs();
    let proxy = proxy_with(scene, "dora", &[("iat", issued), ("exp", now + 3600)])?;
    let mut open = Open::begin(scene, proxy, "too-old")?;
    open.ended(begun + LIVES, Fault::ClusterTokenExpired)
}

pub(super) fn disabled(scene: &Scene) -> anyhow::Result<String> {
    let proxy = proxy_with(scene, "hank", &[])?;
    let issuer = &scene.stage.issuer;
    let mut open = Open::begin(scene, proxy, "disabled")?;
    issuer.set_active("hank", false);
    let ended = open.ended(Instant::now(), Fault::ClusterTokenExpired)?;
    let get = ["-n", &scene.namespace, "get", "pod", "box", "-o", "name"];
    fails_with(&kubectl(scene.stage, &open.proxy, &get)?, Fault::AccountEnded)?;
    issuer.set_active("hank", true);
    // A no is believed until the next question.
    until(|| {
        let pod = kubectl(scene.stage, &open.proxy, &get)?;
        ensure!(pod.ended == "exit 0", "{}", pod.stderr);
        Ok(())
    })?;
    Ok(format!(
        "{ended}; a new command {}; asked {} times",
        Fault::AccountEnded.code(),
        issuer.introspections()
    ))
}

pub(super) fn role_removed(scene: &Scene) -> anyhow::Result<String> {
    let proxy = proxy_with(scene, "erin", &[])?;
    let mut open = Open::begin(scene, proxy, "role-removed")?;
    let role = ["role", "remove", "--user", "dev:erin", "--role", "cluster-user", "--cluster", CLUSTER_NAME];
    scene.stage.relay_command(&role)?;
    open.ended(Instant::now(), Fault::ClusterForbidden)
}

/// Past the first token's end, and all that is granted on top of it, nothing has noticed.
pub(super) fn renewed(scene: &Scene) -> anyhow::Result<String> {
    let clients = format!("relay.client-id = '{}'\ncluster.client-id = '{}'", BRIEF[0], BRIEF[1]);
    let home = Home::at(scene, "brief", "", &clients)?;
    home.log_in(scene, &[], "brief")?;
    let begun = Instant::now();
    let mut open = Open::begin(scene, home.proxy(scene.stage)?, "renewed")?;
    // The proxy may have begun with the second token.
    let over = begun + LIFE + LIFE + SKEW + Duration::from_secs(2);
    while Instant::now() < over {
        ensure!(open.exec.is_alive(), "exec ended after {:?}: {}", begun.elapsed(), open.exec.log());
        ensure!(open.watch.is_alive(), "the watch ended after {:?}: {}", begun.elapsed(), open.watch.log());
        pause(Duration::from_millis(200));
    }
    open.goes_on(scene)?;
    Ok(format!("both go on after {:.0} s", begun.elapsed().as_secs_f64()))
}
