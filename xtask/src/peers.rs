//! The programs that towline is measured beside or goes through: those that are installed, or fetched or built once into the cache.
//!
//! Nothing is installed on the machine: Debian packages are unpacked into the cache, so that no service of theirs
//! ever starts, and no root is needed.

pub mod running;

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Subcommand, ValueEnum};

const RATHOLE: &str = "0.5.0";
const MITMPROXY: &str = "11.0.2";

/// A few megabytes; where there is no network, whoever waits is to hear of it.
const FETCH_WITHIN: Duration = Duration::from_secs(120);
/// Several times what a build takes on two cores that have nothing else to do.
const BUILD_WITHIN: Duration = Duration::from_secs(1800);

/// Where programs lie that are not for everyone's PATH.
const SYSTEM_FOLDERS: &[&str] =
    &["/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin", "/sbin", "/bin"];

/// Tasks on peers.
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// Fetch or build what is missing into the cache.
    Build {
        /// Only these.
        only: Vec<Peer>,
    },
    /// Say what is there and what is not.
    Status,
}

/// Software that people use today.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Peer {
    /// The small name server (Debian package dnsmasq-base).
    Dnsmasq,
    /// The proxy (Debian package haproxy).
    Haproxy,
    /// The proxy that looks into TLS (PyPI package mitmproxy).
    Mitmproxy,
    /// The web server and proxy (Debian package nginx).
    Nginx,
    /// The packet filter, for a NAT (Debian package nftables).
    Nftables,
    /// Client and server (Debian packages openssh-client, openssh-server).
    Openssh,
    /// The reverse proxy (crate rathole).
    Rathole,
    /// Rancher's library (Go module), with a small program around it.
    Remotedialer,
    /// The forward proxy, with TLS (Debian package squid-openssl).
    Squid,
    /// The small forward proxy (Debian package tinyproxy).
    Tinyproxy,
}

/// A peer's programs, ready to be started.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The unpacked packages or the built programs; none where it is the machine's own.
    root: Option<PathBuf>,
}

