//! Reads of what one server has applied, with the age that it claims, while others write.

use std::time::Duration;

use rollcall_proto::v1::{ErrorCode, ReadMode, ReadOptions};
use tokio::task::JoinSet;

use super::Stage;
use super::call::{Caller, Wrote, ms, options, persistent, service};
use super::door::{error, put_group};
use crate::history::{Answer, Record};
use crate::seed::Seeded;

/// The group.
pub const GROUP: &str = "ages";
const SERVICE: &str = "clock";
const NODE: &str = "hand";
const PAUSE_MAX_MS: u64 = 40;
/// What readers are ready to take; 0: anything.
const MAX_AGES_MS: [u64; 5] = [0, 50, 250, 1_000, 4_000];
/// An age that is not known.
const UNKNOWN: u64 = u64::MAX;

/// Writers and readers at work.
#[derive(Debug)]
pub struct Ages {
    tasks: JoinSet<()>,
}

impl Ages {
    /// Makes the group.
    ///
    /// # Errors
    /// No server takes it in time.
    pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
        put_group(&stage.addresses, GROUP, 10_000).await
    }

    /// Starts them.
    #[must_use]
    pub fn start(stage: &Stage) -> Self {
        let mut tasks = JoinSet::new();
        for client in 0..stage.clients.div_ceil(2) {
            let random = Seeded::fork(stage.seed, 100_000 + client);
            tasks.spawn(write(stage.clone(), client, random));
            let random = Seeded::fork(stage.seed, 101_000 + client);
            tasks.spawn(read(stage.clone(), random));
        }
        Self { tasks }
    }

    /// Waits until they have ended (they were told to stop).
    pub async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn write(stage: Stage, client: u64, mut random: Seeded) {
    let key = service(GROUP, SERVICE);
    let mut value = 0;
    while stage.goes_on() {
        let (_, address) = stage.any_server(&mut random);
        let Some(mut caller) = Caller::to(&address).await else {
            tokio::time::sleep(ms(100)).await;
            continue;
        };
        while stage.goes_on() {
            value += 1;
            let node = persistent(&key, &format!("{NODE}{client}"), value);
            let Wrote::Ok(written) = caller.register(options(), vec![node]).await else {
                break;
            };
            stage.history.record(Record::Answer(Answer::Wrote {
                service: format!("{GROUP}/{SERVICE}"),
                revision: written.revision,
                time: stage.history.now(),
            }));
            tokio::time::sleep(ms(random.below(PAUSE_MAX_MS))).await;
        }
    }
}

async fn read(stage: Stage, mut random: Seeded) {
    while stage.goes_on() {
        let (server, address) = stage.any_server(&mut random);
        let Some(mut caller) = Caller::to(&address).await else {
            tokio::time::sleep(ms(100)).await;
            continue;
        };
        // Long enough to be there when the server is cut off.
        for _ in 0..random.between(20, 200) {
            if !stage.goes_on() {
                return;
            }
            let max_age_ms = random.pick(&MAX_AGES_MS).copied().unwrap_or(0);
            let options = ReadOptions {
                mode: ReadMode::Local.into(),
                max_age_ms,
                ..ReadOptions::default()
            };
            let sent = stage.history.now();
            let answer = match caller.view(service(GROUP, SERVICE), options).await {
                // A service that is not there yet says nothing of its revision.
                Ok((header, _)) if header.revision == 0 => break,
                Ok((header, _)) => {
                    let age = Some(header.age_ms)
                        .filter(|age| *age != UNKNOWN)
                        .map(Duration::from_millis);
                    Some((header.revision, age))
                }
                Err(status) if error(&status).is_some_and(|error| error.code() == ErrorCode::TooStale) => {
                    None
                }
                Err(_) => break,
            };
            stage.history.record(Record::Answer(Answer::Local {
                server,
                sent,
                end: stage.history.now(),
                max_age: (max_age_ms > 0).then(|| ms(max_age_ms)),
                answer,
            }));
            tokio::time::sleep(ms(random.below(PAUSE_MAX_MS))).await;
        }
    }
}
