//! etcd, kube-apiserver, controller-manager, scheduler.

use std::path::Path;

use super::{
    build::Programs,
    pki::{Pki, write_private},
    process::{Processes, free_port, write},
};

pub(super) struct ControlPlane {
    pub(super) port: u16,
    pub(super) admin_token: String,
}

/// The file that says whose tokens kube-apiserver takes; it looks at it again when it changes.
pub(super) const AUTHENTICATION: &str = "authentication.yaml";

const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";

/// Nobody's tokens at first: [`super::Cluster::trust`] names issuers.
const NO_ISSUERS: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt: []
";

/// Starts etcd and kube-apiserver, without waiting for them.
pub(super) fn start(
    processes: &mut Processes,
    programs: &Programs,
    folder: &Path,
    pki: &Pki,
    more: &[String],
) -> anyhow::Result<ControlPlane> {
    let (etcd, peer, port) = (free_port()?, free_port()?, free_port()?);
    let at = |path: &str| folder.join(path).display().to_string();
    processes.start(
        "etcd",
        &programs.path("etcd"),
        &[
            format!("--data-dir={}", at("etcd")),
            format!("--listen-client-urls=http://127.0.0.1:{etcd}"),
            format!("--advertise-client-urls=http://127.0.0.1:{etcd}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ],
        &[],
    )?;

    let admin_token = pki.random_token();
    write_private(
        &folder.join("tokens.csv"),
        format!("{admin_token},admin,admin,system:masters\n").as_bytes(),
    )?;
    write(&folder.join("audit-policy.yaml"), AUDIT_POLICY)?;
    write(&folder.join(AUTHENTICATION), NO_ISSUERS)?;
    let mut arguments = vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        format!("--tls-cert-file={}", at("pki/apiserver.pem")),
        format!("--tls-private-key-file={}", at("pki/apiserver.key")),
        format!("--client-ca-file={}", at("pki/ca.pem")),
        format!("--kubelet-client-certificate={}", at("pki/kubelet-client.pem")),
        format!("--kubelet-client-key={}", at("pki/kubelet-client.key")),
        format!("--kubelet-certificate-authority={}", at("pki/ca.pem")),
        "--kubelet-preferred-address-types=Hostname".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", at("pki/service-accounts.pem")),
        format!("--service-account-signing-key-file={}", at("pki/service-accounts.key")),
        format!("--token-auth-file={}", at("tokens.csv")),
        "--authorization-mode=RBAC".into(),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        "--allow-privileged=true".into(),
        format!("--audit-log-path={}", at("audit.log")),
        format!("--audit-policy-file={}", at("audit-policy.yaml")),
        format!("--authentication-config={}", at(AUTHENTICATION)),
    ];
    arguments.extend_from_slice(more);
    processes.start("kube-apiserver", &programs.path("kube-apiserver"), &arguments, &[])?;
    Ok(ControlPlane { port, admin_token })
}

/// Starts controller-manager and scheduler; the apiserver is ready.
pub(super) fn start_controllers(
    processes: &mut Processes,
    programs: &Programs,
    folder: &Path,
) -> anyhow::Result<()> {
    let at = |path: &str| folder.join(path).display().to_string();
    let kubeconfig = format!("--kubeconfig={}", at("admin.kubeconfig"));
    processes.start(
        "kube-controller-manager",
        &programs.path("kube-controller-manager"),
        &[
            kubeconfig.clone(),
            format!("--service-account-private-key-file={}", at("pki/service-accounts.key")),
            format!("--root-ca-file={}", at("pki/ca.pem")),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            "--use-service-account-credentials=true".into(),
        ],
        &[],
    )?;
    processes.start(
        "kube-scheduler",
        &programs.path("kube-scheduler"),
        &[kubeconfig, "--leader-elect=false".into(), "--secure-port=0".into()],
        &[],
    )
}
