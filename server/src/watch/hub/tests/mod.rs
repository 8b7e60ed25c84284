//! The hub against a real directory, with clients that believe only what they are sent.

mod client;
mod fanout;
mod guards;
mod histories;
mod pace;
mod round;
mod storm;
mod streams;
mod subscriptions;
mod world;
