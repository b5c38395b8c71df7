//! A carrier that is cut again and again, under a transfer and under typing: not a byte may be lost, repeated or
//! reordered, and neither may end.
//!
//! Both legs of the three programs lead over lines; now one is cut, now the other. What arrives is compared with what
//! was sent, byte by byte as it comes, and by SHA-256 at the end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::digest::{Context as Digest, SHA256};
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::{interval, sleep, timeout},
};

use crate::{
    far::Verb,
    figure::Figure,
    line::{Line, Nature},
    near::{self, Http, SMALL},
    path::Path,
    pattern::{PIECE, Pattern},
    rig::{
        Rig,
        programs::{Lines, Programs},
    },
    stats::{histogram, millis},
    terms::Terms,
    told::Told,
};

/// Nothing may stand still for so long: it is what a stream is given to come back.
const SILENCE: Duration = Duration::from_secs(60);
/// Keys in a second, and how many may be on their way.
const KEYS: u64 = 20;
const KEYS_ON_THEIR_WAY: usize = 4096;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Bytes in each direction
    #[arg(long, default_value_t = 1_000_000_000, value_name = "BYTES")]
    bytes: u64,
    /// Seconds between cuts
    #[arg(long, default_value_t = 2.0, value_name = "S")]
    every: f64,
    /// Megabits a second of the lines, so that a transfer lasts for several cuts
    #[arg(long, default_value_t = 400.0, value_name = "MBIT")]
    rate: f64,
    /// Never cut: what the same takes without
    #[arg(long)]
    never: bool,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or a byte is wrong or missing.
