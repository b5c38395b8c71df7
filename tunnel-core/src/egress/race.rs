//! Happy eyeballs (RFC 8305): addresses of both families in turns, the next one begun while the last one is silent, the first to
//! connect wins and the others are dropped.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

/// The "Connection Attempt Delay" of RFC 8305, section 5.
const STAGGER: Duration = Duration::from_millis(250);
/// Each address gets this long: a quarter of a minute of silence is no network that anybody wants to work through.
const ADDRESS_WITHIN: Duration = Duration::from_secs(4);
/// More addresses than any name has whose owner means well.
const MAX_ADDRESSES: usize = 16;

/// How an address ended.
#[derive(Debug)]
pub(super) enum End {
    Refused,
    Silent,
    Failed(io::Error),
}

/// An address that did not connect.
#[derive(Debug)]
pub(super) struct Dead {
    pub(super) address: SocketAddr,
    pub(super) end: End,
}

/// Connects to the first of these addresses that answers.
///
/// # Errors
/// How each of them ended.
pub(super) async fn race<S, C, A>(
    addresses: &[IpAddr],
    port: u16,
    deadline: Instant,
    connect: C,
) -> Result<S, Vec<Dead>>
where
    C: Fn(SocketAddr) -> A,
    A: Future<Output = io::Result<S>> + Send + 'static,
    S: Send + 'static,
{
    let mut waiting = in_turns(addresses).into_iter().map(|address| SocketAddr::new(address, port));
    let mut next = waiting.next();
    // Dropped with the winner's return, which ends those that still try.
    let mut running = JoinSet::new();
    let mut dead = Vec::new();
    loop {
        if let Some(address) = next.take() {
            let attempt = connect(address);
            let until = deadline.min(Instant::now() + ADDRESS_WITHIN);
            running.spawn(async move { (address, timeout_at(until, attempt).await) });
        }
        let mut upcoming = waiting.next();
        let ended = tokio::select! {
            ended = running.join_next() => ended,
            () = sleep(STAGGER), if upcoming.is_some() => {
                next = upcoming;
                continue;
            }
        };
        next = upcoming.take();
        match ended {
            Some(Ok((_, Ok(Ok(stream))))) => return Ok(stream),
            Some(Ok((address, outcome))) => dead.push(Dead { address, end: End::of(outcome) }),
            // A task of ours that broke is no address's end, and none is left to wait for after the last.
            Some(Err(_broken)) => {}
            None if next.is_none() => return Err(dead),
            None => {}
        }
    }
}

impl End {
    /// Whether nothing was sent, because this machine has no way to addresses of that family.
    pub(super) fn is_of_this_machine(&self) -> bool {
        use io::ErrorKind::{AddrNotAvailable, NetworkUnreachable, Unsupported};
        matches!(self, Self::Failed(error) if matches!(error.kind(), AddrNotAvailable | NetworkUnreachable | Unsupported))
    }

    fn of<S>(outcome: Result<io::Result<S>, tokio::time::error::Elapsed>) -> Self {
        match outcome {
            Err(_elapsed) => Self::Silent,
            Ok(Err(error)) => match error.kind() {
                io::ErrorKind::ConnectionRefused => Self::Refused,
                io::ErrorKind::TimedOut => Self::Silent,
                _ => Self::Failed(error),
            },
            Ok(Ok(_)) => Self::Failed(io::Error::other("it connected")),
        }
    }
}

/// Families in turns, IPv6 first (RFC 8305, section 4); within each the order stays.
fn in_turns(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let (mut six, mut four) = (Vec::new(), Vec::new());
    for address in addresses {
        if address.is_ipv6() { six.push(*address) } else { four.push(*address) }
    }
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut mixed = Vec::new();
    while mixed.len() < MAX_ADDRESSES {
        let before = mixed.len();
        mixed.extend(six.next());
        mixed.extend(four.next());
        if mixed.len() == before {
            break;
        }
    }
    mixed.truncate(MAX_ADDRESSES);
    mixed
}

#[cfg(test)]
mod tests;
