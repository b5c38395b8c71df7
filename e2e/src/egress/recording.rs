//! What a proxy that looks into TLS has recorded: the carrier's bytes, and nothing that only the two ends may know.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use towline_tunnel::ids::StreamKey;

use super::Passage;
use crate::{blind::Tape, case::run_within, table::apply_with};

/// Random bytes that are copied through, so that the recording must have as many.
const COPIED: usize = 2_000_000;
const WITHIN: Duration = Duration::from_secs(60);

/// Uses what is secret, and looks for it in mitmproxy's own recording.
///
/// # Errors
/// What was found; or what shows that nothing could have been.
pub(super) fn judge(passage: Passage<'_>, folder: &Path) -> anyhow::Result<String> {
    let (scene, recording) = (passage.scene, folder.join("recording"));
    let (cluster, namespace) = (&scene.stage.cluster, scene.verbs.namespace());
    let canary = |what: &str| format!("canary-{what}-{}", StreamKey::random());
    let (pod, value) = (canary("pod"), canary("secret"));
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: hidden, namespace: {namespace}}}\nstringData: {{k: {value}}}\n"
    );
    apply_with(cluster, &["apply", "-f", "-"], &secret)?;
    let kubectl = |arguments: &[&str]| {
        let mut command = scene.verbs.kubectl(&passage.route, &passage.client.kubeconfig);
        command.env("HOME", folder).args(arguments);
        run_within(command, WITHIN)
    };
    let shown = kubectl(&["get", "secret", "hidden", "-o", "jsonpath={.data.k}"])?;
    ensure!(shown.ended == "exit 0" && !shown.stdout.is_empty(), "the Secret is not shown: {}", shown.stderr);
    let missing = kubectl(&["get", "pod", &pod])?;
    ensure!(missing.stderr.contains(&pod), "the pod's name is not asked for: {}", missing.stderr);
    let bytes = format!("head -c {COPIED} /dev/urandom | od -An -tx1 | tr -d ' \\n'");
    let copied = kubectl(&["exec", "box", "--", "sh", "-c", &bytes])?;
    ensure!(copied.stdout.len() == 2 * COPIED, "{} bytes were copied", copied.stdout.len());

    let token = |file: &Path| -> anyhow::Result<String> {
        let token = fs::read_to_string(file)?;
        // What stands before the signature is the same in many tokens.
        Ok(token.trim().rsplit('.').next().context("a token has parts")?.to_owned())
    };
    let canaries = [
        ("the Secret's value", value),
        ("the pod's name", pod),
        ("the relay's token", token(&scene.tokens.relay)?),
        ("the cluster's token", token(&scene.tokens.cluster)?),
        ("a path", format!("/api/v1/namespaces/{namespace}/")),
    ];
    // It writes what goes on down when it ends.
    drop(passage);
    let recorded = fs::read(&recording)?;
    let tape = Tape::from(recorded);
    let found = tape.find(&canaries);
    ensure!(found.is_empty(), "mitmproxy has recorded {found:?}");
    // Shows that it would have been found: the recording is of the carrier, and of all of it.
    let seen = [("the upgrade", "/v1/connect".to_owned()), ("its protocol", "towline.v1".to_owned())];
    ensure!(tape.find(&seen).len() == seen.len(), "the recording is not of the carrier");
    let all = 2 * COPIED;
    ensure!(tape.len() > all, "{} bytes are recorded, and {all} passed", tape.len());
    Ok(format!("{:.1} MB recorded, no canary in them", tape.len() as f64 / 1e6))
}
