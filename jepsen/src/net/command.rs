//! Running the system's own tools.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Runs a program to its end with `input` on its standard input; gives back what it printed.
///
/// # Errors
/// It is not installed, or it failed; its complaint is in the message.
pub(crate) fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}; is it installed?"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early does not read to the end; its exit status says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let arguments: Vec<_> = arguments
            .iter()
            .map(|one| one.as_ref().to_string_lossy())
            .collect();
        bail!(
            "{program} {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_complaints_come_back() {
        assert_eq!(run::<&str>("cat", &[], "hello").unwrap(), "hello");
        let failed = run("ls", &["/no/such/folder"], "").unwrap_err().to_string();
        assert!(failed.starts_with("ls /no/such/folder failed: "), "{failed}");
    }
}
