//! Holding two sessions, and looking at whether they are still what they should be.

use std::pin::pin;

use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, interval_at, sleep_until},
};
use towline_tunnel::{drain::DrainWatcher, fault::Report, ids::ChannelId};
use tracing::info;

use super::{
    Begun, Status, Uplink,
    held::{Errand, Held, Standing},
    replace::{Cause, Changes},
    silence::Silences,
};
use crate::session::{Fate, Leaving};

/// Sessions that run, and what is heard of them.
struct Running<'a> {
    sessions: &'a mut JoinSet<()>,
    leaving: JoinSet<(ChannelId, Option<Leaving>)>,
    drain: &'a DrainWatcher,
    silences: Silences,
}

impl Running<'_> {
    fn spawn(&mut self, begun: Begun) -> Standing {
        let ((leaving, left), (replaced, told)) = (oneshot::channel(), oneshot::channel());
        let channel = begun.facts.channel;
        let mux = begun.session.mux(begun.channel, begun.config);
        let standing = Standing::new(begun.facts, mux.0.clone(), begun.name, replaced);
        let fate = Fate { leaving, replaced: told };
        self.sessions.spawn(begun.session.run(mux, fate, self.drain.clone()));
        self.leaving.spawn(async move { (channel, left.await.ok()) });
        while self.sessions.try_join_next().is_some() {}
        standing
    }

    /// The next that takes no new streams; for ever where there is none.
    async fn left(&mut self) -> (ChannelId, Option<Leaving>) {
        loop {
            match self.leaving.join_next().await {
                Some(Ok(left)) => return left,
                // It can't panic, and nobody cancels it.
                Some(Err(_)) => {}
                None => return std::future::pending().await,
            }
        }
    }
}

impl Uplink {
    /// Holds sessions until the agent drains.
    ///
    /// # Errors
    /// If the enrolment token is refused and there is no other way to be let in.
    pub(super) async fn hold(&self, sessions: &mut JoinSet<()>, drain: &DrainWatcher) -> Result<(), Report> {
        let silences = Silences::new(self.holding.keep_alives.clone(), self.metrics.clone());
        let mut running = Running { sessions, leaving: JoinSet::new(), drain, silences };
        let mut held = Held::new(self.holding.clone());
        let mut changes = Changes::new(self.holding.clone());
        let every = self.holding.look_every;
        let mut looks = interval_at(Instant::now() + every, every);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !drain.has_begun() {
            let next = held.next(changes.any(&held));
            let at = next.map_or_else(Instant::now, |(_, at)| at);
            tokio::select! {
                () = drain.begun() => break,
                left = running.left() => self.note_left(left, &mut held, &mut running.silences),
                _ = looks.tick() => {
                    running.silences.look(&held);
                    changes.look(&held, &self.enrolment.instance(), self);
                }
                () = sleep_until(at), if next.is_some() => {
                    let Some((errand, _)) = next else { continue };
                    self.dial(errand, &mut held, &mut changes, &mut running).await?;
                }
            }
        }
        Ok(())
    }

    async fn dial(
        &self,
        errand: Errand,
        held: &mut Held,
        changes: &mut Changes,
        running: &mut Running<'_>,
    ) -> Result<(), Report> {
        let beside = held.beside(&self.enrolment.instance());
        // Of which the cause stays the same while it is dialled for.
        let due = changes.due(held);
        let better = match errand {
            Errand::Successor => Cause::only_better(&due),
            Errand::Own | Errand::Spare => None,
        };
        let begun = {
            let mut beginning = pin!(self.begin(&beside, better));
            loop {
                tokio::select! {
                    () = running.drain.begun() => return Ok(()),
                    begun = beginning.as_mut() => break begun,
                    left = running.left() => self.note_left(left, held, &mut running.silences),
                }
            }
        };
        match begun {
            Ok(begun) => {
                let standing = running.spawn(begun);
                if errand == Errand::Successor {
                    for (channel, cause) in &due {
                        info!(%channel, by = %standing.facts.channel, why = cause.text(), "a session is replaced");
                    }
                }
                held.begun(standing, errand);
                if errand == Errand::Successor {
                    let which: Vec<_> = due
                        .iter()
                        .map(|(channel, cause)| (*channel, cause.patience(&self.holding)))
                        .collect();
                    held.replace(&which);
                }
            }
            Err(report) => {
                self.metrics.connect_failed(report.fault);
                if better.is_some() {
                    tracing::debug!(%report, "no better carrier gets through yet");
                    changes.none_better();
                } else {
                    self.enrolment.turn(&report)?;
                }
                held.failed(errand, report.delay(), self.keeper.parked() > 0);
                if held.carrying().is_none() {
                    self.status.send_replace(Status::Away(Some(report)));
                }
            }
        }
        self.tell(held);
        Ok(())
    }

    fn note_left(
        &self,
        (channel, leaving): (ChannelId, Option<Leaving>),
        held: &mut Held,
        silences: &mut Silences,
    ) {
        if let Some(lost) = held.lost(channel) {
            silences.lost(lost);
        }
        // A session that ended without saying so is one that was lost, or replaced.
        let delay = leaving.map(|leaving| leaving.delay).unwrap_or_default();
        held.left(channel, delay, self.keeper.parked() > 0);
        // Another may carry from now on.
        silences.look(held);
        self.tell(held);
    }

    /// Tells whoever opens streams, and whoever started the agent, which session carries.
    fn tell(&self, held: &Held) {
        match held.carrying() {
            Some(carrying) => {
                let channel = carrying.facts.channel;
                let is_news = !matches!(&*self.status.borrow(), Status::Connected { channel: known, .. } if *known == channel);
                if is_news {
                    self.carrying.send_replace(Some(carrying.connection.clone()));
                    self.status.send_replace(Status::Connected { channel, name: carrying.name.clone() });
                    self.metrics.relay_connected(self.rank, true);
                    info!(%channel, "streams begin on this session");
                }
            }
            None => {
                self.metrics.relay_connected(self.rank, false);
                self.carrying.send_if_modified(|carrying| carrying.take().is_some());
                self.status.send_if_modified(|status| {
                    let was = matches!(status, Status::Connected { .. });
                    if was {
                        *status = Status::Away(None);
                    }
                    was
                });
            }
        }
    }
}
