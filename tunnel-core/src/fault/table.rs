//! The table of faults. To add one, add a row; codes are never reused or renumbered.

use super::{Hop, Outcome, Who};

/// Declares [`Fault`] and its accessors from rows
/// `Name = "TL-AAA-000", hop, outcome, who, title, cause, remedy`.
macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $hop:ident, $outcome:ident, $who:ident,
        $title:literal, $cause:literal, $remedy:literal;)*) => {
        /// A kind of fault that a person can meet. See [`super::Report`] for an occurrence.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Fault { $(#[doc = $title] $name,)* }

        impl Fault {
            /// Every fault, in the order of the table.
            pub const ALL: &[Fault] = &[$(Fault::$name,)*];

            /// The stable code, `TL-<layer>-<number>`.
            pub fn code(self) -> &'static str { match self { $(Fault::$name => $code,)* } }
            /// The hop at which it shows itself.
            pub fn hop(self) -> Hop { match self { $(Fault::$name => Hop::$hop,)* } }
            /// Exit code and HTTP status.
            pub fn outcome(self) -> Outcome { match self { $(Fault::$name => Outcome::$outcome,)* } }
            /// Who can apply the remedy.
            pub fn who(self) -> Who { match self { $(Fault::$name => Who::$who,)* } }
            /// What failed, as a lower-case phrase.
            pub fn title(self) -> &'static str { match self { $(Fault::$name => $title,)* } }
            /// Why it happens.
            pub fn cause(self) -> &'static str { match self { $(Fault::$name => $cause,)* } }
            /// What to do.
            pub fn remedy(self) -> &'static str { match self { $(Fault::$name => $remedy,)* } }
        }
    };
}

