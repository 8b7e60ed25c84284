//! The network as a test holds it.

use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::process::Command;
use std::sync::MutexGuard;
use std::time::Duration;

use anyhow::ensure;

use super::claim::Claim;
use super::host::Plan;
use super::loopback::{Loopback, Place};
use super::meter::{Count, Traffic};
use super::quality::{Protocol, Quality};
use super::runtime::HostRuntime;
use super::switch::{FaultId, Switch};
use super::wire::Wire;

/// The test's own process: the machine's namespace, joined to the switch.
pub const HARNESS: u64 = 0;
/// Most hosts of one network besides the harness, those of clients included.
pub const HOSTS_MAX: u64 = 32;

/// Hosts joined by a switch that obeys the test.
///
/// Hosts are numbers: [`Net::hosts`] are namespaces (server 1 of a cluster lives on host 1), [`Net::clients`] are
/// more of them, for whoever talks to the servers; [`HARNESS`] is where the test itself runs. Methods panic when given
/// a host that is not there. Dropping it removes everything.
///
/// Without root hosts are on loopback ([`Net::start_on_loopback`]), and a proxy stands for the switch: it carries
/// connections and datagrams instead of frames, and what it counts as frames are pieces of streams. A cut holds
/// everything back, as it does elsewhere; but a connection is taken before it is known that nothing will pass.
#[derive(Debug)]
pub struct Net {
    plan: Plan,
    fabric: Fabric,
}

#[derive(Debug)]
enum Fabric {
    Namespaces {
        // Fields go in this order: the interfaces, then the namespaces.
        wire: Wire,
        _claim: Claim,
    },
    Loopback(Loopback),
}

impl Fabric {
    fn switch(&self) -> MutexGuard<'_, Switch> {
        match self {
            Self::Namespaces { wire, .. } => wire.switch(),
            Self::Loopback(loopback) => loopback.switch(),
        }
    }

    /// Changes what links do, and has whoever waits for one look again.
    fn change<T>(&self, change: impl FnOnce(&mut Switch) -> T) -> T {
        let changed = change(&mut self.switch());
        if let Self::Loopback(loopback) = self {
            loopback.tell_changed();
        }
        changed
    }
}

impl Net {
    /// A network of `hosts` hosts and the harness, without faults. What chance decides follows from seed 1.
    ///
    /// # Errors
    /// This needs root, `ip`, and `/dev/net/tun`; the message says what is missing. See [`Net::start_or_skip`].
    pub fn start(hosts: u64) -> anyhow::Result<Self> {
        Self::start_seeded(hosts, 1)
    }

