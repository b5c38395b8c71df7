//! What each fuzz target does with its bytes. A target panics where something is wrong.
//!
//! The same functions run over seeds and their mutations as ordinary tests (`tunnel-core/tests/fuzz_slice.rs`
//! includes this file), and for as long as one likes under libFuzzer (`cargo xtask soak fuzz`).

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use towline_tunnel::{ids::ClusterId, keys::SigningKey};

pub mod control;
pub mod enrolment;
pub mod frame;
pub mod head;
pub mod mux;
pub mod open;
pub mod resume;
pub mod role;
mod script;
pub mod session;
#[path = "../../tunnel-core/tests/sim/mod.rs"]
mod sim;
pub mod streams;
pub mod ticket;
pub mod websocket;

/// The cluster that signed things are for.
fn cluster() -> ClusterId {
    ClusterId::from_bytes([2; 32])
}

/// When signed things are looked at.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Whose signature counts.
fn signer() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(SigningKey::generate)
}

/// Called by a target before libFuzzer reads its corpus: writes the target's seeds to the folder that `TOWLINE_SEEDS`
/// names, if it does.
///
/// # Panics
/// If the folder can't be written to.
pub fn begin(name: &str) {
    for target in TARGETS.iter().filter(|target| target.name == name) {
        sow(&(target.seeds)());
    }
}

/// Writes seeds as [`begin`] does, for a target that is not listed here.
///
/// # Panics
/// If the folder can't be written to.
pub fn sow(seeds: &[Vec<u8>]) {
    let Some(folder) = std::env::var_os("TOWLINE_SEEDS").map(std::path::PathBuf::from) else { return };
    for (number, seed) in seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number:02}")), seed).expect("the seeds can be written");
    }
}

/// One target: its name, what it does with bytes, and bytes to begin from.
pub struct Target {
    /// The binary's name.
    pub name: &'static str,
    /// Panics at a finding.
    pub run: fn(&[u8]),
    /// Inputs that lead deep into the decoder.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frame::run, seeds: frame::seeds },
    Target { name: "open", run: open::run, seeds: open::seeds },
    Target { name: "mux", run: mux::run, seeds: mux::seeds },
    Target { name: "streams", run: streams::run, seeds: streams::seeds },
    Target { name: "resume", run: resume::run, seeds: resume::seeds },
    Target { name: "session", run: session::run, seeds: session::seeds },
    Target { name: "control", run: control::run, seeds: control::seeds },
    Target { name: "ticket", run: ticket::run, seeds: ticket::seeds },
    Target { name: "role", run: role::run, seeds: role::seeds },
    Target { name: "enrolment", run: enrolment::run, seeds: enrolment::seeds },
    Target { name: "head", run: head::run, seeds: head::seeds },
    Target { name: "websocket", run: websocket::run, seeds: websocket::seeds },
];
