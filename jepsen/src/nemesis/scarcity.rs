//! Too little of the machine, and clocks that are wrong.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::deed::{Deed, Effect, Ground, Nothing, reason, start_if_ended};
use super::kind::Kind;
use crate::lab::{Cluster, ControlGroup, Controller};
use crate::seed::Seeded;

/// How long a new connection may take to be answered.
const ANSWER_MAX: Duration = Duration::from_millis(400);
/// A clock shows whole seconds.
const CLOCK_MARGIN: i64 = 1;
/// So little memory that somebody who works wants more within seconds.
const MEMORY_KILOBYTES: (u64, u64) = (64, 1_024);
/// How long a server may take to end that cannot write its log.
const END_MAX: Duration = Duration::from_secs(20);
/// Descriptors that are left to a server in any case.
const DESCRIPTORS_MIN: u64 = 8;
const DAY: i64 = 86_400;

/// Whether this cluster and machine allow such a fault; otherwise why not.
pub(super) fn is_possible(kind: Kind, cluster: &Cluster) -> Result<(), String> {
    let clocks = cluster.servers().all(|server| server.clock().is_some());
    match kind {
        Kind::Clock | Kind::ClockRate if !clocks => Err("libfaketime is not installed".into()),
        Kind::Memory if !ControlGroup::is_possible(Controller::Memory) => {
            Err("there are no control groups for memory".into())
        }
        _ => Ok(()),
    }
}

pub(super) fn begin(
    kind: Kind,
    ground: &mut Ground<'_>,
    random: &mut Seeded,
) -> anyhow::Result<Box<dyn Deed>> {
    let name = kind.name();
    let Some(id) = ground.targets(random).first().copied() else {
        return Ok(Box::new(Nothing(format!("{name}: nobody was left"))));
    };
    let server = ground.cluster.server(id);
    let pid = server.process().context("it runs")?.pid();
    let log_length = server.log_length();
    Ok(match kind {
        Kind::Starved => {
            let percent = random.between(2, 10);
            let group = ControlGroup::is_possible(Controller::Cpu)
                .then(|| ControlGroup::cpu(pid, percent))
                .transpose()?;
            Box::new(Starved {
                id,
                percent,
                group,
                stops: 0,
            })
        }
        Kind::Memory => {
            let kilobytes = random.between(MEMORY_KILOBYTES.0, MEMORY_KILOBYTES.1);
            let group = ControlGroup::memory(pid, kilobytes << 10)?;
            Box::new(LittleMemory { id, kilobytes, group })
        }
        Kind::Descriptors => Box::new(FewDescriptors::begin(id, pid, log_length, random)?),
        Kind::Clock => {
            let seconds = i64::try_from(random.below(7_200))? - 3_600;
            Box::new(WrongClock::begin(id, seconds, 0, ground)?)
        }
        _ => {
            // A second gained in each, or half of one lost.
            let gained = if random.chance(0.5) { 1_000 } else { -500 };
            Box::new(WrongClock::begin(id, 0, gained, ground)?)
        }
    })
}

#[derive(Debug)]
struct Starved {
    id: u64,
    percent: u64,
    /// Without control groups it is stopped most of the time instead.
    group: Option<ControlGroup>,
    stops: u64,
}

#[tonic::async_trait]
impl Deed for Starved {
    fn what(&self) -> String {
        format!("starved: {}, {} % of a processor", self.id, self.percent)
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        let server = ground.cluster.server(self.id);
        if self.group.is_none() && server.is_running() {
            // Runs for about as long as it takes to come here again, once in ten times.
            if self.stops.is_multiple_of(10) && server.is_paused() {
                server.resume()?;
            } else if !server.is_paused() {
                server.pause().await?;
            }
            self.stops += 1;
        }
        Ok(())
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let server = ground.cluster.server(self.id);
        let Some(group) = self.group.take() else {
            if server.is_running() && server.is_paused() {
                server.resume()?;
            }
            let seen = "it was stopped most of the time, by signals";
            return Ok(Some(Effect::seen(self.stops > 1, seen)));
        };
        let waited = group.throttled();
        let seen = format!("it waited {waited} times for its share");
        Ok(Some(Effect::seen(waited > 0, seen)))
    }
}

