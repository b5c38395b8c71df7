//! Streams that have become bulk: told once each, and moved to a line (`docs/protocol.md`, "Lines").

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use super::{Inside, Keeper, Place};
use crate::{
    ids::StreamKey,
    mux::{Connection, connection::Wakers},
    proto::endpoint::Endpoint,
};

/// Streams that became bulk and that nobody asked about yet; more are not remembered, and stay where they are.
const MAX_TOLD: usize = 1024;

pub(super) struct Bulk {
    /// Bytes in one direction.
    pub(super) after: Option<u64>,
    told: Mutex<VecDeque<StreamKey>>,
    news: Notify,
}

impl Bulk {
    pub(super) fn new(after: Option<u64>) -> Self {
        Self { after, told: Mutex::default(), news: Notify::new() }
    }
}

impl Place {
    /// Whether the stream was moved to a line.
    pub(in crate::mux) fn has_moved(&self) -> bool {
        self.lock().kept.as_ref().is_some_and(|kept| kept.moved)
    }
}

impl Keeper {
    pub(in crate::mux) fn note_bulk(&self, keys: Vec<StreamKey>) {
        if keys.is_empty() {
            return;
        }
        let mut told = self.0.bulk.told.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_TOLD.saturating_sub(told.len());
        told.extend(keys.into_iter().take(room));
        drop(told);
        self.0.bulk.news.notify_one();
    }

    /// The next stream that became bulk. For one task.
    pub async fn next_bulk(&self) -> StreamKey {
        loop {
            let next = self.0.bulk.told.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(key) => return key,
                None => self.0.bulk.news.notified().await,
            }
        }
    }

    /// Whether a stream is still kept.
    pub fn keeps(&self, key: StreamKey) -> bool {
        self.list().contains_key(&key)
    }

    /// At the client: takes a stream out of its connection and asks for it on `line`. If that fails, it is parked and taken up as any
    /// other. False where it stays: it is over, was moved before, or waits already; in that case [`Keeper::next_bulk`] names it again
    /// once it goes on.
    pub fn move_to(&self, key: StreamKey, line: &Connection) -> bool {
        let Some(place) = self.place(key) else { return false };
        let mut inside = place.lock();
        let Inside { shared, id, kept: Some(kept) } = &mut *inside else { return false };
        if kept.moved || Arc::ptr_eq(shared, &line.0) || !line.is_open() {
            return false;
        }
        let waits = |endpoint: &Endpoint<Wakers>| endpoint.is_parked(*id) || endpoint.is_resuming(*id);
        let left = shared.with(|endpoint| endpoint.leave(*id).ok_or_else(|| waits(endpoint)));
        let moving = match left {
            Ok(moving) => moving,
            Err(waits) => {
                if let Some(entry) = self.list().get_mut(&key) {
                    entry.bulk_waits = waits;
                }
                return false;
            }
        };
        kept.moved = true;
        // Before it is asked for: that it waits again may be noted at once.
        if let Some(entry) = self.list().get_mut(&key) {
            entry.leaves();
        }
        inside.ask_on(line, moving, self);
        // Its time counts from now on, should there be no answer.
        self.0.news.notify_one();
        true
    }
}
