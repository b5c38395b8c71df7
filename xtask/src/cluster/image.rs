//! Container images without a registry or an engine: docker-archives, as `docker save` writes them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

/// busybox with a link for each of its applets.
pub(super) fn of_busybox(folder: &Path, name: &str, command: &[&str]) -> anyhow::Result<PathBuf> {
    let root = staging(folder, name)?;
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy("/bin/busybox", bin.join("busybox"))?;
    let applets = Command::new("/bin/busybox").arg("--list").output().context("busybox can't be run")?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", bin.join(applet))?;
    }
    for folder in ["tmp", "etc", "root", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    archive(folder, name, &root, json!({ "Cmd": command, "Env": ["PATH=/bin"] }))
}

/// One program in a root that has nothing else but the libraries that it is linked with, run as nobody.
pub(super) fn of_program(folder: &Path, name: &str, program: &Path) -> anyhow::Result<PathBuf> {
    let root = staging(folder, name)?;
    let file = program.file_name().and_then(|file| file.to_str()).context("a program has a name")?;
    fs::copy(program, root.join(file)).with_context(|| format!("{} can't be read", program.display()))?;
    for library in libraries(program)? {
        let inside = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(inside.parent().context("a library lies in a folder")?)?;
        fs::copy(&library, inside).with_context(|| format!("{} can't be read", library.display()))?;
    }
    for folder in ["tmp", "etc", "data"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::set_permissions(root.join("data"), fs::Permissions::from_mode(0o1777))?;
    archive(folder, name, &root, json!({ "Entrypoint": [format!("/{file}")], "User": "65532:65532" }))
}

/// What a program is linked with, and its loader; nothing where it is static.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd can't be run")?;
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn staging(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let root = folder.join("images").join(name.replace(['/', ':'], "_"));
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    Ok(root)
}

fn tar(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("tar")
        .args(["--create", "--numeric-owner", "--owner=0", "--group=0", "--file"])
        .arg(to)
        .arg("--directory")
        .arg(from)
        .arg(".")
        .status()
        .context("tar can't be run")?;
    ensure!(status.success(), "tar ended with {status}");
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn archive(folder: &Path, name: &str, root: &Path, config: serde_json::Value) -> anyhow::Result<PathBuf> {
    let contents = staging(folder, &format!("{name}-archive"))?;
    let layer = contents.join("layer.tar");
    tar(root, &layer)?;
    let layer_digest = hex(digest(&SHA256, &fs::read(&layer)?).as_ref());
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
    })
    .to_string();
    let config_name = format!("{}.json", hex(digest(&SHA256, config.as_bytes()).as_ref()));
    fs::write(contents.join(&config_name), config)?;
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(contents.join("manifest.json"), manifest.to_string())?;
    let path = folder.join("images").join(format!("{}.tar", name.replace(['/', ':'], "_")));
    tar(&contents, &path)?;
    fs::remove_dir_all(&contents)?;
    fs::remove_dir_all(root)?;
    Ok(path)
}
