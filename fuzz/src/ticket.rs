//! Tickets: whatever a relay signs, an agent's check gives an answer, and what it accepts is within its rules.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use towline_tunnel::{
    ids::{ClusterId, KeyHash},
    keys::Purpose,
    ticket::{MAX_LIFE, MAX_PRINCIPAL, SKEW, Ticket, TicketError},
};

use super::{cluster, now, signer};

/// The first bit says whether the relay signs the rest, or the rest is the ticket as it is.
pub fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let public = signer().public();
    if first & 1 == 0 {
        let refused = Ticket::verify(rest, &public, cluster(), now());
        assert!(matches!(refused, Err(TicketError::Signature | TicketError::Malformed(_))), "{refused:?}");
        return;
    }
    let mut ticket = signer().sign(Purpose::Ticket, &[rest]).to_vec();
    ticket.extend_from_slice(rest);
    if let Ok(ticket) = Ticket::verify(&ticket, &public, cluster(), now()) {
        assert_eq!(ticket.cluster, cluster());
        assert!(ticket.principal.len() <= MAX_PRINCIPAL);
        assert!(ticket.expires <= ticket.issued + MAX_LIFE);
        assert!(ticket.issued <= now() + SKEW && now() < ticket.expires + SKEW);
        assert_eq!(Ticket::verify(&ticket.sign(signer()), &public, cluster(), now()), Ok(ticket));
    }
}

/// Tickets that are good, late, early, long and for another cluster; signed, and not.
pub fn seeds() -> Vec<Vec<u8>> {
    let of = |cluster, issued: SystemTime, life| {
        let ticket = Ticket {
            cluster,
            principal: "https://idp#alice".into(),
            run_key: KeyHash::from_bytes([3; 32]),
            id: [4; 16],
            issued,
            expires: issued + life,
            offer: None,
        };
        ticket.sign(signer())
    };
    let signed = |bytes: &Bytes| [&[1], &bytes[64..]].concat();
    let good = of(cluster(), now(), MAX_LIFE);
    vec![
        signed(&good),
        signed(&of(cluster(), now() - MAX_LIFE, MAX_LIFE)),
        signed(&of(cluster(), now() + SKEW, Duration::ZERO)),
        signed(&of(cluster(), now(), 2 * MAX_LIFE)),
        signed(&of(ClusterId::from_bytes([5; 32]), now(), MAX_LIFE)),
        [&[0; 65], &good[64..]].concat(),
    ]
}
