//! `cargo xtask egress`: out of every kind of network that agents and people sit in, with real proxies and real kubectl.
//!
//! A `route` is what lies between the two ends and the relay; agent and client take the same one. `rows` lists them with what is
//! expected of each: that it leads to the relay, on which carrier, and then seven of kubectl's verbs; or that it does not, and with
//! which code agent, client and preflight say so. One cluster and one relay serve all rows, one after the other.

mod ends;
mod longer;
mod nat;
mod recording;
mod route;
mod rows;
mod script;
mod swallow;
mod verbs;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::runtime::Handle;
use towline_tunnel::{fault::Fault, ids::StreamKey};
use xtask::interrupt;

use crate::{
    stage::{Stage, Tokens},
    table::{GROUP, TOKEN_LIFETIME, USER},
};
use ends::{Agent, Client};
pub use rows::{Expected, Planned, ROWS};
use verbs::Verbs;

/// What is promised to be gone.
const NETWORKS: &str = "networks of the matrix";

/// What rows are made with.
struct Scene<'a> {
    stage: &'a Stage,
    runtime: &'a Handle,
    tokens: Tokens,
    verbs: Verbs,
    /// Whether what takes minutes is done.
    long: bool,
}

/// One way, what came of it, and what was not as it must be.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was planned.
    pub planned: &'static Planned,
    /// What the agent came to: a carrier, or a code.
    pub came: String,
    /// From the agent's start until it was connected, or said that it can't.
    pub connected: Duration,
    /// From the starts of both ends, one after the other, until a stream had answered: kube-apiserver's `/version`.
    pub first_stream: Option<Duration>,
    /// What became of each verb, in the order of `verbs::NAMES`.
    pub verbs: Vec<bool>,
    /// What else was seen.
    pub notes: Vec<String>,
    /// What was not as expected.
    pub faults: Vec<String>,
}

/// Makes the rows that are chosen; `told` hears of each.
///
/// The stage's own agent stops meanwhile, and is started again at the end.
///
/// # Errors
/// If nothing can be made at all. What a row finds is in the row.
pub fn run(
    stage: &mut Stage,
    runtime: &Handle,
    long: bool,
    chosen: impl Fn(&Planned) -> bool,
    mut told: impl FnMut(&Row),
) -> anyhow::Result<Vec<Row>> {
    nat::sweep();
    // Told to end, this process stops all that it started, with a cluster of somebody else's as well.
    interrupt::promise(NETWORKS, nat::remove_own)?;
    stage.let_in(USER)?;
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let namespace = format!("egress-{}", &StreamKey::random().to_string()[..8]);
    let verbs = Verbs::prepare(&stage.cluster, &namespace)?;
    stage.agent.kill();
    let scene = Scene { stage, runtime, tokens, verbs, long };
    let rows = ROWS.iter().filter(|planned| chosen(planned)).map(|planned| {
        let row = scene.row(planned);
        // Once this process is told to end, what still fails is no finding, and nothing is begun any more.
        interrupt::uninterrupted(|| told(&row));
        row
    });
    let rows: Vec<Row> = rows.collect();
    stage.cluster.kubectl_output(&["delete", "namespace", &namespace, "--wait=false"])?;
    stage.restart_agent()?;
    interrupt::keep(NETWORKS, nat::remove_own);
    Ok(rows)
}

