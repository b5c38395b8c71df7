//! Roles that the organisation signs and the relay carries, and revocations: what each layer says that denies, and what ends when one of
//! them is taken away.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::runtime::Handle;
use towline_identity::dev::DevEntra;
use towline_tunnel::{fault::Fault, role::RoleName};

use super::{Scene, endings::Open, home::Home, modes::with_files, provider::Provider};
use crate::{
    bad_days::{fails_with, kubectl, until},
    case::{Outcome, run_within},
    process::pause,
    stage::{CLUSTER_NAME, Stage, Tokens},
    table::{TOKEN_LIFETIME, apply_with},
};

/// No role counts for more at the agent as it is first, and the cluster knows each role's group: so it is the agent, and no
/// binding that is missing, that caps a role where it has another ceiling.
const CEILING: RoleName = RoleName::ClusterAdmin;
const CEILING_FLAG: &str = "--max-relay-role";
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
        let flags = [CEILING_FLAG, CEILING.name(), "--organisation-key", &public];
        stage.agent_setup.flags.extend(flags.map(str::to_owned));
        Ok(Self { key })
    }

    /// Another ceiling, or none, and so no roles: from the agent's next start on.
    fn cap(stage: &mut Stage, ceiling: Option<RoleName>) -> anyhow::Result<()> {
        let flags = &mut stage.agent_setup.flags;
        let at = flags.iter().position(|flag| flag == CEILING_FLAG).context("it has no ceiling")?;
        match ceiling {
            Some(ceiling) => ceiling.name().clone_into(flags.get_mut(at + 1).context("it has no value")?),
            // The organisation's key behind it means nothing then.
            None => drop(flags.drain(at..at + 4)),
        }
        Ok(())
    }

    /// Binds the roles' groups, as `towline-agent roles manifest` says.
    pub(super) fn bind(stage: &Stage) -> anyhow::Result<()> {
        let mut manifest = Command::new(&stage.programs.agent);
        manifest.args(["roles", "manifest", CEILING_FLAG, CEILING.name(), "--data-dir"]);
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

/// kubectl shows the apiserver's own 403.
fn forbidden(outcome: &Outcome) -> anyhow::Result<()> {
    ensure!(outcome.ended == "exit 1", "{}: {}{}", outcome.ended, outcome.stdout, outcome.stderr);
    ensure!(outcome.stderr.contains(" is forbidden: User "), "{}", outcome.stderr);
    Ok(())
}

/// kubectl shows the apiserver's own 403, and beside it which layer denied and what would help.
fn denied_by(outcome: &Outcome, words: &[&str]) -> anyhow::Result<()> {
    forbidden(outcome)?;
    for word in ["Warning: towline: denied by the cluster's RBAC"].iter().chain(words) {
        ensure!(outcome.stderr.contains(word), "{word:?} is missing in {}", outcome.stderr);
    }
    Ok(())
}

/// From outside in: the relay, RBAC without any role, the role (the agent's ceiling is [`ceiling`]); and what each lets through once it is given.
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

    ruth.assign(&principal, "writer", "organisation", &[])?;
    works(&ruth.kubectl(&["create", "configmap", "ruth"])?).context("a writer creates")?;
    works(&ruth.kubectl(&["delete", "configmap", "ruth"])?).context("a writer deletes")?;
    let more = ["your role is writer (organisation); for more: ", &assign];
    denied_by(&ruth.kubectl(&["get", "nodes"])?, &more).context("a writer gets nodes")?;
    Ok(format!("{}, RBAC, roles viewer and writer, each with what helps", Fault::ClusterForbidden.code()))
}

/// What somebody does, and the least role that lets them. What is made is named `{}`, after whoever makes it, and gone afterwards.
const ACTS: &[(RoleName, &[&str])] = &[
    (RoleName::Viewer, &["get", "pods"]),
    (RoleName::Viewer, &["get", "--namespace", "kube-system", "configmaps"]),
    (RoleName::Writer, &["create", "secret", "generic", "{}", "--from-literal=a=b"]),
    (RoleName::Writer, &["get", "secret", "{}"]),
    (RoleName::Writer, &["exec", "box", "--", "true"]),
    (RoleName::Writer, &["delete", "secret", "{}"]),
    (RoleName::Admin, &["create", "role", "{}", "--verb=get", "--resource=pods"]),
    (RoleName::Admin, &["create", "rolebinding", "{}", "--clusterrole=edit", "--user=somebody"]),
    (RoleName::Admin, &["delete", "rolebinding", "{}"]),
    (RoleName::Admin, &["delete", "role", "{}"]),
    (RoleName::ClusterAdmin, &["get", "nodes"]),
    (RoleName::ClusterAdmin, &["create", "namespace", "{}"]),
    (RoleName::ClusterAdmin, &["create", "clusterrole", "{}", "--verb=get", "--resource=pods"]),
    (RoleName::ClusterAdmin, &["create", "clusterrolebinding", "{}", "--clusterrole={}", "--user=somebody"]),
    (RoleName::ClusterAdmin, &["delete", "clusterrolebinding", "{}"]),
    (RoleName::ClusterAdmin, &["delete", "clusterrole", "{}"]),
    (RoleName::ClusterAdmin, &["delete", "namespace", "{}", "--wait=false"]),
];

