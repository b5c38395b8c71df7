//! Roles that the organisation signs and the relay carries, and revocations: what each layer says that denies, and what ends when one of
//! them is taken away.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use towline_tunnel::fault::Fault;

use super::{Scene, endings::Open, home::Home, modes::with_files};
use crate::{
    bad_days::{fails_with, kubectl, until},
    case::{Outcome, run_within},
    process::pause,
    stage::{CLUSTER_NAME, Stage, Tokens},
    table::{TOKEN_LIFETIME, apply_with},
};

/// No role counts for more at this agent.
const CEILING: &str = "writer";
/// Nobody in it has anything by RBAC of the cluster.
const STAFF: &[&str] = &["staff"];
/// A command of ours, or kubectl's.
const WITHIN: Duration = Duration::from_secs(30);
/// A role that ends, ends so long after it was signed: enough to begin.
const ROLE_LIVES: Duration = Duration::from_secs(15);
/// Tokens of before are refused by the second, and so a new one is tried for this long.
const LET_IN_WITHIN: Duration = Duration::from_secs(20);

/// Who signs roles.
#[derive(Clone, Debug)]
pub(super) struct Organisation {
    key: PathBuf,
}

impl Organisation {
    /// Makes its key, and has relay and agent (from its next start on) know it.
    pub(super) fn found(stage: &mut Stage) -> anyhow::Result<Self> {
        let key = stage.folder().join("organisation.pem");
        let mut new = Command::new(&stage.programs.client);
        new.args(["role", "key", "new", "--out"]).arg(&key);
        let public = said(new)?;
        stage.relay_command(&["role", "trust-key", &public])?;
        let flags = ["--max-relay-role", CEILING, "--organisation-key", &public];
        stage.agent_setup.flags.extend(flags.map(str::to_owned));
        Ok(Self { key })
    }

    /// Binds the roles' groups, as `towline-agent roles manifest` says.
    pub(super) fn bind(stage: &Stage) -> anyhow::Result<()> {
        let mut manifest = Command::new(&stage.programs.agent);
        manifest.args(["roles", "manifest", "--max-relay-role", CEILING, "--data-dir"]);
        manifest.arg(stage.folder().join("agent"));
        apply_with(&stage.cluster, &["apply", "-f", "-"], &said(manifest)?)
    }
}

/// Somebody with a profile, whose tokens are in files.
struct Somebody<'a> {
    scene: &'a Scene<'a>,
    name: &'static str,
    groups: &'static [&'static str],
    home: Home,
}

impl<'a> Somebody<'a> {
    fn new(
        scene: &'a Scene<'a>,
        name: &'static str,
        groups: &'static [&'static str],
    ) -> anyhow::Result<Self> {
        let tokens = scene.stage.tokens(name, groups, TOKEN_LIFETIME)?;
        Ok(Self { scene, name, groups, home: with_files(scene.stage, name, &tokens)? })
    }

    /// New tokens, in the same files.
    fn tokens(&self) -> anyhow::Result<Tokens> {
        self.scene.stage.tokens(self.name, self.groups, TOKEN_LIFETIME)
    }

    fn principal(&self) -> String {
        format!("{}#{}", self.scene.stage.issuer.url(), self.name)
    }

    /// `towline` with these arguments.
    fn towline(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        let mut towline = self.home.any(self.scene.stage);
        towline.args(arguments);
        run_within(towline, WITHIN)
    }

    /// kubectl by `towline run`: dialled anew each time, so that what was just given counts.
    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        let run = ["run", "--", "kubectl", "-n", &self.scene.namespace];
        self.towline(&[&run, arguments].concat())
    }

    /// Signs a statement about somebody, brings it to the relay by this one's session, and says its id.
    fn sign(&self, statement: &[&str]) -> anyhow::Result<String> {
        let key = self.scene.organisation.key.display().to_string();
        let brought = self.towline(&[&["role"], statement, &["--key", &key]].concat())?;
        ensure!(brought.ended == "exit 0", "towline role {statement:?}: {}", brought.stderr);
        let id = brought.stdout.split_whitespace().next().context("no id was printed")?;
        Ok(id.to_owned())
    }

    fn assign(&self, to: &str, role: &str, scope: &str, more: &[&str]) -> anyhow::Result<String> {
        let statement = ["assign", "--principal", to, "--role", role, "--scope", scope];
        self.sign(&[&statement, more].concat())
    }
}