impl Scene<'_> {
    fn row(&self, planned: &'static Planned) -> Row {
        let mut row = Row {
            planned,
            came: "–".into(),
            connected: Duration::ZERO,
            first_stream: None,
            verbs: Vec::new(),
            notes: Vec::new(),
            faults: Vec::new(),
        };
        if let Err(error) = self.go(planned, &mut row) {
            row.faults.push(format!("{error:#}"));
        }
        row
    }

    fn go(&self, planned: &Planned, row: &mut Row) -> anyhow::Result<()> {
        let _entered = self.runtime.enter();
        let folder = TempDir::with_prefix("towline-egress-")?;
        share(folder.path())?;
        let route = (planned.lay)(self, folder.path()).context("the way can't be laid")?;
        let begun = Instant::now();
        let mut agent = Agent::start(self.stage, &route, folder.path())?;
        let refused = matches!(planned.expected, Expected::Refused { .. });
        let came = agent.came(refused)?;
        row.connected = begun.elapsed();
        row.came = came.to_string();
        match (&planned.expected, came) {
            (Expected::Through { rung, warned }, ends::Came::Connected(carrier)) => {
                row.notes.extend(agent.met_before());
                let (client, took) = Client::start(self.stage, &self.tokens, &route, folder.path())?;
                row.first_stream = Some(row.connected + took);
                for (end, by) in [("the agent", carrier), ("the client", client.carrier())] {
                    row.expect(by == *rung, || format!("{end} is connected by {by}, and not by {rung}"));
                }
                if let Some(warned) = warned {
                    let said = ends::warned(self.stage, &route)?;
                    row.expect(said == [warned.code()], || format!("preflight warns of {said:?}"));
                    row.notes.push(format!("preflight warns of {}", said.join(", ")));
                }
                for (verb, outcome) in self.verbs.run(&route, &client.kubeconfig, folder.path())? {
                    row.verbs.push(outcome.is_ok());
                    row.faults.extend(outcome.err().map(|error| format!("{verb}: {error:#}")));
                }
                if let Some(also) = planned.also {
                    let passage = Passage { scene: self, client, agent, route };
                    row.notes.push(also(passage, folder.path())?);
                }
                Ok(())
            }
            (Expected::Refused { running, looking }, ends::Came::Refused(code)) => {
                row.expect(code == running.code(), || format!("the agent says {code}"));
                drop(agent);
                let client = ends::refused_client(self.stage, &self.tokens, &route, folder.path())?;
                row.expect(client == running.code(), || format!("the client says {client}"));
                let looked = ends::preflight(self.stage, &route)?;
                row.expect(looked == looking.code(), || format!("preflight says {looked}"));
                row.notes.push(format!("preflight: {looked}"));
                Ok(())
            }
            (_, came) => anyhow::bail!("the agent came to: {came}"),
        }
    }
}

/// Both ends, connected by a way, in the order in which they end.
struct Passage<'a> {
    scene: &'a Scene<'a>,
    client: Client,
    agent: Agent,
    route: route::Route,
}

impl Row {
    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(otherwise());
        }
    }

    /// Whether all is as expected.
    pub fn is_as_expected(&self) -> bool {
        self.faults.is_empty()
    }

    /// The head of the table, in Markdown.
    pub fn head() -> String {
        let verbs = verbs::NAMES.join(" | ");
        format!(
            "| network | | connects? | by | agent | first stream | {verbs} | as expected |\n|---|---|---|---|---|---|{}---|",
            "---|".repeat(verbs::NAMES.len())
        )
    }

    /// The line of the table, in Markdown.
    pub fn print(&self) -> String {
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let (connects, by) = match self.planned.expected {
            Expected::Through { .. } if self.first_stream.is_some() => ("yes".to_owned(), self.came.clone()),
            _ => (format!("refused: {}", self.came), "–".into()),
        };
        let verbs: String = (0..verbs::NAMES.len())
            .map(|n| match self.verbs.get(n) {
                Some(true) => "ok | ",
                Some(false) => "FAILED | ",
                None => "– | ",
            })
            .collect();
        let verdict = match (self.faults.as_slice(), self.notes.as_slice()) {
            ([], []) => "yes".to_owned(),
            ([], notes) => format!("yes ({})", notes.join("; ")),
            (faults, _) => format!("NO: {}", faults.join("; ").replace('\n', " ⏎ ").replace('|', "/")),
        };
        format!(
            "| {} | {} | {connects} | {by} | {} | {} | {verbs}{verdict} |",
            self.planned.name,
            self.planned.what,
            seconds(self.connected),
            self.first_stream.map_or_else(|| "–".to_owned(), seconds),
        )
    }
}

/// Proxies give up root's rights, and then read and write here.
fn share(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?)
}

/// A fault that both ends and preflight call the same.
const fn refused(fault: Fault) -> Expected {
    Expected::Refused { running: fault, looking: fault }
}