#[derive(Debug)]
struct LittleMemory {
    id: u64,
    kilobytes: u64,
    group: ControlGroup,
}

#[tonic::async_trait]
impl Deed for LittleMemory {
    fn what(&self) -> String {
        format!("memory: {}, {} kB more than it has", self.id, self.kilobytes)
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let refused = self.group.refused();
        let ended = start_if_ended(ground.cluster.server(self.id))?;
        let ended = ended.unwrap_or_else(|| "nothing".into());
        let seen = format!("there was none left {refused} times; the server ended by {ended}");
        Ok(Some(Effect::seen(refused > 0, seen)))
    }
}

#[derive(Debug)]
struct FewDescriptors {
    id: u64,
    pid: Pid,
    most: u64,
    before: Rlimit,
    unanswered: u32,
    asked_at: Instant,
    log_length: u64,
    ended_at: Option<Instant>,
}

impl FewDescriptors {
    fn begin(id: u64, pid: u32, log_length: u64, random: &mut Seeded) -> anyhow::Result<Self> {
        // Fewer than it has: those stay open, and it gets no other until it closes some.
        let open = u64::try_from(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())?;
        let most = random.between(DESCRIPTORS_MIN, open.max(DESCRIPTORS_MIN));
        let pid = Pid::from_raw(i32::try_from(pid)?).context("a process has a number")?;
        let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit {
            current: Some(most),
            maximum: hard,
        };
        let before = prlimit(Some(pid), Resource::Nofile, limit).context("limiting descriptors")?;
        Ok(Self {
            id,
            pid,
            most,
            before,
            unanswered: 0,
            asked_at: Instant::now(),
            log_length,
            ended_at: None,
        })
    }
}

#[tonic::async_trait]
impl Deed for FewDescriptors {
    fn what(&self) -> String {
        format!("descriptors: {}, {} at most", self.id, self.most)
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        if self.asked_at.elapsed() > Duration::from_secs(1) {
            let server = ground.cluster.server(self.id);
            let answered = tokio::time::timeout(ANSWER_MAX, server.status()).await;
            self.unanswered += u32::from(!matches!(answered, Ok(Ok(_))));
            self.asked_at = Instant::now();
        }
        Ok(())
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let server = ground.cluster.server(self.id);
        let running = server.is_running();
        if running {
            prlimit(Some(self.pid), Resource::Nofile, self.before).context("giving descriptors back")?;
        }
        let said = reason(&server.log_since(self.log_length)).unwrap_or_else(|| "nothing".into());
        let ended = start_if_ended(server)?;
        // A server that could not open a file of its log says so and closes, which takes it a moment.
        let since = self.ended_at.get_or_insert_with(Instant::now).elapsed();
        if said.starts_with("RC-107") && ended.is_none() && since < END_MAX {
            return Ok(None);
        }
        let ended = ended.unwrap_or_else(|| "nothing".into());
        let seen = format!(
            "{} new connections were not answered; the server ended by {ended} and said: {said}",
            self.unanswered
        );
        Ok(Some(Effect::seen(self.unanswered > 0 || !running, seen)))
    }
}

/// Ahead or behind by this much, and by so many milliseconds more with each second.
#[derive(Debug)]
struct WrongClock {
    id: u64,
    seconds: i64,
    gained_ms: i64,
    since: Instant,
    seen: Option<i64>,
}

impl WrongClock {
    fn begin(id: u64, seconds: i64, gained_ms: i64, ground: &mut Ground<'_>) -> anyhow::Result<Self> {
        let clock = Self {
            id,
            seconds,
            gained_ms,
            since: Instant::now(),
            seen: None,
        };
        clock.set(clock.offset_ms(), ground)?;
        Ok(clock)
    }

