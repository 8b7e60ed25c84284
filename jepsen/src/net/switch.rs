//! The switch itself: frames in, frames out, and in between everything that a network does to them.
//!
//! Deterministic: it is told the time, and each directed link draws from a sequence of its own, so the same frames
//! at the same times under the same seed fare the same. Its queue is bounded per link, in bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::frame::{self, Mac};
use super::meter::{Count, Meter, Traffic};
use super::quality::{Protocol, Quality};
use crate::seed::Seeded;

/// Most bytes under way on one directed link.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// How long a frame waits for bandwidth at most.
const BANDWIDTH_WAIT_MAX: Duration = Duration::from_millis(200);
/// How long an overtaken frame is held back at least.
pub(super) const REORDER_HOLD: Duration = Duration::from_millis(5);

/// When TCP sends again what was not acknowledged, at the earliest.
const RESENT_AFTER: Duration = Duration::from_millis(200);

/// A protocol, and the ports from and to which something goes.
pub(super) type Ports = (Protocol, u16, u16);

/// Names a fault that was imposed, so that it can be lifted while others stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultId(u64);

#[derive(Debug)]
pub(super) struct Switch {
    macs: Vec<Mac>,
    links: Vec<Link>,
    faults: BTreeMap<FaultId, Fault>,
    faults_ever: u64,
    /// By due time; the number keeps the order of what is due at once.
    under_way: BTreeMap<(Duration, u64), UnderWay>,
    accepted: u64,
}

#[derive(Debug)]
struct Fault {
    links: Vec<(usize, usize)>,
    quality: Quality,
}

#[derive(Debug)]
struct Link {
    base: Quality,
    /// `base` and every fault on this link.
    quality: Quality,
    random: Seeded,
    /// When the last frame that keeps the order is due.
    last_due: Duration,
    /// When the bandwidth is free again.
    busy_until: Duration,
    queued_bytes: usize,
    meter: Meter,
}

#[derive(Debug)]
struct UnderWay {
    from: usize,
    to: usize,
    frame: Vec<u8>,
}

impl Switch {
    /// A switch with one port per address.
    pub(super) fn new(macs: Vec<Mac>, seed: u64) -> Self {
        let links = (0..macs.len() * macs.len()).map(|link| Link {
            base: Quality::default(),
            quality: Quality::default(),
            random: Seeded::fork(seed, link as u64 + 1),
            last_due: Duration::ZERO,
            busy_until: Duration::ZERO,
            queued_bytes: 0,
            meter: Meter::default(),
        });
        Self {
            links: links.collect(),
            macs,
            faults: BTreeMap::new(),
            faults_ever: 0,
            under_way: BTreeMap::new(),
            accepted: 0,
        }
    }

    /// Changes what a link does when no fault is on it.
    pub(super) fn set_base(&mut self, from: usize, to: usize, change: impl FnOnce(&mut Quality)) {
        let index = self.index(from, to);
        change(&mut self.links[index].base);
        self.combine();
    }

    /// Adds a fault to what these links do.
    pub(super) fn impose(&mut self, links: Vec<(usize, usize)>, quality: Quality) -> FaultId {
        self.faults_ever += 1;
        let id = FaultId(self.faults_ever);
        self.faults.insert(id, Fault { links, quality });
        self.combine();
        id
    }

    /// Takes a fault away; `false`: it was not there any more.
    pub(super) fn lift(&mut self, id: FaultId) -> bool {
        let was = self.faults.remove(&id).is_some();
        self.combine();
        was
    }

    /// Takes every fault away, and every link's own quality. What is under way arrives when it is due.
    pub(super) fn heal(&mut self) {
        self.faults.clear();
        for link in &mut self.links {
            link.base = Quality::default();
        }
        self.combine();
    }

    fn combine(&mut self) {
        for link in &mut self.links {
            link.quality = link.base.clone();
        }
        for fault in self.faults.values() {
            for (from, to) in &fault.links {
                let link = &mut self.links[from * self.macs.len() + to];
                link.quality = std::mem::take(&mut link.quality).and(&fault.quality);
            }
        }
    }

