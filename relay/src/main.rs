//! The relay's program. See `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    towline_relay::cli::main()
}
