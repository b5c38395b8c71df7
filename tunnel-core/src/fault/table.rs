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
            /// The fault with this code.
            pub fn of_code(code: &str) -> Option<Self> { Self::ALL.iter().copied().find(|fault| fault.code() == code) }
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
    ProxySettingWrong = "TL-CFG-010", Here, Usage, You,
        "a setting of the outbound proxy is wrong", "A proxy's URL, its credentials or the skip range can't be used as they stand.",
        "correct the named flag, line of the profile or file, or variable; a proxy is http://HOST:PORT or https://HOST:PORT, and a password with @ : / # or % in it is percent-encoded, or stands in the file of --proxy-credentials-file";

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
    OwnTokenGiven = "TL-KUB-007", Client, BadRequest, You,
        "the request brings a token of its own", "The local endpoint sends who is logged in at the proxy; run as that person instead, the request would not be what was asked for.",
        "leave out --token (or --username, or the credential in the kubeconfig's user); to be a service account, start the proxy with --service-account-token-file";

    // NET: between a dialler and the relay.
    RelayUnreachable = "TL-NET-001", Network, Unreachable, You,
        "the relay can't be reached", "Name resolution or the TCP connection failed.",
        "check the relay's address and that outbound port 443 is allowed; where only a proxy leads out, name it with --proxy-https";
    NameUnresolved = "TL-NET-002", Network, Unreachable, You,
        "the relay's name does not resolve", "DNS has no address for this name.",
        "check the spelling of the relay's address and this machine's DNS; where only a proxy leads out, name it with --proxy-https";
    ConnectionRefused = "TL-NET-003", Network, Unreachable, RelayAdmin,
        "the relay refused the connection", "The host answers, and nothing listens on this port.",
        "start the relay, or correct the port";
    ConnectTimeout = "TL-NET-004", Network, Unreachable, NetworkTeam,
        "the relay does not answer", "Packets to this address and port seem to be dropped.",
        "allow outbound connections to the relay's address and port; where only a proxy leads out, name it with --proxy-https";
    UpgradeRefused = "TL-NET-005", Network, Unreachable, NetworkTeam,
        "the websocket upgrade was refused", "What answered is not a towline relay, or a proxy on the way strips `Upgrade`.",
        "check the relay's address; let the proxy pass websockets to it";
    CarrierLost = "TL-NET-006", Network, Cut, NetworkTeam,
        "the connection to the relay was lost", "The relay ended, or the network cut the connection.",
        "try again; towline reconnects by itself";
    DnsSilent = "TL-NET-010", Network, Unreachable, NetworkTeam,
        "DNS does not answer", "The name servers of this machine did not answer in time, or could not.",
        "check the name servers in /etc/resolv.conf and the way to them (port 53, UDP and TCP); where only a proxy resolves names, name it with --proxy-https";
    NameEmpty = "TL-NET-011", Network, Unreachable, You,
        "the relay's name has no address", "DNS knows the name, and has neither an A nor an AAAA record for it.",
        "check the spelling of the relay's address, and its records";
    AddressesDead = "TL-NET-012", Network, Unreachable, NetworkTeam,
        "no address of the relay answers", "Its name has several addresses, and each failed, not all in the same way.",
        "allow outbound connections to the relay's addresses and port, and have old addresses taken out of DNS; where only a proxy leads out, name it with --proxy-https";
    ProxyUnreachable = "TL-NET-013", Network, Unreachable, You,
        "the outbound proxy can't be reached", "Its name does not resolve, or the connection to it failed.",
        "check the proxy's host and port in the setting that is named here; where no proxy is needed, unset it, or put the destination into --proxy-skip-range";
    ProxyCredentialsMissing = "TL-NET-014", Network, Unreachable, You,
        "the outbound proxy wants to know who you are", "It answered 407, and no user name and password for it were given.",
        "give them in the file of --proxy-credentials-file (USER:PASSWORD), or in the proxy's URL";
    ProxyCredentialsRefused = "TL-NET-015", Network, Unreachable, You,
        "the outbound proxy refused the user name or password", "It answered 407 again although both were sent.",
        "check both; in a URL, the password's special characters are percent-encoded";
    ProxySchemeUnsupported = "TL-NET-016", Network, Unreachable, NetworkTeam,
        "the outbound proxy offers no way of logging in that towline knows", "towline knows Basic and Digest; Negotiate (Kerberos) and NTLM need a domain's machine.",
        "let the relay's host and port through without authentication or with Basic or Digest, or run a local proxy that logs in for you (such as px or cntlm) and name that one";
    ProxyForbids = "TL-NET-017", Network, Unreachable, NetworkTeam,
        "the outbound proxy forbids the connection", "Its rules do not allow CONNECT to this host and port.",
        "allow CONNECT to the host and port that are named here";
    ProxyNotHttp = "TL-NET-018", Network, Unreachable, You,
        "what was named as outbound proxy does not speak HTTP", "The host answers, and with something else: another program listens there, or the proxy wants TLS.",
        "check the proxy's port, and whether its URL begins with http:// or https://";
    ProxySilent = "TL-NET-019", Network, Unreachable, NetworkTeam,
        "the outbound proxy does not answer", "It took the connection, and did not answer CONNECT in time; perhaps it tries in vain to reach the relay itself.",
        "check that the proxy can reach the host and port that are named here, and its log";
    ProxyLoginPage = "TL-NET-020", Network, Unreachable, You,
        "the network shows a login page instead of connecting", "Something answered CONNECT with a page or a redirect: a portal waits for somebody to log in.",
        "open any page in a browser on this network and log in; then try again";
    ProxyFailed = "TL-NET-021", Network, Unreachable, NetworkTeam,
        "the outbound proxy can't reach the relay", "It answered that it found no way: it can't resolve the name, or the connection failed or timed out.",
        "check from the proxy's machine that the host and port that are named here can be reached";
    ProxySwallows = "TL-NET-022", Network, Unreachable, NetworkTeam,
        "the outbound proxy opened the way, and nothing comes back through it", "It answered 200 to CONNECT, and then carries no bytes: it waits for something, or a firewall behind it drops them.",
        "check the proxy's log and the firewall between it and the relay";
    ProxyCut = "TL-NET-023", Network, Unreachable, NetworkTeam,
        "the outbound proxy closed the connection instead of answering", "It does not take connections from here, wants TLS, or broke down.",
        "check the proxy's access rules and log, and whether its URL begins with http:// or https://";
    ProxyRefused = "TL-NET-024", Network, Unreachable, You,
        "what was named as outbound proxy opens no connections", "It speaks HTTP, and does not do CONNECT: a web server, or a proxy for plain HTTP only.",
        "check the proxy's host and port; if they are right, have CONNECT switched on";

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
    ProxyCertificateUntrusted = "TL-TLS-010", Network, Untrusted, You,
        "the outbound proxy's certificate is not trusted", "It is signed by an authority that this machine does not know, is for another name, or its time is over.",
        "give the proxy's authority with --proxy-cert, and name the proxy as its certificate does";
    ProxyTlsFailed = "TL-TLS-011", Network, Untrusted, You,
        "the TLS handshake with the outbound proxy failed", "What answers does not speak TLS, or ended the handshake.",
        "name the proxy with http:// where the connection to it is not encrypted (the relay's own still is)";

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
    SessionRevoked = "TL-REL-013", Relay, Unauthenticated, You,
        "your sessions were ended", "An operator of the relay revoked them, or you did (`towline revoke`); tokens from before that are refused.",
        "run `towline login` again; if that is refused too, ask whoever runs the relay until when";
    QuestionForbidden = "TL-REL-014", Relay, Forbidden, RelayAdmin,
        "you may not ask this of the relay", "It needs a role at the relay that no assignment gives you.",
        "on the relay, run the command that is named here (towline-relay role assign --user USER --role auditor or operator), or the same with --group";
    QuestionInvalid = "TL-REL-015", Relay, BadRequest, You,
        "the relay can't answer this question", "A value in it can't be used.",
        "correct what is named here; `--help` describes it";

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
    AgentClockWrong = "TL-AGT-005", Agent, Unauthenticated, ClusterAdmin,
        "the agent's clock is wrong", "A ticket that the relay had just signed is out of its time there: tickets bear a minute, and end after five.",
        "set the clock of the node on which the agent runs, and let it be kept by NTP";

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
    AccountEnded = "TL-IDN-026", Agent, Unauthenticated, IdentityAdmin,
        "the identity provider no longer stands by the account or token", "The agent asks the provider whether accounts are still good (--introspection-config, checkAccounts of --entra-config), and was told that this one is not.",
        "have the account enabled at the identity provider, then run `towline login`; if only a session was ended there, `towline login` is enough";

    // ROL: roles that the organisation signs.
    RoleEnded = "TL-ROL-001", Relay, Forbidden, OrganisationAdmin,
        "the role that this was opened with is over", "The role was removed or has ended, or the relay no longer vouches for it.",
        "run the command again, with the rights that you still have; `towline role explain` says which role you have and why";
    RoleDocumentRefused = "TL-ROL-002", Relay, Forbidden, OrganisationAdmin,
        "the relay did not take the role document", "It is malformed, not signed by an organisation key that the relay knows, removed before, or one too many.",
        "sign with the organisation's key (--key or --sign-command) whose public half `towline-relay role keys` lists; remove documents that are not needed";
    OrganisationKeyMissing = "TL-ROL-003", Relay, Unavailable, RelayAdmin,
        "the relay knows no organisation key", "It keeps role documents only of organisations whose public key it was told.",
        "on the relay: towline-relay role trust-key PUBLIC_KEY (as `towline role key new` prints it)";
    RoleNotSigned = "TL-ROL-004", Client, Usage, You,
        "the role document can't be signed", "The key's file or the command that signs can't be used, or its signature is not the public key's.",
        "check --key, or --sign-command with --public-key: the command gets the bytes to sign on standard input and prints the Ed25519 signature in base64";
    RoleDocumentUnknown = "TL-ROL-005", Relay, NotFound, You,
        "there is no such role document", "No document has this id, or it is not one that you may see.",
        "`towline role list` shows those that name you, `--all` those of others, too, to whoever has the role `auditor` at the relay";

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
    // DOC: what only doctor can tell apart.
    AddressDead = "TL-DOC-003", Network, Unreachable, RelayAdmin,
        "one of the relay's addresses is dead", "Its name has several addresses, and nobody answers at some of them; each dialling loses time there.",
        "remove the dead address from DNS, or start the relay there; or let the network team allow it";
    ClockWrong = "TL-DOC-004", Here, Untrusted, You,
        "this machine's clock is wrong", "The relay's clock says another time, by more than certificates, tokens and tickets bear.",
        "set the clock, and let it be kept by NTP";
    TlsIntercepted = "TL-DOC-005", Network, Untrusted, NetworkTeam,
        "TLS is intercepted on the way to the relay", "The relay itself answers with its identity key, and the TLS connection ends before it, with a certificate of somebody else's authority.",
        "exempt the relay's name from TLS inspection, or give the inspecting proxy's authority (PEM) with --relay-ca-file";
    UpgradeStripped = "TL-DOC-006", Network, Unreachable, NetworkTeam,
        "`Upgrade` is stripped on the way to the relay", "The relay was asked without the headers of a websocket upgrade (RFC 9110, section 7.8), which were sent.",
        "let the proxy on the way pass `Connection: Upgrade` and `Upgrade: websocket` to the relay's name";
    FramesLostUp = "TL-DOC-007", Network, Unreachable, NetworkTeam,
        "what is sent to the relay after the upgrade is swallowed", "The websocket stands, and the relay does not even notice bytes that make it hang up.",
        "let the proxy on the way pass websocket frames to the relay as they are, without inspecting them";
    FramesLostDown = "TL-DOC-008", Network, Unreachable, NetworkTeam,
        "what the relay sends after the upgrade is swallowed", "The relay notices what is sent to it, and nothing that it answers arrives.",
        "let the proxy on the way pass websocket frames from the relay as they are, without holding them back";
    LargeFramesLost = "TL-DOC-009", Network, Unreachable, NetworkTeam,
        "large messages are swallowed on the way", "Small messages cross in both directions, and those of more than a KiB do not: a proxy with a limit, or a path MTU that nobody tells.",
        "raise the proxy's limit for websocket messages, or let ICMP \"fragmentation needed\" through";
    ConnectionCut = "TL-DOC-010", Network, Cut, NetworkTeam,
        "connections to the relay are cut, although keep-alives go over them", "The session ended within the time for which it was left alone but for its keep-alives, and the relay did not say why.",
        "raise the longest life that the firewall or proxy on the way gives a connection, or an idle timeout of less than 5 s";
    KubeletUnreachable = "TL-DOC-011", Apiserver, Unavailable, ClusterAdmin,
        "kube-apiserver can't reach a kubelet", "It answers, and a request that it must pass to a node does not: logs, exec and port-forward fail too.",
        "look at the node, and at the way from kube-apiserver to port 10250 of it";
    EnrolTokenExpired = "TL-DOC-012", Here, Unauthenticated, RelayAdmin,
        "the enrolment token's time is over", "It says itself until when it is good.",
        "on the relay, make a new one (towline-relay enroll NAME), and write it to the file of --enrolment-token-file";
    CheckLate = "TL-DOC-013", Here, Timeout, Developers,
        "a check did not finish in time", "Each check has a deadline of its own; this one's was reached without a better explanation.",
        "run it again with `--log debug`, and report it with the bundle";
    CertificateEnds = "TL-DOC-014", Network, Untrusted, RelayAdmin,
        "the relay's certificate ends soon", "Nothing has renewed it yet.",
        "renew the relay's certificate";
    ProxyNeeded = "TL-DOC-015", Network, Unreachable, You,
        "a proxy is needed, and towline was given none", "The straight way to the relay fails, and a proxy that other programs here are given, or that this network offers, answers CONNECT.",
        "give towline the proxy that is named here: --proxy-https, proxy-https in the profile, or HTTPS_PROXY (at an agent also TOWLINE_AGENT_PROXY_HTTPS, in the chart proxy.https), and --proxy-credentials-file where it wants a login";
    IdleCut = "TL-DOC-016", Network, Cut, NetworkTeam,
        "idle connections are cut on the way to the relay", "A session on which nothing was said was cut; one with keep-alives beside it was not.",
        "nothing, as long as keep-alives go through: they are sent every 5 s. To spare them, raise the idle timeout at the firewall or proxy on the way";

    // INT: bugs.
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
