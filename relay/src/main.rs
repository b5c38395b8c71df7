//! Command line of this program: arguments, logging, runtime, exit code, and nothing else.

fn main() {}
