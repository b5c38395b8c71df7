//! What was learned of networks, in a file: the first connection of the next run does not climb again.
//!
//! Nothing in it is believed for longer than a day, and nothing in it decides more than which carrier is tried first. It names the relay,
//! the proxy (without credentials) and this machine's own addresses, so it is its owner's alone (0600).

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{BETTER_AFTER, Known, NETWORKS, Network};
use crate::{carrier::rung::Rung, ids::StreamKey};

/// Whoever owns a network changes what it lets through without telling anybody; each day begins at the top.
const LASTS: Duration = Duration::from_secs(24 * 3600);
/// A better rung is tried beside the first session of a run, once that has begun its work.
const BETTER_SOON: Duration = Duration::from_secs(20);
/// Sixteen networks come nowhere near this.
const MAX_FILE: u64 = 64 << 10;

/// The file as it is written. Fields that a newer version adds are passed over.
#[derive(Default, Deserialize, Serialize)]
struct Document {
    networks: Vec<Entry>,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    relay: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proxy: Option<String>,
    from: [Option<IpAddr>; 2],
    rung: String,
    /// Seconds of the Unix epoch.
    since: u64,
    better_at: u64,
}

impl Entry {
    fn of(network: &Network, known: &Known, now: Instant, wall: SystemTime) -> Self {
        // Both clocks are read at once; what is meant is a second or so.
        let at = |then: Instant| {
            let then = match then.checked_duration_since(now) {
                Some(ahead) => wall + ahead,
                None => wall - now.duration_since(then),
            };
            then.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
        };
        Self {
            relay: network.relay.clone(),
            proxy: network.proxy.clone(),
            from: network.from,
            rung: known.rung.name().to_owned(),
            since: at(known.since),
            better_at: at(known.better_at),
        }
    }

    fn is_of(&self, network: &Network) -> bool {
        self.relay == network.relay && self.proxy == network.proxy && self.from == network.from
    }

    /// Nothing where it is too old, from a time to come, or of a rung that nobody knows.
    fn read(self, now: Instant, wall: SystemTime) -> Option<(Network, Known)> {
        let at = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let age = wall.duration_since(at(self.since)?).ok().filter(|age| *age < LASTS)?;
        let rung = Rung::ALL.into_iter().find(|rung| rung.name() == self.rung)?;
        let left = at(self.better_at)?.duration_since(wall).unwrap_or_default();
        let known = Known {
            rung,
            // A machine that has just started has no such moment.
            since: now.checked_sub(age).unwrap_or(now),
            better_at: now + left.clamp(BETTER_SOON, 2 * BETTER_AFTER),
            is_of_an_earlier_run: true,
        };
        Some((Network { relay: self.relay, proxy: self.proxy, from: self.from }, known))
    }
}

/// What a file has; nothing where there is none, and where it can't be used.
pub(super) fn load(path: &Path, now: Instant, wall: SystemTime) -> HashMap<Network, Known> {
    let entries = read(path).unwrap_or_else(|error| {
        tracing::warn!(file = %path.display(), %error, "what was learned of carriers can't be read, and is learned anew");
        Vec::new()
    });
    entries.into_iter().take(NETWORKS).filter_map(|entry| entry.read(now, wall)).collect()
}

/// Writes what is known of one network, or that nothing is. What other processes wrote of others stays.
pub(super) fn save(path: &Path, network: &Network, known: Option<&Known>, now: Instant, wall: SystemTime) {
    let mut entries = read(path).unwrap_or_default();
    let before = entries.len();
    entries.retain(|entry| !entry.is_of(network));
    if known.is_none() && entries.len() == before {
        return;
    }
    entries.retain(|entry| entry.clone().read(now, wall).is_some());
    entries.extend(known.map(|known| Entry::of(network, known, now, wall)));
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.since));
    entries.truncate(NETWORKS);
    if let Err(error) = write(path, &Document { networks: entries }) {
        // Then the next run climbs.
        tracing::debug!(file = %path.display(), %error, "what was learned of carriers can't be kept");
    }
}

fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(serde_json::from_slice::<Document>(&text)?.networks)
}

