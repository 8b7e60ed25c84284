//! The text format of transcripts: commands at the margin, what they printed indented below.
//!
//! `# text` is for people and `term 2`, say, is a command. Run the tests with `UPDATE_TRANSCRIPTS=1` to write
//! what they print now, and read the difference before committing it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// One command line: a verb, places and options.
pub(crate) struct Line<'a> {
    pub(crate) verb: &'a str,
    pub(crate) places: Vec<&'a str>,
    pub(crate) options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let (options, places): (Vec<_>, Vec<_>) = words.partition(|word| word.contains('='));
        let options = options
            .into_iter()
            .filter_map(|option| option.split_once('='))
            .collect();
        Self {
            verb,
            places,
            options,
        }
    }

    pub(crate) fn number(&self, option: &str) -> Option<u64> {
        self.options
            .get(option)
            .map(|number| number.parse().expect("a number"))
    }

    pub(crate) fn duration(&self, option: &str) -> Option<Duration> {
        self.options.get(option).map(|text| duration(text))
    }
}

/// `10s`, `250ms`.
pub(crate) fn duration(text: &str) -> Duration {
    let number = |text: &str| text.parse().expect("a number of seconds or milliseconds");
    match text.strip_suffix("ms") {
        Some(milliseconds) => Duration::from_millis(number(milliseconds)),
        None => Duration::from_secs(number(text.strip_suffix('s').expect("a unit: s or ms"))),
    }
}

/// Runs every transcript of a folder, each with a fresh player.
pub(crate) fn play<P: FnMut(&Line<'_>) -> String>(folder: &str, player: impl Fn() -> P) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/transcripts")
        .join(folder);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no transcripts in {}", folder.display());
    for file in files {
        let expected = std::fs::read_to_string(&file).unwrap();
        let actual = run(&expected, player());
        if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
            std::fs::write(&file, actual).unwrap();
        } else {
            assert_same(&file, &expected, &actual);
        }
    }
}

fn run(script: &str, mut player: impl FnMut(&Line<'_>) -> String) -> String {
    let mut actual = String::new();
    for line in script.lines().filter(|line| !line.starts_with("  ")) {
        let _ = writeln!(actual, "{line}");
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        for output in player(&Line::parse(line)).lines() {
            let _ = writeln!(actual, "  {output}");
        }
    }
    actual
}

fn assert_same(file: &Path, expected: &str, actual: &str) {
    if expected == actual {
        return;
    }
    let place = expected
        .lines()
        .zip(actual.lines())
        .take_while(|(expected, actual)| expected == actual)
        .count();
    panic!(
        "{}, line {}: expected {:?}, found {:?}\nthe whole transcript as it is now:\n{actual}",
        file.display(),
        place + 1,
        expected.lines().nth(place),
        actual.lines().nth(place),
    );
}
