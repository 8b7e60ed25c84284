//! What the judges say of a history.

use std::time::Duration;

use super::options::Workload;
use crate::checker::floors::{self, Happened};
use crate::checker::{
    Finding, Verdict, ages, ap, batches, guard, linear, pauses, resumes, revisions, sessions, silences,
    storm, takeover, watches,
};
use crate::history::{
    Answer, Ap, Fault, Following, Guarding, Heartbeats, Operation, Outcome, Ownership, Phase, Record,
    Stampede, pair,
};
use crate::workload::followers::Followed;
use crate::workload::{self, mode_switch};

/// A history, by what its lines are about.
#[derive(Debug, Default)]
struct Sorted {
    operations: Vec<Operation>,
    heartbeats: Vec<Heartbeats>,
    ap: Vec<Ap>,
    following: Vec<Following>,
    guarding: Vec<Guarding>,
    ownership: Vec<Ownership>,
    answers: Vec<Answer>,
    stampede: Vec<Stampede>,
    faults: Vec<Fault>,
    broken: Vec<(Duration, String)>,
}

impl Sorted {
    fn new(records: &[Record]) -> Self {
        let mut sorted = Self::default();
        for record in records {
            match record {
                Record::Operation(of) => sorted.operations.push(of.clone()),
                Record::Heartbeats(of) => sorted.heartbeats.push(of.clone()),
                Record::Ap(of) => sorted.ap.push(of.clone()),
                Record::Following(of) => sorted.following.push(of.clone()),
                Record::Guarding(of) => sorted.guarding.push(of.clone()),
                Record::Ownership(of) => sorted.ownership.push(of.clone()),
                Record::Answer(of) => sorted.answers.push(of.clone()),
                Record::Stampede(of) => sorted.stampede.push(of.clone()),
                Record::Fault(of) => sorted.faults.push(of.clone()),
                Record::Broken(at, what) => sorted.broken.push((*at, what.clone())),
                Record::Note(..) => {}
            }
        }
        sorted
    }

    /// When each leader was first seen to lead.
    fn leaders(&self) -> Vec<Duration> {
        let leads = self.heartbeats.iter().filter_map(|of| match of {
            Heartbeats::Leads { time, .. } => Some(*time),
            _ => None,
        });
        leads.collect()
    }

    /// Revisions of the replicated directory that somebody was told, and when.
    fn acknowledged(&self) -> Vec<(u64, Duration)> {
        let operations = self.operations.iter().filter_map(|of| match of.phase {
            Phase::Ok { revision, .. } => Some((revision, of.time)),
            _ => None,
        });
        let answers = self.answers.iter().filter_map(|of| match of {
            Answer::Wrote { revision, time, .. } => Some((*revision, *time)),
            _ => None,
        });
        let claims = self.ownership.iter().filter_map(|of| match of {
            Ownership::Claimed {
                revision,
                end: Some(end),
                ..
            } => Some((*revision, *end)),
            _ => None,
        });
        operations.chain(answers).chain(claims).collect()
    }
}

/// What ran, as far as judges need to know.
#[derive(Clone, Copy, Debug)]
pub struct Ran<'a> {
    /// The workloads.
    pub workloads: &'a [Workload],
    /// How many servers there were.
    pub servers: u64,
    /// How late an expiry may be where nothing excuses it.
    pub late_max: Duration,
    /// When it ended.
    pub ended: Duration,
}

