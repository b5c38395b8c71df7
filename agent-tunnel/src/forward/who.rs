//! The phase "who is calling, and as whom": what is told to kube-apiserver, and with whose rights the request goes on.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue};
use tokio::time::timeout;
use towline_identity::{Accepted, Claimed, Identity, VerifyError};
use towline_tunnel::fault::{Fault, Report};
use tracing::{info, warn};

use super::{Caller, Forwarder, service_account};
use crate::{
    as_user::Wanted,
    audit::Named,
    authority::{self, Authority, Hold, Life, RoleHold},
    dial::Account,
    headers,
    impersonate::{AuditId, act_as, impersonate, name_request},
    roles::{Granted, warning},
    standing,
};

/// The issuer is asked for its keys no longer than this.
const VERIFY_WITHIN: Duration = Duration::from_secs(7);

/// How kube-apiserver learns who is calling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The agent impersonates the verified user. Works with every kube-apiserver.
    #[default]
    Impersonate,
    /// The verified token itself goes on, to a kube-apiserver that trusts its issuer. Needs no right to impersonate.
    PassThrough,
}

/// What callers may do beyond being themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// How kube-apiserver learns who is calling.
    pub mode: Mode,
    /// `--as-group=system:masters` may be asked for.
    pub system_masters: bool,
    /// Tokens of the cluster's own service accounts are passed on.
    pub service_accounts: bool,
    /// A token is worth nothing so long after it was issued, whatever it says itself.
    pub max_token_age: Option<Duration>,
}

/// A request that goes on.
pub(super) struct Admitted {
    /// With whose rights.
    pub(super) account: Account,
    /// How long it may go on.
    pub(super) hold: Hold,
    /// Of a token that only kube-apiserver can judge: whose, where it does not refuse it.
    pub(super) unjudged: Option<String>,
    /// What is said beside a denial of kube-apiserver's, where roles are on.
    pub(super) warning: Option<HeaderValue>,
}

/// Whose token a request carries.
enum Who {
    /// A person's, whom the stream was opened for.
    User(Accepted),
    /// One of the cluster's own, for kube-apiserver to judge.
    ServiceAccount(Claimed),
}

impl Forwarder {
    /// Sets in `out` who the request is for, and in `named` for the audit; returns whose rights it goes with, and how long it may go on.
    ///
    /// # Errors
    /// If the caller is not who the stream was opened for, or may not act as whom they ask for: no request then.
    pub(super) async fn admit(
        &self,
        headers: &HeaderMap,
        caller: &Caller,
        out: &mut HeaderMap,
        audit_id: AuditId,
        named: &mut Named,
    ) -> Result<Admitted, Report> {
        let token = headers::bearer(headers)?;
        let who = self.identify(token, caller, audit_id).await?;
        match &who {
            Who::User(Accepted { identity, notes }) => {
                named.user = Some(identity.username.clone());
                named.groups.clone_from(&identity.groups);
                named.notes = notes.iter().map(ToString::to_string).collect();
            }
            // Claimed: kube-apiserver judges it.
            Who::ServiceAccount(claimed) => named.user = Some(claimed.subject.clone()),
        }
        let (authority, unjudged) = self.authority(&who, token, caller).await?;
        headers::refuse_nominated(headers)?;
        let (mut role, mut warned) = (None, None);
        let account = match (who, self.access.mode) {
            // kube-apiserver knows the token's owner, and judges their Impersonate-* itself.
            (Who::ServiceAccount(_), _) | (Who::User(_), Mode::PassThrough) => {
                headers::add_impersonation(out, headers);
                name_request(out, audit_id)?;
                of_caller(token)?
            }
            (Who::User(Accepted { identity, .. }), Mode::Impersonate) => {
                role = self.role(&identity, caller);
                named.role = role.as_ref().map(Granted::told);
                match Wanted::read(headers, self.access.system_masters)? {
                    None => {
                        let group = role.as_ref().map(|role| role.group.as_str());
                        impersonate(out, &identity, group, audit_id)?;
                        warned = warning(self.roles.as_deref(), &identity, role.as_ref());
                    }
                    Some(wanted) => {
                        named.acts_as = Some(wanted.user.clone());
                        let whole = with_role(&identity, role.as_ref());
                        self.reviews.judge(&self.apiserver, &whole, &wanted).await?;
                        act_as(out, &identity, &wanted, audit_id)?;
                        let channel = caller.channel.map(tracing::field::display);
                        let (user, groups) = (&wanted.user, &wanted.groups);
                        info!(
                            channel, stream = %caller.stream, %audit_id, asked_by = identity.username, user, ?groups,
                            "a caller acts as somebody else"
                        );
                    }
                }
                Account::Impersonator
            }
        };
        let role = role
            .zip(caller.offered.as_ref())
            .map(|(role, offered)| RoleHold { until: role.given.until, gone: offered.gone() });
        Ok(Admitted { account, hold: Hold::new(authority, role), unjudged, warning: warned })
    }

    /// The role of a verified user by what came with their stream.
    fn role(&self, identity: &Identity, caller: &Caller) -> Option<Granted> {
        let offered = caller.offered.as_ref()?;
        self.roles.as_ref()?.role_of(offered, identity, self.clock.now())
    }

