//! Bugs planted on purpose: whoever judges the servers is judged by whether it finds them.
//!
//! Without the feature `mutants` none is there: [`planted`] and [`every`] are `false` when the program is compiled. With
//! it one mutant may be chosen at a time, for the whole process; the servers of a simulation have it in common.

/// Writes the mutants down once: variants, names, and what each breaks.
macro_rules! mutants {
    ($($variant:ident $name:literal $breaks:literal,)+) => {
        /// A bug that somebody could really have made.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $(#[doc = $breaks] $variant,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// As it is chosen.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it does wrong.
            #[must_use]
            pub const fn breaks(self) -> &'static str {
                match self {
                    $(Self::$variant => $breaks,)+
                }
            }
        }
    };
}

mutants! {
    SkipFsync "skip-fsync" "the log is acknowledged before it is synced",
    ForgetVote "forget-vote" "a vote is given and not written to disk",
    ForgetTail "forget-tail" "a restart takes the last entries of the log for a torn write and drops them",
    DivergentApply "divergent-apply" "a server passes over a committed request now and then",
    StaleRead "stale-read" "a linearizable read is answered without asking the quorum",
    EndlessLease "endless-lease" "a leader answers leased reads for as long as it thinks that it leads",
    IgnoreExpected "ignore-expected" "a conditional write does not look at its condition",
    ForgetRequests "forget-requests" "request ids are not remembered, so a retry is applied twice",
    PartialBatch "partial-batch" "of a batch of registrations the second half is left out",
    UnrecordedHeartbeat "unrecorded-heartbeat" "a heartbeat is acknowledged and does not move the deadline",
    DeposedHeartbeat "deposed-heartbeat" "a leader acknowledges heartbeats without asking whether it still leads",
    LateHeartbeat "late-heartbeat" "a heartbeat is acknowledged although its session's expiry was proposed already",
    DeposedExpiry "deposed-expiry" "an expiry names no term and asks no quorum, so a deposed leader's is carried out",
    BlameForPause "blame-for-pause" "a server's own pause is counted against the sessions",
    TakeoverForgotten "takeover-forgotten" "a node that was taken over stays on the list of the session that had it",
    DropEvent "drop-event" "every fiftieth change is not told to watchers",
    ResumeOffByOne "resume-off-by-one" "a resumed watch begins one revision late",
    GuardWithoutShare "guard-without-share" "the removal guard does not look at the share",
    GuardForgets "guard-forgets" "a new leader takes every guard's window for over",
    UnstoredAck "unstored-ack" "a write to an AP group is acknowledged before it is on disk",
    SecondAckUnasked "second-ack-unasked" "a write with two acks does not ask the second server",
    Resurrect "resurrect" "a tombstone loses to whatever is heard of its node",
    WallClockWins "wall-clock-wins" "stamps follow the wall clock alone, so a server that is behind loses its writes",
    UnfrozenMove "unfrozen-move" "a group that moves goes on taking writes, and signs are not compared",
    StormUnrationed "storm-unrationed" "full lists leave without regard to the egress budget",
}

/// There is none of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no mutant is called {name:?}; there are: {}", names())]
pub struct UnknownMutant {
    /// What was asked for.
    pub name: String,
}

fn names() -> String {
    let names: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
    names.join(", ")
}

impl std::str::FromStr for Mutant {
    type Err = UnknownMutant;

    fn from_str(name: &str) -> Result<Self, UnknownMutant> {
        let found = Self::ALL.iter().find(|mutant| mutant.name() == name);
        found.copied().ok_or_else(|| UnknownMutant { name: name.into() })
    }
}

#[cfg(not(feature = "mutants"))]
mod chosen {
    use super::Mutant;

    /// Whether this bug is in the program.
    #[must_use]
    #[inline(always)]
    pub const fn planted(_: Mutant) -> bool {
        false
    }

    /// Whether this bug is in the program and shows at this call: one call of `calls` in the process.
    #[must_use]
    #[inline(always)]
    pub const fn every(_: Mutant, _calls: u64) -> bool {
        false
    }
}

#[cfg(feature = "mutants")]
mod chosen {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::Mutant;

    const NONE: usize = usize::MAX;

    static CHOSEN: AtomicUsize = AtomicUsize::new(NONE);
    /// Two processes do not begin to count at the same call.
    static CALLS: AtomicU64 = AtomicU64::new(0);

    /// Plants a bug in this process, in place of the one before; `None`: none.
    pub fn plant(mutant: Option<Mutant>) {
        CALLS.store(u64::from(std::process::id()), Ordering::Relaxed);
        CHOSEN.store(mutant.map_or(NONE, |mutant| mutant as usize), Ordering::Relaxed);
    }

    /// The one that is planted.
    #[must_use]
    pub fn chosen() -> Option<Mutant> {
        Mutant::ALL.get(CHOSEN.load(Ordering::Relaxed)).copied()
    }

    /// Whether this bug is in the program.
    #[must_use]
    pub fn planted(mutant: Mutant) -> bool {
        CHOSEN.load(Ordering::Relaxed) == mutant as usize
    }

    /// Whether this bug is in the program and shows at this call: one call of `calls` in the process.
    #[must_use]
    pub fn every(mutant: Mutant, calls: u64) -> bool {
        planted(mutant) && CALLS.fetch_add(1, Ordering::Relaxed).is_multiple_of(calls)
    }
}

pub use chosen::*;

#[cfg(all(test, feature = "mutants"))]
mod tests {
    use super::*;

    #[test]
    fn one_is_planted_at_a_time_and_only_by_its_name() {
        for mutant in Mutant::ALL {
            plant(Some(mutant.name().parse().unwrap()));
            assert_eq!(chosen(), Some(*mutant));
            assert_eq!(Mutant::ALL.iter().filter(|other| planted(**other)).count(), 1);
        }
        plant(None);
        assert!(!Mutant::ALL.iter().any(|mutant| planted(*mutant)));
        let unknown = "skip".parse::<Mutant>().unwrap_err().to_string();
        assert!(unknown.contains("skip-fsync, forget-vote"), "{unknown}");
    }
}

#[cfg(all(test, not(feature = "mutants")))]
mod tests {
    use super::*;

    const _: () = assert!(!planted(Mutant::SkipFsync) && !every(Mutant::DropEvent, 1));

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        assert_eq!(names.len(), Mutant::ALL.len());
    }
}
