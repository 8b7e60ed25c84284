//! A world: hosts, a network and disks on one clock, and what is done to them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use rollcall_jepsen::history::{Fault as FaultLine, Heartbeats, History, Record};
use rollcall_jepsen::seed::Seeded;

use crate::boundary::Entered;
use crate::disk::Disks;
use crate::host::Host;
use crate::invariants::Invariants;
use crate::network::{HostIndex, Link, Network};
use crate::panics;
use crate::schedule::{Fault, Planned, Victim, cuts};
use crate::server::{self, Life, Seat, Tuning};
use crate::time::{Agenda, MILLISECOND, Moment, SECOND};
use crate::trace::Trace;
use crate::words;

/// How often invariants are looked at.
const LOOK_EVERY: u64 = 25 * MILLISECOND;
/// How soon a server that ended by itself is started again.
const RESPAWN_AFTER: u64 = SECOND;

#[derive(Debug)]
enum Event {
    Begin(usize),
    End(usize),
    Look,
    Respawn(HostIndex),
}

/// What a fault in force means for the world.
#[derive(Debug)]
enum Effect {
    Links(BTreeMap<(HostIndex, HostIndex), Link>),
    /// These servers are down until it ends.
    Down(Vec<HostIndex>),
    Paused(Vec<HostIndex>),
    WallClock(HostIndex, i64),
    SlowDisk(HostIndex),
    FailingDisk(HostIndex),
    Nothing,
}

/// How much was done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) starts: u64,
    pub(crate) ended_by_disk: u64,
    pub(crate) steps: u64,
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) entered: Entered,
    pub(crate) now: Moment,
    pub(crate) tuning: Tuning,
    hosts: Vec<Host>,
    seats: Vec<Seat>,
    network: Network,
    disks: Rc<RefCell<Disks>>,
    agenda: Agenda<Event>,
    due: BTreeSet<HostIndex>,
    plan: Vec<Planned>,
    in_force: BTreeMap<usize, (Moment, Effect)>,
    /// Whose disk fails, so that their end is no finding.
    failing: BTreeSet<HostIndex>,
    pub(crate) trace: Trace,
    pub(crate) done: Done,
    pub(crate) history: History,
    pub(crate) invariants: Invariants,
    /// The end of faults has come.
    healed: bool,
}

impl World {
    pub(crate) fn new(
        entered: Entered,
        tuning: Tuning,
        plan: Vec<Planned>,
        disks: Rc<RefCell<Disks>>,
        seed: u64,
        history: History,
    ) -> Self {
        let hosts = tuning.servers + 1;
        let mut agenda = Agenda::default();
        for (index, planned) in plan.iter().enumerate() {
            agenda.put(planned.from, Event::Begin(index));
            agenda.put(planned.until, Event::End(index));
        }
        agenda.put(LOOK_EVERY, Event::Look);
        Self {
            entered,
            now: 0,
            tuning,
            hosts: (0..hosts).map(Host::new).collect(),
            seats: (0..tuning.servers).map(|_| Seat::default()).collect(),
            network: Network::new(hosts, Seeded::fork(seed, 2)),
            disks,
            agenda,
            due: BTreeSet::new(),
            plan,
            in_force: BTreeMap::new(),
            failing: BTreeSet::new(),
            trace: Trace::default(),
            done: Done::default(),
            history,
            invariants: Invariants::default(),
            healed: false,
        }
    }

    /// The host of the clients.
    pub(crate) fn clients(&self) -> HostIndex {
        self.tuning.servers
    }

    pub(crate) fn start_clients(
        &mut self,
        program: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let clients = self.clients();
        self.hosts[clients].start(program, self.now, &self.entered)?;
        self.due.insert(clients);
        Ok(())
    }

    pub(crate) fn start_server(&mut self, server: HostIndex) -> anyhow::Result<()> {
        let data = self.disks.borrow_mut().folder_for_start(server)?;
        let config = server::config(server, &self.tuning, data);
        let seat = Seat::default();
        self.seats[server] = seat.clone();
        self.failing.remove(&server);
        self.network.set_powered(server, true, &self.entered);
        self.hosts[server].start(server::run(config, seat), self.now, &self.entered)?;
        self.due.insert(server);
        self.done.starts += 1;
        Ok(())
    }

