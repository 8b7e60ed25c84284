//! Asking before something that is hard to undo.

use std::io::{BufRead, IsTerminal, Write};

use crate::exit::Failure;

/// Ok if the person agreed, or said so beforehand with `--yes`. Without a terminal to ask on, the answer is a
/// usage failure that names the flag.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "{question} There is no terminal to ask on: say --yes to agree"
        )));
    }
    ask(question, &mut std::io::stdin().lock(), &mut std::io::stderr())
}

fn ask(question: &str, answers: &mut impl BufRead, talk: &mut impl Write) -> Result<(), Failure> {
    let mut answer = String::new();
    write!(talk, "{question} [y/N] ")
        .and_then(|()| talk.flush())
        .and_then(|()| answers.read_line(&mut answer))
        .map_err(|e| Failure::failed(format!("cannot ask: {e}")))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was done")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        for (answer, agreed) in [
            ("y\n", true),
            ("YES\n", true),
            ("\n", false),
            ("", false),
            ("no\n", false),
        ] {
            let mut talk = Vec::new();
            let done = ask("Sure?", &mut answer.as_bytes(), &mut talk);
            assert_eq!(done.is_ok(), agreed, "{answer:?}");
            assert_eq!(talk, b"Sure? [y/N] ");
        }
    }

    #[test]
    fn yes_beforehand_asks_nothing() {
        assert!(confirm("Sure?", true).is_ok());
    }
}
