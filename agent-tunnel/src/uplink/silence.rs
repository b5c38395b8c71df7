//! How long each session may be silent: the one that carries seldom, a spare one for as long as the network is found to allow.

use std::collections::HashMap;

use towline_tunnel::{
    carrier::keep_alive::{KeepAlives, Learned},
    ids::ChannelId,
    proto::link::{DEAD_AFTER, PING_AFTER},
    session::control::Control,
};
use tracing::{debug, info};

use super::held::{Held, Standing};
use crate::metrics::Metrics;

/// What sessions were told.
pub(super) struct Silences {
    learned: KeepAlives,
    asked: HashMap<ChannelId, std::time::Duration>,
    metrics: Metrics,
}

impl Silences {
    pub(super) fn new(learned: KeepAlives, metrics: Metrics) -> Self {
        Self { learned, asked: HashMap::new(), metrics }
    }

    /// Looks at what became of silences, and asks for those that are wanted now.
    pub(super) fn look(&mut self, held: &Held) {
        let mut asked = HashMap::new();
        for (at, standing) in held.taking().enumerate() {
            let (connection, network) = (&standing.connection, &standing.facts.network);
            let outlived = connection.outlived();
            if !outlived.is_zero()
                && let Learned::Outlives(silence) = self.learned.outlived(network, outlived)
            {
                debug!(seconds = silence.as_secs_f64(), "silence is outlived here; more is tried next");
            }
            let wanted = if at == 0 { self.learned.carrying(network) } else { self.learned.spare(network) };
            let before = self.asked.get(&standing.facts.channel).copied();
            if before.unwrap_or(PING_AFTER) != wanted {
                // Ours first: the relay is the second to ask for a sign of life.
                connection.keep_silent(wanted);
                standing.say(&Control::KeepSilent { silence: wanted });
                if at == 0 {
                    // It was spare, and may have been dead for as long as it was to be silent.
                    connection.check();
                }
            }
            if at > 0 {
                self.metrics.spare_silence.set(i64::try_from(wanted.as_secs()).unwrap_or(i64::MAX));
            }
            asked.insert(standing.facts.channel, wanted);
        }
        self.asked = asked;
    }

    /// A session was lost, and nobody had said that it would go.
    pub(super) fn lost(&self, standing: &Standing) {
        let silent = standing.connection.silent_for();
        // From when a sign of life was asked for nothing was to be learned.
        let asked = self.asked.get(&standing.facts.channel).copied().unwrap_or(PING_AFTER);
        let silent = if silent >= asked { silent.saturating_sub(DEAD_AFTER) } else { silent };
        if let Learned::Forgets(silence) = self.learned.lost(&standing.facts.network, silent) {
            let every = self.learned.spare(&standing.facts.network);
            info!(
                silent_for = silence.as_secs(),
                every = every.as_secs(),
                "connections that are silent for so long are lost on this network: a sign of life goes out more often"
            );
        }
    }
}
