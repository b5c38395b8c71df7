//! The agent's program. See `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    towline_agent::cli::main()
}
