//! `rollcall completions`: scripts for shells.

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

use crate::exit::Failure;

/// Arguments of `rollcall completions`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  rollcall completions bash > /etc/bash_completion.d/rollcall
  rollcall completions zsh  > \"${fpath[1]}/_rollcall\"
  rollcall completions fish > ~/.config/fish/completions/rollcall.fish")]
pub(crate) struct CompletionsArguments {
    /// The shell
    shell: KnownShell,
}

/// The shells we say we support.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KnownShell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script of this command line on stdout.
pub(crate) fn run(arguments: &CompletionsArguments, line: Command) -> Result<(), Failure> {
    use std::io::Write;
    let script = script(arguments.shell, line);
    match std::io::stdout().write_all(&script) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::closed_pipe()),
        Err(e) => Err(Failure::failed(format!("cannot write to stdout: {e}"))),
    }
}

fn script(shell: KnownShell, mut line: Command) -> Vec<u8> {
    let shell = match shell {
        KnownShell::Bash => Shell::Bash,
        KnownShell::Zsh => Shell::Zsh,
        KnownShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut line, "rollcall", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::command::Arguments;

    #[test]
    fn every_shell_knows_the_commands() {
        for shell in [KnownShell::Bash, KnownShell::Zsh, KnownShell::Fish] {
            let script = String::from_utf8(script(shell, Arguments::command())).unwrap();
            for word in ["deregister", "drain", "bench", "linearizable"] {
                assert!(script.contains(word), "{shell:?} lacks {word}");
            }
        }
    }
}
