//! Lines beside the session: bulk goes there, and nobody who reads it notices.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{sync::atomic::Ordering, time::Duration};

use support::{Home, Kubectl, Peer, apiserver::Fed, kubectl::text, soon, until};
use tokio::{sync::mpsc::Sender, task::JoinHandle};
use towline::app::{Running, start};
use towline_tunnel::{
    drain::{DrainTrigger, drain},
    mux::LineSettings,
};

const PIECE: usize = 128 * 1024;
const BULK: u64 = 1 << 20;
const IDLE: Duration = Duration::from_millis(300);

struct World {
    peer: Peer,
    _home: Home,
    _running: Running,
    kubectl: Kubectl,
    _trigger: DrainTrigger,
    piece: &'static str,
}

/// A download of which the test says how far it goes.
struct Download {
    feed: Sender<Fed>,
    reading: JoinHandle<String>,
    fed: usize,
}

impl World {
    async fn new(lines: u32) -> Self {
        let (peer, (trigger, watcher)) = (Peer::start().await, drain());
        peer.script.keeps.store(true, Ordering::SeqCst);
        let home = Home::new(&peer);
        let mut config = home.config(&peer);
        config.lines = LineSettings { idle: IDLE, ..LineSettings::new(lines, BULK) };
        let running = soon("the start", start(config, watcher)).await.unwrap();
        let kubectl = Kubectl::new(&running.kubeconfig(), 0);
        let piece = String::leak("0123456789abcdef".repeat(PIECE / 16));
        Self { peer, _home: home, _running: running, kubectl, _trigger: trigger, piece }
    }

    async fn download(&self) -> Download {
        let mut client = self.kubectl.h2().await;
        let response = soon("a feed", client.send(self.kubectl.get("/feed"))).await.unwrap();
        let reading = tokio::spawn(async move {
            let _open = client;
            text(response).await
        });
        Download { feed: self.peer.script.apiserver.last_feed(), reading, fed: 0 }
    }

    async fn feed(&self, download: &mut Download, bytes: u64) {
        for _ in 0..bytes as usize / PIECE {
            soon("room", download.feed.send(Fed::Bytes(self.piece))).await.unwrap();
            download.fed += 1;
        }
    }

    async fn ends_whole(&self, download: Download) {
        drop(download.feed);
        let all = soon("the end", download.reading).await.unwrap();
        assert!(all == self.piece.repeat(download.fed), "{} bytes of {}", all.len(), download.fed * PIECE);
    }

    fn on_line(&self, at: usize) -> usize {
        self.peer.script.lines.lock().unwrap().get(at).map_or(0, |(line, _)| line.stream_count())
    }

    async fn answers(&self) {
        let mut client = self.kubectl.h2().await;
        assert_eq!(soon("a get", client.send(self.kubectl.get("/version"))).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn what_carries_a_mebibyte_goes_on_on_a_line_that_is_ended_when_idle() {
    let world = World::new(1).await;
    let (mut bulk, mut little) = (world.download().await, world.download().await);
    world.feed(&mut little, BULK / 4).await;
    world.feed(&mut bulk, 2 * BULK).await;
    until("it is on a line", || world.on_line(0) == 1).await;
    world.answers().await;
    world.feed(&mut bulk, 8 * BULK).await;
    world.feed(&mut little, BULK / 4).await;
    assert_eq!(world.on_line(0), 1, "what carries little stays on the session");
    world.ends_whole(bulk).await;
    world.ends_whole(little).await;
    let line = world.peer.script.lines.lock().unwrap()[0].0.clone();
    until("the idle line is ended", || line.is_closed()).await;
    world.answers().await;
    // And anew, when it is needed again.
    let mut bulk = world.download().await;
    world.feed(&mut bulk, 2 * BULK).await;
    until("it is on a new line", || world.on_line(1) == 1).await;
    world.ends_whole(bulk).await;
    assert_eq!(world.peer.script.sessions.load(Ordering::SeqCst), 3, "the session stood, beside two lines");
}

#[tokio::test]
async fn several_that_are_bulk_are_spread_over_as_many_lines_as_are_allowed() {
    let world = World::new(2).await;
    let mut all = Vec::new();
    for _ in 0..4 {
        let mut bulk = world.download().await;
        world.feed(&mut bulk, 2 * BULK).await;
        all.push(bulk);
    }
    until("they are on both lines", || (world.on_line(0), world.on_line(1)) == (2, 2)).await;
    for bulk in all {
        world.ends_whole(bulk).await;
    }
}

#[tokio::test]
async fn a_line_that_is_cut_costs_no_byte_and_one_that_is_refused_is_done_without() {
    let world = World::new(1).await;
    let mut bulk = world.download().await;
    world.feed(&mut bulk, 2 * BULK).await;
    until("it is on a line", || world.on_line(0) == 1).await;
    world.peer.script.refuse_lines.store(true, Ordering::SeqCst);
    world.peer.script.lines.lock().unwrap()[0].1.abort();
    world.feed(&mut bulk, 8 * BULK).await;
    world.ends_whole(bulk).await;

    let asked = world.peer.script.lines_asked.load(Ordering::SeqCst);
    let mut bulk = world.download().await;
    world.feed(&mut bulk, 2 * BULK).await;
    until("a line was refused", || world.peer.script.lines_asked.load(Ordering::SeqCst) > asked).await;
    world.feed(&mut bulk, 4 * BULK).await;
    world.answers().await;
    world.ends_whole(bulk).await;
}
