//! `towline completion`.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, ValueEnum};
use towline_tunnel::fault::{Fault, Report};

use super::{Cli, say};

/// Arguments of `towline completion`.
#[derive(Args, Clone, Debug)]
pub struct CompletionArguments {
    /// The shell: `source <(towline completion bash)`, `source <(towline completion zsh)`, `towline completion fish | source`.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn execute(arguments: &CompletionArguments) -> Result<ExitCode, Report> {
    say(script(arguments.shell)?.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> Result<String, Report> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "towline", &mut text);
    String::from_utf8(text).map_err(|error| Report::caused_by(Fault::Internal, "a completion script", error))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn each_shell_is_told_of_each_command() {
        for shell in Shell::value_variants() {
            let script = script(*shell).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell:?}: {}", command.get_name());
            }
            assert!(script.contains("cluster-token-file"), "{shell:?}");
        }
    }

    /// The whole way: what bash offers after `towline pro`.
    #[test]
    fn bash_completes() {
        let ask =
            "COMP_WORDS=(towline pro); COMP_CWORD=1; _towline towline pro towline; echo \"${COMPREPLY[@]}\"";
        let script = format!("{}\n{ask}", script(Shell::Bash).unwrap());
        let output = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "proxy", "{output:?}");
    }
}
