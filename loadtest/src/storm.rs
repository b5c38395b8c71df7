//! All agents come back after a relay restart: how soon, and how many a second.
//!
//! The agents are sessions of this process. They wait as `towline-agent` does: full jitter from half a second to ten, and
//! at least what the relay asks for, in GOAWAY or in a refusal. When a session began is read from the relay's own log: what this
//! process sees comes in lumps when it is short of CPU.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use towline_relay::limits::Limits;
use towline_tunnel::{
    backoff::{self, Backoff},
    fault::Report,
};

use crate::{
    figure::Figure,
    fleet::{Fleet, Shape, allow_open_files, idle},
    procfs,
    rig::{
        Rig,
        agent::{Agent, Member, Service},
        way::{Via, Way},
    },
    terms::Terms,
    told::Told,
};

/// As `towline-agent` has them (agent-tunnel/src/uplink.rs).
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Whoever is not back by then is told as missing.
const BACK_WITHIN: Duration = Duration::from_secs(180);
/// A drain that takes longer is cut.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// How many agents, one measurement each
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 8000], value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: Vec<u32>,
    /// End the relay with SIGTERM and let it drain; otherwise as kill -9 does
    #[arg(long)]
    drain: bool,
    /// Sessions a second that the relay is to accept at most: sets its --accept-rate; its own default if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    budget: Option<u32>,
    #[command(flatten)]
    shape: Shape,
    /// More flags of the relay, after `--`
    #[arg(last = true, value_name = "FLAG")]
    relay: Vec<String>,
}

/// Measures it.
///
/// # Errors
/// If something can't be set up, or not all agents come back.
pub async fn run(arguments: Arguments, _terms: &Terms, told: &mut Told) -> anyhow::Result<()> {
    for agents in &arguments.agents {
        one(*agents as usize, &arguments, told).await?;
    }
    Ok(())
}

/// What an agent says.
#[derive(Debug)]
enum News {
    Back,
    Refused(Report),
}

async fn one(agents: usize, arguments: &Arguments, told: &mut Told) -> anyhow::Result<()> {
    allow_open_files(agents)?;
    let rate = arguments.budget.map(|budget| budget.to_string());
    let mut flags: Vec<&str> = arguments.relay.iter().map(String::as_str).collect();
    if let Some(rate) = &rate {
        flags.extend(["--accept-rate", rate]);
    }
    let mut rig = Rig::start(&flags).await?;
    let bar = told.begin(&format!("{agents} agents join"), agents);
    let (fleet, _) = Fleet::join(&rig, agents, arguments.shape, &bar).await?;
    let way = Arc::new(rig.way(Via::STRAIGHT)?);
    // One word for each attempt: whoever has much to say waits.
    let (news, mut heard) = mpsc::channel(4096);
    let mut lives = JoinSet::new();
    for (member, agent) in fleet.into_agents() {
        lives.spawn(live(member, agent, Arc::clone(&way), news.clone()));
    }
    drop(news);

    let bar = told.begin(&format!("{agents} agents come back"), agents);
    let ended = Instant::now();
    if arguments.drain {
        rig.relay.terminate(DRAINED_WITHIN)?;
    } else {
        rig.relay.kill();
    }
    rig.relay.start_again()?;
    let served = ended.elapsed();
    let (mut back, mut refused): (Vec<Duration>, u64) = (Vec::with_capacity(agents), 0);
    let mut why: Option<Report> = None;
    let hear = async {
        while back.len() < agents {
            match heard.recv().await {
                Some(News::Back) => {
                    back.push(ended.elapsed());
                    bar.inc(1);
                }
                Some(News::Refused(report)) => {
                    refused += 1;
                    why = Some(report);
                }
                None => break,
            }
        }
    };
    let _late = timeout(BACK_WITHIN, hear).await;
    let begun = begun(&rig.relay.log());
    tell(agents, &back, &begun, served, arguments, told);
    told.note(Figure::once(
        format!("{agents} agents, attempts that failed"),
        "attempts",
        refused as f64,
        agents,
    ));
    let cpu = procfs::cpu(rig.relay.pid())?.as_secs_f64() * 1000.0 / agents as f64;
    told.note(Figure::once(
        format!("{agents} agents, relay CPU for each that came back"),
        "core ms",
        cpu,
        agents,
    ));
    if let Some(report) = why {
        told.remark(&format!("the last attempt that failed: {report}"));
    }
    anyhow::ensure!(
        back.len() == agents,
        "{} of {agents} agents came back within {BACK_WITHIN:?}",
        back.len()
    );
    Ok(())
}