faults! {
    // CFG: flags, files and values of the program that was started.
    ConfigInvalid = "TL-CFG-001", Here, Usage, You,
        "a setting is wrong", "A flag, a file or a value can't be used as it stands.",
        "correct the named setting; `--help` describes it";
    FileUnreadable = "TL-CFG-002", Here, Usage, You,
        "a file can't be read", "The file is missing, has other permissions, or isn't what it should be.",
        "check the named file's path, owner and content";
    FileUnwritable = "TL-CFG-003", Here, Usage, You,
        "a file can't be written", "The folder is read-only, full, or belongs to someone else.",
        "make the named place writable for this user, or name another one";
    PortBusy = "TL-CFG-004", Here, Usage, You,
        "the port is in use", "Another program (perhaps another towline) listens on this address.",
        "stop the other program, or choose another port (`--port 0` of towline, or port 0 in `--listen` or `--metrics-listen`, takes a free one)";
    TokenFileUnusable = "TL-CFG-005", Here, Unauthenticated, You,
        "the token file can't be used", "The file is missing, empty, or holds something that is not one token.",
        "write a fresh token to the named file; it is read again when it changes";
    ClusterUnconfirmed = "TL-CFG-006", Client, Untrusted, You,
        "nobody has confirmed which cluster the name means", "The relay says which id a name has; only you can know whether that is right, and there is no terminal to ask you on.",
        "name the cluster by its id, which is its pin (`--cluster NAME=ID`; `towline-agent id` prints it in the cluster), or run this once on a terminal";
    DataDirInUse = "TL-CFG-007", Here, Usage, You,
        "another relay serves from the data directory", "Two relays with the same keys and the same registry would answer for each other.",
        "stop the other one, or give this one a --data-dir of its own";
    EnrolTokenUnusable = "TL-CFG-008", Here, Usage, You,
        "the file does not hold an enrolment token", "What it holds was damaged on the way, or is something else.",
        "write what `towline-relay enroll NAME` printed, all of it, to the file of --enrolment-token-file";

    // KUB: kubeconfig and the local endpoint.
    KubeconfigUnreadable = "TL-KUB-001", Client, Usage, You,
        "the kubeconfig can't be read", "The file is missing, not YAML, or not a kubeconfig.",
        "repair the named file, or point KUBECONFIG or --kubeconfig elsewhere; it was left untouched";
    KubeconfigUnwritable = "TL-KUB-002", Client, Usage, You,
        "the kubeconfig can't be written", "The folder is read-only or another program holds the lock.",
        "make it writable, remove a stale .lock file, or print the kubeconfig with `-f -`";
    ContextTaken = "TL-KUB-003", Client, Usage, You,
        "the context name is taken", "The kubeconfig has a context of this name that towline did not make.",
        "choose another name with --context-name, or remove the old context";
    ProxyAlreadyRuns = "TL-KUB-004", Client, Usage, You,
        "another towline proxy already serves this cluster", "A second one would fight over the same context.",
        "use the running one, or stop it first";
    LocalCallerUnknown = "TL-KUB-005", Client, Unauthenticated, You,
        "the caller has no client certificate of this endpoint", "Only the context that towline wrote may use the local endpoint.",
        "use the kubeconfig context that towline made";
    LocalOriginRefused = "TL-KUB-006", Client, Forbidden, You,
        "the request came from a web page or for another host", "Host must be the loopback address and Origin must be absent.",
        "use kubectl or another Kubernetes client, not a browser";

    // NET: between a dialler and the relay.
    RelayUnreachable = "TL-NET-001", Network, Unreachable, You,
        "the relay can't be reached", "Name resolution or the TCP connection failed.",
        "check the relay's address and that outbound port 443 is allowed";
    NameUnresolved = "TL-NET-002", Network, Unreachable, You,
        "the relay's name does not resolve", "DNS has no address for this name.",
        "check the spelling of the relay's address and this machine's DNS";
    ConnectionRefused = "TL-NET-003", Network, Unreachable, RelayAdmin,
        "the relay refused the connection", "The host answers, and nothing listens on this port.",
        "start the relay, or correct the port";
    ConnectTimeout = "TL-NET-004", Network, Unreachable, NetworkTeam,
        "the relay does not answer", "Packets to this address and port seem to be dropped.",
        "allow outbound connections to the relay's address and port";
    UpgradeRefused = "TL-NET-005", Network, Unreachable, NetworkTeam,
        "the websocket upgrade was refused", "What answered is not a towline relay, or a proxy on the way strips `Upgrade`.",
        "check the relay's address; let the proxy pass websockets to it";
    CarrierLost = "TL-NET-006", Network, Cut, NetworkTeam,
        "the connection to the relay was lost", "The relay ended, or the network cut the connection.",
        "try again; towline reconnects by itself";

    CarrierSilentUp = "TL-NET-030", Network, Unreachable, NetworkTeam,
        "nothing arrives of what is sent to the relay", "A proxy on the way accepted the connection and keeps back what goes to the relay.",
        "let the proxy pass the relay's name through untouched, without inspecting or buffering it";
    CarrierSilentDown = "TL-NET-031", Network, Unreachable, NetworkTeam,
        "nothing arrives of what the relay sends", "A proxy on the way accepted the connection and keeps back what comes from the relay.",
        "let the proxy pass the relay's name through untouched, without inspecting or buffering it";
    CarrierLargeUp = "TL-NET-032", Network, Unreachable, NetworkTeam,
        "large messages to the relay do not arrive", "Small messages do: a proxy on the way keeps back longer ones, or a link loses full packets (MTU).",
        "let the proxy pass messages of any length; check the path's MTU";
    CarrierLargeDown = "TL-NET-033", Network, Unreachable, NetworkTeam,
        "large messages of the relay do not arrive", "Small messages do: a proxy on the way keeps back longer ones, or a link loses full packets (MTU).",
        "let the proxy pass messages of any length; check the path's MTU";
    RequestUnanswered = "TL-NET-034", Network, Unreachable, NetworkTeam,
        "the request for a carrier is not answered", "TLS works, and HTTP on it is not answered: a proxy on the way waits for the end of a request that has none.",
        "let the proxy pass requests on as they come, without buffering them";
    CarrierDamaged = "TL-NET-035", Network, Unreachable, NetworkTeam,
        "bytes are changed on the way to the relay", "What arrives is not what was sent: a proxy on the way rewrites it.",
        "let the proxy pass the relay's name through untouched";
    HttpCarrierRefused = "TL-NET-036", Network, Unreachable, NetworkTeam,
        "the relay's carrier over HTTP was refused", "What answered is not a towline relay, or a proxy on the way does not let such requests through.",
        "check the relay's address; let the proxy pass the relay's name through untouched";

    // TLS: who is at the other end.
    CertificateUntrusted = "TL-TLS-001", Network, Untrusted, You,
        "the relay's certificate is not trusted", "It is signed by an authority that this machine does not know; a proxy may be inspecting TLS.",
        "give the right authority with --relay-ca-file";
    CertificateExpired = "TL-TLS-002", Network, Untrusted, RelayAdmin,
        "the relay's certificate is expired or not yet valid", "The certificate's time is over, or this machine's clock is wrong.",
        "renew the relay's certificate, and check this machine's clock";
    CertificateNameWrong = "TL-TLS-003", Network, Untrusted, You,
        "the relay's certificate is for another name", "The address does not stand in the certificate.",
        "dial a name that the relay's certificate is for, or have one made for this name (`towline-relay serve --tls-self-signed NAME`)";
    TlsFailed = "TL-TLS-004", Network, Untrusted, You,
        "the TLS handshake with the relay failed", "What answers does not speak TLS, or ended the handshake.",
        "check that the address is a towline relay's TLS port";
    RelayKeyMismatch = "TL-TLS-005", Network, Untrusted, RelayAdmin,
        "the relay's identity key is not the pinned one", "This is another relay, or someone in between; nothing was sent to it.",
        "compare the relay's key hash (`towline-relay key`) with the one in the profile or enrolment token";
    ClusterKeyMismatch = "TL-TLS-006", Agent, Untrusted, ClusterAdmin,
        "the agent's key is not the cluster's", "What answered for this cluster id does not hold its key; nothing was sent to it.",
        "compare the cluster id with the one that `towline-agent id` prints in the cluster";
    InnerTlsFailed = "TL-TLS-007", Agent, Untrusted, ClusterAdmin,
        "the end-to-end TLS session with the agent failed", "The handshake between proxy and agent did not complete.",
        "look at the agent's log for this stream";

    // REL: the relay's answers.
    RelayTokenRefused = "TL-REL-001", Relay, Unauthenticated, You,
        "the relay did not accept the token", "The token is expired, from another issuer, or for another audience.",
        "get a fresh token for the relay's audience";
    RelayTokenExpired = "TL-REL-002", Relay, Unauthenticated, You,
        "the relay token is expired", "Its time is over.",
        "run `towline login`, or write a fresh token to the relay token file; it is read again when it changes";
    ClusterForbidden = "TL-REL-003", Relay, Forbidden, RelayAdmin,
        "you may not open this cluster", "No role assignment lets you in.",
        "on the relay, run the command that is named here (towline-relay role assign --user USER --role cluster-user --cluster NAME), or the same with --group";
    ClusterUnknown = "TL-REL-004", Relay, NotFound, You,
        "the cluster is not known", "No cluster of this name or id is enrolled at this relay.",
        "check the name or id; `towline-relay clusters` lists them on the relay";
    AgentOffline = "TL-REL-005", Relay, Unavailable, ClusterAdmin,
        "the cluster's agent is not connected", "No agent of this cluster holds a session with the relay.",
        "check that the agent runs and can reach the relay";
    RelayLimit = "TL-REL-006", Relay, TooMany, RelayAdmin,
        "a limit of the relay was reached", "Too many sessions, streams or buffered bytes at once.",
        "try again later; raise the limit that the relay's log names";
    RelayDraining = "TL-REL-007", Relay, Unavailable, You,
        "the relay is shutting down", "It takes no new streams; another one takes over.",
        "try again in a moment";
    EnrolTokenRefused = "TL-REL-008", Relay, Unauthenticated, RelayAdmin,
        "the enrolment token was not accepted", "It was used before, is expired, or belongs to another relay.",
        "on the relay, make a new one: towline-relay enroll NAME; with --replace where another cluster has this name, or this cluster has another one";
    AgentCertificateRefused = "TL-REL-009", Relay, Unauthenticated, ClusterAdmin,
        "the agent's certificate was not accepted", "It is expired, revoked, or of another relay or cluster.",
        "enrol the agent again with a new enrolment token";
    RelayDatabase = "TL-REL-010", Relay, Unavailable, RelayAdmin,
        "the relay's registry can't be used", "The database file is missing, locked, full or damaged.",
        "look at the relay's log and at its data directory";
    RelayTimeout = "TL-REL-011", Relay, Timeout, You,
        "the relay did not answer in time", "The connection stands, and no answer came.",
        "try again; look at the relay's log";
    RelayIssuerUnreachable = "TL-REL-012", Relay, Unavailable, RelayAdmin,
        "the relay can't fetch the identity provider's keys", "It can't reach the issuer, or does not trust its certificate.",
        "look at the relay's log for the cause; check its --oidc-issuer-url, --oidc-ca-file and network";

    // AGT: the agent's answers.
    AgentCredential = "TL-AGT-001", Agent, Unavailable, ClusterAdmin,
        "the agent has no usable credential for its apiserver", "The service-account token or kubeconfig can't be read.",
        "check the agent's service account and its token projection, or the credential in its --kubeconfig";
    AgentTimeout = "TL-AGT-002", Agent, Timeout, ClusterAdmin,
        "the agent did not answer in time", "The stream was opened, and nothing came back.",
        "look at the agent's log";
    AgentDraining = "TL-AGT-003", Agent, Unavailable, You,
        "the agent is shutting down", "It takes no new streams; its successor takes over.",
        "try again in a moment";
    AgentLimit = "TL-AGT-004", Agent, TooMany, ClusterAdmin,
        "a limit of the agent was reached", "Too many streams or buffered bytes at once.",
        "try again later; raise the agent's flag that is named here, such as --max-streams-per-user";

    // IDN: who is calling, verified in the cluster.
    ClusterTokenMissing = "TL-IDN-001", Agent, Unauthenticated, You,
        "the request carries no cluster token", "Exactly one bearer token for the cluster's audience is needed.",
        "log in with `towline login`, or give a token with --cluster-token-file";
    ClusterTokenRefused = "TL-IDN-002", Agent, Unauthenticated, You,
        "the cluster did not accept the token", "It is not from the configured issuer, not for this cluster's audience, or damaged.",
        "get a fresh token for the cluster's audience";
    ClusterTokenExpired = "TL-IDN-003", Agent, Unauthenticated, You,
        "the cluster token is expired", "Its time is over, or a clock is wrong.",
        "run `towline login`, or write a fresh token to the cluster token file; it is read again when it changes";
    TicketMismatch = "TL-IDN-004", Agent, Unauthenticated, You,
        "ticket, token and key do not belong together", "The relay's ticket, the cluster token and the connection's key must name one user and this cluster.",
        "use tokens of one and the same user for relay and cluster";
    IssuerUnreachable = "TL-IDN-005", Agent, Unavailable, IdentityAdmin,
        "the identity provider's keys can't be fetched", "The agent or relay can't reach the issuer, or does not trust its certificate.",
        "check the issuer's URL, --oidc-ca-file and the network to it";
    ImpersonationUnsupported = "TL-IDN-006", Agent, Forbidden, You,
        "impersonation by the caller is not allowed here", "The request asks to be somebody whom nobody may be here, or asks in a way that can't be judged; dropping the wish would run it with greater rights than asked for.",
        "run the command without --as, --as-group and --as-uid, or ask for somebody else";
    IdentityForbidden = "TL-IDN-007", Agent, Unauthenticated, IdentityAdmin,
        "the token names an identity that is not allowed", "Names and groups that begin with system: or towline: can't come from a token.",
        "remove them from the token, or set a prefix at the agent";
    ActingDenied = "TL-IDN-020", Agent, Forbidden, ClusterAdmin,
        "you may not act as somebody else", "The cluster's own rules do not give you the verb `impersonate` on each user, group, uid and extra that the request names (kubectl --as).",
        "run the command without --as, or bind a role with the verb impersonate on what the message names to the user";
    ActingMalformed = "TL-IDN-021", Agent, BadRequest, You,
        "the wish to act as somebody else is malformed", "Impersonate-* headers name one user, and at most 32 parts with groups, uid and extra; each once and readable.",
        "give --as with --as-group, --as-uid and --as-user-extra, and fewer of them";
    ActingUnjudged = "TL-IDN-022", Agent, Unavailable, ClusterAdmin,
        "nobody can say whether you may act as somebody else", "kube-apiserver gave no SubjectAccessReview in time; without one nothing is allowed.",
        "let the agent's account create subjectaccessreviews (deploy/agent.yaml), look at the agent's log, and try again";
    RightsMissing = "TL-IDN-023", Agent, Unavailable, ClusterAdmin,
        "the agent's accounts may not do what they must", "kube-apiserver's access reviews deny a right that the agent needs; requests will be refused.",
        "apply deploy/agent.yaml; before Kubernetes 1.36 bind towline-impersonator-groups, with your groups in its resourceNames";
    RightsExcessive = "TL-IDN-024", Agent, Usage, ClusterAdmin,
        "the agent's accounts may do more than they need", "Who takes over the agent can use these rights.",
        "run it with the two accounts of deploy/agent.yaml (--impersonator), and remove further bindings from them";
    AccountTokenRefused = "TL-IDN-025", Agent, Unauthenticated, You,
        "the token of a service account is not taken here", "The agent takes such tokens only where it is told to, of this cluster's own issuer, and while they last.",
        "use a person's token, or have the agent started with --allow-service-account-tokens";

    // LGN: logging in at the identity provider.
    LoginNeeded = "TL-LGN-001", Client, Unauthenticated, You,
        "nobody is logged in", "No login of this profile is kept, or what is kept is for another issuer or client.",
        "run `towline login` (with the same --profile)";
    LoginEnded = "TL-LGN-002", Client, Unauthenticated, You,
        "the login is over", "The identity provider renews it no longer: its time is over, it was revoked, or it was used elsewhere.",
        "run `towline login` again; a proxy that runs takes it up by itself";
    LoginRefused = "TL-LGN-003", Client, Unauthenticated, You,
        "the identity provider refused the login", "It was cancelled, or the provider does not let this client, this person or these scopes.",
        "try again; if it stays, show the provider's words to whoever runs it";
    LoginTimeout = "TL-LGN-004", Client, Timeout, You,
        "nobody finished the login in time", "The browser's page or the code was not used.",
        "run `towline login` again and follow it to its end; `--no-browser` prints the address, `--device` needs no browser here";
    IdpUnreachable = "TL-LGN-005", Client, Unreachable, You,
        "the identity provider can't be reached", "Its name does not resolve, the connection failed, its certificate is not trusted, or it has trouble of its own.",
        "check the issuer in the profile, its `ca-file`, and the network; tokens that still live go on serving";
    IdpAnswerWrong = "TL-LGN-006", Client, Untrusted, IdentityAdmin,
        "the identity provider's answer is not what it must be", "It is malformed, of another issuer or for another client, or was not asked for; nothing of it was kept.",
        "compare the profile's issuer and client ids with the provider's registration";
    CredentialCommandFailed = "TL-LGN-007", Client, Unauthenticated, You,
        "the command that should print a token failed", "It can't be run, ended with an error, or printed something else.",
        "run it by hand; `az login` where it is the Azure CLI";
    LoginStoreUnusable = "TL-LGN-008", Client, Usage, You,
        "what is kept of the login can't be used", "The keyring is locked or away, or the file is damaged.",
        "unlock the keyring, or run `towline logout` and `towline login`; `keep = \"file\"` does without a keyring";
    TokensNotApart = "TL-LGN-009", Client, Unauthenticated, IdentityAdmin,
        "the two tokens are not two tokens of one person", "Relay and cluster need tokens for different audiences, and of the same subject.",
        "register two clients or audiences; --allow-shared-audience lets the relay be you on every cluster that takes the token";
    CiTokenMissing = "TL-LGN-010", Client, Unauthenticated, You,
        "the CI job gives no token", "The job was not told to issue tokens, or under another name.",
        "GitHub: `permissions: id-token: write`; GitLab: `id_tokens:` with the names of the profile's `token-env`";

    // HTP: the request as it was written.
    RequestHeadRefused = "TL-HTP-001", Client, BadRequest, You,
        "the request is malformed", "Its head breaks a rule of RFC 9112 that guards against request smuggling.",
        "use a client that speaks HTTP/1.1 or HTTP/2 correctly";
    RequestTooLarge = "TL-HTP-002", Client, BadRequest, You,
        "the request's head is too large", "Request line and headers are limited in size and number.",
        "send fewer or shorter headers";
    RequestTimeout = "TL-HTP-003", Client, Timeout, You,
        "the request was not sent in time", "The head of a request must arrive within a deadline.",
        "send the request without pausing";

    // API: kube-apiserver.
    ApiserverUnreachable = "TL-API-001", Apiserver, Unreachable, ClusterAdmin,
        "the agent can't reach its kube-apiserver", "The connection failed.",
        "check that the apiserver runs and that the agent's address for it is right";
    ApiserverUntrusted = "TL-API-002", Apiserver, Untrusted, ClusterAdmin,
        "the agent does not trust its kube-apiserver", "The certificate is not signed by the cluster's authority, or is for another name.",
        "check the agent's certificate-authority file";
    ApiserverCut = "TL-API-003", Apiserver, Cut, ClusterAdmin,
        "kube-apiserver ended the connection before its answer was whole", "It was stopped, or crashed.",
        "try again; look at the apiserver's log";

    // WIR: the wire protocol.
    ProtocolViolation = "TL-WIR-001", Network, Internal, Developers,
        "a peer broke the wire protocol", "What arrived is not what docs/protocol.md allows.",
        "check that all programs are of compatible versions";
    VersionUnsupported = "TL-WIR-002", Network, Untrusted, You,
        "the peer speaks no version that this program knows", "One of the two is too old.",
        "upgrade the older of the two";
    StreamTruncated = "TL-WIR-003", Network, Cut, You,
        "the stream ended before its end was confirmed", "The connection was cut; what arrived may be incomplete.",
        "run the command again";
    StreamReset = "TL-WIR-004", Network, Cut, You,
        "the stream was reset by the peer", "The other end gave it up.",
        "try again; the logs of both ends name the stream";
    StreamLost = "TL-WIR-005", Network, Cut, You,
        "the other end no longer knows this stream", "It was away for too long, or was restarted.",
        "run the command again";
    Internal = "TL-INT-001", Client, Internal, Developers,
        "an internal error", "This should not happen.",
        "report it with the log around it";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let mut seen = HashSet::new();
        for fault in Fault::ALL {
            let code = fault.code();
            assert!(seen.insert(code), "{code} stands twice");
            let parts: Vec<_> = code.split('-').collect();
            assert_eq!(parts.len(), 3, "{code}");
            assert_eq!(parts[0], "TL");
            assert!(parts[1].len() == 3 && parts[1].bytes().all(|b| b.is_ascii_uppercase()), "{code}");
            assert!(parts[2].len() == 3 && parts[2].bytes().all(|b| b.is_ascii_digit()), "{code}");
        }
    }

    #[test]
    fn texts_are_phrases_that_can_be_joined() {
        for fault in Fault::ALL {
            assert!(!fault.title().ends_with('.') && !fault.remedy().ends_with('.'), "{}", fault.code());
            assert!(fault.cause().ends_with('.'), "{}", fault.code());
        }
    }
}