    /// Takes a frame from a port.
    pub(super) fn accept(&mut self, from: usize, mut frame: Vec<u8>, now: Duration) {
        // The lab's hosts know each other's addresses from the start: nothing needs to be told to all.
        let to = frame::destination(&frame).and_then(|mac| self.macs.iter().position(|of| *of == mac));
        let Some(to) = to.filter(|to| *to != from) else {
            return;
        };
        let index = self.index(from, to);
        let link = &mut self.links[index];
        let ports = frame::ports(&frame);
        let bytes = frame.len();
        link.meter.sent(bytes, ports);
        if link.quality.cuts(ports) {
            link.meter.traffic.cut.add(bytes);
            return;
        }
        if link.random.chance(link.quality.loss) {
            link.meter.traffic.lost.add(bytes);
            return;
        }
        if link.random.chance(link.quality.corrupt) {
            link.corrupt(&mut frame);
        }
        if link.random.chance(link.quality.duplicate) {
            link.meter.traffic.duplicated.add(bytes);
            if let Some(due) = link.schedule(bytes, now) {
                self.put(due, from, to, frame.clone());
            }
        }
        if let Some(due) = self.links[index].schedule(bytes, now) {
            self.put(due, from, to, frame);
        }
    }

    fn put(&mut self, due: Duration, from: usize, to: usize, frame: Vec<u8>) {
        self.accepted += 1;
        self.under_way
            .insert((due, self.accepted), UnderWay { from, to, frame });
    }

    /// When the next frame is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.under_way.first_key_value().map(|((due, _), _)| *due)
    }

    /// The next frame that is due, and the port it leaves by.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<(usize, usize, Vec<u8>)> {
        while self.next_due()? <= now {
            let (_, UnderWay { from, to, frame }) = self.under_way.pop_first()?;
            let index = self.index(from, to);
            let link = &mut self.links[index];
            link.queued_bytes = link.queued_bytes.saturating_sub(frame.len());
            if link.quality.cuts(frame::ports(&frame)) {
                link.meter.traffic.cut.add(frame.len());
                continue;
            }
            link.meter.traffic.delivered.add(frame.len());
            return Some((from, to, frame));
        }
        None
    }

    /// A datagram that a proxy carries: when its copies are due, none if it gets lost. [`Self::arrives`] follows for each.
    pub(super) fn datagram(
        &mut self,
        (from, to): (usize, usize),
        bytes: usize,
        ports: Ports,
        now: Duration,
    ) -> Vec<Duration> {
        let index = self.index(from, to);
        let link = &mut self.links[index];
        link.meter.sent(bytes, Some(ports));
        if link.quality.cuts(Some(ports)) {
            link.meter.traffic.cut.add(bytes);
            return Vec::new();
        }
        if link.random.chance(link.quality.loss) {
            link.meter.traffic.lost.add(bytes);
            return Vec::new();
        }
        let twice = link.random.chance(link.quality.duplicate);
        if twice {
            link.meter.traffic.duplicated.add(bytes);
        }
        let copies = 0..=usize::from(twice);
        copies.filter_map(|_| link.schedule(bytes, now)).collect()
    }

    /// Whether a copy that is due now gets there.
    pub(super) fn arrives(&mut self, (from, to): (usize, usize), bytes: usize, ports: Ports) -> bool {
        let index = self.index(from, to);
        let link = &mut self.links[index];
        link.queued_bytes = link.queued_bytes.saturating_sub(bytes);
        let cut = link.quality.cuts(Some(ports));
        let traffic = &mut link.meter.traffic;
        let count = if cut {
            &mut traffic.cut
        } else {
            &mut traffic.delivered
        };
        count.add(bytes);
        !cut
    }

    /// A piece of a stream that a proxy carries: when it is due, unless one before it is due later. Nothing of a stream
    /// gets lost: where a frame would have been, it comes when that would have been sent again.
    pub(super) fn piece(
        &mut self,
        (from, to): (usize, usize),
        bytes: usize,
        ports: Ports,
        now: Duration,
    ) -> Duration {
        let index = self.index(from, to);
        let link = &mut self.links[index];
        link.meter.sent(bytes, Some(ports));
        link.schedule_piece(bytes, now)
    }

    /// Whether nothing of this passes at the moment.
    pub(super) fn cuts(&self, (from, to): (usize, usize), ports: Ports) -> bool {
        self.links[self.index(from, to)].quality.cuts(Some(ports))
    }

    /// A piece of a stream, or a connection, waits for the end of a cut.
    pub(super) fn note_held(&mut self, (from, to): (usize, usize), bytes: usize) {
        let index = self.index(from, to);
        self.links[index].meter.traffic.cut.add(bytes);
    }

    /// A piece of a stream got there.
    pub(super) fn note_delivered(&mut self, (from, to): (usize, usize), bytes: usize) {
        let index = self.index(from, to);
        self.links[index].meter.traffic.delivered.add(bytes);
    }

    /// A frame that was due found no room at its receiver.
    pub(super) fn note_refused(&mut self, from: usize, to: usize, bytes: usize) {
        let index = self.index(from, to);
        let traffic = &mut self.links[index].meter.traffic;
        traffic.delivered.frames -= 1;
        traffic.delivered.bytes -= bytes as u64;
        traffic.overflowed.add(bytes);
    }

    pub(super) fn traffic(&self, from: usize, to: usize) -> Traffic {
        self.links[self.index(from, to)].meter.traffic
    }

    pub(super) fn port(&self, from: usize, to: usize, protocol: Protocol, port: u16) -> Count {
        self.links[self.index(from, to)].meter.port(protocol, port)
    }

    fn index(&self, from: usize, to: usize) -> usize {
        from * self.macs.len() + to
    }
}

