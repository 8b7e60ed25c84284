//! A page that a person looks at: what was done when, how the operations fared, and what the judges say.

mod page;
mod plot;

pub use page::page;
