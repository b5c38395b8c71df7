//! A network behind carrier-grade NAT: connections go out, none comes in, and idle ones are soon forgotten.
//!
//! Two network namespaces: agent and client are in one, and the other, which is their only way out, is the carrier's router. This machine
//! is the world outside, with a load balancer before the relay. kube-apiserver and the issuer, which listen on this machine's
//! loopback, stand on the loopback inside as well: they are inside with the agent.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustix::{
    fd::AsFd as _,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use xtask::peers::Peer;

use super::{route::Route, script::Forward};
use crate::{
    case::{in_namespace, run_within},
    only_way,
    process::Process,
    stage::Stage,
};

/// All names begin so; the id of the process that they belong to follows.
const PREFIX: &str = "tle";
/// `ip` and `nft` do what they do at once.
const WITHIN: Duration = Duration::from_secs(10);
/// A packet that is dropped is not answered; one that is let through is, at once.
const SILENT: Duration = Duration::from_millis(700);
/// Seconds after which the router forgets an idle connection; some of the field's do so after 30.
const FORGETS: u32 = 30;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// What the router lets out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lets {
    /// All connections.
    Out,
    /// None: everything is dropped.
    Nothing,
}

/// What the network's name server says of the relay's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dns {
    /// Its address.
    Right,
    /// Dead addresses of both families as well, which drop what comes.
    DeadFirst,
    /// That there is none: only a proxy would know it.
    Unknown,
    /// Nothing: it does not answer.
    Silent,
}

/// The two namespaces, and what runs in them. Dropping it removes them.
struct Nat {
    inside: String,
    router: String,
    /// Between router and world, as this machine calls it.
    outer: String,
    number: u8,
    _names: Option<Process>,
}

/// A way out through the NAT.
///
/// # Errors
/// If it can't be made, which needs root, or is no NAT.
pub(super) fn route(stage: &Stage, folder: &Path, lets: Lets, dns: Dns) -> anyhow::Result<Route> {
    let mut nat = Nat::make(lets)?;
    nat._names = nat.serve_names(folder, dns)?;
    let world = Forward::start(TcpListener::bind((nat.world(), 0))?, stage.relay_address.parse()?, None)?;
    nat.is_one(&world)?;
    let relay = format!("https://{}:{}", only_way::HOST, world.address().port());
    let mut route = Route::to(relay).inside(&nat.inside);
    let issuer = url::Url::parse(&stage.issuer.url())?.port().context("the issuer has a port")?;
    for port in [stage.cluster.apiserver_port(), issuer] {
        let here: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
        route = route.holding(Forward::start(listen_in(&nat.inside, here)?, here, None)?);
    }
    Ok(route.holding(world).holding(nat))
}