pub async fn run(arguments: Arguments, _terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    ensure!(arguments.every >= 0.1 && arguments.rate >= 1.0, "--every is at least 0.1, --rate at least 1");
    let rig = Rig::start(&[]).await?;
    let nature = Nature::new(Duration::from_millis(4), Some(arguments.rate * 1e6));
    let agent = Line::to(rig.relay.address(), nature).await?;
    let proxy = Line::to(rig.relay.address(), nature).await?;
    let lines = Lines { agent: Some(agent.address()), proxy: Some(proxy.address()) };
    let programs = Programs::start(&rig, "cut", lines)?;
    let mut failures = Vec::new();
    for what in [What::Down, What::Up, What::Typing] {
        let name = match what {
            What::Down => "transfer down",
            What::Up => "transfer up",
            What::Typing => "typing",
        };
        let bar = told.begin(name, usize::try_from(arguments.bytes).unwrap_or(usize::MAX));
        let begun = Instant::now();
        let mut cuts = 0;
        let carried = {
            let carried = carry(&programs, what, &arguments, &bar);
            let cutting = cut([&agent, &proxy], &arguments, &mut cuts);
            tokio::select! {
                carried = carried => carried,
                never = cutting => match never {},
            }
        };
        let every =
            if arguments.never { "never cut".to_owned() } else { format!("cut every {} s", arguments.every) };
        let name = format!("{name}, {every}");
        let note = |told: &mut Told, what: &str, unit, value, n| {
            told.note(Figure::once(format!("{name}, {what}"), unit, value, n));
        };
        let (whole, bytes) = match &carried {
            Ok(seen) => (true, seen.bytes),
            Err(broken) => (false, broken.after),
        };
        note(told, "hashes equal", "", f64::from(u8::from(whole)), 1);
        note(told, "bytes right", "bytes", bytes as f64, 1);
        note(told, "cuts survived", "cuts", f64::from(cuts.saturating_sub(u32::from(!whole))), 1);
        let broken = carried.is_err();
        match carried {
            Ok(seen) => {
                note(told, "took", "s", begun.elapsed().as_secs_f64(), 1);
                let (count, longest) = (seen.pauses.len() as usize, millis(&seen.pauses, 1.0));
                let (what, p99) = match what {
                    What::Typing => ("echo", millis(&seen.pauses, 0.99)),
                    What::Down | What::Up => ("pause", millis(&seen.pauses, 0.99)),
                };
                note(told, &format!("{what} p99"), "ms", p99, count);
                note(told, "longest stall", "ms", longest, count);
            }
            Err(broken) => failures.push(format!("{name}: after {} bytes: {:#}", broken.after, broken.why)),
        }
        if broken {
            // What comes next begins on a path that is whole.
            whole_again(&programs).await?;
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Down,
    Up,
    Typing,
}

/// What came whole.
struct Seen {
    bytes: u64,
    /// Between what came and what came next; for typing, from key to echo. Microseconds.
    pauses: Histogram<u64>,
}

/// What did not, and how far it was right.
struct Broken {
    after: u64,
    why: anyhow::Error,
}

enum Never {}

async fn whole_again(path: &dyn Path) -> anyhow::Result<()> {
    let answered = async {
        loop {
            if let Ok(mut http) = Http::dial(path).await
                && http.get(SMALL).await.is_ok()
            {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SILENCE, answered).await.context("the path does not come back")
}

async fn cut(lines: [&Line; 2], arguments: &Arguments, cuts: &mut u32) -> Never {
    loop {
        for line in lines {
            sleep(Duration::from_secs_f64(arguments.every)).await;
            if !arguments.never {
                line.cut();
                *cuts += 1;
            }
        }
    }
}

async fn carry(
    path: &dyn Path,
    what: What,
    arguments: &Arguments,
    bar: &ProgressBar,
) -> Result<Seen, Broken> {
    let mut right = 0;
    let carried = match what {
        What::Down => down(path, arguments.bytes, &mut right, bar).await,
        What::Up => up(path, arguments.bytes, &mut right, bar).await,
        What::Typing => typing(path, arguments, &mut right).await,
    };
    match carried {
        Ok(pauses) => Ok(Seen { bytes: right, pauses }),
        Err(why) => Err(Broken { after: right, why }),
    }
}

async fn down(
    path: &dyn Path,
    bytes: u64,
    right: &mut u64,
    bar: &ProgressBar,
) -> anyhow::Result<Histogram<u64>> {
    let mut raw = timeout(SILENCE, near::raw(path, Verb::Source(Some(bytes)))).await??;
    let (pattern, mut pauses, mut last) = (Pattern::default(), histogram(), Instant::now());
    let (mut got, mut sent) = (Digest::new(&SHA256), Digest::new(&SHA256));
    let mut block = vec![0; PIECE];
    loop {
        let n = timeout(SILENCE, raw.read(&mut block)).await.context("silence")??;
        pauses.saturating_record(micros(last));
        last = Instant::now();
        if n == 0 {
            break;
        }
        if let Some(wrong) = pattern.first_wrong(*right, &block[..n]) {
            bail!("the byte at {wrong} is not the one that was sent");
        }
        got.update(&block[..n]);
        sent.update(&pattern.at(*right)[..n]);
        *right += n as u64;
        bar.set_position(*right);
    }
    ensure!(*right == bytes, "a clean end after {right} of {bytes} bytes");
    ensure!(got.finish().as_ref() == sent.finish().as_ref(), "the hashes differ");
    Ok(pauses)
}

async fn up(
    path: &dyn Path,
    bytes: u64,
    right: &mut u64,
    bar: &ProgressBar,
) -> anyhow::Result<Histogram<u64>> {
    let mut raw = timeout(SILENCE, near::raw(path, Verb::Sink)).await??;
    let (pattern, mut pauses, mut last) = (Pattern::default(), histogram(), Instant::now());
    let mut sent = 0;
    while sent < bytes {
        let piece = usize::try_from(bytes - sent).unwrap_or(PIECE).min(PIECE);
        let n = timeout(SILENCE, raw.write(&pattern.at(sent)[..piece])).await.context("silence")??;
        pauses.saturating_record(micros(last));
        last = Instant::now();
        sent += n as u64;
        bar.set_position(sent);
    }
    timeout(SILENCE, raw.shutdown()).await??;
    let mut said = String::new();
    timeout(SILENCE, raw.read_to_string(&mut said)).await.context("the far end says nothing")??;
    // The far end compared every byte with what belongs in its place.
    ensure!(said == format!("{bytes} whole"), "the far end got {said:?} of {bytes}");
    *right = bytes;
    Ok(pauses)
}

/// Types for as long as a transfer takes.
async fn typing(path: &dyn Path, arguments: &Arguments, right: &mut u64) -> anyhow::Result<Histogram<u64>> {
    let lasts = Duration::from_secs_f64(arguments.bytes as f64 * 8e-6 / arguments.rate);
    let keys = (lasts.as_secs() * KEYS).max(5 * KEYS);
    let raw = timeout(SILENCE, near::raw(path, Verb::Echo)).await??;
    let (mut reader, mut writer) = tokio::io::split(raw);
    let (sender, mut typed) = mpsc::channel(KEYS_ON_THEIR_WAY);
    let pattern = Pattern::default();
    let write = async {
        let mut ticks = interval(Duration::from_secs(1) / u32::try_from(KEYS)?);
        for number in 0..keys {
            let wanted = ticks.tick().await;
            timeout(SILENCE, writer.write_all(&pattern.at(number)[..1])).await.context("silence")??;
            writer.flush().await?;
            sender.send(wanted).await?;
        }
        drop(sender);
        timeout(SILENCE, writer.shutdown()).await??;
        anyhow::Ok(())
    };
    let read = async {
        let mut echoes = histogram();
        while let Some(wanted) = typed.recv().await {
            let mut got = [0; 1];
            timeout(SILENCE, reader.read_exact(&mut got)).await.context("silence")??;
            ensure!(pattern.first_wrong(*right, &got).is_none(), "echo {right} is not what was typed");
            *right += 1;
            echoes.saturating_record(u64::try_from(wanted.elapsed().as_micros())?);
        }
        let n = timeout(SILENCE, reader.read(&mut [0; 1])).await.context("no end")??;
        ensure!(n == 0, "more came back than was typed");
        Ok(echoes)
    };
    let ((), echoes) = tokio::try_join!(write, read)?;
    Ok(echoes)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