/// Every judge whose workload ran has its say.
pub fn judge(
    of_run: &Ran<'_>,
    records: &[Record],
    followed: Option<&Followed>,
    figures: &mut Vec<String>,
) -> Vec<Verdict> {
    let of = Sorted::new(records);
    let Ran {
        workloads,
        servers,
        late_max,
        ended,
    } = *of_run;
    let ran = |workload| workloads.contains(&workload);
    let mut verdicts = Vec::new();
    if ran(Workload::Registers) || ran(Workload::Batches) || ran(Workload::Retries) {
        verdicts.push(linear::check(&of.operations));
        verdicts.push(revisions::check(&of.operations));
        figures.push(shares(&of.operations, ended));
    }
    let keep_sessions = [
        Workload::Heartbeats,
        Workload::Racers,
        Workload::Takeover,
        Workload::Guard,
    ];
    if keep_sessions.into_iter().any(ran) {
        verdicts.push(sessions::check(&of.heartbeats, &of.faults, late_max, ended));
    }
    if ran(Workload::Heartbeats) && servers == 1 {
        verdicts.push(pauses::check(&of.heartbeats, &of.faults));
    }
    if let Some(followed) = followed {
        verdicts.push(watches::check(&followed.seen, &followed.acknowledged, ended));
    }
    let acknowledged = of.acknowledged();
    let watch = [
        Workload::Heartbeats,
        Workload::Followers,
        Workload::Guard,
        Workload::Takeover,
        Workload::Resumes,
        Workload::Batches,
    ];
    if watch.into_iter().any(ran) && !acknowledged.is_empty() {
        verdicts.push(silences::check(&of.following, &acknowledged, &of.faults));
    }
    if ran(Workload::Ap) {
        verdicts.push(ap::check(&of.ap, workload::ap::GROUP, &of.faults));
    }
    if ran(Workload::Guard) {
        verdicts.push(guard::check(
            &of.guarding,
            &of.following,
            &of.faults,
            &of.leaders(),
        ));
    }
    if ran(Workload::Takeover) {
        verdicts.push(takeover::check(&of.ownership, &of.following));
    }
    if ran(Workload::ModeSwitch) {
        verdicts.push(ap::check_moving(&of.ap, mode_switch::GROUP, &of.faults));
    }
    if ran(Workload::Resumes) {
        verdicts.push(resumes::check(&of.following, &of.answers, ended));
    }
    if ran(Workload::Batches) || ran(Workload::Retries) {
        let group = workload::batches::GROUP;
        verdicts.push(batches::check(&of.answers, &of.following, group));
    }
    if ran(Workload::Ages) {
        verdicts.push(ages::check(&of.answers));
    }
    if ran(Workload::Storm) {
        verdicts.push(storm::check(&of.stampede, &of.faults));
    }
    if !of.broken.is_empty() {
        let mut verdict = Verdict {
            checker: "promises seen broken on the spot",
            judged: of.broken.len(),
            ..Verdict::default()
        };
        verdict.findings = of
            .broken
            .into_iter()
            .map(|(at, what)| Finding { what, at })
            .collect();
        verdicts.push(verdict);
    }
    verdicts
}

/// How often what the workloads of a run are there for happened.
#[must_use]
pub fn happened(of_run: &Ran<'_>, records: &[Record]) -> Vec<Happened> {
    let of = Sorted::new(records);
    let ran = |workload| of_run.workloads.contains(&workload);
    let mut happened = Vec::new();
    let seen = |group, what| floors::servers_seen(&of.ap, group, what, of_run.servers);
    if ran(Workload::Ap) {
        happened.push(seen(workload::ap::GROUP, "servers showed the group that merges"));
    }
    if ran(Workload::ModeSwitch) {
        happened.push(seen(mode_switch::GROUP, "servers showed the group that moves"));
        happened.push(floors::moves(&of.ap, mode_switch::GROUP));
    }
    if ran(Workload::Resumes) {
        happened.push(floors::resumptions(&of.following, workload::resumes::GROUP));
    }
    if ran(Workload::Ages) {
        happened.extend(floors::ages(&of.answers));
    }
    happened
}

/// A run counts only with its load shown.
fn shares(operations: &[Operation], ended: Duration) -> String {
    let paired = pair(operations);
    let count = |wanted: fn(&Outcome) -> bool| paired.iter().filter(|(_, outcome)| wanted(outcome)).count();
    let ok = count(|outcome| matches!(outcome, Outcome::Ok { .. }));
    let fail = count(|outcome| matches!(outcome, Outcome::Fail));
    let unknown = count(|outcome| matches!(outcome, Outcome::Unknown));
    let rate = ok as u64 / ended.as_secs().max(1);
    let percent = 100 * unknown / paired.len().max(1);
    format!(
        "{} operations: {ok} ok ({rate} a second), {fail} failed for certain, {unknown} of unknown outcome ({percent} %)",
        paired.len()
    )
}