fn tell(
    agents: usize,
    back: &[Duration],
    begun: &Begun,
    served: Duration,
    arguments: &Arguments,
    told: &mut Told,
) {
    let how = if arguments.drain { "drained" } else { "killed" };
    let name = |what: &str| format!("{agents} agents, relay {how}, {what}");
    told.note(Figure::once(name("until it serves again"), "s", served.as_secs_f64(), 1));
    for (what, share) in [("50 % back", 0.5), ("95 % back", 0.95), ("all back", 1.0)] {
        let number = (agents as f64 * share).ceil() as usize;
        if let Some(time) = number.checked_sub(1).and_then(|last| back.get(last)) {
            told.note(Figure::once(name(what), "s", time.as_secs_f64(), agents));
        }
    }
    let budget = f64::from(arguments.budget.unwrap_or(Limits::default().accept_rate));
    let most = peak(&begun.turns) as f64;
    let figure = Figure::once(name("most let in in a second"), "/s", most, agents);
    told.note(Figure { ratio: Some(most / budget), against: Some("the budget".into()), ..figure });
    // Where cores are short, those that were let in one after the other may be done together.
    let most = peak(&begun.sessions) as f64;
    told.note(Figure::once(name("most sessions begun in a second"), "/s", most, agents));
    let seen = peak(back) as f64;
    told.note(Figure::once(name("the same, as the agents see it"), "/s", seen, agents));
}

/// What a relay's log says of agents that came; from its first midnight on, rising.
#[derive(Debug, Default, PartialEq, Eq)]
struct Begun {
    /// When each took its turn, which the budget is of.
    turns: Vec<Duration>,
    /// When its session began: the handshake later.
    sessions: Vec<Duration>,
}

fn begun(log: &str) -> Begun {
    let mut begun = Begun::default();
    for line in log.lines().filter(|line| line.contains("an agent's session began")) {
        let Some((time, handshake)) = times(line) else { continue };
        let day = Duration::from_secs(24 * 3600);
        // Lines are written in order, give or take what threads do.
        let is_next_day = begun.sessions.last().is_some_and(|last| *last > time + day / 2);
        let time = if is_next_day { time + day } else { time };
        begun.sessions.push(time);
        begun.turns.push(time.saturating_sub(handshake));
    }
    begun.sessions.sort_unstable();
    begun.turns.sort_unstable();
    begun
}

/// The time of day and how long since the turn, from `…"timestamp":"2026-01-01T12:34:56.789012Z"…"micros":1700…`.
fn times(line: &str) -> Option<(Duration, Duration)> {
    let read: serde_json::Value = serde_json::from_str(line).ok()?;
    let handshake = Duration::from_micros(read["micros"].as_u64()?);
    let (_, time) = read["timestamp"].as_str()?.trim_end_matches('Z').split_once('T')?;
    let mut parts = time.split(':');
    let mut next = || parts.next()?.parse::<f64>().ok().filter(|part| (0.0..61.0).contains(part));
    let time = Duration::from_secs_f64(next()? * 3600.0 + next()? * 60.0 + next()?);
    Some((time, handshake))
}

/// Most of these times (which rise) that lie within one second.
fn peak(times: &[Duration]) -> usize {
    let second = Duration::from_secs(1);
    let within =
        |(first, from): (usize, &Duration)| times[first..].partition_point(|time| *time < *from + second);
    times.iter().enumerate().map(within).max().unwrap_or(0)
}

/// One agent: waits until its session is lost, then comes back; and again.
async fn live(member: Member, mut agent: Agent, way: Arc<Way>, news: mpsc::Sender<News>) {
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    loop {
        let hint = tokio::select! {
            _ended = agent.connection().closed() => Duration::ZERO,
            said = agent.connection().going_away() => said.map(|goaway| goaway.delay).unwrap_or_default(),
        };
        let mut delay = backoff.after_failure(hint, backoff::random());
        loop {
            sleep(delay).await;
            match member.come_back(&way).await {
                Ok(session) => {
                    agent = Agent::serve(session, &member, idle(), Service::Hold);
                    backoff.reset();
                    if news.send(News::Back).await.is_err() {
                        return;
                    }
                    break;
                }
                Err(report) => {
                    delay = backoff.after_failure(report.delay(), backoff::random());
                    if news.send(News::Refused(report)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_second_is_found_wherever_it_begins() {
        let at = |millis: &[u64]| millis.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        assert_eq!(peak(&at(&[0, 900, 1000, 1500, 1899, 1900, 5000])), 4);
        assert_eq!(peak(&at(&[0, 1000, 2000])), 1);
        assert_eq!(peak(&[]), 0);
    }

    #[test]
    fn a_log_says_when_turns_came_and_sessions_began() {
        let line = |time: &str, message: &str| {
            format!(r#"{{"timestamp":"2026-01-01T{time}Z","message":"{message}","micros":250000}}"#)
        };
        let log = [
            line("23:59:59.500000", "an agent's session began"),
            line("23:59:59.600000", "a session ended"),
            line("00:00:00.250000", "an agent's session began"),
        ]
        .join("\n");
        let (day, millis) = (Duration::from_secs(24 * 3600), Duration::from_millis);
        assert_eq!(begun(&log).sessions, [day - millis(500), day + millis(250)]);
        assert_eq!(begun(&log).turns, [day - millis(750), day]);
        assert!(begun("not JSON: an agent's session began") == Begun::default());
    }
}
