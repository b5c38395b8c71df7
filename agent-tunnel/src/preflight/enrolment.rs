//! Whether the agent will be let in, as far as can be known without asking the relay.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use towline_tunnel::{
    carrier::dial::RelayAddress,
    doctor::Verdict,
    enrolment::EnrolmentToken,
    fault::{Fault, Report},
    ids::KeyHash,
};

use crate::state::Membership;

/// The relay that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) relay: RelayAddress,
    pub(super) relay_key: KeyHash,
    pub(super) ca_pem: Option<String>,
}

impl Home {
    fn of_token(token: &EnrolmentToken) -> Self {
        Self { relay: token.relay.clone(), relay_key: token.relay_key, ca_pem: token.ca_pem.clone() }
    }

    fn of_membership(membership: &Membership) -> Self {
        Self {
            relay: membership.relay.clone(),
            relay_key: membership.relay_key,
            ca_pem: membership.ca_pem.clone(),
        }
    }
}

/// Judges token and membership, as the agent will use them: a token that was not used yet comes first.
pub(super) fn judge(
    token: Option<&EnrolmentToken>,
    membership: Option<&Membership>,
    now: SystemTime,
) -> Verdict<Home> {
    let is_new = |token: &&EnrolmentToken| {
        let used = digest(&SHA256, token.secret.reveal());
        membership.is_none_or(|membership| membership.used_secret != used.as_ref())
    };
    match (token.filter(is_new), membership) {
        (None, None) => Verdict::failed(
            Report::new(
                Fault::ConfigInvalid,
                "this cluster is not enrolled: give --enrolment-token-file with a token that `towline-relay enroll NAME` made",
            ),
            "neither the data directory nor the Secret names a relay, and there is no enrolment token",
        ),
        (None, Some(membership)) => {
            Verdict::ok(Home::of_membership(membership), format!("enrolled at {}", membership.relay))
        }
        (Some(token), membership) if token.expires <= now => {
            let report =
                Report::new(Fault::EnrolTokenExpired, format!("it was good until {}", at(token.expires)));
            match membership {
                Some(joined) => Verdict::warning(
                    Home::of_membership(joined),
                    report,
                    format!("the cluster is enrolled at {} already, and stays so", joined.relay),
                ),
                None => Verdict::failed(report, format!("it is {} here", at(now))),
            }
        }
        (Some(token), _) => {
            let seen = format!("a token of {}, good until {}", token.relay, at(token.expires));
            Verdict::ok(Home::of_token(token), seen)
        }
    }
}

fn at(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "a time beyond reckoning".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use towline_tunnel::{
        doctor::{Examination, Status, Step},
        keys::SigningKey,
        session::message::Secret,
    };

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn token(expires: Duration) -> EnrolmentToken {
        EnrolmentToken {
            relay: RelayAddress::parse("https://new.example").unwrap(),
            relay_key: KeyHash::of_spki(b"new"),
            secret: Secret::new([7; 32]),
            expires: UNIX_EPOCH + expires,
            ca_pem: None,
        }
    }

    fn membership(used: [u8; 32]) -> Membership {
        Membership {
            relay: RelayAddress::parse("https://old.example").unwrap(),
            relay_key: KeyHash::of_spki(b"old"),
            tickets: SigningKey::generate().public(),
            ca_pem: None,
            used_secret: used,
        }
    }

    fn judged(
        token: Option<EnrolmentToken>,
        membership: Option<Membership>,
    ) -> (Option<String>, Status, Option<Fault>) {
        let mut examination = Examination::new(|_| {});
        let home =
            examination.say(Step::Enrolment, judge(token.as_ref(), membership.as_ref(), UNIX_EPOCH + NOW));
        let found = examination.finish("", None, UNIX_EPOCH).findings.remove(0);
        (home.map(|home| home.relay.host().to_owned()), found.status, found.fault())
    }

    #[test]
    fn a_token_that_is_over_is_told_and_one_that_was_used_is_no_matter() {
        let (hour, over) = (NOW + Duration::from_secs(3600), NOW - Duration::from_secs(1));
        let mut used = [0; 32];
        used.copy_from_slice(digest(&SHA256, &[7; 32]).as_ref());
        let named = |host: &str| Some(host.to_owned());
        assert_eq!(judged(Some(token(hour)), None), (named("new.example"), Status::Ok, None));
        assert_eq!(judged(Some(token(hour)), Some(membership([0; 32]))).0, named("new.example"));
        assert_eq!(
            judged(Some(token(over)), Some(membership(used))),
            (named("old.example"), Status::Ok, None)
        );
        assert_eq!(judged(None, Some(membership(used))), (named("old.example"), Status::Ok, None));
        assert_eq!(
            judged(Some(token(over)), Some(membership([0; 32]))),
            (named("old.example"), Status::Warning, Some(Fault::EnrolTokenExpired))
        );
        assert_eq!(judged(Some(token(over)), None), (None, Status::Failed, Some(Fault::EnrolTokenExpired)));
        assert_eq!(judged(None, None), (None, Status::Failed, Some(Fault::ConfigInvalid)));
    }
}
