//! Known ways in which such software has died, each as a test that fails should it come back.
//!
//! Clocks are paused: what takes hours passes at once, and what never ends fails by its deadline. Only what the kernel
//! does to small packets needs a real line (`nagle`).
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[path = "deaths/bulk.rs"]
mod bulk;
#[path = "deaths/close.rs"]
mod close;
#[path = "deaths/half_closed.rs"]
mod half_closed;
#[path = "deaths/line.rs"]
mod line;
#[path = "deaths/nagle.rs"]
mod nagle;
#[path = "deaths/path.rs"]
mod path;
#[path = "deaths/pause.rs"]
mod pause;
#[path = "deaths/tiny.rs"]
mod tiny;
#[path = "deaths/typing.rs"]
mod typing;
#[path = "deaths/window.rs"]
mod window;

/// A virtual day: whatever is not over by then stands still for good.
async fn ends<T>(scene: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(24 * 3600), scene)
        .await
        .expect("it stands still for good")
}

/// A small generator whose numbers can be had again (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % sides
    }
}
