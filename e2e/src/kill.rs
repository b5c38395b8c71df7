//! Kill -9 of a random program under load, again and again: nothing hangs, nothing that was cut looks whole, all comes back
//! by itself, and nothing is left over. What the relay carried goes on over the next one, and not a byte of it is lost,
//! repeated or in another place.

mod flight;

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use towline_relay::registry;

use self::flight::Flight;
use crate::{
    process::pause,
    stage::{Proxy, Stage, Tokens, image},
    table::{GROUP, TOKEN_LIFETIME, USER, apply_with, namespace},
};

/// Once the victim is back: whatever was cut has ended, and whatever is tried has its answer, after this time.
const HANG: Duration = Duration::from_secs(15);
/// All is connected again within this time of the restart.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// After the last round everything that ended has gone within this time.
const QUIET_WITHIN: Duration = Duration::from_secs(100);
/// Idle connections of pools are closed after 50 s: what is still there then stays.
const IDLE_FOR: Duration = Duration::from_secs(65);
/// The namespace of the load.
const NAMESPACE: &str = "kill";

/// Of one connection to SQLite: the database, its write-ahead log and their shared memory.
const FILES_OF_CONNECTION: usize = 3;

/// A program that may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The relay.
    Relay,
    /// The agent.
    Agent,
    /// The proxy.
    Proxy,
    /// kube-apiserver.
    Apiserver,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => "relay",
            Self::Agent => "agent",
            Self::Proxy => "proxy",
            Self::Apiserver => "kube-apiserver",
        })
    }
}

/// What the rounds showed.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Rounds that were done.
    pub rounds: u32,
    /// Commands that were cut, and ended with an error.
    pub cut: u32,
    /// Commands that had ended well before the cut.
    pub whole: u32,
    /// Commands that went on after the relay was killed, to the last byte.
    pub survived: u32,
    /// The longest that a cut command took to end.
    pub slowest_end: Duration,
    /// The longest until the next command worked.
    pub slowest_return: Duration,
    /// What must not have happened.
    pub faults: Vec<String>,
}

/// A small generator whose rounds can be played again (xorshift64*).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % sides
    }
}

/// What a program of ours holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holds {
    descriptors: Descriptors,
    tasks: u64,
    streams: u64,
    buffered: u64,
}

/// Open file descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Descriptors {
    /// How many of each kind: sockets, pipes, and each file by its name.
    kinds: BTreeMap<String, usize>,
    /// Those of the relay's registry: its pool opens connections as they are needed, so that a relay that was just started has fewer.
    registry: usize,
}

/// The stage with its proxy, and what is needed to start that again.
struct Play<'a> {
    stage: &'a mut Stage,
    tokens: Tokens,
    proxy: Option<Proxy>,
    findings: Findings,
    folder: tempfile::TempDir,
}

/// Plays so many rounds; the same seed chooses the same victims and moments.
///
/// With `patient` what is held is compared once all pools have closed what is idle, which takes minutes; without, a proxy
/// that was just started is compared with one that was just started.
///
/// # Errors
/// If the stage can't be set or restored. What towline did wrong is in the findings.
pub fn run(
    stage: &mut Stage,
    rounds: u32,
    seed: u64,
    patient: bool,
    mut say: impl FnMut(&str),
) -> anyhow::Result<Findings> {
    prepare(stage)?;
    stage.let_in(USER)?;
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let proxy = Some(stage.proxy("kill", &tokens)?);
    let folder = tempfile::Builder::new().prefix("towline-kill-").tempdir()?;
    let mut play = Play { stage, tokens, proxy, findings: Findings::default(), folder };
    let mut dice = Dice(seed | 1);
    // One round of load that nobody cuts: pools and caches are as they will be.
    let warm = play.load()?;
    pause(Duration::from_millis(500));
    play.stop(warm);
    let baseline = play.baseline(patient)?;
    for round in 1..=rounds {
        let victim = [Victim::Relay, Victim::Agent, Victim::Proxy, Victim::Apiserver][dice.roll(4) as usize];
        let after = Duration::from_millis(50 + dice.roll(1500));
        let known = play.findings.faults.len();
        play.round(victim, after)?;
        let findings = &play.findings;
        say(&format!(
            "round {round}/{rounds}: {victim} after {} ms; {} cut, {} whole, {} survived, {} faults",
            after.as_millis(),
            findings.cut,
            findings.whole,
            findings.survived,
            findings.faults.len()
        ));
        findings.faults[known..].iter().for_each(|fault| say(&format!("   FAULT {fault}")));
    }
    if !patient {
        play.restart_proxy()?;
    }
    let left = play.settled(&baseline)?;
    for (name, before, after) in
        [("relay", baseline.0, left.0), ("agent", baseline.1, left.1), ("proxy", baseline.2, left.2)]
    {
        say(&format!("{name}: before {before:?}, after {after:?}"));
        if !after.is_within(&before) {
            play.findings.faults.push(format!("{name} holds more than before: {before:?}, then {after:?}"));
        }
    }
    play.findings.rounds = rounds;
    Ok(play.findings)
}

