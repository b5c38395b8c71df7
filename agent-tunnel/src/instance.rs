//! This process towards the relay: an instance of the cluster's agent, with a key and a certificate of its own.
//!
//! All of it is made anew when the process starts and lives in memory only: the cluster's identity key vouches for each
//! instance, and nothing that outlives the process can be taken from it.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use towline_tunnel::{ids::InstanceId, keys::SigningKey, session::control::Control};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A renewal that was not answered, or was refused, is asked for again after this.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// What can't be read is as good as over in an hour: the relay decides in the end.
const UNREADABLE_LASTS: Duration = Duration::from_secs(3600);

/// One instance.
pub struct Instance {
    /// Its name.
    pub id: InstanceId,
    /// Its key.
    pub key: SigningKey,
    certificate: Mutex<Option<Vec<u8>>>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instance({})", self.id)
    }
}

impl Instance {
    /// One that nobody knows yet.
    pub fn new() -> Self {
        Self { id: InstanceId::random(), key: SigningKey::generate(), certificate: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.certificate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The certificate that the relay issued to it (DER), once it did.
    pub fn certificate(&self) -> Option<Vec<u8>> {
        self.lock().clone()
    }

    /// Keeps the newest certificate.
    pub fn keep(&self, certificate: Vec<u8>) {
        *self.lock() = Some(certificate);
    }

    /// How long until the next certificate is due: two thirds of what is left of this one.
    pub fn renew_in(&self, now: SystemTime) -> Duration {
        let ends = self.lock().as_deref().and_then(not_after);
        let left = ends.map_or(UNREADABLE_LASTS, |ends| ends.duration_since(now).unwrap_or_default());
        (left / 3 * 2).max(Duration::from_secs(1))
    }

    /// The question for the next certificate.
    pub fn renewal(&self) -> Control {
        Control::Renew { key: self.key.public() }
    }

    /// Takes the relay's answer; how long until the next question, if it was one to ours.
    pub fn answered(&self, answer: Control, now: SystemTime) -> Option<Duration> {
        match answer {
            Control::Renewed { certificate } => {
                self.keep(certificate);
                tracing::info!(instance = %self.id, "the certificate was renewed");
                Some(self.renew_in(now))
            }
            Control::Failed { reason, detail } => {
                tracing::warn!(instance = %self.id, reason = reason.text(), detail, "the certificate was not renewed");
                Some(ASK_AGAIN)
            }
            _ => None,
        }
    }

    /// How long an answer is waited for.
    pub fn patience() -> Duration {
        ASK_AGAIN
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self::new()
    }
}

fn not_after(der: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use towline_tunnel::mux::CloseReason;

    use super::*;

    fn certificate(ends: SystemTime) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.not_after = ends.into();
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_and_a_failure_soon_again() {
        let (now, hour) = (UNIX_EPOCH + Duration::from_secs(1_800_000_000), Duration::from_secs(3600));
        let instance = Instance::new();
        instance.keep(certificate(now + 24 * hour));
        assert_eq!(instance.renew_in(now), 16 * hour);
        assert_eq!(instance.renew_in(now + 48 * hour), Duration::from_secs(1));
        let renewed = Control::Renewed { certificate: certificate(now + 30 * hour) };
        assert_eq!(instance.answered(renewed, now), Some(20 * hour));
        let failed = Control::Failed { reason: CloseReason::RegistryUnavailable, detail: String::new() };
        assert_eq!(instance.answered(failed, now), Some(ASK_AGAIN));
        assert_eq!(instance.renew_in(now), 20 * hour, "the last one stays");
        assert_eq!(instance.answered(instance.renewal(), now), None);
    }
}
