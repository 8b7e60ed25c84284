//! How each mutant is sought.

use anyhow::ensure;
use rollcall_proto::v1::ReadMode;

use super::trial::{CALM, Lab, ServerTest, Trial};
use crate::campaign::Workload;
use crate::nemesis::Kind;

/// A mutant and how it is sought.
#[derive(Clone, Debug)]
pub(super) struct Sought {
    pub(super) name: String,
    pub(super) breaks: String,
    pub(super) trial: Trial,
    pub(super) seeds_max: u64,
}

/// All mutants of a server, in its order.
#[derive(Clone, Debug)]
pub struct Catalogue(Vec<Sought>);

/// Who seeks what, and with how many seeds at most.
fn trials() -> Vec<(&'static str, Trial, u64)> {
    let mut trials = sought_in_the_lab();
    trials.extend(sought_by_tests());
    trials
}

fn sought_in_the_lab() -> Vec<(&'static str, Trial, u64)> {
    use Workload::{
        Ap, Batches, Followers, Guard, Heartbeats, ModeSwitch, Racers, Registers, Resumes, Retries, Storm,
        Takeover,
    };
    let calm = |workloads| Lab { workloads, ..CALM };
    let under = |workloads, kinds, seconds| Lab {
        workloads,
        kinds,
        seconds,
        ..CALM
    };
    let cut: &[Kind] = &[Kind::Single, Kind::Halves];
    let leased = Lab {
        reads: ReadMode::Leased,
        ..under(&[Registers], &[Kind::Single, Kind::Pause], 30)
    };
    let alone = Lab {
        servers: 1,
        ..under(&[Heartbeats], &[Kind::Pause], 20)
    };
    let labs = [
        ("skip-fsync", under(&[Registers], &[Kind::PowerLossAll], 15), 4),
        ("forget-vote", under(&[Registers], &[Kind::KillAll], 25), 6),
        ("forget-tail", under(&[Registers], &[Kind::KillAll], 25), 6),
        ("divergent-apply", calm(&[Registers]), 2),
        ("stale-read", under(&[Registers], cut, 15), 4),
        ("endless-lease", leased, 8),
        ("ignore-expected", calm(&[Registers]), 2),
        ("forget-requests", calm(&[Retries]), 2),
        ("partial-batch", calm(&[Batches]), 2),
        ("unrecorded-heartbeat", calm(&[Heartbeats]), 2),
        ("deposed-heartbeat", under(&[Heartbeats], &[Kind::Halves], 40), 6),
        ("late-heartbeat", under(&[Racers], &[], 15), 6),
        ("deposed-expiry", under(&[Heartbeats], &[Kind::Halves], 40), 6),
        ("blame-for-pause", alone, 4),
        ("takeover-forgotten", calm(&[Takeover]), 2),
        ("drop-event", calm(&[Followers]), 2),
        ("resume-off-by-one", calm(&[Resumes]), 2),
        ("guard-without-share", calm(&[Guard]), 2),
        ("guard-forgets", under(&[Guard], &[Kind::Transfer], 40), 6),
        ("unstored-ack", under(&[Ap], &[Kind::Kill], 20), 6),
        ("resurrect", under(&[Ap], &[Kind::Halves], 20), 6),
        ("unfrozen-move", under(&[ModeSwitch], &[], 20), 6),
        ("storm-unrationed", under(&[Storm], &[], 20), 4),
    ];
    labs.map(|(name, lab, seeds_max)| (name, Trial::Lab(lab), seeds_max))
        .to_vec()
}

/// What the lab's judges cannot tell, for they go by what clients were told: whom a clock behind the others hurts, and on
/// whose disks a write is.
fn sought_by_tests() -> Vec<(&'static str, Trial, u64)> {
    let tests = [
        (
            "second-ack-unasked",
            "ap",
            "the_last_server_goes_on_alone_and_what_it_took_stays",
        ),
        (
            "wall-clock-wins",
            "ap_clock",
            "a_server_whose_clock_is_behind_has_the_last_word_on_what_it_has_seen",
        ),
    ];
    tests
        .map(|(mutant, file, name)| (mutant, Trial::Test(ServerTest { file, name }), 2))
        .to_vec()
}

impl Catalogue {
    /// The catalogue for a server's own list of names and what they do.
    ///
    /// # Errors
    /// One of them is not sought, or one that is sought is not there.
    pub fn of(mutants: &[(String, String)]) -> anyhow::Result<Self> {
        let trials = trials();
        let unsought: Vec<&str> = mutants
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !trials.iter().any(|(sought, ..)| sought == name))
            .collect();
        ensure!(
            unsought.is_empty(),
            "nobody seeks these mutants: {}",
            unsought.join(", ")
        );
        let unknown: Vec<&str> = trials
            .iter()
            .map(|(name, ..)| *name)
            .filter(|sought| !mutants.iter().any(|(name, _)| name == sought))
            .collect();
        ensure!(
            unknown.is_empty(),
            "the server does not know these mutants: {}",
            unknown.join(", ")
        );
        let sought = mutants.iter().flat_map(|(name, breaks)| {
            trials
                .iter()
                .filter(move |(sought, ..)| sought == name)
                .map(move |(_, trial, seeds_max)| Sought {
                    name: name.clone(),
                    breaks: breaks.clone(),
                    trial: *trial,
                    seeds_max: *seeds_max,
                })
        });
        Ok(Self(sought.collect()))
    }

    /// Those of these names; all if there are none.
    pub(super) fn only(&self, names: &[String]) -> anyhow::Result<Vec<Sought>> {
        for name in names {
            let known: Vec<&str> = self.0.iter().map(|of| of.name.as_str()).collect();
            ensure!(
                known.contains(&name.as_str()),
                "no mutant is called {name}; there are: {}",
                known.join(", ")
            );
        }
        let chosen = |of: &&Sought| names.is_empty() || names.contains(&of.name);
        Ok(self.0.iter().filter(chosen).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_is_sought_and_every_one_sought_is_there() {
        let listed = |names: &[&str]| -> Vec<(String, String)> {
            names
                .iter()
                .map(|name| ((*name).to_owned(), "breaks".to_owned()))
                .collect()
        };
        let all: Vec<&str> = trials().iter().map(|(name, ..)| *name).collect();
        let catalogue = Catalogue::of(&listed(&all)).unwrap();
        assert_eq!(catalogue.only(&[]).unwrap().len(), all.len());
        assert_eq!(catalogue.only(&["drop-event".to_owned()]).unwrap().len(), 1);
        assert!(catalogue.only(&["drop-events".to_owned()]).is_err());
        let more = [&all[..], &["another"]].concat();
        let unsought = Catalogue::of(&listed(&more)).unwrap_err();
        assert!(unsought.to_string().contains("another"), "{unsought}");
        let unknown = Catalogue::of(&listed(&all[1..])).unwrap_err();
        assert!(unknown.to_string().contains(all[0]), "{unknown}");
    }
}
