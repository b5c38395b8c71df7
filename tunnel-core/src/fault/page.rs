//! `docs/errors.md`, made from the table.

use std::fmt::Write as _;

use super::{Fault, Hop, Outcome};

const OUTCOMES: [(Outcome, &str); 12] = [
    (Outcome::Usage, "wrong flags, files or values"),
    (Outcome::BadRequest, "the request is malformed or forbidden by rule"),
    (Outcome::Unreachable, "the relay can't be reached"),
    (Outcome::Untrusted, "a peer is not who it must be"),
    (Outcome::Unauthenticated, "who you are was not accepted"),
    (Outcome::Forbidden, "you are known, and may not"),
    (Outcome::NotFound, "there is no such cluster"),
    (Outcome::Unavailable, "it exists, and is away"),
    (Outcome::TooMany, "a limit was reached"),
    (Outcome::Cut, "the connection ended before the answer did"),
    (Outcome::Timeout, "a wait reached its deadline"),
    (Outcome::Internal, "a bug, or a peer that breaks the protocol"),
];

/// The whole text of `docs/errors.md`. A test compares it with the file in the repository.
pub fn errors_page() -> String {
    let mut page = String::from(
        "# Errors\n\nMade from the table in `tunnel-core/src/fault/table.rs` by `cargo xtask docs`; do not edit by hand.\n\n\
         A message names the hop, the fault, what was seen, its code and the remedy:\n\n\
         > towline relay: the cluster is not known (edge-7) [TL-REL-004]. To fix (you): …\n\n\
         Over the tunnel it is a Kubernetes `Status` object, whose `details.causes[0].reason` is the code.\n\n\
         ## Exit codes\n\n| exit | HTTP | meaning |\n|---|---|---|\n| 0 | | success |\n",
    );
    for (outcome, meaning) in OUTCOMES {
        let _ = writeln!(page, "| {} | {} | {meaning} |", outcome.exit_code(), outcome.http_status());
    }
    page.push_str(
        "\n`towline run` otherwise ends with the exit code of the command that it ran; as shells do, with 127 where there is no such \
         command, and with 126 where it can't be run.\n\n## Faults\n",
    );
    for fault in Fault::ALL {
        let _ = write!(
            page,
            "\n### {}: {}\n\n- **Where**: {}\n- **Why**: {}\n- **What to do**: {}\n- **Who**: {}\n- **Exit code** {}, **HTTP** {}\n",
            fault.code(),
            fault.title(),
            match fault.hop() {
                Hop::Here => "the program that says so (`towline`, `towline-relay` or `towline-agent`)",
                hop => hop.name(),
            },
            fault.cause(),
            fault.remedy(),
            fault.who().name(),
            fault.outcome().exit_code(),
            fault.outcome().http_status(),
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_the_repository_is_the_one_the_table_makes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let on_disk = std::fs::read_to_string(path).unwrap_or_default();
        if std::env::var_os("TOWLINE_BLESS").is_some() {
            std::fs::write(path, errors_page()).unwrap();
            return;
        }
        assert!(on_disk == errors_page(), "docs/errors.md is stale: run `cargo xtask docs`");
    }
}
