//! One issuer while the program runs: its rules, its keys, and what it can ask.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    Accepted, Dial, Fetch, FetchError, HttpsFetch, IssuerConfig, Note, VerifyError,
    claims::check_groups,
    config::Rules,
    entra::{EntraRules, Entrant, Graph, Membership, PopRules},
    introspection::Introspector,
    key_set::Key,
    keys::{KeySource, Keys},
    standing::{About, Answers, EVERY, NoAnswer, Question, Standing},
    token::{Object, Unverified},
    trace::Trace,
};

/// An issuer, ready to judge.
#[derive(Debug)]
pub(crate) struct Issuer {
    config: IssuerConfig,
    /// One for each source, in their order.
    keys: Vec<(KeySource, Arc<Keys>)>,
    graph: Option<Graph>,
    introspector: Option<Introspector>,
    answers: Answers,
}

/// A verdict, and until when it may be repeated without looking again.
pub(crate) type Judged = (Accepted, SystemTime);

impl Issuer {
    /// Asks by `fetch`; keys of `before` that are from the same places are kept.
    pub(crate) fn new(config: IssuerConfig, fetch: &Arc<dyn Fetch>, before: &[Arc<Issuer>]) -> Self {
        let kept = |source: &KeySource| {
            let same = before.iter().filter(|issuer| issuer.config.roots == config.roots);
            let mut keys = same.flat_map(|issuer| &issuer.keys);
            keys.find(|(known, _)| known == source).map(|(_, keys)| Arc::clone(keys))
        };
        let keys = config.sources().into_iter().map(|source| {
            let keys =
                kept(&source).unwrap_or_else(|| Arc::new(Keys::new(source.clone(), Arc::clone(fetch))));
            (source, keys)
        });
        let keys = keys.collect();
        let graph = match &config.rules {
            Rules::Entra(rules) => rules
                .graph
                .clone()
                .map(|credential| Graph::new(rules.cloud.clone(), credential, Arc::clone(fetch))),
            Rules::Oidc { .. } => None,
        };
        let introspector = match &config.rules {
            Rules::Oidc { rules, discovery_url } => config.introspection.clone().map(|settings| {
                let source = KeySource::discovery(&rules.issuer, discovery_url.as_deref());
                Introspector::new(settings, source, Arc::clone(fetch))
            }),
            Rules::Entra(_) => None,
        };
        let every = config.introspection.as_ref().map_or(EVERY, |settings| settings.every);
        Self { config, keys, graph, introspector, answers: Answers::new(every) }
    }

    /// How this issuer is asked: by https, trusted by nobody but its own authorities.
    pub(crate) fn fetch(config: &IssuerConfig, dial: &Arc<dyn Dial>) -> Result<Arc<dyn Fetch>, FetchError> {
        let fetch = HttpsFetch::new(&config.roots, Arc::clone(dial))?;
        let plain = match &config.rules {
            Rules::Entra(rules) => rules.graph.as_ref().and_then(Graph::plain_authority),
            Rules::Oidc { .. } => None,
        };
        Ok(Arc::new(match plain {
            Some(authority) => fetch.with_plain(authority),
            None => fetch,
        }))
    }

