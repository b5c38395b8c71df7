use std::sync::atomic::{AtomicU64, Ordering};

use towline_identity::{
    IssuerConfig, IssuerSettings,
    dev::{DevIssuer, TokenRequest},
};
use towline_tunnel::{
    carrier::dial::RelayAddress,
    clock::Clock,
    enrolment::JOIN,
    ids::{InstanceId, KeyHash},
    keys::SigningKey,
};

use super::*;
use crate::{
    certificates::DEFAULT_LIFE,
    enrol::{PublicAddress, TokenRequest as EnrolRequest, make_token},
};

const HOUR: u64 = 3600;

struct Fixture {
    _folder: tempfile::TempDir,
    issuer: DevIssuer,
    registry: Registry,
    authenticator: Authenticator,
    ticket_key: VerifyingKey,
    /// Seconds that the injected clock is ahead of the system's.
    ahead: Arc<AtomicU64>,
}

impl Fixture {
    async fn new() -> Self {
        Self::with_limits(Limits::default()).await
    }

    async fn with_limits(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = DevIssuer::start(0).await.unwrap();
        let ca_file = folder.path().join("issuer-ca.pem");
        std::fs::write(&ca_file, issuer.ca_pem()).unwrap();
        let config = IssuerConfig::parse(IssuerSettings {
            issuer_url: issuer.url(),
            client_id: "towline-relay".into(),
            groups_claim: Some("groups".into()),
            signing_algs: vec!["ES256".into()],
            ca_file: Some(ca_file),
            ..IssuerSettings::default()
        })
        .unwrap();
        let registry = Registry::open(folder.path()).await.unwrap();
        let ahead = Arc::new(AtomicU64::new(0));
        let hands = Arc::clone(&ahead);
        let clock =
            Clock::new(move || SystemTime::now() + Duration::from_secs(hands.load(Ordering::Relaxed)));
        let ticket_key = SigningKey::generate().public();
        let authority = CertificateAuthority::new(&SigningKey::generate(), DEFAULT_LIFE).unwrap();
        let authenticator = Authenticator::new(
            Verifier::new(config).unwrap(),
            registry.clone(),
            authority,
            ticket_key,
            &limits,
            clock,
        );
        Self { _folder: folder, issuer, registry, authenticator, ticket_key, ahead }
    }

    async fn judge(&self, credential: Credential) -> Result<(Welcome, Peer), Refused> {
        self.authenticator.authenticate(credential, "192.0.2.1".parse().unwrap()).await
    }

    fn client(&self, audience: &str) -> Credential {
        let token = self.issuer.mint(&TokenRequest::new("alice", &["dev"], audience)).unwrap();
        Credential::Client {
            token: Secret::new(token),
            run_key: SigningKey::generate().public(),
            program: "towline/0.1.0".into(),
            line: false,
        }
    }

    async fn enrol(&self, name: &str, cluster: &SigningKey) -> (Welcome, AgentPeer) {
        let address = PublicAddress { relay: RelayAddress::parse("relay.test").unwrap(), ca_pem: None };
        let request = EnrolRequest {
            name: name.parse().unwrap(),
            ttl: Duration::from_secs(HOUR),
            replaces: false,
            address,
        };
        let key = KeyHash::of_spki(b"relay");
        let token = make_token(&self.registry, key, request, SystemTime::now()).await.unwrap();
        let (welcome, peer) = self.judge(enrolment(token.secret, cluster)).await.unwrap();
        let Peer::Agent(agent) = peer else { panic!("{peer:?}") };
        (welcome, agent)
    }
}

fn enrolment(secret: Secret, cluster: &SigningKey) -> Credential {
    Credential::Enrol {
        secret,
        cluster: cluster.public(),
        instance: InstanceId::random(),
        key: SigningKey::generate().public(),
        program: "towline-agent/0.1.0".into(),
    }
}

fn returning(agent: &AgentPeer, cluster: &SigningKey, certificate: &[u8]) -> Credential {
    Credential::Agent {
        cluster: cluster.public(),
        instance: agent.holder.instance,
        key: agent.holder.key,
        certificate: certificate.to_vec(),
        program: agent.program.clone(),
        line: false,
        beside: Vec::new(),
    }
}

#[tokio::test]
async fn a_client_is_known_by_its_token() {
    let fixture = Fixture::new().await;
    let (welcome, peer) = fixture.judge(fixture.client("towline-relay")).await.unwrap();
    let Peer::Client(client) = peer else { panic!("{peer:?}") };
    let principal = format!("{}#alice", fixture.issuer.url());
    assert_eq!(client.caller.principal, principal);
    assert_eq!(client.caller.groups, ["dev"]);
    assert_eq!(welcome.name, Some(principal));
    assert!(client.expires_at > SystemTime::now());
    assert!(welcome.certificate.is_none() && welcome.ticket_key.is_none());
}

#[tokio::test]
async fn tokens_for_others_and_old_ones_are_refused_with_the_right_reason() {
    let fixture = Fixture::new().await;
    let refused = fixture.judge(fixture.client("towline-cluster")).await.unwrap_err();
    assert_eq!(refused.reason, CloseReason::Unauthenticated);
    assert!(refused.detail.contains("audience"), "{}", refused.detail);

    let token = fixture.client("towline-relay");
    fixture.ahead.store(2 * HOUR, Ordering::Relaxed);
    assert_eq!(fixture.judge(token).await.unwrap_err().reason, CloseReason::TokenExpired);

    let garbage = Credential::Client {
        token: Secret::new(vec![0xff; 8]),
        run_key: SigningKey::generate().public(),
        program: String::new(),
        line: false,
    };
    assert_eq!(fixture.judge(garbage).await.unwrap_err().reason, CloseReason::Unauthenticated);
}

