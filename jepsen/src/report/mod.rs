//! A page that a person looks at: what was done when, how the operations fared, and what the judges say.

mod page;
mod piece;
mod plot;
mod smallest;

pub use page::page;
