//! An agent with two relays: people go on by the one while the other is dead, with real kubectl.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::ensure;
use towline_identity::dev::DevIssuer;
use xtask::cluster::Cluster;

use crate::{
    process::pause,
    programs::Programs,
    stage::{CLUSTER_NAME, Proxy, Reach, Stage, write_private},
    table::{GROUP, TOKEN_LIFETIME, USER, apply_with, namespace},
};

const NAMESPACE: &str = "two-relays";
/// An agent that was sent away, or whose relay is back, is connected by then.
const SOON: Duration = Duration::from_secs(45);

/// A watch by the second relay goes on, and requests by it are answered at once, while the first is dead; and by the first again once it
/// is back.
///
/// # Errors
/// Whatever is not so.
pub fn run(cluster: &Cluster, programs: &Programs, issuer: DevIssuer) -> anyhow::Result<()> {
    namespace(cluster, NAMESPACE)?;
    let mut stage = Stage::with_issuer(cluster.clone(), programs.clone(), issuer)?;
    let (_second, reach) = stage.another_relay("second")?;
    let token = stage.folder().join("second-token");
    write_private(&token, &stage.command_of(&reach, &["enroll", CLUSTER_NAME])?)?;
    stage.agent_setup.flags.extend(["--second-enrolment-token-file".into(), token.display().to_string()]);
    stage.restart_agent()?;
    stage.agent.wait_for(&["\"connected\"", &reach.address], SOON)?;

    stage.let_in(USER)?;
    let role = ["role", "assign", "--user", USER, "--role", "cluster-user", "--cluster", CLUSTER_NAME];
    stage.command_of(&reach, &role)?;
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let by_first = stage.proxy("first", &tokens)?;
    let by_second = stage.proxy_by("second", &reach, &stage.cluster_id, &tokens)?;
    let home = stage.folder().to_owned();
    let kubectl = |proxy: &Proxy, arguments: &[&str]| command(&stage.cluster, proxy, &home, arguments);
    let seen = home.join("watch");
    let mut watch = kubectl(&by_second, &["get", "configmaps", "--watch", "--output", "name"])
        .stdout(File::create(&seen)?)
        .spawn()?;

    let mut settled = || -> anyhow::Result<()> {
        let get = ["get", "configmaps", "--output", "name"];
        ensure!(answers(kubectl(&by_first, &get)), "by the first relay nothing is answered");
        stage.relay.kill();
        for n in 0..5 {
            let map = format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m{n}, namespace: {NAMESPACE}}}\n"
            );
            apply_with(&stage.cluster, &["create", "-f", "-"], &map)?;
            ensure!(answers(kubectl(&by_second, &get)), "the second relay's requests fail with the first");
        }
        eventually("the watch by the second relay goes on", || {
            fs::read_to_string(&seen).is_ok_and(|seen| seen.contains("configmap/m4"))
        })
    };
    let went_on = settled();
    let ended = watch.try_wait()?;
    watch.kill()?;
    watch.wait()?;
    went_on?;
    ensure!(ended.is_none(), "the watch ended: {ended:?}");
    ensure!(!answers(kubectl(&by_first, &["get", "configmaps"])), "the first relay was dead");
    stage.restart_relay()?;
    let back =
        |stage: &Stage| command(&stage.cluster, &by_first, &home, &["get", "configmaps", "--output", "name"]);
    eventually("the first relay serves again", || answers(back(&stage)))?;
    forgotten(&mut stage, &reach, &token)
}

/// The agent's second relay is kept where its token's file is gone, and gone where nobody says that there is one.
fn forgotten(stage: &mut Stage, second: &Reach, token: &Path) -> anyhow::Result<()> {
    fs::remove_file(token)?;
    stage.restart_agent()?;
    stage.agent.wait_for(&["\"connected\"", &second.address], SOON)?;
    stage.agent_setup.flags.clear();
    stage.restart_agent()?;
    ensure!(!stage.agent.log().contains(&second.address), "it was told of one relay");
    Ok(())
}

fn command(cluster: &Cluster, proxy: &Proxy, home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(cluster.programs().kubectl());
    command
        .env("KUBECONFIG", &proxy.kubeconfig)
        .env("HOME", home)
        .args(["-n", NAMESPACE])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn answers(mut kubectl: Command) -> bool {
    kubectl.args(["--request-timeout", "10s"]).status().is_ok_and(|status| status.success())
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        ensure!(Instant::now() < deadline, "not in {} s: {what}", SOON.as_secs());
        pause(Duration::from_millis(100));
    }
    Ok(())
}