    fn offset_ms(&self) -> i64 {
        let ms = i64::try_from(self.since.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.seconds * 1_000 + ms * self.gained_ms / 1_000
    }

    fn set(&self, offset_ms: i64, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        let clock = ground.cluster.server(self.id).clock();
        clock.map_or(Ok(()), |clock| clock.set_ms(offset_ms))
    }

    /// Whether the server's clock is off as it was set. Dates of answers are made once a second and never again until
    /// that second is over: behind a clock that went back they stand still.
    fn bit(&self) -> bool {
        let Some(seen) = self.seen else { return false };
        let wanted = self.offset_ms() / 1_000;
        let elapsed = i64::try_from(self.since.elapsed().as_secs()).unwrap_or(i64::MAX);
        let stands_still = wanted < 0 && seen < 0 && seen >= wanted.max(-elapsed) - CLOCK_MARGIN;
        wanted.abs() > CLOCK_MARGIN && ((seen - wanted).abs() <= CLOCK_MARGIN || stands_still)
    }
}

#[tonic::async_trait]
impl Deed for WrongClock {
    fn what(&self) -> String {
        if self.gained_ms == 0 {
            format!("clock: {} by {} s", self.id, self.seconds)
        } else {
            let rate = if self.gained_ms > 0 { "twice" } else { "half" };
            format!("clock-rate: {} at {rate} the speed", self.id)
        }
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        if self.gained_ms != 0 && ground.has(self.id) {
            self.set(self.offset_ms(), ground)?;
        }
        Ok(())
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        if !ground.has(self.id) {
            return Ok(Some(Effect::seen(false, "the server was replaced meanwhile")));
        }
        let http = ground.cluster.server(self.id).endpoints().http.clone();
        if let Ok(Some(seen)) = tokio::time::timeout(ANSWER_MAX, clock_of(&http)).await {
            self.seen = Some(seen);
        }
        let bit = self.bit();
        self.set(0, ground)?;
        let seen = match self.seen {
            Some(seen) => format!("by its answers it was off by {seen} s"),
            None => "it was not asked in time".into(),
        };
        Ok(Some(Effect::seen(bit, seen)))
    }
}

/// How many seconds the clock of a server is ahead, by the date of an answer over HTTP; half a day at most.
async fn clock_of(http: &str) -> Option<i64> {
    let mut stream = tokio::net::TcpStream::connect(http).await.ok()?;
    let request = format!("GET /livez HTTP/1.1\r\nhost: {http}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.take(8_192).read_to_end(&mut answer).await.ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    ahead(&String::from_utf8_lossy(&answer), i64::try_from(now).ok()?)
}

/// `date: Sat, 21 Nov 2026 09:16:10 GMT`
fn ahead(answer: &str, now: i64) -> Option<i64> {
    let date = answer
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("date:"))?;
    let time = date
        .split_whitespace()
        .find(|word| word.matches(':').count() == 2)?;
    let mut parts = time.split(':').map(|part| part.parse::<i64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    let of_day = hours * 3_600 + minutes * 60 + seconds;
    Some((of_day - now % DAY + DAY + DAY / 2).rem_euclid(DAY) - DAY / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_read_off_an_answer_also_around_midnight() {
        let answer = |time: &str| format!("HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 {time} GMT\r\n\r\nok");
        let noon = 20_000 * DAY + DAY / 2;
        assert_eq!(ahead(&answer("12:00:07"), noon), Some(7));
        assert_eq!(ahead(&answer("11:00:00"), noon), Some(-3_600));
        assert_eq!(ahead(&answer("00:30:00"), 20_000 * DAY - 1_800), Some(3_600));
        assert_eq!(ahead(&answer("23:30:00"), 20_000 * DAY + 1_800), Some(-3_600));
        assert_eq!(ahead("HTTP/1.1 200 OK\r\n\r\n", noon), None);
    }
}
