//! The first table: what one request, one connection, one copy and one idle agent cost, directly and through towline.
//!
//! Direct and through run in turns (A B B A), in one run, against the same apiserver, as the same user, from the same
//! program; each pair gives one ratio.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use towline_e2e::{
    programs::Programs,
    stage::{Stage, image},
    table::{GROUP, TOKEN_LIFETIME, USER, apply_with, direct_kubeconfig, grant},
};
use xtask::cluster::Cluster;

use crate::{fleet::Fleet, stats::Figure, target::Target};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Pairs of each measurement.
    pub pairs: usize,
    /// Requests of one half of a latency pair.
    pub requests: usize,
    /// Connections of one half of an opens pair.
    pub opens: usize,
    /// Bytes of one half of a copy pair.
    pub copy: u64,
    /// Idle agents.
    pub agents: usize,
}

/// Small, and not empty.
const PATH: &str = "/api/v1/namespaces/default";

/// Sets the stage, and measures; `told` hears of each figure.
///
/// # Errors
/// If something can't be set up, or fails.
pub async fn run(
    cluster: &Cluster,
    programs: Programs,
    amount: Amount,
    mut told: impl FnMut(&Figure),
) -> anyhow::Result<Vec<Figure>> {
    grant(cluster)?;
    let stage = Stage::set(cluster.clone(), programs).await?;
    stage.let_in(USER)?;
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let proxy = stage.proxy("baseline", &tokens)?;
    let direct_file = direct_kubeconfig(cluster, stage.folder(), USER, &[GROUP])?;
    let (direct, through) = (Target::of_kubeconfig(&direct_file)?, Target::of_kubeconfig(&proxy.kubeconfig)?);
    let mut figures = Vec::new();
    let mut note = |figure: Figure| {
        told(&figure);
        figures.push(figure);
    };

    let (p50, p99) = latencies(&direct, &through, amount).await?;
    note(Figure::of_pairs("small GET, p50", "ms", &p50));
    note(Figure::of_pairs("small GET, p99", "ms", &p99));
    note(Figure::of_pairs("connection + GET, one by one", "ms", &opens(&direct, &through, amount).await?));
    let copies = copies(cluster, &direct_file, &proxy.kubeconfig, amount)?;
    note(Figure::of_pairs("exec output, goodput", "MB/s", &copies));
    note(Figure::alone("agent, idle, resident", "MiB", resident(stage.agent.id())?, 1));
    for figure in relay_memory(&stage, amount.agents).await? {
        note(figure);
    }
    Ok(figures)
}

/// Runs one half after the other, and the other way round the next time.
async fn in_turns<T, D, R>(
    pairs: usize,
    mut direct: impl FnMut() -> D,
    mut through: impl FnMut() -> R,
) -> anyhow::Result<Vec<(T, T)>>
where
    D: Future<Output = anyhow::Result<T>>,
    R: Future<Output = anyhow::Result<T>>,
{
    let mut results = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        if pair % 2 == 0 {
            let first = direct().await?;
            results.push((first, through().await?));
        } else {
            let first = through().await?;
            results.push((direct().await?, first));
        }
    }
    Ok(results)
}

type Pairs = Vec<(f64, f64)>;

async fn latencies(direct: &Target, through: &Target, amount: Amount) -> anyhow::Result<(Pairs, Pairs)> {
    let half = async |target: &Target| -> anyhow::Result<(f64, f64)> {
        let mut connection = target.connect().await?;
        for _ in 0..amount.requests / 10 {
            connection.get(PATH).await?;
        }
        let mut micros = Histogram::<u64>::new(3)?;
        for _ in 0..amount.requests {
            let begun = Instant::now();
            connection.get(PATH).await?;
            micros.record(u64::try_from(begun.elapsed().as_micros())?)?;
        }
        let millis = |quantile: f64| micros.value_at_quantile(quantile) as f64 / 1000.0;
        Ok((millis(0.5), millis(0.99)))
    };
    let pairs = in_turns(amount.pairs, || half(direct), || half(through)).await?;
    let column = |pick: fn(&(f64, f64)) -> f64| {
        pairs.iter().map(|(direct, through)| (pick(direct), pick(through))).collect()
    };
    Ok((column(|half| half.0), column(|half| half.1)))
}

async fn opens(direct: &Target, through: &Target, amount: Amount) -> anyhow::Result<Pairs> {
    let half = async |target: &Target| -> anyhow::Result<f64> {
        let begun = Instant::now();
        for _ in 0..amount.opens {
            target.connect().await?.get(PATH).await?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1000.0 / amount.opens as f64)
    };
    in_turns(amount.pairs, || half(direct), || half(through)).await
}

fn copies(
    cluster: &Cluster,
    direct: &Path,
    through: &Path,
    amount: Amount,
) -> anyhow::Result<Vec<(f64, f64)>> {
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: source, namespace: default}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - {{name: c, image: \"{}\", imagePullPolicy: Never, command: [sleep, \"36000\"]}}\n",
        image()
    );
    apply_with(cluster, &["apply", "-f", "-"], &yaml)?;
    cluster.kubectl_output(&["wait", "pod/source", "--for=condition=Ready", "--timeout=60s"])?;
    let half = |kubeconfig: &Path| -> anyhow::Result<f64> {
        let begun = Instant::now();
        let output = Command::new(cluster.programs().kubectl())
            .env("KUBECONFIG", kubeconfig)
            .args([
                "-n",
                "default",
                "exec",
                "source",
                "--",
                "head",
                "-c",
                &amount.copy.to_string(),
                "/dev/zero",
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("kubectl can't be run")?;
        ensure!(
            output.status.success() && output.stdout.len() as u64 == amount.copy,
            "the copy is not whole"
        );
        Ok(amount.copy as f64 / 1e6 / begun.elapsed().as_secs_f64())
    };
    let mut pairs = Vec::new();
    for pair in 0..amount.pairs.div_ceil(2) {
        if pair % 2 == 0 {
            let first = half(direct)?;
            pairs.push((first, half(through)?));
        } else {
            let first = half(through)?;
            pairs.push((half(direct)?, first));
        }
    }
    Ok(pairs)
}

/// What the relay's memory grows by for each idle agent session.
async fn relay_memory(stage: &Stage, agents: usize) -> anyhow::Result<Vec<Figure>> {
    let token = stage.relay_command(&["enroll", "fleet"])?;
    let ca = stage.relay_dir().join("tls-ca.pem");
    let before = resident(stage.relay.id())?;
    let begun = Instant::now();
    let fleet = Fleet::connect(&token, &ca, agents).await?;
    let took = begun.elapsed();
    // What the handshakes needed is given back.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let grown = resident(stage.relay.id())? - before;
    ensure!(fleet.open() == agents, "{} of {agents} sessions are open", fleet.open());
    fleet.end().await;
    Ok(vec![
        Figure::alone("relay, per idle agent", "KiB", grown * 1024.0 / agents as f64, agents),
        Figure::alone("agents joining, one by one", "/s", agents as f64 / took.as_secs_f64(), agents),
    ])
}

/// Resident memory of a process, in MiB.
fn resident(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}
