//! Power, disks, and damage to what is on them.

use std::time::Instant;

use anyhow::Context;

use super::damage::{Damage, Wound};
use super::deed::{Deed, Effect, Ground, Nothing, reason, start_if_ended};
use super::kind::Kind;
use super::sync_errors::SyncErrors;
use crate::lab::{Cluster, Disk};
use crate::seed::Seeded;

/// Whether this cluster's disks allow such a fault; otherwise why not.
pub(super) fn is_possible(kind: Kind, cluster: &Cluster) -> Result<(), String> {
    match kind {
        Kind::TornTail | Kind::LostTail | Kind::BitRot => Ok(()),
        Kind::SyncErrors => SyncErrors::is_possible(),
        _ => {
            for server in cluster.servers() {
                let disk = server.disk().ok_or("servers have no disks of their own")?;
                if kind != Kind::FullDisk {
                    disk.is_breakable()?;
                }
            }
            Ok(())
        }
    }
}

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
    let log_length = ground.cluster.server(first).log_length();
    Ok(match kind {
        Kind::TornTail => Box::new(Damage::begin(first, Wound::TornTail, ground, random).await?),
        Kind::LostTail => Box::new(Damage::begin(first, Wound::LostTail, ground, random).await?),
        Kind::BitRot => Box::new(Damage::begin(first, Wound::BitRot, ground, random).await?),
        Kind::SyncErrors => Box::new(SyncErrors::begin(first, ground)?),
        Kind::FullDisk => {
            let bytes = disk(ground, first)?.fill()?;
            Box::new(Full {
                id: first,
                bytes,
                refused: false,
            })
        }
        Kind::HungDisk => {
            disk(ground, first)?.freeze()?;
            let writing = disk(ground, first)?.time_a_write();
            Box::new(Hung {
                id: first,
                writing: Some(writing),
                since: Instant::now(),
            })
        }
        Kind::DeadDisk => {
            disk(ground, first)?.cut_power()?;
            let dead = disk(ground, first)?.is_dead();
            Box::new(Dead {
                id: first,
                dead,
                log_length,
            })
        }
        _ => {
            let victims = if kind == Kind::PowerLoss {
                vec![first]
            } else {
                targets
            };
            // A machine without power says nothing any more: a sync that is under way while the file system is shut down may be
            // reported as done and be lost.
            for id in &victims {
                if ground.cluster.server(*id).is_running() {
                    ground.cluster.server(*id).pause().await?;
                }
            }
            // All at the same moment, as near as can be.
            for id in &victims {
                disk(ground, *id)?.cut_power()?;
            }
            for id in &victims {
                if ground.cluster.server(*id).is_running() {
                    ground.cluster.server(*id).kill9().await?;
                }
            }
            Box::new(Dark { name, victims })
        }
    })
}

fn disk<'a>(ground: &'a mut Ground<'_>, id: u64) -> anyhow::Result<&'a Disk> {
    ground
        .cluster
        .server(id)
        .disk()
        .context("the server has a disk of its own")
}

/// Without power, until it ends.
#[derive(Debug)]
struct Dark {
    name: &'static str,
    victims: Vec<u64>,
}

#[tonic::async_trait]
impl Deed for Dark {
    fn what(&self) -> String {
        format!("{}: {:?}", self.name, self.victims)
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let mut lost = 0;
        for id in &self.victims {
            lost += usize::from(disk(ground, *id)?.restore_power()?);
        }
        for id in &self.victims {
            ground.cluster.server(*id).start()?;
        }
        let seen = format!(
            "on {lost} of {} disks what was not synced was gone",
            self.victims.len()
        );
        Ok(Some(Effect::seen(lost > 0, seen)))
    }
}

/// Answers everything with an error while the server runs on, if it does.
#[derive(Debug)]
struct Dead {
    id: u64,
    dead: bool,
    log_length: u64,
}

#[tonic::async_trait]
impl Deed for Dead {
    fn what(&self) -> String {
        format!("dead-disk: {}", self.id)
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let server = ground.cluster.server(self.id);
        let said = reason(&server.log_since(self.log_length));
        let ended = server.process().and_then(|process| process.exit_status());
        if ended.is_none() {
            server.kill9().await?;
        }
        let last = server.log_tail(1);
        disk(ground, self.id)?.restore_power()?;
        ground.cluster.server(self.id).start()?;
        Ok(Some(match (ended, said) {
            (None, _) => Effect::seen(self.dead, "writes failed; the server ran on"),
            (Some(status), Some(said)) if status.code().is_some() => {
                Effect::seen(self.dead, format!("writes failed; it ended and said: {said}"))
            }
            // An operator must learn that it is the disk.
            (Some(status), _) => Effect::broken(format!(
                "on a dead disk server {} ended by {status} without a reason, after: {last}",
                self.id
            )),
        }))
    }
}

/// Everything that writes waits.
#[derive(Debug)]
struct Hung {
    id: u64,
    writing: Option<std::thread::JoinHandle<std::time::Duration>>,
    since: Instant,
}

#[tonic::async_trait]
impl Deed for Hung {
    fn what(&self) -> String {
        format!("hung-disk: {}", self.id)
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let lasted = self.since.elapsed();
        disk(ground, self.id)?.thaw()?;
        let waited = match self.writing.take() {
            // It ends with the hanging.
            Some(writing) => tokio::task::spawn_blocking(|| writing.join())
                .await?
                .unwrap_or_default(),
            None => std::time::Duration::ZERO,
        };
        let ended = start_if_ended(ground.cluster.server(self.id))?;
        let ended = ended.map_or(String::new(), |how| format!("; the server had ended by {how}"));
        Ok(Some(Effect::seen(
            waited >= lasted / 2,
            format!("a write of the lab's own waited for {waited:.1?}{ended}"),
        )))
    }
}

/// No room, until the balloon is taken away.
#[derive(Debug)]
struct Full {
    id: u64,
    bytes: usize,
    refused: bool,
}

#[tonic::async_trait]
impl Deed for Full {
    fn what(&self) -> String {
        format!("full-disk: {}, {} bytes taken", self.id, self.bytes)
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        if !self.refused {
            let server = ground.cluster.server(self.id);
            let asked = tokio::time::timeout(std::time::Duration::from_millis(300), server.status()).await;
            self.refused = matches!(asked, Ok(Ok(status)) if status.disk_full);
        }
        Ok(())
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        disk(ground, self.id)?.free()?;
        let server = ground.cluster.server(self.id);
        let said = if self.refused {
            "it said so"
        } else {
            "it had not said so"
        };
        // A server that found no room when it was started has said so and ended: whoever watches over it starts it
        // again when there is room. One that was killed is not started here.
        let code = server.process().and_then(|process| process.exit_status());
        let code = code.and_then(|status| status.code());
        let Some(code) = code else {
            return Ok(Some(Effect::seen(self.refused, said)));
        };
        let why = reason(&server.log_tail(5)).unwrap_or_else(|| "nothing".into());
        server.start()?;
        let ended = format!("server {} ended with code {code} and said: {why}", self.id);
        Ok(Some(if why.starts_with("RC-111") {
            Effect::seen(true, ended)
        } else {
            Effect::broken(ended)
        }))
    }
}