fn prepare(stage: &Stage) -> anyhow::Result<()> {
    let cluster = &stage.cluster;
    let yaml = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: load, namespace: {NAMESPACE}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}}\n\
         subjects: [{{kind: Group, apiGroup: rbac.authorization.k8s.io, name: {GROUP}}}]\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: box, namespace: {NAMESPACE}}}\n\
         spec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: box\n    image: \"{}\"\n    imagePullPolicy: Never\n    \
         command: [sh, -c, 'seq 1 8000000 | head -c 60000000 > /tmp/large; touch /tmp/ready; n=0; while true; do n=$((n+1)); echo $n; sleep 0.05; done']\n",
        image()
    );
    namespace(cluster, NAMESPACE)?;
    apply_with(cluster, &["apply", "-f", "-"], &yaml)?;
    cluster.kubectl_output(&[
        "wait",
        "-n",
        NAMESPACE,
        "pod/box",
        "--for=condition=Ready",
        "--timeout=60s",
    ])?;
    let written =
        ["exec", "-n", NAMESPACE, "box", "--", "sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.1; done"];
    cluster.kubectl_output(&written)?;
    Ok(())
}

impl Play<'_> {
    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let proxy = self.proxy.as_ref().context("the proxy runs")?;
        let mut command = Command::new(self.stage.cluster.programs().kubectl());
        command
            .env("KUBECONFIG", &proxy.kubeconfig)
            .env("HOME", self.folder.path())
            .args(["-n", NAMESPACE])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// As the cluster's administrator, in the pod of the load.
    fn in_box(&self, script: &str) -> anyhow::Result<()> {
        self.stage.cluster.kubectl_output(&["exec", "-n", NAMESPACE, "box", "--", "sh", "-c", script])?;
        Ok(())
    }

    fn load(&self) -> anyhow::Result<Vec<Flight>> {
        self.in_box("rm -f /tmp/stop")?;
        flight::all(self.folder.path(), |arguments| self.kubectl(arguments))
    }

    /// Ends the load as a person does.
    fn stop(&self, flights: Vec<Flight>) {
        flights.into_iter().for_each(Flight::stop);
    }

    fn round(&mut self, victim: Victim, after: Duration) -> anyhow::Result<()> {
        let mut flights = self.load()?;
        if victim == Victim::Relay {
            // What has begun must go on; what has not may fail, and shows nothing.
            let begun = Instant::now();
            while !flights.iter().all(|flight| flight.copied() > 0) && begun.elapsed() < HANG {
                pause(Duration::from_millis(10));
            }
        }
        pause(after);
        match victim {
            Victim::Relay => self.stage.relay.kill(),
            Victim::Agent => self.stage.agent.kill(),
            Victim::Proxy => self.proxy.as_mut().context("the proxy runs")?.process.kill(),
            Victim::Apiserver => self.stage.cluster.kill("kube-apiserver")?,
        }
        for flight in &mut flights {
            flight.note_begun();
        }
        let restarted = Instant::now();
        match victim {
            Victim::Relay => self.stage.restart_relay()?,
            Victim::Agent => self.stage.restart_agent()?,
            Victim::Proxy => self.restart_proxy()?,
            Victim::Apiserver => self.stage.cluster.restart_apiserver()?,
        }
        if victim == Victim::Relay {
            self.works_again(victim, restarted)?;
            return self.goes_on(flights);
        }
        // Who waits to go on is told that it can't by the next agent.
        let back = Instant::now();
        for flight in flights {
            self.judge(flight, victim, back);
        }
        self.works_again(victim, restarted)
    }

    /// What had begun when the relay was killed goes on as if nothing had happened.
    fn goes_on(&mut self, mut flights: Vec<Flight>) -> anyhow::Result<()> {
        self.in_box("touch /tmp/stop")?;
        self.stage.cluster.kubectl_output(&[
            "annotate",
            "pod/box",
            "-n",
            NAMESPACE,
            "--overwrite",
            &format!("round=r{}", self.findings.survived),
        ])?;
        let deadline = Instant::now() + BACK_WITHIN;
        for flight in &mut flights {
            while !flight.has_gone_on() && Instant::now() < deadline {
                pause(Duration::from_millis(20));
            }
        }
        for flight in flights {
            if !flight.had_begun {
                // It was on its way to begin: it may say so and be tried again.
                flight.stop();
                continue;
            }
            let what = flight.what;
            match flight.judge_whole() {
                Ok(()) => self.findings.survived += 1,
                Err(fault) => self.findings.faults.push(format!("relay killed: {what}: {fault:#}")),
            }
        }
        Ok(())
    }

    fn restart_proxy(&mut self) -> anyhow::Result<()> {
        self.proxy = None;
        self.proxy = Some(self.stage.proxy("kill", &self.tokens)?);
        Ok(())
    }

    /// Waits for the end of a command that was cut, and looks at how it ended.
    fn judge(&mut self, mut flight: Flight, victim: Victim, back: Instant) {
        let status = loop {
            match flight.ended() {
                Some(status) => break status,
                // Where cores are short it may have begun only once the killed one was back: then nothing was cut.
                None if back.elapsed() > HANG && flight.began_after() => {
                    self.findings.whole += 1;
                    return flight.stop();
                }
                None if back.elapsed() > HANG => {
                    self.findings
                        .faults
                        .push(format!("{victim} killed: {} still hangs after {HANG:?}", flight.what));
                    return flight.stop();
                }
                None => pause(Duration::from_millis(10)),
            }
        };
        self.findings.slowest_end = self.findings.slowest_end.max(back.elapsed());
        let (said, printed) = (flight.said(), flight.printed());
        if let Err(fault) = flight.is_sound() {
            self.findings.faults.push(format!("{victim} killed: {}: {fault:#}", flight.what));
        }
        match status.code() {
            // kubectl ends a watch with 0 whatever ended it; that it was cut must be seen in what it prints. Where the
            // proxy itself is killed there is nobody to tell it.
            Some(0) if flight.what == "watch" && (victim == Victim::Proxy || printed.contains("Failure")) => {
                self.findings.cut += 1;
            }
            Some(0) if !flight.may_end_well => self
                .findings
                .faults
                .push(format!("{victim} killed: {} was cut and says that all is well", flight.what)),
            Some(0) if flight.what == "cp" && flight.copied() != flight::LARGE => self
                .findings
                .faults
                .push(format!("{victim} killed: cp says that all is well after {} bytes", flight.copied())),
            Some(0) => self.findings.whole += 1,
            _ => {
                self.findings.cut += 1;
                if said.contains("panic") {
                    self.findings.faults.push(format!("{victim} killed: {} says {said}", flight.what));
                }
            }
        }
    }

    /// A command is tried until one works: none may hang, and one must soon work.
    fn works_again(&mut self, victim: Victim, restarted: Instant) -> anyhow::Result<()> {
        loop {
            let begun = Instant::now();
            let mut child = self.kubectl(&["get", "pod", "box", "-o", "name"])?.spawn()?;
            let status = loop {
                match child.try_wait()? {
                    Some(status) => break Some(status),
                    None if begun.elapsed() > HANG => break None,
                    None => pause(Duration::from_millis(10)),
                }
            };
            match status {
                Some(status) if status.success() => {
                    self.findings.slowest_return = self.findings.slowest_return.max(restarted.elapsed());
                    return Ok(());
                }
                Some(_) if restarted.elapsed() < BACK_WITHIN => {}
                Some(status) => {
                    let mut said = String::new();
                    if let Some(mut stderr) = child.stderr.take() {
                        let _read = stderr.read_to_string(&mut said);
                    }
                    bail!(
                        "{victim} restarted: kubectl does not work again within {BACK_WITHIN:?} ({status}): {said}"
                    );
                }
                None => {
                    let _ended = child.kill();
                    let _status = child.wait();
                    self.findings.faults.push(format!("{victim} restarted: get hangs longer than {HANG:?}"));
                }
            }
        }
    }

    fn held(&self) -> anyhow::Result<(Holds, Holds, Holds)> {
        let proxy = self.proxy.as_ref().context("the proxy runs")?;
        Ok((
            holds(self.stage.relay.id(), Some(&self.stage.relay_metrics))?,
            holds(self.stage.agent.id(), Some(&self.stage.agent_metrics))?,
            holds(proxy.process.id(), None)?,
        ))
    }

    /// What relay, agent and proxy hold while nothing is under way.
    fn baseline(&mut self, patient: bool) -> anyhow::Result<(Holds, Holds, Holds)> {
        if patient {
            pause(IDLE_FOR);
            return self.held();
        }
        self.restart_proxy()?;
        // What the killed proxy had open is being closed: twice the same is settled.
        let mut last = self.held()?;
        loop {
            pause(Duration::from_secs(2));
            let now = self.held()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    }

    /// The same after the rounds: waits until it is no more than before, or long enough.
    fn settled(&mut self, before: &(Holds, Holds, Holds)) -> anyhow::Result<(Holds, Holds, Holds)> {
        let deadline = Instant::now() + QUIET_WITHIN;
        loop {
            let now = self.held()?;
            let settled =
                now.0.is_within(&before.0) && now.1.is_within(&before.1) && now.2.is_within(&before.2);
            if settled || Instant::now() > deadline {
                return Ok(now);
            }
            pause(Duration::from_secs(1));
        }
    }
}