#[tokio::test]
async fn an_agent_enrols_comes_back_and_is_renewed_after_two_thirds() {
    let fixture = Fixture::new().await;
    let cluster = SigningKey::generate();
    let (welcome, agent) = fixture.enrol("edge-7", &cluster).await;
    assert_eq!(welcome.ticket_key, Some(fixture.ticket_key));
    assert_eq!(welcome.name.as_deref(), Some("edge-7"));
    let certificate = welcome.certificate.unwrap();

    let (welcome, peer) = fixture.judge(returning(&agent, &cluster, &certificate)).await.unwrap();
    assert!(welcome.certificate.is_none(), "not due yet");
    assert!(
        matches!(peer, Peer::Agent(peer) if peer.cluster.name == "edge-7" && peer.holder == agent.holder)
    );

    fixture.ahead.store(17 * HOUR, Ordering::Relaxed);
    let (welcome, _) = fixture.judge(returning(&agent, &cluster, &certificate)).await.unwrap();
    let renewed = welcome.certificate.unwrap();
    fixture.ahead.store(25 * HOUR, Ordering::Relaxed);
    let refused = fixture.judge(returning(&agent, &cluster, &certificate)).await.unwrap_err();
    assert_eq!(refused.reason, CloseReason::CertificateRefused);
    assert!(refused.detail.contains("expired"), "{}", refused.detail);
    fixture.judge(returning(&agent, &cluster, &renewed)).await.unwrap();
}

#[tokio::test]
async fn t31_cluster_as_credential_does_not_make_it_cluster_b() {
    let fixture = Fixture::new().await;
    let (a, b) = (SigningKey::generate(), SigningKey::generate());
    let (welcome, agent) = fixture.enrol("a", &a).await;
    fixture.enrol("b", &b).await;
    let certificate = welcome.certificate.unwrap();
    let refused = fixture.judge(returning(&agent, &b, &certificate)).await.unwrap_err();
    assert_eq!(refused.reason, CloseReason::CertificateRefused);
    // The instance id of A's agent can't be taken over by B's either.
    let thief = Credential::Enrol {
        secret: Secret::new(JOIN),
        cluster: b.public(),
        instance: agent.holder.instance,
        key: SigningKey::generate().public(),
        program: String::new(),
    };
    assert_eq!(fixture.judge(thief).await.unwrap_err().reason, CloseReason::CertificateRefused);
}

#[tokio::test]
async fn a_session_renews_its_own_key_only_and_not_after_it_was_revoked() {
    let fixture = Fixture::new().await;
    let cluster = SigningKey::generate();
    let (_, agent) = fixture.enrol("edge-7", &cluster).await;
    let issued = fixture.authenticator.renew(&agent, &agent.holder.key).await.unwrap();
    fixture.judge(returning(&agent, &cluster, &issued.der)).await.unwrap();
    let other = SigningKey::generate().public();
    assert!(fixture.authenticator.renew(&agent, &other).await.is_err());
    fixture.registry.revoke_instance(agent.holder.instance, SystemTime::now()).await.unwrap();
    let refused = fixture.authenticator.renew(&agent, &agent.holder.key).await.unwrap_err();
    assert_eq!(refused.reason, CloseReason::CertificateRefused);
    assert!(refused.detail.contains("revoked"), "{}", refused.detail);
}

/// The registry's file is gone: nothing can be enrolled, and whoever is known comes in, even one that is due.
#[tokio::test]
async fn known_agents_and_clients_come_in_while_the_registry_is_away() {
    let fixture = Fixture::new().await;
    let cluster = SigningKey::generate();
    let (welcome, agent) = fixture.enrol("edge-7", &cluster).await;
    let certificate = welcome.certificate.unwrap();
    std::fs::remove_file(fixture.registry.path()).unwrap();
    fixture.ahead.store(17 * HOUR, Ordering::Relaxed);
    let (welcome, _) = fixture.judge(returning(&agent, &cluster, &certificate)).await.unwrap();
    assert!(welcome.certificate.is_none());
    fixture.ahead.store(0, Ordering::Relaxed);
    fixture.judge(fixture.client("towline-relay")).await.unwrap();
    let refused = fixture.judge(enrolment(Secret::new(JOIN), &cluster)).await.unwrap_err();
    assert_eq!(refused.reason, CloseReason::RegistryUnavailable);
    assert!(!refused.delay.is_zero());
}

#[tokio::test]
async fn too_many_refusals_from_one_address_close_it_for_a_while() {
    let fixture = Fixture::with_limits(Limits { max_failures_per_minute: 2, ..Limits::default() }).await;
    for _ in 0..2 {
        let refused = fixture.judge(fixture.client("towline-cluster")).await.unwrap_err();
        assert_eq!(refused.reason, CloseReason::Unauthenticated);
    }
    let refused = fixture.judge(fixture.client("towline-relay")).await.unwrap_err();
    assert_eq!(refused.reason, CloseReason::LimitReached);
    assert!(!refused.delay.is_zero());
    let elsewhere = "192.0.2.2".parse().unwrap();
    let credential = fixture.client("towline-relay");
    fixture.authenticator.authenticate(credential, elsewhere).await.unwrap();
}
