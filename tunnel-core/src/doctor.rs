//! What is wrong between here and a cluster, and who can repair it: one engine for `towline doctor`, `towline-agent preflight`
//! and the agent that is asked from afar (`docs/doctor.md`).
//!
//! An [`Examination`] runs checks in the order of the journey, each with a deadline, and makes a [`Finding`] of each. [`Network`]
//! has the checks that all three places share: from the relay's name to its first messages. Nothing in here knows a command line
//! or a terminal, and no check sends a credential.

mod answer;
mod carriers;
mod certificate;
mod clock;
mod elsewhere;
mod examination;
mod finding;
mod frames;
mod network;
mod outer;
mod page;
mod reach;
mod step;

pub use clock::at;
pub use elsewhere::Elsewhere;
pub use examination::{Examination, Verdict};
pub use finding::{Diagnosis, Finding, Status};
pub use network::{Network, Reached};
pub use page::{Ink, conclusion, explained, line};
pub use reach::{Names, Pending, Pipe, Way};
pub use step::Step;
