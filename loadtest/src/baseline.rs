//! The first table: what one request, one connection, one copy and one idle agent cost, directly and through towline.
//!
//! Direct and through run in turns (A B B A), in one run, against the same apiserver, as the same user, from the same
//! program; each pair gives one ratio.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use towline_e2e::{
    programs::Programs,
    stage::{Stage, image},
    table::{GROUP, TOKEN_LIFETIME, USER, apply_with, direct_kubeconfig, grant},
};
use xtask::cluster::{Cluster, Options};

use crate::{
    figure::Figure,
    procfs,
    stats::{histogram, in_turns, millis},
    target::Target,
    terms::Terms,
    told::Told,
};

/// How much is measured.
#[derive(Args, Clone, Copy, Debug)]
pub struct Arguments {
    /// Requests of one half of a latency pair
    #[arg(long, default_value_t = 300, value_name = "N")]
    requests: u32,
    /// Connections of one half of an opens pair
    #[arg(long, default_value_t = 50, value_name = "N")]
    opens: u32,
    /// Bytes of one half of a copy pair
    #[arg(long, default_value_t = 100_000_000, value_name = "BYTES")]
    copy: u64,
}

/// Small, and not empty.
const PATH: &str = "/api/v1/namespaces/default";

/// Makes a cluster, and measures.
///
/// # Errors
/// If something can't be set up, or fails.
pub async fn run(arguments: Arguments, terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    let programs = Programs::build()?;
    let options =
        Options { name: format!("load-{}", std::process::id()), node: true, apiserver_arguments: Vec::new() };
    let cluster = Cluster::up(&options)?;
    let measured = measure(&cluster, programs, arguments, terms.runs(), told).await;
    cluster.down()?;
    measured
}

async fn measure(
    cluster: &Cluster,
    programs: Programs,
    amount: Arguments,
    runs: usize,
    told: &mut Told,
) -> anyhow::Result<()> {
    grant(cluster)?;
    let stage = Stage::set(cluster.clone(), programs).await?;
    stage.let_in(USER)?;
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let proxy = stage.proxy("baseline", &tokens)?;
    let direct_file = direct_kubeconfig(cluster, stage.folder(), USER, &[GROUP])?;
    let (direct, through) =
        (Target::of_kubeconfig(&direct_file, b"h2")?, Target::of_kubeconfig(&proxy.kubeconfig, b"h2")?);
    let mut note = |name: &str, unit, pairs: &[(f64, f64)]| {
        let name = format!("kube-apiserver, {name}");
        told.note(Figure::of_pairs(name, unit, "direct", pairs));
    };

    let latency = async |target: &Target| latencies(target, amount.requests).await;
    let latencies = in_turns(runs, async || latency(&through).await, async || latency(&direct).await).await?;
    let column = |pick: fn(&(f64, f64)) -> f64| {
        latencies.iter().map(|(through, direct)| (pick(through), pick(direct))).collect::<Vec<_>>()
    };
    note("small GET, p50", "ms", &column(|half| half.0));
    note("small GET, p99", "ms", &column(|half| half.1));
    let open = async |target: &Target| opens(target, amount.opens).await;
    let opens = in_turns(runs, async || open(&through).await, async || open(&direct).await).await?;
    note("connection + GET, one by one", "ms", &opens);
    let copies = copies(cluster, &proxy.kubeconfig, &direct_file, amount.copy, runs.div_ceil(2)).await?;
    note("exec output", "MB/s", &copies);
    let resident = procfs::memory(stage.agent.id())?.resident as f64 / f64::from(1 << 20);
    told.note(Figure::once("agent process, idle, resident", "MiB", resident, 1));
    Ok(())
}

async fn latencies(target: &Target, requests: u32) -> anyhow::Result<(f64, f64)> {
    let mut connection = target.connect().await?;
    for _ in 0..requests / 10 {
        connection.get(PATH).await?;
    }
    let mut micros = histogram();
    for _ in 0..requests {
        let begun = Instant::now();
        connection.get(PATH).await?;
        micros.saturating_record(u64::try_from(begun.elapsed().as_micros())?);
    }
    Ok((millis(&micros, 0.5), millis(&micros, 0.99)))
}

async fn opens(target: &Target, connections: u32) -> anyhow::Result<f64> {
    let begun = Instant::now();
    for _ in 0..connections {
        target.connect().await?.get(PATH).await?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1000.0 / f64::from(connections))
}

async fn copies(
    cluster: &Cluster,
    through: &Path,
    direct: &Path,
    bytes: u64,
    runs: usize,
) -> anyhow::Result<Vec<(f64, f64)>> {
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: source, namespace: default}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - {{name: c, image: \"{}\", imagePullPolicy: Never, command: [sleep, \"36000\"]}}\n",
        image()
    );
    apply_with(cluster, &["apply", "-f", "-"], &yaml)?;
    cluster.kubectl_output(&["wait", "pod/source", "--for=condition=Ready", "--timeout=60s"])?;
    let kubectl = cluster.programs().kubectl();
    let half = |kubeconfig: &Path| -> anyhow::Result<f64> {
        let begun = Instant::now();
        let output = Command::new(&kubectl)
            .env("KUBECONFIG", kubeconfig)
            .args(["-n", "default", "exec", "source", "--", "head", "-c", &bytes.to_string(), "/dev/zero"])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("kubectl can't be run")?;
        ensure!(output.status.success() && output.stdout.len() as u64 == bytes, "the copy is not whole");
        Ok(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
    };
    in_turns(runs, async || half(through), async || half(direct)).await
}
