//! Quotes by number, or by a word in them.

use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

const BOOK: &str = include_str!("../../data/quotes.tsv");

#[derive(Debug, Serialize)]
struct Quote {
    number: usize,
    author: &'static str,
    text: &'static str,
}

#[derive(Debug, Deserialize)]
struct Wanted {
    /// Counted round the book.
    number: Option<usize>,
    /// A word of the author's name or of the text, in any case.
    about: Option<String>,
}

pub(super) fn routes() -> Router {
    Router::new()
        .route("/quote", get(quote))
        .route("/quotes", get(search))
}

async fn quote(Query(wanted): Query<Wanted>) -> Result<Json<Quote>, StatusCode> {
    let book: Vec<Quote> = book().collect();
    let number = wanted.number.unwrap_or(0) % book.len().max(1);
    book.into_iter()
        .nth(number)
        .map(Json)
        .ok_or(StatusCode::NOT_FOUND)
}

async fn search(Query(wanted): Query<Wanted>) -> Json<Vec<Quote>> {
    let about = wanted.about.unwrap_or_default().to_lowercase();
    let speaks_of = |quote: &Quote| {
        format!("{} {}", quote.author, quote.text)
            .to_lowercase()
            .contains(&about)
    };
    Json(book().filter(speaks_of).collect())
}

fn book() -> impl Iterator<Item = Quote> {
    let entries = BOOK.lines().filter_map(|line| line.split_once('\t'));
    entries
        .enumerate()
        .map(|(number, (author, text))| Quote { number, author, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_book_is_a_quote() {
        assert_eq!(book().count(), BOOK.lines().count());
        assert!(book().all(|quote| !quote.author.is_empty() && quote.text.len() > 10));
    }
}
