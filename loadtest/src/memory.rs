//! What idle agents, idle streams and the agent's process cost.

use std::time::Duration;

use clap::Args;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

use crate::{
    figure::Figure,
    fleet::{Fleet, Shape, allow_open_files, settled},
    near::{Http, SMALL},
    rig::{
        Rig,
        agent::{Member, Service},
        client::opened,
        paths::Simulated,
        programs::{Lines, Programs},
        way::Via,
    },
    terms::Terms,
    told::Told,
};

/// Streams of one client: a little less than a relay allows.
const EACH_CLIENT: usize = 1000;
/// Whatever takes longer is broken.
const LONGEST: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Idle agents
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
    /// Idle streams
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_000))]
    streams: u32,
    #[command(flatten)]
    shape: Shape,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or fails.
pub async fn run(arguments: Arguments, _terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    let agents = arguments.agents as usize;
    allow_open_files(agents)?;
    idle_agents(agents, arguments.shape, told).await?;
    idle_streams(arguments.streams as usize, told).await?;
    pooled_streams(told).await?;
    agent_process(told).await
}

async fn idle_agents(agents: usize, shape: Shape, told: &mut Told) -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let before = settled(rig.relay.pid()).await?.private;
    let bar = told.begin("agents join", agents);
    let (fleet, _) = Fleet::join(&rig, agents, shape, &bar).await?;
    let after = settled(rig.relay.pid()).await?.private;
    told.note(each(format!("relay, each of {agents} idle agents"), before, after, agents));
    drop(fleet);
    Ok(())
}

/// Streams that were opened and never used.
async fn idle_streams(streams: usize, told: &mut Told) -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let member = Member::new();
    let agent = rig.agent_of(member.clone(), "streams", Service::Hold, Via::STRAIGHT).await?;
    let bar = told.begin("streams", streams);
    let mut clients = Vec::new();
    for _ in 0..streams.div_ceil(EACH_CLIENT) {
        clients.push(rig.client_of(member.cluster(), Via::STRAIGHT).await?);
    }
    let before = settled(rig.relay.pid()).await?.private;
    let mut held = Vec::with_capacity(streams);
    for number in 0..streams {
        let stream = clients[number / EACH_CLIENT].open(member.cluster())?;
        held.push(opened(stream).await?);
        bar.inc(1);
    }
    let after = settled(rig.relay.pid()).await?.private;
    told.note(each(format!("relay, each of {streams} idle streams"), before, after, streams));
    drop(held);
    drop(agent);
    Ok(())
}

/// Connections as the proxy keeps them: each has carried a request.
async fn pooled_streams(told: &mut Told) -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let path = Simulated::end_to_end(&rig).await?;
    let before = settled(rig.relay.pid()).await?.private;
    let bar = told.begin("pooled streams", EACH_CLIENT);
    let mut pool = Vec::with_capacity(EACH_CLIENT);
    for _ in 0..EACH_CLIENT {
        let mut http = Http::dial(&path).await?;
        timeout(LONGEST, http.get(SMALL)).await??;
        pool.push(http);
        bar.inc(1);
    }
    // `received` is told within a second.
    sleep(Duration::from_millis(1100)).await;
    let ends = path.client().connection().held() + path.agent().connection().held();
    let name = format!("both ends hold for {EACH_CLIENT} pooled streams, 1.1 s after the last answer");
    told.note(Figure::once(name, "bytes", ends as f64, EACH_CLIENT));
    let after = settled(rig.relay.pid()).await?.private;
    told.note(each(
        format!("relay, each of {EACH_CLIENT} pooled streams with inner TLS"),
        before,
        after,
        EACH_CLIENT,
    ));
    Ok(())
}

async fn agent_process(told: &mut Told) -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let programs = Programs::start(&rig, "agent", Lines::default())?;
    for (name, pid) in [("agent", programs.agent()), ("proxy", programs.proxy()), ("relay", rig.relay.pid())]
    {
        let memory = settled(pid).await?;
        told.note(Figure::once(
            format!("{name} process, idle, resident"),
            "MiB",
            mebibytes(memory.resident),
            1,
        ));
        told.note(Figure::once(
            format!("{name} process, idle, private"),
            "MiB",
            mebibytes(memory.private),
            1,
        ));
    }
    // After a gigabyte went through it and came back.
    let mut raw = crate::near::raw(&programs, crate::far::Verb::Source(Some(1 << 30))).await?;
    let mut block = vec![0; 64 * 1024];
    while timeout(LONGEST, raw.read(&mut block)).await?? > 0 {}
    raw.shutdown().await?;
    let memory = settled(programs.agent()).await?;
    told.note(Figure::once("agent process, after 1 GiB, resident", "MiB", mebibytes(memory.resident), 1));
    Ok(())
}

fn each(name: String, before: u64, after: u64, of: usize) -> Figure {
    Figure::once(name, "KiB", after.saturating_sub(before) as f64 / 1024.0 / of as f64, of)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
