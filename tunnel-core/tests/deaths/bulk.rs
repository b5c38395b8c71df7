//! Streams that bring as much as they can.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use towline_tunnel::mux::MuxStream;

use super::path::Path;

/// From the agent to the client.
pub(crate) struct Bulk {
    near: Vec<MuxStream>,
    writing: JoinSet<()>,
}

impl Bulk {
    pub(crate) async fn begin(path: &Path, streams: usize) -> Self {
        let mut bulk = Self { near: Vec::new(), writing: JoinSet::new() };
        bulk.more(path, streams).await;
        bulk
    }

    pub(crate) async fn more(&mut self, path: &Path, streams: usize) {
        for _ in 0..streams {
            let (near, mut far) = path.stream().await;
            self.near.push(near);
            self.writing.spawn(async move {
                let block = vec![7; 256 * 1024];
                while far.write_all(&block).await.is_ok() {}
            });
        }
    }

    /// Takes it for so long; bytes a second of each.
    pub(crate) async fn each(&mut self, time: Duration) -> Vec<f64> {
        let until = Instant::now() + time;
        let readers = self.near.iter_mut().map(|near| async move {
            let (mut buffer, mut counted) = (vec![0; 256 * 1024], 0);
            loop {
                tokio::select! {
                    biased;
                    () = sleep_until(until) => return counted as f64 / time.as_secs_f64(),
                    n = near.read(&mut buffer) => counted += n.unwrap(),
                }
            }
        });
        futures_util::future::join_all(readers).await
    }

    /// The same of all of them.
    pub(crate) async fn goodput(&mut self, time: Duration) -> f64 {
        self.each(time).await.into_iter().sum()
    }
}
