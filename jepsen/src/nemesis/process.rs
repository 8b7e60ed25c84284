//! Pauses, kills, restarts, and leadership that moves.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::deed::{Deed, Effect, Ground, Nothing, is_ready, start_if_ended};
use super::kind::Kind;
use crate::seed::Seeded;

/// How long a server may take to end in good order.
const STOP_MAX: Duration = Duration::from_secs(30);
/// How long whoever watches over a server waits before it starts it again.
const RESTART_AFTER: Duration = Duration::from_millis(500);

pub(super) async fn begin(
    kind: Kind,
    ground: &mut Ground<'_>,
    random: &mut Seeded,
) -> anyhow::Result<Box<dyn Deed>> {
    let name = kind.name();
    let targets = ground.targets(random);
    let Some(first) = targets.first().copied() else {
        return Ok(Box::new(Nothing(format!("{name}: nobody was left"))));
    };
    Ok(match kind {
        Kind::Pause => {
            ground.cluster.server(first).pause().await?;
            Box::new(Paused {
                id: first,
                since: Instant::now(),
            })
        }
        Kind::Kill | Kind::KillAll => {
            let victims = if kind == Kind::Kill { vec![first] } else { targets };
            for id in &victims {
                ground.cluster.server(*id).kill9().await?;
            }
            Box::new(Killed { name, victims })
        }
        Kind::Transfer => {
            let to = targets
                .iter()
                .copied()
                .find(|id| *id != ground.leading.latest().server);
            let Some(to) = to else {
                return Ok(Box::new(Nothing(format!("{name}: nobody to transfer to"))));
            };
            let operator = ground.cluster.operator();
            Box::new(Transfer {
                to,
                led: ground.leading.latest().server,
                asked: Some(tokio::spawn(
                    async move { operator.transfer_leadership(to).await },
                )),
                refused: None,
                seen: None,
            })
        }
        _ => {
            let upgrade = kind == Kind::RollingUpgrade;
            let binary = ground
                .upgrade_to
                .filter(|_| upgrade)
                .map(std::path::Path::to_path_buf);
            Box::new(Rolling {
                name,
                binary,
                left: ground.cluster.ids().into(),
                step: Step::Next,
                done: Vec::new(),
                broken: None,
                began: Instant::now(),
            })
        }
    })
}

#[derive(Debug)]
struct Paused {
    id: u64,
    since: Instant,
}

#[tonic::async_trait]
impl Deed for Paused {
    fn what(&self) -> String {
        format!("pause: {}", self.id)
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let server = ground.cluster.server(self.id);
        // One that died meanwhile stays dead, to be found at the end.
        if server.is_running() {
            server.resume()?;
        }
        let stood = self.since.elapsed();
        Ok(Some(Effect::seen(
            true,
            format!("it stood still for {stood:.1?}"),
        )))
    }
}

#[derive(Debug)]
struct Killed {
    name: &'static str,
    victims: Vec<u64>,
}

#[tonic::async_trait]
impl Deed for Killed {
    fn what(&self) -> String {
        format!("{}: {:?}", self.name, self.victims)
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let mut seen = Vec::new();
        for id in &self.victims {
            let ended = start_if_ended(ground.cluster.server(*id))?;
            seen.push(format!("{id} ended by {}", ended.unwrap_or_default()));
        }
        Ok(Some(Effect::seen(true, seen.join(", "))))
    }
}

/// One after the other: SIGTERM, its end, start, readiness.
#[derive(Debug)]
struct Rolling {
    name: &'static str,
    binary: Option<std::path::PathBuf>,
    left: VecDeque<u64>,
    step: Step,
    done: Vec<u64>,
    broken: Option<String>,
    began: Instant,
}

#[derive(Debug)]
enum Step {
    Next,
    Stopping { id: u64, since: Instant },
    Starting { id: u64, tried: Instant },
}

impl Rolling {
    async fn step(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        match self.step {
            Step::Next => {
                let Some(id) = self.left.pop_front() else {
                    return Ok(());
                };
                if !ground.has(id) || !ground.cluster.server(id).is_running() {
                    return Ok(());
                }
                let server = ground.cluster.server(id);
                // One that was started a moment ago does not listen to signals yet.
                if is_ready(server).await {
                    server.process().context("it runs")?.terminate()?;
                    let since = Instant::now();
                    self.step = Step::Stopping { id, since };
                } else {
                    self.left.push_front(id);
                }
            }
            Step::Stopping { id, since } => {
                let server = ground.cluster.server(id);
                let ended = server.process().and_then(|process| process.exit_status());
                let Some(status) = ended else {
                    if since.elapsed() > STOP_MAX && self.broken.is_none() {
                        self.broken = Some(format!("server {id} still ran {STOP_MAX:?} after SIGTERM"));
                    }
                    return Ok(());
                };
                if !status.success() {
                    self.broken = Some(format!("server {id} ended with {status} after SIGTERM"));
                }
                if let Some(binary) = &self.binary {
                    server.install(binary);
                }
                server.start()?;
                let tried = Instant::now();
                self.step = Step::Starting { id, tried };
            }
            Step::Starting { id, tried } => {
                let server = ground.cluster.server(id);
                if !server.is_running() {
                    // A disk without room, say: whoever watches over it tries again.
                    if tried.elapsed() > RESTART_AFTER {
                        server.start()?;
                        let tried = Instant::now();
                        self.step = Step::Starting { id, tried };
                    }
                } else if is_ready(server).await {
                    self.done.push(id);
                    self.step = Step::Next;
                }
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.left.is_empty() && matches!(self.step, Step::Next)
    }
}

#[tonic::async_trait]
impl Deed for Rolling {
    fn what(&self) -> String {
        match &self.binary {
            Some(binary) => format!("{}: to {}", self.name, binary.display()),
            None => self.name.into(),
        }
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        self.step(ground).await
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        self.step(ground).await?;
        if !self.is_over() {
            return Ok(None);
        }
        if let Some(broken) = self.broken.take() {
            return Ok(Some(Effect::broken(broken)));
        }
        Ok(Some(Effect::seen(
            !self.done.is_empty(),
            format!(
                "{:?} ended in good order and came back, in {:.1?}",
                self.done,
                self.began.elapsed()
            ),
        )))
    }
}

#[derive(Debug)]
struct Transfer {
    to: u64,
    led: u64,
    asked: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
    refused: Option<String>,
    /// Who led after the first change.
    seen: Option<u64>,
}

#[tonic::async_trait]
impl Deed for Transfer {
    fn what(&self) -> String {
        format!("transfer: to {}", self.to)
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        let latest = ground.leading.latest();
        if latest.server != self.led {
            self.seen.get_or_insert(latest.server);
        }
        if let Some(asked) = self.asked.take_if(|asked| asked.is_finished()) {
            self.refused = asked.await?.err().map(|refused| format!("{refused:#}"));
        }
        Ok(())
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        self.tend(ground).await?;
        if let Some(asked) = &self.asked {
            asked.abort();
        }
        let moved = self.seen == Some(self.to);
        let answer = match (&self.asked, &self.refused) {
            (Some(_), _) => "no answer".into(),
            (None, Some(refused)) => format!("refused: {refused}"),
            (None, None) => "granted".to_owned(),
        };
        let led = self
            .seen
            .map_or(String::new(), |seen| format!("; then {seen} led"));
        Ok(Some(Effect::seen(moved, format!("{answer}{led}"))))
    }
}