    /// Takes a newer token for what the caller has open; returns until when that may go on now.
    ///
    /// # Errors
    /// As for a request with this token.
    pub(super) async fn renew(
        &self,
        headers: &HeaderMap,
        caller: &Caller,
        audit_id: AuditId,
    ) -> Result<SystemTime, Report> {
        let token = headers::bearer(headers)?;
        match self.identify(token, caller, audit_id).await? {
            who @ Who::User(_) => Ok(self.authority(&who, token, caller).await?.0.until()),
            // Nobody has judged it here; the next request with it does.
            Who::ServiceAccount(_) => Err(Report::new(
                Fault::AccountTokenRefused,
                "what is open ends with the token that it began with",
            )),
        }
    }

    /// What the request hangs on; and whose it is, where only kube-apiserver can say that it is.
    async fn authority(
        &self,
        who: &Who,
        token: &str,
        caller: &Caller,
    ) -> Result<(Arc<Authority>, Option<String>), Report> {
        let (max_age, now) = (self.access.max_token_age, self.clock.now());
        match who {
            Who::User(Accepted { identity, .. }) => {
                let until = authority::until(Life::of(identity), max_age, now)?;
                let question = self.verifier.question(token);
                if let Some(question) = &question {
                    let held = self.authorities.find(caller.run_key, &caller.principal);
                    let is_asked = held.is_some_and(|authority| authority.asks(question));
                    standing::check(&self.verifier, question, is_asked, &self.clock).await?;
                }
                let authority = self.authorities.renew(caller.run_key, &caller.principal, until);
                if let Some(question) = question {
                    authority.keep_asking(question, &self.verifier);
                }
                Ok((authority, None))
            }
            Who::ServiceAccount(claimed) => {
                let expires_at = claimed.expires_at.ok_or(Fault::AccountTokenRefused)?;
                // kube-apiserver knows of no skew.
                let life = Life { issued_at: claimed.issued_at, expires_at, skew: Duration::ZERO };
                let until = authority::until(life, max_age, now)?;
                Ok((self.authorities.alone(until), Some(claimed.subject.clone())))
            }
        }
    }

    /// kube-apiserver has answered a request of a service account, and not refused its token: now it is this account's.
    pub(super) fn judged(&self, caller: &Caller, account: &str, authority: &Authority) -> Arc<Authority> {
        self.authorities.renew(caller.run_key, account, authority.until())
    }

    /// Who is calling: the token's user, if ticket and connection are that user's too.
    async fn identify(&self, token: &str, caller: &Caller, audit_id: AuditId) -> Result<Who, Report> {
        let now = self.clock.now();
        let verified = timeout(VERIFY_WITHIN, self.verifier.check(token, now)).await;
        let verified = verified
            .map_err(|_| Report::new(Fault::IssuerUnreachable, "the issuer does not answer in time"))?;
        let accepted = match verified {
            Ok(accepted) => accepted,
            Err(error) => {
                let Some(claimed) = of_account(token, &error) else { return Err(token_refused(error)) };
                if !self.access.service_accounts {
                    return Err(Report::new(Fault::AccountTokenRefused, "the agent takes none"));
                }
                self.cluster_issuer.check(&self.apiserver, &claimed, now).await?;
                let channel = caller.channel.map(tracing::field::display);
                let (account, opened_by) = (&claimed.subject, &caller.principal);
                info!(
                    channel, stream = %caller.stream, %audit_id, account, opened_by,
                    "a service account's token is passed on"
                );
                return Ok(Who::ServiceAccount(claimed));
            }
        };
        // A token that was taken off another cluster comes with another user's ticket (THREATS T45).
        if accepted.identity.principal.to_string() != caller.principal {
            return Err(Report::new(
                Fault::TicketMismatch,
                "the cluster token is another user's than the relay's",
            ));
        }
        Ok(Who::User(accepted))
    }
}

/// The user as the cluster's rules see them: their role's group is one of theirs.
fn with_role(identity: &Identity, role: Option<&Granted>) -> Identity {
    let mut whole = identity.clone();
    whole.groups.extend(role.map(|role| role.group.clone()));
    whole
}

/// A token of an issuer that is not configured, which says that it is a service account's.
fn of_account(token: &str, error: &VerifyError) -> Option<Claimed> {
    let claimed = matches!(error, VerifyError::Issuer).then(|| Claimed::read(token).ok()).flatten()?;
    service_account::is_of_account(&claimed).then_some(claimed)
}

/// The caller's own token as it goes on. Printed nowhere.
fn of_caller(token: &str) -> Result<Account, Report> {
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value.map_err(|_| Report::from(Fault::ClusterTokenMissing))?;
    value.set_sensitive(true);
    Ok(Account::Caller(value))
}

fn token_refused(error: VerifyError) -> Report {
    let fault = match &error {
        VerifyError::Expired => Fault::ClusterTokenExpired,
        VerifyError::Reserved(_) => Fault::IdentityForbidden,
        VerifyError::IssuerUnreachable(error) => {
            // Where the issuer is and why it can't be had is not the caller's to know.
            warn!(%error, "a token can't be judged");
            return Fault::IssuerUnreachable.into();
        }
        _ => Fault::ClusterTokenRefused,
    };
    Report::new(fault, error.to_string())
}
