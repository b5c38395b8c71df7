//! OpenSSH over a bastion: `ssh -R` from behind the NAT with `ssh -L` from where people are, or `ssh -J` end to end.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::{Setting, free_address, process::Started};

/// AES-GCM as everywhere here; what is left out is the default. Compression is off by default.
const CIPHERS: &str = "aes128-gcm@openssh.com,aes256-gcm@openssh.com";

/// Who logs in, and as whom sshd runs: without root it can only serve the user that it runs as, and as root it would
/// need an account of its own on this machine.
struct Account {
    name: String,
    /// The user to become, where this program is root.
    become_user: Option<(u32, u32)>,
}

/// Keys and configuration of one journey over a bastion.
struct Bastion<'a> {
    setting: &'a Setting<'a>,
    account: Account,
    address: SocketAddr,
}

/// `ssh -R` offers the far end at the bastion, `ssh -L` fetches it from there.
pub(super) fn remote_and_local(setting: &Setting<'_>) -> anyhow::Result<Vec<Started>> {
    let bastion = Bastion::new(setting)?;
    let offered = free_address()?;
    let sshd = bastion.sshd("sshd-bastion", bastion.address)?;
    let remote = bastion.ssh("ssh-remote", &["-R", &forward(offered, setting.far), "bastion"])?;
    let local = bastion.ssh("ssh-local", &["-L", &forward(setting.near, offered), "bastion"])?;
    Ok(vec![sshd, remote, local])
}

/// The sshd behind the NAT is offered at the bastion by `ssh -R`; people reach it with `ssh -J`, and their `-L` leads
/// from there to the far end. The bastion sees ciphertext.
pub(super) fn jump(setting: &Setting<'_>) -> anyhow::Result<Vec<Started>> {
    let mut bastion = Bastion::new(setting)?;
    let (inner, offered) = (free_address()?, free_address()?);
    let outer_sshd = bastion.sshd("sshd-bastion", bastion.address)?;
    let inner_sshd = bastion.sshd("sshd-inner", inner)?;
    let remote = bastion.ssh("ssh-remote", &["-R", &forward(offered, inner), "bastion"])?;
    bastion.add_host("inner", offered)?;
    let through = forward(setting.near, setting.far);
    let local = bastion.ssh("ssh-jump", &["-J", "bastion", "-L", &through, "inner"])?;
    Ok(vec![outer_sshd, inner_sshd, remote, local])
}

fn forward(from: SocketAddr, to: SocketAddr) -> String {
    format!("{from}:{to}")
}

impl<'a> Bastion<'a> {
    fn new(setting: &'a Setting<'a>) -> anyhow::Result<Self> {
        let folder = setting.folder;
        let account = Account::choose()?;
        // Whoever sshd runs as reads its keys from here, and executes itself again from here.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        for key in ["host-key", "user-key"] {
            let made = setting
                .installed
                .command("ssh-keygen")?
                .args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"])
                .arg(folder.join(key))
                .output()?;
            ensure!(made.status.success(), "ssh-keygen: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        if let Some((user, group)) = account.become_user {
            chown(folder.join("host-key"), Some(user), Some(group))?;
        }
        let authorized = folder.join("authorized-keys");
        fs::copy(folder.join("user-key.pub"), &authorized)?;
        let mut bastion = Self { setting, account, address: free_address()? };
        let path = |name: &str| folder.join(name).display().to_string();
        fs::write(
            folder.join("ssh-config"),
            format!(
                "Host *\n  User {}\n  IdentityFile {}\n  IdentitiesOnly yes\n  BatchMode yes\n  StrictHostKeyChecking yes\n  \
                 UserKnownHostsFile {}\n  GlobalKnownHostsFile /dev/null\n  Ciphers {CIPHERS}\n  \
                 ExitOnForwardFailure yes\n  ServerAliveInterval 15\n",
                bastion.account.name,
                path("user-key"),
                path("known-hosts"),
            ),
        )?;
        bastion.add_host("bastion", bastion.address)?;
        Ok(bastion)
    }

