//! What went over a link, counted from outside.

use std::collections::BTreeMap;

use super::quality::Protocol;

/// Most ports counted on one link; what comes beyond is counted under port 0.
const PORTS_MAX: usize = 256;
/// From here up, ports are those of a connection, not of a service.
const EPHEMERAL: u16 = 32_768;

/// Frames and their bytes, Ethernet headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many frames.
    pub frames: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Count {
    pub(super) fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

/// What became of the frames of one directed link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Given to the link by its sender.
    pub sent: Count,
    /// Handed to the receiver, repeats included.
    pub delivered: Count,
    /// Cut off.
    pub cut: Count,
    /// Lost by chance.
    pub lost: Count,
    /// Lost since the queue was full, or the receiver was.
    pub overflowed: Count,
    /// Repeats made.
    pub duplicated: Count,
    /// Changed on the way.
    pub corrupted: Count,
    /// Overtaken by later ones.
    pub reordered: Count,
}

impl Traffic {
    /// Adds another link's.
    pub fn merge(&mut self, other: &Self) {
        self.sent.merge(other.sent);
        self.delivered.merge(other.delivered);
        self.cut.merge(other.cut);
        self.lost.merge(other.lost);
        self.overflowed.merge(other.overflowed);
        self.duplicated.merge(other.duplicated);
        self.corrupted.merge(other.corrupted);
        self.reordered.merge(other.reordered);
    }
}

#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) traffic: Traffic,
    ports: BTreeMap<(Protocol, u16), Count>,
}

impl Meter {
    pub(super) fn sent(&mut self, bytes: usize, ports: Option<(Protocol, u16, u16)>) {
        self.traffic.sent.add(bytes);
        let Some((protocol, from, to)) = ports else { return };
        // Requests and answers of a service count as its own, whichever side sends.
        let service = from.min(to);
        let service = if service < EPHEMERAL { service } else { 0 };
        let known = self.ports.contains_key(&(protocol, service)) || self.ports.len() < PORTS_MAX;
        let port = if known { service } else { 0 };
        self.ports.entry((protocol, port)).or_default().add(bytes);
    }

    pub(super) fn port(&self, protocol: Protocol, port: u16) -> Count {
        self.ports.get(&(protocol, port)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_count_for_the_service_and_ports_are_bounded() {
        let mut meter = Meter::default();
        meter.sent(100, Some((Protocol::Tcp, 40_000, 7_400)));
        meter.sent(50, Some((Protocol::Tcp, 7_400, 40_000)));
        assert_eq!(
            meter.port(Protocol::Tcp, 7_400),
            Count {
                frames: 2,
                bytes: 150
            }
        );
        for port in 1..5_000 {
            meter.sent(1, Some((Protocol::Udp, 60_000, port)));
        }
        assert!(meter.ports.len() <= PORTS_MAX + 1);
        assert!(meter.port(Protocol::Udp, 0).bytes > 4_000);
        assert_eq!(meter.traffic.sent.bytes, 150 + 4_999);
    }
}
