//! `towline-relay serve`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args};
use tokio::signal::unix::{SignalKind, signal};
use towline_identity::{IssuerSettings, Roots, TrustSettings, TrustSource};
use towline_tunnel::{
    audit::Destination,
    carrier::dial::RelayAddress,
    clock::Clock,
    fault::{Fault, Report},
    issuer_host::IssuerHost,
    values::{bytes, duration},
};

use super::{Place, public_url};
use crate::{
    app::{self, AuditConfig, Config},
    audit::Retention,
    limits::Limits,
    open_files,
    tls::TlsSource,
};

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("certificate").required(true).args(["tls_cert", "tls_self_signed"])))]
pub(super) struct Serve {
    #[command(flatten)]
    place: Place,

    /// Address and port for agents and clients
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:443")]
    listen: SocketAddr,

    /// Address and port for /metrics, /healthz and /readyz; not for the public
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    metrics_listen: SocketAddr,

    /// What agents and clients dial, such as <https://relay.example.com>
    #[arg(long, value_name = "URL", value_parser = public_url)]
    public_url: Option<RelayAddress>,

    /// PEM file with the certificate and its chain; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// PEM file with the certificate's key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Make an authority and a certificate for this DNS name or IP address (repeatable)
    #[arg(long, value_name = "NAME", conflicts_with = "tls_cert")]
    tls_self_signed: Vec<String>,

    /// Lead agents whose network lets them reach nothing but the relay to this identity provider, as HOST or HOST:PORT (repeatable)
    #[arg(long, value_name = "HOST")]
    issuer_host: Vec<IssuerHost>,

    /// How long an agent instance's certificate lasts; it is renewed after two thirds
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    certificate_life: Duration,

    /// How long streams may go on after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    drain_timeout: Duration,

    // Those with headings of their own come last: a heading holds for all that follows.
    #[command(flatten)]
    issuer: IssuerArgs,

    #[command(flatten)]
    limits: Limits,

    #[command(flatten)]
    audit: AuditArgs,
}

/// What is kept of who opened what.
#[derive(Args, Debug)]
#[command(next_help_heading = "Audit")]
struct AuditArgs {
    /// How long `towline-relay audit` shows what people opened
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = duration)]
    audit_retention: Duration,
    /// Records that are kept for it at most; the oldest go first
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = clap::value_parser!(u64).range(1..))]
    audit_records: u64,
    /// Write a line of JSON for each channel that ends to this file too, or to standard output (-)
    #[arg(long, value_name = "FILE")]
    audit_log: Option<String>,
    /// Size at which that file is moved to FILE.1
    #[arg(long, value_name = "SIZE", default_value = "100MiB", value_parser = bytes)]
    audit_log_size: u64,
    /// How many moved files are kept
    #[arg(long, value_name = "N", default_value = "10")]
    audit_log_files: u32,
}

impl AuditArgs {
    fn parse(self) -> AuditConfig {
        let log = |to: String| Destination::parse(&to, self.audit_log_size, self.audit_log_files);
        AuditConfig {
            retention: Retention { age: self.audit_retention, records: self.audit_records },
            log: self.audit_log.map(log),
        }
    }
}

/// Whose tokens for the relay are accepted: names and meanings of kube-apiserver's flags.
#[derive(Args, Debug)]
#[command(next_help_heading = "People's tokens for the relay (OIDC)")]
struct IssuerArgs {
    /// kube-apiserver's own file with any number of issuers (apiserver.config.k8s.io/v1), in place of the flags below
    #[arg(long, value_name = "FILE", conflicts_with = "oidc_issuer_url")]
    authentication_config: Option<PathBuf>,
    /// File that says which tokens of Microsoft Entra ID are taken
    #[arg(long, value_name = "FILE")]
    entra_config: Option<PathBuf>,
    /// Issuer's https URL
    #[arg(
        long,
        value_name = "URL",
        required_unless_present_any = ["authentication_config", "entra_config"]
    )]
    oidc_issuer_url: Option<String>,
    /// Audience that tokens for the relay have
    #[arg(long, value_name = "ID", default_value = "towline-relay")]
    oidc_client_id: String,
    /// Claim that is the username
    #[arg(long, value_name = "CLAIM")]
    oidc_username_claim: Option<String>,
    /// Prefix of usernames; `-` for none
    #[arg(long, value_name = "PREFIX")]
    oidc_username_prefix: Option<String>,
    /// Claim that holds the groups
    #[arg(long, value_name = "CLAIM")]
    oidc_groups_claim: Option<String>,
    /// Prefix of groups
    #[arg(long, value_name = "PREFIX")]
    oidc_groups_prefix: Option<String>,
    /// A claim that must have this value (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    oidc_required_claim: Vec<String>,
    /// The only authorities (PEM) that the issuer is trusted by
    #[arg(long, value_name = "FILE")]
    oidc_ca_file: Option<PathBuf>,
    /// Signature algorithms that are accepted; RS256, or with --authentication-config kube-apiserver's, if not given
    #[arg(long, value_name = "ALGS", value_delimiter = ',')]
    oidc_signing_algs: Vec<String>,
}

impl IssuerArgs {
    fn parse(self) -> Result<TrustSource, Report> {
        if let Some(file) = &self.oidc_ca_file {
            let unusable = |error| Report::new(Fault::FileUnreadable, format!("--oidc-ca-file {error}"));
            Roots::read(file).map_err(unusable)?;
        }
        let signing_algs = self.oidc_signing_algs.clone();
        let oidc = self.oidc_issuer_url.map(|issuer_url| IssuerSettings {
            issuer_url,
            client_id: self.oidc_client_id,
            username_claim: self.oidc_username_claim,
            username_prefix: self.oidc_username_prefix,
            groups_claim: self.oidc_groups_claim,
            groups_prefix: self.oidc_groups_prefix,
            required_claims: self.oidc_required_claim,
            ca_file: self.oidc_ca_file,
            signing_algs: self.oidc_signing_algs,
        });
        TrustSource::load(TrustSettings {
            oidc,
            authentication_config: self.authentication_config,
            signing_algs,
            entra_config: self.entra_config,
            // A relay opens channels; what is open is for the agents to end.
            introspection_config: None,
        })
        .map_err(|error| Report::new(Fault::ConfigInvalid, error.to_string()))
    }
}

impl Serve {
    fn config(self) -> Result<Config, Report> {
        self.limits.check()?;
        let data_dir = self.place.data_dir;
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) => TlsSource::Files { certificate, key },
            _ => TlsSource::SelfSigned { names: self.tls_self_signed, data_dir: data_dir.clone() },
        };
        if self.public_url.is_none() && self.listen.ip().is_unspecified() {
            let listen = self.listen;
            return Err(Report::new(
                Fault::ConfigInvalid,
                format!(
                    "--listen {listen} is every address of this machine: say with --public-url which one peers dial"
                ),
            ));
        }
        Ok(Config {
            data_dir,
            listen: self.listen,
            metrics_listen: self.metrics_listen,
            tls,
            public: self.public_url,
            issuer: self.issuer.parse()?,
            issuer_hosts: self.issuer_host,
            certificate_life: self.certificate_life,
            drain_timeout: self.drain_timeout,
            limits: self.limits,
            audit: self.audit.parse(),
            clock: Clock::system(),
        })
    }

    pub(super) async fn run(self) -> Result<(), Report> {
        let config = self.config()?;
        let no_signals = |error| Report::caused_by(Fault::Internal, "signals can't be caught", error);
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        open_files::raise_for(&config.limits);
        let running = app::start(config).await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::select! {
            _quiet = running.drain() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    }
}
