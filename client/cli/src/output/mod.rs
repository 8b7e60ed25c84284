//! What goes to stdout: [`table`]s for people, JSON of [`record`]s for programs.

pub(crate) mod guard;
pub(crate) mod record;
pub(crate) mod table;

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::exit::Failure;
use crate::flags::{Form, Printing};
use crate::talk::say;
use table::{Look, Table};

/// Prints in the form that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    form: Form,
    look: Look,
}

impl Printer {
    /// From the flags, the terminal and `NO_COLOR`.
    pub(crate) fn new(printing: &Printing) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            form: printing.output,
            look: Look {
                headers: !printing.no_headers,
                wide: printing.output == Form::Wide,
                colors: std::io::stdout().is_terminal() && !no_color && !dumb,
            },
        }
    }

    /// Whether JSON was asked for.
    pub(crate) fn is_json(&self) -> bool {
        self.form == Form::Json
    }

    /// Whether every column was asked for.
    pub(crate) fn is_wide(&self) -> bool {
        self.form == Form::Wide
    }

    /// Whether colours are welcome.
    pub(crate) fn colors(&self) -> bool {
        self.look.colors
    }

    /// The answer of a read: its body as JSON, or the table made of it.
    pub(crate) fn print<B: Serialize>(&self, body: &B, table: impl FnOnce() -> Table) -> Result<(), Failure> {
        match self.form {
            Form::Json => self.json(body),
            Form::Table | Form::Wide => self.text(&table().render(self.look)),
        }
    }

    /// The answer of a write: JSON on stdout if asked for, else a sentence on stderr.
    pub(crate) fn done<B: Serialize>(
        &self,
        body: &B,
        sentence: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.form {
            Form::Json => self.json(body),
            Form::Table | Form::Wide => {
                say(format_args!("{}", sentence()));
                Ok(())
            }
        }
    }

    /// One JSON document, for people to read too.
    pub(crate) fn json<B: Serialize>(&self, body: &B) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(body)
            .map_err(|e| Failure::failed(format!("cannot write the answer as JSON: {e}")))?;
        self.text(&text)
    }

    /// One JSON document on one line, sent off at once.
    pub(crate) fn json_line<B: Serialize>(&self, body: &B) -> Result<(), Failure> {
        let text = serde_json::to_string(body)
            .map_err(|e| Failure::failed(format!("cannot write the answer as JSON: {e}")))?;
        self.text(&text)
    }

    /// A line, or lines; nothing if there is nothing to say.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        if text.is_empty() { Ok(()) } else { self.line(text) }
    }

    /// Room between two tables.
    pub(crate) fn blank_line(&self) -> Result<(), Failure> {
        self.line("")
    }

    fn line(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::closed_pipe()),
            Err(e) => Err(Failure::failed(format!("cannot write to stdout: {e}"))),
        }
    }
}
