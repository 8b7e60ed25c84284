//! What came of many seeds, a line of JSON each, so that a campaign can be cut and goes on where it was.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::findings::Findings;
use crate::options::Options;

/// A line.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// What was chosen, as on a command line.
    options: String,
    #[serde(flatten)]
    findings: Findings,
}

/// A file of results.
#[derive(Debug)]
pub struct Results {
    file: File,
    options: String,
}

impl Results {
    /// A file for the results of runs with these options, begun anew.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path, options: &Options) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self {
            file,
            options: options.arguments().join(" "),
        })
    }

    /// The file as it was left, or a new one, and what it holds. A last line that was cut off is dropped.
    ///
    /// # Errors
    /// It cannot be read, or holds results of other options.
    pub fn resume(path: &Path, options: &Options) -> anyhow::Result<(Self, Vec<Findings>)> {
        let options = options.arguments().join(" ");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        let mut found = Vec::new();
        let mut whole = 0;
        let mut reader = BufReader::new((&file).take(u64::MAX));
        let mut text = String::new();
        while reader.read_line(&mut text)? > 0 && text.ends_with('\n') {
            let number = found.len() + 1;
            let line: Line = serde_json::from_str(&text)
                .with_context(|| format!("line {number} of {}", path.display()))?;
            ensure!(
                line.options == options,
                "{} holds results of other options, {}; these are {options}",
                path.display(),
                line.options
            );
            whole += text.len() as u64;
            found.push(line.findings);
            text.clear();
        }
        file.set_len(whole)?;
        file.seek(SeekFrom::End(0))?;
        Ok((Self { file, options }, found))
    }

    /// Adds a line, and hands it to the system: it is there when the campaign is cut in the next moment.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, findings: &Findings) -> anyhow::Result<()> {
        let line = Line {
            options: self.options.clone(),
            findings: findings.clone(),
        };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).context("writing results")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_campaign_goes_on_behind_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let options = Options::default();
        let of = |seed| Findings {
            seed,
            digest: format!("{seed:016x}"),
            ..Findings::default()
        };
        let mut results = Results::create(&path, &options).unwrap();
        results.add(&of(7)).unwrap();
        results.add(&of(9)).unwrap();
        // Cut in the middle of a line.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}{}", &text[..40])).unwrap();
        let (mut results, found) = Results::resume(&path, &options).unwrap();
        assert_eq!(found, [of(7), of(9)]);
        results.add(&of(8)).unwrap();
        let (_, found) = Results::resume(&path, &options).unwrap();
        assert_eq!(found, [of(7), of(9), of(8)]);
        let other = Options {
            clients: 3,
            ..options.clone()
        };
        assert!(Results::resume(&path, &other).is_err());
        let (_, none) = Results::resume(&folder.path().join("new"), &options).unwrap();
        assert!(none.is_empty());
    }
}
