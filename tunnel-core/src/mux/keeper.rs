//! Streams that outlive their connection: kept here while they have none.
//!
//! Locks are taken in this order, and no two of a kind at once: a stream's place, its connection's endpoint, the keeper's list.

mod bulk;
mod parked;

use std::{
    collections::{HashMap, hash_map},
    convert::Infallible,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use self::{
    bulk::Bulk,
    parked::{Entry, beyond},
};
use super::{
    connection::{Connection, Shared, Wakers},
    lines::LineSettings,
};
use crate::{
    ids::StreamKey,
    proto::{
        CloseReason, ResumeRequest, Resumed, StreamId,
        endpoint::{Endpoint, Moving, WasParked},
        resume::Claim,
    },
};

/// Decides whether a RESUME's ticket lets its caller in; says why not.
pub type Admit = Box<dyn Fn(&ResumeRequest) -> Result<(), String> + Send + Sync>;

/// Whose a stream is, at the agent.
pub struct Owner {
    /// Names the user; where too many streams wait, those of the user who has most of them end first.
    pub user: Arc<str>,
    /// Who may take it up.
    pub admit: Admit,
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({})", self.user)
    }
}

/// Where a stream is now. The stream's handle and the keeper share it; it changes when the stream goes on elsewhere.
pub(super) struct Place(Mutex<Inside>);

pub(super) struct Inside {
    shared: Arc<Shared>,
    pub(super) id: StreamId,
    kept: Option<Kept>,
}

struct Kept {
    claim: Claim,
    admit: Option<Admit>,
    /// It went to a line once, and does so only once.
    moved: bool,
}