impl Holds {
    fn is_within(&self, before: &Self) -> bool {
        self.descriptors.is_within(&before.descriptors)
            && self.tasks <= before.tasks
            && self.streams <= before.streams
            && self.buffered <= before.buffered
    }
}

impl Descriptors {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            // What was closed since the folder was read is not held.
            let Ok(target) = fs::read_link(entry?.path()) else { continue };
            let target = target.to_string_lossy();
            if target.contains(registry::FILE) {
                all.registry += 1;
                continue;
            }
            let kind = if target.starts_with('/') {
                &target
            } else {
                target.split_once(":[").map_or(&*target, |(kind, _inode)| kind)
            };
            *all.kinds.entry(kind.to_owned()).or_default() += 1;
        }
        Ok(all)
    }

    fn is_within(&self, before: &Self) -> bool {
        self.registry <= FILES_OF_CONNECTION * registry::CONNECTIONS as usize
            && self.kinds.iter().all(|(kind, count)| count <= before.kinds.get(kind).unwrap_or(&0))
    }
}

/// What a process holds, by /proc and by its metrics.
fn holds(pid: u32, metrics: Option<&str>) -> anyhow::Result<Holds> {
    let descriptors = Descriptors::of(pid)?;
    let page = metrics.map(page).transpose()?.unwrap_or_default();
    let value = |name: &str| {
        page.lines()
            .find_map(|line| {
                line.split_once(' ').filter(|(key, _)| key.ends_with(name)).map(|(_, value)| value)
            })
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    };
    Ok(Holds {
        descriptors,
        tasks: value("_tasks"),
        streams: value("_streams"),
        buffered: value("_buffered_bytes"),
    })
}

/// A metrics page.
///
/// # Errors
/// If it can't be had.
pub fn page(address: &str) -> anyhow::Result<String> {
    page_of(address, "/metrics")
}

/// Another page of the same server.
///
/// # Errors
/// If it can't be had.
pub fn page_of(address: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("metrics at {address}"))?;
    stream.set_read_timeout(Some(HANG))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    ensure!(
        page.starts_with("HTTP/1.1 200"),
        "{path} at {address}: {}",
        page.lines().next().unwrap_or_default()
    );
    Ok(page)
}
