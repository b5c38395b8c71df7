//! How many files the process may have open: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use crate::{handshakes, limits::Limits, registry};

/// Listeners, the registry's three files on each of its connections, the runtime's own, and what is read now and then.
const OWN: u64 = 64 + 3 * registry::CONNECTIONS as u64;

/// What these limits may need.
fn needed(limits: &Limits) -> u64 {
    let waiting = u64::try_from(handshakes::WAITING).unwrap_or(u64::MAX);
    // As many again: agents' spare sessions.
    OWN + 2 * u64::from(limits.max_sessions) + u64::from(limits.max_handshakes) + waiting
}

/// Raises the soft limit of open files (RLIMIT_NOFILE) to the hard one: what a service is started with is often 1024, which
/// only programs that use select(2) need. Says in the log what there is, and warns where the relay's own limits need more.
pub fn raise_for(limits: &Limits) {
    let had = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: had.maximum, maximum: had.maximum });
    let has = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if let Err(error) = raised {
        warn!(open_files = has, %error, "the limit of open files can't be raised");
    }
    let needed = needed(limits);
    if has < needed {
        warn!(
            open_files = has,
            needed,
            "the limit of open files (ulimit -n, LimitNOFILE=) is below what --max-sessions and --max-handshakes need: connections beyond it wait"
        );
    } else {
        info!(open_files = has, needed, "the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let had = getrlimit(Resource::Nofile);
        let lower = Rlimit { current: had.maximum.map_or(Some(4096), |hard| Some(hard.min(4096))), ..had };
        setrlimit(Resource::Nofile, lower).unwrap();
        raise_for(&Limits::default());
        assert_eq!(getrlimit(Resource::Nofile).current, had.maximum);
        assert!(needed(&Limits::default()) > 2 * 20_000 + 1024 + 4096);
    }
}