/// What a command of ours prints.
fn said(command: Command) -> anyhow::Result<String> {
    let outcome = run_within(command, WITHIN)?;
    ensure!(outcome.ended == "exit 0", "{}: {}", outcome.ended, outcome.stderr);
    Ok(outcome.stdout.trim().to_owned())
}

fn works(outcome: &Outcome) -> anyhow::Result<()> {
    ensure!(outcome.ended == "exit 0", "{}: {}", outcome.ended, outcome.stderr);
    Ok(())
}

/// kubectl shows the apiserver's own 403, and beside it which layer denied and what would help.
fn denied_by(outcome: &Outcome, words: &[&str]) -> anyhow::Result<()> {
    ensure!(outcome.ended == "exit 1", "{}: {}{}", outcome.ended, outcome.stdout, outcome.stderr);
    for word in [" is forbidden: User ", "Warning: towline: denied by the cluster's RBAC"].iter().chain(words)
    {
        ensure!(outcome.stderr.contains(word), "{word:?} is missing in {}", outcome.stderr);
    }
    Ok(())
}

/// From outside in: the relay, RBAC without any role, the role, the agent's ceiling; and what each lets through once it is given.
pub(super) fn denied(scene: &Scene) -> anyhow::Result<String> {
    let ruth = Somebody::new(scene, "ruth", STAFF)?;
    let principal = ruth.principal();
    let assign = format!("towline role assign --principal '{principal}' --role ROLE --scope cluster:");

    let relay = ruth.kubectl(&["get", "pods"])?;
    let command =
        format!("towline-relay role assign --user dev:ruth --role cluster-user --cluster {CLUSTER_NAME}");
    ensure!(relay.ended != "exit 0", "she is let in: {}", relay.stdout);
    for word in [Fault::ClusterForbidden.code(), &command] {
        ensure!(relay.stderr.contains(word), "{word:?} is missing in {}", relay.stderr);
    }

    scene.stage.let_in("dev:ruth")?;
    until(|| {
        denied_by(&ruth.kubectl(&["get", "pods"])?, &["the organisation gives you no role here", &assign])
    })
    .context("RBAC")?;

    ruth.assign(&principal, "viewer", "organisation", &[])?;
    works(&ruth.kubectl(&["get", "pods"])?).context("a viewer gets")?;
    let deletes = ["delete", "configmap", "kube-root-ca.crt"];
    let more = ["your role is viewer (organisation); for more: ", &assign];
    denied_by(&ruth.kubectl(&deletes)?, &more).context("a viewer deletes")?;

    ruth.assign(&principal, "cluster-admin", "organisation", &[])?;
    works(&ruth.kubectl(&["create", "configmap", "ruth"])?).context("a writer creates")?;
    works(&ruth.kubectl(&["delete", "configmap", "ruth"])?).context("a writer deletes")?;
    let grants = ["create", "clusterrole", "ruth", "--verb=get", "--resource=pods"];
    let ceiling = "your role cluster-admin (organisation) counts as writer here, the agent's --max-relay-role: restart the agent";
    denied_by(&ruth.kubectl(&grants)?, &[ceiling]).context("the ceiling")?;
    Ok(format!(
        "{}, RBAC, role viewer, ceiling {CEILING}, each with what helps",
        Fault::ClusterForbidden.code()
    ))
}

/// A role on one branch of the tree is inherited downwards, and counts on no other.
pub(super) fn tree(scene: &Scene) -> anyhow::Result<String> {
    let tess = Somebody::new(scene, "tess", STAFF)?;
    let (principal, cluster) = (tess.principal(), &scene.stage.cluster_id);
    tess.sign(&["place", "--cluster", cluster, "--in-group", "eu/retail"])?;
    tess.assign(&principal, "writer", "group:us", &[])?;
    let relay = tess.kubectl(&["get", "pods"])?;
    let code = Fault::ClusterForbidden.code();
    ensure!(relay.ended != "exit 0" && relay.stderr.contains(code), "elsewhere: {}", relay.stderr);

    tess.assign(&principal, "viewer", "group:eu", &[])?;
    works(&tess.kubectl(&["get", "pods"])?).context("inherited")?;
    denied_by(&tess.kubectl(&["create", "configmap", "tess"])?, &["your role is viewer (group:eu)"])?;
    let explained = tess.towline(&["role", "explain", "--principal", &principal, "--cluster", cluster])?;
    works(&explained)?;
    ensure!(explained.stdout.contains("role: viewer"), "{}", explained.stdout);
    Ok("viewer by group:eu in eu/retail, and nothing by group:us".to_owned())
}

