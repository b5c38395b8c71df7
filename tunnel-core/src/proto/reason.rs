//! Why a stream or a connection ended: the codes that travel in RESET, GOAWAY and REFUSED.

use crate::fault::Fault;

/// Longest text that may accompany a reason, in bytes of UTF-8.
pub const MAX_DETAIL: usize = 256;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal => $fault:ident, $text:literal;)*) => {
        /// Why a stream or a connection ended. Peers see this, never internals.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseReason {
            $($(#[$doc])* $name,)*
            /// A code of a newer peer; treated as a reset for no known reason.
            Other(u16),
        }

        impl CloseReason {
            /// Every reason that this version knows.
            pub const ALL: &[CloseReason] = &[$(CloseReason::$name,)*];

            /// The code on the wire.
            pub fn code(self) -> u16 {
                match self { $(Self::$name => $code,)* Self::Other(code) => code }
            }

            /// The reason with this code.
            pub fn from_code(code: u16) -> Self {
                match code { $($code => Self::$name,)* other => Self::Other(other) }
            }

            /// What a person is told when this reason ends what they were doing.
            pub fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* Self::Other(_) => Fault::StreamReset }
            }

            /// A few words for logs.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* Self::Other(_) => "a reason this version does not know" }
            }
        }
    };
}

reasons! {
    /// The opener no longer wants the stream.
    Cancelled = 1 => StreamReset, "cancelled";
    /// An end met an error of its own.
    InternalError = 2 => Internal, "internal error";
    /// A frame can't be decoded, or stands where it must not.
    FrameMalformed = 3 => ProtocolViolation, "malformed frame";
    /// A frame of a type that must be understood, and isn't.
    FrameUnknown = 4 => ProtocolViolation, "unknown frame type";
    /// A stream id that was never opened, or of the wrong parity, or not rising.
    StreamIdInvalid = 5 => ProtocolViolation, "invalid stream id";
    /// DATA past the limit that was advertised.
    CreditExceeded = 6 => ProtocolViolation, "data past the credit";
    /// DATA after FIN.
    DataAfterFin = 7 => ProtocolViolation, "data after the end";
    /// No common version.
    VersionUnsupported = 8 => VersionUnsupported, "unsupported version";
    /// A limit of this peer is reached: streams, sessions or buffered bytes.
    LimitReached = 9 => RelayLimit, "limit reached";
    /// The cluster is not enrolled at this relay.
    ClusterUnknown = 10 => ClusterUnknown, "cluster unknown";
    /// The cluster is enrolled, and no agent is connected.
    AgentOffline = 11 => AgentOffline, "agent offline";
    /// The caller may not open this cluster.
    Forbidden = 12 => ClusterForbidden, "forbidden";
    /// The credential was not accepted.
    Unauthenticated = 13 => RelayTokenRefused, "unauthenticated";
    /// The credential's time is over.
    TokenExpired = 14 => RelayTokenExpired, "token expired";
    /// The enrolment token was not accepted.
    EnrolmentRefused = 15 => EnrolTokenRefused, "enrolment refused";
    /// The agent's certificate was not accepted.
    CertificateRefused = 16 => AgentCertificateRefused, "certificate refused";
    /// The stream's ticket is missing, expired, or for someone else.
    TicketInvalid = 17 => TicketMismatch, "invalid ticket";
    /// This end is shutting down and takes nothing new.
    Draining = 18 => RelayDraining, "draining";
    /// A deadline passed.
    Timeout = 19 => RelayTimeout, "timeout";
    /// The inner TLS handshake failed, or its session ended without close_notify.
    InnerTlsFailed = 20 => InnerTlsFailed, "inner TLS failed";
    /// The connection that carried the other half of the stream is gone.
    Detached = 21 => CarrierLost, "the other leg was lost";
    /// The stream named by RESUME is not known.
    Lost = 22 => StreamLost, "stream lost";
    /// The data ended before its end was confirmed.
    Truncated = 23 => StreamTruncated, "truncated";
    /// The registry can't be asked.
    RegistryUnavailable = 24 => RelayDatabase, "registry unavailable";
    /// The issuer's keys can't be fetched, so no token can be judged.
    IssuerUnavailable = 25 => RelayIssuerUnreachable, "identity provider unreachable";
    /// The identity that holds the session was replaced or withdrawn.
    Revoked = 26 => AgentCertificateRefused, "revoked";
    /// Neither bytes nor acknowledgements came for too long.
    PeerDead = 27 => CarrierLost, "no sign of life";
    /// A limit of the agent is reached.
    AgentLimitReached = 28 => AgentLimit, "limit of the agent reached";
    /// What the stream was opened with is over: the caller's token for the cluster.
    AuthorityEnded = 29 => ClusterTokenExpired, "the caller's authority ended";
    /// What the stream was opened with is over: the caller's role, which was removed or has ended.
    RoleEnded = 30 => RoleEnded, "the caller's role ended";
    /// A role document was not taken.
    DocumentRefused = 31 => RoleDocumentRefused, "role document refused";
    /// The relay knows no organisation key, and so takes no documents.
    OrganisationKeyMissing = 32 => OrganisationKeyMissing, "no organisation key";
    /// The sessions of this user, or those with this token, were ended by somebody who may.
    UserRevoked = 33 => SessionRevoked, "the user's sessions were revoked";
    /// The caller may not ask this of the relay.
    QuestionForbidden = 34 => QuestionForbidden, "question forbidden";
    /// The question can't be answered as it stands.
    QuestionInvalid = 35 => QuestionInvalid, "invalid question";
    /// Of what the dialler sends nothing comes.
    NothingCame = 36 => CarrierSilentUp, "nothing comes of what the dialler sends";
    /// Of what the dialler sends only small messages come.
    LargeMissing = 37 => CarrierLargeUp, "large messages of the dialler's do not come";
    /// What came is not what was sent.
    Damaged = 38 => CarrierDamaged, "bytes were changed on the way";
}

impl CloseReason {
    /// Whether what was refused for this reason may be granted a little later, without anybody doing anything.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Self::LimitReached
                | Self::AgentOffline
                | Self::TokenExpired
                | Self::Draining
                | Self::Timeout
                | Self::Detached
                | Self::RegistryUnavailable
                | Self::IssuerUnavailable
                | Self::PeerDead
                | Self::AgentLimitReached
        )
    }
}

/// Cuts a detail to what may travel, at a character boundary.
pub fn bounded_detail(detail: &str) -> &str {
    let mut end = detail.len().min(MAX_DETAIL);
    while !detail.is_char_boundary(end) {
        end -= 1;
    }
    &detail[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_back_and_unknown_ones_are_kept() {
        for reason in CloseReason::ALL {
            assert_eq!(CloseReason::from_code(reason.code()), *reason);
        }
        assert_eq!(CloseReason::from_code(9999).code(), 9999);
    }

    #[test]
    fn a_detail_is_cut_at_a_character() {
        let long = "é".repeat(200);
        assert!(bounded_detail(&long).len() <= MAX_DETAIL);
        assert_eq!(bounded_detail("short"), "short");
    }
}