    /// Lets time pass until `until`, or until `over` says so; `true`: it did.
    pub(crate) fn run(&mut self, until: Moment, mut over: impl FnMut() -> bool) -> anyhow::Result<bool> {
        loop {
            while let Some(host) = self.due.pop_first() {
                self.step(host)?;
            }
            if over() {
                return Ok(true);
            }
            let wakes = self.hosts.iter().filter_map(Host::wakes_at).min();
            let next = [wakes, self.network.next_at(), self.agenda.first_at()];
            let next = next.into_iter().flatten().min().unwrap_or(until);
            if next > until {
                self.set_now(until);
                return Ok(false);
            }
            self.set_now(next);
            let met = self.network.deliver(self.now, &self.entered, &mut self.trace);
            self.due.extend(met);
            while let Some(event) = self.agenda.take(self.now) {
                self.handle(event)?;
            }
            for (index, host) in self.hosts.iter().enumerate() {
                if host.wakes_at().is_some_and(|at| at <= self.now) {
                    self.due.insert(index);
                }
            }
        }
    }

    fn set_now(&mut self, now: Moment) {
        self.now = self.now.max(now);
        self.entered.set_now(self.now);
    }

    fn step(&mut self, host: HostIndex) -> anyhow::Result<()> {
        if self.hosts[host].paused || !self.hosts[host].is_running() {
            return Ok(());
        }
        self.disks.borrow_mut().set_current(host);
        self.done.steps += 1;
        self.trace.note(self.now << 3 ^ host as u64);
        self.hosts[host].step(self.now, &self.entered);
        self.trace.note(self.entered.drawn());
        self.network.handle_acts(self.now, &self.entered, &mut self.trace);
        if host < self.seats.len() {
            if words::take_anew() {
                self.note_leader(host, self.invariants.term());
            }
            self.meet_end(host);
        }
        Ok(())
    }

    /// A server whose program ended is started again, as a supervisor would.
    fn meet_end(&mut self, server: HostIndex) {
        let reason = match &mut *self.seats[server].life() {
            Life::Ended(reason) => Some(std::mem::take(reason)),
            Life::Left => None,
            Life::Down | Life::Starting | Life::Serving(_) => return,
        };
        if let Some(reason) = reason {
            if self.failing.contains(&server) {
                self.done.ended_by_disk += 1;
            } else {
                self.invariants
                    .find(format!("server {} ended by itself: {reason}", server + 1));
            }
        }
        self.stop_server(server, false);
        self.agenda.put(self.now + RESPAWN_AFTER, Event::Respawn(server));
    }

