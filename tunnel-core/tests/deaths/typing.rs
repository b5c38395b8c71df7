//! A key that is typed beside bulk waits behind whatever the windows of bulk let onto the line. On a line without delay they need
//! let hardly anything, and nobody can tell such a line from a long one by what its reader waits for.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::{Instant, sleep},
};
use towline_tunnel::{
    mux::MuxStream,
    proto::{interactive::HOLDS, tuning::FAST},
};

use super::{bulk::Bulk, ends, line::Like, path::Path};

const RATE: f64 = 2.4 * FAST as f64;
/// Keys, and the time between them.
const KEYS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

fn like(delay: Duration) -> Like {
    Like { delay, rate: RATE, room: 64 << 20 }
}

/// A terminal, whose far end says again what it hears.
async fn terminal(path: &Path, tasks: &mut JoinSet<()>) -> MuxStream {
    let (near, mut far) = path.stream().await;
    tasks.spawn(async move {
        let mut key = [0; 30];
        while far.read_exact(&mut key).await.is_ok() && far.write_all(&key).await.is_ok() {}
    });
    near
}

/// How long each key took to come back.
async fn types(near: &mut MuxStream) -> Vec<Duration> {
    let mut echoes = Vec::new();
    for _ in 0..KEYS {
        sleep(PAUSE).await;
        let typed = Instant::now();
        near.write_all(&[1; 30]).await.unwrap();
        near.read_exact(&mut [0; 30]).await.unwrap();
        echoes.push(typed.elapsed());
    }
    echoes
}

#[tokio::test(start_paused = true)]
async fn a_key_beside_bulk_on_a_short_line_waits_no_longer_than_it_takes_to_see_that_somebody_types() {
    let path = Path::relayed(like(Duration::ZERO), like(Duration::ZERO));
    let mut tasks = JoinSet::new();
    let mut bulk = Bulk::begin(&path, 4).await;
    let mut near = terminal(&path, &mut tasks).await;
    ends(bulk.goodput(Duration::from_secs(1))).await;
    let typing = async {
        tokio::select! {
            echoes = types(&mut near) => echoes,
            () = async { loop { bulk.goodput(Duration::from_secs(1)).await; } } => unreachable!(),
        }
    };
    let mut echoes = ends(typing).await;
    assert!(echoes[0] > Duration::from_millis(20), "nothing stood before the first: {:?}", echoes[0]);
    let mut later = echoes.split_off(KEYS as usize / 2);
    later.sort();
    assert!(*later.last().unwrap() < Duration::from_millis(5), "{later:?}");
}

#[tokio::test(start_paused = true)]
async fn a_long_and_fast_line_is_full_again_within_a_second_once_nobody_types() {
    let path = Path::relayed(like(Duration::from_millis(10)), like(Duration::ZERO));
    let mut tasks = JoinSet::new();
    let mut bulk = Bulk::begin(&path, 2).await;
    let mut near = terminal(&path, &mut tasks).await;
    ends(bulk.goodput(Duration::from_secs(1))).await;
    let before = ends(bulk.goodput(Duration::from_millis(500))).await;
    let typing = tokio::join!(types(&mut near), bulk.goodput(PAUSE * KEYS));
    let meanwhile = typing.1;
    assert!(meanwhile < 0.8 * before, "typing narrows nothing: {meanwhile} of {before}");
    assert!(meanwhile > 0.5 * FAST as f64, "on a long line bulk has its part: {meanwhile}");
    // From the moment on that typing is over.
    bulk.goodput(HOLDS).await;
    let since = bulk.goodput(Duration::from_secs(1)).await;
    assert!(since > 0.95 * before, "{since} of {before}");
}
