//! Tickets: whatever a relay signs, an agent's check gives an answer, and what it accepts is within its rules.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use towline_tunnel::{
    ids::{ClusterId, KeyHash},
    keys::{Purpose, SigningKey},
    ticket::{MAX_LIFE, MAX_PRINCIPAL, SKEW, Ticket, TicketError},
};

fn relay() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(SigningKey::generate)
}

fn cluster() -> ClusterId {
    ClusterId::from_bytes([2; 32])
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// The first bit says whether the relay signs the rest, or the rest is the ticket as it is.
pub fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let public = relay().public();
    if first & 1 == 0 {
        let refused = Ticket::verify(rest, &public, cluster(), now());
        assert!(matches!(refused, Err(TicketError::Signature | TicketError::Malformed(_))), "{refused:?}");
        return;
    }
    let mut ticket = relay().sign(Purpose::Ticket, &[rest]).to_vec();
    ticket.extend_from_slice(rest);
    if let Ok(ticket) = Ticket::verify(&ticket, &public, cluster(), now()) {
        assert_eq!(ticket.cluster, cluster());
        assert!(ticket.principal.len() <= MAX_PRINCIPAL);
        assert!(ticket.expires <= ticket.issued + MAX_LIFE);
        assert!(ticket.issued <= now() + SKEW && now() < ticket.expires + SKEW);
        assert_eq!(Ticket::verify(&ticket.sign(relay()), &public, cluster(), now()), Ok(ticket));
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
        ticket.sign(relay())
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
