//! How a cluster joins: the token that an operator makes, and what happens when an agent uses it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use towline_tunnel::{
    carrier::dial::RelayAddress,
    enrolment::{EnrolmentToken, JOIN},
    fault::{Fault, Report},
    ids::KeyHash,
    keys::VerifyingKey,
    proto::CloseReason,
    session::{Refused, message::Secret},
};
use tracing::{error, info};

use crate::{
    certificates::{CertificateAuthority, Holder, Issued},
    registry::{Cluster, ClusterName, Enrolled, EnrolmentOffer, Recorded, Registry, RegistryError},
};

/// How long an enrolment token is good where nothing else is said.
pub const DEFAULT_TTL: &str = "1h";
const PUBLIC_URL: &str = "public-url";
const TLS_AUTHORITY: &str = "tls-authority";

/// How agents and clients reach this relay, as the serving process last noted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicAddress {
    /// Host and port.
    pub relay: RelayAddress,
    /// The authority of its outer TLS (PEM), where it is its own.
    pub ca_pem: Option<String>,
}

impl PublicAddress {
    /// Notes the address for `towline-relay enroll`, which runs in another process.
    ///
    /// # Errors
    /// If the registry can't be written.
    pub async fn note(&self, registry: &Registry) -> Result<(), RegistryError> {
        registry.set(PUBLIC_URL, Some(&self.relay.to_string())).await?;
        registry.set(TLS_AUTHORITY, self.ca_pem.as_deref()).await
    }

    /// What was noted, if a relay ever served from this data directory.
    ///
    /// # Errors
    /// If the registry can't be read, or what it holds is no address.
    pub async fn noted(registry: &Registry) -> Result<Option<Self>, Report> {
        let Some(url) = registry.setting(PUBLIC_URL).await? else { return Ok(None) };
        let relay = RelayAddress::parse(&url)?;
        Ok(Some(Self { relay, ca_pem: registry.setting(TLS_AUTHORITY).await? }))
    }
}

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// The cluster's name to be.
    pub name: ClusterName,
    /// How long the token is good.
    pub ttl: Duration,
    /// Whether another cluster's key may take over the name.
    pub replaces: bool,
    /// Where the agent will find the relay.
    pub address: PublicAddress,
}

/// Makes an enrolment token. Its secret is in the answer and nowhere else.
///
/// # Errors
/// If the registry can't be written.
pub async fn make_token(
    registry: &Registry,
    relay_key: KeyHash,
    request: TokenRequest,
    now: SystemTime,
) -> Result<EnrolmentToken, Report> {
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| Report::from(Fault::Internal))?;
    let expires = now + request.ttl;
    let offer = EnrolmentOffer {
        secret_hash: hash(&secret),
        name: request.name,
        replaces: request.replaces,
        expires_at: expires,
    };
    registry.offer_enrolment(&offer, now).await?;
    Ok(EnrolmentToken {
        relay: request.address.relay,
        relay_key,
        secret: Secret::new(secret),
        expires,
        ca_pem: request.address.ca_pem,
    })
}

fn hash(secret: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, secret).as_ref());
    hash
}

/// Lets agents in for the first time, and gives them certificates.
#[derive(Clone)]
pub struct Enrolment {
    registry: Registry,
    authority: Arc<CertificateAuthority>,
    max_instances: u32,
}

impl Enrolment {
    /// Enrols into this registry.
    pub fn new(registry: Registry, authority: Arc<CertificateAuthority>, max_instances: u32) -> Self {
        Self { registry, authority, max_instances }
    }

    /// Uses an enrolment token, or lets a further instance of a known cluster in ([`JOIN`]). Possession of the
    /// cluster's and the instance's keys was proven on the channel.
    ///
    /// # Errors
    /// If the token is not good for this, or the registry can't be written.
    pub async fn enrol(
        &self,
        secret: &Secret,
        cluster: &VerifyingKey,
        holder: &Holder,
        now: SystemTime,
    ) -> Result<(Arc<Cluster>, Issued), Refused> {
        if secret.reveal() != JOIN {
            self.use_token(secret, cluster, now).await?;
        }
        let known = self.registry.snapshot();
        let Some(cluster) = known.cluster(holder.cluster).filter(|cluster| cluster.enabled) else {
            return Err(refused("this cluster's key is not enrolled here"));
        };
        let issued = self.issue(holder, now).await?;
        info!(cluster = %cluster.id, name = cluster.name, instance = %holder.instance, "an agent instance was enrolled");
        Ok((Arc::clone(cluster), issued))
    }

