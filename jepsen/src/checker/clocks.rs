//! What was done to wall clocks, by the faults of a history.

use crate::history::Fault;

/// How wrong the servers' wall clocks were. Who was last in an AP group is decided by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Clocks {
    /// None was touched.
    True,
    /// Some went behind: what their servers write may lose against what others wrote before.
    Behind,
    /// Some went ahead: what their servers write is not taken by others before its time has come, also after the clock was
    /// set right.
    Ahead,
}

impl Clocks {
    /// The worst of them.
    pub(super) fn of(faults: &[Fault]) -> Self {
        faults.iter().map(Self::after).max().unwrap_or(Self::True)
    }

    fn after(fault: &Fault) -> Self {
        let Some((kind, how)) = fault.what.split_once(": ") else {
            return Self::True;
        };
        let behind = match kind {
            "clock" => how.contains(" by -"),
            "clock-rate" => how.contains(" half "),
            _ => return Self::True,
        };
        if behind { Self::Behind } else { Self::Ahead }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn faults_say_what_was_done_to_clocks() {
        let of = |whats: &[&str]| {
            let fault = |what: &&str| Fault {
                what: (*what).into(),
                time: Duration::ZERO,
                end: Duration::ZERO,
                bit: true,
                effect: String::new(),
            };
            Clocks::of(&whats.iter().map(fault).collect::<Vec<_>>())
        };
        assert_eq!(of(&["kill: 2"]), Clocks::True);
        assert_eq!(of(&["kill: 2", "clock: 3 by -200 s"]), Clocks::Behind);
        assert_eq!(of(&["clock: 1 by 200 s", "clock: 3 by -200 s"]), Clocks::Ahead);
        assert_eq!(of(&["clock-rate: 3 at half the speed"]), Clocks::Behind);
        assert_eq!(of(&["clock-rate: 3 at twice the speed"]), Clocks::Ahead);
    }
}
