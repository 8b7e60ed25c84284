//! The promises, what was measured of each, and whether it held.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

/// One promise and what became of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Promise {
    pub(crate) promise: String,
    pub(crate) measured: String,
    pub(crate) wanted: String,
    pub(crate) kept: bool,
}

/// Promises and further figures, in the order in which they were found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Verdict {
    pub(crate) promises: Vec<Promise>,
    pub(crate) figures: Vec<(String, Value)>,
}

impl Verdict {
    pub(crate) fn promise(
        &mut self,
        promise: impl Into<String>,
        measured: impl Into<String>,
        wanted: impl Into<String>,
        kept: bool,
    ) {
        let (promise, measured, wanted) = (promise.into(), measured.into(), wanted.into());
        self.promises.push(Promise {
            promise,
            measured,
            wanted,
            kept,
        });
    }

    pub(crate) fn figure(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.figures.push((name.into(), value.into()));
    }

    pub(crate) fn all_kept(&self) -> bool {
        self.promises.iter().all(|promise| promise.kept)
    }

    /// For people.
    pub(crate) fn render(&self) -> String {
        let width = |of: fn(&Promise) -> &str| {
            self.promises
                .iter()
                .map(|promise| of(promise).chars().count())
                .max()
                .unwrap_or(0)
        };
        let (promises, measured) = (width(|of| &of.promise), width(|of| &of.measured).max(8));
        let mut text = format!(
            "{:promises$}  {:measured$}  {:7}  wanted\n",
            "promise", "measured", ""
        );
        for Promise {
            promise,
            measured: found,
            wanted,
            kept,
        } in &self.promises
        {
            let mark = if *kept { "kept" } else { "BROKEN" };
            let _ = writeln!(text, "{promise:promises$}  {found:measured$}  {mark:7}  {wanted}");
        }
        text.push('\n');
        for (name, value) in &self.figures {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = writeln!(text, "{name}: {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_promise_is_enough() {
        let mut verdict = Verdict::default();
        verdict.promise("nodes wrongly removed", "0", "0", true);
        assert!(verdict.all_kept());
        verdict.promise("registrations lost", "1", "0", false);
        assert!(!verdict.all_kept());
        assert!(
            verdict
                .render()
                .contains("registrations lost     1         BROKEN   0")
        );
    }
}