impl Inside {
    /// At the client: asks for the stream on `connection`, where it is from now on. Parked there if that takes no streams.
    fn ask_on(&mut self, connection: &Connection, moving: Moving<Wakers>, keeper: &Keeper) {
        let Some(kept) = &mut self.kept else { return };
        let asked = connection.0.with(|endpoint| endpoint.resume(moving, &mut kept.claim));
        self.shared = Arc::clone(&connection.0);
        match asked {
            Ok(stream) => self.id = stream,
            Err(parked) => {
                self.id = parked;
                keeper.failed(kept.claim.key());
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({})", self.lock().id)
    }
}

impl Place {
    pub(super) fn new(shared: Arc<Shared>, id: StreamId) -> Self {
        Self(Mutex::new(Inside { shared, id, kept: None }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` where the stream is now.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Endpoint<Wakers>, StreamId) -> T) -> T {
        let inside = self.lock();
        inside.shared.with(|endpoint| change(endpoint, inside.id))
    }

    pub(super) fn keep(self: &Arc<Self>, claim: Claim, owner: Option<Owner>) {
        let mut inside = self.lock();
        let Some(keeper) = inside.shared.keeper().cloned() else { return };
        let key = claim.key();
        let (user, admit) = owner.map(|Owner { user, admit }| (user, admit)).unzip();
        let taken = match keeper.list().entry(key) {
            // Known before the stream can be parked, so that being parked is heard.
            hash_map::Entry::Vacant(free) => {
                free.insert(Entry::new(Arc::clone(self), user));
                false
            }
            hash_map::Entry::Occupied(_) => true,
        };
        if taken {
            // The client chooses the names. With two of one name, one would be parked and never found again.
            let id = inside.id;
            let detail = "a stream of this name is there already";
            return inside.shared.with(|endpoint| endpoint.reset(id, CloseReason::FrameMalformed, detail));
        }
        inside.kept = Some(Kept { claim, admit, moved: false });
        let id = inside.id;
        let kept = inside.shared.with(|endpoint| {
            let kept = endpoint.keep(id, key);
            if let (true, Some(after)) = (kept, keeper.0.bulk.after) {
                endpoint.tell_bulk(id, after);
            }
            kept
        });
        if !kept {
            drop(inside);
            keeper.note(&[key], &[]);
        }
    }
}

struct Inner {
    keep_for: Duration,
    max_parked: usize,
    streams: Mutex<HashMap<StreamKey, Entry>>,
    news: Notify,
    bulk: Bulk,
}

/// Keeps the streams of one process whose connection ended, until they go on elsewhere or their time is over. Cheap to clone.
#[derive(Clone)]
pub struct Keeper(Arc<Inner>);

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("streams", &self.list().len()).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Keeps at most `max_parked` streams, each for `keep_for`.
    pub fn new(keep_for: Duration, max_parked: usize) -> Self {
        Self::build(keep_for, max_parked, None)
    }

    /// The same, which tells of streams that became bulk ([`Keeper::next_bulk`]) if there may be lines for them.
    pub fn with_lines(keep_for: Duration, max_parked: usize, lines: LineSettings) -> Self {
        Self::build(keep_for, max_parked, (lines.max > 0).then_some(lines.bulk_after))
    }

    fn build(keep_for: Duration, max_parked: usize, bulk_after: Option<u64>) -> Self {
        let bulk = Bulk::new(bulk_after);
        Self(Arc::new(Inner { keep_for, max_parked, streams: Mutex::default(), news: Notify::new(), bulk }))
    }

    fn list(&self) -> MutexGuard<'_, HashMap<StreamKey, Entry>> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Streams that wait to go on.
    pub fn parked(&self) -> usize {
        self.list().values().filter(|entry| entry.parked.is_some()).count()
    }

    /// What became of streams: those that are `over` need nobody, those that were `parked` wait from now on.
    pub(super) fn note(&self, over: &[StreamKey], parked: &[WasParked]) {
        if over.is_empty() && parked.is_empty() {
            return;
        }
        let mut list = self.list();
        // Dropped after the lock: it may be the last that holds a connection.
        let gone: Vec<Entry> = over.iter().filter_map(|key| list.remove(key)).collect();
        for WasParked { key, moved } in parked {
            if let Some(entry) = list.get_mut(key) {
                entry.park(*moved);
            }
        }
        drop(list);
        drop(gone);
        if !parked.is_empty() {
            self.0.news.notify_one();
        }
    }

    /// A stream that waits could not be asked for.
    fn failed(&self, key: StreamKey) {
        if let Some(entry) = self.list().get_mut(&key) {
            entry.failed();
        }
        self.0.news.notify_one();
    }

    fn place(&self, key: StreamKey) -> Option<Arc<Place>> {
        self.list().get(&key).map(|entry| Arc::clone(&entry.place))
    }

    /// A stream goes on as `stream` of `shared`.
    fn goes_on(&self, key: StreamKey, shared: &Shared, stream: StreamId) {
        let mut bulk = false;
        if let Some(entry) = self.list().get_mut(&key) {
            entry.stands();
            bulk = std::mem::take(&mut entry.bulk_waits);
        }
        if bulk {
            self.note_bulk(vec![key]);
        }
        // Its new connection may have ended meanwhile, and that it waits again was noted before this.
        if let Some(parked) = shared.with(|endpoint| endpoint.parked(stream)) {
            self.note(&[], &[parked]);
        }
    }

    /// At the agent: RESUME came as `stream` of `shared`.
    pub(super) fn take_up(&self, shared: &Arc<Shared>, stream: StreamId, request: &ResumeRequest) {
        if let Err((reason, detail)) = self.try_take_up(shared, stream, request) {
            tracing::info!(key = %request.key, reason = reason.text(), detail, "a stream can't be taken up");
            shared.with(|endpoint| endpoint.refuse_resume(stream, reason, &detail));
        }
    }

    fn try_take_up(
        &self,
        shared: &Arc<Shared>,
        stream: StreamId,
        request: &ResumeRequest,
    ) -> Result<(), (CloseReason, String)> {
        let lost = || (CloseReason::Lost, String::new());
        let place = self.place(request.key).ok_or_else(lost)?;
        let mut inside = place.lock();
        let Inside { shared: held_by, id, kept } = &mut *inside;
        let kept = kept.as_mut().ok_or_else(lost)?;
        let admit = kept.admit.as_ref().ok_or_else(lost)?;
        kept.claim.accept(request).map_err(|reason| (reason, "the proof does not fit".into()))?;
        admit(request).map_err(|why| (CloseReason::TicketInvalid, why))?;
        let moving = held_by.with(|endpoint| endpoint.detach(*id)).ok_or_else(lost)?;
        let fits = shared.with(|endpoint| endpoint.accept_resume(stream, moving, &kept.claim, request));
        (*held_by, *id) = (Arc::clone(shared), stream);
        // Before the stream can leave again.
        self.goes_on(request.key, shared, stream);
        drop(inside);
        tracing::info!(
            stream = %request.key, channel = request.channel.map(tracing::field::display), epoch = request.epoch, fits,
            "a stream was taken up"
        );
        Ok(())
    }

    /// At the client: the answer to RESUME came for `stream` of `shared`.
    pub(super) fn resumed(&self, shared: &Arc<Shared>, stream: StreamId, key: StreamKey, resumed: &Resumed) {
        let Some(place) = self.place(key) else { return };
        let mut inside = place.lock();
        if !Arc::ptr_eq(&inside.shared, shared) || inside.id != stream {
            return;
        }
        let genuine = inside.kept.as_mut().is_some_and(|kept| kept.claim.is_answer(resumed));
        let goes_on = shared.with(|endpoint| {
            if genuine {
                endpoint.resumed(stream, resumed)
            } else {
                endpoint.reset(stream, CloseReason::Lost, "the answer to RESUME is not the agent's");
                false
            }
        });
        if goes_on {
            // Before the stream can leave again.
            self.goes_on(key, shared, stream);
        }
        drop(inside);
        tracing::info!(stream = %key, epoch = resumed.epoch, goes_on, "a stream was taken up");
    }

    /// Ends the streams whose time is over, and those that are too many. Returns when it should be called next.
    fn expire(&self) -> Option<Instant> {
        let mut late = Vec::new();
        let mut next = None::<Instant>;
        let list = self.list();
        let mut waiting = Vec::new();
        for entry in list.values() {
            let Some(parked) = &entry.parked else { continue };
            match parked.ends(self.0.keep_for) {
                Some(end) => {
                    next = Some(next.map_or(end, |next| next.min(end)));
                    waiting.push((entry, parked));
                }
                None => late.push(Arc::clone(&entry.place)),
            }
        }
        let beyond = match waiting.len() > self.0.max_parked {
            true => beyond(waiting.into_iter(), self.0.max_parked),
            false => Vec::new(),
        };
        drop(list);
        let detail = format!("its connection was lost, and not back within {:?}", self.0.keep_for);
        late.iter().for_each(|place| self.give_up(place, CloseReason::Detached, &detail));
        let detail = "its connection was lost, and too many streams wait";
        beyond.iter().for_each(|place| self.give_up(place, CloseReason::LimitReached, detail));
        next
    }

    fn give_up(&self, place: &Place, reason: CloseReason, detail: &str) {
        let ended = place.with(|endpoint, id| endpoint.give_up(id, reason, detail));
        // A handle may hold the stream for long; it waits for nothing more.
        if ended && let Some(kept) = &place.lock().kept {
            self.list().remove(&kept.claim.key());
        }
    }

    /// At the agent: ends streams whose client does not come back. Never returns.
    pub async fn watch(&self) -> Infallible {
        loop {
            let next = self.expire();
            tokio::select! {
                () = self.0.news.notified() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// At the client: takes streams up on the connections that `session` gives, which may wait, and gives none where there is none for
    /// now. Never returns.
    pub async fn run<F, Fut>(&self, mut session: F) -> Infallible
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Option<Connection>>,
    {
        loop {
            let end = self.expire();
            let now = Instant::now();
            let (mut due, mut next) = (Vec::new(), end);
            for entry in self.list().values() {
                match entry.parked.as_ref().and_then(|parked| parked.next) {
                    Some(at) if at <= now => due.push(Arc::clone(&entry.place)),
                    Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                    None => {}
                }
            }
            let news = self.0.news.notified();
            if due.is_empty() {
                tokio::select! {
                    () = news => {}
                    () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
                }
                continue;
            }
            let connection = tokio::select! {
                connection = session() => connection,
                () = sleep_until(end.unwrap_or(now)), if end.is_some() => continue,
            };
            match connection {
                Some(connection) => due.iter().for_each(|place| self.ask(place, &connection)),
                None => due.iter().for_each(|place| self.later(place)),
            }
        }
    }

    fn later(&self, place: &Place) {
        let inside = place.lock();
        let Some(kept) = &inside.kept else { return };
        self.failed(kept.claim.key());
    }

    fn ask(&self, place: &Place, connection: &Connection) {
        let mut inside = place.lock();
        let Inside { shared, id, kept: Some(kept) } = &mut *inside else { return };
        let key = kept.claim.key();
        // Whatever comes of it: it is not due again before something is noted of it.
        if let Some(parked) = self.list().get_mut(&key).and_then(|entry| entry.parked.as_mut()) {
            parked.next = None;
        }
        let moving =
            shared.with(|endpoint| if endpoint.is_parked(*id) { endpoint.detach(*id) } else { None });
        let Some(moving) = moving else { return };
        inside.ask_on(connection, moving, self);
    }

    /// Ends all streams that wait: nobody will take them up any more.
    pub fn close(&self) {
        let all: Vec<Entry> = self.list().drain().map(|(_, entry)| entry).collect();
        for entry in &all {
            entry.place.with(|endpoint, id| endpoint.give_up(id, CloseReason::Draining, "this side ends"));
        }
    }
}

#[cfg(test)]
mod tests;