    fn stop_server(&mut self, server: HostIndex, power: bool) {
        if power {
            self.network.set_powered(server, false, &self.entered);
        }
        self.hosts[server].kill(&self.entered);
        *self.seats[server].life() = Life::Down;
        self.network.handle_acts(self.now, &self.entered, &mut self.trace);
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Begin(index) => {
                if !self.healed {
                    self.begin(index)?;
                }
            }
            Event::End(index) => self.end(index)?,
            Event::Look => {
                self.look();
                self.agenda.put(self.now + LOOK_EVERY, Event::Look);
            }
            Event::Respawn(server) => {
                if !self.is_held_down(server) && !self.hosts[server].is_running() {
                    self.start_server(server)?;
                }
            }
        }
        Ok(())
    }

    fn resolve(&self, victim: Victim) -> HostIndex {
        match victim {
            Victim::Server(index) => index,
            Victim::Leader => self.invariants.leader().unwrap_or(0),
        }
    }

    fn begin(&mut self, index: usize) -> anyhow::Result<()> {
        let fault = self.plan[index].fault.clone();
        *self.done.faults.entry(fault.kind()).or_default() += 1;
        let all = || (0..self.tuning.servers).collect::<Vec<_>>();
        let effect = match fault {
            Fault::Cut { shape, clients } => {
                let leader = self.resolve(Victim::Leader);
                let mut pairs = cuts(&shape, self.tuning.servers, leader);
                if clients {
                    pairs.extend(self.cut_clients(&pairs));
                }
                let cut = Link {
                    cut: true,
                    ..Link::default()
                };
                Effect::Links(pairs.into_iter().map(|pair| (pair, cut)).collect())
            }
            Fault::Slow { least, more } => self.everywhere(Link {
                delay: (least, more),
                ..Link::default()
            }),
            Fault::Lossy { loss, repeat } => self.everywhere(Link {
                loss,
                repeat,
                ..Link::default()
            }),
            Fault::Kill(victim) => self.take_down(vec![self.resolve(victim)], false)?,
            Fault::KillAll => self.take_down(all(), false)?,
            Fault::PowerLoss(victim) => self.take_down(vec![self.resolve(victim)], true)?,
            Fault::PowerLossAll => self.take_down(all(), true)?,
            Fault::Pause(victim) => self.pause(vec![self.resolve(victim)]),
            Fault::PauseAll => self.pause(all()),
            Fault::WallClock(victim, by) => {
                let server = self.resolve(victim);
                let by = by.saturating_mul(1_000_000);
                self.hosts[server].wall_offset += by;
                Effect::WallClock(server, by)
            }
            Fault::SlowDisk(victim) => {
                let server = self.resolve(victim);
                self.disks.borrow_mut().set_slow(server, true);
                Effect::SlowDisk(server)
            }
            Fault::FailingDisk(victim, after) => {
                let server = self.resolve(victim);
                self.disks.borrow_mut().fail_after(server, after);
                self.failing.insert(server);
                Effect::FailingDisk(server)
            }
            Fault::Restart(victim) => {
                let server = self.resolve(victim);
                let seat = self.seats[server].clone();
                if self.hosts[server]
                    .within(&self.entered, || seat.ask_to_leave())
                    .is_some()
                {
                    self.due.insert(server);
                }
                Effect::Nothing
            }
        };
        self.in_force.insert(index, (self.now, effect));
        self.set_links();
        Ok(())
    }

    /// Whoever is cut off from all other servers, in a direction, is cut off from clients in that direction.
    fn cut_clients(&self, pairs: &[(HostIndex, HostIndex)]) -> Vec<(HostIndex, HostIndex)> {
        let servers = self.tuning.servers;
        let clients = self.clients();
        let mut more = Vec::new();
        for server in 0..servers {
            if pairs.iter().filter(|(from, _)| *from == server).count() == servers - 1 {
                more.push((server, clients));
            }
            if pairs.iter().filter(|(_, to)| *to == server).count() == servers - 1 {
                more.push((clients, server));
            }
        }
        more
    }

    fn everywhere(&self, link: Link) -> Effect {
        let hosts = self.hosts.len();
        let pairs = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
        Effect::Links(pairs.map(|pair| (pair, link)).collect())
    }

    fn take_down(&mut self, servers: Vec<HostIndex>, power: bool) -> anyhow::Result<Effect> {
        for &server in &servers {
            self.stop_server(server, power);
            if power {
                self.disks
                    .borrow_mut()
                    .lose_power(server)
                    .context("rebuilding a disk after a loss of power")?;
            }
        }
        Ok(Effect::Down(servers))
    }

    fn pause(&mut self, servers: Vec<HostIndex>) -> Effect {
        for &server in &servers {
            self.hosts[server].paused = true;
        }
        Effect::Paused(servers)
    }

    /// Whether a fault in force keeps a server down.
    fn is_held_down(&self, server: HostIndex) -> bool {
        let mut effects = self.in_force.values().map(|(_, effect)| effect);
        effects.any(|effect| matches!(effect, Effect::Down(down) if down.contains(&server)))
    }

    /// Whether a fault in force makes a server stand still.
    fn is_held_still(&self, server: HostIndex) -> bool {
        let mut effects = self.in_force.values().map(|(_, effect)| effect);
        effects.any(|effect| matches!(effect, Effect::Paused(paused) if paused.contains(&server)))
    }

    fn end(&mut self, index: usize) -> anyhow::Result<()> {
        let Some((began, effect)) = self.in_force.remove(&index) else {
            return Ok(());
        };
        match effect {
            Effect::Down(servers) => {
                for server in servers {
                    if !self.is_held_down(server) && !self.hosts[server].is_running() {
                        self.start_server(server)?;
                    }
                }
            }
            Effect::Paused(servers) => {
                for server in servers {
                    if !self.is_held_still(server) {
                        self.hosts[server].paused = false;
                        self.due.insert(server);
                    }
                }
            }
            Effect::WallClock(server, by) => self.hosts[server].wall_offset -= by,
            Effect::SlowDisk(server) => self.disks.borrow_mut().set_slow(server, false),
            Effect::FailingDisk(server) => {
                // Whether it has noticed or not: it is replaced together with its process.
                if self.hosts[server].is_running() {
                    self.stop_server(server, false);
                }
                if !self.is_held_down(server) {
                    self.start_server(server)?;
                }
            }
            Effect::Links(_) | Effect::Nothing => {}
        }
        self.set_links();
        let planned = &self.plan[index];
        let line = FaultLine {
            what: format!("{}: {planned}", planned.fault.name_in_histories()),
            time: Duration::from_nanos(began),
            end: Duration::from_nanos(self.now),
            bit: true,
            effect: String::new(),
        };
        self.history.record(Record::Fault(line));
        Ok(())
    }

    /// Ends every fault; none begins any more.
    pub(crate) fn heal(&mut self) -> anyhow::Result<()> {
        self.healed = true;
        let in_force: Vec<usize> = self.in_force.keys().copied().collect();
        for index in in_force {
            self.end(index)?;
        }
        for server in 0..self.tuning.servers {
            if !self.hosts[server].is_running() {
                self.start_server(server)?;
            }
        }
        Ok(())
    }

    fn set_links(&mut self) {
        let hosts = self.hosts.len();
        for from in 0..hosts {
            for to in 0..hosts {
                let mut link = Link::default();
                for (_, effect) in self.in_force.values() {
                    if let Effect::Links(links) = effect
                        && let Some(of) = links.get(&(from, to))
                    {
                        link.cut |= of.cut;
                        link.loss = link.loss.max(of.loss);
                        link.repeat = link.repeat.max(of.repeat);
                        link.delay = link.delay.max(of.delay);
                    }
                }
                self.network.set_link(from, to, link);
            }
        }
    }

    fn look(&mut self) {
        let servers = self.seats.iter().enumerate();
        let handles: Vec<_> = servers
            .filter(|(server, _)| !self.hosts[*server].paused)
            .filter_map(|(server, seat)| Some((server, seat.handles()?)))
            .collect();
        for (server, term) in self.invariants.look(&handles) {
            self.note_leader(server, term);
        }
        self.hear_panics();
    }

    /// Whoever panicked since this was asked last; what it belonged to may go on without it.
    pub(crate) fn hear_panics(&mut self) {
        for panic in panics::take() {
            self.invariants.find(format!("a task panicked: {panic}"));
        }
    }

    /// Every session has a full ttl again.
    fn note_leader(&self, server: HostIndex, term: u64) {
        self.history.record(Record::Heartbeats(Heartbeats::Leads {
            server: server as u64 + 1,
            term,
            time: Duration::from_nanos(self.now),
        }));
    }

    /// The servers that serve now.
    pub(crate) fn serving(&self) -> Vec<(HostIndex, server::Handles)> {
        let servers = self.seats.iter().enumerate();
        servers
            .filter_map(|(server, seat)| Some((server, seat.handles()?)))
            .collect()
    }

    pub(crate) fn figures(&self) -> (crate::network::Traffic, u64, u64, u64) {
        let disks = self.disks.borrow();
        (
            self.network.traffic,
            disks.syncs(),
            disks.lost_batches,
            disks.lost_files,
        )
    }

    /// Ends every program.
    pub(crate) fn end_all(&mut self) {
        for host in 0..self.hosts.len() {
            self.hosts[host].kill(&self.entered);
            if let Some(seat) = self.seats.get(host) {
                *seat.life() = Life::Down;
            }
        }
    }
}
