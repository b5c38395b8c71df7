//! Many agents at once: how fast they join, whether they stay, what they cost the relay.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};
use towline_tunnel::mux::{EndpointConfig, Ledger};

use crate::{
    figure::Figure,
    latency::percentiles,
    procfs,
    rig::{
        self, Rig,
        agent::{Agent, Member, Service},
        way::{Via, Way},
    },
    stats::histogram,
    terms::Terms,
    told::Told,
};

/// What an idle agent of a fleet promises at most.
const PROMISES: u64 = 1 << 20;
/// What handshakes needed is given back within this.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);
/// Descriptors beside those of the agents.
const OTHER_FILES: u64 = 200;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Agents
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
    #[command(flatten)]
    shape: Shape,
}

/// How a fleet joins.
#[derive(Args, Clone, Copy, Debug)]
pub struct Shape {
    /// Clusters whose instances the agents are
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clusters: u32,
    /// Agents that join at once
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub at_once: u16,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or an agent is refused.
pub async fn run(arguments: Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    let agents = arguments.agents as usize;
    allow_open_files(agents)?;
    let rig = Rig::start(&[]).await?;
    let before = procfs::memory(rig.relay.pid())?;
    let bar = told.begin("agents join", agents);
    let (fleet, took) = Fleet::join(&rig, agents, arguments.shape, &bar).await?;
    let rate = agents as f64 / took.as_secs_f64();
    told.note(Figure::once(format!("{agents} agents enrol and join"), "/s", rate, agents));
    percentiles(told, "an agent's dial, handshake and enrolment", std::iter::once(&fleet.joins))?;
    let after = settled(rig.relay.pid()).await?;
    let each = after.private.saturating_sub(before.private) as f64 / 1024.0 / agents as f64;
    told.note(Figure::once(format!("relay, each of {agents} idle agents"), "KiB", each, agents));
    let cpu = procfs::cpu(rig.relay.pid())?;
    let begun = Instant::now();
    sleep(terms.window().max(Duration::from_secs(6))).await;
    let used = (procfs::cpu(rig.relay.pid())? - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    told.note(Figure::once(format!("relay CPU, {agents} idle agents"), "cores", used, agents));
    let lost = agents - fleet.open();
    told.note(Figure::once(format!("of {agents} idle agents, lost"), "agents", lost as f64, agents));
    ensure!(lost == 0, "{lost} of {agents} agents lost their session");
    Ok(())
}

/// Agents that are connected. Dropping it cuts them.
#[derive(Debug)]
pub struct Fleet {
    agents: Vec<(Member, Agent)>,
    joins: Histogram<u64>,
}

impl Fleet {
    /// Enrols clusters, and joins instances of them; how long that took without the making of enrolment tokens.
    ///
    /// # Errors
    /// If one of them is refused.
    pub async fn join(
        rig: &Rig,
        agents: usize,
        shape: Shape,
        bar: &ProgressBar,
    ) -> anyhow::Result<(Self, Duration)> {
        let way = rig.way(Via::STRAIGHT)?;
        let clusters = (shape.clusters as usize).min(agents);
        let mut tokens = Vec::new();
        for number in 0..clusters {
            tokens.push(rig.relay.enroll(&format!("fleet-{number}"))?);
        }
        let begun = Instant::now();
        let (mut joined, mut joins) = (Vec::with_capacity(agents), histogram());
        for token in &tokens {
            let mut member = Member::new();
            let since = Instant::now();
            let session = member.join(&way, token).await?;
            joins.saturating_record(micros(since));
            let agent = Agent::serve(session, &member, idle(), Service::Hold);
            joined.push((member, agent));
            bar.inc(1);
        }
        let places = Arc::new(Semaphore::new(shape.at_once.into()));
        let mut joining = JoinSet::new();
        for number in clusters..agents {
            let member = joined[number % clusters].0.sibling();
            let (way, places, bar) = (way.clone(), Arc::clone(&places), bar.clone());
            joining.spawn(async move {
                let _place = places.acquire().await?;
                let joined = join(member, &way).await.with_context(|| format!("agent {number}"));
                bar.inc(1);
                joined
            });
        }
        while let Some(ended) = joining.join_next().await {
            let (member, agent, micros) = ended??;
            joins.saturating_record(micros);
            joined.push((member, agent));
        }
        Ok((Self { agents: joined, joins }, begun.elapsed()))
    }

    /// How many have a session.
    pub fn open(&self) -> usize {
        self.agents.iter().filter(|(_, agent)| agent.connection().is_open()).count()
    }

    /// Who they are; their sessions end.
    pub async fn members(self) -> Vec<Member> {
        let mut members = Vec::with_capacity(self.agents.len());
        for (member, agent) in self.agents {
            agent.end().await;
            members.push(member);
        }
        members
    }

    /// Who they are, with their sessions.
    pub fn into_agents(self) -> Vec<(Member, Agent)> {
        self.agents
    }
}

async fn join(mut member: Member, way: &Way) -> anyhow::Result<(Member, Agent, u64)> {
    let since = Instant::now();
    let session = member.join_sibling(way).await?;
    let agent = Agent::serve(session, &member, idle(), Service::Hold);
    Ok((member, agent, micros(since)))
}

/// What an agent of a fleet has.
pub fn idle() -> EndpointConfig {
    EndpointConfig { max_streams: 16, ledger: Ledger::new(PROMISES), ..rig::endpoint() }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Memory of a process, once it no longer changes much.
///
/// # Errors
/// If the process is gone.
pub async fn settled(pid: u32) -> anyhow::Result<procfs::Memory> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    let (mut last, mut quiet) = (procfs::memory(pid)?, 0);
    // Quiet for a second and a half: the mux tells within one what it no longer needs.
    while quiet < 6 && Instant::now() < deadline {
        sleep(Duration::from_millis(250)).await;
        let now = procfs::memory(pid)?;
        quiet = if now.private.abs_diff(last.private) < last.private / 200 { quiet + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}

/// Raises the limit of open files to what the fleet needs, here and in what is started from here.
///
/// # Errors
/// If it may not be so high.
pub fn allow_open_files(sessions: usize) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = sessions as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    ensure!(
        limit.maximum.is_none_or(|maximum| maximum >= wanted),
        "{sessions} agents need {wanted} open files, and the limit is {:?} (ulimit -Hn)",
        limit.maximum
    );
    let raised = Rlimit { current: limit.maximum.or(Some(wanted)), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("the limit of open files can't be raised")
}