    async fn use_token(
        &self,
        secret: &Secret,
        cluster: &VerifyingKey,
        now: SystemTime,
    ) -> Result<(), Refused> {
        let used = self.registry.enrol(&hash(secret.reveal()), cluster, now).await;
        match used.map_err(away)? {
            Enrolled::Yes { name } => {
                info!(cluster = %cluster.cluster_id(), name, "a cluster was enrolled");
                Ok(())
            }
            Enrolled::TokenUnknown => Err(refused("this relay did not make the enrolment token")),
            Enrolled::TokenExpired => Err(refused("the enrolment token is expired")),
            Enrolled::TokenUsed => Err(refused("the enrolment token was used before")),
            Enrolled::NameTaken { name } => Err(refused(format!(
                "another cluster is enrolled as {name}; a token made with --replace takes the name over"
            ))),
            Enrolled::EnrolledElsewhere { name } => Err(refused(format!(
                "this cluster is enrolled as {name}; a token made with --replace renames it"
            ))),
        }
    }

    /// A new certificate for a holder that was already let in on this channel.
    ///
    /// # Errors
    /// If the instance was revoked meanwhile, or the registry can't be written.
    pub async fn issue(&self, holder: &Holder, now: SystemTime) -> Result<Issued, Refused> {
        let issued = self.authority.issue(holder, now).map_err(|report| {
            error!(%report, "no certificate was issued");
            Refused::new(CloseReason::InternalError, "no certificate could be made")
        })?;
        match self
            .registry
            .record_certificate(holder, &issued, self.max_instances, now)
            .await
            .map_err(away)?
        {
            Recorded::Yes => Ok(issued),
            Recorded::Taken => {
                Err(Refused::new(CloseReason::CertificateRefused, "the instance id is revoked or another's"))
            }
            Recorded::TooMany => Err(Refused::new(
                CloseReason::LimitReached,
                "too many instances of this cluster (--max-instances-per-cluster)",
            )),
        }
    }
}

fn refused(detail: impl Into<String>) -> Refused {
    Refused::new(CloseReason::EnrolmentRefused, detail)
}