impl Somebody<'_> {
    /// Does all that needs at least the role `from`; what counts is `counts`, and each denial says `words`. How much was let through, and how
    /// much denied.
    fn acts(
        &self,
        from: RoleName,
        counts: Option<RoleName>,
        words: &[&str],
    ) -> anyhow::Result<(usize, usize)> {
        let (mut may, mut may_not) = (0, 0);
        // As no namespace of another check's is named.
        let own = format!("rows-{}", self.name);
        for (least, act) in ACTS.iter().filter(|(least, _)| *least >= from) {
            let act: Vec<String> = act.iter().map(|word| word.replace("{}", &own)).collect();
            let act: Vec<&str> = act.iter().map(String::as_str).collect();
            let done = self.kubectl(&act)?;
            if counts.is_some_and(|role| role >= *least) {
                works(&done).with_context(|| format!("{act:?}"))?;
                may += 1;
            } else {
                // kubectl prints no warnings that come with an upgrade's refusal.
                let denied = match act.first() {
                    Some(&"exec") => forbidden(&done),
                    _ => denied_by(&done, words),
                };
                denied.with_context(|| format!("{act:?}"))?;
                may_not += 1;
            }
        }
        Ok((may, may_not))
    }

    /// Gives no more than they have themselves.
    fn does_not_rise(&self) -> anyhow::Result<()> {
        let rise = ["create", "rolebinding", "rise", "--clusterrole=cluster-admin", "--user=somebody"];
        let done = self.kubectl(&rise)?;
        let escalation = "attempting to grant RBAC permissions not currently held";
        ensure!(
            done.ended == "exit 1" && done.stderr.contains(escalation),
            "{}: {}",
            done.ended,
            done.stderr
        );
        Ok(())
    }
}

/// Namespaces and who may do what in them; nothing of the cluster's own.
pub(super) fn admin(scene: &Scene) -> anyhow::Result<String> {
    let amy = Somebody::new(scene, "amy", STAFF)?;
    amy.assign(&amy.principal(), "admin", "organisation", &[])?;
    let (may, may_not) = amy.acts(
        RoleName::Viewer,
        Some(RoleName::Admin),
        &["your role is admin (organisation); for more: "],
    )?;
    amy.does_not_rise()?;
    Ok(format!("{may} acts are let through, {may_not} denied; grants nothing that it lacks"))
}

/// Everything.
pub(super) fn cluster_admin(scene: &Scene) -> anyhow::Result<String> {
    let cleo = Somebody::new(scene, "cleo", STAFF)?;
    cleo.assign(&cleo.principal(), "cluster-admin", "organisation", &[])?;
    let (may, _) = cleo.acts(RoleName::Viewer, Some(RoleName::ClusterAdmin), &[])?;
    works(&cleo.kubectl(&["get", "--raw", "/metrics"])?).context("metrics")?;
    works(&cleo.kubectl(&["get", "clusterrolebindings"])?).context("who may do what")?;
    Ok(format!("{} acts are let through", may + 2))
}

/// The same cluster-admin at agents with lower ceilings: each lets through what the ceiling's role may, and says that it is the ceiling.
pub(super) fn ceiling(
    stage: &mut Stage,
    provider: &Provider,
    runtime: &Handle,
    namespace: &str,
    (organisation, entra): (&Organisation, &DevEntra),
) -> anyhow::Result<String> {
    let first = stage.agent_setup.flags.clone();
    let mut came = Vec::new();
    // Without one, which is how agents come, no role counts.
    for ceiling in [Some(RoleName::Admin), Some(RoleName::Writer), Some(RoleName::Viewer), None] {
        stage.agent_setup.flags.clone_from(&first);
        Organisation::cap(stage, ceiling)?;
        stage.restart_agent()?;
        let scene = Scene { stage, provider, runtime, namespace: namespace.to_owned(), organisation, entra };
        let cora = Somebody::new(&scene, "cora", STAFF)?;
        cora.assign(&cora.principal(), "cluster-admin", "organisation", &[])?;
        let (name, words) = match ceiling {
            Some(ceiling) => (
                ceiling.name(),
                format!(
                    "your role cluster-admin (organisation) counts as {ceiling} here, the agent's --max-relay-role: restart the agent"
                ),
            ),
            None => ("none", "an administrator of the cluster can give more: kubectl create".to_owned()),
        };
        let (may, may_not) = cora.acts(RoleName::Viewer, ceiling, &[&words]).context(name)?;
        came.push(format!("{name}: {may} let through, {may_not} denied"));
    }
    stage.agent_setup.flags = first;
    stage.restart_agent()?;
    Ok(came.join("; "))
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