    /// As [`Self::start`], with this seed.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_seeded(hosts: u64, seed: u64) -> anyhow::Result<Self> {
        Self::start_with_clients(hosts, 0, seed)
    }

    /// As [`Self::start_seeded`], with `clients` further hosts for clients.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_clients(hosts: u64, clients: u64, seed: u64) -> anyhow::Result<Self> {
        ensure_possible(hosts, clients)?;
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root, and this runs as user {}",
            rustix::process::geteuid().as_raw()
        );
        let mut claim = Claim::take()?;
        let plan = Plan::new(claim.number(), u8::try_from(hosts)?, u8::try_from(clients)?);
        let devices = plan.build(&mut claim)?;
        let macs = plan.all().map(|host| plan.mac(host)).collect();
        let wire = Wire::start(devices, Switch::new(macs, seed))?;
        Ok(Self {
            plan,
            fabric: Fabric::Namespaces { wire, _claim: claim },
        })
    }

    /// As [`Self::start_with_clients`], without root: on loopback, with a proxy in this process.
    ///
    /// # Errors
    /// There are no ports.
    pub fn start_on_loopback(hosts: u64, clients: u64, seed: u64) -> anyhow::Result<Self> {
        ensure_possible(hosts, clients)?;
        let plan = Plan::new(0, u8::try_from(hosts)?, u8::try_from(clients)?);
        let macs = plan.all().map(|host| plan.mac(host)).collect();
        let loopback = Loopback::start(hosts, clients, Switch::new(macs, seed))?;
        Ok(Self {
            plan,
            fabric: Fabric::Loopback(loopback),
        })
    }

    /// Whether hosts are on loopback, behind a proxy.
    #[must_use]
    pub fn is_on_loopback(&self) -> bool {
        matches!(self.fabric, Fabric::Loopback(_))
    }

    /// Where the server of a host listens, if hosts are on loopback.
    pub(crate) fn place(&self, host: u64) -> Option<&Place> {
        match &self.fabric {
            Fabric::Namespaces { .. } => None,
            Fabric::Loopback(loopback) => loopback.place(host),
        }
    }

    /// From now on this process is the server of a host: what it dials comes from there.
    pub(crate) fn note_process(&self, host: u64, pid: u32) {
        if let Fabric::Loopback(loopback) = &self.fabric {
            loopback.note_process(self.port(host), pid);
        }
    }

    /// What a client on this host dials to reach the server that listens for clients at `address`.
    #[must_use]
    pub fn dialled_from(&self, host: u64, address: &str) -> String {
        match &self.fabric {
            Fabric::Namespaces { .. } => address.to_owned(),
            Fabric::Loopback(loopback) => loopback.dialled_from(host, address),
        }
    }

    /// Breaks off every connection between the hosts of these links; how many there were. `None`: frames are carried
    /// here, and nobody knows of connections.
    #[must_use]
    pub fn reset(&self, links: &[(u64, u64)]) -> Option<usize> {
        match &self.fabric {
            Fabric::Namespaces { .. } => None,
            Fabric::Loopback(loopback) => {
                let links = links.iter().map(|(from, to)| (self.port(*from), self.port(*to)));
                Some(loopback.reset(&links.collect::<Vec<_>>()))
            }
        }
    }

    /// As [`Self::start_seeded`]; where that is not possible, prints why and gives `None`, for a test to return.
    ///
    /// # Panics
    /// It is not possible, and `ROLLCALL_REQUIRE_NET` is set: what should run here must not pass by being skipped.
    #[must_use]
    pub fn start_or_skip(hosts: u64, seed: u64) -> Option<Self> {
        match Self::start_seeded(hosts, seed) {
            Ok(net) => Some(net),
            Err(reason) => {
                let required = std::env::var_os("ROLLCALL_REQUIRE_NET").is_some_and(|set| !set.is_empty());
                assert!(!required, "ROLLCALL_REQUIRE_NET is set, but: {reason:#}");
                eprintln!("skipped, no network of its own: {reason:#}");
                None
            }
        }
    }

    /// The servers' hosts.
    #[must_use]
    pub fn hosts(&self) -> Vec<u64> {
        self.plan.servers().map(u64::from).collect()
    }

    /// The hosts of clients.
    #[must_use]
    pub fn clients(&self) -> Vec<u64> {
        self.plan.clients().map(u64::from).collect()
    }

    /// Everywhere that clients may be: their hosts, and the harness.
    #[must_use]
    pub fn all_clients(&self) -> Vec<u64> {
        let mut clients = self.clients();
        clients.push(HARNESS);
        clients
    }

    /// Threads on a host: what is spawned there has that host's address.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn runtime(&self, host: u64) -> anyhow::Result<HostRuntime> {
        let known = self.known(host);
        let elsewhere = known > 0 && !self.is_on_loopback();
        HostRuntime::start(host, elsewhere.then(|| self.plan.open(known)).transpose()?)
    }

    /// The address of a host on this network.
    #[must_use]
    pub fn address(&self, host: u64) -> Ipv4Addr {
        let host = self.known(host);
        if self.is_on_loopback() {
            return Ipv4Addr::LOCALHOST;
        }
        self.plan.address(host)
    }

    /// The command that runs `program` on a host. It becomes that program, with its own process id.
    #[must_use]
    pub fn command(&self, host: u64, program: &std::path::Path) -> Command {
        let host = self.known(host);
        if host == 0 || self.is_on_loopback() {
            return Command::new(program);
        }
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.plan.namespace_path(host)))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs `work` on a thread inside a host. Sockets made there belong to that host for ever.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn inside<T: Send>(&self, host: u64, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let host = self.known(host);
        self.plan
            .inside(if self.is_on_loopback() { 0 } else { host }, work)
    }

    /// No frame passes between the two groups, in either direction. Hosts in neither, clients among them, keep
    /// reaching both; name [`Self::all_clients`] to cut clients as well.
    pub fn partition(&self, one: &[u64], other: &[u64]) -> FaultId {
        self.impose(&both_ways(one, other), Quality::cut())
    }

    /// Nothing that `from` sends reaches `to`; the other direction works.
    pub fn one_way(&self, from: u64, to: u64) -> FaultId {
        self.impose(&[(from, to)], Quality::cut())
    }

    /// The host is alone: no other server's host reaches it. Clients do, unless `clients_too`.
    pub fn isolate(&self, host: u64, clients_too: bool) -> FaultId {
        let mut others = self.hosts();
        others.retain(|other| *other != host);
        if clients_too {
            others.extend(self.all_clients());
        }
        self.partition(&[host], &others)
    }

    /// Cuts one service between the two groups, in both directions: peers but not clients, or gossip but not
    /// replication.
    pub fn cut_port(&self, one: &[u64], other: &[u64], protocol: Protocol, port: u16) -> FaultId {
        self.impose(&both_ways(one, other), Quality::cut_port(protocol, port))
    }

    /// Does this to these directed links, on top of what others do to them, until it is lifted.
    pub fn impose(&self, links: &[(u64, u64)], quality: Quality) -> FaultId {
        let links = links.iter().map(|(from, to)| (self.port(*from), self.port(*to)));
        let links = links.filter(|(from, to)| from != to).collect();
        self.fabric.change(|switch| switch.impose(links, quality))
    }

    /// Ends one fault, and no other; `false`: it had ended.
    pub fn lift(&self, fault: FaultId) -> bool {
        self.fabric.change(|switch| switch.lift(fault))
    }

    /// Ends every fault and gives every link its perfect quality back.
    pub fn heal(&self) {
        self.fabric.change(Switch::heal);
    }

    /// The link from one host to another, in this direction.
    #[must_use]
    pub fn link(&self, from: u64, to: u64) -> Links<'_> {
        self.links(&[(from, to)])
    }

    /// Both directions between two hosts.
    #[must_use]
    pub fn between(&self, one: u64, other: u64) -> Links<'_> {
        self.links(&[(one, other), (other, one)])
    }

    /// All links among the hosts. `clients_too`: and those between them and the harness.
    #[must_use]
    pub fn everywhere(&self, clients_too: bool) -> Links<'_> {
        self.links(&self.pairs(clients_too))
    }

    /// Every directed pair of servers' hosts; `clients_too`: of all hosts.
    #[must_use]
    pub fn pairs(&self, clients_too: bool) -> Vec<(u64, u64)> {
        let mut hosts = self.hosts();
        if clients_too {
            hosts.extend(self.all_clients());
        }
        let from = |from: u64| {
            hosts
                .iter()
                .map(move |to| (from, *to))
                .filter(|(from, to)| from != to)
        };
        hosts.iter().copied().flat_map(from).collect()
    }

    /// These directed links.
    #[must_use]
    pub fn links(&self, links: &[(u64, u64)]) -> Links<'_> {
        let links = links.iter().map(|(from, to)| (self.port(*from), self.port(*to)));
        Links {
            net: self,
            links: links.collect(),
        }
    }

    /// What became of the frames from one host to another.
    #[must_use]
    pub fn traffic(&self, from: u64, to: u64) -> Traffic {
        self.fabric.switch().traffic(self.port(from), self.port(to))
    }

    /// Bytes that one host sent towards another, whether they arrived or not.
    #[must_use]
    pub fn bytes(&self, from: u64, to: u64) -> u64 {
        self.traffic(from, to).sent.bytes
    }

    /// Bytes that a host sent to all others.
    #[must_use]
    pub fn bytes_from(&self, host: u64) -> u64 {
        let others = self.plan.all().map(u64::from).filter(|to| *to != host);
        others.map(|to| self.bytes(host, to)).sum()
    }

    /// What a host sent to all others for the service at `port`, its own or theirs.
    #[must_use]
    pub fn port_traffic(&self, from: u64, protocol: Protocol, port: u16) -> Count {
        let switch = self.fabric.switch();
        let mut sum = Count::default();
        for to in self.plan.all().map(usize::from) {
            sum.merge(switch.port(self.port(from), to, protocol, port));
        }
        sum
    }

    fn known(&self, host: u64) -> u8 {
        self.plan
            .all()
            .find(|known| u64::from(*known) == host)
            .expect("the network has a host of this number")
    }

    fn port(&self, host: u64) -> usize {
        usize::from(self.known(host))
    }
}

