//! Which sessions of an agent's instance are of one process, as that says over each of them.
//!
//! A session that begins names those it stands beside, and each of those names it in turn (BESIDE of CONTROL). Only both together
//! count: who has copied an instance's key can say the first, and never the second.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use towline_tunnel::{
    ids::ChannelId,
    session::{control::Control, message::MAX_BESIDE},
};

use super::RelayConn;

/// What one session says of others.
#[derive(Debug, Default)]
pub(super) struct Kin {
    /// Those that began after it: the newest [`MAX_BESIDE`].
    later: Mutex<Vec<ChannelId>>,
}

impl Kin {
    fn note(&self, channel: ChannelId) {
        let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        if later.contains(&channel) {
            return;
        }
        if later.len() >= MAX_BESIDE {
            later.remove(0);
        }
        later.push(channel);
    }

    fn has(&self, channel: ChannelId) -> bool {
        self.later.lock().unwrap_or_else(PoisonError::into_inner).contains(&channel)
    }
}

impl RelayConn {
    /// Whether it began as one that stands beside the other: spare while that one takes streams.
    pub fn is_beside(&self, other: &Self) -> bool {
        let (Some(me), Some(it)) = (self.agent(), other.agent()) else { return false };
        me.holder == it.holder && me.beside.contains(&other.channel())
    }

    /// Whether both say that they are of one process.
    pub fn is_kin(&self, other: &Self) -> bool {
        let says = |one: &Self, of: &Self| one.is_beside(of) || one.kin.has(of.channel());
        self.agent().zip(other.agent()).is_some_and(|(me, it)| me.holder == it.holder)
            && says(self, other)
            && says(other, self)
    }

    /// Takes what a peer says of its sessions, and nobody answers. False where it is something else.
    pub(super) fn on_said(&self, payload: &Bytes) -> bool {
        let of_agent = self.agent().is_some();
        match Control::decode(payload) {
            Ok((_, Control::Beside { channel })) if of_agent => self.kin.note(channel),
            Ok((_, Control::Gone { channel })) if of_agent => self.switchboard.gone(self, channel),
            Ok((_, Control::KeepSilent { silence })) => self.keep_silent(silence),
            _ => return false,
        }
        true
    }
}
