//! Certificates of agent instances: issued here, presented here, judged here.
//!
//! A certificate says: this key is this instance's of this cluster. It lets an instance come back without the
//! cluster's identity key, and ends by itself; revoking is for one that was stolen meanwhile.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use towline_tunnel::{
    fault::{Fault, Report},
    ids::{ClusterId, InstanceId},
    keys::{SigningKey, VerifyingKey},
    proto::CloseReason,
    session::Refused,
};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::registry::{Cluster, Snapshot};

/// How long a certificate lasts where nothing else is said.
pub const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Certificates begin this long before they are issued: the relay's clock may be set back.
const BACKDATED: Duration = Duration::from_secs(300);

/// Issues and judges certificates.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    anchor: TrustAnchor<'static>,
    life: Duration,
}

/// A certificate that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub der: Vec<u8>,
    /// Its serial, hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The cluster.
    pub cluster: ClusterId,
    /// The instance.
    pub instance: InstanceId,
    /// The instance's key.
    pub key: VerifyingKey,
}

impl Holder {
    /// The holder's cluster, if neither it nor the instance was withdrawn. For sessions that already began, too.
    ///
    /// # Errors
    /// If one of them was.
    pub fn standing<'a>(&self, known: &'a Snapshot) -> Result<&'a Arc<Cluster>, CertificateError> {
        if known.is_revoked(self.instance) {
            return Err(CertificateError::Revoked);
        }
        known.cluster(self.cluster).filter(|cluster| cluster.enabled).ok_or(CertificateError::ClusterGone)
    }
}

/// A certificate that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// When it ends.
    pub not_after: SystemTime,
    /// When its holder should have the next one: after two thirds of its life.
    pub renew_at: SystemTime,
}

/// Why a certificate is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It can't be read.
    #[error("the certificate can't be read")]
    Malformed,
    /// This relay did not issue it, or not for this use.
    #[error("the certificate is not of this relay")]
    NotOurs,
    /// Its time is over.
    #[error("the certificate is expired")]
    Expired,
    /// Its time has not come: a clock is wrong.
    #[error("the certificate is not valid yet")]
    NotYetValid,
    /// It is for another cluster, instance or key.
    #[error("the certificate is for another cluster, instance or key")]
    OtherHolder,
    /// Its holder's certificates were revoked.
    #[error("the agent instance was revoked")]
    Revoked,
    /// The cluster was removed, replaced or disabled.
    #[error("the cluster is no longer enrolled")]
    ClusterGone,
}

impl From<CertificateError> for Refused {
    fn from(error: CertificateError) -> Self {
        Self::new(CloseReason::CertificateRefused, error.to_string())
    }
}

