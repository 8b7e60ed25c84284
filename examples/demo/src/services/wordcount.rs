//! Counts lines, words and distinct words of a posted text.

use std::collections::BTreeMap;

use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;

const TOP: usize = 5;

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Count {
    bytes: usize,
    lines: usize,
    words: usize,
    distinct: usize,
    /// The most frequent words, then in the order of the alphabet.
    top: Vec<(String, usize)>,
}

pub(super) fn routes() -> Router {
    Router::new().route("/count", post(|text: String| async move { Json(count(&text)) }))
}

fn count(text: &str) -> Count {
    let mut by_word: BTreeMap<String, usize> = BTreeMap::new();
    for word in text.split_whitespace() {
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        *by_word.entry(bare).or_default() += 1;
    }
    let words = text.split_whitespace().count();
    let distinct = by_word.len();
    let mut top: Vec<_> = by_word.into_iter().collect();
    top.sort_by(|(left, more), (right, less)| less.cmp(more).then_with(|| left.cmp(right)));
    top.truncate(TOP);
    Count {
        bytes: text.len(),
        lines: text.lines().count(),
        words,
        distinct,
        top,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_without_case_and_punctuation() {
        let counted = count("To be, or not to be.\nThat is the question");
        assert_eq!((counted.lines, counted.words, counted.distinct), (2, 10, 8));
        assert_eq!(counted.top[..2], [("be".into(), 2), ("to".into(), 2)]);
    }
}