impl Link {
    /// When a frame of this size arrives; `None`: the queue is full.
    fn schedule(&mut self, bytes: usize, now: Duration) -> Option<Duration> {
        let mut leaves = now;
        if let Some(bandwidth) = self.quality.bandwidth {
            let starts = self.busy_until.max(now);
            if starts - now > BANDWIDTH_WAIT_MAX {
                self.meter.traffic.overflowed.add(bytes);
                return None;
            }
            let nanos = (bytes as u64).saturating_mul(1_000_000_000) / bandwidth.get();
            self.busy_until = starts + Duration::from_nanos(nanos);
            leaves = self.busy_until;
        }
        if self.queued_bytes + bytes > QUEUE_BYTES_MAX {
            self.meter.traffic.overflowed.add(bytes);
            return None;
        }
        self.queued_bytes += bytes;
        let jitter = u64::try_from(self.quality.jitter.as_nanos()).unwrap_or(u64::MAX);
        let jitter = if jitter == 0 { 0 } else { self.random.below(jitter) };
        let due = leaves + self.quality.delay + Duration::from_nanos(jitter);
        if self.random.chance(self.quality.reorder) {
            self.meter.traffic.reordered.add(bytes);
            return Some(due.max(self.last_due) + REORDER_HOLD.max(self.quality.jitter));
        }
        self.last_due = due.max(self.last_due);
        Some(self.last_due)
    }

    /// When a piece of a stream arrives. It waits for bandwidth as long as it takes: its sender is slowed down instead.
    fn schedule_piece(&mut self, bytes: usize, now: Duration) -> Duration {
        let mut leaves = now;
        if let Some(bandwidth) = self.quality.bandwidth {
            let starts = self.busy_until.max(now);
            if starts - now > BANDWIDTH_WAIT_MAX {
                self.meter.traffic.overflowed.add(bytes);
            }
            let nanos = (bytes as u64).saturating_mul(1_000_000_000) / bandwidth.get();
            self.busy_until = starts + Duration::from_nanos(nanos);
            leaves = self.busy_until;
        }
        if self.random.chance(self.quality.loss) {
            self.meter.traffic.lost.add(bytes);
            leaves += RESENT_AFTER;
        }
        let jitter = u64::try_from(self.quality.jitter.as_nanos()).unwrap_or(u64::MAX);
        let jitter = if jitter == 0 { 0 } else { self.random.below(jitter) };
        leaves + self.quality.delay + Duration::from_nanos(jitter)
    }

    /// Flips one bit behind the Ethernet header.
    fn corrupt(&mut self, frame: &mut [u8]) {
        let bits = frame.len().saturating_sub(frame::ETHERNET_HEADER) * 8;
        let bit = usize::try_from(self.random.below(bits as u64)).unwrap_or(0);
        if let Some(byte) = frame.get_mut(frame::ETHERNET_HEADER + bit / 8) {
            *byte ^= 1 << (bit % 8);
            self.meter.traffic.corrupted.add(frame.len());
        }
    }
}

#[cfg(test)]
#[path = "switch_test.rs"]
mod tests;