    /// A name for an sshd's address, in the clients' configuration and list of known hosts.
    fn add_host(&mut self, name: &str, address: SocketAddr) -> anyhow::Result<()> {
        let folder = self.setting.folder;
        let append = |file: &str, text: String| -> anyhow::Result<()> {
            let path = folder.join(file);
            let old = fs::read_to_string(&path).unwrap_or_default();
            fs::write(&path, format!("{old}{text}")).with_context(|| path.display().to_string())
        };
        let key = fs::read_to_string(folder.join("host-key.pub"))?;
        append("known-hosts", format!("[{}]:{} {key}", address.ip(), address.port()))?;
        append("ssh-config", format!("Host {name}\n  HostName {}\n  Port {}\n", address.ip(), address.port()))
    }

    fn sshd(&self, name: &'static str, listen: SocketAddr) -> anyhow::Result<Started> {
        let folder = self.setting.folder;
        let path = |name: &str| folder.join(name).display().to_string();
        let config = folder.join(format!("{name}.conf"));
        fs::write(
            &config,
            format!(
                "ListenAddress {}:{}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nPasswordAuthentication no\n\
                 KbdInteractiveAuthentication no\nUsePAM yes\nStrictModes no\nCiphers {CIPHERS}\n",
                listen.ip(),
                listen.port(),
                path("host-key"),
                path("authorized-keys"),
            ),
        )?;
        let program = self.executable(folder)?;
        let mut command = match self.account.become_user {
            Some((user, group)) => {
                let mut command = Command::new("setpriv");
                command.args([
                    format!("--reuid={user}"),
                    format!("--regid={group}"),
                    "--clear-groups".to_owned(),
                ]);
                command.arg("--").arg(program);
                command
            }
            None => Command::new(program),
        };
        if folder.join("lib").exists() {
            command.env("LD_LIBRARY_PATH", folder.join("lib"));
        } else {
            command.envs(self.setting.installed.environment());
        }
        Started::new(name, command.args(["-D", "-e", "-f"]).arg(config), folder)
    }

    /// sshd, copied to where the user that it runs as can reach it.
    fn executable(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let program = self.setting.installed.program("sshd")?;
        let libraries = self.setting.installed.libraries();
        if libraries.is_empty() || self.account.become_user.is_none() {
            return Ok(program);
        }
        let copy = folder.join("sshd");
        if copy.exists() {
            // Never written again: another sshd runs from it.
            return Ok(copy);
        }
        fs::create_dir(folder.join("lib"))?;
        for library in libraries {
            for entry in fs::read_dir(library)? {
                let entry = entry?;
                if entry.path().is_file() {
                    fs::copy(entry.path(), folder.join("lib").join(entry.file_name()))?;
                }
            }
        }
        fs::copy(program, &copy)?;
        Ok(copy)
    }

    fn ssh(&self, name: &'static str, arguments: &[&str]) -> anyhow::Result<Started> {
        let folder = self.setting.folder;
        // Each waits for what it connects to, as a unit of systemd would by being started again.
        let mut command = Command::new("sh");
        command
            .args(["-c", "until \"$@\"; do sleep 0.1; done", "sh"])
            .arg(self.setting.installed.program("ssh")?)
            .arg("-F")
            .arg(folder.join("ssh-config"))
            .arg("-N")
            .args(arguments)
            .envs(self.setting.installed.environment());
        Started::new(name, &mut command, folder)
    }
}

impl Account {
    fn choose() -> anyhow::Result<Self> {
        if rustix::process::geteuid().is_root() {
            let passwd = fs::read_to_string("/etc/passwd")?;
            let nobody = passwd.lines().find(|line| line.starts_with("nobody:")).context("no user nobody")?;
            let mut numbers = nobody.split(':').skip(2).map(str::parse);
            let (Some(Ok(user)), Some(Ok(group))) = (numbers.next(), numbers.next()) else {
                anyhow::bail!("the user nobody has no numbers");
            };
            return Ok(Self { name: "nobody".to_owned(), become_user: Some((user, group)) });
        }
        let output = Command::new("id").arg("-un").output().context("id can't be run")?;
        Ok(Self { name: String::from_utf8_lossy(&output.stdout).trim().to_owned(), become_user: None })
    }
}
