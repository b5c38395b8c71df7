//! How many streams a relay opens and ends: OPEN → OPENED → FIN and FIN, with nothing in between.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use clap::Args;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::{sleep, timeout},
};
use towline_tunnel::{ids::ClusterId, inner::InnerConnector};

use crate::{
    figure::Figure,
    path::Duplex,
    procfs,
    rig::{
        Rig,
        agent::{Agent, Member, Service},
        client::Client,
        way::Via,
    },
    terms::Terms,
    told::Told,
};

/// A stream that takes longer is broken.
const LONGEST: Duration = Duration::from_secs(20);

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Clients, each with a cluster of its own
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    sessions: u16,
    /// Streams that each client has open at once
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    at_once: u16,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or fails.
pub async fn run(arguments: Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    for with_inner in [false, true] {
        let mut pairs = Vec::new();
        for number in 0..arguments.sessions {
            pairs.push(Pair::new(&rig, &format!("opens-{with_inner}-{number}"), with_inner).await?);
        }
        let what = if with_inner { "streams with inner TLS" } else { "streams" };
        let bar = told.begin(&format!("{what}, opened and ended"), terms.runs());
        let (mut a_second, mut a_core, mut all_cores) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..terms.runs() {
            let seen = one(&rig, &pairs, arguments.at_once.into(), terms).await?;
            a_second.push(seen.count as f64 / seen.took.as_secs_f64());
            a_core.push(seen.count as f64 / seen.relay.as_secs_f64());
            all_cores.push(seen.count as f64 / (seen.relay + seen.ends).as_secs_f64());
            bar.inc(1);
        }
        told.note(Figure::of_runs(
            format!("{what} opened and ended, each core second of the relay"),
            "/s",
            &a_core,
        ));
        told.note(Figure::of_runs(
            format!("{what} opened and ended, relay and both ends together"),
            "/s",
            &a_second,
        ));
        let name = format!("{what} opened and ended, each core second of relay and both ends");
        told.note(Figure::of_runs(name, "/s", &all_cores));
    }
    Ok(())
}

/// A client and the cluster that it opens.
struct Pair {
    client: Client,
    cluster: ClusterId,
    inner: Option<InnerConnector>,
    _agent: Agent,
}

impl Pair {
    async fn new(rig: &Rig, name: &str, with_inner: bool) -> anyhow::Result<Arc<Self>> {
        let member = Member::new();
        let service = if with_inner { Service::EndInner(member.inner()?) } else { Service::End };
        let agent = rig.agent_of(member.clone(), name, service, Via::STRAIGHT).await?;
        let client = rig.client_of(member.cluster(), Via::STRAIGHT).await?;
        let inner = with_inner.then(|| client.inner(member.cluster())).transpose()?;
        Ok(Arc::new(Self { client, cluster: member.cluster(), inner, _agent: agent }))
    }

    async fn open_and_end(&self) -> anyhow::Result<()> {
        let mut stream: Box<dyn Duplex> = match &self.inner {
            None => Box::new(self.client.open(self.cluster)?),
            Some(inner) => Box::new(self.client.open_inner(self.cluster, inner).await?),
        };
        stream.shutdown().await?;
        ensure!(stream.read(&mut [0; 1]).await? == 0, "bytes on a stream that has none");
        Ok(())
    }
}

struct Seen {
    count: u64,
    took: Duration,
    relay: Duration,
    ends: Duration,
}

async fn one(rig: &Rig, pairs: &[Arc<Pair>], at_once: usize, terms: &Terms) -> anyhow::Result<Seen> {
    let (count, mut workers) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    for pair in pairs {
        for _ in 0..at_once {
            let (pair, count) = (Arc::clone(pair), Arc::clone(&count));
            workers.spawn(async move {
                loop {
                    timeout(LONGEST, pair.open_and_end()).await??;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    let measure = async {
        sleep(terms.warm_up()).await;
        let (relay, me) = (rig.relay.pid(), std::process::id());
        let (begun, before) = (Instant::now(), count.load(Ordering::Relaxed));
        let (relay_before, ends_before) = (procfs::cpu(relay)?, procfs::cpu(me)?);
        sleep(terms.window()).await;
        Ok(Seen {
            count: count.load(Ordering::Relaxed) - before,
            took: begun.elapsed(),
            relay: procfs::cpu(relay)? - relay_before,
            ends: procfs::cpu(me)? - ends_before,
        })
    };
    tokio::select! {
        seen = measure => seen,
        Some(failed) = workers.join_next() => {
            let failed: anyhow::Result<()> = failed?;
            failed.and_then(|()| bail!("a worker ended"))
        }
    }
}
