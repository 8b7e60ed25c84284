//! What Rollcall does, on real services under real faults.
//!
//! `rollcall-demo run` starts three servers and ten services as processes of their own, then kills, drains and
//! pauses some of them while consumers call and writers write, and prints a timeline and a verdict.
//! `rollcall-demo service` is one of the services.

mod arguments;
mod consumer;
mod director;
mod follower;
mod http;
mod provider;
mod services;
mod stage;
mod truth;
mod verdict;
mod witness;
mod writer;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(arguments) => director::run(&arguments).await,
        Command::Service(arguments) => provider::run(arguments).await.map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failed) => {
            eprintln!("error: {failed:#}");
            ExitCode::FAILURE
        }
    }
}