    /// The number of the source that an `iss` is of, if it is one of this issuer's.
    pub(crate) fn source(&self, iss: &str) -> Option<usize> {
        self.keys.iter().position(|(source, _)| source.issuer == iss)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<Keys>> {
        self.keys.iter().map(|(_, keys)| keys)
    }

    /// What is to be asked about a token that was verified, while something hangs on it; nothing where nobody is asked.
    pub(crate) fn question(&self, token: &str, claims: &Object) -> Option<Question> {
        let text = |name: &str| claims.text(name).map(str::to_owned);
        match &self.config.rules {
            Rules::Oidc { rules, .. } if self.introspector.is_some() => {
                Some(Question::token(&rules.issuer, token, claims.text("sub")?))
            }
            Rules::Entra(rules) if rules.check_accounts && self.graph.is_some() => {
                let is_app = EntraRules::is_app(claims);
                let about = About::Account { tenant: text("tid")?, object: text("oid")?, is_app };
                Some(Question { issuer: text("iss")?, about })
            }
            _ => None,
        }
    }

    /// Whether nobody is ever asked.
    pub(crate) fn asks_nobody(&self) -> bool {
        self.introspector.is_none()
            && !matches!(&self.config.rules, Rules::Entra(rules) if rules.check_accounts)
    }

    /// What is known without asking.
    pub(crate) fn known(&self, question: &Question) -> Option<Standing> {
        self.answers.find(question).map(|(standing, _)| standing)
    }

    /// What the provider says, and after which time to ask again.
    pub(crate) async fn standing(&self, question: &Question, now: SystemTime) -> (Standing, Duration) {
        let ask = async |deadline| match (&question.about, &self.introspector, &self.graph) {
            (About::Token { token, .. }, Some(introspector), _) => introspector.ask(token).await,
            (About::Account { tenant, object, is_app }, _, Some(graph)) => {
                graph.account(tenant, object, *is_app, now, deadline).await
            }
            // The configuration has changed since.
            _ => Err(NoAnswer::from("nobody is asked any more")),
        };
        self.answers.have(question, ask).await
    }

    /// Whether and how proofs of possession are taken.
    pub(crate) fn pop(&self) -> Option<&PopRules> {
        match &self.config.rules {
            Rules::Entra(rules) => rules.pop.as_ref(),
            Rules::Oidc { .. } => None,
        }
    }

    /// Judges a token whose `iss` is of this source. `proven` says that the key in its `cnf` was shown.
    pub(crate) async fn judge(
        &self,
        token: &Unverified<'_>,
        source: usize,
        now: SystemTime,
        proven: bool,
        trace: &mut Trace,
    ) -> Result<Judged, VerifyError> {
        if !self.config.algorithms.contains(&token.algorithm) {
            return Err(VerifyError::Algorithm);
        }
        let key = self.signed_by(token, source).await?;
        trace.held("signature", || {
            format!(
                "by the issuer's key {:?}, {}",
                token.key_id.as_deref().unwrap_or("without an id"),
                token.algorithm
            )
        });
        match &self.config.rules {
            Rules::Oidc { rules, .. } => {
                let accepted = rules.identity(&token.claims, now, trace)?;
                let until = accepted.identity.expires_at;
                Ok((accepted, until))
            }
            Rules::Entra(rules) => {
                let origin = rules.origin(source).ok_or(VerifyError::Issuer)?;
                rules.check_key(key.issuer.as_deref(), &origin)?;
                let entrant = rules.entrant(&token.claims, &origin, now, proven, trace)?;
                self.with_groups(rules, entrant, now, trace).await
            }
        }
    }

    /// The key by which the signature holds.
    async fn signed_by(&self, token: &Unverified<'_>, source: usize) -> Result<Arc<Key>, VerifyError> {
        let (_, keys) = self.keys.get(source).ok_or(VerifyError::Issuer)?;
        let key =
            keys.find(token.key_id.as_deref(), token.algorithm).await?.ok_or(VerifyError::UnknownKey)?;
        let ready = key.for_algorithm(token.algorithm).ok_or(VerifyError::Algorithm)?;
        ready.verify_sig(token.signed.as_bytes(), &token.signature).map_err(|_| VerifyError::Signature)?;
        Ok(key)
    }

    async fn with_groups(
        &self,
        rules: &EntraRules,
        entrant: Entrant,
        now: SystemTime,
        trace: &mut Trace,
    ) -> Result<Judged, VerifyError> {
        let Entrant { mut identity, tenant, object, is_app, membership } = entrant;
        let mut until = identity.expires_at;
        let mut notes = Vec::new();
        let mut believed = |fresh: Duration| until = until.min(now + fresh.min(Duration::from_secs(300)));
        let ids = match (membership, &self.graph) {
            (Membership::Told(ids), _) => Ok(ids),
            (Membership::Overage, None) => {
                Err("the token has too many, and no credential for Graph is configured".to_owned())
            }
            (Membership::Overage, Some(graph)) => {
                let (ids, fresh) = graph.groups(&tenant, &object, is_app, now).await;
                believed(fresh);
                ids.map_err(|why| format!("Graph: {why}"))
            }
        };
        let groups = match (ids, &self.graph) {
            (Ok(ids), Some(graph)) if rules.group_names && !ids.is_empty() => {
                let prefix = rules.groups_prefix.as_deref().unwrap_or_default();
                let (named, fresh) = graph.names((&tenant, &object), &ids, prefix, now).await;
                believed(fresh);
                named.map_err(|why| format!("Graph: {why}")).map(|named| {
                    notes.extend(named.left_out.map(Note::FewerGroups));
                    named.groups
                })
            }
            (ids, _) => ids.map(|ids| rules.prefixed(ids)),
        };
        match groups {
            Ok(groups) => {
                groups.iter().try_for_each(|group| check_groups(std::slice::from_ref(group)))?;
                identity.groups = groups;
            }
            Err(why) => notes.push(Note::NoGroups(why)),
        }
        for note in &notes {
            tracing::warn!(principal = %identity.principal, %note, "a user goes on with fewer rights");
        }
        trace.held("groups", || {
            let told = notes.iter().map(ToString::to_string);
            told.chain(identity.groups.iter().cloned()).collect::<Vec<_>>().join(" ")
        });
        Ok((Accepted { identity, notes }, until))
    }
}
