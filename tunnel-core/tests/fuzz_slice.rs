//! A slice of the fuzzing: every target over its seeds and thousands of their mutations, the same each time.
//!
//! `cargo xtask soak fuzz` runs the same targets for as long as one likes, with a fuzzer that looks at coverage.

#[path = "../../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "the fuzz crate's library, of which this test uses the targets")]
mod targets;

use targets::{TARGETS, Target};

/// A small random generator (xorshift64*): the same inputs each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// A seed with a few of its bytes changed, cut, doubled or taken from another; or bytes at random.
fn input(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    if random.below(16) == 0 {
        let length = random.below(300);
        return random.bytes(length);
    }
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        match random.below(7) {
            0 if !input.is_empty() => input[at] = random.next() as u8,
            1 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            2 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => input.truncate(at),
            4 => {
                let length = random.below(9);
                input.splice(at..at, random.bytes(length));
            }
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                input.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let end = (at + random.below(16)).min(input.len());
                input.drain(at..end);
            }
        }
    }
    input
}

fn slice(name: &str, inputs: usize) {
    let target: &Target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    let seeds = (target.seeds)();
    for seed in &seeds {
        (target.run)(seed);
    }
    let mut random = Random(0x746f_776c_696e_6531);
    for _ in 0..inputs {
        (target.run)(&input(&seeds, &mut random));
    }
}

#[test]
fn every_target_is_in_the_slice() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(
        names,
        [
            "frame",
            "open",
            "mux",
            "streams",
            "resume",
            "session",
            "control",
            "ticket",
            "role",
            "enrolment",
            "head",
            "websocket"
        ]
    );
}

#[test]
fn frames_survive_any_bytes() {
    slice("frame", 60_000);
    slice("open", 60_000);
}

#[test]
fn state_machines_survive_any_peer_and_any_caller() {
    slice("mux", 60_000);
}

#[test]
fn honest_streams_keep_their_bytes_in_any_order_of_events() {
    slice("streams", 5_000);
}

#[test]
fn t50_no_relay_takes_a_stream_up_or_has_it_taken_up() {
    let often: usize = targets::resume::seeds().iter().map(|seed| targets::resume::play(seed)).sum();
    assert!(often > 20, "streams were taken up {often} times: the seeds don't lead there");
    slice("resume", 5_000);
}

#[test]
fn messages_survive_any_bytes() {
    slice("session", 60_000);
    slice("control", 60_000);
}

#[test]
fn t35_the_websocket_carrier_survives_any_bytes() {
    slice("websocket", 60_000);
}

#[test]
fn tickets_and_enrolment_tokens_survive_any_bytes() {
    slice("ticket", 10_000);
    slice("enrolment", 60_000);
}

#[test]
fn role_documents_survive_any_bytes() {
    slice("role", 10_000);
}

#[test]
fn t11_what_the_head_guard_passes_is_read_the_same_by_httparse() {
    slice("head", 60_000);
}