/// She may open the cluster in any case: it is the role that goes.
pub(super) fn removed(scene: &Scene) -> anyhow::Result<String> {
    let rosa = Somebody::new(scene, "rosa", STAFF)?;
    scene.stage.let_in("dev:rosa")?;
    let id = rosa.assign(&rosa.principal(), "writer", "organisation", &[])?;
    let mut open = Open::begin(scene, rosa.home.proxy(scene.stage)?, "signed-role-removed")?;
    rosa.sign(&["remove", &id])?;
    let ended = open.ended(Instant::now(), Fault::RoleEnded)?;
    let next = kubectl(scene.stage, &open.proxy, &["-n", &scene.namespace, "get", "pods"])?;
    denied_by(&next, &["the organisation gives you no role here"]).context("the next command")?;
    Ok(ended)
}

/// Nobody does anything: the document's own time is over.
pub(super) fn expired(scene: &Scene) -> anyhow::Result<String> {
    let tina = Somebody::new(scene, "tina", STAFF)?;
    let lives = format!("{}s", ROLE_LIVES.as_secs());
    let begun = Instant::now();
    tina.assign(&tina.principal(), "writer", "organisation", &["--expires-in", &lives])?;
    let mut open = Open::begin(scene, tina.home.proxy(scene.stage)?, "signed-role-expired")?;
    open.ended(begun + ROLE_LIVES, Fault::RoleEnded)
}

/// By an operator, who has no role in the cluster; and taken back on the relay's machine.
pub(super) fn revoked(scene: &Scene) -> anyhow::Result<String> {
    let stage = scene.stage;
    let vera = Somebody::new(scene, "vera", &["people"])?;
    let olga = Somebody::new(scene, "olga", STAFF)?;
    let principal = vera.principal();
    stage.let_in("dev:vera")?;
    let mut open = Open::begin(scene, stage.proxy("vera", &vera.tokens()?)?, "revoked")?;

    let revoke = ["revoke", "--principal", &principal];
    let may_not = olga.towline(&revoke)?;
    let code = Fault::QuestionForbidden.code();
    ensure!(may_not.ended != "exit 0" && may_not.stderr.contains(code), "she may: {}", may_not.stderr);
    stage.relay_command(&["role", "assign", "--user", "dev:olga", "--role", "operator"])?;
    until(|| works(&olga.towline(&revoke)?)).context("the operator")?;
    let ended = open.ended(Instant::now(), Fault::SessionRevoked)?;

    let get = ["-n", &scene.namespace, "get", "pods"];
    fails_with(&kubectl(stage, &open.proxy, &get)?, Fault::SessionRevoked).context("the next command")?;
    let again = vera.kubectl(&["get", "pods"])?;
    let code = Fault::SessionRevoked.code();
    ensure!(again.ended != "exit 0" && again.stderr.contains(code), "let in: {}", again.stderr);
    stage.relay_command(&["revoke", "--principal", &principal, "--undo"])?;
    until(|| works(&kubectl(stage, &open.proxy, &get)?)).context("taken back")?;
    Ok(format!("{ended}; refused until it was taken back"))
}

/// By oneself: a token from afterwards lets in again.
pub(super) fn revoked_own(scene: &Scene) -> anyhow::Result<String> {
    let stage = scene.stage;
    let mona = Somebody::new(scene, "mona", &["people"])?;
    stage.let_in("dev:mona")?;
    let mut open = Open::begin(scene, stage.proxy("mona", &mona.tokens()?)?, "revoked-own")?;
    works(&mona.towline(&["revoke", "--mine"])?)?;
    let ended = open.ended(Instant::now(), Fault::SessionRevoked)?;
    let since = Instant::now();
    loop {
        // Into the files that the profile names.
        mona.tokens()?;
        let again = mona.kubectl(&["get", "pods"])?;
        if again.ended == "exit 0" {
            return Ok(format!("{ended}; a new token lets in"));
        }
        ensure!(again.stderr.contains(Fault::SessionRevoked.code()), "{}", again.stderr);
        ensure!(since.elapsed() < LET_IN_WITHIN, "new tokens are refused: {}", again.stderr);
        pause(Duration::from_millis(200));
    }
}