/// The peer learns that the registry is away, the log learns why.
fn away(error: RegistryError) -> Refused {
    error!(%error, "the registry can't be written");
    let mut refused = Refused::new(CloseReason::RegistryUnavailable, "nothing can be enrolled now");
    refused.delay = Duration::from_secs(5);
    refused
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use towline_tunnel::{ids::InstanceId, keys::SigningKey};

    use super::*;
    use crate::certificates::DEFAULT_LIFE;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    struct Fixture {
        _folder: tempfile::TempDir,
        registry: Registry,
        enrolment: Enrolment,
    }

    impl Fixture {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let registry = Registry::open(folder.path()).await.unwrap();
            let authority = CertificateAuthority::new(&SigningKey::generate(), DEFAULT_LIFE).unwrap();
            let enrolment = Enrolment::new(registry.clone(), Arc::new(authority), 3);
            Self { _folder: folder, registry, enrolment }
        }

        async fn token(&self, name: &str, replaces: bool) -> EnrolmentToken {
            let address = PublicAddress {
                relay: RelayAddress::parse("relay.test").unwrap(),
                ca_pem: Some("pem".into()),
            };
            let request = TokenRequest { name: name.parse().unwrap(), ttl: HOUR, replaces, address };
            make_token(&self.registry, KeyHash::of_spki(b"relay"), request, now()).await.unwrap()
        }

        async fn enrol(
            &self,
            secret: &Secret,
            cluster: &SigningKey,
        ) -> Result<(Arc<Cluster>, Issued), Refused> {
            let cluster = cluster.public();
            let holder = Holder {
                cluster: cluster.cluster_id(),
                instance: InstanceId::random(),
                key: SigningKey::generate().public(),
            };
            self.enrolment.enrol(secret, &cluster, &holder, now()).await
        }
    }

    fn reason(refused: Result<(Arc<Cluster>, Issued), Refused>) -> (CloseReason, String) {
        let refused = refused.unwrap_err();
        (refused.reason, refused.detail)
    }

    #[tokio::test]
    async fn a_token_that_an_operator_made_lets_a_cluster_in() {
        let fixture = Fixture::new().await;
        let token = EnrolmentToken::decode(&fixture.token("edge-7", false).await.encode()).unwrap();
        assert_eq!((token.relay_key, token.expires), (KeyHash::of_spki(b"relay"), now() + HOUR));
        assert_eq!(token.ca_pem.as_deref(), Some("pem"));
        let key = SigningKey::generate();
        let (cluster, issued) = fixture.enrol(&token.secret, &key).await.unwrap();
        assert_eq!((cluster.id, cluster.name.as_str()), (key.public().cluster_id(), "edge-7"));
        assert_eq!(fixture.registry.instances().await.unwrap()[0].serial, issued.serial);
    }

    #[tokio::test]
    async fn t31_a_used_token_is_refused_whoever_brings_it() {
        let fixture = Fixture::new().await;
        let token = fixture.token("edge-7", false).await;
        let key = SigningKey::generate();
        fixture.enrol(&token.secret, &key).await.unwrap();
        for key in [&key, &SigningKey::generate()] {
            let (reason, detail) = reason(fixture.enrol(&token.secret, key).await);
            assert_eq!(reason, CloseReason::EnrolmentRefused);
            assert!(detail.contains("used before"), "{detail}");
        }
    }

    #[tokio::test]
    async fn t31_a_token_for_one_name_gives_no_other_clusters_name() {
        let fixture = Fixture::new().await;
        let (a, b) = (SigningKey::generate(), SigningKey::generate());
        for (name, key) in [("a", &a), ("b", &b)] {
            fixture.enrol(&fixture.token(name, false).await.secret, key).await.unwrap();
        }
        let (_, detail) = reason(fixture.enrol(&fixture.token("b", false).await.secret, &a).await);
        assert!(detail.contains("enrolled as a"), "{detail}");
        let (_, detail) =
            reason(fixture.enrol(&fixture.token("b", false).await.secret, &SigningKey::generate()).await);
        assert!(detail.contains("--replace"), "{detail}");
        let newcomer = SigningKey::generate();
        let (cluster, _) = fixture.enrol(&fixture.token("b", true).await.secret, &newcomer).await.unwrap();
        assert_eq!(cluster.id, newcomer.public().cluster_id());
        let (_, detail) = reason(fixture.enrol(&Secret::new(JOIN), &b).await);
        assert!(detail.contains("not enrolled"), "{detail}");
    }

    /// A restarted pod has the cluster's identity key (its Secret), and no token.
    #[tokio::test]
    async fn a_further_instance_joins_by_its_clusters_key_up_to_a_limit() {
        let fixture = Fixture::new().await;
        let key = SigningKey::generate();
        let (reason_before, _) = reason(fixture.enrol(&Secret::new(JOIN), &key).await);
        assert_eq!(reason_before, CloseReason::EnrolmentRefused, "not before the cluster is enrolled");
        fixture.enrol(&fixture.token("edge-7", false).await.secret, &key).await.unwrap();
        for _ in 0..2 {
            fixture.enrol(&Secret::new(JOIN), &key).await.unwrap();
        }
        assert_eq!(reason(fixture.enrol(&Secret::new(JOIN), &key).await).0, CloseReason::LimitReached);
    }

    #[tokio::test]
    async fn a_revoked_instance_gets_no_further_certificate() {
        let fixture = Fixture::new().await;
        let key = SigningKey::generate();
        fixture.enrol(&fixture.token("edge-7", false).await.secret, &key).await.unwrap();
        let holder = Holder {
            cluster: key.public().cluster_id(),
            instance: InstanceId::random(),
            key: SigningKey::generate().public(),
        };
        fixture.enrolment.issue(&holder, now()).await.unwrap();
        fixture.enrolment.issue(&holder, now()).await.unwrap();
        fixture.registry.revoke_instance(holder.instance, now()).await.unwrap();
        let refused = fixture.enrolment.issue(&holder, now()).await.unwrap_err();
        assert_eq!(refused.reason, CloseReason::CertificateRefused);
    }

    #[tokio::test]
    async fn the_address_is_noted_for_other_processes() {
        let fixture = Fixture::new().await;
        assert_eq!(PublicAddress::noted(&fixture.registry).await.unwrap(), None);
        for ca_pem in [Some("pem".to_owned()), None] {
            let address =
                PublicAddress { relay: RelayAddress::parse("https://relay.test:8443").unwrap(), ca_pem };
            address.note(&fixture.registry).await.unwrap();
            assert_eq!(PublicAddress::noted(&fixture.registry).await.unwrap(), Some(address));
        }
    }
}