impl Nat {
    fn make(lets: Lets) -> anyhow::Result<Self> {
        let count = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = std::process::id();
        let name = |part: &str| format!("{PREFIX}{id}-{count}{part}");
        // Others may do the same at the same time: a network of their own is likely, and a clash is an error.
        let number = u8::try_from((id.wrapping_mul(31) + count) % 250)? + 1;
        let nat = Self { inside: name("i"), router: name("r"), outer: name("o"), number, _names: None };
        let (inside, router, outer) = (&nat.inside, &nat.router, &nat.outer);
        for namespace in [inside, router] {
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        ip(&format!("link add in netns {inside} type veth peer name customer netns {router}"))?;
        ip(&format!("link add {outer} type veth peer name world netns {router}"))?;
        ip(&format!("-n {inside} addr add {}/24 dev in", nat.host()))?;
        ip(&format!("-n {router} addr add {}/24 dev customer", nat.gateway()))?;
        ip(&format!("-n {router} addr add {}/24 dev world", nat.public()))?;
        ip(&format!("addr add {}/24 dev {outer}", nat.world()))?;
        for link in [
            format!("-n {inside} link set in up"),
            format!("-n {router} link set customer up"),
            format!("-n {router} link set world up"),
            format!("link set {outer} up"),
            format!("-n {inside} route add default via {}", nat.gateway()),
            // So that a packet for inside would find its way, if the router let it.
            format!("route add {} via {}", nat.host(), nat.public()),
        ] {
            ip(&link)?;
        }
        let forgets = format!("net.netfilter.nf_conntrack_tcp_timeout_established={FORGETS}");
        // What it has forgotten it does not take up again in the middle, as Linux would.
        let strict = "net.netfilter.nf_conntrack_tcp_loose=0";
        nat.in_router(&["sysctl", "-qw", "net.ipv4.ip_forward=1", &forgets, strict])?;
        let out = if lets == Lets::Out { "iifname \"customer\" accept;" } else { "" };
        let rules = format!(
            "table inet carrier {{\n\
             chain out {{ type nat hook postrouting priority srcnat; oifname \"world\" masquerade; }}\n\
             chain forward {{ type filter hook forward priority filter; policy drop; ct state invalid drop; ct state established,related accept; {out} }}\n\
             chain input {{ type filter hook input priority filter; policy drop; ct state established,related accept; iifname {{ \"lo\", \"customer\" }} accept; }}\n}}\n"
        );
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), rules)?;
        nat.filter(&["-f", &file.path().display().to_string()])?;
        Ok(nat)
    }

    /// Of the network inside (RFC 6598).
    fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(100, 64, self.number, 2)
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(100, 64, self.number, 1)
    }

    /// Of the network outside (RFC 2544): the only address that all inside have there.
    fn public(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 2)
    }

    /// This machine, in the world.
    fn world(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 1)
    }

    fn in_router(&self, program: &[&str]) -> anyhow::Result<()> {
        let mut command = in_namespace(Some(&self.router), program[0]);
        command.args(&program[1..]);
        done(command)
    }

    /// Lets the router's packet filter do something.
    fn filter(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let installed = Peer::Nftables.ensure()?;
        let mut command = in_namespace(Some(&self.router), installed.program("nft")?);
        command.envs(installed.environment()).args(arguments);
        done(command)
    }

    /// The network's name server, on its router, and the file that names it.
    fn serve_names(&self, folder: &Path, dns: Dns) -> anyhow::Result<Option<Process>> {
        let etc = etc(&self.inside);
        fs::create_dir_all(&etc)?;
        fs::write(etc.join("hosts"), "127.0.0.1 localhost\n")?;
        fs::write(etc.join("resolv.conf"), format!("nameserver {}\n", self.gateway()))?;
        if dns == Dns::Silent {
            // The router answers no question that comes to it: drop it, so that nobody says that nobody listens.
            self.filter(&[
                "insert",
                "rule",
                "inet",
                "carrier",
                "input",
                "meta",
                "l4proto",
                "{ tcp, udp }",
                "th",
                "dport",
                "53",
                "drop",
            ])?;
            return Ok(None);
        }
        let addresses = match dns {
            Dns::Unknown | Dns::Silent => Vec::new(),
            Dns::Right => vec![self.world().to_string()],
            Dns::DeadFirst => {
                vec![self.world().to_string(), format!("198.18.{}.9", self.number), "2001:db8::9".to_owned()]
            }
        };
        let installed = Peer::Dnsmasq.ensure()?;
        let program = installed.program("dnsmasq")?;
        let mut command = in_namespace(Some(&self.router), program);
        command.envs(installed.environment());
        command.args([
            "--keep-in-foreground",
            "--no-hosts",
            "--no-resolv",
            "--conf-file=/dev/null",
            "--local=/test/",
        ]);
        command.args(["--user=root", "--pid-file=", "--bind-interfaces", "--log-facility=-"]);
        command.arg(format!("--listen-address={}", self.gateway()));
        for address in addresses {
            command.arg(format!("--host-record={},{address}", only_way::HOST));
        }
        let mut names = Process::start("dnsmasq", &mut command, &folder.join("dnsmasq.log"))?;
        names.wait_for(&["started"], WITHIN)?;
        Ok(Some(names))
    }

    /// Nobody outside gets in, though somebody listens there.
    fn is_one(&self, world: &Forward) -> anyhow::Result<()> {
        let inside = listen_in(&self.inside, (self.host(), 0).into())?;
        let from_outside = TcpStream::connect_timeout(&inside.local_addr()?, SILENT);
        ensure!(from_outside.is_err(), "who is outside gets in: it is no NAT");
        ensure!(world.address().ip() == self.world(), "the relay is elsewhere");
        Ok(())
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        for namespace in [&self.inside, &self.router] {
            remove(namespace);
        }
        // It goes with its other end, a moment later; who comes next may want its network now.
        let _gone = ip(&format!("link del {}", self.outer));
    }
}

/// Removes what processes left that are no more: one that was killed half-way must not be in the way of the next.
pub(super) fn sweep() {
    remove_all(|name| is_left(name, |id| Path::new("/proc").join(id).exists()));
}

/// Removes what this process has, and whoever is inside: it is to end.
pub(super) fn remove_own() {
    let own = std::process::id().to_string();
    remove_all(|name| is_left(name, |id| id != own));
}

fn remove_all(is_meant: impl Fn(&str) -> bool) {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_meant(&name) {
            let mut pids = Command::new("ip");
            pids.args(["netns", "pids", &name]);
            let pids = run_within(pids, WITHIN).map(|outcome| outcome.stdout).unwrap_or_default();
            for pid in pids.lines().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            remove(&name);
        }
    }
}

/// Whether a namespace is one of ours whose process is gone.
fn is_left(name: &str, lives: impl Fn(&str) -> bool) -> bool {
    let Some((id, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else { return false };
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()) && !lives(id)
}

fn remove(namespace: &str) {
    let _gone = ip(&format!("netns del {namespace}"));
    let _gone = fs::remove_dir_all(etc(namespace));
}

/// What stands for files of `/etc` inside (ip-netns(8)).
fn etc(namespace: &str) -> PathBuf {
    Path::new("/etc/netns").join(namespace)
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    done(command)
}

fn done(command: Command) -> anyhow::Result<()> {
    let what = format!("{command:?}");
    let outcome = run_within(command, WITHIN)?;
    ensure!(outcome.ended == "exit 0", "{what}: {} {}", outcome.ended, outcome.stderr);
    Ok(())
}

/// A listener inside: a socket stays where it was made, wherever it is used.
fn listen_in(namespace: &str, at: SocketAddr) -> anyhow::Result<TcpListener> {
    let there = fs::File::open(Path::new("/run/netns").join(namespace))?;
    let made = thread::spawn(move || -> anyhow::Result<TcpListener> {
        move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(TcpListener::bind(at)?)
    });
    made.join().map_err(|_| anyhow::anyhow!("listening panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_process_left_that_is_gone_is_swept() {
        let lives = |id: &str| id == "12";
        assert!(is_left("tle13-0i", lives) && is_left("tle13-4r", lives));
        for name in ["tle12-0i", "tle-0i", "tlex-1", "other13-0i", "tle13", "tle1a-0"] {
            assert!(!is_left(name, lives), "{name}");
        }
    }
}
