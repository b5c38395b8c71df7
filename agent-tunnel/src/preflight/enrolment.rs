//! Whether the agent will be let in, as far as can be known without asking the relay.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use towline_tunnel::{
    carrier::dial::RelayAddress,
    doctor::{Verdict, at},
    enrolment::EnrolmentToken,
    fault::{Fault, Report},
    ids::KeyHash,
};

use super::place::Kept;
use crate::{
    state::{Membership, Rank},
    uplink::not_enrolled,
};

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

/// The relay that is meant where the only thing that names it is a token whose time is over: whether it is, is a question of the clock,
/// which is known only once the relay was asked.
pub(super) fn home_of_what_is_over(
    token: Option<&EnrolmentToken>,
    kept: &Kept,
    now: SystemTime,
) -> Option<Home> {
    let over = token.filter(|token| token.expires <= now && kept.membership.is_none());
    over.map(Home::of_token)
}

/// Judges token and membership, as the agent will use them: a token that was not used yet comes first.
pub(super) fn judge(
    rank: Rank,
    token: Option<&EnrolmentToken>,
    kept: &Kept,
    now: SystemTime,
) -> Verdict<Home> {
    let membership = kept.membership.as_ref();
    let is_new = |token: &&EnrolmentToken| {
        let used = digest(&SHA256, token.secret.reveal());
        membership.is_none_or(|membership| membership.used_secret != used.as_ref())
    };
    match (token.filter(is_new), membership) {
        (None, None) => Verdict::failed(
            not_enrolled(rank),
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
        (Some(token), membership) => {
            match kept.refused.as_ref().filter(|refused| refused.is_of(token.secret.reveal())) {
                Some(refused) => {
                    let then = UNIX_EPOCH.checked_add(Duration::from_secs(refused.at)).unwrap_or(UNIX_EPOCH);
                    let report = Report::new(Fault::EnrolTokenRefused, &*refused.said);
                    let why = format!("the relay said so to an agent here, {}", at(then));
                    match membership {
                        Some(joined) => Verdict::warning(Home::of_membership(joined), report, why),
                        None => Verdict::failed(report, why),
                    }
                }
                None => {
                    let seen = format!("a token of {}, good until {}", token.relay, at(token.expires));
                    Verdict::ok(Home::of_token(token), seen)
                }
            }
        }
    }
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
    use crate::state::RefusedToken;

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
        judged_after(None, token, membership)
    }

    fn judged_after(
        refused: Option<RefusedToken>,
        token: Option<EnrolmentToken>,
        membership: Option<Membership>,
    ) -> (Option<String>, Status, Option<Fault>) {
        let mut examination = Examination::new(|_| {});
        let kept = Kept { membership, refused };
        let home =
            examination.say(Step::Enrolment, judge(Rank::First, token.as_ref(), &kept, UNIX_EPOCH + NOW));
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

    #[test]
    fn a_token_that_the_relay_refused_is_told_and_another_one_is_not_held_against_it() {
        let hour = NOW + Duration::from_secs(3600);
        let refused = |secret: &[u8]| {
            let refused = RefusedToken::new(secret, "the enrolment token was used before", UNIX_EPOCH + NOW);
            RefusedToken::from_json(refused.to_json().as_bytes())
        };
        let named = |host: &str| Some(host.to_owned());
        let told = |status| (status, Some(Fault::EnrolTokenRefused));
        let (home, status, fault) = judged_after(refused(&[7; 32]), Some(token(hour)), None);
        assert_eq!((home, (status, fault)), (None, told(Status::Failed)));
        let (home, status, fault) =
            judged_after(refused(&[7; 32]), Some(token(hour)), Some(membership([0; 32])));
        assert_eq!((home, (status, fault)), (named("old.example"), told(Status::Warning)));
        let other = judged_after(refused(&[8; 32]), Some(token(hour)), None);
        assert_eq!(other, (named("new.example"), Status::Ok, None));
        assert_eq!(RefusedToken::from_json(b"{}"), None, "a damaged note says nothing");
        assert!(!refused(&[7; 32]).unwrap().to_json().contains("BwcH"), "the secret stands nowhere");
    }
}
