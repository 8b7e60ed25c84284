//! `rollcall man`: manual pages, made of the same text as `--help`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;

use crate::exit::Failure;

/// Arguments of `rollcall man`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  rollcall man | man -l -
  rollcall man node drain | man -l -
  rollcall man --into /usr/local/share/man/man1")]
pub(crate) struct ManArguments {
    /// The command, such as `node drain`; left out: rollcall itself
    #[arg(value_name = "COMMAND", conflicts_with = "into")]
    command: Vec<String>,
    /// Write the pages of all commands into this folder
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
}

/// Prints a page of this command line on stdout, or writes all of them.
pub(crate) fn run(arguments: &ManArguments, line: Command) -> Result<(), Failure> {
    if let Some(folder) = &arguments.into {
        return write_all(folder, line);
    }
    let page = page(&arguments.command, line)?;
    match std::io::stdout().write_all(&page) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::closed_pipe()),
        Err(e) => Err(Failure::failed(format!("cannot write to stdout: {e}"))),
    }
}

fn write_all(folder: &Path, line: Command) -> Result<(), Failure> {
    clap_mangen::generate_to(line, folder)
        .map_err(|e| Failure::failed(format!("cannot write into {}: {e}", folder.display())))
}

fn page(words: &[String], line: Command) -> Result<Vec<u8>, Failure> {
    let mut root = line.disable_help_subcommand(true);
    root.build();
    let mut command = &root;
    for word in words {
        command = command
            .find_subcommand(word)
            .ok_or_else(|| Failure::usage(format!("there is no command {:?}", words.join(" "))))?;
    }
    let mut page = Vec::new();
    Man::new(command.clone())
        .render(&mut page)
        .map_err(|e| Failure::failed(format!("cannot make the page: {e}")))?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::command::Arguments;

    fn text(words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        String::from_utf8(page(&words, Arguments::command()).unwrap()).unwrap()
    }

    #[test]
    fn pages_name_their_command_and_its_options() {
        assert!(text(&[]).contains("completions"));
        let drain = text(&["node", "drain"]);
        assert!(
            drain.contains("wait") && drain.contains("acknowledged"),
            "{drain}"
        );
        assert!(drain.contains("drain"), "{drain}");
        let unknown = page(&["node".into(), "dance".into()], Arguments::command()).unwrap_err();
        assert!(unknown.message.contains("node dance"), "{unknown}");
    }
}