fn ensure_possible(hosts: u64, clients: u64) -> anyhow::Result<()> {
    ensure!(
        hosts >= 1 && hosts.saturating_add(clients) <= HOSTS_MAX,
        "{hosts} hosts and {clients} of clients; 1 to {HOSTS_MAX} are possible"
    );
    Ok(())
}

fn both_ways(one: &[u64], other: &[u64]) -> Vec<(u64, u64)> {
    let pairs = one
        .iter()
        .flat_map(|one| other.iter().map(move |other| (*one, *other)));
    pairs
        .flat_map(|(one, other)| [(one, other), (other, one)])
        .collect()
}

/// Some directed links, to be made better or worse. Each call takes effect at once and lasts until
/// [`Net::heal`]; faults imposed on the same links come on top.
#[derive(Debug)]
pub struct Links<'a> {
    net: &'a Net,
    links: Vec<(usize, usize)>,
}

impl Links<'_> {
    fn set(&self, change: impl Fn(&mut Quality)) -> &Self {
        self.net.fabric.change(|switch| {
            for (from, to) in &self.links {
                switch.set_base(*from, *to, &change);
            }
        });
        self
    }

    /// Share of frames that get lost.
    pub fn loss(&self, share: f64) -> &Self {
        self.set(|of| of.loss = share)
    }

    /// Share of frames that arrive twice.
    pub fn duplicate(&self, share: f64) -> &Self {
        self.set(|of| of.duplicate = share)
    }

    /// Share of frames in which a bit flips.
    pub fn corrupt(&self, share: f64) -> &Self {
        self.set(|of| of.corrupt = share)
    }

    /// Share of frames that later ones overtake.
    pub fn reorder(&self, share: f64) -> &Self {
        self.set(|of| of.reorder = share)
    }

    /// How long every frame takes.
    pub fn delay(&self, delay: Duration) -> &Self {
        self.set(|of| of.delay = delay)
    }

    /// How much longer, at most.
    pub fn jitter(&self, jitter: Duration) -> &Self {
        self.set(|of| of.jitter = jitter)
    }

    /// Bytes per second; 0: no limit.
    pub fn bandwidth(&self, bytes_per_second: u64) -> &Self {
        self.set(|of| of.bandwidth = NonZeroU64::new(bytes_per_second))
    }
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