/// Runs a task.
///
/// # Errors
/// What is missing, and its fix.
pub fn run(command: PeersCommand) -> anyhow::Result<ExitCode> {
    match command {
        PeersCommand::Build { only } => {
            let mut failed = false;
            for peer in Peer::value_variants().iter().filter(|peer| only.is_empty() || only.contains(peer)) {
                match peer.ensure() {
                    Ok(_) => println!("{} is there", peer.name()),
                    Err(error) => {
                        failed = true;
                        println!("{} is missing: {error:#}", peer.name());
                    }
                }
            }
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        PeersCommand::Status => {
            for peer in Peer::value_variants() {
                match peer.find() {
                    Some(found) => {
                        println!("{:<14} {}", peer.name(), found.program(peer.programs()[0])?.display())
                    }
                    None => println!("{:<14} missing; {}", peer.name(), peer.fix()),
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Peer {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dnsmasq => "dnsmasq",
            Self::Haproxy => "haproxy",
            Self::Mitmproxy => "mitmproxy",
            Self::Nginx => "nginx",
            Self::Nftables => "nftables",
            Self::Openssh => "openssh",
            Self::Rathole => "rathole",
            Self::Remotedialer => "remotedialer",
            Self::Squid => "squid",
            Self::Tinyproxy => "tinyproxy",
        }
    }

    /// Its programs.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Dnsmasq => &["dnsmasq"],
            Self::Haproxy => &["haproxy"],
            Self::Mitmproxy => &["mitmdump"],
            Self::Nginx => &["nginx"],
            Self::Nftables => &["nft"],
            Self::Openssh => &["sshd", "ssh", "ssh-keygen"],
            Self::Rathole => &["rathole"],
            Self::Remotedialer => &["remotedialer"],
            Self::Squid => &["squid"],
            Self::Tinyproxy => &["tinyproxy"],
        }
    }

    /// What to do where it is missing.
    pub fn fix(self) -> String {
        let by_hand = match self {
            Self::Dnsmasq => ", or install it: apt-get install dnsmasq-base",
            Self::Haproxy => ", or install it: apt-get install haproxy",
            Self::Mitmproxy => " (1 min; needs Python 3.10 or later with venv)",
            Self::Nginx => ", or install it: apt-get install nginx",
            Self::Nftables => ", or install it: apt-get install nftables",
            Self::Openssh => ", or install it: apt-get install openssh-client openssh-server",
            Self::Rathole => " (4 min; needs a C compiler, pkg-config and libssl-dev)",
            Self::Remotedialer => " (1 min; needs Go 1.26 or later)",
            Self::Squid => ", or install it: apt-get install squid-openssl",
            Self::Tinyproxy => ", or install it: apt-get install tinyproxy",
        };
        format!("cargo xtask peers build {}{by_hand}", self.name())
    }

    /// What is there already, without fetching or building anything.
    pub fn find(self) -> Option<Installed> {
        // Another program of that name may be anything; mitmproxy records and intercepts otherwise in other versions.
        let own = matches!(self, Self::Remotedialer | Self::Mitmproxy);
        let on_path = (!own).then_some(Installed { root: None });
        on_path
            .into_iter()
            .chain([Installed { root: Some(self.folder()) }])
            .find(|installed| self.programs().iter().all(|program| installed.program(program).is_ok()))
            .filter(|installed| self.programs().iter().all(|program| installed.lacking(program).is_empty()))
    }

    /// What is there already, or what could be fetched or built. One that another process builds is waited for.
    ///
    /// # Errors
    /// What is missing, and its fix.
    pub fn ensure(self) -> anyhow::Result<Installed> {
        if let Some(found) = self.find() {
            return Ok(found);
        }
        let folder = self.folder();
        fs::create_dir_all(&folder).with_context(|| format!("{} can't be made", folder.display()))?;
        let lock = File::create(folder.with_extension("lock"))?;
        if lock.try_lock().is_err() {
            eprintln!("   another process builds {}; waiting for it", self.name());
            lock.lock()?;
        }
        if let Some(found) = self.find() {
            return Ok(found);
        }
        let made = match self {
            Self::Dnsmasq => unpack(&["dnsmasq-base"], &folder),
            Self::Haproxy => unpack(&["haproxy"], &folder),
            Self::Mitmproxy => install_mitmproxy(&folder),
            Self::Nginx => unpack(&["nginx"], &folder),
            Self::Nftables => unpack(&["nftables"], &folder),
            Self::Openssh => unpack(&["openssh-client", "openssh-server"], &folder),
            Self::Rathole => build_rathole(&folder),
            Self::Remotedialer => build_remotedialer(&folder),
            Self::Squid => unpack(&["squid-openssl"], &folder),
            Self::Tinyproxy => unpack(&["tinyproxy"], &folder),
        };
        made.with_context(|| format!("{} can't be had; {}", self.name(), self.fix()))?;
        self.find().with_context(|| format!("{} was made, and is not whole; {}", self.name(), self.fix()))
    }

    fn folder(self) -> PathBuf {
        let version = match self {
            Self::Dnsmasq
            | Self::Haproxy
            | Self::Nginx
            | Self::Nftables
            | Self::Openssh
            | Self::Squid
            | Self::Tinyproxy => "debian".to_owned(),
            Self::Mitmproxy => MITMPROXY.to_owned(),
            Self::Rathole => RATHOLE.to_owned(),
            // Its version stands in go.mod; the program around it changes, too.
            Self::Remotedialer => remotedialer_version(),
        };
        crate::cache().join("peers").join(format!("{}-{version}", self.name()))
    }
}

impl Installed {
    /// Where its files begin: the folder that stands for `/`.
    pub fn root(&self) -> &Path {
        self.root.as_deref().unwrap_or(Path::new("/"))
    }

    /// Where one of the programs is.
    ///
    /// # Errors
    /// If it is not there.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let inside = self
            .root
            .iter()
            .flat_map(|root| ["usr/sbin", "usr/bin", "bin"].map(|folder| root.join(folder).join(name)));
        let installed = std::env::var_os("PATH").unwrap_or_default();
        let installed = std::env::split_paths(&installed)
            .chain(SYSTEM_FOLDERS.iter().map(PathBuf::from))
            .map(|folder| folder.join(name));
        inside
            .chain(installed)
            .find(|path| path.is_file())
            .with_context(|| format!("{name} is not installed"))
    }

    /// Libraries that an unpacked program does not find: they were the machine's own when its packages were fetched, and
    /// have gone since.
    fn lacking(&self, name: &str) -> Vec<String> {
        let Some(root) = &self.root else { return Vec::new() };
        let Ok(program) = self.program(name) else { return Vec::new() };
        if !program.starts_with(root) {
            return Vec::new();
        }
        // A script is "not a dynamic executable"; where there is no ldd, starting it has to tell.
        let Ok(said) =
            Command::new("ldd").arg(program).envs(self.environment()).stderr(Stdio::null()).output()
        else {
            return Vec::new();
        };
        not_found(&String::from_utf8_lossy(&said.stdout))
    }

    /// A command that runs one of the programs.
    ///
    /// # Errors
    /// If it is not there.
    pub fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(self.program(name)?);
        command.envs(self.environment());
        Ok(command)
    }

    /// What a command needs in its environment to find its libraries.
    pub fn environment(&self) -> Option<(&'static str, OsString)> {
        let folders = self.libraries();
        std::env::join_paths(folders)
            .ok()
            .filter(|joined| !joined.is_empty())
            .map(|joined| ("LD_LIBRARY_PATH", joined))
    }

    /// Folders of libraries that came with the programs.
    pub fn libraries(&self) -> Vec<PathBuf> {
        let Some(root) = &self.root else { return Vec::new() };
        let mut folders = Vec::new();
        for parent in ["usr/lib", "lib"] {
            for entry in fs::read_dir(root.join(parent)).into_iter().flatten().flatten() {
                let triplet = entry.file_name().to_string_lossy().ends_with("-linux-gnu");
                if triplet && entry.path().is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        folders
    }
}

/// What ldd could not find: lines of `NAME => not found`.
fn not_found(said: &str) -> Vec<String> {
    said.lines()
        .filter_map(|line| line.trim().strip_suffix("=> not found"))
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Fetches Debian packages, and those that they need and are not installed, and unpacks them.
fn unpack(packages: &[&str], folder: &Path) -> anyhow::Result<()> {
    ensure!(
        Command::new("apt-get")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success()),
        "there is no apt-get here"
    );
    eprintln!("   fetching {} (a few seconds)", packages.join(", "));
    let list = || -> anyhow::Result<Vec<String>> {
        let output = Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends", "--print-uris"])
            .args(packages)
            .output()?;
        ensure!(output.status.success(), "apt-get: {}", String::from_utf8_lossy(&output.stderr).trim());
        // 'URI' NAME_VERSION_ARCHITECTURE.deb SIZE HASH
        let names = String::from_utf8_lossy(&output.stdout);
        let names = names.lines().filter(|line| line.starts_with('\''));
        Ok(names.filter_map(|line| Some(line.split(' ').nth(1)?.split('_').next()?.to_owned())).collect())
    };
    let names = match list() {
        Ok(names) if !names.is_empty() => names,
        // The lists of packages may never have been fetched, or be older than what the archive has.
        _ => {
            run_with_progress(
                Command::new("apt-get").arg("update"),
                "apt-get update (it needs root)",
                FETCH_WITHIN,
            )?;
            list()?
        }
    };
    let partial = folder.with_extension(format!("partial.{}", std::process::id()));
    fs::create_dir_all(partial.join("packages"))?;
    let done = (|| {
        let mut download = Command::new("apt-get");
        download.arg("download").args(&names).current_dir(partial.join("packages"));
        run_with_progress(&mut download, "the download", FETCH_WITHIN)?;
        for package in fs::read_dir(partial.join("packages"))? {
            let mut extract = Command::new("dpkg-deb");
            extract.arg("--extract").arg(package?.path()).arg(&partial);
            run_with_progress(&mut extract, "unpacking", FETCH_WITHIN)?;
        }
        fs::remove_dir_all(partial.join("packages"))?;
        // Empty, or of an earlier time and no longer whole.
        fs::remove_dir_all(folder)?;
        fs::rename(&partial, folder)?;
        Ok(())
    })();
    if done.is_err() {
        let _gone = fs::remove_dir_all(&partial);
    }
    done
}

/// As its users install it. Not `--locked`: its lock file of 2023 names a crate that this compiler refuses.
fn build_rathole(folder: &Path) -> anyhow::Result<()> {
    eprintln!("   building rathole {RATHOLE} (about 4 min, once)");
    let mut install = Command::new("cargo");
    install
        .args(["install", "--quiet", "--no-default-features", "--features", "server,client,tls"])
        .args(["--version", RATHOLE, "rathole", "--root"])
        .arg(folder)
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(std::env::temp_dir());
    run_with_progress(&mut install, "rathole", BUILD_WITHIN)
}

/// Into an environment of its own. pip writes the program last, so that one that is there is whole.
fn install_mitmproxy(folder: &Path) -> anyhow::Result<()> {
    eprintln!("   installing mitmproxy {MITMPROXY} (about 1 min, once)");
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(folder);
    run_with_progress(&mut make, "python3 -m venv", FETCH_WITHIN)?;
    let mut install = Command::new(folder.join("bin/pip"));
    install
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .arg(format!("mitmproxy=={MITMPROXY}"));
    run_with_progress(&mut install, "pip install mitmproxy", BUILD_WITHIN)
}

fn remotedialer_folder() -> PathBuf {
    crate::root().join("loadtest/remotedialer")
}

fn remotedialer_version() -> String {
    let sources = ["go.mod", "go.sum", "main.go"];
    let texts = sources.map(|name| fs::read(remotedialer_folder().join(name)).unwrap_or_default());
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &texts.concat());
    hash.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn build_remotedialer(folder: &Path) -> anyhow::Result<()> {
    eprintln!("   building remotedialer (about 1 min, once)");
    fs::create_dir_all(folder.join("bin"))?;
    let partial = folder.join("bin").join(format!(".partial.{}", std::process::id()));
    let mut build = Command::new("go");
    build
        .args(["build", "-mod=mod", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(&partial)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "")
        .current_dir(remotedialer_folder());
    run_with_progress(&mut build, "remotedialer", BUILD_WITHIN)?;
    Ok(fs::rename(&partial, folder.join("bin/remotedialer"))?)
}

/// Runs a command to its end, and says every ten seconds that it still runs.
fn run_with_progress(command: &mut Command, what: &str, within: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("{} can't be run", command.get_program().display()))?;
    let mut told = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("{what} failed ({status}); what it said is above");
            }
            return Ok(());
        }
        if begun.elapsed() > within {
            child.kill()?;
            child.wait()?;
            bail!("{what} was not done within {within:?}");
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            eprintln!("   {what}: {} s", begun.elapsed().as_secs());
        }
        thread::park_timeout(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_names_its_fix() {
        for peer in Peer::value_variants() {
            assert!(
                peer.fix().contains(&format!("cargo xtask peers build {}", peer.name())),
                "{}",
                peer.fix()
            );
        }
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let begun = Instant::now();
        let endless =
            run_with_progress(Command::new("sleep").arg("600"), "sleeping", Duration::from_millis(200));
        let told = format!("{:#}", endless.unwrap_err());
        assert!(
            told.contains("sleeping was not done") && begun.elapsed() < Duration::from_secs(60),
            "{told}"
        );
        let failed = run_with_progress(&mut Command::new("false"), "failing", FETCH_WITHIN);
        assert!(format!("{:#}", failed.unwrap_err()).contains("failing failed"));
    }

    #[test]
    fn an_unpacked_program_that_lacks_a_library_is_not_there() {
        let said = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibnftables.so.1 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n";
        assert_eq!(not_found(said), ["libnftables.so.1"]);
        assert!(not_found("\tnot a dynamic executable\n").is_empty());
        // The machine's own programs are the machine's own affair.
        assert!(Installed { root: None }.lacking("sh").is_empty());
    }

    #[test]
    fn a_program_of_an_unpacked_package_goes_before_the_machines_own() -> anyhow::Result<()> {
        let root = std::env::temp_dir().join(format!("towline-peers-{}", std::process::id()));
        fs::create_dir_all(root.join("usr/bin"))?;
        fs::create_dir_all(root.join("usr/lib/x86_64-linux-gnu"))?;
        fs::write(root.join("usr/bin/sh"), "")?;
        let installed = Installed { root: Some(root.clone()) };
        let found = (installed.program("sh")?, installed.environment(), installed.program("no-such-program"));
        fs::remove_dir_all(&root)?;
        assert_eq!(found.0, root.join("usr/bin/sh"));
        assert_eq!(
            found.1,
            Some(("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu").into_os_string()))
        );
        assert!(found.2.is_err());
        assert_eq!(Installed { root: None }.environment(), None);
        Ok(())
    }
}