/// Whole or not at all.
fn write(path: &Path, document: &Document) -> io::Result<()> {
    let name = format!("{}.{}", path.file_name().unwrap_or_default().display(), StreamKey::random());
    let temporary: PathBuf = path.with_file_name(format!(".{name}"));
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(document)?)?;
        fs::rename(&temporary, path)
    };
    written().inspect_err(|_| {
        let _gone = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, os::unix::fs::PermissionsExt as _};

    use super::{super::Memory, *};

    fn network(n: u8) -> Network {
        Network {
            relay: "relay.test:443".into(),
            proxy: Some("http://proxy.test:3128".into()),
            from: [Some(Ipv4Addr::new(10, 0, 0, n).into()), None],
        }
    }

    fn wall() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn known(rung: Rung, now: Instant) -> Known {
        Known { rung, since: now, better_at: now + BETTER_AFTER, is_of_an_earlier_run: false }
    }

    #[test]
    fn the_next_run_knows_what_got_through_and_looks_for_better_soon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("carriers.json");
        let now = Instant::now();
        let first = Memory::kept(path.clone());
        first.note(network(1), Rung::Pair, now, 0);
        first.note(network(2), Rung::WebSocket, now, 0);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");

        let next = Memory::kept(path.clone());
        let pair_first = [Rung::Pair, Rung::WebSocket, Rung::Http2];
        assert_eq!(next.of_an_earlier_run(&network(1)).unwrap(), pair_first);
        assert_eq!(next.of_an_earlier_run(&network(2)).unwrap(), Rung::ALL);
        assert_eq!(next.of_an_earlier_run(&network(3)), None);
        assert_eq!(first.of_an_earlier_run(&network(1)), None, "what this run has learned itself");
        let known_of = |memory: &Memory| memory.lock()[&network(1)];
        let before = known_of(&next);
        next.note(network(1), Rung::Pair, now + Duration::from_secs(5), 0);
        let after = known_of(&next);
        assert_eq!((after.since, after.better_at), (before.since, before.better_at));
        assert_eq!(next.of_an_earlier_run(&network(1)), None, "it was found to work");
        assert_eq!(next.known(&network(1), Instant::now()), Some(Rung::Pair));
        next.forget(&network(1));
        assert_eq!(Memory::kept(path.clone()).of_an_earlier_run(&network(1)), None);
        assert!(Memory::kept(path.clone()).of_an_earlier_run(&network(2)).is_some());

        // An hour later a better one is tried, and not before the session stands.
        save(&path, &network(1), Some(&known(Rung::Http2, now)), now, wall());
        let later = wall() + Duration::from_secs(3600);
        let found = load(&path, now, later)[&network(1)];
        assert_eq!((found.rung, found.better_at), (Rung::Http2, now + BETTER_SOON));
    }

    #[test]
    fn old_entries_end_and_no_more_than_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("carriers.json");
        let now = Instant::now();
        for n in 0..40 {
            save(
                &path,
                &network(n),
                Some(&known(Rung::Pair, now)),
                now,
                wall() + Duration::from_secs(n.into()),
            );
        }
        let then = wall() + Duration::from_secs(60);
        let found = load(&path, now, then);
        assert_eq!(found.len(), NETWORKS);
        assert!(found.contains_key(&network(39)) && !found.contains_key(&network(0)), "the newest stay");
        assert_eq!(load(&path, now, then + LASTS).len(), 0, "a day is over");
        assert_eq!(load(&path, now, wall() - LASTS).len(), 0, "of a time to come: the clock was wrong");
        save(&path, &network(50), Some(&known(Rung::Pair, now)), now, then + LASTS);
        assert_eq!(read(&path).unwrap().len(), 1, "what is over leaves the file");
    }

    #[test]
    fn a_bad_file_is_no_hindrance_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("carriers.json");
        let entry =
            r#"{"relay":"r","from":[null,null],"rung":"smoke","since":1800000000,"betterAt":99999999999999}"#;
        let long = " ".repeat(MAX_FILE as usize + 1);
        for bad in ["", "{", "[]", r#"{"networks":7}"#, &long, &format!(r#"{{"networks":[{entry}]}}"#)] {
            fs::write(&path, bad).unwrap();
            assert!(load(&path, Instant::now(), wall()).is_empty(), "{bad:.40}");
        }
        let later = entry.replace("smoke", "pair").replace("\"relay\"", "\"idle\":9,\"relay\"");
        fs::write(&path, format!(r#"{{"networks":[{later}],"more":1}}"#)).unwrap();
        let found = load(&path, Instant::now(), wall());
        let found = found.values().next().expect("fields of a newer version are passed over");
        assert!(found.better_at <= Instant::now() + 2 * BETTER_AFTER);
        fs::write(&path, "{").unwrap();
        Memory::kept(path.clone()).note(network(1), Rung::Pair, Instant::now(), 0);
        assert!(Memory::kept(path).of_an_earlier_run(&network(1)).is_some());
        // A folder that is not there is not made.
        let nowhere = folder.path().join("not/there");
        let memory = Memory::kept(nowhere.clone());
        memory.note(network(1), Rung::Pair, Instant::now(), 0);
        assert!(memory.known(&network(1), Instant::now()).is_some() && !nowhere.exists());
    }
}
