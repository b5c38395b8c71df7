//! containerd and the kubelet, and what they leave behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::{
    BUSYBOX_IMAGE, Cluster, image,
    process::{Processes, free_port, write},
    wait_until,
};

const PAUSE_IMAGE: &str = "towline.test/pause:1";

pub(super) struct Containerd {
    socket: PathBuf,
}

/// The folder's own third byte of 10.88.x.0/24 and name of the bridge: from a hash, moved on while taken.
fn network(folder: &Path) -> (String, u8) {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let seed = folder
        .to_string_lossy()
        .bytes()
        .fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let free = (0..=255u8)
        .map(|step| (seed as u8).wrapping_add(step))
        // /proc/net/route shows networks as little-endian hexadecimal
        .find(|third| !routes.contains(&format!("\t00{third:02X}580A\t")))
        .unwrap_or(seed as u8);
    (format!("towline{free}"), free)
}

/// Starts containerd and loads the images; the apiserver starts meanwhile.
pub(super) fn start_containerd(processes: &mut Processes, folder: &Path) -> anyhow::Result<Containerd> {
    let at = |path: &str| folder.join(path).display().to_string();
    let socket = folder.join("containerd.sock");
    ensure!(
        socket.as_os_str().len() < 100,
        "{} is too long for a socket; choose a shorter TOWLINE_CACHE",
        socket.display()
    );
    let (bridge, third) = network(folder);
    fs::write(folder.join("bridge"), &bridge)?;
    write(
        &folder.join("cni/10-towline.conflist"),
        &format!(
            r#"{{"cniVersion":"0.4.0","name":"{bridge}","plugins":[{{"type":"bridge","bridge":"{bridge}","isGateway":true,"ipMasq":false,
            "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.88.{third}.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
            {{"type":"loopback"}}]}}"#,
            at("cni-state")
        ),
    )?;
    write(
        &folder.join("containerd.toml"),
        &format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\n  address = {:?}\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  \
             restrict_oom_score_adj = true\n  sandbox_image = {PAUSE_IMAGE:?}\n  netns_mounts_under_state_dir = true\n  \
             disable_tcp_service = true\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n    snapshotter = \"native\"\n  \
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n    bin_dir = \"/usr/lib/cni\"\n    conf_dir = {:?}\n",
            at("containerd"),
            at("containerd-state"),
            socket.display().to_string(),
            at("cni"),
        ),
    )?;
    processes.start(
        "containerd",
        Path::new("/usr/bin/containerd"),
        &["--config".into(), at("containerd.toml")],
        &[],
    )?;
    let busybox = image::of_busybox(folder, BUSYBOX_IMAGE, &["sh"])?;
    let pause = image::of_busybox(folder, PAUSE_IMAGE, &["sleep", "2147483647"])?;
    wait_until("containerd", Duration::from_secs(20), &folder.join("logs/containerd.log"), || {
        ctr(folder, &["version"]).is_ok()
    })?;
    import(folder, &busybox)?;
    import(folder, &pause)?;
    Ok(Containerd { socket })
}

fn ctr(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(folder.join("containerd.sock"))
        .args(["--connect-timeout", "2s"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("ctr can't be run")?;
    ensure!(
        output.status.success(),
        "ctr {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

pub(super) fn import(folder: &Path, archive: &Path) -> anyhow::Result<()> {
    ctr(
        folder,
        &["-n", "k8s.io", "images", "import", "--snapshotter", "native", &archive.display().to_string()],
    )
}

/// Starts the kubelet; the apiserver is ready.
pub(super) fn start_kubelet(
    processes: &mut Processes,
    cluster: &Cluster,
    containerd: &Containerd,
) -> anyhow::Result<()> {
    let folder = cluster.folder();
    let at = |path: &str| folder.join(path).display().to_string();
    write(
        &folder.join("kubelet.yaml"),
        &format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\naddress: 127.0.0.1\nport: {}\nhealthzPort: 0\n\
             tlsCertFile: {}\ntlsPrivateKeyFile: {}\nauthentication:\n  anonymous: {{enabled: false}}\n  webhook: {{enabled: false}}\n  \
             x509: {{clientCAFile: {}}}\nauthorization: {{mode: AlwaysAllow}}\nfailCgroupV1: false\ncgroupDriver: cgroupfs\n\
             cgroupsPerQOS: false\nenforceNodeAllocatable: []\nfailSwapOn: false\nlocalStorageCapacityIsolation: false\n\
             makeIPTablesUtilChains: false\nresolvConf: \"\"\nmaxPods: 200\npodLogsDir: {}\nserializeImagePulls: false\n\
             evictionHard: {{memory.available: 50Mi, nodefs.available: 0.5%, nodefs.inodesFree: 0.1%, imagefs.available: 0.5%}}\n\
             imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\ncontainerRuntimeEndpoint: unix://{}\n",
            free_port()?,
            at("pki/kubelet.pem"),
            at("pki/kubelet.key"),
            at("pki/ca.pem"),
            // The usual place is the machine's: a second kubelet would clear it of what is not its own.
            at("pod-logs"),
            containerd.socket.display(),
        ),
    )?;
    processes.start(
        "kubelet",
        &cluster.programs().path("kubelet"),
        &[
            format!("--config={}", at("kubelet.yaml")),
            format!("--kubeconfig={}", at("admin.kubeconfig")),
            format!("--root-dir={}", at("kubelet")),
            "--hostname-override=localhost".into(),
        ],
        &[],
    )
}

/// Unmounts what containers left mounted in the folder, and removes its bridge.
pub(super) fn clean(folder: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        // As a path: `e2e-1` is not to lose what `e2e-12` has mounted.
        .filter(|point| Path::new(point).starts_with(folder))
        .collect();
    // The innermost first.
    points.sort_unstable_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        let status =
            Command::new("umount").args(["--lazy", point]).status().context("umount can't be run")?;
        ensure!(status.success(), "{point} can't be unmounted");
    }
    if let Ok(bridge) = fs::read_to_string(folder.join("bridge")) {
        // Made with the first pod on it: often there is none.
        let _none = Command::new("ip").args(["link", "delete", bridge.trim()]).stderr(Stdio::null()).status();
    }
    Ok(())
}
