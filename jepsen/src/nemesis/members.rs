//! Members that leave for good, and new ones in their place.

use std::time::Instant;

use anyhow::Context;
use tokio::task::JoinHandle;

use super::deed::{Deed, Effect, Ground, Nothing, is_ready};
use crate::seed::Seeded;

pub(super) fn begin(ground: &mut Ground<'_>, random: &mut Seeded) -> Box<dyn Deed> {
    match ground.targets(random).first() {
        Some(first) => Box::new(Membership(Replacement::of(*first))),
        None => Box::new(Nothing("membership: nobody was left".into())),
    }
}

/// As `docs/operations.md` says: the old one is removed, its disk wiped, and a server of a new id joins at its place
/// as a learner, catches up and is promoted.
#[derive(Debug)]
pub(super) struct Replacement {
    old: u64,
    new: Option<u64>,
    step: Step,
    began: Instant,
}

#[derive(Debug)]
enum Step {
    Begin,
    Removing(JoinHandle<anyhow::Result<()>>),
    Removed,
    Adding(JoinHandle<anyhow::Result<()>>),
    Promoting(JoinHandle<anyhow::Result<()>>),
    Waiting,
    Done,
}

impl Replacement {
    pub(super) fn of(old: u64) -> Self {
        Self {
            old,
            new: None,
            step: Step::Begin,
            began: Instant::now(),
        }
    }

    /// Goes on as far as it can without waiting; `true`: the new one is a voter, and ready. A refusal (the leader was
    /// lost, others are cut off) leads to another attempt.
    pub(super) async fn step(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<bool> {
        let operator = ground.cluster.operator();
        self.step = match std::mem::replace(&mut self.step, Step::Begin) {
            Step::Begin => {
                let old = self.old;
                let lost = !ground.cluster.server(old).is_running();
                Step::Removing(tokio::spawn(async move { operator.remove(old, lost).await }))
            }
            Step::Removing(call) => match finished(call).await? {
                Call::Open(call) => Step::Removing(call),
                Call::Done => Step::Removed,
                Call::Refused => Step::Begin,
            },
            Step::Removed => {
                let server = ground.cluster.server(self.old);
                if server.is_running() {
                    server.kill9().await?;
                }
                let new = ground.cluster.replace(self.old)?;
                self.new = Some(new);
                Step::Adding(self.add(ground, new))
            }
            Step::Adding(call) => {
                let new = self.new.context("it was started")?;
                match finished(call).await? {
                    Call::Open(call) => Step::Adding(call),
                    Call::Done => Step::Promoting(promote(ground, new)),
                    Call::Refused => Step::Adding(self.add(ground, new)),
                }
            }
            Step::Promoting(call) => {
                let new = self.new.context("it was started")?;
                match finished(call).await? {
                    Call::Open(call) => Step::Promoting(call),
                    Call::Done => Step::Waiting,
                    Call::Refused => Step::Promoting(promote(ground, new)),
                }
            }
            Step::Waiting => {
                let new = self.new.context("it was started")?;
                if is_ready(ground.cluster.server(new)).await {
                    Step::Done
                } else {
                    Step::Waiting
                }
            }
            Step::Done => Step::Done,
        };
        Ok(matches!(self.step, Step::Done))
    }

    fn add(&self, ground: &mut Ground<'_>, new: u64) -> JoinHandle<anyhow::Result<()>> {
        let operator = ground.cluster.operator();
        let endpoints = ground.cluster.server(new).endpoints().clone();
        tokio::spawn(async move { operator.add_learner(new, endpoints).await })
    }

    pub(super) fn seen(&self) -> String {
        format!(
            "server {} was removed, {} took its place as a voter after {:.1?}",
            self.old,
            self.new.unwrap_or(0),
            self.began.elapsed()
        )
    }
}

fn promote(ground: &mut Ground<'_>, new: u64) -> JoinHandle<anyhow::Result<()>> {
    let operator = ground.cluster.operator();
    tokio::spawn(async move { operator.promote(new).await })
}

pub(super) enum Call {
    Open(JoinHandle<anyhow::Result<()>>),
    Done,
    Refused,
}

pub(super) async fn finished(call: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<Call> {
    if !call.is_finished() {
        return Ok(Call::Open(call));
    }
    Ok(match call.await? {
        Ok(()) => Call::Done,
        Err(_) => Call::Refused,
    })
}

#[derive(Debug)]
struct Membership(Replacement);

#[tonic::async_trait]
impl Deed for Membership {
    fn what(&self) -> String {
        format!("membership: {} is replaced", self.0.old)
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        self.0.step(ground).await.map(drop)
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let done = self.0.step(ground).await?;
        Ok(done.then(|| Effect::seen(true, self.0.seen())))
    }
}
