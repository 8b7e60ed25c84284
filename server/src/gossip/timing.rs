//! How fast the members look after each other.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::PeriodicParams;
use rollcall_core::session::Pace;

use super::packet::PAYLOAD_BYTES_MAX;
use crate::config::GossipPreset;

/// Everything that has to do with time.
#[derive(Clone, Debug)]
pub(crate) struct Timing {
    /// Each member probes another this often.
    pub(crate) probe_period: Duration,
    /// A direct answer comes within this, or others are asked to try.
    pub(crate) probe_rtt: Duration,
    /// A suspect has this long to refute.
    pub(crate) suspicion: Duration,
    /// News are passed on this often.
    pub(crate) spread_interval: Duration,
    /// The core is woken this often.
    pub(crate) tick: Duration,
    /// A server says at least this often how far it is.
    pub(crate) head_interval: Duration,
    /// Members that are down are called this often, in case they are back.
    pub(crate) call_down_interval: Duration,
    /// Seeds that are not among the members are called, at first after this, then ever more rarely.
    pub(crate) seed_backoff: (Duration, Duration),
}

impl Timing {
    pub(crate) fn preset(preset: GossipPreset) -> Self {
        let milliseconds = Duration::from_millis;
        match preset {
            GossipPreset::Local => Self {
                probe_period: milliseconds(200),
                probe_rtt: milliseconds(60),
                suspicion: milliseconds(1_000),
                spread_interval: milliseconds(50),
                tick: milliseconds(20),
                head_interval: milliseconds(500),
                call_down_interval: milliseconds(1_000),
                seed_backoff: (milliseconds(200), milliseconds(5_000)),
            },
            GossipPreset::Lan => Self {
                probe_period: milliseconds(1_000),
                probe_rtt: milliseconds(300),
                suspicion: milliseconds(4_000),
                spread_interval: milliseconds(200),
                tick: milliseconds(50),
                head_interval: milliseconds(2_000),
                call_down_interval: milliseconds(5_000),
                seed_backoff: (milliseconds(500), milliseconds(30_000)),
            },
            GossipPreset::Wan => Self {
                probe_period: milliseconds(3_000),
                probe_rtt: milliseconds(1_200),
                suspicion: milliseconds(15_000),
                spread_interval: milliseconds(500),
                tick: milliseconds(100),
                head_interval: milliseconds(5_000),
                call_down_interval: milliseconds(15_000),
                seed_backoff: (milliseconds(1_000), milliseconds(60_000)),
            },
        }
    }

    pub(crate) fn pace(&self) -> Pace {
        Pace {
            tick_interval: self.tick,
            lateness_tolerance: self.tick,
        }
    }

    pub(crate) fn foca(&self) -> foca::Config {
        let few = |members| NonZeroUsize::new(members).expect("it is not zero");
        let periodic = |frequency, members| {
            Some(PeriodicParams {
                frequency,
                num_members: few(members),
            })
        };
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: few(3),
            // Fewer, and with a tenth of the packets lost one death in a hundred stays unknown to somebody until it
            // probes by itself.
            max_transmissions: NonZeroU8::new(15).expect("it is not zero"),
            suspect_to_down_after: self.suspicion,
            // The core forgets by itself, so that no timer waits for days.
            remove_down_after: None,
            max_packet_size: few(PAYLOAD_BYTES_MAX),
            notify_down_members: true,
            periodic_announce: periodic(self.probe_period * 30, 1),
            periodic_announce_to_down_members: periodic(self.call_down_interval, 2),
            periodic_gossip: periodic(self.spread_interval, 3),
        }
    }
}
