//! A cluster that grows by two servers, then loses two of its old ones, the leader first; and the same way back, so
//! that clients find servers again where they know them.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::deed::{Deed, Effect, Ground, is_ready};
use super::members::{Call, finished};

/// By how many servers.
pub(crate) const BY: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// A new server, under a new id, on a host that is free.
    Join,
    /// Whoever leads, if it is one of these; otherwise the first of them.
    Leave(Whom),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// Those that were there when it began.
    Old,
    /// Those that came first.
    Helpers,
}

#[derive(Debug)]
enum Step {
    Next,
    Adding(u64, JoinHandle<anyhow::Result<()>>),
    Promoting(u64, JoinHandle<anyhow::Result<()>>),
    Waiting(u64),
    Removing(u64, JoinHandle<anyhow::Result<()>>),
}

#[derive(Debug)]
pub(super) struct Resize {
    old: Vec<u64>,
    helpers: Vec<u64>,
    orders: VecDeque<Order>,
    order: Order,
    step: Step,
    done: Vec<String>,
    /// Servers that had ended by themselves when they were to go: nobody starts them any more.
    crashed: Vec<String>,
    began: Instant,
}

pub(super) fn begin(ground: &Ground<'_>) -> Box<dyn Deed> {
    let by = usize::try_from(BY).unwrap_or(0);
    let phases = [
        Order::Join,
        Order::Leave(Whom::Old),
        Order::Join,
        Order::Leave(Whom::Helpers),
    ];
    Box::new(Resize {
        old: ground.cluster.ids(),
        helpers: Vec::new(),
        orders: phases.into_iter().flat_map(|order| [order].repeat(by)).collect(),
        order: Order::Join,
        step: Step::Next,
        done: Vec::new(),
        crashed: Vec::new(),
        began: Instant::now(),
    })
}

impl Resize {
    /// Goes on as far as it can without waiting; `true`: it is over. A refusal leads to another attempt.
    async fn step(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<bool> {
        self.step = match std::mem::replace(&mut self.step, Step::Next) {
            Step::Next => {
                let Some(order) = self.orders.pop_front() else {
                    return Ok(true);
                };
                self.order = order;
                self.begin(ground)?
            }
            Step::Adding(id, call) => match finished(call).await? {
                Call::Open(call) => Step::Adding(id, call),
                Call::Done => Step::Promoting(id, promote(ground, id)),
                Call::Refused => Step::Adding(id, add(ground, id)),
            },
            Step::Promoting(id, call) => match finished(call).await? {
                Call::Open(call) => Step::Promoting(id, call),
                Call::Done => Step::Waiting(id),
                Call::Refused => Step::Promoting(id, promote(ground, id)),
            },
            Step::Waiting(id) if is_ready(ground.cluster.server(id)).await => {
                self.done.push(format!("{id} came"));
                Step::Next
            }
            Step::Waiting(id) => Step::Waiting(id),
            Step::Removing(id, call) => match finished(call).await? {
                Call::Open(call) => Step::Removing(id, call),
                Call::Done => {
                    let server = ground.cluster.server(id);
                    if !server.is_running() {
                        self.crashed.push(ended_by_itself(id, &server.log_tail(5)));
                    }
                    ground.cluster.discard(id);
                    self.done.push(format!("{id} went"));
                    Step::Next
                }
                Call::Refused => Step::Removing(id, remove(ground, id)),
            },
        };
        Ok(false)
    }

    fn begin(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Step> {
        match self.order {
            Order::Join => {
                let id = ground.cluster.start_joining()?;
                if !self.orders.contains(&Order::Leave(Whom::Old)) {
                    self.old.push(id);
                } else {
                    self.helpers.push(id);
                }
                Ok(Step::Adding(id, add(ground, id)))
            }
            Order::Leave(whom) => {
                let of = match whom {
                    Whom::Old => &mut self.old,
                    Whom::Helpers => &mut self.helpers,
                };
                let leader = ground.leading.latest().server;
                let at = of.iter().position(|id| *id == leader).unwrap_or(0);
                let id = of.remove(at);
                if id == leader {
                    self.done.push(format!("{id} led"));
                }
                Ok(Step::Removing(id, remove(ground, id)))
            }
        }
    }
}

fn add(ground: &mut Ground<'_>, id: u64) -> JoinHandle<anyhow::Result<()>> {
    let endpoints = ground.cluster.server(id).endpoints().clone();
    let operator = ground.cluster.operator();
    tokio::spawn(async move { operator.add_learner(id, endpoints).await })
}

fn promote(ground: &mut Ground<'_>, id: u64) -> JoinHandle<anyhow::Result<()>> {
    let operator = ground.cluster.operator();
    tokio::spawn(async move { operator.promote(id).await })
}

fn remove(ground: &mut Ground<'_>, id: u64) -> JoinHandle<anyhow::Result<()>> {
    let operator = ground.cluster.operator();
    let lost = !ground.cluster.server(id).is_running();
    tokio::spawn(async move { operator.remove(id, lost).await })
}

#[tonic::async_trait]
impl Deed for Resize {
    fn what(&self) -> String {
        format!("resize: {BY} more and back, twice")
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        self.step(ground).await.map(drop)
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let over = self.step(ground).await?;
        Ok(over.then(|| {
            let seen = format!("{}, in {:.1?}", self.done.join(", "), self.began.elapsed());
            effect(seen, &self.crashed)
        }))
    }
}

fn ended_by_itself(id: u64, last: &str) -> String {
    format!("server {id} had ended by itself when it was to go; its last words:\n{last}")
}

fn effect(seen: String, crashed: &[String]) -> Effect {
    match crashed {
        [] => Effect::seen(true, seen),
        crashed => Effect {
            broken: Some(crashed.join("\n")),
            ..Effect::seen(true, seen)
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_had_crashed_before_it_was_removed_is_a_broken_promise() {
        assert_eq!(effect("4 came".into(), &[]).broken, None);
        let crashed = [ended_by_itself(2, "it has a position")];
        let broken = effect("2 went".into(), &crashed).broken.unwrap();
        assert!(broken.contains("server 2 had ended by itself"), "{broken}");
    }
}
