//! What may be chosen about a run.

use std::time::Duration;

/// What may be chosen about a run; all else follows from the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long faults and load go on; the end in peace comes on top.
    pub length: Duration,
    /// How many servers; `None`: the seed decides between 3 and 5.
    pub servers: Option<usize>,
    /// Clients of each workload.
    pub clients: u64,
    /// Names of workloads; `None`: the seed adds some to registers, heartbeats and followers, or runs a storm.
    pub workloads: Option<Vec<String>>,
    /// Kinds of faults; `None`: the seed chooses some.
    pub kinds: Option<Vec<String>>,
    /// Only these faults of the plan, by number; `None`: all of them.
    pub faults: Option<Vec<usize>>,
    /// How registers are read: `linearizable`, `leased` or `local`; `None`: the seed chooses one of the first two. Local
    /// reads do not keep what the judges ask for, which shows that these see.
    pub reads: Option<String>,
    /// A bug that is planted in the servers. Needs the feature `mutants`.
    pub mutant: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            length: Duration::from_secs(15),
            servers: None,
            clients: 2,
            workloads: None,
            kinds: None,
            faults: None,
            reads: None,
            mutant: None,
        }
    }
}

/// A list as it is written on a command line.
fn list(items: &[String]) -> String {
    match items.is_empty() {
        true => "none".to_owned(),
        false => items.join(","),
    }
}

impl Options {
    /// The arguments of the program that choose this, without a seed.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let default = Self::default();
        let mut arguments = vec!["--length-ms".to_owned(), self.length.as_millis().to_string()];
        let mut add = |name: &str, value: Option<String>| {
            arguments.extend(value.into_iter().flat_map(|value| [name.to_owned(), value]));
        };
        add("--servers", self.servers.map(|servers| servers.to_string()));
        add(
            "--clients",
            (self.clients != default.clients).then(|| self.clients.to_string()),
        );
        add("--workload", self.workloads.as_deref().map(list));
        add("--nemesis", self.kinds.as_deref().map(list));
        add("--reads", self.reads.clone());
        let numbers = |faults: &Vec<usize>| faults.iter().map(ToString::to_string).collect::<Vec<_>>();
        add("--faults", self.faults.as_ref().map(|of| list(&numbers(of))));
        add("--mutant", self.mutant.clone());
        arguments
    }

    /// The command that runs this again.
    #[must_use]
    pub fn command_line(&self, seed: u64) -> String {
        format!("rollcall-sim --seed {seed} {}", self.arguments().join(" "))
    }
}