impl CertificateAuthority {
    /// Prepares to issue with this key.
    ///
    /// # Errors
    /// Never for a sound key; rcgen and webpki are fallible.
    pub fn new(key: &SigningKey, life: Duration) -> Result<Self, Report> {
        let internal = |what: &dyn std::fmt::Display| {
            Report::new(Fault::Internal, format!("the authority can't be set up: {what}"))
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("towline relay {}", key.public().hash()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pair = key.for_certificates().map_err(|error| internal(&error))?;
        let root = params.self_signed(&pair).map_err(|error| internal(&error))?;
        let anchor =
            webpki::anchor_from_trusted_cert(root.der()).map_err(|error| internal(&error))?.to_owned();
        Ok(Self { issuer: Issuer::new(params, pair), anchor, life })
    }

    /// Issues a certificate. It must be recorded in the registry before it is handed out.
    ///
    /// # Errors
    /// Never for a sound holder; rcgen is fallible.
    pub fn issue(&self, holder: &Holder, now: SystemTime) -> Result<Issued, Report> {
        let internal =
            |error: rcgen::Error| Report::caused_by(Fault::Internal, "no certificate can be made", error);
        let mut serial = *InstanceId::random().as_bytes();
        // RFC 5280, 4.1.2.2: positive.
        serial[0] = serial[0] & 0x7f | 0x40;
        let not_after = now + self.life;
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATED).into();
        params.not_after = not_after.into();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri(holder).try_into().map_err(internal)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = SubjectPublicKeyInfo::from_der(holder.key.spki()).map_err(internal)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(internal)?;
        let serial = data_encoding::HEXLOWER.encode(&serial);
        Ok(Issued { der: certificate.der().to_vec(), serial, not_after })
    }

    /// Judges a certificate that is presented for this holder; the holder's key was proven on the channel.
    ///
    /// # Errors
    /// If it is not this relay's, over, not for this holder, or withdrawn.
    pub fn judge(
        &self,
        der: &[u8],
        holder: &Holder,
        known: &Snapshot,
        now: SystemTime,
    ) -> Result<Accepted, CertificateError> {
        let der = CertificateDer::from(der);
        let certificate = EndEntityCert::try_from(&der).map_err(|_| CertificateError::Malformed)?;
        certificate
            .verify_for_usage(
                &[webpki::aws_lc_rs::ED25519],
                std::slice::from_ref(&self.anchor),
                &[],
                UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default()),
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(|error| match error {
                webpki::Error::CertExpired { .. } => CertificateError::Expired,
                webpki::Error::CertNotValidYet { .. } => CertificateError::NotYetValid,
                _ => CertificateError::NotOurs,
            })?;
        // Claims are compared with what was signed, never read from it: cluster A's credential can't say B.
        let uri = uri(holder);
        let mut names = certificate.valid_uri_names();
        if names.next() != Some(uri.as_str())
            || names.next().is_some()
            || certificate.subject_public_key_info().as_ref() != holder.key.spki()
        {
            return Err(CertificateError::OtherHolder);
        }
        holder.standing(known)?;
        accepted(&der).ok_or(CertificateError::Malformed)
    }
}

fn uri(holder: &Holder) -> String {
    format!("towline://cluster/{}/instance/{}", holder.cluster, holder.instance)
}

fn accepted(der: &CertificateDer<'_>) -> Option<Accepted> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let at = |time: x509_parser::time::ASN1Time| {
        Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).ok()?))
    };
    let not_after = at(certificate.validity().not_after)?;
    let issued = at(certificate.validity().not_before)? + BACKDATED;
    let life = not_after.duration_since(issued).ok()?;
    Some(Accepted { not_after, renew_at: issued + life / 3 * 2 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{EnrolmentOffer, Recorded, Registry};

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn authority() -> CertificateAuthority {
        CertificateAuthority::new(&SigningKey::generate(), DEFAULT_LIFE).unwrap()
    }

    fn holder(cluster: &SigningKey) -> Holder {
        Holder {
            cluster: cluster.public().cluster_id(),
            instance: InstanceId::random(),
            key: SigningKey::generate().public(),
        }
    }

    /// A registry in which these clusters are enrolled.
    async fn registry(folder: &std::path::Path, clusters: &[&SigningKey]) -> Registry {
        let registry = Registry::open(folder).await.unwrap();
        for (n, cluster) in clusters.iter().enumerate() {
            let offer = EnrolmentOffer {
                secret_hash: [n as u8; 32],
                name: format!("cluster-{n}").parse().unwrap(),
                replaces: false,
                expires_at: now() + HOUR,
            };
            registry.offer_enrolment(&offer, now()).await.unwrap();
            registry.enrol(&offer.secret_hash, &cluster.public(), now()).await.unwrap();
        }
        registry
    }

    #[tokio::test]
    async fn a_certificate_holds_for_its_time_and_is_due_for_renewal_after_two_thirds() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, cluster) = (authority(), SigningKey::generate());
        let known = registry(folder.path(), &[&cluster]).await.snapshot();
        let holder = holder(&cluster);
        let issued = authority.issue(&holder, now()).unwrap();
        assert_eq!(issued.not_after, now() + 24 * HOUR);
        let judge = |at| authority.judge(&issued.der, &holder, &known, at);
        let accepted = judge(now()).unwrap();
        assert_eq!(accepted, Accepted { not_after: now() + 24 * HOUR, renew_at: now() + 16 * HOUR });
        assert!(judge(now() + 24 * HOUR).is_ok() && judge(now() - BACKDATED).is_ok());
        let second = Duration::from_secs(1);
        assert_eq!(judge(now() + 24 * HOUR + second), Err(CertificateError::Expired));
        assert_eq!(judge(now() - BACKDATED - second), Err(CertificateError::NotYetValid));
    }

    #[tokio::test]
    async fn t31_a_certificate_of_cluster_a_does_not_serve_cluster_b() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, a, b) = (authority(), SigningKey::generate(), SigningKey::generate());
        let known = registry(folder.path(), &[&a, &b]).await.snapshot();
        let honest = holder(&a);
        let der = authority.issue(&honest, now()).unwrap().der;
        let judge = |holder: &Holder| authority.judge(&der, holder, &known, now());
        assert!(judge(&honest).is_ok());
        for claim in [
            Holder { cluster: b.public().cluster_id(), ..honest },
            Holder { instance: InstanceId::random(), ..honest },
            Holder { key: SigningKey::generate().public(), ..honest },
        ] {
            assert_eq!(judge(&claim), Err(CertificateError::OtherHolder));
        }
    }

    #[tokio::test]
    async fn certificates_of_others_and_changed_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, cluster) = (authority(), SigningKey::generate());
        let known = registry(folder.path(), &[&cluster]).await.snapshot();
        let holder = holder(&cluster);
        let judge = |der: &[u8]| authority.judge(der, &holder, &known, now());
        let foreign = CertificateAuthority::new(&SigningKey::generate(), DEFAULT_LIFE)
            .unwrap()
            .issue(&holder, now())
            .unwrap();
        assert_eq!(judge(&foreign.der), Err(CertificateError::NotOurs));
        let der = authority.issue(&holder, now()).unwrap().der;
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            assert!(judge(&changed).is_err(), "byte {at}");
        }
        assert_eq!(judge(b""), Err(CertificateError::Malformed));
        assert!(judge(&der[..der.len() - 1]).is_err());
    }

    #[tokio::test]
    async fn what_is_revoked_or_removed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, cluster) = (authority(), SigningKey::generate());
        let registry = registry(folder.path(), &[&cluster]).await;
        let (one, two) = (holder(&cluster), holder(&cluster));
        let [first, second] = [one, two].map(|holder| authority.issue(&holder, now()).unwrap());
        for (holder, issued) in [(&one, &first), (&two, &second)] {
            assert_eq!(registry.record_certificate(holder, issued, 9, now()).await.unwrap(), Recorded::Yes);
        }
        registry.revoke_instance(one.instance, now()).await.unwrap();
        let judge = |holder: &Holder, issued: &Issued| {
            authority.judge(&issued.der, holder, &registry.snapshot(), now()).map(|_| ())
        };
        assert_eq!(judge(&one, &first), Err(CertificateError::Revoked));
        assert_eq!(judge(&two, &second), Ok(()));
        registry.remove_cluster(two.cluster).await.unwrap();
        assert_eq!(judge(&two, &second), Err(CertificateError::ClusterGone));
    }
}
