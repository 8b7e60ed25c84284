//! What a link does to the frames on it.

use std::num::NonZeroU64;
use std::time::Duration;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What passes a link at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Everything passes.
    #[default]
    Nothing,
    /// Nothing to or from these ports passes.
    Ports(Vec<(Protocol, u16)>),
    /// Nothing passes; what is under way is lost too.
    Everything,
}

/// What one directed link does to frames. The default does nothing to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    /// What passes at all.
    pub cut: Cut,
    /// Share of frames that get lost, 0 to 1.
    pub loss: f64,
    /// Share of frames that arrive twice.
    pub duplicate: f64,
    /// Share of frames in which one bit flips behind the addresses. The checksums of TCP and UDP notice.
    pub corrupt: f64,
    /// Share of frames that are held back by `REORDER_HOLD` (or the jitter, if that is more) while later ones pass.
    pub reorder: f64,
    /// How long every frame takes.
    pub delay: Duration,
    /// How much longer, at most; evenly spread. Jitter alone keeps the order.
    pub jitter: Duration,
    /// Bytes per second; frames queue for a fifth of a second at most, then they get lost. `None`: no limit.
    pub bandwidth: Option<NonZeroU64>,
}

impl Quality {
    /// Nothing passes.
    #[must_use]
    pub fn cut() -> Self {
        Self {
            cut: Cut::Everything,
            ..Self::default()
        }
    }

    /// Nothing to or from `port` passes.
    #[must_use]
    pub fn cut_port(protocol: Protocol, port: u16) -> Self {
        Self {
            cut: Cut::Ports(vec![(protocol, port)]),
            ..Self::default()
        }
    }

    /// Both at once: what either cuts is cut, chances add up as independent ones, delays as sums, and the narrower
    /// bandwidth counts.
    #[must_use]
    pub(super) fn and(mut self, other: &Self) -> Self {
        let either = |one: f64, two: f64| 1.0 - (1.0 - one.clamp(0.0, 1.0)) * (1.0 - two.clamp(0.0, 1.0));
        self.cut = match (self.cut, other.cut.clone()) {
            (Cut::Nothing, cut) | (cut, Cut::Nothing) => cut,
            (Cut::Ports(mut ports), Cut::Ports(more)) => {
                ports.extend(more);
                Cut::Ports(ports)
            }
            (Cut::Everything, _) | (_, Cut::Everything) => Cut::Everything,
        };
        self.loss = either(self.loss, other.loss);
        self.duplicate = either(self.duplicate, other.duplicate);
        self.corrupt = either(self.corrupt, other.corrupt);
        self.reorder = either(self.reorder, other.reorder);
        self.delay += other.delay;
        self.jitter += other.jitter;
        self.bandwidth = match (self.bandwidth, other.bandwidth) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        self
    }

    /// Whether a frame of these ports is cut off.
    pub(super) fn cuts(&self, ports: Option<(Protocol, u16, u16)>) -> bool {
        match &self.cut {
            Cut::Nothing => false,
            Cut::Everything => true,
            Cut::Ports(cut) => ports.is_some_and(|(protocol, from, to)| {
                cut.contains(&(protocol, from)) || cut.contains(&(protocol, to))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualities_add_up() {
        let lossy = Quality {
            loss: 0.5,
            delay: Duration::from_millis(10),
            bandwidth: NonZeroU64::new(1_000),
            ..Quality::default()
        };
        let both = lossy.clone().and(&lossy);
        assert!((both.loss - 0.75).abs() < 1e-9);
        assert_eq!(both.delay, Duration::from_millis(20));
        assert_eq!(both.bandwidth, NonZeroU64::new(1_000));
        assert_eq!(lossy.clone().and(&Quality::cut()).cut, Cut::Everything);
        let ports = Quality::cut_port(Protocol::Tcp, 7401).and(&Quality::cut_port(Protocol::Udp, 7401));
        assert!(ports.cuts(Some((Protocol::Udp, 50_000, 7401))));
        assert!(ports.cuts(Some((Protocol::Tcp, 7401, 50_000))));
        assert!(!ports.cuts(Some((Protocol::Tcp, 7400, 50_000))));
        assert!(!ports.cuts(None));
    }
}
